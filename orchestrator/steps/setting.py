"""`set`: values under names, for the steps after it."""

from __future__ import annotations

from typing import Any

import msgspec

from . import Context, Done, Kind


class Values(msgspec.Struct):
    values: dict[str, Any] = {}


def run(given: Values, context: Context) -> Done:
    return Done(given.values)


KIND = Kind("set", Values, run, pure=True, recorded=False)
