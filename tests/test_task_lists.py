"""Lists of tasks, and many tasks at once."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import pytest
from conftest import Running, Serve

from orchestrator import auth, db

KEY = {"Authorization": f"Bearer {auth.SYSTEM_AGENT}"}
GOOD = {"pipeline": [{"id": "a", "uses": "set", "with": {"x": 1}}]}


def task(**said: Any) -> dict[str, Any]:
    given = {"title": "T", "schedule_kind": "cron", "schedule_expr": "30 8 * * *", "payload": GOOD}
    return {**given, **said}


class App:
    def __init__(self, running: Running, conn: db.Connection) -> None:
        self.running, self.conn = running, conn

    async def post(self, path: str, json: Any, **headers: str) -> httpx2.Response:
        return await self.running.client.post(path, json=json, headers={**KEY, **headers})

    async def make(self, **said: Any) -> str:
        answer = await self.post("/tasks", task(**said))
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    async def page(self, **query: Any) -> dict[str, Any]:
        answer = await self.running.client.get("/tasks", params=query, headers=KEY)
        assert answer.status_code == 200, answer.text
        page: dict[str, Any] = answer.json()
        return page

    async def found(self, **query: Any) -> list[str]:
        return [item["id"] for item in (await self.page(**query))["items"]]


@pytest.fixture
async def app(serve: Serve, conn: db.Connection) -> App:
    await db.call(conn, "ensure_system_agent")
    return App(await serve(), conn)


async def test_tasks_are_listed_newest_first_as_they_are_read(app: App) -> None:
    made = [await app.make(title=f"T{n}") for n in range(3)][::-1]
    page = await app.page()
    assert [item["id"] for item in page["items"]] == made
    assert (page["total"], page["limit"], page["offset"], page["has_more"]) == (3, 50, 0, False)
    one = await app.running.client.get(f"/tasks/{made[0]}", headers=KEY)
    assert page["items"][0] == one.json()


async def test_filters_choose_tasks(app: App) -> None:
    plain = await app.make(title="Morning briefing", description="100% for the boss")
    event = await app.make(schedule_kind="event", schedule_expr="orders.*", labels={"team": "ops"})
    paused = await app.make()
    await app.post(f"/tasks/{paused}/pause", None)
    assert await app.found(status="paused") == [paused]
    assert await app.found(status="active") == [event, plain]
    assert await app.found(schedule_kind="event") == [event]
    assert await app.found(q="BRIEF") == await app.found(q="100%") == [plain]
    assert await app.found(q="%") == [plain]
    assert await app.found(label="team:ops") == await app.found(label="team") == [event]
    assert await app.found(label="team:dev") == []
    assert len(await app.found(created_by=auth.SYSTEM_AGENT)) == 3
    assert await app.found(created_by="01900000-0000-7000-8000-000000000000") == []


async def test_an_agent_sees_its_own_tasks_and_their_runs_an_admin_all(app: App) -> None:
    mine = await app.make()
    await app.post(f"/tasks/{mine}/run_now", None)
    other = "01900000-0000-7000-8000-000000000001"
    await app.conn.execute(
        b"insert into orchestrator.principal (tenant_id, id, kind, name)"
        b" values ('default', '01900000-0000-7000-8000-000000000001', 'agent', 'other')"
    )
    theirs = await app.make(created_by=other)
    run = (await app.post(f"/tasks/{theirs}/run_now", None)).json()["details"]["run_id"]
    assert await app.found() == [theirs, mine]
    scopes = "{tasks:read,tasks:write,runs:read,runs:write}"
    await app.conn.execute(b"update orchestrator.principal set scopes = %s", [scopes])
    while (found := await app.found()) == [theirs, mine]:
        await asyncio.sleep(0.05)  # half a second, while the scopes before are believed
    assert found == [mine]
    get = app.running.client.get
    runs = (await get("/runs", headers=KEY)).json()
    assert [one["task_id"] for one in runs["items"]] == [mine]
    for path in (f"/runs/{run}", f"/runs/{run}/why", f"/runs/{run}/output"):
        assert (await get(path, headers=KEY)).status_code == 404
    for path in ("cancel", "retry", "retry_from/a"):
        assert (await app.post(f"/runs/{run}/{path}", None)).status_code == 404


async def test_pages_by_offset_and_by_cursor_are_the_same(app: App) -> None:
    made = [await app.make() for _ in range(5)][::-1]
    assert await app.found(limit=2, offset=2) == made[2:4]
    first = await app.page(limit=2)
    assert first["next_cursor"] == made[1]
    assert await app.found(limit=2, cursor=first["next_cursor"]) == made[2:4]
    last = await app.page(limit=2, cursor=made[3])
    assert ([item["id"] for item in last["items"]], last["next_cursor"]) == (made[4:], None)
    assert last["total"] == 5


async def test_of_many_tasks_each_stands_or_falls_alone(app: App) -> None:
    items = [
        task(title="first", dedupe_key="d"),
        task(schedule_expr="61 8 * * *"),
        {"title": "", "priority": 12, "nope": 1},
        task(payload={"pipeline": [{"id": "a", "uses": "set", "with": {"x": "${1 +}"}}]}),
        task(title="same key", dedupe_key="d"),
        task(schedule_kind="event", schedule_expr="orders.cr*"),
        task(created_by="01900000-0000-7000-8000-000000000001"),
        "no task",
        task(title="last", labels={"a": 1}, starts_at="2030-01-01T00:00:00Z"),
    ]
    answer = await app.post("/tasks/bulk", {"items": items})
    assert answer.status_code == 200, answer.text
    said = answer.json()
    assert [row["index"] for row in said["items"]] == [*range(9)]
    assert [row["status"] for row in said["items"]] == [
        201, 422, 422, 422, 409, 422, 409, 422, 201,
    ]  # fmt: skip
    assert (said["created"], said["failed"]) == (2, 7)
    places = said["items"][2]["detail"]
    assert ["body", "items", 2, "nope"] in [place["loc"] for place in places]
    assert len(places) >= 5
    titles = {item["title"]: item for item in (await app.page())["items"]}
    assert titles.keys() == {"first", "last"}
    assert titles["last"]["labels"] == {"a": 1}
    assert titles["last"]["starts_at"].startswith("2030-01-01")
    assert titles["first"]["next_run_at"]


async def test_what_is_made_in_bulk_is_what_is_made_alone(app: App) -> None:
    said = task(
        description="d", priority=2, max_retries=1, backoff_strategy="fixed", overlap="skip",
        concurrency_key="k", concurrency_limit=3, catch_up="all", grace_seconds=7.5, queue="q",
        timeout_seconds=9, jitter_seconds=0, timezone="UTC", dst_gap="skip", labels={"a": "b"},
    )  # fmt: skip
    alone = await app.make(**said)
    answer = await app.post("/tasks/bulk", {"items": [said]})
    both = {item["id"]: item for item in (await app.page())["items"]}
    one, other = both[alone], both[answer.json()["items"][0]["id"]]
    fleeting = {"id", "created_at", "updated_at"}
    assert {n: v for n, v in one.items() if n not in fleeting} == {
        n: v for n, v in other.items() if n not in fleeting
    }


async def test_bulk_is_bounded_and_said_again_does_nothing_more(app: App) -> None:
    assert (await app.post("/tasks/bulk", {"items": []})).status_code == 422
    assert (await app.post("/tasks/bulk", {"items": [1] * 10_001})).status_code == 422
    items = [task(title=f"T{n}") for n in range(600)]
    for _ in range(2):
        answer = await app.post("/tasks/bulk", {"items": items}, **{"Idempotency-Key": "k"})
        assert answer.json()["created"] == 600
    assert (await app.page(limit=1))["total"] == 600


@pytest.mark.soak
async def test_ten_thousand_tasks_are_made_in_one_request(app: App) -> None:
    items = [task(title=f"T{n}") for n in range(10_000)]
    answer = await app.running.client.post(
        "/tasks/bulk", json={"items": items}, headers=KEY, timeout=120
    )
    assert answer.json()["created"] == 10_000
