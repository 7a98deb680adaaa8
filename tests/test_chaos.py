"""Chaos: workers are killed and frozen, the server crashes, and still each run ends exactly once.

Two phases. While it is unsafe, processes die, freeze and come back, and the server goes down once.
Then all is healed, and what's left must drain within a lease, a sweep and a backoff. A ledger
outside the database, written by the runs themselves, says what was really executed.
"""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from crew import Crew, call, enqueue_many
from psycopg.rows import dict_row

from orchestrator import db, devpg, schema
from orchestrator.config import Config
from orchestrator.errors import Unavailable

Start = Callable[[], devpg.Cluster]
LEASE, SWEEP, BACKOFF = 2.0, 1.0, 1.0
ATTEMPTS = 25


class Plan(msgspec.Struct):
    workers: int
    runs: int
    seconds: float  # of the unsafe phase
    pause: float  # between two blows
    drain: float  # what executing all of it may take, once all is well
    work: float = 0.05  # seconds that a run takes


SMALL = Plan(workers=3, runs=2000, seconds=12, pause=0.7, drain=15)
SOAK = Plan(workers=8, runs=100_000, seconds=240, pause=0.5, drain=600)


class Storm:
    """Deals blows to workers, and puts others in the place of the dead."""

    def __init__(self, crew: Crew, plan: Plan, chance: random.Random) -> None:
        self.crew = crew
        self.chance = chance
        self.workers = [self.worker() for _ in range(plan.workers)]
        self.scheduler = crew.process(name="scheduler")
        self.frozen: dict[int, float] = {}
        self.blows: Counter[str] = Counter()

    def worker(self) -> subprocess.Popen[bytes]:
        words = ["--lease", str(LEASE), "--slots", "8", "--drain-timeout", "1"]
        return self.crew.process(*words)

    def blow(self) -> None:
        place = self.chance.randrange(len(self.workers))
        how = self.chance.choice(["kill", "kill", "freeze", "terminate", "scheduler"])
        self.blows[how] += 1
        if how == "scheduler":
            self.scheduler.kill()
        elif how == "freeze":
            self.workers[place].send_signal(signal.SIGSTOP)
            self.frozen[place] = time.monotonic() + self.chance.uniform(0.5, 2 * LEASE)
        else:
            self.workers[place].send_signal({"kill": 9, "terminate": 15}[how])

    def tend(self, *, thaw: bool = False) -> None:
        """Thaws the frozen after their time, and replaces the dead."""
        for place, until in list(self.frozen.items()):
            if thaw or time.monotonic() > until:
                self.workers[place].send_signal(signal.SIGCONT)
                del self.frozen[place]
        for place, worker in enumerate(self.workers):
            if worker.poll() is not None:
                self.workers[place] = self.worker()
        if self.scheduler.poll() is not None:
            self.scheduler = self.crew.process(name="scheduler")


@pytest.fixture
async def crew(own_server: Start) -> AsyncIterator[Crew]:
    url = own_server().tcp_url
    await schema.install(url)
    crew = Crew(Config(database_url=url), quiet=True)
    yield crew
    await crew.end()


async def enqueue_all(url: str, plan: Plan, ledger: Path) -> list[str]:
    """What was acknowledged. The server may go down meanwhile: then it is enqueued again."""
    acknowledged: list[str] = []
    step = call("note", path=str(ledger), seconds=plan.work)
    while len(acknowledged) < plan.runs:
        try:
            async with await db.connect(url) as conn:
                acknowledged += await enqueue_many(conn, 100, step, max_attempts=ATTEMPTS)
        except (psycopg.OperationalError, Unavailable):
            await asyncio.sleep(0.1)
        await asyncio.sleep(plan.seconds * 100 / plan.runs)
    return acknowledged


async def unsafe_phase(storm: Storm, plan: Plan, start: Start) -> None:
    began = time.monotonic()
    crash_at = began + plan.seconds * storm.chance.uniform(0.3, 0.6)
    while time.monotonic() - began < plan.seconds:
        await asyncio.sleep(storm.chance.uniform(0, 2 * plan.pause))
        storm.tend()
        storm.blow()
        if time.monotonic() > crash_at:
            crash_at = began + 10 * plan.seconds
            await asyncio.to_thread(crash, start)
            storm.blows["crash"] += 1


def crash(start: Start) -> None:
    devpg.stop(start().data.parent, mode="immediate")
    start()


def ask(url: str, text: str) -> list[dict[str, Any]]:
    with psycopg.connect(url, row_factory=dict_row) as conn:
        return conn.execute(text.encode()).fetchall()


async def healed_phase(storm: Storm, plan: Plan, url: str) -> float:
    """Seconds until nothing was left."""
    storm.tend(thaw=True)
    began = time.monotonic()
    while left := ask(url, "select state, count(*) from orchestrator.due_work group by 1"):
        storm.tend()
        assert time.monotonic() - began < plan.drain + LEASE + SWEEP + BACKOFF * 2, f"left: {left}"
        await asyncio.sleep(0.1)
    return time.monotonic() - began


def judge(url: str, acknowledged: list[str], ledger: Path) -> None:
    executed = Counter(ledger.read_text().splitlines())
    runs = {str(row["id"]): row for row in ask(url, "select * from orchestrator.run")}
    assert set(acknowledged) <= runs.keys(), "an acknowledged run is lost"
    assert Counter(row["state"] for row in runs.values()) == {"succeeded": len(runs)}
    recorded = {str(row["run_id"]): row["epoch"] for row in ask(url, "select * from orc.steps")}
    for id, row in runs.items():
        assert executed[f"{id} {recorded[id]}"] == 1, f"{id} is recorded, and was not executed once"
        assert executed[f"{id} {row['epoch']}"] == (recorded[id] == row["epoch"]), "done again"
        assert 1 <= row["attempt"] <= row["max_attempts"]
    assert max(executed.values()) == 1, "a lease was executed twice"
    twice = "select run_id from orchestrator.attempt join orchestrator.run on id = run_id"
    assert ask(url, f"{twice} where attempt.epoch >= run.epoch") == []
    assert ask(url, "select * from orc.check()") == []


@pytest.mark.parametrize("plan", [SMALL, pytest.param(SOAK, marks=pytest.mark.soak)])
async def test_whatever_dies_each_run_ends_exactly_once(
    crew: Crew, own_server: Start, tmp_path: Path, plan: Plan
) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    url, ledger = crew.config.database_url, tmp_path / "ledger"
    storm = Storm(crew, plan, random.Random(seed))
    enqueuing = asyncio.create_task(enqueue_all(url, plan, ledger))
    await unsafe_phase(storm, plan, own_server)
    acknowledged = await enqueuing
    seconds = await healed_phase(storm, plan, url)
    judge(url, acknowledged, ledger)
    print(f"{dict(storm.blows)}; healed and drained within {seconds:.1f} s")
