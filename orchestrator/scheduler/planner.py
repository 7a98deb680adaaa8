"""What a tick asks Python: further instants of rules, and whether conditions of events hold."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from ..events import judged
from ..schedules.limits import BadRule
from ..schedules.plan import following
from ..telemetry import log

LONG = 0.2
"""Seconds after which it answers what it has: the others are asked again, of any scheduler."""


class Answers(msgspec.Struct):
    plans: list[dict[str, Any]] = []
    verdicts: list[dict[str, Any]] = []

    @property
    def any(self) -> bool:
        return bool(self.plans or self.verdicts)


def answer(short: list[dict[str, Any]] | None, undecided: list[dict[str, Any]] | None) -> Answers:
    """Takes a while: not for an event loop."""
    answers, end = Answers(), time.monotonic() + LONG
    for row in undecided or ():
        answers.verdicts.append(judged(row, {"event": row["event"]}))
        if time.monotonic() > end:
            break
    for row in short or ():
        answers.plans.append(extended(row))
        if time.monotonic() > end:
            break
    return answers


def extended(row: dict[str, Any]) -> dict[str, Any]:
    """The next instants of a rule, as `orc.tick` takes them. One that fails keeps no other back."""
    said = {name: row[name] for name in ("tenant", "task", "revision", "known_from")}
    try:
        instants, known_to = following(row)
    except Exception as error:
        is_bug = not isinstance(error, BadRule)
        log("rule_unusable", "warning", task_id=row["task"], exc_info=is_bug, error=str(error))
        if row["until_at"]:  # it was replaced meanwhile: the next one goes on
            return {**said, "known_to": row["until_at"], "instants": [], "problem": None}
        problem = str(error) or repr(error)
        return {**said, "known_to": row["known_from"], "instants": [], "problem": problem}
    return {**said, "known_to": known_to, "instants": instants, "problem": None}
