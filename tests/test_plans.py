"""The hot statements over a large backlog: through indexes, without sorting or reading it all.

Each verb runs in a session whose plans were made while the tables were empty, and in a fresh one.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest
from conftest import Connect
from test_work import Work, said

from orchestrator import db

READS = {"Seq Scan", "Index Scan", "Index Only Scan", "Bitmap Heap Scan", "Bitmap Index Scan"}


class Plans:
    """What auto_explain said about the statements inside."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.roots: list[dict[str, Any]] = []
        work.conn.add_notice_handler(self._hear)

    def _hear(self, note: psycopg.errors.Diagnostic) -> None:
        text = note.message_primary or ""
        if "plan:" in text:
            self.roots.append(json.loads(text.split("plan:", 1)[1])["Plan"])

    async def start(self) -> None:
        await self.work.do(
            "load 'auto_explain'; set auto_explain.log_min_duration = 0;"
            " set auto_explain.log_nested_statements = on; set auto_explain.log_analyze = on;"
            " set auto_explain.log_buffers = on; set auto_explain.log_format = 'json';"
            " set client_min_messages = log"
        )

    def nodes(self) -> Iterator[dict[str, Any]]:
        stack = list(self.roots)
        while stack:
            node = stack.pop()
            yield node
            stack += node.get("Plans", [])

    def check(self) -> None:
        assert self.roots
        for node in self.nodes():
            rows = node.get("Actual Rows", 0) * node.get("Actual Loops", 1)
            if node["Node Type"] == "Sort":
                assert rows <= 2000, json.dumps(node)
            if node.get("Relation Name") == "due_work" and node["Node Type"] in READS:
                assert node["Node Type"] != "Seq Scan", json.dumps(node)
                assert rows <= 2000, json.dumps(node)
                removed = node.get("Rows Removed by Filter", 0)
                assert removed <= 200, json.dumps(node)

    def buffers(self) -> int:
        return sum(r["Shared Hit Blocks"] + r["Shared Read Blocks"] for r in self.roots)


async def fill(work: Work, rows: int, state: str, **columns: str) -> None:
    names, values = ", ".join(["", *columns]), ", ".join(["", *columns.values()])
    await work.do(
        f"insert into orchestrator.due_work (tenant_id, run_id, pipeline_id, due_at, state{names})"
        " select 't', orchestrator.new_id(), (select id from orchestrator.pipeline limit 1),"
        f" orchestrator.now() - interval '1 hour' + n * interval '1 ms', '{state}'{values}"
        f" from generate_series(1, {rows}) n"
    )


async def talk(work: Work, worker: Any) -> None:
    """All hot verbs once."""
    await work.run(dedupe_key="d", on_duplicate="replace", concurrency_key="own")
    await work.run(dedupe_key="d")
    for policy in ("skip", "replace", "cancel_running"):
        given = {"concurrency_key": policy, "on_conflict": policy}
        for _ in range(3):
            await work.run(queue="unclaimed", **given)
    await work.runs(20)
    runs = (await work.exchange(worker, None, 40))["runs"]
    assert runs
    step = {"step": "a", "state": "succeeded"}
    steps = [{"tenant": r.tenant, "run": r.run, "epoch": r.epoch, **step} for r in runs]
    await db.call(work.conn, "record_steps", worker=worker, steps=steps)
    await db.call(work.conn, "renew_worker", worker=worker)
    names = ["succeeded", "failed", "released", "parked"]
    outcomes = [said(run, names[n % 4], waiting_for="x") for n, run in enumerate(runs)]
    await work.exchange(worker, outcomes, 40)
    await db.call(work.conn, "settle_work", worker=worker, outcomes=outcomes)


@pytest.fixture
async def large(connect: Connect, request: pytest.FixtureRequest) -> AsyncIterator[list[Work]]:
    """A session whose plans are old, and a fresh one, over a backlog."""
    old = Work(await connect(timeout=120))
    worker = await old.worker()
    for _ in range(8):
        await talk(old, worker)
    rows = 1_000_000 if request.config.getoption("--soak") else 200_000
    fresh = Work(await connect(timeout=120))
    await fill(fresh, rows, "ready")
    yield [old, fresh]
    await fresh.do("truncate orchestrator.due_work")


async def test_hot_verbs_read_a_large_backlog_through_indexes(large: list[Work]) -> None:
    for analyzed in (False, True):
        for work in large:
            worker = await work.worker()
            plans = Plans(work)
            await plans.start()
            await talk(work, worker)
            plans.check()
            await work.do("reset client_min_messages; set auto_explain.log_min_duration = -1")
        if not analyzed:
            await large[1].do("vacuum analyze orchestrator.due_work")


async def test_a_policy_finds_its_run_behind_a_long_line(large: list[Work]) -> None:
    for work in large:
        await work.do("truncate orchestrator.due_work")
        worker = await work.worker()
        runs = await work.runs(5, concurrency_key="k", concurrency_limit=3)
        assert len(await work.claim(worker, 5)) == 3
        await fill(work, 50_000, "blocked", concurrency_key="'k'", priority="0")
        plans = Plans(work)
        await plans.start()
        for policy, run in [("skip", runs[0]), ("replace", runs[4]), ("cancel_running", None)]:
            made = await work.enqueue(concurrency_key="k", on_conflict=policy)
            assert run in (None, str(made["run_id"]))
        assert made["reason"] == f"run {runs[0]} of this key is told to cancel"
        plans.check()


async def test_due_rows_are_promoted_through_the_index_of_time(large: list[Work]) -> None:
    for work in large:
        await fill(work, 300, "scheduled")
        worker = await work.worker()
        plans = Plans(work)
        await plans.start()
        await work.claim(worker, 50)
        plans.check()


async def test_lost_work_is_taken_back_through_indexes(large: list[Work]) -> None:
    for work in large:
        worker = await work.worker()
        for attempts in (1, 3):
            await work.runs(150, max_attempts=attempts, priority=0)
        assert len(await work.claim(worker, 300)) == 300
        await work.do("update orchestrator.worker set expires_at = orchestrator.now()")
        plans = Plans(work)
        await plans.start()
        assert await work.verb("release_expired_work") >= 300
        plans.check()


async def test_a_saturated_key_in_front_costs_another_claim_nothing(connect: Connect) -> None:
    work = Work(await connect(timeout=120))
    worker = await work.worker()
    await work.run(concurrency_key="k")
    await work.claim(worker)
    await fill(work, 3000, "ready")
    await work.verb("advance_lanes")
    plans = Plans(work)
    await plans.start()
    buffers = []
    for front in (0, 100_000):
        await work.do("set auto_explain.log_min_duration = -1")
        if front:
            await fill(work, front, "blocked", concurrency_key="'k'", priority="0")
        await work.do("vacuum analyze orchestrator.due_work")
        for _ in range(6):
            await work.claim(worker, 20)
        plans.roots.clear()
        await work.do("set auto_explain.log_min_duration = 0")
        await work.claim(worker, 20)
        plans.check()
        buffers.append(plans.buffers())
    assert buffers[1] <= buffers[0] * 1.5 + 100, buffers
    await work.do("truncate orchestrator.due_work")
