"""The attempts of a step, and the pauses between them. How often it was tried is on record, and so
is what it was given: a run that is taken up goes on counting."""

from __future__ import annotations

import asyncio
import random
from abc import abstractmethod
from datetime import datetime, timedelta
from typing import Any

from ..pipelines.document import Step, Use
from ..steps import Retry
from . import veil
from .engine import Broken, Unknown, failure
from .frame import Frame
from .reader import Reader
from .watch import Work

PATIENCE_SECONDS = 5.0
"""A longer pause between two attempts of a step holds no worker, if nothing else is at work."""

LONGEST = 1e8


class Attempts(Reader):
    @abstractmethod
    def _body(self, step: Step, frame: Frame, place: str) -> Work: ...

    async def _attempts(self, step: Step, frame: Frame, place: str) -> Any:
        failed = self.memory.remember(place, frame.turn)
        if self.context.vault:  # what is on record shows no secrets
            self.memory.given.pop(place, None)
        attempt = step.retry.attempts - failed["left"] if failed else 0
        try:
            while True:
                if failed and not self.is_replay:
                    await self._pause(place, failed["again_at"])
                attempt += 1
                frame.scope["state"].setdefault(step.id, {})["attempt"] = attempt
                failed = await self._attempt(step, frame, place, attempt)
                if "value" in failed:
                    return failed["value"]
        finally:
            self.memory.forget(place)

    async def _attempt(self, step: Step, frame: Frame, place: str, number: int) -> dict[str, Any]:
        """Its value; or how it failed, if it is to be tried again."""
        turn = frame.attempt(number)
        try:
            limit = self._attempt_limit(step, turn, place)
            return {"value": await self._within(limit, self._body(step, turn, place))}
        except Exception as error:
            broken = self._named(place, failure(self.run, error))
        await self._bring(step, frame)
        left = step.retry.attempts - number
        if left <= 0 or self.is_replay or not self._worth_it(step, frame, broken):
            if isinstance(step.body, Use):
                state = "unknown" if isinstance(broken, Unknown) else "failed"
                self.memory.record(place, state, self.memory.tries[place], error=broken.error)
            raise broken
        return self._to_be_tried_again(step, frame, place, broken, left)

    def _to_be_tried_again(
        self, step: Step, frame: Frame, place: str, broken: Broken, left: int
    ) -> dict[str, Any]:
        wish = broken.outcome.delay if isinstance(broken.outcome, Retry) else None
        own = step.retry.delay_after(step.retry.attempts - left, random.random())
        again_at = self.waits.now() + timedelta(seconds=min(max(wish or 0, own), LONGEST))
        how = {"left": left, "turn": frame.turn, "again_at": again_at.isoformat()}
        self.memory.failures[place] = error = broken.error | how
        more = {}
        if place in self.memory.given and not self._has_intent(step):
            more = {"arguments": veil.shown(self.memory.given[place], self.context)}
        self.memory.record(place, "failed", self.memory.tries[place] or 1, error=error, **more)
        return error

    async def _pause(self, place: str, again_at: str) -> None:
        """A long one holds no worker."""
        seconds = self.waits.left(datetime.fromisoformat(again_at))
        if seconds <= PATIENCE_SECONDS:
            await asyncio.sleep(max(0.0, seconds))
        else:
            await self.waits.rest(place, again_at, f"another attempt of {place}")

    def _worth_it(self, step: Step, frame: Frame, broken: Broken) -> bool:
        retry = step.retry
        if retry.errors is not None and broken.error["type"] not in retry.errors:
            return False
        if retry.when is not None:
            return retry.when.holds({**frame.scope, "error": broken.error})
        return retry.errors is not None or isinstance(broken.outcome, Retry)

    def _named(self, place: str, broken: Broken) -> Broken:
        broken.step = broken.step or place
        return broken

    def _has_intent(self, step: Step) -> bool:
        """Whether what it does is written down before."""
        return step.on_unknown is not None or self.plan.tools[step.path].kind.outside
