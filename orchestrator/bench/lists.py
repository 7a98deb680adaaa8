"""How long a page of a long list takes."""

from __future__ import annotations

import random
import time
from typing import Any

from psycopg.types.json import Jsonb

from .. import db
from . import sql
from .drains import MILLION
from .figure import Figure, latency, spread
from .place import Place, rows
from .stage import TENANT, Stage, stage


async def list_runs_1m(place: Place) -> Figure:
    """The first page of a million runs, with the count up to 10,000. `by_cursor`: a page anywhere
    among them; `by_offset`: the last that an offset reaches. The floor reads 50 rows by id."""
    async with stage(place) as on:
        await on.insert(sql.HISTORY, place.scaled(MILLION, least=2000))
        count = place.scaled(300, least=20)
        some = [row["id"] for row in await rows(on.conn, sql.SOME_RUNS, count)]
        random.shuffle(some)
        first = await _pages(on, [{}] * count)
        cursors = await _pages(on, [{"cursor": one} for one in some])
        offsets = await _pages(on, [{"offset": 10_000}] * count)
        bare = []
        for _ in range(count):
            began = time.perf_counter()
            await rows(on.conn, sql.NEWEST_RUNS)
            bare.append((time.perf_counter() - began) * 1000)
    return latency(first, bare, by_cursor=spread(cursors), by_offset=spread(offsets))


async def _pages(on: Stage, asked: list[dict[str, Any]]) -> list[float]:
    times = []
    for page in asked:
        began = time.perf_counter()
        await db.call(on.conn, "list_runs", tenant=TENANT, filter=Jsonb({"kind": "all"}), **page)
        times.append((time.perf_counter() - began) * 1000)
    return times
