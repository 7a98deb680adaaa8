"""JSON Schema of arguments and results: compiled once, never fetching, bounded regexes."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

import jsonschema_rs

MOST_PROBLEMS = 10
REGEXES = jsonschema_rs.FancyRegexOptions(backtrack_limit=10_000, size_limit=1_048_576)


class Schema:
    """Raises ValueError when it isn't a schema, or refers to something outside of itself."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        try:
            self._validator = jsonschema_rs.validator_for(
                dict(schema), pattern_options=REGEXES, offline=True, mask="the value"
            )
        except (ValueError, RecursionError) as error:
            message = getattr(error, "message", None) or str(error)
            raise ValueError(f"not a usable JSON Schema: {message}") from None

    def problems(self, value: Any) -> str:
        """What is wrong with it and where, without repeating it; nothing when it is right."""
        try:
            if self._validator.is_valid(value):
                return ""
            found = islice(self._validator.iter_errors(value), MOST_PROBLEMS)
            return "; ".join(
                f"{'/'.join(['', *map(str, error.instance_path)]) or '/'}: {error.message}"
                for error in found
            )
        except (ValueError, RecursionError) as error:  # not JSON, or too deep
            return str(error)
