"""What a tick asks Python: further instants of rules, and whether conditions of events hold."""

from __future__ import annotations

from typing import Any

import msgspec

from ..events import judged
from ..schedules.limits import BadRule
from ..schedules.plan import following
from ..telemetry import log


class Answers(msgspec.Struct):
    plans: list[dict[str, Any]] = []
    verdicts: list[dict[str, Any]] = []

    @property
    def any(self) -> bool:
        return bool(self.plans or self.verdicts)


def answer(short: list[dict[str, Any]] | None, undecided: list[dict[str, Any]] | None) -> Answers:
    """Takes a while: not for an event loop."""
    return Answers(
        [extended(row) for row in short or ()],
        [judged(row, {"event": row["event"]}) for row in undecided or ()],
    )


def extended(row: dict[str, Any]) -> dict[str, Any]:
    """The next instants of a rule, as `orc.tick` takes them."""
    said = {name: row[name] for name in ("tenant", "task", "revision", "known_from")}
    try:
        instants, known_to = following(row)
    except BadRule as error:
        log("rule_unusable", "warning", task_id=row["task"], error=str(error))
        if row["until_at"]:  # it was replaced meanwhile: the next one goes on
            return {**said, "known_to": row["until_at"], "instants": [], "problem": None}
        return {**said, "known_to": row["known_from"], "instants": [], "problem": str(error)}
    return {**said, "known_to": known_to, "instants": instants, "problem": None}
