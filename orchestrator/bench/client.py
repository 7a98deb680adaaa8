"""The floor's client: a process with two overlapped connections, as a worker has them.

`python -m orchestrator.bench.client drain|pickup URL` says `ready`; a drain then waits for a line.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import psycopg
import uvloop

from .. import db
from . import sql
from .place import connect

BATCH = 500
"""What a worker with 1000 slots asks for."""

TALKERS = 2


async def _drain(url: str) -> None:
    lines = [await connect(url) for _ in range(TALKERS)]
    for line in lines:
        await line.execute(sql.FLOOR_SETTINGS.encode())
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await asyncio.gather(*(_talk(line) for line in lines))
    for line in lines:
        await line.close()


async def _talk(line: db.Connection) -> None:
    """Finishes what it has and claims more, in one transaction and one round trip."""
    ids: str | None = None
    while True:
        async with line.pipeline(), line.transaction():
            if ids is not None:
                await line.execute(sql.FLOOR_FINISH.encode(), [ids], prepare=True)
            cursor = await line.execute(sql.FLOOR_CLAIM.encode(), [BATCH], prepare=True)
        row: Any = await cursor.fetchone()
        ids = row["ids"]
        if ids is None:
            return


def _pick_up(url: str) -> None:
    """Waits for a hint, claims a row, finishes it. It listens and claims on two connections."""
    with (
        psycopg.connect(url, autocommit=True) as ears,
        psycopg.connect(url, autocommit=True) as line,
    ):
        line.execute(sql.FLOOR_SETTINGS.encode())
        ears.execute("listen floor_work")
        print("ready", flush=True)
        for _ in ears.notifies():
            row = line.execute(sql.FLOOR_CLAIM.encode(), [1], prepare=True).fetchone()
            if row is not None and row[0] is not None:
                line.execute(sql.FLOOR_FINISH.encode(), [row[0]], prepare=True)


if __name__ == "__main__":
    if sys.argv[1] == "drain":
        uvloop.run(_drain(sys.argv[2]))
    else:
        _pick_up(sys.argv[2])
