"""How fast runs go out: freely, under a held snapshot, before a backlog, on top of a history.

A rate is the succeeded rows of these workers in orc.runs, by the database's clock from the first
start to the last end. The workers wait for a paused queue to open, so their own start isn't in it.
"""

from __future__ import annotations

import statistics
from typing import Any

from . import floor, sql
from .figure import Figure, rate
from .moments import claim_times
from .place import Place
from .stage import Drained, stage

RUNS = 100_000
MILLION = 1_000_000


async def drain_1p(place: Place) -> Figure:
    """No-op runs, one worker process."""
    return await _free(place, processes=1)


async def drain_2p(place: Place) -> Figure:
    """No-op runs, two worker processes."""
    return await _free(place, processes=2)


async def _free(place: Place, processes: int) -> Figure:
    count = place.scaled(RUNS, least=200)
    own, bare = [], []
    for _ in range(place.repetitions):
        own.append(await _empty(place, count, processes))
        bare.append(await _floor(place, count, processes))
    middle = sorted(own, key=lambda one: one.rate)[len(own) // 2]
    rates = [one.rate for one in own]
    return rate("runs/s", rates, bare, runs=middle.runs, **middle.per_run())


async def _empty(place: Place, count: int, processes: int = 1) -> Drained:
    async with stage(place) as on:
        return await on.drain(count, processes)


async def _floor(place: Place, count: int, processes: int = 1) -> float:
    async with place.database() as url:
        return await floor.drain(url, count, processes)


async def drain_held_snapshot(place: Place) -> Figure:
    """A session holds a snapshot for the whole drain; `of_free` is beside the same without."""
    count = place.scaled(3 * RUNS, least=600)
    free = await _empty(place, count)
    async with stage(place) as on:
        held = await on.drain(count, hold=True)
        house = round(on.housekeeping_ms, 1)
    bare = await _floor(place, count)
    told: dict[str, Any] = _beside("free", [held.rate], [free.rate])
    return rate("runs/s", [held.rate], [bare], runs=held.runs, **told, housekeeping_ms=house)


def _beside(name: str, own: list[float], other: list[float]) -> dict[str, Any]:
    ratios = [one / two for one, two in zip(own, other, strict=True)]
    return {
        name: round(statistics.median(other)),
        f"of_{name}": round(statistics.median(ratios), 3),
    }


async def drain_backlog_1m(place: Place) -> Figure:
    """A million rows are ready, and stay: as many as go come in. `of_empty`: without them."""
    return await _on_top_of(place, sql.BACKLOG, leave=True)


async def drain_history_1m(place: Place) -> Figure:
    """A million runs have ended before. `of_empty`: without them."""
    return await _on_top_of(place, sql.HISTORY, leave=False)


async def _on_top_of(place: Place, rows_before: str, leave: bool) -> Figure:
    count = place.scaled(RUNS, least=200)
    own, empty, bare = [], [], []
    async with stage(place) as on:
        await on.insert(rows_before, place.scaled(MILLION, least=2000))
        for _ in range(place.repetitions):
            own.append((await on.drain(count, leave=leave)).rate)
            empty.append((await _empty(place, count)).rate)
            bare.append(await _floor(place, count))
        claims = await claim_times(on, place.scaled(200, least=20))
        house = round(on.housekeeping_ms, 1)
    told = {"claim_ms": claims, "housekeeping_ms": house}
    return rate("runs/s", own, bare, **_beside("empty", own, empty), **told)
