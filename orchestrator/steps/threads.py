"""Threads that call what blocks: few for what is quick, one for each call that takes its time.

A thread for each call costs 0.1 ms and a fight for Python's lock. Here two take what is quick one
after the other; while calls wait and threads hang in theirs, there are twice as many every 5 ms.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

FEW = 2
TICK_SECONDS = 0.005
IDLE_SECONDS = 10.0


class Job:
    """A call, from its place in the queue to its answer."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.work: Callable[[], Any] | None = work
        self.loop = asyncio.get_running_loop()
        self.answer: asyncio.Future[Any] = self.loop.create_future()
        self.is_over = False

    def is_alive(self) -> bool:
        """Whether a thread is in it, or will be."""
        return not self.is_over

    def run(self) -> None:
        work, self.work = self.work, None  # what it knows of may know the job
        outcome = work() if work and not self.answer.cancelled() else None
        self.is_over = True
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self.loop.call_soon_threadsafe(self._give, outcome)

    def _give(self, outcome: Any) -> None:
        if not self.answer.done():
            self.answer.set_result(outcome)


class Threads:
    def __init__(self) -> None:
        self.queue: SimpleQueue[Job] = SimpleQueue()
        self.lock = threading.Lock()
        self.alive = self.idle = 0
        self.ended = 0  # calls, about: what depends on it is how many threads to start
        self.ended_before = 0
        self.ticks: asyncio.AbstractEventLoop | None = None  # the loop that looks after them

    def call(self, work: Callable[[], Any]) -> Job:
        """`work` mustn't raise: what went wrong is an answer, too."""
        job = Job(work)
        self.queue.put(job)
        if not self.idle and self.alive < FEW:
            self._start(1)
        if self.ticks is not job.loop:
            self.ticks = job.loop
            self.ended_before = self.ended
            job.loop.call_later(TICK_SECONDS, self._look)
        return job

    def _look(self) -> None:
        """While something waits: as many more as there are threads that hang."""
        waiting, ended = self.queue.qsize(), self.ended - self.ended_before
        if not waiting:
            self.ticks = None
            return
        self._start(min(waiting, max(0, self.alive - ended)))
        self.ended_before = self.ended
        asyncio.get_running_loop().call_later(TICK_SECONDS, self._look)

    def _start(self, count: int) -> None:
        for _ in range(count):
            with self.lock:
                self.alive += 1
            threading.Thread(target=self._work, name="call", daemon=True).start()

    def _work(self) -> None:
        while True:
            job = self._next()
            if job is not None:
                job.run()
                self.ended += 1
            elif self._may_end():
                return

    def _next(self) -> Job | None:
        with suppress(Empty):
            return self.queue.get_nowait()
        with self.lock:
            self.idle += 1
        try:
            return self.queue.get(timeout=IDLE_SECONDS)
        except Empty:
            return None
        finally:
            with self.lock:
                self.idle -= 1

    def _may_end(self) -> bool:
        """What is put after this look finds it no longer among the idle."""
        with self.lock:
            if self.alive <= FEW or not self.queue.empty():
                return False
            self.alive -= 1
            return True
