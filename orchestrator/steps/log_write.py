"""`log.write`: a line in the run's log. It travels with the run's outcome."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from . import Context, Done, Kind


class Line(msgspec.Struct, forbid_unknown_fields=True):
    message: str
    level: Literal["debug", "info", "warning", "error"] = "info"
    facts: dict[str, Any] | None = None


def run(line: Line, context: Context) -> Done:
    context.lines.append(msgspec.to_builtins(line))
    return Done()


KIND = Kind("log.write", Line, run, pure=True)
