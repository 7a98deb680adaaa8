"""How fast runs come in: one by one, in bulk, and by many while a worker waits for hints."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

from .. import db
from . import sql
from .figure import Figure, rate, spread
from .place import Place, connect, rows
from .stage import PIPELINE, TENANT, Stage, jsonb, pids, stage, until, workers

CLIENTS = 16


async def enqueue_one(place: Place) -> Figure:
    """One orc.enqueue per transaction over one connection, beside one bare insert each."""
    count = place.scaled(8000, least=100)
    own, bare, times = [], [], []
    async with stage(place) as on:

        async def insert() -> Any:
            return await rows(on.conn, sql.FLOOR_INSERT)

        await _timed(20, lambda: enqueue(on.conn))  # plans and caches
        await _timed(20, insert)
        for _ in range(place.repetitions):
            times += (took := await _timed(count, lambda: enqueue(on.conn)))
            own.append(count / sum(took))
            bare.append(count / sum(await _timed(count, insert)))
        together = await _together(on, place.scaled(400, least=10), place.repetitions)
    figure = rate("runs/s", own, bare, clients_16=together)
    in_ms = spread([took * 1000 for took in times])
    figure.p50, figure.p95, figure.p99 = in_ms["p50"], in_ms["p95"], in_ms["p99"]
    return figure


async def enqueue(conn: db.Connection, **more: Any) -> db.Row:
    return await db.call_one(conn, "enqueue", tenant=TENANT, pipeline=jsonb(PIPELINE), **more)


async def _timed(count: int, work: Callable[[], Awaitable[Any]]) -> list[float]:
    times = []
    for _ in range(count):
        began = time.perf_counter()
        await work()
        times.append(time.perf_counter() - began)
    return times


async def _together(on: Stage, each: int, repetitions: int) -> dict[str, Any]:
    """Sixteen clients beside a worker that takes what they make, with and without hints."""
    rates: dict[str, list[float]] = {"--no-hints": [], "--hints": []}
    async with AsyncExitStack() as stack:
        crowd = [await stack.enter_async_context(await connect(on.url)) for _ in range(CLIENTS)]
        for words in [*rates] * repetitions:
            async with workers(on.url, 1, words) as crew:
                await until(on.conn, sql.REGISTERED, pids(crew), fits=lambda r: r["n"] == 1)
                await asyncio.sleep(0.3)  # until it rests
                began = time.perf_counter()
                await asyncio.gather(*(_timed(each, _enqueues(conn)) for conn in crowd))
                rates[words].append(CLIENTS * each / (time.perf_counter() - began))
    hints = rate("runs/s", rates["--hints"], rates["--no-hints"])
    return {"hints": hints.value, "no_hints": hints.floor, "ratio": hints.ratio}


def _enqueues(conn: db.Connection) -> Callable[[], Awaitable[Any]]:
    return lambda: enqueue(conn)


async def enqueue_many(place: Place) -> Figure:
    """orc.enqueue_many with 10,000 items a call, beside `insert … select` of as many."""
    count = place.scaled(200_000, least=1000)
    own, bare = [], []
    async with stage(place) as on:
        for _ in range(place.repetitions):
            began = time.perf_counter()
            await on.fill(count)
            own.append(count / (time.perf_counter() - began))
            began = time.perf_counter()
            for part in range(0, count, 10_000):
                await rows(on.conn, sql.FLOOR_FILL, min(10_000, count - part))
            bare.append(count / (time.perf_counter() - began))
    return rate("runs/s", own, bare, batch=min(count, 10_000))
