"""A rule of any kind: what it proposes, in which zone, and what becomes of a gap and of a fold.

Cron and RRULE propose wall times. Here each becomes an instant, none, or two, by one law:

    in a gap    `shift`: later by the gap's size; `next_valid`: when the gap ends; `skip`: never
    in a fold   the `second` time, the `first` time, or `both`
    a beat      goes on: nothing in a gap, both times in a fold. A rule is a beat when it also
                fires in the hour before the jump and in the hour after it (or half an hour, or a
                day: as much as the clock jumps), as every hour and every 15 minutes do

The law looks at wall times alone, so two texts that say the same fire at the same instants.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from heapq import heappop, heappush
from itertools import islice, pairwise, takewhile
from typing import Any, Literal, NamedTuple, Protocol, get_args
from zoneinfo import ZoneInfo

from . import words, zones
from .cron import Cron
from .limits import AT_CREATION, AT_WORK, FIRST, LAST, PER_MOMENT, BadRule, Budget, bad_expression
from .recurrence import Begin, Recurrence, Recurrences, Times
from .rrule_text import Text, read
from .zones import Jump, Mark

Kind = Literal["cron", "rrule", "once"]
Gap = Literal["shift", "next_valid", "skip"]
Fold = Literal["second", "first", "both"]

MINUTE = timedelta(minutes=1)
LATE = MINUTE
"""How long before its making a rule `once` may lie: the request was on its way."""
LOOK, LOOK_CLOSELY, YEAR = 16, 64, timedelta(days=366)
"""Moments that a new rule must give within what it may cost, and those that are compared."""
TICK = timedelta(microseconds=1)
LONGEST_ONCE = 64
LONGEST_JUMP = 3 * zones.DAY
"""With a day on both sides: what a rule would have done then says whether it's a beat."""


class Source(Protocol):
    def proposals(self, start: datetime, budget: Budget) -> Iterator[datetime]:
        """Wall times from `start` on, in order. May raise TooCostly."""


class Moment(NamedTuple):
    """When it fires: `local` is the wall time that was meant, `mark` says that it isn't plain."""

    at: datetime
    local: datetime
    mark: Mark | None


class Moments(NamedTuple):
    """In order; `ended` says that there's none after them."""

    items: tuple[Moment, ...]
    ended: bool


@dataclass(frozen=True, slots=True)
class Rule:
    """Made by `compile_rule`. `zone` may be the rule's own: that of its DTSTART."""

    kind: Kind
    expr: str
    zone: ZoneInfo
    dst_gap: Gap
    dst_fold: Fold
    anchor: datetime
    starts_at: datetime | None
    ends_at: datetime | None
    source: Source
    since: datetime  # nothing fires before
    endless: Source | None = None  # before COUNT ends it: a beat that ends is one, too

    def after(self, instant: datetime, n: int, until: datetime | None = None) -> Moments:
        """Up to `n` moments strictly after `instant` and not after `until`.

        Raises BadRule when looking costs too much, which the first years of the rule didn't show.
        """
        return self._look(instant, n, until, Budget(AT_WORK + PER_MOMENT * n))

    def _look(self, instant: datetime, n: int, until: datetime | None, budget: Budget) -> Moments:
        found: list[Moment] = []
        limit = _naive(until) if until else LAST
        for at, local, mark in islice(self._after(_naive(instant), budget), n):
            if at > limit:
                return Moments(tuple(found), False)
            found.append(Moment(at.replace(tzinfo=UTC), local, mark))
        return Moments(tuple(found), len(found) < n)

    def _after(self, instant: datetime, budget: Budget) -> Iterator[Moment]:
        """Here and below, instants are naive UTC."""
        last = max(instant, self.since)
        end = _naive(self.ends_at) if self.ends_at else LAST
        if last >= min(end, LAST - zones.DAY):
            return
        early = last + zones.offset_at(last, self.zone) - zones.largest_jump_near(last, self.zone)
        for moment in self._in_order(early, budget):
            if moment.at > end:
                return
            if moment.at > last:
                last = moment.at
                yield moment

    def _in_order(self, start: datetime, budget: Budget) -> Iterator[Moment]:
        """A wall time of a gap or a fold waits until the next plain one: none is before that."""
        waiting: list[tuple[datetime, datetime, Mark]] = []
        beats: dict[datetime, bool] = {}
        utcoffset = self.zone.utcoffset
        for local in self.source.proposals(start, budget):
            offset = utcoffset(local)
            if offset == utcoffset(local.replace(fold=1)) and offset is not None:
                at = local - offset
                while waiting and waiting[0][0] < at:
                    yield Moment(*heappop(waiting))
                yield Moment(at, local, None)
            else:
                jump = zones.jump(local, self.zone)
                if jump.at not in beats:
                    beats[jump.at] = self._is_beat(jump, budget)
                for at in self._places(local, jump, beats[jump.at]):
                    heappush(waiting, (at, local, jump.mark))
        while waiting:
            yield Moment(*heappop(waiting))

    def _fires(self, local: datetime, budget: Budget) -> bool:
        """Whether this wall time comes, or comes again, after the rule was made."""
        offset = zones.offset(local, self.zone)
        if offset == zones.offset(local, self.zone, fold=1):
            return local - offset > self.since
        jump = zones.jump(local, self.zone)
        places = self._places(local, jump, self._is_beat(jump, budget))
        return any(at > self.since for at in places)

    def _is_beat(self, jump: Jump, budget: Budget) -> bool:
        source = self.endless or self.source

        def fires(start: datetime, end: datetime) -> bool:
            return next(source.proposals(start, budget), end) < end

        before, after = jump.start - jump.size, jump.end + jump.size
        return fires(before, jump.start) and fires(jump.end, after)

    def _places(self, local: datetime, jump: Jump, is_beat: bool) -> tuple[datetime, ...]:
        first = local - zones.offset(local, self.zone)
        second = local - zones.offset(local, self.zone, fold=1)
        if jump.mark == "gap":
            if is_beat or self.dst_gap == "skip":
                return ()
            return (first,) if self.dst_gap == "shift" else (jump.at,)
        if is_beat or self.dst_fold == "both":
            return first, second
        return (first,) if self.dst_fold == "first" else (second,)


