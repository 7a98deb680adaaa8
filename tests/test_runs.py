"""Runs over HTTP: lists, one run, and what people do to them. Workers are real."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from conftest import Make, Running, Serve
from crew import Crew
from crew import call as python_call

from orchestrator import auth, db

KEY = {"Authorization": f"Bearer {auth.SYSTEM_AGENT}"}
FIELDS = {
    "id", "task_id", "state", "success", "attempt", "lease_owner", "leased_until", "started_at",
    "finished_at", "error", "output", "created_at", "due_at", "priority",
}  # fmt: skip
GOOD = [{"id": "a", "uses": "set", "with": {"x": 1}}]
BAD = [{"id": "a", "uses": "assert", "with": {"that": False, "message": "order 17 is late"}}]


class House:
    """A service with a worker, and what a caller does there."""

    def __init__(self, running: Running, conn: db.Connection, crew: Crew) -> None:
        self.running, self.conn, self.crew = running, conn, crew

    async def post(self, path: str, json: Any = None, **headers: str) -> httpx2.Response:
        return await self.running.client.post(path, json=json, headers={**KEY, **headers})

    async def get(self, path: str, **query: Any) -> Any:
        answer = await self.running.client.get(path, params=query or None, headers=KEY)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def task(self, pipeline: list[dict[str, Any]] = GOOD, **more: Any) -> str:
        said = {"title": "T", "schedule_kind": "cron", "schedule_expr": "30 8 * * *",
                "payload": {"pipeline": pipeline}, "max_retries": 0}  # fmt: skip
        answer = await self.post("/tasks", {**said, **more})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    async def run(self, task: str) -> str:
        answer = await self.post(f"/tasks/{task}/run_now")
        assert answer.status_code == 200, answer.text
        return str(answer.json()["details"]["run_id"])

    async def work(self) -> None:
        await self.crew.once()


@pytest.fixture
async def house(serve: Serve, conn: db.Connection, make: Make) -> AsyncIterator[House]:
    await db.call(conn, "ensure_system_agent")
    crew = Crew(make.config(python_modules=("deeds",)))
    yield House(await serve(), conn, crew)
    await crew.end()


async def test_a_run_is_listed_live_and_finished_with_the_fields_of_the_surface(
    house: House,
) -> None:
    task = await house.task(priority=3)
    run = await house.run(task)
    page = await house.get("/runs")
    assert (page["total"], page["total_is_exact"], page["has_more"]) == (1, True, False)
    (live,) = page["items"]
    assert live.keys() >= FIELDS
    assert (live["id"], live["task_id"], live["success"]) == (run, task, None)
    assert (live["priority"], live["attempt"], live["output"]) == (3, 0, None)
    await house.work()
    whole = await house.get(f"/runs/{run}")
    assert (whole["state"], whole["success"], whole["output"]) == (
        "succeeded",
        True,
        {"a": {"x": 1}},
    )
    assert [(a["attempt"], a["outcome"]) for a in whole["attempts"]] == [(1, "succeeded")]
    assert (await house.get("/runs", state="succeeded"))["items"][0]["finished_at"]


async def test_a_run_shows_its_steps_and_a_failed_one_says_why(house: House) -> None:
    run = await house.run(await house.task([{"id": "e", **python_call("say", text="1")}, *BAD]))
    await house.work()
    whole = await house.get(f"/runs/{run}")
    assert (whole["state"], whole["success"]) == ("failed", False)
    assert "order 17 is late" in whole["error"]
    assert (whole["steps"][0]["step"], whole["steps"][0]["state"]) == ("e", "succeeded")


async def test_a_canceled_run_has_the_error_canceled(house: House) -> None:
    run = await house.run(await house.task())
    said = (await house.post(f"/runs/{run}/cancel")).json()
    assert said == {"run_id": run, "state": "canceled", "canceled": True}
    again = (await house.post(f"/runs/{run}/cancel")).json()
    assert again == {**said, "canceled": False}
    whole = await house.get(f"/runs/{run}")
    assert (whole["success"], whole["error"]) == (False, "canceled")


async def test_filters_choose_runs(house: House) -> None:
    good = await house.run(await house.task(labels={"team": "ops"}))
    bad_task = await house.task(BAD, queue="slow")
    bad = await house.run(bad_task)
    live = await house.run(bad_task)
    await house.post(f"/runs/{live}/cancel")
    bare = str(
        (await db.call_one(house.conn, "enqueue", tenant="default", pipeline=GOOD))["run_id"]
    )
    await house.crew.once(queues=("default", "slow"))

    async def found(**query: Any) -> list[str]:
        return [run["id"] for run in (await house.get("/runs", **query))["items"]]

    newest = (await house.get(f"/runs/{live}"))["created_at"]
    assert await found() == [live, bad, good]
    assert await found(kind="all") == [bare, live, bad, good]
    assert await found(kind="run") == [bare]
    assert await found(kind="mission") == []
    assert await found(success="true") == [good]
    assert await found(success="false") == [live, bad]
    assert await found(state="failed") == [bad]
    assert await found(state="failed", success="true") == []
    assert await found(state="ready") == []
    assert await found(task_id=bad_task) == [live, bad]
    assert await found(queue="slow", state="canceled") == [live]
    assert await found(label="team") == await found(label="team:ops") == [good]
    assert await found(label="team:dev") == []
    assert await found(start_time=newest) == [live]
    assert await found(end_time=newest) == [bad, good]
    assert await found(start_time="2999-01-01T00:00:00Z") == []


async def test_pages_by_offset_and_by_cursor_are_the_same_and_lose_nothing(house: House) -> None:
    task = await house.task()
    runs = [await house.run(task) for _ in range(7)][::-1]
    await house.work()
    runs = [await house.run(task) for _ in range(2)][::-1] + runs
    pages = [await house.get("/runs", limit=4, offset=offset) for offset in (0, 4, 8)]
    assert [run["id"] for page in pages for run in page["items"]] == runs
    assert [page["has_more"] for page in pages] == [True, True, False]
    assert {page["total"] for page in pages} == {9}
    seen, cursor = [], None
    while True:
        page = await house.get("/runs", limit=4, **({"cursor": cursor} if cursor else {}))
        seen += [run["id"] for run in page["items"]]
        if (cursor := page["next_cursor"]) is None:
            break
        await house.run(task)  # what comes meanwhile moves nothing
    assert seen == runs


async def test_a_list_counts_up_to_its_bound(house: House) -> None:
    await house.conn.execute(
        b"""insert into orchestrator.run (tenant_id, id, pipeline_id, due_at, finished_at,
              epoch, attempt, max_attempts, priority, state, queue, kind)
            select 'default', orchestrator.new_id(), gen_random_uuid(), now(), now(), 1, 1, 1, 50,
                   'succeeded', 'default', 'task' from generate_series(1, 10001)"""
    )
    page = await house.get("/runs", limit=1)
    assert (page["total"], page["total_is_exact"], page["has_more"]) == (10_000, False, True)
    page = await house.get("/runs", limit=200, offset=10_000)
    assert (len(page["items"]), page["has_more"]) == (1, False)
    await house.conn.execute(b"delete from orchestrator.run")


async def test_a_large_output_is_shown_by_its_size_and_given_whole_elsewhere(house: House) -> None:
    text = "x" * 70_000
    run = await house.run(await house.task([{"id": "a", "uses": "set", "with": {"t": text}}]))
    small = await house.run(
        await house.task([{"id": "a", "uses": "set", "with": {"t": "y" * 9000}}])
    )
    await house.work()
    whole = await house.get(f"/runs/{run}")
    assert whole["output"] is None
    assert whole["output_ref"]["bytes"] > 70_000
    assert await house.get(whole["output_ref"]["url"]) == {"a": {"t": text}}
    listed = {run["id"]: run for run in (await house.get("/runs"))["items"]}
    assert listed[small]["output"] is None  # in a list it is large
    assert (await house.get(f"/runs/{small}"))["output"] == {"a": {"t": "y" * 9000}}


async def test_a_large_value_of_a_step_is_given_by_the_address_that_stands_there(
    house: House,
) -> None:
    each = {"id": "e", "for_each": "${[1, 2]}", **python_call("say", text="z" * 70_000)}
    run = await house.run(await house.task([each]))
    await house.work()
    whole = await house.get(f"/runs/{run}")
    large = [step for step in whole["steps"] if step["output_ref"]]
    assert len(large) >= 2, whole
    for step in large:
        assert "z" * 70_000 in str(await house.get(step["output_ref"]["url"]))


async def test_the_output_of_a_run_that_lives_is_a_conflict(house: House) -> None:
    run = await house.run(await house.task())
    answer = await house.running.client.get(f"/runs/{run}/output", headers=KEY)
    assert (answer.status_code, answer.json()["error"]) == (409, "conflict")
    answer = await house.running.client.get(f"/runs/{run}/output?step=no", headers=KEY)
    assert answer.status_code == 404


async def test_why_names_what_a_run_waits_for(house: House) -> None:
    run = await house.run(await house.task())
    causes = await house.get(f"/runs/{run}/why")
    assert causes[0]["cause"] == "no live worker"


async def test_a_retry_is_a_new_run_with_lineage_once(house: House) -> None:
    run = await house.run(await house.task(BAD))
    assert (await house.post(f"/runs/{run}/retry")).status_code == 409  # it lives
    await house.work()
    answer = await house.post(f"/runs/{run}/retry")
    made = answer.json()
    assert (answer.status_code, made["retry_of"], made["state"]) == (202, run, "ready")
    assert answer.headers["location"] == f"/runs/{made['id']}"
    assert (await house.post(f"/runs/{run}/retry")).status_code == 409  # it is being retried
    assert (await house.post(f"/runs/{uuid4()}/retry")).status_code == 404


async def test_retrying_many_says_which_first_and_obeys_the_filter(house: House) -> None:
    bad, good = await house.task(BAD), await house.task()
    failed = [await house.run(bad) for _ in range(3)]
    await house.run(good)
    other = await house.run(await house.task(BAD))
    await house.work()
    where = {"task_id": bad}
    dry = (await house.post("/runs/retry", {"where": where})).json()
    assert (dry["dry_run"], dry["count"]) == (True, 3)
    assert [(row["run"], row["retried_as"]) for row in dry["items"]] == [(r, None) for r in failed]
    wet = (await house.post("/runs/retry", {"where": where, "dry_run": False})).json()
    assert wet["count"] == 3 and all(row["retried_as"] for row in wet["items"])
    assert (await house.post("/runs/retry", {"where": where, "dry_run": False})).json()[
        "count"
    ] == 0
    rest = (
        await house.post("/runs/retry", {"where": {"start_time": "2000-01-01T00:00:00Z"}})
    ).json()
    assert [row["run"] for row in rest["items"]] == [other]
    assert (await house.post("/runs/retry", {"where": {"success": True}})).json()["count"] == 0


async def test_failures_are_grouped_by_what_went_wrong(house: House) -> None:
    task = await house.task(BAD)
    late = [{**BAD[0], "with": {"that": False, "message": "order 18 is late"}}]
    for made in (task, task, await house.task(late)):
        await house.run(made)
    await house.run(await house.task([{**BAD[0], "with": {"that": False, "message": "no"}}]))
    await house.work()
    said = await house.get("/runs/failures")
    assert (said["looked_at"], said["is_all"]) == (4, True)
    assert sorted(group["runs"] for group in said["items"]) == [1, 3]
    group = max(said["items"], key=lambda one: one["runs"])
    found = await house.get("/runs", fingerprint=group["fingerprint"])
    assert found["total"] == 3
    assert (await house.get("/runs/failures", task_id=task))["looked_at"] == 2


def in_order(ledger: str) -> list[dict[str, Any]]:
    """Each call leaves a line in the ledger."""
    late = {"uses": "assert", "with": {"that": False, "message": "no"}}
    return [
        {"id": "first", **python_call("strike", ledger=ledger, step="first")},
        {"id": "aside", "needs": [], **python_call("strike", ledger=ledger, step="aside")},
        {"id": "each", "needs": ["first"], "for_each": "${[1, 2]}",
         **python_call("strike", ledger=ledger, step="each")},
        {"id": "second", "needs": ["first", "each"],
         **python_call("strike", ledger=ledger, step="second")},
        {"id": "last", "needs": ["second"], **late},
    ]  # fmt: skip


def struck(ledger: Path) -> list[str]:
    return [line.split()[1] for line in ledger.read_text().splitlines()]


async def test_a_retry_from_a_step_keeps_what_came_before_it(house: House, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    run = await house.run(await house.task(in_order(str(ledger))))
    await house.work()
    done = struck(ledger)
    assert sorted(done) == ["aside", "each", "each", "first", "second"]
    before = {s["step"]: s for s in (await house.get(f"/runs/{run}"))["steps"]}
    answer = await house.post(f"/runs/{run}/retry_from/second")
    assert answer.status_code == 202, answer.text
    made = answer.json()
    kept = {s["step"]: s for s in made["steps"]}
    assert kept.keys() == {"first", "aside", "each", "each[0]", "each[1]"} & before.keys()
    assert {"first", "aside"} < kept.keys()
    assert all(step == before[name] for name, step in kept.items())
    assert made["retry_of"] == run
    await house.work()
    after = {s["step"]: s for s in (await house.get(f"/runs/{made['id']}"))["steps"]}
    assert after["second"]["finished_at"] > before["last"]["finished_at"]
    assert {name: after[name] for name in kept} == kept
    assert struck(ledger) == [*done, "second"]  # nothing else was executed again


async def test_a_retry_from_a_step_takes_large_values_along_and_names_unknown_steps(
    house: House,
) -> None:
    steps = [{"id": "big", **python_call("say", text="z" * 70_000)}, *BAD]
    run = await house.run(await house.task(steps))
    await house.work()
    answer = await house.post(f"/runs/{run}/retry_from/no")
    assert answer.status_code == 404
    assert "big" in answer.json()["details"]["hint"]
    made = (await house.post(f"/runs/{run}/retry_from/a")).json()
    url = made["steps"][0]["output_ref"]["url"]
    assert "z" * 70_000 in str(await house.get(url))
    await house.work()
    assert (await house.get(f"/runs/{made['id']}"))["state"] == "failed"


# Prefer: wait


async def test_whoever_prefers_to_wait_gets_the_finished_run(house: House) -> None:
    house.crew.worker()
    task = await house.task()
    answer = await house.post(f"/tasks/{task}/run_now", Prefer="respond-async, wait=20")
    said = answer.json()
    assert (answer.status_code, said["details"]["run"]["state"]) == (200, "succeeded")
    assert said["details"]["run"]["id"] == said["details"]["run_id"]
    assert answer.headers["preference-applied"] == "wait=20"
    bad = await house.post(f"/tasks/{await house.task(BAD)}/run_now", Prefer="wait=20")
    run = bad.json()["details"]["run_id"]
    again = await house.post(f"/runs/{run}/retry", Prefer="wait=20")
    assert (again.status_code, again.json()["state"]) == (200, "failed")


async def test_who_waited_for_nothing_gets_202_and_the_run_goes_on(house: House) -> None:
    task = await house.task()
    started = time.monotonic()
    answer = await house.post(f"/tasks/{task}/run_now", Prefer="wait=1")
    assert (answer.status_code, 0.9 < time.monotonic() - started < 10) == (202, True)
    assert "run" not in answer.json()["details"]
    await house.work()
    assert (await house.get("/runs"))["items"][0]["state"] == "succeeded"


async def test_a_preference_that_makes_no_sense_is_ignored(house: House) -> None:
    task = await house.task()
    for prefer in ("wait", "wait=-1", "wait=x", "wait=1.5", "", "wait=0"):
        assert (await house.post(f"/tasks/{task}/run_now", Prefer=prefer)).status_code == 200


async def test_many_wait_without_a_connection_and_by_few_questions(
    serve: Serve, conn: db.Connection, make: Make
) -> None:
    await db.call(conn, "ensure_system_agent")
    crew = Crew(make.config())
    running = await serve(pool_size=2)
    house = House(running, conn, crew)
    asked = 0
    call = running.api.pool.call

    async def count(verb: str, /, **arguments: Any) -> list[db.Row]:
        nonlocal asked
        asked += verb == "ended_runs"
        return await call(verb, **arguments)

    running.api.pool.call = count  # type: ignore[method-assign]
    task = await house.task()
    waits = [
        asyncio.create_task(house.post(f"/tasks/{task}/run_now", Prefer="wait=30"))
        for _ in range(40)
    ]
    while len(running.api.waiting.waiters) < 40:
        await asyncio.sleep(0.01)
    assert (await running.client.get("/auth/me", headers=KEY)).status_code == 200
    asked = 0  # from when all of them wait
    await asyncio.sleep(0.5)
    crew.worker()
    answers = await asyncio.gather(*waits)
    assert {answer.status_code for answer in answers} == {200}
    assert asked < 100
    assert not running.api.waiting.waiters
    await crew.end()


async def test_a_drain_answers_those_who_wait(house: House) -> None:
    task = await house.task()
    wait = asyncio.create_task(house.post(f"/tasks/{task}/run_now", Prefer="wait=30"))
    while not house.running.api.waiting.waiters:
        await asyncio.sleep(0.01)
    house.running.api.drain()
    assert (await asyncio.wait_for(wait, 20)).status_code == 202


async def test_the_bounds_of_times_agree_with_the_times_that_are_shown(conn: db.Connection) -> None:
    cursor = await conn.execute(
        b"""select count(*) as n
            from (select orchestrator.new_id() as id from generate_series(1, 5000)) i,
              lateral (select orchestrator.id_time(i.id) as shown) t
            where i.id > orc._id_before(t.shown)
              and i.id <= orc._id_before(t.shown + interval '1 microsecond')"""
    )
    assert await cursor.fetchone() == {"n": 5000}
