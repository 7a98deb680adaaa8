"""Reads plain fields: each reader answers the value, or a stand-in after noting what's wrong."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeVar

from . import durations
from .problems import At, nearest

T = TypeVar("T")
D = TypeVar("D")

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
KINDS = {dict: "an object", list: "a list", str: "text", bool: "a boolean", int: "an integer",
         float: "a number", type(None): "null"}  # fmt: skip


def wrong(at: At, wanted: str, value: object) -> None:
    at.say("type", f"expected {wanted}, got {KINDS.get(type(value), type(value).__name__)}")


class Fields:
    """The known fields of an object, under their plain names, each with its place."""

    def __init__(self, at: At, found: dict[str, tuple[At, Any]]) -> None:
        self.at, self.found = at, found

    def __contains__(self, name: str) -> bool:
        return name in self.found

    def place(self, name: str) -> At:
        return self.found[name][0] if name in self.found else self.at / name

    def raw(self, name: str) -> Any:
        return self.found[name][1] if name in self.found else None

    def read(self, name: str, reader: Callable[[At, Any], T], default: D) -> T | D:
        return reader(*self.found[name]) if name in self.found else default

    def need(self, name: str, reader: Callable[[At, Any], T], default: D) -> T | D:
        if name not in self.found:
            (self.at / name).say("missing", f"{name} is required")
        return self.read(name, reader, default)

    def needs_beside(self, name: str, others: Collection[str]) -> None:
        """Notes a field that means nothing without another."""
        if name in self.found and not any(other in self.found for other in others):
            self.place(name).say("value", f"{name} has a meaning only beside {' or '.join(others)}")


def fields(
    at: At, value: Any, known: Collection[str], aliases: Mapping[str, str] | None = None
) -> Fields:
    aliases = aliases or {}
    found: dict[str, tuple[At, Any]] = {}
    if not isinstance(value, dict):
        wrong(at, "an object", value)
        return Fields(at, found)
    for spelled, item in value.items():
        name = aliases.get(spelled, spelled)
        if name not in known:
            hint = nearest(spelled, [*known, *aliases])
            (at / spelled).say("unknown_field", f"there is no field {spelled!r} here", hint)
        elif name in found:
            other = found[name][0].path[-1]
            (at / spelled).say("conflict", f"{spelled} and {other} say the same: keep one")
        else:
            found[name] = (at / spelled, item)
    return Fields(at, found)


def items(at: At, value: Any, at_least: int = 1) -> Iterator[tuple[At, Any]]:
    if not isinstance(value, list):
        wrong(at, "a list", value)
        return
    if len(value) < at_least:
        at.say("value", "the list is empty")
    for number, item in enumerate(value):
        yield at / number, item


def entries(at: At, value: Any) -> Iterator[tuple[At, str, Any]]:
    if not isinstance(value, dict):
        wrong(at, "an object", value)
        return
    for name, item in value.items():
        yield at / name, name, item


def mapping(at: At, value: Any) -> dict[str, Any]:
    return {name: item for _, name, item in entries(at, value)}


def text(at: At, value: Any, longest: int = 200) -> str:
    if not isinstance(value, str):
        wrong(at, "text", value)
        return ""
    if not 1 <= len(value) <= longest:
        at.say("value", f"expected 1 to {longest} characters, got {len(value)}")
    return value


def name(at: At, value: Any) -> str:
    if not isinstance(value, str):
        wrong(at, "a name", value)
        return ""
    if not NAME.fullmatch(value):
        hint = "letters, digits, _ and -, at most 64, the first a letter or _"
        at.say("name", f"{value[:80]!r} can't be a name", hint)
    return value


def flag(at: At, value: Any) -> bool:
    if not isinstance(value, bool):
        wrong(at, "true or false", value)
    return value is True


def whole(low: int, high: int) -> Callable[[At, Any], int]:
    def read(at: At, value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            wrong(at, "an integer", value)
            return low
        if not low <= value <= high:
            at.say("value", f"expected {low} to {high}, got {str(value)[:40]}")
        return value

    return read


def number(low: float, high: float) -> Callable[[At, Any], float]:
    def read(at: At, value: Any) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool):
            wrong(at, "a number", value)
            return low
        if not low <= value <= high:
            at.say("value", f"expected {low:g} to {high:g}, got {str(value)[:40]}")
            return low
        return float(value)

    return read


def choice(*options: str) -> Callable[[At, Any], Any]:
    def read(at: At, value: Any) -> Any:
        if value not in options or not isinstance(value, str):
            given = nearest(value, options) if isinstance(value, str) else None
            at.say("value", f"expected {' or '.join(options)}, got {str(value)[:40]!r}", given)
            return options[0]
        return value

    return read


def duration(at: At, value: Any) -> float:
    try:
        return durations.seconds(value)
    except ValueError as error:
        at.say("duration", str(error))
        return 0.0


def span(at: At, value: Any) -> float:
    """A duration that must not be nothing."""
    before = len(at.notes.problems)
    seconds = duration(at, value)
    if seconds == 0 and len(at.notes.problems) == before:
        at.say("duration", "must be longer than nothing")
    return seconds
