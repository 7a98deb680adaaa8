"""What is known of a run's steps from before, and what is recorded of them now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from ..steps import Fail
from .engine import Broken, Run, Unknown
from .news import Record


class Memory:
    def __init__(self, run: Run, records: dict[str, Record], say: Callable[[Record], None]) -> None:
        self.run = run
        self.records = records  # by place; of those that are over, also of this claim
        self.say = say  # travels with what is said next
        self.tries: Counter[str] = Counter()  # of each tool's place, in this claim

    def _recall(self, place: str) -> None:
        """A failure that was caught stays one: its step is over, as one that has succeeded."""
        record = self.records.get(place)
        error = record.get("error") if record is not None else None
        if error is not None and error.get("caught"):
            raise Broken(Fail(error["type"], error["message"]), error.get("step"))

    def _caught_at(self, place: str, broken: Broken) -> None:
        if place not in self.records or not (self.records[place].get("error") or {}).get("caught"):
            state = "unknown" if isinstance(broken, Unknown) else "failed"
            error = {**broken.error, "caught": True}
            self._record(place, state, self.tries[place] or 1, error=error)

    def _said(self, place: str, state: str, attempt: int, **more: Any) -> Record:
        run = self.run
        where = {"tenant": run.tenant, "run": run.id, "epoch": run.epoch, "step": place}
        return {**where, "state": state, "attempt": attempt, **more}

    def _record(self, place: str, state: str, attempt: int, **more: Any) -> None:
        record = self._said(place, state, attempt, **more)
        if state == "succeeded" or more.get("error", {}).get("caught"):
            self.records[place] = record  # it stays so when what is around it is tried again
        self.say(record)