def _naive(instant: datetime) -> datetime:
    if instant.tzinfo is None:
        raise TypeError("an instant has a zone")
    return instant.astimezone(UTC).replace(tzinfo=None)


def describe(rule: Rule) -> str:
    """In plain words, for people."""
    if isinstance(rule.source, Cron):
        said = rule.source.describe()
    elif isinstance(rule.source, Recurrences):
        said = words.recurrences(rule.source)
    else:
        said = f"once at {words.moment(next(rule.source.proposals(FIRST, Budget(1))))}"
    for word, limit in (("from", rule.starts_at), ("until", rule.ends_at)):
        if limit:
            said += f", {word} {words.moment(zones.wall(limit, rule.zone))}"
    return f"{said}, {rule.zone.key}"


def compile_rule(
    kind: str,
    expr: str,
    zone: str,
    *,
    anchor: datetime,
    dst_gap: str = "shift",
    dst_fold: str = "second",
    starts_at: datetime | None = None,
    ends_at: datetime | None = None,
    cadence: timedelta = MINUTE,
) -> Rule:
    """Reads and checks a rule, or raises BadRule. `anchor` is when the rule was made.

    The same rule is compiled once: then this costs a microsecond.
    """
    return _compiled(kind, expr, zone, dst_gap, dst_fold, anchor, starts_at, ends_at, cadence)


@lru_cache(maxsize=16_384)
def _compiled(
    kind: str,
    expr: str,
    zone: str,
    gap: str,
    fold: str,
    anchor: datetime,
    starts_at: datetime | None,
    ends_at: datetime | None,
    cadence: timedelta,
) -> Rule:
    blank = Rule(
        _known("schedule_kind", kind, get_args(Kind)),
        _clean(expr),
        zones.zone(zone),
        _known("dst_gap", gap, get_args(Gap)),
        _known("dst_fold", fold, get_args(Fold)),
        anchor,
        starts_at,
        ends_at,
        source=Times(()),
        since=FIRST,
    )
    rule = _READERS[kind](blank)
    if starts_at:
        rule = replace(rule, since=max(rule.since, _naive(starts_at) - TICK))
    _check(rule, cadence)
    return rule


def _known(field: str, given: str, known: tuple[Any, ...]) -> Any:
    for one in known:
        if given == one:
            return one
    raise BadRule(field, f"{given[:40]!r} isn't known", f"one of {', '.join(known)}")


def _clean(expr: str) -> str:
    """Digits of other scripts count as digits in Python, and what can't be seen can't be read."""
    strange = next((c for c in expr if not (" " <= c <= "~" or c in "\t\r\n")), None)
    if strange is not None:
        raise bad_expression(f"{strange!a} can't stand in a schedule", "write plain ASCII")
    if not expr.strip():
        raise bad_expression("the expression is empty")
    return expr


