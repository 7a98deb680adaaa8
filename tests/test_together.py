"""Calls of requests that come at the same time share a transaction, and nothing else."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import msgspec
import pytest
from conftest import Connect, Serve
from psycopg.types.json import Jsonb

from orchestrator import db
from orchestrator.schedules.shapes import CreateTask

TASK: dict[str, Any] = {"title": "T", "schedule_kind": "cron", "schedule_expr": "30 8 * * *",
        "payload": {"pipeline": [{"id": "a", "uses": "set", "with": {}}]}}  # fmt: skip


class Callers:
    """A service, and agents of two tenants."""

    def __init__(self, client: httpx2.AsyncClient, conn: db.Connection) -> None:
        self.client, self.conn = client, conn
        self.keys: dict[str, str] = {}
        self.ids: dict[str, str] = {}

    async def agent(self, tenant: str, *scopes: str) -> None:
        said = {"scopes": list(scopes)} if scopes else {}
        made = await db.call_one(self.conn, "create_agent", tenant=tenant, name="a", **said)
        self.keys[tenant] = made["create_agent"]["key"]
        self.ids[tenant] = str(made["create_agent"]["id"])

    async def ask(
        self, tenant: str, method: str, path: str, json: Any = None, **headers: str
    ) -> httpx2.Response:
        head = {"Authorization": f"Bearer {self.keys[tenant]}", **headers}
        return await self.client.request(method, path, json=json, headers=head)

    async def publish(self, tenant: str, topic: str = "t", **headers: str) -> httpx2.Response:
        return await self.ask(tenant, "POST", "/events", {"topic": topic}, **headers)

    async def run(self, tenant: str) -> str:
        made = await db.call_one(
            self.conn, "enqueue", tenant=tenant, pipeline=Jsonb(TASK["payload"]["pipeline"])
        )
        return str(made["run_id"])

    async def rows(self, text: str) -> list[db.Row]:
        return await (await self.conn.execute(text.encode())).fetchall()


@pytest.fixture
async def callers(serve: Serve, conn: db.Connection) -> Callers:
    running = await serve()
    made = Callers(running.client, conn)
    for tenant in ("acme", "zeta"):
        await made.agent(tenant)
        await made.publish(tenant)  # so that both are known, and connections are warm
    return made


async def test_what_comes_at_the_same_time_is_one_transaction(callers: Callers) -> None:
    said = await asyncio.gather(*(callers.publish("acme", "many") for _ in range(40)))
    assert {one.status_code for one in said} == {202}
    found = await callers.rows(
        "select count(*) as events, count(distinct transaction_id) as transactions"
        " from orchestrator.event where topic = 'many'"
    )
    assert found[0]["events"] == 40 and found[0]["transactions"] < 20, found


async def test_each_is_done_for_its_own_caller(callers: Callers) -> None:
    runs = {tenant: await callers.run(tenant) for tenant in callers.keys}
    asked = [(mine, whose) for mine in runs for whose in runs] * 10
    said = await asyncio.gather(
        *(callers.ask(mine, "GET", f"/runs/{runs[whose]}") for mine, whose in asked)
    )
    assert [one.status_code for one in said] == [200 if a == b else 404 for a, b in asked]
    made = await asyncio.gather(
        *(callers.publish(mine, f"of.{mine}", **{"X-Request-ID": f"r-{n}"})
          for n, (mine, _) in enumerate(asked)),
        *(callers.ask(mine, "POST", "/tasks", TASK) for mine, _ in asked),
    )  # fmt: skip
    assert {one.status_code for one in made} == {202, 201}
    for tenant, id in callers.ids.items():
        events = await callers.rows(
            f"select distinct tenant_id, source from orchestrator.event where topic = 'of.{tenant}'"
        )
        assert events == [{"tenant_id": tenant, "source": id}]
        tasks = await callers.rows(
            f"select distinct created_by::text from orchestrator.task where tenant_id = '{tenant}'"
        )
        assert tasks == [{"created_by": id}]


async def test_one_that_is_refused_is_refused_alone_and_as_ever(callers: Callers) -> None:
    run, none = await callers.run("acme"), "01a1ff92-0952-731d-81c9-225c45b99f26"
    alone = await callers.ask("acme", "GET", f"/runs/{none}")
    said = await asyncio.gather(
        *(callers.ask("acme", "GET", f"/runs/{none if n == 5 else run}") for n in range(12))
    )
    assert [one.status_code for one in said] == [404 if n == 5 else 200 for n in range(12)]
    ours = {"request_id", "timestamp"}
    first, again = alone.json(), said[5].json()
    assert {k: first[k] for k in first.keys() - ours} == {k: again[k] for k in again.keys() - ours}


async def test_what_fails_for_all_of_them_is_done_for_each_alone(callers: Callers) -> None:
    await callers.conn.execute(
        "create or replace function orc.runs_together(calls jsonb) returns setof jsonb"
        " language plpgsql as $$ begin perform 1 / 0; end $$"
    )
    run = await callers.run("acme")
    said = await asyncio.gather(*(callers.ask("acme", "GET", f"/runs/{run}") for _ in range(12)))
    assert {one.status_code for one in said} == {200}


async def test_a_caller_without_the_scope_is_refused_in_a_crowd(callers: Callers) -> None:
    calls = [
        {"scopes": scopes, "given": {"topic": "scoped"}}
        for scopes in ("events:read", "events:write", "")
    ]
    answers = await asked(callers, "publish_together", *calls)
    assert [one is None for one in answers] == [True, False, True]
    left = await callers.rows("select 1 from orchestrator.event where topic = 'scoped'")
    assert len(left) == 1, "one that was refused left something"


async def test_an_event_that_makes_no_sense_leaves_nothing_of_its_company(callers: Callers) -> None:
    calls = [{"given": {"topic": t}} for t in ("$ours", "fine")]
    assert await asked(callers, "publish_together", *calls) == [None, None]
    assert await callers.rows("select 1 from orchestrator.event where topic = 'fine'") == []


async def asked(callers: Callers, verb: str, *calls: dict[str, Any]) -> list[Any]:
    """What the verb answers to each. The API checked before: here the verb itself is asked."""
    common = {"tenant": "acme", "actor": callers.ids["acme"], "scopes": "any", "request": "r"}
    rows = await db.call(callers.conn, verb, calls=Jsonb([{**common, **call} for call in calls]))
    return [row[verb] for row in rows]


@pytest.mark.parametrize(
    ("other", "scopes", "seen"),
    [(False, "any", True), (False, "runs:read", True), (False, "events:write", False),
     (False, "", False), (True, "any", False), (True, "admin", True)],
)  # fmt: skip
async def test_a_run_is_seen_in_a_crowd_by_whom_it_is_seen_alone(
    callers: Callers, other: bool, scopes: str, seen: bool
) -> None:
    task = (await callers.ask("acme", "POST", "/tasks", TASK)).json()["id"]
    answer = await callers.ask("acme", "POST", f"/tasks/{task}/run_now")
    run = answer.json()["details"]["run_id"]
    who = callers.ids["zeta" if other else "acme"]
    look = {"given": {"run": run}, "actor": who, "scopes": scopes}
    mine = {"given": {"run": await callers.run("acme")}}
    found = await asked(callers, "runs_together", mine, look, {**mine, "tenant": "zeta"}, mine)
    assert [one is not None for one in found] == [True, seen, False, True]


def draft(callers: Callers, **fields: Any) -> dict[str, Any]:
    """A task as the API hands it over."""
    body = msgspec.convert({**TASK, **fields}, CreateTask)
    made_at = datetime.now(UTC)
    tomorrow = made_at + timedelta(days=1)
    said = msgspec.to_builtins(body) | {"created_by": callers.ids["acme"]} | {
        "made_at": made_at.isoformat(), "instants": [tomorrow.isoformat()],
        "known_to": tomorrow.isoformat(), **{k: v for k, v in fields.items() if k not in TASK},
    }  # fmt: skip
    return {"given": {"task": said}}


async def test_a_task_made_in_a_crowd_is_as_one_made_alone(callers: Callers) -> None:
    fields = {
        "title": "Both", "description": "d", "priority": 2, "max_retries": 1, "grace_seconds": 9.5,
        "jitter_seconds": 60, "queue": "q", "timeout_seconds": 1.25, "labels": {"a": "b"},
        "concurrency_key": "k", "concurrency_limit": 2, "overlap": "skip", "catch_up": "all",
        "catch_up_limit": 7, "backoff_strategy": "fixed", "dst_gap": "skip", "dst_fold": "both",
        "starts_at": "2026-01-01T00:00:00Z", "ends_at": "2100-01-01T00:00:00Z",
    }  # fmt: skip
    calls = [draft(callers, **fields), draft(callers, **fields)]
    made = await asked(callers, "make_together", *calls)
    assert None not in made
    alone = await db.call_one(
        callers.conn, "make_task", tenant="acme", task=calls[0]["given"]["task"]
    )
    own = {"id", "created_at", "updated_at", "next_run_at"}
    shown = []
    for id in (made[0]["make_task"]["id"], alone["make_task"]["id"]):
        answer = await callers.ask("acme", "GET", f"/tasks/{id}")
        plan = await callers.rows(f"select * from orchestrator.plan where task_id = '{id}'")
        rule = await callers.rows(f"select * from orchestrator.rule where task_id = '{id}'")
        shown.append([
            {k: v for k, v in answer.json().items() if k not in own},
            {k: v for k, v in plan[0].items() if k in {"upcoming", "wants_more"}},
            {k: v for k, v in rule[0].items() if k not in {"task_id", "from_at"}},
        ])  # fmt: skip
    assert shown[0] == shown[1]
    known = {k: v for k, v in alone["make_task"].items() if k in made[0]["make_task"]}
    assert known.keys() == made[0]["make_task"].keys()
    assert {k: made[0]["make_task"][k] for k in known.keys() - own} == {
        k: known[k] for k in known.keys() - own
    }


@pytest.mark.parametrize(
    "other",
    [{"scopes": "tasks:read"}, {"scopes": ""},
     {"created_by": "01a1ff92-0952-731d-81c9-225c45b99f26"}, {"schedule_kind": "event"},
     {"dedupe_key": "k"}, {"instants": []}, {"made_at": "2026-01-01T00:00:00Z"},
     {"labels": {"a": "x" * 10_001}},
     {"payload": {"pipeline": TASK["payload"]["pipeline"], "probe": {}}}],
    ids=lambda one: "".join(one),
)  # fmt: skip
async def test_a_task_that_is_not_like_the_others_is_left_to_be_made_alone(
    callers: Callers, other: dict[str, Any]
) -> None:
    scopes = other.get("scopes", "any")
    plain, odd = draft(callers), draft(callers)
    odd["given"]["task"] |= {**other, "title": "odd"}
    made = await asked(callers, "make_together", plain, odd | {"scopes": scopes}, plain)
    assert [one is None for one in made] == [False, True, False]
    assert await callers.rows("select 1 from orchestrator.task where title = 'odd'") == []


async def test_a_task_that_makes_no_sense_leaves_nothing_of_its_company(callers: Callers) -> None:
    calls = [draft(callers), draft(callers)]
    calls[1]["given"]["task"]["priority"] = 10
    assert await asked(callers, "make_together", *calls) == [None, None]
    assert await callers.rows("select 1 from orchestrator.task") == []


async def test_each_task_of_a_crowd_is_audited_under_its_own_request(callers: Callers) -> None:
    names = [f"r-{n}" for n in range(20)]
    said = await asyncio.gather(
        *(callers.ask("acme", "POST", "/tasks", TASK, **{"X-Request-ID": name}) for name in names)
    )
    ids = {one.json()["id"]: name for one, name in zip(said, names, strict=True)}
    audited = await callers.rows(
        "select subject, request_id, actor, xmin from orchestrator.audit"
        " where action = 'create_task'"
    )
    assert {row["subject"]: row["request_id"] for row in audited} == ids
    assert {row["actor"] for row in audited} == {callers.ids["acme"]}
    assert len({row["xmin"] for row in audited}) < 20


async def test_a_scheduler_hears_of_a_task_of_a_crowd_that_is_due_soon(
    callers: Callers, connect: Connect
) -> None:
    other = await connect()
    await other.execute("listen orc_tasks")
    soon = draft(callers)
    at = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
    soon["given"]["task"] |= {"instants": [at], "known_to": at}
    assert None not in await asked(callers, "make_together", draft(callers), soon)
    heard = [note async for note in other.notifies(timeout=5, stop_after=1)]
    assert [note.channel for note in heard] == ["orc_tasks"]


async def test_one_that_waits_for_a_lock_doesnt_keep_the_others(
    callers: Callers, connect: Connect
) -> None:
    """Somebody is making the same pipeline, and hasn't said yet whether it will be."""
    steps = [{"id": "b", "uses": "set", "with": {"x": 1}}]
    same = {**TASK, "payload": {"pipeline": steps}}
    assert (await callers.ask("acme", "POST", "/tasks", TASK)).status_code == 201
    other = await connect()
    async with other.transaction():
        await db.call(other, "enqueue", tenant="acme", pipeline=Jsonb(steps))
        waiting: list[asyncio.Task[httpx2.Response]] = []
        others: list[asyncio.Task[httpx2.Response]] = []
        for document in [same, None, *[TASK] * 10, same, *[TASK] * 10]:
            if document is None:
                await asyncio.sleep(0.1)  # the first was alone: others come behind it
                continue
            asked = asyncio.create_task(callers.ask("acme", "POST", "/tasks", document))
            (waiting if document is same else others).append(asked)
        async with asyncio.timeout(30):
            assert {(await one).status_code for one in others} == {201}
        assert not any(one.done() for one in waiting)
    assert {(await one).status_code for one in waiting} == {201}


async def test_what_tasks_listen_to_starts_them_in_a_crowd_too(callers: Callers) -> None:
    listens = {**TASK, "schedule_kind": "event", "schedule_expr": "heard"}
    assert (await callers.ask("acme", "POST", "/tasks", listens)).status_code == 201
    said = await asyncio.gather(
        *(callers.publish("acme", "heard" if n % 2 else "unheard") for n in range(20))
    )
    triggered = [one.json()["details"]["triggered_tasks"] for one in said]
    assert triggered == [n % 2 for n in range(20)]


async def test_a_large_one_goes_alone(callers: Callers) -> None:
    large = {"topic": "large", "payload": "x" * 20_000}
    said = await asyncio.gather(
        *(callers.ask("acme", "POST", "/events", large) for _ in range(10)),
        *(callers.publish("acme", "small") for _ in range(10)),
    )
    assert {one.status_code for one in said} == {202}
    found = await callers.rows(
        "select count(distinct transaction_id) as n from orchestrator.event where topic = 'large'"
    )
    assert found == [{"n": 10}]
