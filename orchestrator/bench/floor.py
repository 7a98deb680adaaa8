"""The floor: bare SQL, driven by processes of its own, as workers are (client.py)."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from . import sql
from .place import connect, rows


async def fill(url: str, count: int) -> None:
    async with await connect(url) as conn:
        for part in range(0, count, 10_000):
            await rows(conn, sql.FLOOR_FILL, min(10_000, count - part))


async def drain(url: str, count: int, processes: int) -> float:
    """Runs a second of bare SQL."""
    await fill(url, count)
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(client("drain", url)) for _ in range(processes)]
        for one in clients:
            go(one)
        await asyncio.gather(*(one.wait() for one in clients))
    async with await connect(url) as conn:
        drained = (await rows(conn, sql.FLOOR_DRAINED))[0]
    if drained["runs"] != count:
        raise RuntimeError(f"the floor drained {drained['runs']} of {count} rows")
    return float(drained["runs"] / drained["seconds"])


@asynccontextmanager
async def client(what: str, url: str) -> AsyncIterator[Process]:
    """A client that is ready; it ends with the context."""
    words = ["-P", "-m", f"{__package__}.client", what, url]
    process = await asyncio.create_subprocess_exec(sys.executable, *words, stdin=PIPE, stdout=PIPE)
    try:
        assert process.stdout is not None
        if await process.stdout.readline() != b"ready\n":
            raise RuntimeError("the floor's client did not start")
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def go(process: Process) -> None:
    assert process.stdin is not None
    process.stdin.write(b"go\n")
