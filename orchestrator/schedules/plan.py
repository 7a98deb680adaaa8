"""The next instants of a task, as plans hold them: computed when it is made, and later on."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import takewhile
from typing import Any

from .rules import TICK, Moment, Moments, Rule, compile_rule

HORIZON = timedelta(days=40)
"""None is kept for longer, except the next two: the data of time zones may change before."""

NEVER = datetime.max.replace(tzinfo=UTC)

RECENT = timedelta(minutes=1)
"""A plan is as good as a new one for so long, if none of its instants has come."""


def next_after(
    task: dict[str, Any], instant: datetime, n: int = 1, until: datetime | None = None
) -> Moments:
    """The next moments of a task, strictly after an instant and not after `until`: those of its
    rule, those of its probes, or none when it goes by events. All that looks ahead asks this."""
    if task["span"] is not None:
        return _beats(task, instant, n, until)
    if task["kind"] in {"event", "condition"}:
        return Moments((), True)
    return rule_of(task, instant).after(instant, n, until)


def rule_of(task: dict[str, Any], instant: datetime) -> Rule:
    """A single time may lie before its task's making, by the grace."""
    anchor = _anchor(task)
    return compile_rule(
        task["kind"], task["expr"], task["zone"], dst_gap=task["dst_gap"],
        dst_fold=task["dst_fold"], starts_at=_time(task["starts_at"]),
        ends_at=_time(task["ends_at"]),
        anchor=min(anchor, instant) if task["kind"] == "once" else anchor,
    )  # fmt: skip


def _beats(task: dict[str, Any], instant: datetime, n: int, until: datetime | None) -> Moments:
    """Each so often since the task was made: what a probe goes by."""
    span, anchor = timedelta(seconds=task["span"]), _anchor(task)
    starts, ends = _time(task["starts_at"]), _time(task["ends_at"])
    since = max(instant, starts - TICK) if starts else instant
    first = anchor + span * max(0, (since - anchor) // span + 1)
    limit = min(end for end in (until, ends, NEVER) if end)
    found = [*takewhile(lambda at: at <= limit, (first + span * k for k in range(n)))]
    ended = len(found) < n and limit == ends
    return Moments(tuple(Moment(at, at.replace(tzinfo=None), None) for at in found), ended)


def following(row: dict[str, Any]) -> tuple[list[datetime], datetime | str]:
    """The next instants, and up to when there are no others."""
    start, until = _time(row["known_from"]), _time(row["until_at"])
    assert start is not None
    moments, ended = next_after(row, start, row["wanted"], until)
    instants = [moment.at for moment in moments]
    horizon = max(start, datetime.now(UTC)) + HORIZON
    kept = instants[: max(2, sum(at <= horizon for at in instants))]
    if len(kept) < len(instants) or (len(kept) == row["wanted"] and not ended):
        return kept, kept[-1]
    return kept, until or "infinity"


def _anchor(row: dict[str, Any]) -> datetime:
    anchor = _time(row["anchor"])
    assert anchor is not None
    return anchor.replace(microsecond=0)


def _time(text: str | None) -> datetime | None:
    """An instant of the database; none when it is never."""
    return None if text is None or "infinity" in text else datetime.fromisoformat(text)


class RecentPlans:
    """Plans that were computed a moment ago. Until the first of its instants comes, a plan is that
    of every task with the same cron rule: tasks are made by the hundred."""

    def __init__(self, most: int = 1000) -> None:
        self.most = most
        self._kept: dict[tuple[Any, ...], tuple[datetime, dict[str, Any]]] = {}

    def plan(self, said: dict[str, Any], start: datetime) -> dict[str, Any] | None:
        since, plan = self._kept.get(_rule_of(said), (start, {}))
        instants = plan.get("instants")
        is_it = instants and since <= start < min(instants[0], since + RECENT)
        return plan if is_it else None

    def keep(self, said: dict[str, Any], start: datetime, plan: dict[str, Any]) -> None:
        if said["schedule_kind"] != "cron":
            return
        if len(self._kept) >= self.most:
            self._kept.clear()
        self._kept[_rule_of(said)] = start, plan


def _rule_of(said: dict[str, Any]) -> tuple[Any, ...]:
    names = ("schedule_kind", "schedule_expr", "timezone", "dst_gap", "dst_fold", "starts_at",
             "ends_at")  # fmt: skip
    return tuple(said[name] for name in names)
