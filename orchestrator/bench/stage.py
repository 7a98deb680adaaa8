"""A database with housekeeping, worker processes, and a queue that opens when all is in place."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from .. import db
from ..errors import Problem
from . import sql
from .place import Place, connect, rows

TENANT = "bench"
PIPELINE: list[dict[str, Any]] = [{"id": "a", "uses": "set", "with": {}}]
NOTHING: Mapping[str, str] = {}
CHUNK = 10_000
HOUSEKEEPING = ("release_expired_work", "fill_keys", "advance_lanes")
STUCK_SECONDS = 120.0


@dataclass
class Drained:
    runs: int
    seconds: float
    cpu_seconds: float | None
    wal_bytes: int
    table_bytes: int

    @property
    def rate(self) -> float:
        return self.runs / self.seconds

    def per_run(self) -> dict[str, Any]:
        """What a run costs beside time, from its enqueue to its row in history."""
        said: dict[str, Any] = {
            "wal_bytes_per_run": round(self.wal_bytes / self.runs),
            "table_bytes_per_run": round(self.table_bytes / self.runs),
        }
        if self.cpu_seconds is not None:
            said["worker_cpu_us_per_run"] = round(self.cpu_seconds / self.runs * 1e6, 1)
        return said


class Stage:
    def __init__(self, url: str, conn: db.Connection, steps: list[dict[str, Any]]) -> None:
        self.url = url
        self.conn = conn
        self.steps = steps
        self.housekeeping_ms = 0.0  # the longest round of one verb
        self.pipeline = ""

    async def prepare(self) -> None:
        """Stores the pipeline, and leaves the queue empty."""
        made = await db.call_one(self.conn, "enqueue", tenant=TENANT, pipeline=jsonb(self.steps))
        await db.call(self.conn, "cancel_run", tenant=TENANT, run=made["run_id"])
        found = await rows(self.conn, "table orchestrator.pipeline")
        self.pipeline = str(found[0]["id"])

    async def fill(self, count: int) -> None:
        for part in range(0, count, CHUNK):
            items: list[dict[str, Any]] = [{}] * min(CHUNK, count - part)
            await db.call(
                self.conn, "enqueue_many", tenant=TENANT, items=items, pipeline=jsonb(self.steps)
            )

    async def insert(self, text: str, count: int) -> None:
        """Rows that were there before, made by the million."""
        await rows(self.conn, text, self.pipeline, count)
        await self.conn.execute("vacuum (analyze, skip_locked)")

    async def keep_house(self) -> None:
        """What the scheduler does each second. A call that takes too long is given up, as there."""
        async with await connect(self.url, role="orc_worker", timeout=5.0) as conn:
            while True:
                for verb in HOUSEKEEPING:
                    began = time.perf_counter()
                    with suppress(psycopg.Error, Problem):
                        await db.call(conn, verb)
                    took = (time.perf_counter() - began) * 1000
                    self.housekeeping_ms = max(self.housekeeping_ms, took)
                await asyncio.sleep(1)

    async def drain(
        self,
        count: int,
        processes: int = 1,
        leave: bool = False,
        hold: bool = False,
        settings: Mapping[str, str] = NOTHING,
    ) -> Drained:
        """Enqueues so many, and then lets workers at them: until all are done, or (`leave`) as
        many as were enqueued now."""
        before = (await rows(self.conn, sql.FINISHED))[0]["n"]
        await db.call(self.conn, "pause_queue", tenant=TENANT, queue="default")
        async with (
            workers(self.url, processes, settings=settings) as crew,
            snapshot(self.url) as look,
        ):
            wal, tables = await self._bytes(sql.WAL), await self._bytes(sql.TABLES)
            await self.fill(count)
            await until(self.conn, sql.REGISTERED, pids(crew), fits=lambda r: r["n"] == processes)
            if hold:
                await rows(look, sql.SNAPSHOT)
            cpu = cpu_seconds(crew)
            await db.call(self.conn, "resume_queue", tenant=TENANT, queue="default")
            end = (sql.HAS_FINISHED, before + count) if leave else (sql.IS_EMPTY,)
            await until(self.conn, *end, fits=lambda r: bool(r["yes"]))
            cpu = None if cpu is None else (cpu_seconds(crew) or 0) - cpu
            wal, tables = await self._bytes(sql.WAL) - wal, await self._bytes(sql.TABLES) - tables
        row = (await rows(self.conn, sql.DRAINED, pids(crew)))[0]
        if row["runs"] != count and not leave:
            raise RuntimeError(f"orc.runs has {row['runs']} succeeded runs, not {count}")
        return Drained(row["runs"], row["seconds"], cpu, wal, tables)

    async def work_off(self) -> float:
        """What is there already, by one worker: runs a second."""
        async with workers(self.url, 1) as crew:
            await until(self.conn, sql.IS_EMPTY, fits=lambda r: bool(r["yes"]))
            row = (await rows(self.conn, sql.DRAINED, pids(crew)))[0]
        return float(row["runs"] / row["seconds"])

    async def _bytes(self, text: str) -> int:
        return int((await rows(self.conn, text))[0]["bytes"])


async def until(
    conn: db.Connection, text: str, *given: Any, fits: Callable[[db.Row], bool]
) -> None:
    """Asks now and then; asking takes at most a twentieth of one connection's time."""
    deadline = time.monotonic() + STUCK_SECONDS
    while time.monotonic() < deadline:
        began = time.monotonic()
        if fits((await rows(conn, text, *given))[0]):
            return
        await asyncio.sleep(max(0.02, 20 * (time.monotonic() - began)))
    raise RuntimeError(f"not so within {STUCK_SECONDS:.0f} s: {text.strip()}")


