"""What a course reads that isn't in its hands: large values of steps, and cached answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from ..pipelines.document import Step
from ..steps import Context, Fail
from .calls import kept
from .engine import Broken, Plan, Tool
from .frame import Frame
from .limits import Limits
from .memory import Memory
from .news import Record
from .values import Desk, Names, Values, beside, named


class Reader(Limits):
    def __init__(
        self,
        plan: Plan,
        context: Context,
        memory: Memory,
        callback_key: bytes,
        desk: Desk | None,
    ) -> None:
        super().__init__(plan, memory, callback_key)
        self.context = context
        self.values = Values(self.run.tenant, self.run.id, memory.records, desk)

    async def _bring(
        self, step: Step, frame: Frame, what: Callable[[Step], Names] = beside
    ) -> None:
        """The large values that it reads: after a run is taken up they're in the database still."""
        if self.values.any:
            await self.values.bring(frame.scope["steps"], what(step))

    async def _whole(self, value: Any) -> Any:
        return await self.values.whole(value) if self.values.any else value

    async def _shaped(self, step: Step, frame: Frame, value: Any) -> Any:
        """Projected, checked against the schema, and small enough to keep."""
        if step.output is not None or step.schema is not None:
            await self._bring(step, frame)
            value = await self._whole(value)
        if step.output is not None:
            value = step.output.render({**frame.scope, "result": value})
        if step.schema is not None and (found := list(step.schema.problems(value))):
            text = "; ".join(f"{one.pointer or '/'}: {one.message}" for one in found[:5])
            raise Broken(Fail("validation", f"its result doesn't fit its schema: {text}"))
        return self._kept(value)

    def _kept(self, value: Any, what: str = "result") -> Any:
        return kept(value, what, self.context.config.value_limit)

    async def _output(self, scope: dict[str, Any]) -> Any:
        """What the run answers: what its pipeline says, or every saved value."""
        template = self.plan.pipeline.output
        if template is None:
            return self._kept(await self._whole(self.context.steps), "output")
        if self.values.any:
            await self.values.bring(scope["steps"], named(template.references))
        return self._kept(template.render(scope), "output")

    def _cache(self, step: Step, tool: Tool, arguments: Any, frame: Frame) -> Record | None:
        """Under what its answer is cached, as its record says it; without what secrets say."""
        if step.cache is not None:
            key, seconds = step.cache.key.render(frame.scope), step.cache.ttl
        elif tool.kind.caches and (asked := tool.kind.caches(self._veiled(arguments))):
            key, seconds = asked
        else:
            return None
        return {"tool": tool.kind.name, "key": self.context.masks.value(key), "seconds": seconds}

    def _veiled(self, arguments: Any) -> Any:
        """So that not even a digest is made of what a secret says."""
        if not self.context.masks:
            return arguments
        shown = self.context.masks.value(msgspec.to_builtins(arguments))
        return msgspec.convert(shown, type(arguments))

    async def _recalled(
        self, cache: Record, place: str, attempt: int, state: dict[str, Any]
    ) -> list[Any]:
        """The value that serves still; its step is recorded with it."""
        found = await self.values.cached(cache["tool"], cache["key"])
        if found:
            self.memory.record(place, "succeeded", attempt, output=found[0], cached=True)
            state["cached"] = True
        return found
