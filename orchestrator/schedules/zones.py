"""Zones by name, and what a wall time is in one: an instant, none (a gap), or two (a fold)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from functools import cache
from typing import Literal, NamedTuple
from zoneinfo import ZoneInfo, available_timezones

from .limits import BadRule

Mark = Literal["gap", "fold"]
DAY = timedelta(days=1)
SECOND = timedelta(seconds=1)


@cache
def names() -> frozenset[str]:
    """Only these are ever looked up, so a name can't be a path."""
    return frozenset(available_timezones() - {"localtime", "posixrules", "Factory"})


def zone(name: str, field: str = "timezone") -> ZoneInfo:
    if name in names():
        return ZoneInfo(name)
    raise BadRule(field, f"there is no time zone {name[:60]!r}", _suggestion(name[:60]))


def _suggestion(name: str) -> str:
    """Places by their city, too: `chisinau` is Europe/Chisinau."""
    known = {part.lower(): full for full in sorted(names()) for part in (full.split("/")[-1], full)}
    wanted = name.lower().strip().replace(" ", "_")
    near = get_close_matches(wanted, known, n=1) or get_close_matches(wanted[-20:], known, n=1)
    return f"did you mean {known[near[0]]}?" if near else "write a name such as Europe/Chisinau"


def wall(instant: datetime, zone: ZoneInfo) -> datetime:
    """What the clocks of the zone show then, without the zone."""
    return instant.astimezone(zone).replace(tzinfo=None)


def offset(local: datetime, zone: ZoneInfo, fold: int = 0) -> timedelta:
    return zone.utcoffset(local.replace(fold=fold)) or timedelta()


class Jump(NamedTuple):
    """Clocks are changed `at` (UTC, naive). The wall times [start, end) are missing or repeated."""

    mark: Mark
    at: datetime
    start: datetime
    end: datetime

    @property
    def size(self) -> timedelta:
        return self.end - self.start


def jump(local: datetime, zone: ZoneInfo) -> Jump:
    """The one that makes this wall time missing or repeated."""
    first, second = offset(local, zone), offset(local, zone, fold=1)
    low, high = sorted((first, second))
    before, at = local - high, local - low
    while at - before > SECOND:
        middle = before + ((at - before) // 2 // SECOND) * SECOND
        is_after = offset_at(middle, zone) == second
        before, at = (before, middle) if is_after else (middle, at)
    return Jump("gap" if second > first else "fold", at, at + low, at + high)


def offset_at(instant: datetime, zone: ZoneInfo) -> timedelta:
    """`instant` is naive UTC."""
    return instant.replace(tzinfo=UTC).astimezone(zone).utcoffset() or timedelta()


def largest_jump_near(instant: datetime, zone: ZoneInfo) -> timedelta:
    """How far wall times may be out of order around an instant; no jump is larger than a day."""
    offsets = [offset_at(instant + days, zone) for days in (-DAY, timedelta(), DAY)]
    return max(offsets) - min(offsets)
