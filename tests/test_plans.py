"""The hot statements over a large backlog: through indexes, without sorting or reading it all.

Each verb runs in a session whose plans were made while the tables were empty, and in a fresh one.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest
from conftest import Connect
from psycopg.types.json import Jsonb
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


# Lists


async def fill_history(work: Work, rows: int) -> None:
    """Runs of 24 days, some of them failed, canceled or of no task; one task has few of them."""
    await work.enqueue(tenant="t")
    await work.do("truncate orchestrator.due_work")
    await work.do(
        """
        set role orc_owner;
        select (orc._make_partition(r, orchestrator.now() - n * interval '1 day')).action
        from orchestrator.partitioned r, generate_series(1, 24) n where r.table_name = 'run';
        reset role;
        """
    )
    await work.do(
        f"""
        insert into orchestrator.run (
          tenant_id, id, pipeline_id, task_id, due_at, finished_at, epoch, attempt, max_attempts,
          priority, state, queue, kind, output, error)
        select 't', orchestrator.id_floor(orchestrator.now() - n * interval '2 s'),
               gen_random_uuid(), case when n % 10 > 0 then ('00000000-0000-0000-0000-00000000000'
                 || case when n % 50000 = 1 then 9 else n % 5 end)::uuid end,
               orchestrator.now(), orchestrator.now(), 1, 1, 1, 50,
               case when n % 1000 = 3 then 'failed' when n % 1001 = 3 then 'canceled'
                    else 'succeeded' end,
               'default', case when n % 10 > 0 then 'task' else 'run' end, '{{"a": 1}}',
               case when n % 1000 = 3 then '{{"type": "timeout", "message": "m"}}'::jsonb end
        from generate_series(1, {rows}) n
        """
    )
    await work.do("vacuum analyze orchestrator.run")


COMMON, RARE = (f"00000000-0000-0000-0000-00000000000{n}" for n in (2, 9))
LISTS: dict[str, dict[str, Any]] = {
    "runs of tasks": {"kind": "task"},
    "all runs": {"kind": "all"},
    "runs of missions, of which there are none": {"kind": "mission"},
    "what failed or was canceled": {"kind": "task", "success": False},
    "what failed": {"kind": "all", "state": "failed"},
    "what succeeded": {"kind": "task", "success": True},
    "what runs": {"kind": "all", "state": "running"},
    "a task with many": {"kind": "task", "task_id": COMMON},
    "a task with few": {"kind": "task", "task_id": RARE},
}


async def test_lists_of_many_runs_are_read_through_indexes(
    connect: Connect, request: pytest.FixtureRequest
) -> None:
    soak = request.config.getoption("--soak")
    work = Work(await connect(timeout=300))
    await fill_history(work, 1_000_000 if soak else 100_000)
    middle = await work.one("select orchestrator.id_floor(orchestrator.now() - interval '1 day')")
    slowest: dict[str, float] = {}
    for name, asked in LISTS.items():
        for page in ({}, {"offset": 9_800}, {"cursor": middle}):
            plans = Plans(work)
            await plans.start()
            await db.call(work.conn, "list_runs", tenant="t", filter=Jsonb(asked), **page)
            for node in plans.nodes():
                rows = node.get("Actual Rows", 0) * node.get("Actual Loops", 1)
                read = rows + node.get("Rows Removed by Filter", 0)
                if str(node.get("Relation Name")).startswith("run_"):
                    assert read <= 30_000, (name, page, node)
            await work.do("set auto_explain.log_min_duration = -1; reset client_min_messages")
            slowest[f"{name} {page}"] = await slow(work, asked, page)
    if soak:
        assert max(slowest.values()) < 0.1, slowest
    await work.do("truncate orchestrator.run")


async def slow(work: Work, asked: dict[str, Any], page: dict[str, Any]) -> float:
    """The median of five: the machine may be busy."""
    times = []
    for _ in range(5):
        started = time.monotonic()
        await db.call(work.conn, "list_runs", tenant="t", filter=Jsonb(asked), **page)
        times.append(time.monotonic() - started)
    return sorted(times)[2]
