"""The next instants of a rule, as plans hold them: computed when it is made, and later on."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from .rules import compile_rule

HORIZON = timedelta(days=40)
"""None is kept for longer, except the next two: the data of time zones may change before."""

RECENT = timedelta(minutes=1)
"""A plan is as good as a new one for so long, if none of its instants has come."""


def following(row: dict[str, Any]) -> tuple[list[datetime], datetime | str]:
    """The next instants, and up to when there are no others."""
    start, until = _time(row["known_from"]), _time(row["until_at"])
    assert start is not None
    if row["kind"] in {"event", "condition"} and row["span"] is None:
        return [], until or "infinity"
    if row["span"] is not None:
        return _beats(row, start, until)
    rule = compile_rule(
        row["kind"], row["expr"], row["zone"], anchor=_since(row, start), dst_gap=row["dst_gap"],
        dst_fold=row["dst_fold"], starts_at=_time(row["starts_at"]), ends_at=_time(row["ends_at"]),
    )  # fmt: skip
    moments, ended = rule.after(start, row["wanted"], until)
    instants = [moment.at for moment in moments]
    horizon = max(start, datetime.now(UTC)) + HORIZON
    kept = instants[: max(2, sum(at <= horizon for at in instants))]
    if len(kept) < len(instants) or (len(kept) == row["wanted"] and not ended):
        return kept, kept[-1]
    return kept, until or "infinity"


def _beats(
    row: dict[str, Any], start: datetime, until: datetime | None
) -> tuple[list[datetime], datetime | str]:
    """Each so often since the task was made: what a probe goes by."""
    span, anchor = timedelta(seconds=row["span"]), _anchor(row)
    starts, ends = _time(row["starts_at"]) or start, _time(row["ends_at"])
    number = max(0, (max(start, starts) - anchor) // span)
    beats = [anchor + span * (number + n) for n in range(row["wanted"] + 1)]
    limit = min((at for at in (until, ends) if at), default=None)
    kept = [at for at in beats if at > start and (limit is None or at <= limit)][: row["wanted"]]
    if limit is not None and beats[-1] > limit:
        return kept, until or "infinity"
    return kept, kept[-1]


def _since(row: dict[str, Any], start: datetime) -> datetime:
    """A single time may lie before its task's making, by the grace."""
    return min(_anchor(row), start) if row["kind"] == "once" else _anchor(row)


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
