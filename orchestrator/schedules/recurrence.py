"""RRULE: what a text of RFC 5545 proposes. dateutil says which days and times a rule has.

dateutil walks from DTSTART, so a walk begins at the period of the rule (the year, month, week,
day, hour or minute) before the wanted time: all that DTSTART would give is made explicit first.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from itertools import islice
from typing import Any, Literal, NamedTuple

from dateutil.rrule import DAILY, HOURLY, MINUTELY, MONTHLY, WEEKLY, YEARLY, rrule, weekday

from .limits import LAST, Budget, Step, bad_expression

Frequency = Literal[0, 1, 2, 3, 4, 5]
By = dict[str, tuple[int, ...]]
Fires = Callable[[datetime], bool]
MOST_AT_ONCE, MOST_COSTLY = 10_000, 3_000
"""Occurrences in one period, such as a year, and what it may cost to find them."""

SPAN = {WEEKLY: timedelta(weeks=1), DAILY: timedelta(days=1), HOURLY: timedelta(hours=1),
        MINUTELY: timedelta(minutes=1)}  # fmt: skip
HOURS_AND_MINUTES = {"byhour", "byminute"}
DAYS = {YEARLY: 366, MONTHLY: 31, WEEKLY: 7, DAILY: 1, HOURLY: 1, MINUTELY: 1}


@dataclass(frozen=True, slots=True)
class Line:
    """One RRULE line, as it is written."""

    freq: Frequency
    interval: int
    week_start: int
    by: By
    days: tuple[tuple[int, int | None], ...]  # BYDAY: weekday from Monday = 0, and its number
    count: int | None
    until: datetime | None


class Begin(NamedTuple):
    """Where a rule begins: one moment when there's a DTSTART."""

    phase: datetime  # of INTERVAL, and what the rule leaves open
    first: datetime  # nothing is proposed before


