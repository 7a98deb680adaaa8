"""What is known of a run's steps from before, and what is recorded of them now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import datetime
from typing import Any

import msgspec

from ..steps import Fail
from .engine import Broken, Run, Unknown
from .news import Record

Error = dict[str, Any]


class Past(msgspec.Struct, frozen=True):
    """What was before this claim. A try of the run is over when it fails and is tried again: not
    when it parks, is given back, or its worker is lost."""

    began_at: datetime | None = None  # the first attempt
    attempt_began_at: datetime | None = None
    tried: int = 0  # the last claim of the try before this one
    is_canceled: bool = False  # only `finally` is left


NO_PAST = Past()


class Memory:
    """Nothing in it knows the course, so a run that has ended leaves nothing to the collector."""

    def __init__(
        self,
        run: Run,
        records: dict[str, Record],
        say: Callable[[Record], None],
        past: Past = NO_PAST,
    ) -> None:
        self.run = run
        self.records = records  # by place; of those that are over, also of this claim
        self.say = say  # travels with what is said next
        self.past = past
        self.tries: Counter[str] = Counter()  # of each tool's place, in this try of the run
        self.failures: dict[str, Error] = {}  # of steps that are being tried again
        self.given: dict[str, Any] = {}  # to tools: another attempt is given the same

    def recall(self, place: str) -> None:
        """A failure that was caught stays one: its step is over, as one that has succeeded."""
        record = self.records.get(place)
        error = record.get("error") if record is not None else None
        if error is not None and error.get("caught"):
            raise Broken(Fail(error["type"], error["message"]), error.get("step"))

    def caught_at(self, place: str, broken: Broken) -> None:
        if place not in self.records or not (self.records[place].get("error") or {}).get("caught"):
            state = "unknown" if isinstance(broken, Unknown) else "failed"
            error = {**broken.error, "caught": True}
            self.record(place, state, self.tries[place] or 1, error=error)

    def has_succeeded(self, place: str) -> bool:
        record = self.records.get(place)
        return record is not None and record["state"] == "succeeded"

    def of_this_try(self, place: str) -> Record:
        record = self.records.get(place) or {}
        return record if (record.get("epoch") or 0) > self.past.tried else {}

    def remember(self, place: str, turn: str) -> Error:
        """How its last attempt failed, if there are to be others: `left` of them, not before
        `again_at`. One that a crash cut off isn't counted."""
        record = self.of_this_try(place)
        error: Error = record.get("error") or {}
        if "left" not in error or error["turn"] != turn:
            error = {}
        if record.get("arguments") is not None and (error or record["state"] != "failed"):
            self.given[place] = record["arguments"]
        if error:
            is_cut_off = record["state"] != "failed"
            self.tries[place] = record["attempt"] - is_cut_off
            self.failures[place] = error
        return error

    def forget(self, place: str) -> None:
        self.given.pop(place, None)
        self.failures.pop(place, None)

    def said(self, place: str, state: str, attempt: int, **more: Any) -> Record:
        run = self.run
        return {
            "tenant": run.tenant, "run": run.id, "epoch": run.epoch,
            "step": place, "state": state, "attempt": attempt, **more,
        }  # fmt: skip

    def record(self, place: str, state: str, attempt: int, **more: Any) -> None:
        record = self.said(place, state, attempt, **more)
        if state == "succeeded" or (more.get("error") or {}).get("caught"):
            self.records[place] = record  # it stays so when what is around it is tried again
        self.say(record)
