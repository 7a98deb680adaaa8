"""Keeps the house, at its cadences. Any number of schedulers may run: the verbs divide the work.

Every second: runs of silent workers go back, events meet the runs that wait for them,
low-water marks move, keys with free slots fill, children of ended runs end, ends are counted.
Every minute: partitions ahead of time, none behind its retention; what nobody needs is deleted.
What is urgent comes first, and one chore that fails doesn't keep the others from being done.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from ..db import Pool
from ..telemetry import log

EVERY_SECOND = (
    "release_expired_work", "meet_events", "fill_keys", "advance_lanes", "cancel_orphans",
    "tally_runs",
)  # fmt: skip
EVERY_MINUTE = ("purge",)
FULL = {"release_expired_work": 1000, "meet_events": 1000, "cancel_orphans": 1000, "purge": 10_000,
        "tally_runs": 10_000}  # fmt: skip
"""What a verb does at most in one call: then there's more, and the next turn comes at once."""

SILENT = {"advance_lanes", "tally_runs"}
"""There is always some of it to do."""

Chore = Callable[[], Awaitable[bool]]


class Housekeeping:
    def __init__(self) -> None:
        self.minute_at = -60.0

    async def once(self, pool: Pool) -> int:
        """What is due each second, and each minute; whether there's more to do at once."""
        chores: list[Chore] = [_chore(pool, verb) for verb in EVERY_SECOND]
        if time.monotonic() - self.minute_at >= 60:
            self.minute_at = time.monotonic()
            chores += minutely(pool)
        return await all_of(chores)


def minutely(pool: Pool) -> list[Chore]:
    return [lambda: _keep_partitions(pool), *(_chore(pool, verb) for verb in EVERY_MINUTE)]


async def _keep_partitions(pool: Pool) -> bool:
    rows = await pool.call("keep_partitions")
    for row in rows:
        log(f"partition_{row['action']}", table=row["table"], partition=row["partition"])
    return any(row["action"] != "busy" for row in rows)


def _chore(pool: Pool, verb: str) -> Chore:
    async def chore() -> bool:
        count: int = (await pool.call_one(verb))[verb]
        if count and verb not in SILENT:
            log(verb, count=count)
        return verb in FULL and count >= FULL[verb]

    return chore


async def all_of(chores: list[Chore]) -> int:
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
