"""JSON Schemas in a document: 2020-12, with a place for each problem of theirs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from .. import shape as shape_of_values
from ..shape import METASCHEMA
from .problems import At, Problem, pointer

LARGEST_SCHEMA = 64 * 1024


class Shape(shape_of_values.Shape):
    __slots__ = ()

    def problems(self, value: Any, under: str = "") -> Iterator[Problem]:
        """All that's wrong with a value, below the pointer `under`."""
        for error in self.errors(value):
            yield Problem(under + pointer(error.instance_path), "schema", error.message[:300])


def shape(at: At, schema: Any) -> Shape | None:
    """The compiled schema, or None when its problems are noted."""
    if not isinstance(schema, Mapping | bool):
        at.say("type", "expected a JSON Schema: an object, or true or false")
        return None
    if len(msgspec.json.encode(schema)) > LARGEST_SCHEMA:
        at.say("size", f"a schema is at most {LARGEST_SCHEMA // 1024} KiB")
        return None
    return _compiled(at, schema)


def _compiled(at: At, schema: Any) -> Shape | None:
    try:
        for error in METASCHEMA.errors(schema):
            place = At(at.notes, (*at.path, *error.instance_path))
            place.say("schema", f"no valid JSON Schema: {error.message[:200]}")
            schema = None
        return None if schema is None else Shape(schema)
    except ValueError as error:
        place = At(at.notes, (*at.path, *getattr(error, "instance_path", ())))
        place.say("schema", *_why(error))
        return None


def _why(error: ValueError) -> tuple[str, str | None]:
    text = str(getattr(error, "message", error))
    if "Retrieval is disabled" in text:
        return "a $ref to somewhere else isn't followed", "copy it below $defs"
    return f"no valid JSON Schema: {text[:200]}", None


def tool_problems(at: At, schema: Shape, given: Any) -> None:
    """Arguments against a tool's schema, as far as they are known before templates are rendered."""
    for error in schema.errors(given):
        value = given
        for part in error.instance_path:
            value = value[part]
        if error.kind.name in {"required", "additionalProperties"} or not _is_open(value):
            place = At(at.notes, (*at.path, *error.instance_path))
            place.say("arguments", error.message)


def _is_open(value: Any) -> bool:
    """Whether a template stands in it somewhere."""
    if isinstance(value, dict):
        return any(_is_open(item) for item in value.values())
    if isinstance(value, list):
        return any(_is_open(item) for item in value)
    return isinstance(value, str) and "${" in value
