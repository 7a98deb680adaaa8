"""What a worker has in hand: the runs that it executes, and what it has to say of them."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import msgspec

from .. import db
from ..config import Config
from ..secrets import Vault
from ..steps import Call, Context, Fail, Kind, Retry, find
from ..telemetry import log
from ..traces import Span
from . import tracing
from .course import Course
from .engine import Plan, Run, Settled, compile, run_pure, settled, unstorable
from .memory import NO_PAST, Memory, Past
from .news import Durable, News, Record, Said, packed
from .values import Desk
from .veil import veil_end, veil_record

MOST_PIPELINES = 10_000


class Counters(msgspec.Struct):
    """claimed = settled + stale + dropped + what is in hand now."""

    claimed: int = 0
    settled: int = 0
    stale: int = 0  # the lease of the run had ended
    dropped: int = 0  # the lease of the worker had ended


class Hands:
    def __init__(self, config: Config, kinds: dict[str, Kind]) -> None:
        self.config = config
        self.kinds = kinds
        self.counters = Counters()
        self.worker = ""  # whose lease it is
        self.plans: dict[tuple[str, str], Plan] = {}
        self.running: dict[str, tuple[Run, asyncio.Task[Settled]]] = {}
        self.courses: dict[str, Course] = {}
        self.given_up: list[Call] = []  # calls that didn't stop when they were told
        self.changed = asyncio.Event()  # an outcome, a free slot, a hint, a signal
        self.news = News(self.changed)
        self.desk = Desk(config)
        self.callback_key = b""  # asked for when a pipeline needs it
        self.closing = False  # nothing new begins
        self.releasing = False  # and nothing goes on

    @property
    def taken(self) -> int:
        """Slots that aren't free."""
        if self.given_up:
            self.given_up = [call for call in self.given_up if call.is_alive()]
        return len(self.running) + len(self.given_up)

    # Pipelines

    def unknown(self, runs: list[Run]) -> set[tuple[str, str]]:
        return {(run.tenant, run.pipeline) for run in runs} - self.plans.keys()

    def learn(self, unknown: set[tuple[str, str]], rows: list[db.Row]) -> None:
        if len(self.plans) > MOST_PIPELINES:
            self.plans.clear()
        missing = Plan(broken=Fail("configuration", "its pipeline is not stored"))
        self.plans.update(dict.fromkeys(unknown, missing))
        for row in rows:
            key = (row["tenant_id"], str(row["id"]))
            self.plans[key] = compile(
                row["document"], self.kinds, partial(find, config=self.config)
            )

    def taken_up(self, runs: list[Run]) -> list[Run]:
        """Runs that may have records: they were claimed before, and do more than compute."""
        return [
            run for run in runs if run.epoch > 1 and not self.plans[run.tenant, run.pipeline].pure
        ]

    def looking_back(self, runs: list[Run]) -> list[Run]:
        """Those of them for which it matters what was before."""
        return [
            run for run in runs if run.timeout or self.plans[run.tenant, run.pipeline].looks_back
        ]

    def signs(self, runs: list[Run]) -> bool:
        return any(self.plans[run.tenant, run.pipeline].callbacks for run in runs)

    # Runs

    def begin(self, runs: list[Run], rows: list[db.Row], begun: list[db.Row]) -> None:
        """The rows are the recorded steps of those that are taken up; and what was before."""
        self.counters.claimed += len(runs)
        records: dict[str, dict[str, Record]] = {}
        for row in rows:
            records.setdefault(str(row["run_id"]), {})[row["step_id"]] = row
        pasts = {str(row.pop("run_id")): Past(**row) for row in begun}
        for run in runs:
            if self.closing:
                self._settle(Settled(run.tenant, run.id, run.epoch, "released"))
            else:
                self._start(run, records.get(run.id, {}), pasts.get(run.id, NO_PAST))

    def give_back(self, held: list[db.Row]) -> None:
        """Runs that were handed out in an answer that never came."""
        self.counters.claimed += len(held)
        for row in held:
            self._settle(Settled(row["tenant"], str(row["run"]), row["epoch"], "released"))

    def _start(self, run: Run, records: dict[str, Record], past: Past) -> None:
        plan = self.plans[run.tenant, run.pipeline]
        context = Context(self.config, run.tenant, run.id, run.epoch, run.attempt, run.input, {})
        context.worker = self.worker
        span = tracing.begin(run)
        context.traceparent = span.traceparent
        around = tracing.around(run, span)
        if plan.pipeline.secrets:
            context.vault = Vault(self.config, run.tenant, plan.pipeline.secrets)
        if plan.pure:
            if around is None:
                self._run_pure(run, plan, context, span)
            else:
                around.run(self._run_pure, run, plan, context, span)
            return
        if run.id in self.running:  # under a lease that is stale, then
            self._lose(run.id)
        memory = Memory(run, records, partial(self._record, context), past)
        commit = partial(self._commit, context)
        course = Course(plan, context, memory, commit, self.callback_key, self.desk)
        self.courses[run.id] = course
        task = asyncio.create_task(course.follow(), context=around)
        self.running[run.id] = (run, task)
        task.add_done_callback(partial(self._ended, run, context, span), context=around)

    def _run_pure(self, run: Run, plan: Plan, context: Context, span: Span) -> None:
        said = run_pure(run, plan, context)
        self._settle(said, context)
        tracing.end(span, said)

    def _ended(self, run: Run, context: Context, span: Span, task: asyncio.Task[Settled]) -> None:
        """A callback, because a task that is canceled before it began runs no line of its own."""
        self.given_up += [call for call in context.calls if call.is_alive()]
        if run.id in self.courses and self.courses[run.id].run is run:
            del self.courses[run.id]
        if self.running.get(run.id, (None,))[0] is not run:
            tracing.lost(span)  # the lease was, meanwhile
            return
        del self.running[run.id]
        said = self._said(run, context, task)
        self._settle(said, context, is_pure=False)
        tracing.end(span, said)

    def _said(self, run: Run, context: Context, task: asyncio.Task[Settled]) -> Settled:
        if not task.cancelled():
            return task.result()
        if not task.cancelling():  # nobody told it
            return settled(run, Retry("runtime", "the step canceled itself"), context)
        outcome = "released" if self.releasing else "canceled"
        log(f"attempt_{outcome}", run_id=run.id, attempt=run.attempt)
        return Settled(run.tenant, run.id, run.epoch, outcome)

    def _settle(
        self,
        said: Settled,
        context: Context | None = None,
        is_pure: bool = True,
    ) -> None:
        place = {"tenant": said.tenant, "run": said.run, "epoch": said.epoch}
        lines: list[Any] = []
        if context is not None:
            lines = context.masks.value(context.lines)
            if context.vault:
                veil_end(said, context.masks)
        if not is_pure:
            said.output = packed(said.output)
        self.news.end(said, [{**place, **line} for line in lines])
        if context is not None and said.error is not None:
            log("attempt_failed", "warning", run_id=said.run, attempt=context.attempt, **said.error)

    # Records

    def _record(self, context: Context, record: Record, durable: Durable | None = None) -> None:
        """It travels with what is said next, and so do the lines that were written before it."""
        if context.lines:
            record["lines"] = context.lines.copy()
            context.lines.clear()
        if context.vault:
            veil_record(record, context.masks)
        if "output" in record:
            record = {**record, "output": packed(record["output"])}
        self.news.record(record, durable)

    async def _commit(self, context: Context, record: Record) -> None:
        """Returns when it is durable; until then nothing outside may be asked."""
        durable: Durable = asyncio.get_running_loop().create_future()
        self._record(context, record, durable)
        await durable

    def lose(self, runs: set[str], said: Said) -> None:
        """The leases under which it was said are stale: somebody else has them, or they ended."""
        for record in said.records if runs else ():
            id = record["run"]
            if id in runs and id in self.running and self.running[id][0].epoch == record["epoch"]:
                self._lose(id)

    def _lose(self, id: str) -> None:
        run, task = self.running.pop(id)
        self.counters.stale += 1
        task.cancel()
        log("run_lost", "warning", run_id=run.id, epoch=run.epoch)

    def refuse(self, id: str, error: Exception) -> None:
        """A record of it can't be stored, so it can't go on."""
        if id in self.running:
            run, task = self.running.pop(id)
            task.cancel()
            said = Settled(run.tenant, run.id, run.epoch, "failed")
            self._settle(unstorable(said, error))

    # Waits

    def listening(self) -> list[dict[str, str]]:
        """Waits of runs that don't park, as other branches are at work."""
        return [
            {"tenant": course.run.tenant, "run": id, "step": place}
            for id, course in self.courses.items()
            if course.waits.ears and course.watch.awake and self.news.is_silent(id)
            for place in course.waits.ears
        ]

    def tell(self, heard: list[db.Row]) -> None:
        for row in heard:
            course = self.courses.get(str(row["run_id"]))
            if course is not None:
                course.waits.tell(row["step_id"], row["wait"])

    # Ends

    def cancel(self, runs: list[str]) -> None:
        """Once each, however often it is told: a second time would end what runs at its end."""
        for id in runs:
            if id not in self.running or self.courses[id].memory.past.is_canceled:
                continue
            (run, task), course = self.running[id], self.courses[id]
            if run.epoch > 1 and not course.has_begun:  # but it had, before
                course.memory.past = msgspec.structs.replace(course.memory.past, is_canceled=True)
            elif not task.cancelling():
                task.cancel("canceled")

    def release(self) -> None:
        self.closing = self.releasing = True
        for _, task in self.running.values():
            task.cancel()
        self.changed.set()

    def drop(self) -> None:
        """The lease is gone: others have the work."""
        self.counters.dropped += len(self.running) + self.news.ends
        running, self.running = self.running, {}
        for _, task in running.values():
            task.cancel()
        self.news.clear()
