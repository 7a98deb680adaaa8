"""Schemas in words: what a field is, what it allows, and the fields inside it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec

Schema = dict[str, Any]

DEEP = 3
"""How many types are unfolded inside one another before a link takes over."""

RANGES = {
    ("minimum", "maximum"): "{}",
    ("exclusiveMinimum", "exclusiveMaximum"): "{}, without the ends",
    ("minLength", "maxLength"): "{} characters",
    ("minItems", "maxItems"): "{} items",
    ("minProperties", "maxProperties"): "{} keys",
}
"""Two limits of one thing, and how they are said."""

RULES = {"multipleOf": "a multiple of {}", "pattern": "matches `{}`"}


class Word(msgspec.Struct, frozen=True):
    """A piece of a type's name, perhaps a link to the type."""

    text: str
    href: str = ""


class Row(msgspec.Struct, kw_only=True):
    """A field or a parameter, with what can be unfolded below it."""

    name: str
    kind: list[Word]
    required: bool
    notes: list[str]
    text: str
    inside: list[Shape]


class Shape(msgspec.Struct, kw_only=True):
    """A type: its fields, or what its values are."""

    name: str
    title: str
    kind: list[Word]
    notes: list[str]
    text: str
    rows: list[Row]


class Shapes:
    """Reads the schemas of one document. `above` are the types that are open around a place;
    None keeps everything folded."""

    def __init__(self, schemas: dict[str, Schema]) -> None:
        self.schemas = schemas

    def named(self, name: str) -> Shape:
        return self._shape(self.schemas[name], name, None)

    def kind(self, schema: Schema) -> list[Word]:
        if "$ref" in schema:
            name = _target(schema)
            return [Word(self._title(name), f"#schema-{name}")]
        if members := schema.get("anyOf") or schema.get("oneOf"):
            return _joined([self.kind(member) for member in members], " or ")
        if "prefixItems" in schema:
            parts = [self.kind(item) for item in schema["prefixItems"]]
            return [Word("list of exactly "), *_joined(parts, ", ")]
        if schema.get("type") == "array":
            return [Word("list of "), *self.kind(schema.get("items", {}))]
        if isinstance(schema.get("additionalProperties"), dict):
            return [Word("map of "), *self.kind(schema["additionalProperties"])]
        return [Word(_plain(schema))]

    def notes(self, schema: Schema) -> list[str]:
        """The limits, the values and the default, each a phrase."""
        parts = [part for part in _parts(schema) if "$ref" not in part]
        found = [note for part in parts for note in _limits(part)]
        for part in _parts(schema):
            if "$ref" in part and "enum" in self.schemas[_target(part)]:
                found += _limits(self.schemas[_target(part)])
        if schema.get("default") not in (None, "", [], {}):
            found.append(f"default `{_json(schema['default'])}`")
        return found

    def row(
        self, name: str, schema: Schema, required: bool, above: tuple[str, ...] | None = ()
    ) -> Row:
        return Row(
            name=name,
            kind=self.kind(schema),
            required=required,
            notes=self.notes(schema),
            text=_description(schema),
            inside=list(self.inside(schema, above)),
        )

    def inside(self, schema: Schema, above: tuple[str, ...] | None = ()) -> Iterator[Shape]:
        """The types with fields that a value of this schema consists of."""
        if above is None or len(above) >= DEEP:
            return
        for part in _parts(schema):
            name = _target(part)
            found = self.schemas[name] if name else part
            if name not in above and ("properties" in found or "prefixItems" in found):
                yield self._shape(found, name, (*above, name))
            elif not name or name in above:
                continue
            else:
                yield from self.inside(found, (*above, name))

    def _shape(self, schema: Schema, name: str, above: tuple[str, ...] | None) -> Shape:
        required = schema.get("required", [])
        fields = schema.get("properties") or {
            str(index): item for index, item in enumerate(schema.get("prefixItems", []))
        }
        return Shape(
            name=name,
            title=self._title(name),
            kind=[] if fields else self.kind(schema),
            notes=[] if fields else self.notes(schema),
            text=_description(schema),
            rows=[self.row(key, field, key in required, above) for key, field in fields.items()],
        )

    def _title(self, name: str) -> str:
        return str(self.schemas.get(name, {}).get("title", name))


def _target(schema: Schema) -> str:
    """The name of the type that a schema refers to, if it does."""
    return str(schema.get("$ref", "")).rpartition("/")[2]


def _parts(schema: Schema) -> Iterator[Schema]:
    """The members of a union, the items of a list and the values of a map, however nested."""
    inner = [*schema.get("anyOf", []), *schema.get("oneOf", [])]
    inner += [schema[key] for key in ("items", "additionalProperties") if schema.get(key)]
    yield schema
    for part in inner:
        if isinstance(part, dict):
            yield from _parts(part)


def _joined(parts: list[list[Word]], between: str) -> list[Word]:
    words: list[Word] = []
    for part in parts:
        words += [Word(between), *part] if words else part
    return words


def _plain(schema: Schema) -> str:
    known = schema.get("type") or _types_of(schema.get("enum", []))
    kind = " or ".join(known) if isinstance(known, list) else known
    return str(schema.get("format") or kind or "anything")


def _types_of(values: list[Any]) -> list[str]:
    names = {str: "string", bool: "boolean", int: "integer", type(None): "null"}
    return list(dict.fromkeys(names.get(type(value), "number") for value in values))


def _limits(schema: Schema) -> Iterator[str]:
    if values := schema.get("enum"):
        yield "one of " + ", ".join(f"`{_bare(value)}`" for value in values)
    if "const" in schema:
        yield f"always `{_bare(schema['const'])}`"
    for (low, high), words in RANGES.items():
        if low in schema or high in schema:
            yield words.format(_range(schema.get(low), schema.get(high)))
    for name, words in RULES.items():
        if name in schema:
            yield words.format(schema[name])
    if schema.get("uniqueItems"):
        yield "no item twice"


def _range(low: float | None, high: float | None) -> str:
    if low == high:
        return f"exactly {low}"
    if low is None or high is None:
        return f"at most {high}" if low is None else f"at least {low}"
    return f"{low} to {high}"


def _bare(value: Any) -> str:
    return value if isinstance(value, str) else _json(value)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _description(schema: Schema) -> str:
    """Its own, or that of the one member of a union that has one."""
    members = [schema, *schema.get("anyOf", [])]
    return next((str(one["description"]) for one in members if one.get("description")), "")
