"""Turns rules and events into due work, and keeps the house. Any number of schedulers may run.

A tick is one call: what is due is fired by SQL, and what Python is to compute comes back with it:
further instants of rules, conditions of events. The answers go along with the next tick. Between
two ticks a scheduler rests until the next instant, a notification, or a second.

APScheduler is the clock: it wakes the ticks, and runs the chores at their cadences.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

from apscheduler.schedulers.asyncio import AsyncIOScheduler

from .. import db
from ..config import Config
from ..db import Pool
from ..loop import Loop
from ..telemetry import log
from .house import Housekeeping, all_of, minutely
from .planner import Answers, answer

__all__ = ["Housekeeping", "Ticker", "main", "once"]

AT_ONCE = 1000
"""Plans that one tick fires: a transaction of some 0.1 s. What is left comes with the next one."""

ON_TIME = {"coalesce": True, "max_instances": 1, "misfire_grace_time": None}


class Ticker:
    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self.answers = Answers()
        self.rest: float | None = None
        self.hinted = False

    async def once(self) -> int:
        """One tick; whether another one has something to do."""
        hinted, self.hinted = self.hinted, False
        answers, self.answers = self.answers, Answers()
        row = await self.pool.call_one(
            "tick",
            scheduler=self.name,
            most=AT_ONCE,
            plans=answers.plans or None,
            verdicts=answers.verdicts or None,
        )
        if row["fired"]:
            log("tasks_fired", count=row["fired"])
        if row["short"] or row["undecided"]:
            self.answers = await asyncio.to_thread(answer, row["short"], row["undecided"])
        self.rest = row["rest"]
        if hinted:
            await self.pool.call_one("meet_events")
        return int(row["is_more"] or self.answers.any)

    async def hints(self, url: str) -> AsyncIterator[None]:
        """Changes of tasks, and events that somebody listens to."""
        async for note in db.listen(url, ["orc_tasks", "orc_events"]):
            self.hinted = self.hinted or note is None or note.channel == "orc_events"
            yield


async def main(config: Config, health_port: int | None = None) -> None:
    async with Pool(config, role="orc_worker", application="orchestrator scheduler") as pool:
        log("started")
        ticker, house, url = Ticker(pool), Housekeeping(), config.database_url
        wakes = None if config.database_pooler else lambda: ticker.hints(url)
        clock = AsyncIOScheduler(timezone=UTC, job_defaults=ON_TIME)
        turns = Loop(
            lambda: _tick(ticker, clock, turns.woken), health_port=health_port, wakes=wakes
        )
        chores = Loop(lambda: house.once(pool))
        now = datetime.now(UTC)
        clock.add_job(chores.turn, "interval", seconds=1, id="chores", next_run_time=now)
        clock.start()
        try:
            await turns.run()
        finally:
            clock.shutdown(wait=False)


async def _tick(ticker: Ticker, clock: AsyncIOScheduler, woken: asyncio.Event) -> int:
    """And an alarm for the next instant: by the database's clock it is so many seconds away."""
    did = await ticker.once()
    if not did and ticker.rest is not None and ticker.rest < 2:
        at = datetime.now(UTC) + timedelta(seconds=max(0.0, ticker.rest))
        clock.add_job(woken.set, "date", run_date=at, id="alarm", replace_existing=True)
    return did


async def once(pool: Pool) -> int:
    """What is due now: ticks until nothing is left, and the chores of each minute."""
    ticker = Ticker(pool)
    did = 0
    while await ticker.once():
        did += 1
    return did + await all_of(minutely(pool))
