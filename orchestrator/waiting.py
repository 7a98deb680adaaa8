"""`Prefer: wait=N`: a caller waits for the end of the run that it has started.

Whoever waits holds no connection: one loop in each process asks for all of them at once, soon after
one has come, then ever more seldom.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping
from contextvars import Context

import msgspec
import psycopg

from .db import Pool
from .errors import Unavailable
from .wire import Call, Endpoint, Reply, encode

MOST_SECONDS = 60
MOST_WAITERS = 2000
"""A process has no more of them: others are answered at once."""

FIRST, LONGEST = 0.01, 0.5
"""Seconds between looks: a tenth of the time that the latest has waited, within these."""

PREFERENCE = re.compile(r"wait\s*=\s*\"?(\d{1,9})\"?\s*", re.I)


def preferred(headers: Mapping[str, str]) -> int:
    """The seconds of `Prefer: wait=N`, 60 at most. What can't be read is no preference."""
    for part in headers.get("prefer", "").split(","):
        if found := PREFERENCE.fullmatch(part.strip()):
            return min(int(found[1]), MOST_SECONDS)
    return 0


class Waiting:
    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.closed = False
        self.waiters: dict[asyncio.Future[bool], str] = {}
        self.came = asyncio.Event()
        self.came_at = 0.0
        self.loop: asyncio.Task[None] | None = None

    async def answer(self, endpoint: Endpoint, call: Call, reply: Reply) -> Reply:
        """With the finished run, when the caller prefers to wait for it and it ends in time."""
        seconds = preferred(call.headers)
        if not seconds or not endpoint.finished or not reply.run or not call.principal:
            return reply
        headers = {**reply.headers, "Preference-Applied": f"wait={seconds}"}
        if not await self.ended(reply.run, seconds):
            return msgspec.structs.replace(reply, status=202, headers=headers)
        tenant = call.principal.tenant_id
        run = (await self.pool.call_one("run", tenant=tenant, run=reply.run))["run"]
        said = msgspec.json.decode(
            reply.body if isinstance(reply.body, bytes) else encode(reply.body)
        )
        body = endpoint.finished(said, run)
        return msgspec.structs.replace(reply, status=200, headers=headers, body=body)

    async def ended(self, run: str, seconds: float) -> bool:
        """Whether a run ends within so many seconds."""
        if self.closed or len(self.waiters) >= MOST_WAITERS:
            return False
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.waiters[future] = run
        self.came_at = time.monotonic()
        self.came.set()
        if self.loop is None or self.loop.done():
            self.loop = asyncio.create_task(self._look(), context=Context())
        try:
            async with asyncio.timeout(seconds):
                return await future
        except TimeoutError:
            return False
        finally:
            self.waiters.pop(future, None)

    def close(self) -> None:
        """Whoever waits is answered as things are."""
        self.closed = True
        for future in self.waiters:
            if not future.done():
                future.set_result(False)
        if self.loop is not None:
            self.loop.cancel()

    async def _look(self) -> None:
        while self.waiters:
            self.came.clear()
            try:
                rows = await self.pool.call("ended_runs", wanted=[*set(self.waiters.values())])
            except (psycopg.Error, Unavailable):
                rows = []
            self._tell({str(row["run"]) for row in rows})
            pause = min(max((time.monotonic() - self.came_at) / 10, FIRST), LONGEST)
            try:
                async with asyncio.timeout(pause):
                    await self.came.wait()
                await asyncio.sleep(FIRST)
            except TimeoutError:
                pass

    def _tell(self, ended: set[str]) -> None:
        for future, run in self.waiters.items():
            if run in ended and not future.done():
                future.set_result(True)