def _cron(rule: Rule) -> Rule:
    return replace(rule, source=Cron(rule.expr))


def _once(rule: Rule) -> Rule:
    """An instant that is written with its offset is itself, in a fold, too."""
    text = rule.expr.strip()
    try:
        time = datetime.fromisoformat(text if len(text) <= LONGEST_ONCE else "")
    except ValueError:
        hint = "write 2026-05-01T09:00, or with an offset: 2026-05-01T09:00+02:00"
        raise bad_expression(f"{rule.expr[:40]!r} isn't an ISO 8601 time", hint) from None
    if not FIRST.year < time.year < LAST.year - 1:
        raise bad_expression(f"the year {time.year} is too far away")
    if time.tzinfo is None:
        return replace(rule, source=Times((time,)))
    there = time.astimezone(rule.zone)
    fold: Fold = "second" if there.fold else "first"
    return replace(rule, source=Times((there.replace(tzinfo=None, fold=0),)), dst_fold=fold)


def _recurring(rule: Rule) -> Rule:
    said = read(rule.expr, rule.zone)
    rule = replace(rule, zone=said.zone)
    if said.start:
        return _counted(rule, said, Begin(said.start, said.start), said.start)
    now, since = zones.wall(rule.anchor, said.zone), _naive(rule.anchor)
    begin = Begin(now.replace(second=0, microsecond=0), now - LONGEST_JUMP)
    first = now - zones.largest_jump_near(since, said.zone)
    return _counted(replace(rule, since=since), said, begin, first)


_READERS = {"cron": _cron, "rrule": _recurring, "once": _once}


def _counted(rule: Rule, said: Text, begin: Begin, first: datetime) -> Rule:
    """COUNT counts wall times that fire after the making, be it for the second time or shifted."""
    budget = Budget(AT_CREATION)
    try:
        source = _recurrences(said, begin)
        endless = replace(rule, source=source)
        ended = source.counted(first, lambda local: endless._fires(local, budget), budget)
    except ValueError as error:  # of dateutil
        raise bad_expression("this rule never fires: its parts exclude each other") from error
    return replace(rule, source=ended, endless=replace(ended, lines=source.lines))


def _recurrences(said: Text, begin: Begin) -> Recurrences:
    lines = [Recurrence.of(line, begin) for line in said.lines]
    not_lines = tuple(Recurrence.of(line, begin) for line in said.not_lines)
    times = [Times(tuple(sorted(set(said.times))))] if said.times else []
    return Recurrences(
        (*lines, *times), not_lines, frozenset(said.not_times), frozenset(said.not_days)
    )


def check_limits(starts_at: datetime | None, ends_at: datetime | None) -> None:
    if starts_at and ends_at and ends_at < starts_at:
        raise BadRule("ends_at", "the rule ends before it starts")


def _check(rule: Rule, cadence: timedelta) -> None:
    """That it fires, isn't too frequent, and that looking ahead is cheap."""
    check_limits(rule.starts_at, rule.ends_at)
    budget = Budget(AT_CREATION)
    born = rule.anchor - (LATE if rule.kind == "once" else timedelta())
    try:
        found = rule._look(born, LOOK, None, budget).items
        if found and _shortest(rule, zones.wall(found[0].at, rule.zone), budget) < cadence:
            least = int(cadence.total_seconds())
            raise bad_expression(f"this rule fires more often than every {least} seconds")
    except ValueError as error:  # of dateutil
        raise bad_expression("this rule never fires: its parts exclude each other") from error
    if not found:
        raise bad_expression(f"this rule never fires after it was made: {_why_never(rule)}")


def _shortest(rule: Rule, start: datetime, budget: Budget) -> timedelta:
    """Between two of the next proposals, and between two dates that are given one by one."""
    near = islice(rule.source.proposals(start, budget), LOOK_CLOSELY)
    times = [*takewhile(lambda local: local < start + YEAR, near)]
    lines = rule.source.lines if isinstance(rule.source, Recurrences) else ()
    given = [line.times for line in lines if isinstance(line, Times)]
    spans = (later - local for some in (times, *given) for local, later in pairwise(some))
    return min(spans, default=timedelta.max)


def _why_never(rule: Rule) -> str:
    if rule.kind == "once":
        return "its time is past, or the clocks skip it"
    return "see its COUNT, UNTIL and dates" if rule.kind == "rrule" else "see starts_at and ends_at"
