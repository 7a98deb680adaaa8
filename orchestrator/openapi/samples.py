"""Samples made from schemas: a value that fits, in words that a reader knows from elsewhere."""

from __future__ import annotations

import math
from typing import Any

Schema = dict[str, Any]

NOTHING = object()
"""No sample can be made here without going round in a circle."""

PIPELINE = {"pipeline": [{"id": "greet", "uses": "set", "with": {"words": "Good morning"}}]}

FAMILIAR: dict[str, list[Any]] = {
    "access_token": ["eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.e30.c2lnbmF0dXJl"],
    "action": ["pause_task"],
    "actor": ["019c2f6e-5d00-7a41-8c1f-2b7de7a90c55"],
    "actor_name": ["mailer"],
    "arguments": ["tenant text, task uuid"],
    "backoff_strategy": ["exponential_jitter"],
    "bytes": [1_048_576],
    "cause": ["not due yet"],
    "clears": ["when it is due"],
    "concurrency_key": ["mail"],
    "data": [{"total": 120}],
    "dedupe_key": ["briefing"],
    "delay_seconds": [3600],
    "description": ["What the day will be like"],
    "detail": ["within 5 ms"],
    "disabled": [False],
    "docs": ["/docs"],
    "error_type": ["timeout"],
    "expires_in": [1800],
    "failed": [0],
    "fingerprint": ["6a1f0c9be3d24875"],
    "from": ["2026-03-02T00:00:00Z"],
    "id": ["a4f1e6b20c"],
    "has_more": [False],
    "invariant": ["leases_have_workers"],
    "is_external": [False],
    "key": ["ork_a4f1e6b20c_8J2nVb0Qk3xT7yLr5mZsWd1c9Ef6Gh4u"],
    "kind": ["task", "agent", "cron"],
    "last_at": ["2026-03-01T09:45:00Z"],
    "level": ["info"],
    "limit": [50],
    "local": ["2026-03-02T08:30:00+02:00"],
    "message": ["It is done"],
    "name": ["mailer"],
    "needs": ["ORC_SMTP_URL"],
    "offset": [0],
    "outcome": ["succeeded"],
    "overlap": ["allow"],
    "password": ["correct horse battery staple"],
    "payload": [PIPELINE],
    "ping": ["pong"],
    "provider": ["orchestrator"],
    "purpose": ["Holds a task"],
    "queue": ["default"],
    "reason": ["not before lunch"],
    "refresh_token": ["orr_a4f1e6b20c_8J2nVb0Qk3xT7yLr5mZsWd1c9Ef6Gh4u"],
    "request_id": ["019c2f6e5d007a418c1f2b7de7a90c55"],
    "returns": ["jsonb"],
    "schedule_expr": ["30 8 * * mon-fri"],
    "schedule_kind": ["cron"],
    "schema": ["fits"],
    "scopes": ["tasks:read"],
    "service": ["Orchestrator"],
    "source": ["shop", "builtin"],
    "state": ["succeeded", "fired", "approved"],
    "status": ["healthy", "active", 201],
    "step": ["greet"],
    "step_id": ["greet"],
    "stream_id": ["019c2f6e-5d00-7a41-8c1f-2b7de7a90c55"],
    "subject": ["019c2f6e-5d00-7a41-8c1f-2b7de7a90c55"],
    "tenant_id": ["default"],
    "text": ["at 08:30 on Monday to Friday"],
    "timezone": ["Europe/Chisinau"],
    "title": ["Morning briefing"],
    "to": ["2026-03-03T00:00:00Z"],
    "token_type": ["bearer"],
    "topic": ["orders.created"],
    "type": ["timeout"],
    "url": ["/runs/019c2f6e-5d00-7a41-8c1f-2b7de7a90c55/output"],
    "username": ["ann"],
    "uses": ["set"],
    "verb": ["pause_task"],
    "version": ["1.0.0"],
    "webhook_url": ["https://example.com/hook"],
}
"""By the name of a field: the first that its schema allows."""

FREE: dict[str, Any] = {
    "": {"words": "Good morning"},
    "items": {"title": "Morning briefing", "schedule_kind": "cron",
              "schedule_expr": "30 8 * * mon-fri", "payload": PIPELINE},
    "output": {"greet": {"words": "Good morning"}},
    "payload": {"total": 120},
}  # fmt: skip
"""The same where the schema allows anything."""

ABSENT = {
    "detail", "ends_at", "error", "event_id", "expires_at", "failed_since", "hint", "lease_owner",
    "leased_until", "mark", "next_cursor", "output_ref", "problem", "reason", "retried_as",
    "retry_of", "run", "starts_at",
}  # fmt: skip
"""Null, where it may be: else a sample would contradict itself."""

SHOWN = {"decision", "delay_seconds", "error_type", "payload", "scopes", "timezone", "where"}
"""What a brief sample has although it needn't."""

KINDS = {
    "string": (str,), "integer": (int,), "number": (int, float), "object": (dict,),
    "boolean": (bool,),
}  # fmt: skip

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
        """A value that the schema allows; a brief one has hardly more than the required fields."""
        made = self._make(schema, "", brief, ())
        return None if made is NOTHING else made

    def _make(self, schema: Schema, name: str, brief: bool, above: tuple[str, ...]) -> Any:
        if "$ref" in schema:
            target = schema["$ref"].rpartition("/")[2]
            if target in above:
                return NOTHING
            return self._make(self.schemas[target], name, brief, (*above, target))
        given = _given(schema, name)
        if given is not NOTHING:
            return given
        for members in (schema.get("anyOf"), schema.get("oneOf")):
            if members:
                return self._first(members, name, brief, above)
        return self._by_type(schema, name, brief, above)

    def _first(self, members: list[Schema], name: str, brief: bool, above: tuple[str, ...]) -> Any:
        """Of a union the first member that isn't null, if it leads anywhere."""
        telling = sorted(members, key=lambda member: member.get("type") == "null")
        if name in ABSENT and telling[-1].get("type") == "null":
            return None
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
            if brief and name not in required and name not in SHOWN:
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


def _given(schema: Schema, name: str) -> Any:
    """What the schema itself offers: an example, what is familiar, the default, the only value or
    the first."""
    chosen = [*schema.get("examples", [])[:1], schema.get("example")]
    chosen += [value for value in FAMILIAR.get(name, []) if _fits(schema, value)]
    chosen += [schema.get("default"), schema.get("const"), *schema.get("enum", [])[:1]]
    chosen += [] if schema.keys() - {"default", "description", "title"} else [FREE.get(name)]
    return next((value for value in chosen if value not in (None, "", [], {})), NOTHING)


def _fits(schema: Schema, value: Any) -> bool:
    if "enum" in schema:
        return value in schema["enum"]
    if "format" in schema:
        return bool(schema["format"] == "date-time" and value[10:11] == "T")
    kind = KINDS.get(schema.get("type", ""))
    return kind is not None and "properties" not in schema and type(value) in kind


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
