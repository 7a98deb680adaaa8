"""Follows a run to its end: one line for each thing that happens to it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg

from .. import db
from ..errors import Unavailable, is_lost

FIRST, LONGEST = 0.05, 1.0
"""Seconds between looks: soon after something has happened, seldom while nothing does."""

OVERLAP = timedelta(seconds=10)
"""What was recorded before the last look may have been committed after it."""

UNSAID = 3.0
"""Seconds in which a run that nobody takes isn't worth a word."""

PATIENCE = 60.0
"""Seconds in which a lost database may come back."""

Tell = Callable[[str], None]
ENDED = {"succeeded", "failed", "canceled", "skipped"}


async def follow(url: str, tenant: str, run: UUID, tell: Tell | None) -> db.Row:
    """The run as it ended. Looks again, over a new connection, when one is lost."""
    watch = Watch(tenant, run, tell)
    lost_at: float | None = None
    while True:
        try:
            async with await db.connect(url, application="orc run") as connection:
                lost_at = None
                return await watch.until_it_ends(connection)
        except (psycopg.Error, Unavailable) as error:
            if not isinstance(error, Unavailable) and not is_lost(error):
                raise
            lost_at = lost_at or time.monotonic()
            if time.monotonic() - lost_at > PATIENCE:
                raise
            await asyncio.sleep(1)


class Watch:
    """What was seen of a run, so that nothing is told twice."""

    def __init__(self, tenant: str, run: UUID, tell: Tell | None) -> None:
        self.tenant, self.run, self.tell = tenant, run, tell
        self.since: datetime | None = None
        self.told: set[tuple[Any, ...]] = set()
        self.state = ""
        self.state_since = time.monotonic()
        self.why = ""

    async def until_it_ends(self, connection: db.Connection) -> db.Row:
        pause = FIRST
        while True:
            row = await db.call_one(
                connection, "follow_run", tenant=self.tenant, run=self.run, since=self.since
            )
            self.since = row["seen"] - OVERLAP
            happened = self.steps(row["steps"])
            happened |= await self.moved(connection, row["state"])
            if row["state"] in ENDED:
                return row
            pause = FIRST if happened else min(pause * 1.5, LONGEST)
            await asyncio.sleep(pause)

    def say(self, words: str) -> None:
        if self.tell:
            self.tell(f"{datetime.now():%H:%M:%S} {words}")

    def steps(self, steps: list[dict[str, Any]]) -> bool:
        new = [step for step in steps if _mark(step) not in self.told]
        for step in new:
            self.told.add(_mark(step))
            self.say(_line(step))
        return bool(new)

    async def moved(self, connection: db.Connection, state: str) -> bool:
        """A run that doesn't run is told with the reason, once for each."""
        is_new = state != self.state
        if is_new:
            self.state, self.state_since, self.why = state, time.monotonic(), ""
        is_stuck = state == "ready" and time.monotonic() - self.state_since > UNSAID
        if self.tell and (state in ("blocked", "waiting", "scheduled") or is_stuck):
            causes = await db.call(connection, "why", run=self.run, tenant=self.tenant)
            why = "; ".join(f"{cause['cause']}: {cause['clears']}" for cause in causes)
            if why != self.why:
                self.why = why
                self.say(f"run {state} ({why})")
        elif is_new:
            self.say(f"run {state}")
        return is_new


def _mark(step: dict[str, Any]) -> tuple[Any, ...]:
    return step["step"], step["epoch"], step["attempt"], step["state"]


def _line(step: dict[str, Any]) -> str:
    words = f"{step['step']} {step['state']}"
    if step["attempt"] > 1:
        words += f", attempt {step['attempt']}"
    if step["state"] in ("succeeded", "failed") and step["seconds"] is not None:
        words += f" after {step['seconds']:.1f} s"
    error = step["error"] if isinstance(step["error"], dict) else {}
    return words + (f": {error['message']}" if error.get("message") else "")