@dataclass(frozen=True, slots=True)
class Recurrence:
    """A line from a first time on. It fires at `start` only if the rule says so, as cron does."""

    written: Line
    phase: datetime  # what it's counted from
    line: Line  # explicit, and as cheap as can be
    start: datetime
    base: datetime  # a moment in the first period
    by: By  # as written, and what DTSTART gives
    given: dict[str, Any]  # dateutil's arguments
    cost: int  # steps of one period
    until: datetime

    @classmethod
    def of(cls, line: Line, begin: Begin) -> Recurrence:
        start = begin.phase
        written = line
        line, explicit = _explicit(line, start)
        line, by = _coarser(line, explicit, start)
        line, base = _one_month(line, by, _base(line, start))
        given = {**by, "wkst": line.week_start, "byweekday": _days(line)}
        until = min(line.until or LAST, LAST)
        return cls(written, start, line, begin.first, base, explicit, given, _cost(line, by), until)

    def counted(self, first: datetime, fires: Fires, budget: Budget) -> Recurrence:
        """It ends with its COUNT: of the wall times from `first` on, those that fire."""
        if self.line.count is None:
            return self
        times = list(islice(filter(fires, self.proposals(first, budget)), self.line.count))
        return replace(self, until=times[-1]) if len(times) == self.line.count else self

    def proposals(self, start: datetime, budget: Budget) -> Iterator[datetime]:
        start, until = max(start, self.start), self.until
        first = self._period_before(start)
        if first >= LAST:
            return
        interval = Step.of(self.line.interval, budget, self.cost)
        freq = self.line.freq
        for local in rrule(freq, dtstart=first, interval=interval, until=until, **self.given):
            budget.spend(1)
            if local >= start:
                yield local

    def _period_before(self, start: datetime) -> datetime:
        """The last period at or before `start` that the interval doesn't leave out."""
        every, base = self.line.interval, self.base
        if self.line.freq > MONTHLY:
            span = SPAN[self.line.freq] * every
            return base + (start - base) // span * span
        size = every * (12 if self.line.freq == YEARLY else 1)
        passed = (start.year - base.year) * 12 + start.month - base.month
        year, month = divmod(base.year * 12 + base.month - 1 + passed // size * size, 12)
        return base.replace(year=year, month=month + 1)


def _explicit(line: Line, start: datetime) -> tuple[Line, By]:
    """Without anything that is taken from the first time: RFC 5545, section 3.3.10."""
    by = dict(line.by)
    if line.freq < MINUTELY:
        by.setdefault("byminute", (start.minute,))
    if line.freq < HOURLY:
        by.setdefault("byhour", (start.hour,))
    by.setdefault("bysecond", (start.second,))
    if line.days:
        return line, by
    if "byweekno" in by or line.freq == WEEKLY:
        line = replace(line, days=((start.weekday(), None),))
    elif not by.keys() & {"bymonthday", "byyearday"}:
        if line.freq == YEARLY:
            by.setdefault("bymonth", (start.month,))
        if line.freq in (YEARLY, MONTHLY):
            by["bymonthday"] = (start.day,)
    return line, by


def _coarser(line: Line, by: By, start: datetime) -> tuple[Line, By]:
    """The same rule with a larger FREQ, where there is one: it passes over days at once."""
    if "bysetpos" in by:
        return line, by
    by, every = dict(by), line.interval
    if line.freq == MINUTELY and 60 % every == 0 and (every > 1 or by.keys() & HOURS_AND_MINUTES):
        by["byminute"] = _in_step(by.get("byminute", range(60)), start.minute, every)
        line, every = replace(line, freq=HOURLY, interval=1), 1
    if line.freq == HOURLY and 24 % every == 0 and "byhour" in by:
        by["byhour"] = _in_step(by["byhour"], start.hour, every)
        line, every = replace(line, freq=DAILY, interval=1), 1
    if line.freq == DAILY and every == 1 and "bymonthday" in by and _times(line, by) <= 24:
        line = replace(line, freq=MONTHLY)
    return line, by


def _in_step(numbers: Iterable[int], first: int, every: int) -> tuple[int, ...]:
    found = tuple(number for number in numbers if (number - first) % every == 0)
    if not found:
        raise bad_expression("this rule never fires: its INTERVAL misses its BYHOUR or BYMINUTE")
    return found


def _one_month(line: Line, by: By, base: datetime) -> tuple[Line, datetime]:
    """A rule of one month of each year, which is passed in steps of years."""
    months, is_each = by.get("bymonth", ()), line.freq == MONTHLY and line.interval == 1
    if len(months) != 1 or by.keys() & {"byyearday", "byweekno"}:
        return line, base
    if is_each or line.freq == YEARLY:
        line = replace(line, freq=MONTHLY, interval=line.interval * 12)
        base = base.replace(month=months[0])
    return line, base


def _days(line: Line) -> list[weekday] | None:
    return [weekday(day, number) for day, number in line.days] or None


def _base(line: Line, start: datetime) -> datetime:
    """The beginning of the period of `start`."""
    midnight = datetime.combine(start.date(), datetime.min.time())
    match line.freq:
        case 0:
            return midnight.replace(month=1, day=1)
        case 1:
            return midnight.replace(day=1)
        case 2:
            return midnight - timedelta(days=(start.weekday() - line.week_start) % 7)
        case 3:
            return midnight
        case 4:
            return start.replace(minute=0, second=0)
    return start.replace(second=0)


def _cost(line: Line, by: By) -> int:
    """What dateutil does for one period, in steps: filters its days, then makes its times."""
    days, times = DAYS[line.freq], _times(line, by)
    if days * times > MOST_AT_ONCE:
        said = f"this rule may fire {days * times:,} times in one period; {MOST_AT_ONCE:,} at most"
        raise bad_expression(said, "take a smaller FREQ, such as HOURLY or MINUTELY")
    filters = sum(map(len, by.values()))
    positions = len(by.get("bysetpos", ()))
    cost = 3 + (days * (8 + filters + 4 * positions + 10 * times) + 25 * positions) // 80
    if cost > MOST_COSTLY:
        raise bad_expression("this rule costs too much: its BY lists are too long")
    return cost


def _times(line: Line, by: By) -> int:
    """How many there are in a day, an hour or a minute."""
    hours = len(by["byhour"]) if line.freq < HOURLY else 1
    return hours * (len(by["byminute"]) if line.freq < MINUTELY else 1)


@dataclass(frozen=True, slots=True)
class Times:
    """Dates of RDATE."""

    times: tuple[datetime, ...]

    def proposals(self, start: datetime, budget: Budget) -> Iterator[datetime]:
        yield from self.times[bisect_left(self.times, start) :]


@dataclass(frozen=True, slots=True)
class Recurrences:
    """Lines and dates together, less what EXRULE and EXDATE take away."""

    lines: tuple[Recurrence | Times, ...]
    not_lines: tuple[Recurrence, ...]
    not_times: frozenset[datetime]
    not_days: frozenset[date]

    def counted(self, first: datetime, fires: Fires, budget: Budget) -> Recurrences:
        def ended(line: Recurrence | Times) -> Recurrence | Times:
            return line.counted(first, fires, budget) if isinstance(line, Recurrence) else line

        not_lines = tuple(line.counted(first, fires, budget) for line in self.not_lines)
        return replace(self, lines=tuple(map(ended, self.lines)), not_lines=not_lines)

    def proposals(self, start: datetime, budget: Budget) -> Iterator[datetime]:
        if len(self.lines) == 1 and not (self.not_lines or self.not_times or self.not_days):
            return self.lines[0].proposals(start, budget)
        return self._remaining(start, budget)

    def _remaining(self, start: datetime, budget: Budget) -> Iterator[datetime]:
        excluded = _merged(self.not_lines, start, budget)
        next_excluded = next(excluded, LAST)
        last = None
        for local in _merged(self.lines, start, budget):
            while next_excluded < local:
                next_excluded = next(excluded, LAST)
            budget.spend(1)
            if local != last and local != next_excluded and not self._is_excluded(local):
                yield local
            last = local

    def _is_excluded(self, local: datetime) -> bool:
        return local in self.not_times or local.date() in self.not_days


def _merged(
    lines: Iterable[Recurrence | Times], start: datetime, budget: Budget
) -> Iterator[datetime]:
    return heapq.merge(*(line.proposals(start, budget) for line in lines))
