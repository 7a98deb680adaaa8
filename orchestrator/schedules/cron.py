"""Cron: what five fields propose. cronsim says what they mean; days and times are walked here.

cronsim's own walk goes minute by minute and asks the zone at each (5 ms for sixteen leap days;
this: 0.2 ms, 2026-11), and it has its own idea of gaps and folds.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from calendar import monthrange
from collections.abc import Iterator
from datetime import date, datetime, time
from itertools import product

from cronsim import CronSim, CronSimError

from .limits import LAST, Budget, bad_expression

LONGEST = 500
WORDS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
FIELDS = ("minute", "hour", "day-of-month", "month", "day-of-week")
LARGEST_STEP = (59, 23, 31, 12, 7)
OF_ONE = re.compile(r"\b(\w+)-\1/[0-9]+")
UP_TO_SUNDAY = re.compile(r"\b([1-6]|MON|TUE|WED|THU|FRI|SAT)-(SUN|0)\b")


class Cron:
    """A parsed expression. A day matches when cronsim says so, and then fires at each time."""

    def __init__(self, text: str) -> None:
        self.sim = sim = _parse(text)
        pairs = product(sorted(sim.hours), sorted(sim.minutes))
        self.times = tuple(time(hour, minute) for hour, minute in pairs)
        self.months = tuple(sorted(sim.months))
        is_plain = sim.day_and and min(sim.days) > 0  # L is a negative number
        self.days = tuple(sorted(sim.days)) if is_plain else tuple(range(1, 32))

    def proposals(self, start: datetime, budget: Budget) -> Iterator[datetime]:
        """Wall times from `start` on, in order."""
        first_day, first = start.date(), bisect_left(self.times, start.time())
        for day in self._days(first_day, budget):
            for at in self.times if day != first_day else self.times[first:]:
                budget.spend(1)
                yield datetime.combine(day, at)

    def _days(self, first: date, budget: Budget) -> Iterator[date]:
        for year in range(first.year, LAST.year):
            for month in self.months:
                if (year, month) < (first.year, first.month):
                    continue
                budget.spend(1)
                last = monthrange(year, month)[1]
                for number in self.days[: bisect_right(self.days, last)]:
                    budget.spend(1)
                    day = date(year, month, number)
                    if day >= first and self.sim.match_day(day):
                        yield day

    def describe(self) -> str:
        said = self.sim.explain().replace(" through ", " to ")
        return said[0].lower() + said[1:]


def _parse(text: str) -> CronSim:
    if len(text) > LONGEST:
        raise bad_expression(f"a cron expression has at most {LONGEST} characters")
    if re.search(r"[\r\n\v\f]", text):
        raise bad_expression("a cron expression is one line")
    text = _expand(text.strip())
    fields = text.upper().split()
    if len(fields) != len(FIELDS):
        said = f"cron has five fields ({', '.join(FIELDS)}), this has {len(fields)}"
        hint = "seconds and years can't be given" if len(fields) > 5 else "for example 30 8 * * 1-5"
        raise bad_expression(said, hint)
    fields[4] = UP_TO_SUNDAY.sub(r"\1-7", fields[4])  # cronsim counts SUN as 0
    for number, field in enumerate(fields):
        _check(number, field)
        fields[number] = OF_ONE.sub(r"\1", field)  # cronsim takes 5-5/10 for 5/10
    try:
        return CronSim(" ".join(fields), datetime(2000, 1, 1))
    except CronSimError as error:
        raise bad_expression(_blame(fields)) from error


def _expand(text: str) -> str:
    if not text.startswith("@"):
        return text
    known = WORDS.get(text.lower())
    if known is None:
        raise bad_expression(f"{text[:40]!r} isn't known to cron", f"known: {', '.join(WORDS)}")
    return known


def _check(number: int, field: str) -> None:
    """What cronsim would take for something else, or answer less well."""
    name = FIELDS[number]
    if "?" in field:
        raise bad_expression(f"? in {name} isn't standard cron", "write *")
    if "W" in field.replace("WED", "") and "LW" not in field:
        raise bad_expression(f"W in {name} isn't known", "LW is the last weekday of the month")
    for step in re.findall(r"/([0-9]*)", field):
        if not step or not 0 < int(step) <= LARGEST_STEP[number]:
            said = f"a step of {name} is 1 to {LARGEST_STEP[number]}, not {step[:20] or 'nothing'}"
            raise bad_expression(said, "cron starts anew each hour, day, month; RRULE doesn't")


def _blame(fields: list[str]) -> str:
    """Which field cronsim doesn't take: each is tried with stars for the others."""
    for number, field in enumerate(fields):
        alone = ["*"] * 5
        alone[number] = field
        try:
            CronSim(" ".join(alone), datetime(2000, 1, 1))
        except CronSimError:
            return f"{field[:40]!r} isn't a {FIELDS[number]} of cron"
    return "this date is never there: the month has no such day"
