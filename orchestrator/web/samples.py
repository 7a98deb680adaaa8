"""Samples made from schemas: a value that fits, and the curl line that sends it."""

from __future__ import annotations

import json
import math
import shlex
from typing import Any

Schema = dict[str, Any]

NOTHING = object()
"""No sample can be made here without going round in a circle."""

FORMATS = {
    "date": "2026-03-01",
    "date-time": "2026-03-01T09:30:00Z",
    "decimal": "12.50",
    "duration": "PT5M",
    "partial-time": "09:30:00",
    "time": "09:30:00Z",
    "uuid": "019c2f6e-5d00-7a41-8c1f-2b7de7a90c55",
}


class Samples:
    """Makes samples from the schemas of one document."""

    def __init__(self, schemas: dict[str, Schema]) -> None:
        self.schemas = schemas

    def of(self, schema: Schema, *, brief: bool = False) -> Any:
        """A value that the schema allows; a brief one has the required fields alone."""
        made = self._make(schema, "", brief, ())
        return None if made is NOTHING else made

    def _make(self, schema: Schema, name: str, brief: bool, above: tuple[str, ...]) -> Any:
        if "$ref" in schema:
            target = schema["$ref"].rpartition("/")[2]
            if target in above:
                return NOTHING
            return self._make(self.schemas[target], name, brief, (*above, target))
        given = _given(schema)
        if given is not NOTHING:
            return given
        for members in (schema.get("anyOf"), schema.get("oneOf")):
            if members:
                return self._first(members, name, brief, above)
        return self._by_type(schema, name, brief, above)

    def _first(self, members: list[Schema], name: str, brief: bool, above: tuple[str, ...]) -> Any:
        """Of a union the first member that isn't null, if it leads anywhere."""
        telling = sorted(members, key=lambda member: member.get("type") == "null")
        made = (self._make(member, name, brief, above) for member in telling)
        return next((value for value in made if value is not NOTHING), NOTHING)

    def _by_type(self, schema: Schema, name: str, brief: bool, above: tuple[str, ...]) -> Any:
        match schema.get("type"):
            case "object":
                return self._object(schema, brief, above)
            case "array":
                return self._array(schema, name, brief, above)
            case "string":
                return _text(schema, name)
            case "integer" | "number":
                return _number(schema)
            case "boolean":
                return True
            case "null":
                return None
        return {}

    def _object(self, schema: Schema, brief: bool, above: tuple[str, ...]) -> Any:
        required = schema.get("required", [])
        made: dict[str, Any] = {}
        for name, field in schema.get("properties", {}).items():
            if brief and name not in required:
                continue
            value = self._make(field, name, brief, above)
            if value is not NOTHING:
                made[name] = value
            elif name in required:
                return NOTHING
        others = schema.get("additionalProperties")
        if isinstance(others, dict) and not brief:
            value = self._make(others, "value", brief, above)
            made |= {"key": value} if value is not NOTHING else {}
        return made

    def _array(self, schema: Schema, name: str, brief: bool, above: tuple[str, ...]) -> Any:
        if "prefixItems" in schema:
            made = [self._make(item, name, brief, above) for item in schema["prefixItems"]]
            return NOTHING if NOTHING in made else made
        item = self._make(schema.get("items", {}), name, brief, above)
        if item is NOTHING:
            return NOTHING if schema.get("minItems") else []
        return [item] * max(1, schema.get("minItems", 1))


def _given(schema: Schema) -> Any:
    """What the schema itself offers: an example, the default, the only value or the first."""
    chosen = [*schema.get("examples", [])[:1], schema.get("example"), schema.get("default")]
    chosen += [schema.get("const"), *schema.get("enum", [])[:1]]
    return next((value for value in chosen if value not in (None, "", [], {})), NOTHING)


def _text(schema: Schema, name: str) -> str:
    if "contentEncoding" in schema:
        return "aGVsbG8="
    text = FORMATS.get(schema.get("format", "")) or name.replace("_", " ") or "text"
    text = text.ljust(schema.get("minLength", 0), ".")
    return text[: schema.get("maxLength", len(text))]


def _number(schema: Schema) -> int | float:
    """One, or the nearest to it that is allowed."""
    whole = schema["type"] == "integer"
    step = schema.get("multipleOf", 1 if whole else 0.5)
    low = schema.get("minimum", schema.get("exclusiveMinimum", -math.inf) + step)
    high = schema.get("maximum", schema.get("exclusiveMaximum", math.inf) - step)
    number = min(math.ceil(max(1, low) / step) * step, high)
    return int(number) if whole else float(number)


def pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def curl(method: str, path: str, operation: dict[str, Any], samples: Samples) -> str:
    """A line that works in a shell where `URL`, `KEY` and the path's names are set."""
    method = method.upper()
    verb = "curl" if method == "GET" else f"curl -X {method}"
    words = [f'{verb} "{_target(path, operation)}"']
    if operation.get("security"):
        words.append('-H "Authorization: Bearer $KEY"')
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        body = samples.of(content.get("schema", {}), brief=True)
        words.append(f'-H "Content-Type: {kind}"')
        words.append(f"-d {shlex.quote(_body(body))}")
    return " \\\n  ".join(words)


def _target(path: str, operation: dict[str, Any]) -> str:
    query = [
        f"{parameter['name']}=${parameter['name']}"
        for parameter in operation.get("parameters", [])
        if parameter["in"] == "query" and parameter.get("required")
    ]
    return "$URL" + path.replace("{", "${") + ("?" + "&".join(query) if query else "")


def _body(value: Any) -> str:
    short = json.dumps(value, ensure_ascii=False)
    return short if len(short) <= 60 else pretty(value)
