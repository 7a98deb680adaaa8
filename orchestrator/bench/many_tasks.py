"""What 100,000 tasks cost: to plan them all, to tick beside them, to fire many at once."""

from __future__ import annotations

import time
from asyncio.subprocess import Process
from pathlib import Path
from typing import Any

from .. import db
from . import sql
from .figure import Figure, latency, spread
from .firing import scheduler
from .place import Place, rows
from .stage import PIPELINE, Stage, jsonb, stage, until

TASKS = 100_000
DUE = 5_000
ROUNDS = 10
"""So often are many due while the scheduler's memory is watched."""

CHUNK = 5_000
RESTS = 50


async def tasks_100k(place: Place) -> Figure:
    """A tick that fires 5,000 of 100,000 tasks, beside bare inserts of as many rows twice.

    `planned_per_second` is what one scheduler process computes and stores; `resting_ms` a tick with
    nothing due, and `resting_alone_ms` the same without the tasks.
    """
    count, due = place.scaled(TASKS, least=500), place.scaled(DUE, least=50)
    took: list[float] = []
    bare: list[float] = []
    async with stage(place) as on:
        alone = await _resting(on)
        for part in range(0, count, CHUNK):
            await rows(on.conn, sql.HOURLY_TASKS, jsonb(PIPELINE), min(CHUNK, count - part))
        watched = await _watch(on, count, due)
        await on.conn.execute("vacuum (analyze, skip_locked)")
        for _ in range(max(3, place.repetitions)):
            await _make_due(on, due)
            took.append(await _ms(on, "tick", scheduler="bench", most=due, asks=False))
            await on.conn.execute("delete from orchestrator.due_work")
            bare.append(await _bare(on, due))
        resting = await _resting(on)
    facts = {"tasks": count, "due": due, "resting_ms": resting, "resting_alone_ms": alone}
    return latency(took, bare, **facts, **watched)


async def _watch(on: Stage, count: int, due: int) -> dict[str, Any]:
    """A scheduler process that plans them all, and then fires many again and again."""
    began = time.perf_counter()
    async with scheduler(on.url) as process:
        await until(on.conn, sql.ALL_IS_PLANNED, fits=lambda r: bool(r["yes"]))
        planned = count / (time.perf_counter() - began)
        memory = []
        for _ in range(ROUNDS):
            await _make_due(on, due)
            await until(on.conn, sql.NOTHING_IS_DUE, fits=lambda r: bool(r["yes"]))
            await on.conn.execute("delete from orchestrator.due_work")
            memory.append(_mb(process))
    return {"planned_per_second": round(planned), "memory_mb": memory}


async def _make_due(on: Stage, due: int) -> None:
    await rows(on.conn, sql.MAKE_DUE, due)


async def _resting(on: Stage) -> float:
    return spread([await _ms(on, "tick", scheduler="bench") for _ in range(RESTS)])["p50"]


async def _ms(on: Stage, verb: str, **arguments: Any) -> float:
    began = time.perf_counter()
    await db.call(on.conn, verb, **arguments)
    return (time.perf_counter() - began) * 1000


async def _bare(on: Stage, due: int) -> float:
    began = time.perf_counter()
    for _ in range(2):
        await rows(on.conn, sql.FLOOR_FILL, due)
    return (time.perf_counter() - began) * 1000


def _mb(process: Process) -> float | None:
    """The memory that a process has now, where the system tells."""
    try:
        words = Path(f"/proc/{process.pid}/statm").read_text().split()
    except OSError:
        return None
    return round(int(words[1]) * 4096 / 1e6, 1)
