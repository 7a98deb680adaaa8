"""When a cron text fires, found by looking at a clock each minute. Shares nothing with the product.

The law of jumps is written a second time, the other way round: what a clock shows is sorted into
times that are there once, twice or not at all. A missing time is found again by what the clock
shows after the jump, so no arithmetic with offsets is needed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import chain, product
from typing import NamedTuple
from zoneinfo import ZoneInfo

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
NAMES = {name: str(number) for names in ("SUN MON TUE WED THU FRI SAT", "- JAN FEB MAR")
         for number, name in enumerate(names.split())}  # fmt: skip
LIMITS = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 6))


class Setting(NamedTuple):
    gap: str
    fold: str


class Clock(NamedTuple):
    """What a clock shows in each minute of a while, and what it doesn't."""

    shows: dict[tuple[int, int], list[tuple[datetime, datetime]]]  # by hour and minute
    at: dict[datetime, list[datetime]]  # instants of a wall time
    missing: dict[datetime, datetime]  # wall time, the instant of the jump
    jumps: tuple[tuple[datetime, datetime], ...]  # [from, to) on the wall


def changes(zone: ZoneInfo, first: int, last: int) -> list[datetime]:
    """The hours after which the clocks of a zone are changed."""
    hour, found = datetime(first, 1, 1, tzinfo=UTC), []
    while hour.year <= last:
        if hour.astimezone(zone).utcoffset() != (hour + DAY).astimezone(zone).utcoffset():
            found.append(hour + DAY)
            hour += DAY
        hour += DAY
    return found


@lru_cache(maxsize=1)
def watched(zone: ZoneInfo, start: datetime, end: datetime) -> Clock:
    shows: dict[tuple[int, int], list[tuple[datetime, datetime]]] = defaultdict(list)
    missing: dict[datetime, datetime] = {}
    jumps: list[tuple[datetime, datetime]] = []
    at: dict[datetime, list[datetime]] = defaultdict(list)
    instant, before = start, datetime.max
    while instant <= end:
        wall = instant.astimezone(zone).replace(tzinfo=None)
        shows[wall.hour, wall.minute].append((instant, wall))
        at[wall].append(instant)
        if before == datetime.max:
            pass
        elif wall > before + MINUTE:
            jumps.append((before + MINUTE, wall))
            missing |= dict.fromkeys(minutes(before + MINUTE, wall), instant)
        elif wall <= before:
            jumps.append((wall, before + MINUTE))
        before, instant = wall, instant + MINUTE
    return Clock(shows, at, missing, tuple(jumps))


def minutes(start: datetime, end: datetime) -> Iterator[datetime]:
    while start < end:
        yield start
        start += MINUTE


@lru_cache
def fields(text: str) -> list[set[int]]:
    given = [
        {n for part in field.split(",") for n in numbers(part, *limits)}
        for field, limits in zip(text.upper().split(), LIMITS, strict=True)
    ]
    return [*given[:4], {n % 7 for n in given[4]}]


def numbers(part: str, low: int, high: int) -> range:
    span, _, step = part.partition("/")
    if span != "*":
        first, _, last = span.partition("-")
        low, high = int(NAMES.get(first, first)), int(NAMES.get(last or first, last or first))
    return range(low, high + 1, int(step or 1))


def fires(text: str, wall: datetime) -> bool:
    minute, hour, day, month, weekday = fields(text)
    if wall.minute not in minute or wall.hour not in hour or wall.month not in month:
        return False
    is_day, is_weekday = wall.day in day, wall.isoweekday() % 7 in weekday
    _, _, days, _, weekdays = text.split()
    both_matter = not days.startswith("*") and not weekdays.startswith("*")  # as cron has it
    return is_day or is_weekday if both_matter else is_day and is_weekday


def occurrences(
    text: str, zone: ZoneInfo, start: datetime, end: datetime, setting: Setting
) -> list[datetime]:
    """Strictly after `start`, up to `end`."""
    clock = watched(zone, start - DAY, end + DAY)
    found = set()
    minute, hour, *_ = fields(text)
    for instant, wall in chain.from_iterable(clock.shows[at] for at in product(hour, minute)):
        if fires(text, wall) and is_wanted(text, instant, wall, clock, setting):
            found.add(instant)
    for wall, jump in clock.missing.items():
        if fires(text, wall) and setting.gap != "skip" and not goes_on(text, wall, clock):
            found |= {jump} if setting.gap == "next_valid" else {later(wall, clock)}
    return sorted(instant for instant in found if start < instant <= end)


def is_wanted(text: str, instant: datetime, wall: datetime, clock: Clock, setting: Setting) -> bool:
    there = clock.at[wall]
    if len(there) == 1 or setting.fold == "both" or goes_on(text, wall, clock):
        return True
    return instant == there[setting.fold == "second"]


def goes_on(text: str, wall: datetime, clock: Clock) -> bool:
    first, last = next(jump for jump in clock.jumps if jump[0] <= wall < jump[1])
    size = last - first
    sides = (minutes(first - size, first), minutes(last, last + size))
    return all(any(fires(text, minute) for minute in side) for side in sides)


def later(wall: datetime, clock: Clock) -> datetime:
    first, last = next(jump for jump in clock.jumps if jump[0] <= wall < jump[1])
    return clock.at[wall + (last - first)][0]
