"""Idempotency-Key: equal requests have one effect and one answer, whatever happens between them."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from conftest import Connect, Running, Serve

from orchestrator import auth, db
from orchestrator.errors import Unavailable
from orchestrator.wire import Call, Endpoint, Reply

KEY = {"Authorization": f"Bearer {auth.SYSTEM_AGENT}"}
GOOD = {"pipeline": [{"id": "a", "uses": "set", "with": {"x": 1}}]}
TASK = {"title": "T", "schedule_kind": "cron", "schedule_expr": "30 8 * * *", "payload": GOOD}


class App:
    def __init__(self, running: Running, conn: db.Connection) -> None:
        self.running, self.conn = running, conn

    async def post(self, key: str, path: str = "/tasks", json: Any = None) -> httpx2.Response:
        headers = {**KEY, "Idempotency-Key": key}
        return await self.running.client.post(path, json=json, headers=headers)

    async def count(self, table: str = "task") -> int:
        cursor = await self.conn.execute(f"select count(*) as n from orchestrator.{table}".encode())
        row = await cursor.fetchone()
        assert row is not None
        return int(row["n"])


@pytest.fixture
async def app(serve: Serve, conn: db.Connection) -> App:
    await db.call(conn, "ensure_system_agent")
    return App(await serve(), conn)


async def test_the_same_request_is_answered_alike_and_does_nothing_more(app: App) -> None:
    first = await app.post("k", json=TASK)
    again = await app.post("k", json=TASK)
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.content == again.content
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["location"] == first.headers["location"]
    assert again.headers["etag"] == first.headers["etag"]
    assert again.headers["x-request-id"] != first.headers["x-request-id"]
    assert await app.count() == 1
    assert (await app.post("other", json=TASK)).json()["id"] != first.json()["id"]


async def test_another_request_with_the_key_is_refused(app: App) -> None:
    await app.post("k", json=TASK)
    answer = await app.post("k", json={**TASK, "title": "U"})
    assert (answer.status_code, answer.json()["error"]) == (422, "malformed")
    assert await app.count() == 1


async def test_a_key_belongs_to_its_route_its_principal_and_its_tenant(app: App) -> None:
    made = await app.post("k", json=TASK)
    run = await app.post("k", f"/tasks/{made.json()['id']}/run_now")
    assert run.status_code == 200, run.text
    assert run.json()["details"]["run_id"]
    principals = await app.conn.execute(
        b"select distinct tenant_id, principal from orchestrator.reply"
    )
    assert [*await principals.fetchall()] == [
        {"tenant_id": "default", "principal": auth.SYSTEM_AGENT}
    ]
    await app.conn.execute(b"update orchestrator.reply set principal = 'somebody else'")
    assert (await app.post("k", json=TASK)).json()["id"] != made.json()["id"]
    await app.conn.execute(b"update orchestrator.reply set tenant_id = 'another'")
    assert "idempotency-replayed" not in (await app.post("k", json=TASK)).headers
    assert await app.count() == 3


async def test_a_first_try_that_was_refused_leaves_nothing(app: App) -> None:
    task = (await app.post("t", json=TASK)).json()["id"]
    path = f"/tasks/{task}/snooze"
    assert (await app.post("k", path, {})).status_code == 422
    assert (await app.post("k", path, {"seconds": 60})).status_code == 200
    assert (await app.post("b", json={**TASK, "payload": {}})).status_code == 422
    assert (await app.post("b", json=TASK)).status_code == 201


async def test_what_a_handler_did_before_it_failed_is_undone_with_the_answer(
    serve: Serve, conn: db.Connection
) -> None:
    await db.call(conn, "ensure_system_agent")
    failing = True

    async def twice(call: Call) -> Any:
        for _ in range(2):
            await call.app.pool.call("enqueue", tenant="default", pipeline=GOOD)
        if failing:
            raise Unavailable("in the middle")
        return {"done": True}

    endpoint = Endpoint("POST", "/twice", "twice", handler=twice, scope="", status=201)
    app = App(await serve(endpoints=[endpoint]), conn)
    assert (await app.post("k", "/twice")).status_code == 503
    assert (await app.count("due_work"), await app.count("reply")) == (0, 0)
    failing = False
    for replayed in (None, "true"):
        answer = await app.post("k", "/twice")
        assert (answer.status_code, answer.json()) == (201, {"done": True})
        assert answer.headers.get("idempotency-replayed") == replayed
    assert await app.count("due_work") == 2


async def test_a_request_in_flight_is_a_conflict_that_says_when_to_ask_again(
    serve: Serve, conn: db.Connection
) -> None:
    await db.call(conn, "ensure_system_agent")
    go, inside = asyncio.Event(), asyncio.Event()

    async def slow(call: Call) -> Any:
        inside.set()
        await go.wait()
        return {}

    app = App(
        await serve(endpoints=[Endpoint("POST", "/slow", "slow", handler=slow, scope="")]), conn
    )
    first = asyncio.create_task(app.post("k", "/slow"))
    await inside.wait()
    busy = await app.post("k", "/slow")
    assert (busy.status_code, busy.json()["error"]) == (409, "conflict")
    assert busy.headers["retry-after"] == "1"
    go.set()
    assert (await first).status_code == 200
    assert (await app.post("k", "/slow")).headers["idempotency-replayed"] == "true"


async def test_an_answer_that_is_shown_once_is_not_kept(serve: Serve, conn: db.Connection) -> None:
    await db.call(conn, "ensure_system_agent")

    async def secret(call: Call) -> Reply:
        return Reply(body={"key": "ork_secret"}, status=201, shown_once=True)

    endpoint = Endpoint("POST", "/secret", "secret", handler=secret, scope="", status=201)
    app = App(await serve(endpoints=[endpoint]), conn)
    assert (await app.post("k", "/secret")).json() == {"key": "ork_secret"}
    again = await app.post("k", "/secret")
    assert (again.status_code, "ork_secret" in again.text) == (409, False)
    cursor = await conn.execute(b"select reply::text as t from orchestrator.reply")
    assert "secret}" not in str(await cursor.fetchall())
    assert "ork_" not in str(await cursor.fetchall())


async def test_strangers_share_no_keys(serve: Serve, conn: db.Connection) -> None:
    async def echo(call: Call) -> Any:
        return call.path

    endpoint = Endpoint("POST", "/open/{token}", "open", handler=echo)
    app = App(await serve(endpoints=[endpoint]), conn)
    for token in ("a", "b"):
        assert (await app.post("k", f"/open/{token}")).json() == {"token": token}


async def test_a_key_is_free_again_after_a_day(app: App) -> None:
    await app.post("k", json=TASK)
    await app.conn.execute(
        b"update orchestrator.reply"
        b" set answered_at = orchestrator.now() - interval '24 hours 1 second'"
    )
    assert "idempotency-replayed" not in (await app.post("k", json=TASK)).headers
    assert await app.count() == 2
    assert (await app.post("k", json=TASK)).headers["idempotency-replayed"] == "true"
    await app.conn.execute(b"update orchestrator.reply set answered_at = '2020-01-01'")
    assert (await db.call_one(app.conn, "purge"))["purge"] == 1


@pytest.mark.parametrize("key", ["", "x" * 256, "a b", "ä"])
async def test_a_key_that_makes_no_sense_is_refused(app: App, key: str) -> None:
    headers: Any = {b"Authorization": KEY["Authorization"].encode(),
                    b"Idempotency-Key": key.encode("latin-1")}  # fmt: skip
    answer = await app.running.client.post("/tasks", json=TASK, headers=headers)
    assert answer.status_code == 422
    two: Any = [(b"Authorization", headers[b"Authorization"]), (b"Idempotency-Key", b"a"),
                (b"Idempotency-Key", b"b")]  # fmt: skip
    assert (await app.running.client.post("/tasks", json=TASK, headers=two)).status_code == 422
    assert await app.count() == 0


async def test_every_post_of_the_product_takes_a_key(app: App) -> None:
    """Told by the answer to a bad one, which comes before anything is done."""
    from orchestrator.api import ENDPOINTS

    for endpoint in ENDPOINTS:
        if endpoint.method == "POST" and endpoint.body is None:
            path = endpoint.path.replace(":uuid", "").format(
                task=uuid4(),
                run=uuid4(),
                step="a",
                token="t",
                agent=uuid4(),
                name="n",
                sink="s",
                user=uuid4(),
            )
            answer = await app.post("a b", path)
            assert answer.status_code == 422, endpoint.path


async def test_parallel_equal_posts_make_one_thing_for_each_key(
    serve: Serve, connect: Connect, pytestconfig: pytest.Config
) -> None:
    conn = await connect(timeout=60)
    await db.call(conn, "ensure_system_agent")
    apps = [App(await serve(pool_size=8), conn) for _ in range(2)]
    keys = 1000 if pytestconfig.getoption("--soak") else 12
    for n in range(keys):
        posts = [apps[i % 2].post(f"key-{n}", json={**TASK, "title": f"T{n}"}) for i in range(64)]
        answers = await asyncio.gather(*posts)
        made = {answer.json()["id"] for answer in answers if answer.status_code == 201}
        assert len(made) == 1
        assert {answer.status_code for answer in answers} <= {201, 409, 503}
        again = await apps[0].post(f"key-{n}", json={**TASK, "title": f"T{n}"})
        assert again.json()["id"] in made
    assert await apps[0].count() == keys
