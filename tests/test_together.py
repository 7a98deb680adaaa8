"""Calls of requests that come at the same time share a transaction, and nothing else."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import pytest
from conftest import Connect, Serve
from psycopg.types.json import Jsonb

from orchestrator import db

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


async def test_a_caller_without_the_scope_is_refused_in_a_crowd(callers: Callers) -> None:
    """The verb itself says so: what the API checked before isn't asked here."""
    calls = [
        {"tenant": "acme", "scopes": scopes, "given": {"topic": "scoped"}}
        for scopes in ("events:read", "events:write", "")
    ]
    rows = await db.call(callers.conn, "publish_together", calls=Jsonb(calls))
    answers = [row["publish_together"] for row in rows]
    assert [one is None for one in answers] == [True, False, True]
    left = await callers.rows("select 1 from orchestrator.event where topic = 'scoped'")
    assert len(left) == 1, "one that was refused left something"


async def test_an_event_that_makes_no_sense_leaves_nothing_of_its_company(callers: Callers) -> None:
    calls = [{"tenant": "acme", "scopes": "any", "given": {"topic": t}} for t in ("$ours", "fine")]
    rows = await db.call(callers.conn, "publish_together", calls=Jsonb(calls))
    assert [row["publish_together"] for row in rows] == [None, None]
    assert await callers.rows("select 1 from orchestrator.event where topic = 'fine'") == []


async def test_a_trace_stays_with_its_own_call(callers: Callers) -> None:
    trace = f"00-{'a' * 32}-{'b' * 16}-01"
    common = {"verb": "run", "tenant": "acme", "actor": callers.ids["acme"], "scopes": "any",
              "request": "r", "given": {"run": await callers.run("acme")}}  # fmt: skip
    async with callers.conn.transaction():
        for traced, left in ((trace, trace), (None, "")):
            await db.call(
                callers.conn, "together", calls=Jsonb([{**common, "trace": trace},
                                                       {**common, "trace": traced}]),
            )  # fmt: skip
            rows = await callers.rows("select current_setting('orchestrator.traceparent') as said")
            assert rows[0]["said"] == left


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
