"""The course of one run through its pipeline: what is next, what it answers, what is recorded.

Steps of a list run one after the other unless their needs say otherwise; then as a graph. Whatever
runs beside something else is a task, and the course counts who is awake: when all sleep in waits,
the run parks, and holds no worker. It is taken up again from its records: a step that has succeeded
is not executed again, everything else is computed anew and comes out the same.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from datetime import UTC, datetime
from graphlib import TopologicalSorter
from typing import Any
from uuid import UUID, uuid5

import msgspec

from ..pipelines.document import (
    Block,
    Each,
    Loop,
    Parallel,
    Step,
    Steps,
    Switch,
    Use,
    Wait,
)
from ..steps import Context, Done, Fail, Park
from . import veil
from .attempts import Attempts
from .calls import kept
from .engine import (
    Broken,
    Plan,
    Settled,
    Tool,
    Unknown,
    failure,
    in_a_row,
    scope_of,
    settled,
)
from .frame import Frame
from .limits import WHOLE
from .memory import Memory
from .news import Record
from .values import Desk, within
from .watch import Group, Work

MOST_ITEMS = 10_000
AFTERMATH_SECONDS = 30.0
"""How long `finally` may take when its run is canceled."""


class Course(Attempts):
    def __init__(
        self,
        plan: Plan,
        context: Context,
        memory: Memory,
        commit: Callable[[Record], Coroutine[Any, Any, None]],
        callback_key: bytes = b"",
        desk: Desk | None = None,
    ) -> None:
        super().__init__(plan, context, memory, callback_key, desk)
        self.commit = commit  # and returns when it is durable
        self.scope: dict[str, Any] = {"steps": {}, "state": {}}
        self.weighed: set[str] = set()  # calls whose outcome nobody knew
        self.has_begun = False

    # Life

    async def follow(self) -> Settled:
        self.has_begun = True
        if self.memory.past.is_canceled:
            return await self._only_finally()
        main = asyncio.create_task(self._main())
        main.add_done_callback(self.watch.stir)
        try:
            while not (main.done() or self.watch.all_sleep):
                await self.watch.quiet
            if main.done():
                said = main.result()
            else:
                said = settled(self.run, self.waits.park(), self.context)
            said.waits = self.waits.listed() if self.waits.any else None
            await self._end(main)
            return said
        except asyncio.CancelledError as why:
            await self._end(main)
            if why.args == ("canceled",):
                await (self._only_finally() if self.run.epoch > 1 else self._canceled())
            raise
        finally:
            await self._end(main)

    async def _end(self, task: asyncio.Task[Any]) -> None:
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))

    async def _only_finally(self) -> Settled:
        """Its values may not be there yet, or not all: `finally` sees what is on record."""
        if self.plan.pipeline.finally_:
            await self._remember()
            await self._canceled()
        return Settled(self.run.tenant, self.run.id, self.run.epoch, "canceled")

    async def _remember(self) -> None:
        self.is_replay = True
        replay = asyncio.create_task(self._replay())
        replay.add_done_callback(self.watch.stir)
        try:
            async with asyncio.timeout(AFTERMATH_SECONDS):
                while not (replay.done() or self.watch.all_sleep):
                    await self.watch.quiet
        except TimeoutError:
            pass
        finally:
            await self._end(replay)
        self.is_replay = False

    async def _replay(self) -> None:
        with suppress(Exception):
            self.scope = scope_of(self.run, self.plan, self.context)
            await self._list(self.plan.pipeline.steps, Frame(self.scope))

    async def _main(self) -> Settled:
        said = Settled(self.run.tenant, self.run.id, self.run.epoch, "succeeded")
        whole = self.plan.pipeline
        try:
            self.scope = scope_of(self.run, self.plan, self.context)
            self.memory.recall(WHOLE)
            limit = self._whole_limit()
            await self._within(limit, self._list(whole.steps, Frame(self.scope)))
            said.output = await self._output(self.scope)
            if limit and whole.finally_:
                self.memory.record(WHOLE, "succeeded", 1)  # what comes after it has time
        except Exception as error:
            broken = failure(self.run, error)
            said = settled(self.run, broken.outcome, self.context, broken.error)
            if said.retry and self.run.attempt < self.run.max_attempts:
                return said  # it isn't the end
            if whole.on_error or whole.finally_:
                self.memory.caught_at(WHOLE, broken)
            await self._aftermath(whole.on_error, "on_error", said.error)
        await self._aftermath(whole.finally_, "finally", said.error)
        return said

    async def _aftermath(self, steps: Steps, name: str, error: dict[str, Any] | None) -> None:
        """What runs after the end. Its failures are lines in the log: the end stands."""
        try:
            await self._list(steps, Frame({**self.scope, "error": error}))
        except Exception as error:
            said = failure(self.run, error).error
            line = {"level": "error", "message": f"{name}: {said['message']}", "facts": said}
            self.context.lines.append(line)

    async def _canceled(self) -> None:
        error = {"type": "canceled", "message": "the run was canceled"}
        with suppress(TimeoutError):
            async with asyncio.timeout(AFTERMATH_SECONDS):
                await self._aftermath(self.plan.pipeline.finally_, "finally", error)

    # Lists

    async def _list(self, steps: Steps, frame: Frame) -> Any:
        """Its value is that of its last step."""
        if self.plan.callbacks and "run" in frame.scope:
            paths = self.waits.callbacks(self.plan.callbacks, frame.place)
            frame.scope["run"] = {**frame.scope["run"], "callbacks": paths}
        if in_a_row(steps):
            for step in steps:
                await self._step(step, frame)
        else:
            await self._graph(steps, frame)
        return frame.scope["steps"].get(steps[-1].id) if steps else None

    async def _graph(self, steps: Steps, frame: Frame) -> None:
        order = TopologicalSorter({step.id: step.needs for step in steps})
        order.prepare()
        known = {step.id: step for step in steps}
        group = Group()
        try:
            while order.is_active():
                for id in order.get_ready():
                    self.watch.spawn(group, id, self._step(known[id], frame))
                for id, task in await self.watch.first(group):
                    task.result()
                    order.done(id)
        finally:
            await self.watch.abandon(group)

    # Steps

    async def _step(self, step: Step, frame: Frame) -> None:
        """Leaves its value under its names, or breaks."""
        state: dict[str, Any] = {
            "status": "running", "attempt": 0, "error": None, "cached": False,
            "started_at": written(self.waits.now()), "finished_at": None,
        }  # fmt: skip
        frame.scope["state"][step.id] = state
        value: Any = None
        try:
            if self.memory.records:
                self.memory.recall(frame.place + step.id)
            await self._bring(step, frame)
            if step.condition is not None and not step.condition.holds(frame.scope):
                state["status"] = "skipped"
            else:
                value = await self._within(self._total_limit(step, frame), self._times(step, frame))
                state["status"] = "succeeded"
            self._date(state, frame.place + step.id)
        except Exception as error:
            broken = self._named(frame.place + step.id, failure(self.run, error))
            state |= {"status": "failed", "error": broken.error}
            self._date(state, frame.place + step.id)
            value = await self._caught(step, frame, broken)
        self._keep(step, frame, value, state["status"] != "skipped")

    def _date(self, state: dict[str, Any], place: str) -> None:
        """As on record, so that whoever goes on with the run later sees the same."""
        record = self.memory.records.get(place) or {}
        state["started_at"] = written(record.get("started_at") or state["started_at"])
        state["finished_at"] = written(record.get("finished_at") or self.waits.now())
        if record:
            record |= {name: state[name] for name in ("started_at", "finished_at")}

    def _keep(self, step: Step, frame: Frame, value: Any, ran: bool) -> None:
        steps = frame.scope["steps"]
        steps[step.id] = value
        if step.save_as is not None:
            steps[step.save_as] = value
            if ran and "item" not in frame.scope:
                self.context.steps[step.save_as] = value

    async def _caught(self, step: Step, frame: Frame, broken: Broken) -> Any:
        catch = step.catch
        if catch and (catch.errors is None or broken.error["type"] in catch.errors):
            self.memory.caught_at(frame.place + step.id, broken)
            inside = frame.round(f"{frame.place}{step.id}", error=broken.error)
            return await self._list(catch.steps, inside)
        if step.continue_on_error:
            self.memory.caught_at(frame.place + step.id, broken)
            return None
        raise broken

    def _times(self, step: Step, frame: Frame) -> Work:
        place = frame.place + step.id
        if step.each is not None:
            return self._each(step, step.each, frame, place)
        if step.loop is not None:
            return self._loop(step, step.loop, frame, place)
        return self._attempts(step, frame, place)

    async def _each(self, step: Step, each: Each, frame: Frame, place: str) -> list[Any]:
        items = each.items.render(frame.scope)
        if not isinstance(items, list):
            raise Broken(Fail("validation", "for_each needs a list"))
        if len(items) > MOST_ITEMS:
            raise Broken(Fail("validation", f"for_each takes at most {MOST_ITEMS} items"))
        values: list[Any] = [None] * len(items)
        failures, group, left = 0, Group(), iter(range(len(items)))
        try:
            while True:
                while len(group.tasks) < each.max_parallel and (at := next(left, None)) is not None:
                    its = f"{place}[{at}]"
                    own = frame.item(its, item=items[at], index=at)
                    self.watch.spawn(group, at, self._item(step, each, own, its))
                if not group.tasks:
                    return values
                for at, task in await self.watch.first(group):
                    if task.exception() is None:
                        values[at] = task.result()
                        continue
                    failures += 1
                    if failures > each.max_failures:
                        task.result()
        finally:
            await self.watch.abandon(group)

    async def _item(self, step: Step, each: Each, frame: Frame, place: str) -> Any:
        try:
            self.memory.recall(place)
            return await self._attempts(step, frame, place)
        except Broken as broken:
            if each.max_failures:
                self.memory.caught_at(place, broken)
            raise

    async def _loop(self, step: Step, loop: Loop, frame: Frame, place: str) -> Any:
        value: Any = None
        for index in range(loop.max_iterations):
            around = frame.round(f"{place}[{index}]", index=index, result=value)
            if loop.proceed is not None and not loop.proceed.holds(around.scope):
                return value
            value = await self._attempts(step, around, f"{place}[{index}]")
            value = frame.scope["steps"][step.id] = await self._whole(value)
            await self._bring(step, frame)
            if loop.until is not None and loop.until.holds({**around.scope, "result": value}):
                return value
        if loop.proceed is not None:
            return value
        raise Broken(Fail("runtime", f"not so after {loop.max_iterations} iterations"))

    # Bodies

    def _body(self, step: Step, frame: Frame, place: str) -> Work:
        if isinstance(step.body, Use):
            return self._use(step, frame, place)
        return self._inside(step, frame, place)

    async def _inside(self, step: Step, frame: Frame, place: str) -> Any:
        match step.body:
            case Block(steps=steps):
                value = await self._list(steps, frame.inside(place))
            case Parallel(branches=branches, mode="race"):
                value = await self._race(branches, frame, place)
            case Parallel(branches=branches):
                value = await self._parallel(branches, False, frame.inside(place))
            case Switch(cases=cases):
                value = None
                for case in cases:
                    if case.when is None or case.when.holds(frame.scope):
                        value = await self._list(case.steps, frame.inside(place))
                        break
            case Wait():
                if self.is_replay and not self.memory.has_succeeded(place):
                    await self.watch.for_ever()
                value = await self.waits.wait(step.body, frame.scope, place)
        return await self._shaped(step, frame, value)

    async def _race(self, branches: dict[str, Steps], frame: Frame, place: str) -> Any:
        """Run again, another branch might win: who won is recorded."""
        if self.memory.has_succeeded(place):
            return self.memory.records[place]["output"]
        value = await self._whole(await self._parallel(branches, True, frame.inside(place)))
        self.memory.record(place, "succeeded", 1, output=self._kept(value))
        return value

    async def _parallel(self, branches: dict[str, Steps], is_race: bool, frame: Frame) -> Any:
        values: dict[str, Any] = {}
        group = Group()
        for name, steps in branches.items():
            self.watch.spawn(group, name, self._list(steps, frame))
        try:
            while group.tasks:
                for name, task in await self.watch.first(group):
                    values[name] = task.result()
                    if is_race:
                        return {name: values[name]}
        finally:
            await self.watch.abandon(group)
        return {name: values[name] for name in branches}

    # Tools

    async def _use(self, step: Step, frame: Frame, place: str) -> Any:
        tool, memory, state = self.plan.tools[step.path], self.memory, frame.scope["state"][step.id]
        record = memory.records.get(place)
        if record is not None and record["state"] == "succeeded":
            output, state["cached"] = record["output"], bool(record.get("cached"))
            return await self._shaped(step, frame, output) if tool.kind.records_itself else output
        if self.is_replay and tool.kind.recorded:
            await self.watch.for_ever()
        memory.tries[place] = attempt = memory.tries[place] + 1
        if place not in memory.given:
            await self._bring(step, frame, within)
            memory.given[place] = tool.template.render(frame.scope)
        arguments = await veil.arguments(tool, memory.given[place], self.context)
        is_open = record is not None and record["state"] in ("started", "unknown")
        if is_open and place not in self.weighed:
            self.weighed.add(place)
            await self._weigh_unknown(step, tool, place)
        cache = self._cache(step, tool, arguments, frame)
        if cache and (found := await self._recalled(cache, place, attempt, state)):
            return found[0]
        context = msgspec.structs.replace(
            self.context,
            key=str(uuid5(UUID(self.run.id), place)),
            record=memory.said(place, "succeeded", attempt),
            seconds=step.timeout.attempt,
            events=[],
        )
        if self._has_intent(step):
            await self._intend(place, attempt, arguments)
        began = time.monotonic()
        outcome = await veil.called(tool.kind, arguments, context)
        if isinstance(outcome, Park):
            answer = await self.waits.parked(place, outcome, step.timeout)
            outcome = Done(await self.values.child(answer))
        if not isinstance(outcome, Done):
            raise Broken(outcome)
        if tool.kind.records_itself:
            memory.records[place] = memory.said(place, "succeeded", attempt, output=outcome.value)
        value = await self._shaped(step, frame, outcome.value)
        if tool.kind.recorded and not tool.kind.records_itself:
            more: dict[str, Any] = {"events": context.events} if context.events else {}
            more |= {"cache": cache} if cache else {}
            seconds = time.monotonic() - began
            memory.record(place, "succeeded", attempt, output=value, seconds=seconds, **more)
        return value

    async def _intend(self, place: str, attempt: int, arguments: Any) -> None:
        """Returns when it is durable that this call will be made."""
        memory = self.memory
        shown = memory.given[place] if self.context.vault else arguments
        said = {"arguments": kept(veil.shown(shown, self.context), "arguments")}
        before = memory.failures.get(place)  # it says how many attempts are left
        await self.commit(memory.said(place, "started", attempt, error=before, **said))

    async def _weigh_unknown(self, step: Step, tool: Tool, place: str) -> None:
        """A crash came between its call and its record: nobody knows what it did."""
        if tool.kind.records_itself:
            return
        what = step.on_unknown or ("retry" if tool.kind.keyed else "fail")
        if what == "ask":
            await self.waits.ask(place)
        elif what == "fail":
            raise Unknown(Fail("unknown", "a crash came between its call and its answer"))


def written(at: datetime | str) -> str:
    """As JSON has times."""
    return at if isinstance(at, str) else at.astimezone(UTC).isoformat().replace("+00:00", "Z")