def jsonb(value: Any) -> Any:
    return Jsonb(value)


@asynccontextmanager
async def stage(place: Place, steps: list[dict[str, Any]] = PIPELINE) -> AsyncIterator[Stage]:
    """Runs here do the steps: nothing, unless they are given."""
    async with place.database() as url, await connect(url) as conn:
        made = Stage(url, conn, steps)
        await made.prepare()
        house = asyncio.create_task(made.keep_house())
        try:
            yield made
        finally:
            house.cancel()
            with suppress(asyncio.CancelledError):
                await house


@asynccontextmanager
async def snapshot(url: str) -> AsyncIterator[db.Connection]:
    """A transaction that goes on seeing what was there at its first question."""
    async with await connect(url) as conn:
        await conn.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
        await conn.execute("set idle_in_transaction_session_timeout = 0")
        async with conn.transaction():
            yield conn


@asynccontextmanager
async def workers(
    url: str, count: int, *words: str, settings: Mapping[str, str] = NOTHING
) -> AsyncIterator[list[Process]]:
    """Worker processes, told to stop at the end."""
    command = ["-P", "-m", "orchestrator.cli", "worker", "--slots", "1000", *words]
    environment = {**os.environ, "DATABASE_URL": url, "LOG_LEVEL": "error", "LOG_FORMAT": "json"}
    environment |= settings
    crew = [
        await asyncio.create_subprocess_exec(
            sys.executable, *command, env=environment, stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE
        )
        for _ in range(count)
    ]
    try:
        yield crew
        for one in crew:
            one.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            said = [(await one.communicate())[1] for one in crew]
        if any(one.returncode for one in crew):
            raise RuntimeError(f"a worker failed: {b''.join(said).decode()[-2000:]}")
    finally:
        for one in crew:
            if one.returncode is None:
                one.kill()
                await one.wait()


def pids(crew: list[Process]) -> list[str]:
    return [str(one.pid) for one in crew]


def cpu_seconds(crew: list[Process]) -> float | None:
    """What the processes have used, where the system tells."""
    used = 0
    for one in crew:
        try:
            facts = Path(f"/proc/{one.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        used += int(facts[11]) + int(facts[12])
    return used / os.sysconf("SC_CLK_TCK")
