"""How long a run and its steps may take. Time goes on while the run is parked, or nobody has it:
a limit that may outlast a claim counts from what is on record."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any

import msgspec

from ..pipelines.document import Step, Use, Wait
from ..steps import Fail, Retry
from .engine import Broken, Plan
from .frame import Frame
from .memory import Memory
from .waits import Waits
from .watch import Watch, Work

WHOLE = "/"
"""The place of the run itself: no step can have it."""


class Limit(msgspec.Struct, frozen=True):
    """Until when something may take, and what it is when it takes longer."""

    until: datetime
    late: Retry | Fail
    mark: str = ""  # where it is on record


def limit_of(seconds: float, since: datetime) -> Limit:
    late = Retry("timeout", f"longer than {seconds:g} s")
    return Limit(since + timedelta(seconds=seconds), late)


class Limits:
    def __init__(self, plan: Plan, memory: Memory, callback_key: bytes) -> None:
        self.run = memory.run
        self.plan = plan
        self.memory = memory
        self.watch = Watch()
        self.waits = Waits(memory, self.watch, callback_key)
        self.is_replay = False  # what isn't on record doesn't begin

    def _whole_limit(self) -> Limit | None:
        """The pipeline's timeout is of all attempts of the run, the run's own of each."""
        if self.memory.has_succeeded(WHOLE):
            return None
        past, limits = self.memory.past, []
        if (whole := self.plan.pipeline.timeout) is not None:
            late = Fail("timeout", f"longer than {whole:g} s")
            since = past.began_at or self.waits.now()
            limits.append(Limit(since + timedelta(seconds=whole), late))
        if (own := self.run.timeout) is not None:
            limits.append(limit_of(own, past.attempt_began_at or self.waits.now()))
        return min(limits, key=lambda limit: limit.until, default=None)

    def _total_limit(self, step: Step, frame: Frame) -> Limit | None:
        place = frame.place + step.id
        if step.timeout.total is None or isinstance(step.body, Wait):
            return None
        return self._lasting_limit(place + ":total", place, step.timeout.total, frame.turn)

    def _attempt_limit(self, step: Step, frame: Frame, place: str) -> Limit | None:
        seconds = step.timeout.attempt
        if seconds is None or isinstance(step.body, Wait):
            return None
        if isinstance(step.body, Use):
            return limit_of(seconds, self.waits.now())
        return self._lasting_limit(place + ":attempt", place, seconds, frame.turn)

    def _lasting_limit(self, mark: str, place: str, seconds: float, turn: str) -> Limit | None:
        """It is on record, as it goes on while the run is parked, or nobody has it."""
        if self.is_replay or self.memory.has_succeeded(place) or self.memory.has_succeeded(mark):
            return None
        output = self.memory.of_this_try(mark).get("output") or {}
        if mark not in self.memory.tries and output.get("turn") == turn:
            until = datetime.fromisoformat(output["until"])
        else:
            until = self.waits.now() + timedelta(seconds=seconds)
            output = {"until": until.isoformat(), "turn": turn}
            self.memory.record(mark, "waiting", self.memory.tries[mark] + 1, output=output)
        self.memory.tries[mark] += 1
        return Limit(until, limit_of(seconds, until).late, mark)

    def _within(self, limit: Limit | None, work: Work) -> Work:
        return work if limit is None or self.is_replay else self._limited(limit, work)

    async def _limited(self, limit: Limit, work: Work) -> Any:
        left = self.waits.left(limit.until)
        if left <= 0:
            work.close()
            raise Broken(limit.late)
        self.waits.limits.append(limit.until)
        try:
            async with asyncio.timeout(left) as timer:
                value = await work
        except TimeoutError:
            if not timer.expired():
                raise
            raise Broken(limit.late) from None
        finally:
            self.waits.limits.remove(limit.until)
        if limit.mark and not self.memory.has_succeeded(limit.mark.rpartition(":")[0]):
            self.memory.record(limit.mark, "succeeded", 1)
        return value
