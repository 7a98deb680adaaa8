"""Ticks: one call of the database each, and what Python computes between them."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Callable

import psycopg

from .. import db
from ..db import Pool, Row
from ..errors import Unavailable
from ..telemetry import log
from .planner import Answers, answer

AT_ONCE = 1000
"""Plans that one tick fires: a transaction of some 0.1 s. What is left comes with the next one."""

AT_LEAST = 8
"""What it comes down to when ticks fail, such as by taking too long."""

TAKEN = 0.1
"""A rest when something is due and nobody may take it: whoever has it will let it go."""


class Ticker:
    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self.most = AT_ONCE
        self.next_at: float | None = None
        self.hinted = False
        self.computing: asyncio.Task[Answers] | None = None
        self.meeting: asyncio.Task[None] | None = None
        self.wake: Callable[[], None] = lambda: None

    async def once(self) -> int:
        """One tick; whether another one has something to do."""
        hinted, self.hinted = self.hinted, False
        row = await self._tick()
        rest = row["rest"]
        self.next_at = None if rest is None else time.monotonic() + (rest if rest > 0 else TAKEN)
        if row["fired"]:
            log("tasks_fired", count=row["fired"])
        for failure in row["failed"] or ():
            log("tick_failed_in_part", "error", **failure)
        if row["short"] or row["undecided"]:
            work = asyncio.to_thread(answer, row["short"], row["undecided"])
            self.computing = asyncio.create_task(work)
            self.computing.add_done_callback(lambda _: self.wake())
        if hinted and (self.meeting is None or self.meeting.done()):
            self.meeting = asyncio.create_task(self._meet_events())
        return int(row["is_more"])

    async def _meet_events(self) -> None:
        """Beside the ticks, which it must not delay. What fails here, the chores do in a second."""
        try:
            await self.pool.call_one("meet_events")
        except (psycopg.Error, Unavailable) as error:
            log("meet_events_failed", "warning", error=str(error))

    async def _tick(self) -> Row:
        """Answers go along once: what is lost with a tick is asked again."""
        answers = self._answers()
        try:
            row = await self.pool.call_one(
                "tick",
                scheduler=self.name,
                most=self.most,
                plans=answers.plans or None,
                verdicts=answers.verdicts or None,
                asks=self.computing is None,
            )
        except Exception:
            self.most = max(AT_LEAST, self.most // 4)
            raise
        self.most = min(AT_ONCE, self.most * 2)
        return row

    def _answers(self) -> Answers:
        if self.computing is None or not self.computing.done():
            return Answers()
        computed, self.computing = self.computing, None
        return computed.result()

    async def has_answers(self) -> bool:
        """Whether there are any, when what is being computed has been."""
        return self.computing is not None and (await self.computing).any

    def rest(self) -> float | None:
        """Seconds until the next instant."""
        return None if self.next_at is None else max(0.0, self.next_at - time.monotonic())

    async def hints(self, url: str) -> AsyncIterator[None]:
        """Changes of tasks, and events that somebody listens to."""
        async for note in db.listen(url, ["orc_tasks", "orc_events"]):
            self.hinted = self.hinted or note is None or note.channel == "orc_events"
            yield
