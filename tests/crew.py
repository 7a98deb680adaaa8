"""Workers of tests: in this process with kinds of the test's own, and real processes."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from orchestrator import db
from orchestrator.config import READERS, Config
from orchestrator.steps import Kind, builtins
from orchestrator.worker import Options, Worker

TESTS = Path(__file__).parent
PATIENCE = 60.0
"""With what has no bound of its own: it only says when a test that hangs is given up."""


async def enqueue(conn: db.Connection, *steps: dict[str, Any], **options: Any) -> str:
    """A float travels as text, because a double precision doesn't pass for a real."""
    pipeline = {"pipeline": list(steps)}
    options = {name: str(v) if isinstance(v, float) else v for name, v in options.items()}
    row = await db.call_one(conn, "enqueue", tenant="t", pipeline=pipeline, **options)
    return str(row["run_id"])


async def enqueue_many(
    conn: db.Connection, count: int, *steps: dict[str, Any], **item: Any
) -> list[str]:
    rows = await db.call(
        conn, "enqueue_many", tenant="t", items=[item] * count, pipeline={"pipeline": list(steps)}
    )
    return [str(row["run_id"]) for row in rows]


def call(function: str, **args: Any) -> dict[str, Any]:
    return {"uses": "python.call", "with": {"function": f"deeds:{function}", "args": args}}


async def look(conn: db.Connection, run: str) -> db.Row:
    cursor = await conn.execute("select * from orc.runs where id = %s", [run])
    row = await cursor.fetchone()
    assert row is not None, "the run is gone"
    return row


async def count(conn: db.Connection, state: str) -> int:
    cursor = await conn.execute("select count(*) as n from orc.runs where state = %s", [state])
    row = await cursor.fetchone()
    assert row is not None
    return int(row["n"])


async def ends(conn: db.Connection, run: str, within: float = PATIENCE) -> db.Row:
    """The run, when it has ended."""
    deadline = time.monotonic() + within
    while (row := await look(conn, run))["finished_at"] is None:
        assert time.monotonic() < deadline, f"{run} is {row['state']} still"
        await asyncio.sleep(0.005)
    return row


async def until(holds: Callable[[], Any], within: float = PATIENCE) -> None:
    deadline = time.monotonic() + within
    while True:
        found = holds()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.005)


class Crew:
    """Starts workers, and ends them with the test."""

    def __init__(self, config: Config, *, quiet: bool = False) -> None:
        self.config = config
        self.output = subprocess.DEVNULL if quiet else subprocess.PIPE
        self.workers: list[tuple[Worker, asyncio.Task[None]]] = []
        self.processes: list[subprocess.Popen[bytes]] = []

    def worker(self, *kinds: Kind, **options: Any) -> Worker:
        known = {**builtins(), **{kind.name: kind for kind in kinds}}
        worker = Worker(self.config, Options(**{"drain_timeout": 5.0, **options}), known)
        self.workers.append((worker, asyncio.create_task(worker.run())))
        return worker

    async def once(self, *kinds: Kind, **options: Any) -> Worker:
        worker = self.worker(*kinds, once=True, **options)
        await asyncio.wait_for(self.task(worker), PATIENCE)
        return worker

    def task(self, worker: Worker) -> asyncio.Task[None]:
        return next(task for known, task in self.workers if known is worker)

    def process(
        self,
        *words: str,
        name: str = "worker",
        program: Sequence[str] = ("orchestrator.cli",),
        environment: dict[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        mine = {n: v for n, v in os.environ.items() if n not in READERS and not n.startswith("PG")}
        command = [sys.executable, "-m", *program, name, *words]
        settings = {
            **mine,
            "DATABASE_URL": self.config.database_url,
            "ORC_PYTHON_MODULES": "deeds",
            "PYTHONPATH": str(TESTS),
            "LOG_FORMAT": "json",
            **(environment or {}),
        }
        process = subprocess.Popen(command, env=settings, stderr=self.output)
        self.processes.append(process)
        return process

    async def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
            if process.stderr:
                process.stderr.close()
        for worker, task in self.workers:
            if not task.done():
                worker.drain()
                worker.release()
        for _, task in self.workers:
            await asyncio.wait_for(asyncio.gather(task, return_exceptions=True), PATIENCE)


async def exit_status(process: subprocess.Popen[bytes], within: float = PATIENCE) -> int:
    return await asyncio.wait_for(asyncio.to_thread(process.wait), within)


async def logs(process: subprocess.Popen[bytes], action: str) -> dict[str, Any]:
    """The next line of its log that says so, when it comes; others before it are read over."""

    def read() -> dict[str, Any]:
        assert process.stderr is not None
        for line in map(json.loads, process.stderr):
            if line.get("action") == action:
                return dict(line)
        raise AssertionError(f"it ended without {action!r}")

    return await asyncio.wait_for(asyncio.to_thread(read), PATIENCE)


def queued(who: int | str = "thread-self") -> float:
    """The seconds that a process (or who asks) was ready to run, and the processors ran others.
    None, where the system doesn't count them."""
    try:
        return int(Path(f"/proc/{who}/schedstat").read_text().split()[1]) / 1e9
    except OSError:
        return 0.0


def own_clock() -> float:
    """Stands still while others have the processors that this thread could run on."""
    return time.monotonic() - queued()
