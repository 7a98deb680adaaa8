"""APScheduler, and what keeps it right when somebody sets this machine's clock.

It goes by the time of day. Only spans are given to it: how far the next instant is away, says the
database. When the time of day jumps, what it has planned would come too late by as much.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from apscheduler.schedulers.asyncio import AsyncIOScheduler

ON_TIME = {"coalesce": True, "max_instances": 1, "misfire_grace_time": None}
JUMP = 0.5
LAST = 8.0


class Clock:
    def __init__(self, woken: asyncio.Event, chores: Callable[[], Awaitable[int]]) -> None:
        logging.getLogger("apscheduler").setLevel(logging.ERROR)  # a slow chore isn't news
        self.woken = woken
        self.chores = chores
        self.busy = asyncio.Lock()
        self.stopping = False
        self.offset = time.time() - time.monotonic()
        self.jobs = AsyncIOScheduler(timezone=UTC, job_defaults=ON_TIME)
        self.jobs.add_job(
            self._clean, "interval", seconds=1, id="chores", next_run_time=datetime.now(UTC)
        )
        self.jobs.start()

    def ring(self, seconds: float) -> None:
        at = datetime.now(UTC) + timedelta(seconds=seconds)
        self.jobs.add_job(self._ring, "date", run_date=at, id="alarm", replace_existing=True)

    def keep(self) -> None:
        """Looks whether the time of day has jumped, and then starts the cadences anew."""
        offset = time.time() - time.monotonic()
        if abs(offset - self.offset) > JUMP:
            self.jobs.reschedule_job("chores", trigger="interval", seconds=1)
        self.offset = offset

    async def stop(self) -> None:
        """Lets the running chore end, if that takes no longer than a call may."""
        self.stopping = True
        with suppress(TimeoutError):
            await asyncio.wait_for(self.busy.acquire(), LAST)
        self.jobs.shutdown(wait=False)

    async def _ring(self) -> None:
        """A coroutine, because what isn't one is called in a thread."""
        self.woken.set()

    async def _clean(self) -> None:
        with suppress(asyncio.CancelledError):  # it stops: no error of this job
            async with self.busy:
                while not self.stopping and await self.chores():
                    pass
