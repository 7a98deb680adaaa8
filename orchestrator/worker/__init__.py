"""Claims due work, runs it, and says what became of it.

The worker talks to Postgres over a few connections, its lines. What is said and heard is one call:
the outcomes that are finished, and runs for the slots that are free. While one line waits for its
answer, the runs of another are executed: Python and Postgres overlap. The first line does all of it
when there's little to do; the others join in when it comes back with its arms full.

A lease that is lost is final: the work is dropped, and the worker registers anew. An answer that is
lost is asked for again: settling twice is the same as once. If it may have handed out runs, no more
is claimed until the database has said what this worker holds; what it never heard of goes back.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import time
from contextlib import AsyncExitStack, suppress
from typing import Any

import msgspec

from .. import db, metrics, traces
from ..config import Config
from ..errors import Gone
from ..loop import answer_health
from ..steps import Kind, close, survey
from ..steps import kinds as known_kinds
from ..telemetry import log
from .engine import Run, unstorable
from .hands import Hands
from .lease import Lease
from .line import UNSAYABLE, Line
from .news import Said

TALKERS = 2
BATCH = 500
EAGER_SECONDS = 0.05
"""How long an idle worker looks every few milliseconds, before it asks for hints."""

ASKING_SECONDS = 1.0
"""How often it asks what waits have met, of runs whose other branches are at work."""

EMPTY_PAGES = 16
"""A claim looks at 64 tenants: so many looks in a row find nothing before the worker rests."""

KNOWN = len(Run.__struct_fields__)
"""A library that is a release ahead may say more of a run."""

LAST_WORDS_SECONDS = 2.0
"""How long a worker that has given its work back may need to say so."""


class Options(msgspec.Struct, kw_only=True):
    queues: tuple[str, ...] = ("default",)
    slots: int = 100
    once: bool = False
    drain_timeout: float = 30.0
    lease: float = 30.0
    poll: float = 0.2
    hints: bool = True


class Worker:
    """One process. `run` returns when it has drained."""

    def __init__(
        self, config: Config, options: Options, kinds: dict[str, Kind] | None = None
    ) -> None:
        self.config = config
        self.options = options
        self.hands = Hands(config, kinds or known_kinds())
        self.counters = self.hands.counters
        self.changed = self.hands.changed
        self.id = ""  # none between two leases
        self.lease: Lease | None = None
        self.talkers: list[Line] = []
        self.asked_for = 0  # slots that a claim under way may fill
        self.asked_at = 0.0  # for what waits have met
        self.talking = 0  # exchanges under way
        self.in_doubt = False
        self.next_tenant: str | None = None
        self.empty_pages = 0
        self.plenty = asyncio.Event()  # more than one talker can carry
        self.lost = asyncio.Event()
        self.hopeless = asyncio.Event()  # nobody hears the farewell
        self.told_idle = False
        self.heard_at = self.worked_at = time.monotonic()
        self.full_turns = 0

    # Life

    @property
    def alive(self) -> bool:
        """Whether it has heard from the database lately."""
        heard_at = max(self.heard_at, self.lease.renewed_at if self.lease else 0)
        return time.monotonic() - heard_at < 2 * self.options.lease

    @property
    def draining(self) -> bool:
        return self.hands.closing

    @property
    def ready(self) -> bool:
        return self.alive and bool(self.id) and not self.hands.closing and not self.lost.is_set()

    def figures(self) -> tuple[bytes, str]:
        counts = msgspec.structs.asdict(self.counters)
        return metrics.told("", *metrics.of_worker(self.options.slots, self.hands.taken, counts))

    async def run(self) -> None:
        """Until it has drained, or until there's no hope that it can."""
        parts = [asyncio.create_task(self._live()), asyncio.create_task(self.hopeless.wait())]
        if self.options.hints:
            parts.append(asyncio.create_task(self._listen()))
        if not self.options.once:
            parts.append(asyncio.create_task(survey.keep(self.config)))
        try:
            await asyncio.wait(parts[:2], return_when=asyncio.FIRST_COMPLETED)
            if self.hopeless.is_set():
                self._hang_up()
        finally:
            for part in parts:
                part.cancel()
            await asyncio.wait(parts, timeout=LAST_WORDS_SECONDS / 2)
            await self.hands.desk.close()
            await close()
        if not self.hopeless.is_set():
            parts[0].result()
        log("stopped", **msgspec.structs.asdict(self.counters))

    async def _live(self) -> None:
        """One lease after the other; a second one only after the first was lost."""
        while not self.hands.closing and not await self._serve():
            self.id = ""

    async def _serve(self) -> bool:
        """A lease from register to farewell. False when it was lost."""
        async with AsyncExitStack() as stack:
            self.talkers = [Line(self.config) for _ in range(TALKERS)]
            for line in self.talkers:
                stack.push_async_callback(line.close)
            lease = await self._register(self.talkers[0])
            stack.callback(lease.stop)
            if not await self._converse(self.talkers):
                return False
            lease.stop()
            await self.talkers[0].call("end_worker", worker=self.id)
            return True

    async def _converse(self, lines: list[Line]) -> bool:
        """Until the lead has nothing more to do. False when the lease was lost."""
        lead = asyncio.create_task(self._lead(lines[0]))
        helps = [asyncio.create_task(self._help(line)) for line in lines[1:]]
        tasks = [lead, *helps, asyncio.create_task(self._watch())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            errors = [task.exception() for task in tasks if task.done()]
            lost = self.lost.is_set() or any(isinstance(error, Gone) for error in errors)
            if lost:
                self._drop_everything()
                self._hang_up()
                await asyncio.wait(tasks, timeout=0.2, return_when=asyncio.ALL_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=LAST_WORDS_SECONDS)
        for error in errors:
            if error is not None and not isinstance(error, Gone):
                raise error
        return not lost

    def _hang_up(self) -> None:
        for line in self.talkers:
            line.hang_up()

    async def _watch(self) -> None:
        """Ends when the lease does, even if its thread hangs."""
        assert self.lease is not None
        while not self.lease.is_over:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.lost.wait(), self.lease.seconds / 4)
                return
        self.lost.set()

    async def _register(self, line: Line) -> Lease:
        options = self.options
        asked_at = time.monotonic()
        row = await line.call_one(
            "register_worker",
            queues=list(options.queues),
            slots=options.slots,
            lease=f"{options.lease} seconds",
            name=f"{socket.gethostname()}:{os.getpid()}",
        )
        self.id = self.hands.worker = str(row["worker"])
        self.lost = lost = asyncio.Event()
        self.heard_at = time.monotonic()
        loop = asyncio.get_running_loop()
        self.lease = Lease(
            self.config,
            self.id,
            options.lease,
            since=asked_at,
            cancel=lambda runs: loop.call_soon_threadsafe(self.hands.cancel, runs),
            lost=lambda: loop.call_soon_threadsafe(lost.set),
        )
        self.lease.start()
        log("registered", worker_id=self.id, queues=options.queues, slots=options.slots)
        return self.lease

    def drain(self) -> None:
        """First signal: no more claims, and what runs has its grace. Second: all goes back."""
        if self.hands.closing:
            self.release()
            return
        log("draining", grace_seconds=self.options.drain_timeout, running=len(self.hands.running))
        self.hands.closing = True
        self.changed.set()
        if not self.id:  # it has nothing to give back
            self.hopeless.set()
        asyncio.get_running_loop().call_later(self.options.drain_timeout, self.release)

    def release(self) -> None:
        """Gives back what still runs, without losing its attempt. Ends in any case."""
        if self.hands.releasing:
            return
        log(
            "releasing",
            "warning" if self.hands.running else "info",
            running=len(self.hands.running),
        )
        self.hands.release()
        asyncio.get_running_loop().call_later(LAST_WORDS_SECONDS, self.hopeless.set)

    def _drop_everything(self) -> None:
        """The lease is gone: others have the work."""
        log("work_dropped", "error", worker_id=self.id, running=len(self.hands.running))
        self.hands.drop()
        self.in_doubt = self.told_idle = False

    async def _listen(self) -> None:
        async for note in db.listen(self.config.database_url, ["orc_work", "orc_cancel"]):
            if note is not None and note.channel == "orc_cancel":
                self.hands.cancel([note.payload])
            elif note is None or note.payload in self.options.queues:
                self.changed.set()

    # Talking

    @property
    def _busy(self) -> bool:
        return bool(self.hands.running or self.hands.news or self.talking)

    @property
    def _over(self) -> bool:
        return self.hands.closing and not self._busy

    async def _lead(self, line: Line) -> None:
        """Until everything is said and done. With `once`, that is when nothing more is due."""
        while True:
            self.changed.clear()
            if self._over:
                return
            if self.in_doubt and not self.talking:
                await self._reconcile(line)
            await self._ask(line)
            want, found = self._want(), False
            if self.hands.news or want:
                found = await self._exchange(line, want)
            if self.options.once and want and not found and not self._busy and not self.in_doubt:
                return
            if not (found or self.hands.news or self._over):
                await self._rest(line)

    async def _ask(self, line: Line) -> None:
        if time.monotonic() - self.asked_at < ASKING_SECONDS:
            return
        self.asked_at = time.monotonic()
        if wanted := self.hands.listening():
            self.hands.tell(await line.call("heard_waits", wanted=wanted))

    async def _help(self, line: Line) -> None:
        while True:
            await self.plenty.wait()
            want = self._want()
            if not want or not await self._exchange(line, want):
                self.plenty.clear()
            self.changed.set()

    def _want(self) -> int:
        if self.hands.closing or self.in_doubt:
            return 0
        free = self.options.slots - self.hands.taken - self.asked_for
        return max(0, min(BATCH, -(-self.options.slots // TALKERS), free))

    async def _exchange(self, line: Line, want: int) -> bool:
        """Says what is done, hears what to do. Whether there was work, or may be some."""
        self.asked_for += want
        self.talking += 1
        try:
            reply = await self._say(line, want)
            runs = [Run(*row[:KNOWN]) for row in reply["runs"] or ()]
            if runs:
                await self._begin(line, runs)
        finally:
            self.asked_for -= want
            self.talking -= 1
        if want:
            self._pace(len(runs), want)
        self.next_tenant = reply["next_tenant"]
        return bool(runs) or (self.next_tenant is not None and self.empty_pages < EMPTY_PAGES)

    async def _say(self, line: Line, want: int) -> db.Row:
        said = self.hands.news.take()
        try:
            try:
                reply = await line.exchange(self.id, said, want, self.next_tenant)
            except UNSAYABLE:
                reply = await self._say_singly(line, said, want)
        except BaseException:
            self.counters.dropped += len(said.outcomes)
            raise
        self.heard_at = time.monotonic()
        self.in_doubt, line.in_doubt = self.in_doubt or line.in_doubt, False
        self._count(len(said.outcomes), reply["stale"])
        lost = {str(run) for run in reply["lost"] or ()}
        self.hands.lose(lost, said)
        self.hands.news.heard(said, lost)
        return reply

    async def _say_singly(self, line: Line, said: Said, want: int) -> db.Row:
        """One of them can't be stored: it fails, and the others are what they are."""
        stale: list[Any] = []
        lost: list[Any] = []
        for run in said.runs:
            its = said.of(run)
            try:
                reply = await line.exchange(self.id, its, 0, None)
            except UNSAYABLE as error:
                log("outcome_unstorable", "warning", run_id=run, error=str(error)[:500])
                self.hands.refuse(run, error)
                ends = [unstorable(end, error) for end in its.outcomes]
                reply = await line.exchange(self.id, Said(ends), 0, None)
            stale += reply["stale"] or ()
            lost += reply["lost"] or ()
        reply = await line.exchange(self.id, Said(), want, self.next_tenant)
        return {**reply, "stale": stale, "lost": lost}

    def _count(self, said: int, stale: list[Any] | None) -> None:
        self.counters.settled += said
        for run in stale or ():
            self.counters.settled -= 1
            self.counters.stale += 1
            log("outcome_stale", "warning", run_id=str(run), worker_id=self.id)

    async def _reconcile(self, line: Line) -> None:
        """Gives back what was handed out in an answer that never came."""
        known = {*self.hands.running, *self.hands.news.runs}
        held = await line.call("held_work", worker=self.id)
        lost = [row for row in held if str(row["run"]) not in known]
        log("answer_lost", "warning", worker_id=self.id, given_back=len(lost))
        self.hands.give_back(lost)
        self.in_doubt = False

    async def _begin(self, line: Line, runs: list[Run]) -> None:
        if self.told_idle and self.full_turns > 3:
            self.told_idle = False
            await line.call("set_idle", worker=self.id, is_idle=False)
        while unknown := self.hands.unknown(runs):
            wanted = [{"tenant": tenant, "id": id} for tenant, id in unknown]
            self.hands.learn(unknown, await line.call("pipelines", wanted=wanted))
        if not self.hands.callback_key and self.hands.signs(runs):
            self.hands.callback_key = bytes((await line.call_one("callback_key"))["callback_key"])
        rows: list[db.Row] = []
        begun: list[db.Row] = []
        if again := self.hands.taken_up(runs):
            rows = await line.call("recorded_steps", wanted=named(again))
        if old := self.hands.looking_back(again):
            begun = await line.call("begun_work", wanted=named(old))
        self.hands.begin(runs, rows, begun)

    def _pace(self, found: int, want: int) -> None:
        if found:
            self.worked_at = time.monotonic()
            self.full_turns += 1
            self.empty_pages = 0
        else:
            self.full_turns = 0
            self.empty_pages = self.empty_pages + 1 if self.empty_pages < EMPTY_PAGES else 1
        if found == want:
            self.plenty.set()

    async def _rest(self, line: Line) -> None:
        """Eager at first; then it asks for hints, looks once more, and looks seldom."""
        pause = self.options.poll * random.uniform(0.7, 1.0)
        if self._want():
            idle_for = time.monotonic() - self.worked_at
            if not self.hands.running and idle_for < EAGER_SECONDS:
                pause = 0.002
            elif self.options.hints and not self.told_idle:
                self.told_idle = True
                await line.call("set_idle", worker=self.id, is_idle=True)
                return
        with suppress(TimeoutError):
            await asyncio.wait_for(self.changed.wait(), pause)


def named(runs: list[Run]) -> list[dict[str, str]]:
    return [{"tenant": run.tenant, "run": run.id} for run in runs]


async def main(
    config: Config, options: Options | None = None, health_port: int | None = None
) -> None:
    worker = Worker(config, options or Options())
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, worker.drain)
    traces.setup(config, "worker")
    log("started")
    async with answer_health(
        health_port, lambda: worker.alive, lambda: worker.ready, worker.figures
    ):
        await worker.run()
    await traces.close()


async def once(config: Config, options: Options | None = None) -> int:
    """Runs what is due; how many runs it claimed."""
    options = msgspec.structs.replace(options or Options(), once=True)
    worker = Worker(config, options)
    await worker.run()
    return worker.counters.claimed
