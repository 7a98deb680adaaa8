"""How late tasks start: from the instant of a rule to the start of its run, by Postgres' clock.

One scheduler process and one worker process, both idle before. The tasks are there, with their
instants; the floor is bare SQL that inserts and claims as many rows, or picks one up at a NOTIFY.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta

from . import floor, sql
from .figure import Figure, latency
from .moments import floor_picked_up
from .place import Place, connect, rows
from .stage import PIPELINE, Stage, jsonb, pids, stage, until, workers

AT_ONCE = 1000
SINGLES = 60
LEAD = timedelta(seconds=10)
"""A thousand tasks must have been made by then."""


async def fire_1000(place: Place) -> Figure:
    """A thousand tasks are due at the same second. `all_within`: the last one has started."""
    count = place.scaled(AT_ONCE, least=20)
    late: list[float] = []
    async with stage(place) as on, workers(on.url, 1) as crew, scheduler(on.url):
        await until(on.conn, sql.REGISTERED, pids(crew), fits=lambda r: r["n"] == 1)
        for _ in range(place.repetitions):
            await _due(on, (await _now(on) + LEAD).replace(microsecond=0), count)
            late += await _lateness(on)
        bare = [await _bare(on.url, count) for _ in range(place.repetitions)]
    return latency(late, bare, all_within=round(max(late), 3), at_once=count)


async def fire_single(place: Place) -> Figure:
    """One task at a time, at any moment of a second."""
    count = place.scaled(SINGLES, least=5)
    async with stage(place) as on, workers(on.url, 1) as crew, scheduler(on.url):
        await until(on.conn, sql.REGISTERED, pids(crew), fits=lambda r: r["n"] == 1)
        start = await _now(on) + timedelta(seconds=2)
        for number in range(count):
            await _due(on, start + timedelta(seconds=0.237 * number), 1)
        late = await _lateness(on)
        bare = await floor_picked_up(on.url, count)
    return latency(late, bare)


async def _now(on: Stage) -> datetime:
    now: datetime = (await rows(on.conn, "select orchestrator.now() as now"))[0]["now"]
    return now


async def _due(on: Stage, at: datetime, count: int) -> None:
    await rows(on.conn, sql.TASKS, at.isoformat(), jsonb(PIPELINE), at, count)


async def _lateness(on: Stage) -> list[float]:
    """Milliseconds, of all that have started since it was asked last."""
    await until(on.conn, sql.NOTHING_IS_PLANNED, fits=lambda r: bool(r["yes"]))
    late = [float(row["ms"]) for row in await rows(on.conn, sql.LATENESS)]
    if min(late) < 0:
        raise RuntimeError(f"a run started {-min(late):.1f} ms before its instant")
    await on.conn.execute("delete from orchestrator.run")
    return late


@asynccontextmanager
async def scheduler(url: str) -> AsyncIterator[Process]:
    command = ["-P", "-m", "orchestrator.cli", "scheduler"]
    environment = {**os.environ, "DATABASE_URL": url, "LOG_LEVEL": "error", "LOG_FORMAT": "json"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, env=environment, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL
    )
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _bare(url: str, count: int) -> float:
    """Milliseconds in which bare SQL makes and claims so many rows."""
    async with await connect(url) as conn:
        await conn.execute(sql.FLOOR_SETTINGS.encode())
        began = time.perf_counter()
        await floor.fill(url, count)
        await rows(conn, sql.FLOOR_CLAIM, count)
        return (time.perf_counter() - began) * 1000
