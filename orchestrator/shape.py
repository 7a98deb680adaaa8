"""JSON Schemas of values: compiled once, never fetching, patterns in linear time.

Whoever writes a schema may be a stranger, and so may whoever answers what is held to it: a pattern
that backtracks could keep the event loop for seconds, so lookarounds and back references are none.
What is said of a value never repeats it: it may be secret, and it may be large.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

import jsonschema_rs as rust
import msgspec

LARGEST_PATTERN = 1 << 20  # bytes that a compiled pattern may take
PATTERNS = rust.RegexOptions(size_limit=LARGEST_PATTERN)
MOST_ERRORS = 100
MOST_TOLD = 10


class Shape:
    """A compiled schema. Equal when the schemas are. Raises ValueError when it isn't one, or refers
    to something outside of itself. `formats` are held to when the author is ours to educate; to the
    authors of tools they are a remark."""

    __slots__ = ("_validator", "schema")

    def __init__(self, schema: Any, *, formats: bool = True) -> None:
        self.schema = schema
        try:
            self._validator = rust.validator_for(
                schema,
                pattern_options=PATTERNS,
                offline=True,
                validate_formats=formats,
                mask="the value",
            )
        except RecursionError as error:
            raise ValueError(str(error)) from None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Shape) and self.schema == other.schema

    def __hash__(self) -> int:
        return hash(msgspec.json.encode(self.schema, order="deterministic"))

    def fits(self, value: Any) -> bool:
        return self._validator.is_valid(value)

    def errors(self, value: Any) -> list[rust.ValidationError]:
        return list(islice(self._validator.iter_errors(value), MOST_ERRORS))

    def complaint(self, value: Any) -> str:
        """What is wrong with it and where, in a sentence; nothing when it is right."""
        try:
            found = [] if self.fits(value) else self.errors(value)[:MOST_TOLD]
        except (ValueError, RecursionError) as error:  # not JSON, or too deep
            return str(error)
        return "; ".join(f"{_place(error)}: {error.message[:300]}" for error in found)


def _place(error: rust.ValidationError) -> str:
    return "/" + "/".join(map(str, error.instance_path))


METASCHEMA = Shape({"$ref": "https://json-schema.org/draft/2020-12/schema"})
"""What a schema is."""


def tolerant(schema: Any) -> Shape:
    """The schema of somebody else's tool, without what can't be checked in linear time."""
    try:
        return Shape(schema, formats=False)
    except ValueError:
        return Shape(_without_patterns(schema), formats=False)


def _without_patterns(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_without_patterns(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {name: _without_patterns(item) for name, item in schema.items()}
    if isinstance(kept.get("pattern"), str) and not _is_linear(kept["pattern"]):
        del kept["pattern"]
    if isinstance(named := kept.get("patternProperties"), dict):
        kept["patternProperties"] = {name: named[name] for name in named if _is_linear(name)}
    return kept


def _is_linear(pattern: str) -> bool:
    try:
        Shape({"pattern": pattern})
    except ValueError:
        return False
    return True
