"""How long moments are: from a commit to the start of the run, and one claim."""

from __future__ import annotations

import asyncio
import random
import time
from asyncio.subprocess import Process
from collections.abc import Awaitable, Callable

from .. import db
from . import floor, sql
from .enqueues import enqueue
from .figure import Figure, latency, spread
from .place import Place, connect, rows
from .stage import Stage, pids, stage, until, workers

BATCH = 100


# Pick-up


async def pickup(place: Place) -> Figure:
    """From the sending of the commit to `started_at`, by this machine's clock, which the server
    reads, too. Enqueues come 20 to 60 ms apart; `after_rest`, 150 to 250 ms. The floor is a
    NOTIFY in the same commit and a claim by the session that listens. `no_hints`: the worker asks
    once in each poll interval, 0.2 s."""
    count = place.scaled(300, least=20)
    async with stage(place) as on:
        async with workers(on.url, 1) as crew:
            await _rests(on, crew)
            busy = await _picked_up(on, count, 0.02, 0.06)
            rested = await _picked_up(on, place.scaled(60, least=5), 0.15, 0.25)
            bare = await floor_picked_up(on.url, count)
        async with workers(on.url, 1, "--no-hints") as crew:
            await _rests(on, crew)
            polled = await _picked_up(on, place.scaled(60, least=5), 0.1, 0.4)
    return latency(busy, bare, after_rest=spread(rested), no_hints=spread(polled))


async def _rests(on: Stage, crew: list[Process]) -> None:
    await until(on.conn, sql.REGISTERED, pids(crew), fits=lambda r: r["n"] == 1)
    await asyncio.sleep(0.5)


async def _picked_up(on: Stage, count: int, shortest: float, longest: float) -> list[float]:
    ids: list[str] = []

    async def one() -> None:
        ids.append(str((await enqueue(on.conn))["run_id"]))

    sent = await _sent(on.conn, count, shortest, longest, one)
    await until(on.conn, sql.IS_EMPTY, fits=lambda r: bool(r["yes"]))
    started = [row["at"] for row in await rows(on.conn, sql.STARTED, ids)]
    return [(at - when) * 1000 for when, at in zip(sent, started, strict=True)]


async def _sent(
    conn: db.Connection,
    count: int,
    shortest: float,
    longest: float,
    work: Callable[[], Awaitable[None]],
) -> list[float]:
    """The times at which the commits of so many transactions were sent."""
    sent = []
    for _ in range(count):
        await asyncio.sleep(random.uniform(shortest, longest))
        async with conn.transaction():
            await work()
            sent.append(time.time())
    return sent


async def floor_picked_up(url: str, count: int) -> list[float]:
    async with floor.client("pickup", url), await connect(url) as conn:

        async def one() -> None:
            await rows(conn, sql.FLOOR_INSERT)
            await rows(conn, sql.NOTIFY)

        sent = await _sent(conn, count, 0.02, 0.06, one)
        await until(conn, sql.FLOOR_IS_EMPTY, fits=lambda r: bool(r["yes"]))
        started = [row["at"] for row in await rows(conn, sql.FLOOR_STARTED)]
        return [(at - when) * 1000 for when, at in zip(sent, started, strict=True)]


# Claims


async def blocked_key(place: Place) -> Figure:
    """Claims of 100 runs with 200,000 in front that a full key blocks; `free`: without them."""
    count = place.scaled(200, least=20)
    own, free = [], []
    for _ in range(place.repetitions):
        async with stage(place) as on:
            await on.fill((count + WARM_UP) * BATCH)
            free += await claims(on, count)
        async with stage(place) as on:
            await _saturate(on)
            await on.insert(sql.BLOCKED, place.scaled(200_000, least=1000))
            await on.fill((count + WARM_UP) * BATCH)
            own += await claims(on, count)
            bare = await _floor_claims(on.url, count)
    without = spread(free)
    figure = latency(own, bare, free=without)
    figure.extra["of_free"] = round(figure.value / without["p50"], 3)
    figure.repetitions = place.repetitions
    return figure


WARM_UP = 6
"""Claims before the ones that count: a session's plans are made in its first few."""


async def _saturate(on: Stage) -> None:
    """One run holds the only slot of the key."""
    await enqueue(on.conn, concurrency_key="saturated", concurrency_limit=1)
    worker = await _worker(on)
    await db.call(on.conn, "claim_work", worker=worker, want=1)


async def _worker(on: Stage) -> str:
    made = await db.call_one(
        on.conn, "register_worker", queues=["default"], slots=BATCH, lease="1 hour"
    )
    return str(made["worker"])


async def claim_times(on: Stage, count: int) -> dict[str, float]:
    """Of claims where many rows are, and enough are ready."""
    await on.fill((count + WARM_UP) * BATCH)
    return spread(await claims(on, count))


async def claims(on: Stage, count: int) -> list[float]:
    """Milliseconds of claims of a batch, as the client sees them, commit included."""
    worker = await _worker(on)
    times = []
    for _ in range(count + WARM_UP):
        began = time.perf_counter()
        reply = await db.call_one(
            on.conn, "exchange_work", worker=worker, outcomes=None, want=BATCH
        )
        times.append((time.perf_counter() - began) * 1000)
        if len(reply["runs"] or ()) != BATCH:
            raise RuntimeError(f"a claim found {len(reply['runs'] or ())} runs, not {BATCH}")
    return times[WARM_UP:]


async def _floor_claims(url: str, count: int) -> list[float]:
    await floor.fill(url, (count + WARM_UP) * BATCH)
    times = []
    async with await connect(url) as conn:
        await conn.execute(sql.FLOOR_SETTINGS.encode())
        for _ in range(count + WARM_UP):
            began = time.perf_counter()
            await rows(conn, sql.FLOOR_CLAIM, BATCH)
            times.append((time.perf_counter() - began) * 1000)
    return times[WARM_UP:]
