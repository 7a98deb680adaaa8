"""What tenants are to each other: the wait behind a million rows, the price of a thousand."""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import Any

from .. import db
from . import sql
from .drains import MILLION, RUNS
from .figure import Figure, latency, rate
from .floor import drain
from .place import Place, rows
from .stage import PIPELINE, TENANT, Stage, jsonb, pids, stage, until, workers

TEN = 10
TENANTS = 1000


async def fairness(place: Place) -> Figure:
    """From the commit of ten runs to the start of each, while a worker drains another tenant's
    million at full speed. The floor is the same ten with an idle worker."""
    count = place.scaled(40, least=3)
    async with stage(place) as on:
        async with workers(on.url, 1) as crew:
            await until(on.conn, sql.REGISTERED, pids(crew), fits=lambda r: r["n"] == 1)
            alone = await _waits(on, count)
        await on.insert(sql.BACKLOG, place.scaled(MILLION, least=2000))
        async with workers(on.url, 1) as crew:
            began = sql.HAS_FINISHED, 1000
            await until(on.conn, *began, fits=lambda r: bool(r["yes"]))
            beside = await _waits(on, count)
            left = (await rows(on.conn, sql.LEFT, TENANT))[0]["n"]
    if not left:
        raise RuntimeError("the million ended before the tens did: nothing was measured")
    return latency(beside, alone, left_of_the_million=left)


async def _waits(on: Stage, count: int) -> list[float]:
    """Milliseconds, by this machine's clock, which the server reads, too."""
    waits: list[float] = []
    for _ in range(count):
        ten = await _enqueue(on, "few", TEN)
        sent = time.time()
        await until(on.conn, sql.ENDED, ten, fits=lambda r: r["n"] == TEN)
        started = await rows(on.conn, sql.STARTED, ten)
        waits += [max(0.0, (row["at"] - sent) * 1000) for row in started]
        await asyncio.sleep(0.05)
    return waits


async def _enqueue(on: Stage, tenant: str, count: int) -> list[str]:
    items: list[dict[str, Any]] = [{}] * count
    made = await db.call(
        on.conn, "enqueue_many", tenant=tenant, items=items, pipeline=jsonb(PIPELINE)
    )
    return [str(row["run_id"]) for row in made]


async def tenants_1000(place: Place) -> Figure:
    """The drain of as many runs as one tenant has, of a thousand; `of_one` is beside that one."""
    each = place.scaled(RUNS, least=TENANTS) // TENANTS
    own, single, bare = [], [], []
    for _ in range(place.repetitions):
        async with stage(place) as on:
            for number in range(TENANTS):
                await _enqueue(on, f"tenant-{number}", each)
            own.append(await on.work_off())
        async with stage(place) as on:
            await on.fill(TENANTS * each)
            single.append(await on.work_off())
        async with place.database() as url:
            bare.append(await drain(url, TENANTS * each, 1))
    ratios = [many / one for many, one in zip(own, single, strict=True)]
    beside = {
        "one": round(statistics.median(single)),
        "of_one": round(statistics.median(ratios), 3),
    }
    return rate("runs/s", own, bare, runs=TENANTS * each, **beside)
