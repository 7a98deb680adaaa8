"""Keeps the house, at its cadences. Any number of schedulers may run: the verbs divide the work.

Every second: runs of silent workers go back, events meet the runs that wait for them,
low-water marks move, keys with free slots fill, children of ended runs end.
Every minute: partitions ahead of time, none behind its retention; what nobody needs is deleted.
What is urgent comes first, and one chore that fails doesn't keep the others from being done.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

from . import db, loop
from .config import Config
from .db import Pool
from .telemetry import log

EVERY_SECOND = (
    "release_expired_work", "meet_events", "fill_keys", "advance_lanes", "cancel_orphans",
)  # fmt: skip
EVERY_MINUTE = ("purge",)
FULL = {"release_expired_work": 1000, "meet_events": 1000, "cancel_orphans": 1000, "purge": 10_000}
"""What a verb does at most in one call: then there's more, and the next turn comes at once."""


async def main(config: Config, health_port: int | None = None) -> None:
    house = Housekeeping()
    wakes = None if config.database_pooler else partial(house.hints, config.database_url)
    await loop.run(config, "scheduler", house.once, health_port=health_port, wakes=wakes)


class Housekeeping:
    def __init__(self) -> None:
        self.minute_at = self.second_at = -60.0
        self.hinted = False

    async def hints(self, url: str) -> AsyncIterator[None]:
        """Events that runs wait for, as they are published."""
        async for _ in db.listen(url, ["orc_events"]):
            self.hinted = True
            yield

    async def once(self, pool: Pool) -> int:
        """Whether there's more to do at once."""
        now, hinted, self.hinted = time.monotonic(), self.hinted, False
        if hinted and now - self.second_at < 1:
            return await _all([_chore(pool, "meet_events")])
        self.second_at = now
        chores: list[Callable[[], Awaitable[bool]]] = [_chore(pool, v) for v in EVERY_SECOND]
        if time.monotonic() - self.minute_at >= 60:
            self.minute_at = time.monotonic()
            chores += [lambda: _keep_partitions(pool), *(_chore(pool, v) for v in EVERY_MINUTE)]
        return await _all(chores)


async def once(pool: Pool) -> int:
    """What is due every minute."""
    return await _all([lambda: _keep_partitions(pool), *(_chore(pool, v) for v in EVERY_MINUTE)])


async def _all(chores: list[Callable[[], Awaitable[bool]]]) -> int:
    failed: Exception | None = None
    more = 0
    for chore in chores:
        try:
            more += await chore()
        except Exception as error:
            failed = failed or error
    if failed is not None:
        raise failed
    return more


async def _keep_partitions(pool: Pool) -> bool:
    rows = await pool.call("keep_partitions")
    for row in rows:
        log(f"partition_{row['action']}", table=row["table"], partition=row["partition"])
    return any(row["action"] != "busy" for row in rows)


def _chore(pool: Pool, verb: str) -> Callable[[], Awaitable[bool]]:
    async def chore() -> bool:
        count: int = (await pool.call_one(verb))[verb]
        if count and verb != "advance_lanes":
            log(verb, count=count)
        return verb in FULL and count >= FULL[verb]

    return chore
