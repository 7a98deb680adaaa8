"""What a worker has in hand: the runs that it executes, and what it has to say of them."""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from typing import Any

import msgspec

from .. import db
from ..config import Config
from ..steps import Context, Fail, Kind, Retry
from ..telemetry import log
from .engine import Pipeline, Run, Settled, compile, run_any, run_pure, settled

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
        self.pipelines: dict[tuple[str, str], Pipeline] = {}
        self.running: dict[str, tuple[Run, asyncio.Task[Settled]]] = {}
        self.given_up: list[threading.Thread] = []  # calls that didn't stop when they were told
        self.outcomes: list[Settled] = []
        self.lines: list[dict[str, Any]] = []
        self.changed = asyncio.Event()  # an outcome, a free slot, a hint, a signal
        self.closing = False  # nothing new begins
        self.releasing = False  # and nothing goes on

    @property
    def taken(self) -> int:
        """Slots that aren't free."""
        if self.given_up:
            self.given_up = [thread for thread in self.given_up if thread.is_alive()]
        return len(self.running) + len(self.given_up)

    # Pipelines

    def unknown(self, runs: list[Run]) -> set[tuple[str, str]]:
        return {(run.tenant, run.pipeline) for run in runs} - self.pipelines.keys()

    def learn(self, unknown: set[tuple[str, str]], rows: list[db.Row]) -> None:
        if len(self.pipelines) > MOST_PIPELINES:
            self.pipelines.clear()
        missing = Pipeline(broken=Fail("configuration", "its pipeline is not stored"))
        self.pipelines.update(dict.fromkeys(unknown, missing))
        for row in rows:
            key = (row["tenant_id"], str(row["id"]))
            self.pipelines[key] = compile(row["document"], self.kinds, self.config)

    # Runs

    def begin(self, runs: list[Run]) -> None:
        self.counters.claimed += len(runs)
        for run in runs:
            if self.closing:
                self._settle(Settled(run.tenant, run.id, run.epoch, "released"))
            else:
                self._start(run, self.pipelines[run.tenant, run.pipeline])

    def give_back(self, held: list[db.Row]) -> None:
        """Runs that were handed out in an answer that never came."""
        self.counters.claimed += len(held)
        for row in held:
            self._settle(Settled(row["tenant"], str(row["run"]), row["epoch"], "released"))

    def _start(self, run: Run, pipeline: Pipeline) -> None:
        context = Context(self.config, run.tenant, run.id, run.epoch, run.attempt, run.input, {})
        if pipeline.pure:
            self._settle(run_pure(run, pipeline, context), context)
            return
        task = asyncio.create_task(run_any(run, pipeline, context))
        self.running[run.id] = (run, task)
        task.add_done_callback(partial(self._ended, run, context))

    def _ended(self, run: Run, context: Context, task: asyncio.Task[Settled]) -> None:
        """A callback, because a task that is canceled before it began runs no line of its own."""
        if context.thread is not None and context.thread.is_alive():
            self.given_up.append(context.thread)
        if self.running.get(run.id, (None,))[0] is not run:
            return  # the lease was lost meanwhile
        del self.running[run.id]
        self._settle(self._said(run, context, task), context)

    def _said(self, run: Run, context: Context, task: asyncio.Task[Settled]) -> Settled:
        if not task.cancelled():
            return task.result()
        if not task.cancelling():  # nobody told it
            return settled(run, Retry("runtime", "the step canceled itself"), context)
        outcome = "released" if self.releasing else "canceled"
        log(f"attempt_{outcome}", run_id=run.id, attempt=run.attempt)
        return Settled(run.tenant, run.id, run.epoch, outcome)

    def _settle(self, said: Settled, context: Context | None = None) -> None:
        self.outcomes.append(said)
        self.changed.set()
        if context is not None and context.lines:
            place = {"tenant": said.tenant, "run": said.run, "epoch": said.epoch}
            self.lines += [{**place, **line} for line in context.lines]
        if context is not None and said.error is not None:
            log("attempt_failed", "warning", run_id=said.run, attempt=context.attempt, **said.error)

    # Ends

    def cancel(self, runs: list[str]) -> None:
        for id in runs:
            if id in self.running:
                self.running[id][1].cancel()

    def release(self) -> None:
        self.closing = self.releasing = True
        for _, task in self.running.values():
            task.cancel()
        self.changed.set()

    def drop(self) -> None:
        """The lease is gone: others have the work."""
        self.counters.dropped += len(self.running) + len(self.outcomes)
        running, self.running = self.running, {}
        for _, task in running.values():
            task.cancel()
        self.outcomes.clear()
        self.lines.clear()
