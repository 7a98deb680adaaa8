"""Tasks end to end: the API makes them, schedulers fire them, workers run them."""

# ruff: noqa: E501
from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4
from zoneinfo import ZoneInfo

import httpx2
import pytest
from conftest import Make, Serve
from psycopg.types.json import Jsonb

from orchestrator import auth, db, scheduler, worker
from orchestrator import expr as expressions
from orchestrator.schedules import rules, tasks
from orchestrator.schedules.plan import RecentPlans
from orchestrator.schedules.rules import Rule

KEY = {"Authorization": f"Bearer {auth.SYSTEM_AGENT}"}
SET = {"pipeline": [{"id": "a", "uses": "set", "with": {"x": 1}}]}


def task(**said: Any) -> dict[str, Any]:
    given = {"title": "T", "schedule_kind": "cron", "schedule_expr": "30 8 * * *", "payload": SET}
    return {**given, **said}


async def test_a_task_is_made_and_says_when_it_runs_next(serve: Serve, conn: db.Connection) -> None:
    await db.call(conn, "ensure_system_agent")
    app = await serve()
    answer = await app.client.post("/tasks", json=task(), headers=KEY)
    assert answer.status_code == 201, answer.text
    made = answer.json()
    at = datetime.fromisoformat(made["next_run_at"])
    assert at > datetime.now(UTC) and at - datetime.now(UTC) <= timedelta(days=1)
    assert (made["status"], made["version"], answer.headers["etag"]) == ("active", 1, '"1"')
    again = await app.client.get(f"/tasks/{made['id']}", headers=KEY)
    assert again.json() == made


async def test_a_single_time_fires_once_and_completes_the_task(
    serve: Serve, conn: db.Connection, make: Make
) -> None:
    await db.call(conn, "ensure_system_agent")
    app = await serve()
    said = task(schedule_kind="once", schedule_expr=datetime.now(UTC).isoformat())
    made = (await app.client.post("/tasks", json=said, headers=KEY)).json()
    async with db.Pool(make.config(), role="orc_worker", application="t") as pool:
        await scheduler.once(pool)
    assert await worker.once(make.config()) == 1
    found = (await app.client.get(f"/tasks/{made['id']}", headers=KEY)).json()
    assert (found["status"], found["next_run_at"]) == ("completed", None)
    cursor = await conn.execute("select kind, state, task_id, output from orc.runs")
    row = await cursor.fetchone()
    assert row is not None
    assert (row["kind"], row["state"], str(row["task_id"])) == ("task", "succeeded", made["id"])


async def test_a_task_is_planned_by_the_clock_of_now_though_the_one_remembered_was_set(
    serve: Serve, conn: db.Connection
) -> None:
    """Which instants come next is asked anew when the remembered time isn't of the last minute."""
    await db.call(conn, "ensure_system_agent")
    app = await serve()
    for hours in (-3, 3):
        app.api.clock._said = datetime.now(UTC) + timedelta(hours=hours), time.monotonic()
        answer = await app.client.post("/tasks", json=task(schedule_expr="* * * * *"), headers=KEY)
        assert answer.status_code == 201, answer.text
        at = datetime.fromisoformat(answer.json()["next_run_at"])
        assert timedelta(seconds=-1) < at - datetime.now(UTC) <= timedelta(minutes=1)
    cursor = await conn.execute("select count(*) as n from orchestrator.task")
    assert await cursor.fetchone() == {"n": 2}


@pytest.fixture
async def app(serve: Serve, conn: db.Connection) -> httpx2.AsyncClient:
    """A client that sends the key of the system agent."""
    await db.call(conn, "ensure_system_agent")
    client = (await serve()).client
    client.headers.update(KEY)
    return client


async def made(app: httpx2.AsyncClient, **said: Any) -> dict[str, Any]:
    answer = await app.post("/tasks", json=task(**said))
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    assert answer.headers["location"] == f"/tasks/{found['id']}"
    return found


def places(answer: httpx2.Response) -> list[str]:
    return sorted(".".join(map(str, place["loc"])) for place in answer.json()["detail"])


BAD: list[tuple[dict[str, Any], list[str]]] = [
    ({"title": "", "priority": 0, "payload": [], "colour": 1},
     ["body.colour", "body.payload", "body.priority", "body.title"]),
    ({"schedule_expr": "61 * * * *", "payload": {"pipeline": [{"id": "a", "uses": "set", "if": "${1 +}"}]}},
     ["body.payload.pipeline.0.if", "body.schedule_expr"]),
    ({"timezone": "Mars/Olympus"}, ["body.timezone"]),
    ({"schedule_kind": "event", "schedule_expr": "a.b", "timezone": "Mars/Olympus"}, ["body.timezone"]),
    ({"schedule_kind": "once", "schedule_expr": "2020-01-01T00:00"}, ["body.schedule_expr"]),
    ({"schedule_kind": "once", "schedule_expr": "noon"}, ["body.schedule_expr"]),
    ({"schedule_kind": "event", "schedule_expr": "a.b when event.x ="}, ["body.schedule_expr"]),
    ({"schedule_kind": "condition", "schedule_expr": "every 5m when result.x >",
      "payload": {**SET, "probe": {"uses": "set", "timeout": "soon"}}},
     ["body.payload.probe.timeout", "body.schedule_expr"]),
    ({"starts_at": "2026-01-02T00:00:00Z", "ends_at": "2026-01-01T00:00:00Z"}, ["body.ends_at"]),
    ({"schedule_kind": "event", "schedule_expr": "a.b", "starts_at": "2026-01-02T00:00:00Z",
      "ends_at": "2026-01-01T00:00:00Z"}, ["body.ends_at"]),
    ({"starts_at": "2026-01-02T00:00:00"}, ["body.starts_at"]),
    ({"max_retries": 11, "catch_up": "some", "overlap": "wait", "jitter_seconds": -1},
     ["body.catch_up", "body.jitter_seconds", "body.max_retries", "body.overlap"]),
    ({"overlap": "queue", "concurrency_key": "k"}, ["body"]),
]  # fmt: skip


async def test_a_task_that_can_not_be_is_refused_with_every_problem_and_its_place(
    app: httpx2.AsyncClient,
) -> None:
    for said, expected in BAD:
        answer = await app.post("/tasks", json=task(**said))
        assert (answer.status_code, places(answer)) == (422, expected), answer.text
    kept = await made(app)
    for said, expected in BAD[1:4]:
        answer = await app.put(f"/tasks/{kept['id']}", json=said)
        assert (answer.status_code, places(answer)) == (422, expected), answer.text
    assert (await app.get(f"/tasks/{kept['id']}")).json() == kept


async def test_all_fields_are_read_back(app: httpx2.AsyncClient) -> None:
    said = task(
        description="D", timezone="Asia/Tokyo", priority=1, dedupe_key="k", dedupe_window_seconds=60.0,
        max_retries=0, backoff_strategy="fixed", concurrency_key="c", concurrency_limit=2,
        created_by=auth.SYSTEM_AGENT, catch_up="all", catch_up_limit=7, grace_seconds=5.0, overlap="skip",
        jitter_seconds=3.0, dst_gap="skip", dst_fold="both", starts_at="2026-01-01T00:00:00Z",
        ends_at="2056-01-01T00:00:00Z", queue="q", timeout_seconds=9.0, labels={"team": "a"},
    )  # fmt: skip
    found = await made(app, **said)
    assert {name: found[name] for name in said} == said
    changes = {"starts_at": "2026-02-01T00:00:00Z", "ends_at": None, "labels": None, "priority": 9}
    changed = (await app.put(f"/tasks/{found['id']}", json=changes)).json()
    assert {name: changed[name] for name in said} == {**said, **changes}
    assert changed["version"] == 2


async def test_a_change_is_by_version_when_the_caller_names_one(app: httpx2.AsyncClient) -> None:
    place = f"/tasks/{(await made(app))['id']}"
    first = await app.put(place, json={"title": "U"}, headers={"If-Match": '"1"'})
    assert (first.status_code, first.headers["etag"]) == (200, '"2"')
    stale = await app.put(place, json={"title": "V"}, headers={"If-Match": '"1"'})
    assert (stale.status_code, stale.json()["error"]) == (412, "stale")
    assert "its version is 2" in stale.json()["message"]
    assert (await app.put(place, json={}, headers={"If-Match": "abc"})).status_code == 422
    assert (await app.put(place, json={"title": "W"}, headers={"If-Match": "*"})).status_code == 200
    both = [app.put(place, json={"priority": n}) for n in (1, 2, 3, 4)]
    assert [a.status_code for a in await asyncio.gather(*both)] == [200] * 4
    assert (await app.get(place)).json()["version"] == 7


async def test_what_is_not_there_is_not_found_whatever_is_asked(
    app: httpx2.AsyncClient, conn: db.Connection
) -> None:
    foreign = await db.call_one(conn, "create_task", tenant="other", title="T", schedule_kind="cron",
                                schedule_expr="30 8 * * *", payload=Jsonb(SET))  # fmt: skip
    window = {"from": "2026-01-01T00:00:00Z", "to": "2026-01-02T00:00:00Z"}
    asks: list[tuple[str, str, Any]] = [
        ("GET", "", None), ("PUT", "", {"title": "U"}), ("POST", "/run_now", None), ("POST", "/pause", None),
        ("POST", "/snooze", {"seconds": 9}), ("POST", "/resume", None), ("POST", "/cancel", None),
        ("POST", "/backfill", window), ("GET", "/preview", None), ("GET", "/occurrences", None),
        ("GET", "/why_not?instant=2026-01-01T00:00:00Z", None),
    ]  # fmt: skip
    for id in (foreign["create_task"]["id"], str(uuid4()), "not-an-id"):
        for method, path, body in asks:
            answer = await app.request(method, f"/tasks/{id}{path}", json=body)
            assert answer.status_code == 404, (method, path, answer.text)
            assert answer.json()["error"] == "not_found"
    assert (await app.get("/tasks/" + "a" * 32)).status_code == 404


async def test_tasks_are_run_snoozed_paused_resumed_and_canceled(app: httpx2.AsyncClient) -> None:
    found = await made(app)
    place = f"/tasks/{found['id']}"

    async def say(deed: str, body: Any = None, status: int = 200) -> dict[str, Any]:
        answer = await app.post(f"{place}/{deed}/", json=body)  # with a slash: no redirect
        assert answer.status_code == status, answer.text
        said: dict[str, Any] = answer.json()
        return said

    ran = await say("run_now")
    assert ran["success"] and ran["details"]["run_id"] == ran["details"]["due_work_id"]
    assert ran["details"]["next_run_at"] == found["next_run_at"]
    for name in ("seconds", "delay_seconds"):
        snoozed = await say("snooze", {name: 60, "reason": "lunch"})
    before = datetime.fromisoformat(found["next_run_at"])
    assert datetime.fromisoformat(snoozed["details"]["next_run_at"]) == before + timedelta(
        minutes=2
    )
    for body in ({}, {"seconds": 1, "delay_seconds": 1}, {"seconds": 0}, {"seconds": 604801}):
        await say("snooze", body, 422)
    assert "next_run_at" not in (await say("pause"))["details"]
    assert (await app.get(place)).json()["status"] == "paused"
    await say("snooze", {"seconds": 60}, 409)
    await say("run_now")
    await say("resume")
    await say("cancel")
    await say("cancel")
    for deed in ("resume", "pause", "run_now"):
        assert "canceled" in (await say(deed, None, 409))["message"]
    assert (await app.put(place, json={"title": "U"})).status_code == 409


async def test_a_second_live_task_of_a_dedupe_key_is_a_conflict(app: httpx2.AsyncClient) -> None:
    first = await made(app, dedupe_key="k")
    again = await app.post("/tasks", json=task(dedupe_key="k"))
    assert (again.status_code, again.json()["details"]["which"]) == (409, first["id"])


async def test_rules_are_previewed_saved_or_not(app: httpx2.AsyncClient) -> None:
    rule = {"schedule_kind": "cron", "schedule_expr": "30 2 * * *", "timezone": "Europe/Chisinau"}
    ask = {"from": "2026-03-28T00:00:00Z", "n": 3}
    unsaved = (await app.post("/tasks/preview", json={**rule, **ask})).json()
    assert [item["mark"] for item in unsaved["items"]] == [None, "gap", None]
    assert unsaved["items"][1] == {
        "at": "2026-03-29T00:30:00Z",
        "local": "2026-03-29T02:30:00",
        "mark": "gap",
    }
    assert "02:30" in unsaved["text"]
    saved = await made(app, **rule)
    query = {"from": "2026-03-28T00:00:00Z", "n": "3"}
    shown = (await app.get(f"/tasks/{saved['id']}/preview", params=query)).json()
    assert shown["text"] == unsaved["text"]
    assert shown["items"] == unsaved["items"]
    listens = await made(app, schedule_kind="event", schedule_expr="a.b")
    assert (await app.get(f"/tasks/{listens['id']}/preview")).status_code == 409
    bad = await app.post("/tasks/preview", json={**rule, "schedule_expr": "nonsense"})
    assert (bad.status_code, places(bad)) == (422, ["body.schedule_expr"])
    assert (await app.get(f"/tasks/{saved['id']}/preview", params={"n": "201"})).status_code == 422


async def test_no_rule_is_read_or_looked_at_on_the_event_loop(
    app: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks, however: what takes long holds up nobody else."""
    places: list[tuple[str, bool]] = []

    def watched(name: str, function: Any) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            places.append((name, threading.current_thread() is threading.main_thread()))
            return function(*given, **named)

        return call

    for name in ("_compiled", "describe"):
        monkeypatch.setattr(rules, name, watched(name, getattr(rules, name)))
    monkeypatch.setattr(tasks, "describe", rules.describe)
    monkeypatch.setattr(Rule, "after", watched("after", Rule.after))
    monkeypatch.setattr(expressions, "condition", watched("condition", expressions.condition))
    found = await made(app, schedule_expr="7 * * * *")
    path = f"/tasks/{found['id']}"
    unsaved = {"schedule_kind": "cron", "schedule_expr": "8 * * * *"}
    hour = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    for request in (
        app.put(path, json={"schedule_expr": "9 * * * *"}),
        app.get(f"{path}/preview"),
        app.post("/tasks/preview", json=unsaved),
        app.post(f"{path}/backfill", json={"from": hour, "to": datetime.now(UTC).isoformat()}),
        app.post("/tasks", json=task(schedule_kind="event", schedule_expr="a when event.payload")),
        app.post("/tasks/bulk", json={"items": [task(schedule_expr="10 * * * *")]}),
    ):
        answer = await request
        assert answer.status_code < 300, answer.text
    assert {name for name, _ in places} == {"_compiled", "describe", "after", "condition"}
    assert not any(is_on_loop for _, is_on_loop in places), places


async def test_the_past_is_backfilled_and_stands_in_the_ledger(
    app: httpx2.AsyncClient, conn: db.Connection
) -> None:
    found = await made(app, schedule_expr="0 * * * *", timezone="UTC")
    place = f"/tasks/{found['id']}"
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    window = {"from": (hour - timedelta(hours=2)).isoformat(), "to": hour.isoformat()}
    dry = (await app.post(f"{place}/backfill", json=window)).json()
    assert (dry["dry_run"], [item["state"] for item in dry["items"]]) == (
        True,
        ["would be backfilled"] * 3,
    )
    done = (await app.post(f"{place}/backfill", json={**window, "dry_run": False})).json()
    assert [item["state"] for item in done["items"]] == ["backfilled"] * 3
    rows = (await app.get(f"{place}/occurrences", params={"limit": "2"})).json()
    assert [row["run_id"] for row in rows] == [
        item["run_id"] for item in reversed(done["items"][1:])
    ]
    more = (await app.get(f"{place}/occurrences", params={"before": rows[-1]["nominal_at"]})).json()
    assert [row["state"] for row in more] == ["backfilled"]
    (why,) = (await app.get(f"{place}/why_not", params={"instant": hour.isoformat()})).json()
    assert (why["cause"], why["evidence"]["run"]) == ("it fired", rows[0]["run_id"])
    long = {"from": (hour - timedelta(hours=1000)).isoformat(), "to": hour.isoformat()}
    assert places(await app.post(f"{place}/backfill", json=long)) == ["body.to"]
    future = {"from": hour.isoformat(), "to": (hour + timedelta(hours=1)).isoformat()}
    assert (await app.post(f"{place}/backfill", json=future)).status_code == 422
    assert (await app.get(f"{place}/why_not")).status_code == 422
    await conn.execute("select orc.keep_partitions()")  # soon after midnight two are of yesterday


async def test_a_single_time_is_in_the_zone_of_its_task_and_may_be_a_little_late(
    app: httpx2.AsyncClient,
) -> None:
    later = datetime.now(ZoneInfo("Asia/Tokyo")) + timedelta(hours=1)
    said = {
        "schedule_kind": "once",
        "schedule_expr": later.strftime("%Y-%m-%dT%H:%M:%S"),
        "timezone": "Asia/Tokyo",
    }
    found = await made(app, **said)
    assert datetime.fromisoformat(found["next_run_at"]) == later.replace(microsecond=0)
    past = (datetime.now(UTC) - timedelta(minutes=30)).isoformat()
    assert (
        await app.post("/tasks", json=task(**said | {"schedule_expr": past}))
    ).status_code == 422
    late = await made(app, **said | {"schedule_expr": past}, grace_seconds=3600)
    assert datetime.fromisoformat(late["next_run_at"]) == datetime.fromisoformat(past)
    shown = (await app.get(f"/tasks/{late['id']}/preview")).json()
    assert shown["items"] == []
    changed = await made(app)
    now = datetime.now(UTC)
    said = {"schedule_kind": "once", "schedule_expr": now.isoformat()}
    answer = await app.put(f"/tasks/{changed['id']}", json=said)
    assert answer.status_code == 200, answer.text
    assert datetime.fromisoformat(answer.json()["next_run_at"]) == now
    answer = await app.put(
        f"/tasks/{(await made(app))['id']}", json={**said, "schedule_expr": past}
    )
    assert (answer.status_code, places(answer)) == (422, ["body.schedule_expr"])


async def test_a_task_is_its_callers_or_that_of_an_agent_that_exists(
    app: httpx2.AsyncClient,
) -> None:
    assert (await made(app))["created_by"] == auth.SYSTEM_AGENT
    nobody = await app.post("/tasks", json=task(created_by=str(uuid4())))
    assert (nobody.status_code, "creator exists" in nobody.json()["message"]) == (409, True)


async def test_kinds_are_switched_over_http(app: httpx2.AsyncClient, make: Make) -> None:
    place = f"/tasks/{(await made(app))['id']}"
    probe = {**SET, "probe": {"uses": "set", "with": {"x": 1}}}
    for kind, expr, payload in (
        ("event", "a.b", None), ("condition", "every 5m when result.x > 0", probe),
        ("once", "2056-01-01T00:00", None), ("rrule", "FREQ=DAILY", None),
        ("condition", "count(a.b) >= 3 within 5m", None), ("cron", "0 9 * * *", None),
    ):  # fmt: skip
        said = {"schedule_kind": kind, "schedule_expr": expr} | (
            {"payload": payload} if payload else {}
        )
        async with db.Pool(make.config(), role="orc_worker", application="t") as pool:
            await scheduler.once(pool)
        answer = await app.put(place, json=said)
        assert answer.status_code == 200, answer.text
        timed = kind in ("once", "rrule", "cron")
        assert (answer.json()["next_run_at"] is not None) == timed
        assert ("probe" in answer.json()["payload"]) == (payload is not None)


async def test_the_briefing_of_the_readme_runs_as_printed(
    serve: Serve, conn: db.Connection, make: Make, tmp_path: Path
) -> None:
    """Its body, by the servers that bin/up brings."""
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    body = json.loads(readme.partition("application/json\" -d '")[2].partition("'\n")[0])
    sent, module = tmp_path / "telegram.jsonl", ["-m", "orchestrator.demo"]
    servers = {
        "weather": {"command": sys.executable, "args": [*module, "weather"]},
        "telegram": {"command": sys.executable, "args": [*module, "telegram", str(sent)]},
    }
    (tmp_path / "mcp.json").write_text(json.dumps({"mcpServers": servers}))
    await db.call(conn, "ensure_system_agent")
    app = await serve()
    made = (await app.client.post("/tasks", json=body, headers=KEY)).json()
    ran = await app.client.post(f"/tasks/{made['id']}/run_now", headers=KEY)
    assert ran.status_code == 200
    assert await worker.once(make.config(mcp_servers_path=tmp_path / "mcp.json")) == 1
    cursor = await conn.execute("select state, output, error from orc.runs")
    row = await cursor.fetchone()
    assert row is not None and row["state"] == "succeeded", row
    message = json.loads(sent.read_text())
    assert (message["chat_id"], message["text"]) == (12345, row["output"]["weather"]["summary"])


# Plans that are taken for tasks with the same rule


MONDAY = datetime(2026, 3, 2, 8, tzinfo=UTC)
RULE: dict[str, Any] = {
    "schedule_kind": "cron", "schedule_expr": "*/5 * * * *", "timezone": "UTC", "dst_gap": "shift",
    "dst_fold": "second", "starts_at": None, "ends_at": None,
}  # fmt: skip


def kept(**said: Any) -> RecentPlans:
    """What was planned on Monday at eight."""
    recent, rule = RecentPlans(), {**RULE, **said}
    recent.keep(rule, MONDAY, tasks.planned(rule, MONDAY, MONDAY))
    return recent


@pytest.mark.parametrize(
    ("expr", "seconds", "is_taken"),
    [("*/5 * * * *", 0, True), ("*/5 * * * *", 59.9, True), ("*/5 * * * *", 60, False),
     ("*/5 * * * *", -0.001, False), ("1 8 * * *", 59.9, True), ("1 8 * * *", 60, False)],
)  # fmt: skip
def test_a_plan_is_taken_for_a_minute_and_while_none_of_its_instants_has_come(
    expr: str, seconds: float, is_taken: bool
) -> None:
    rule, start = {**RULE, "schedule_expr": expr}, MONDAY + timedelta(seconds=seconds)
    taken = kept(schedule_expr=expr).plan(rule, start)
    assert (taken is not None) == is_taken
    assert taken in (None, tasks.planned(rule, start, start))


def test_the_first_instant_ends_a_plan_however_young_it_is() -> None:
    recent, before = RecentPlans(), MONDAY - timedelta(seconds=2)
    recent.keep(RULE, before, tasks.planned(RULE, before, before))
    assert recent.plan(RULE, MONDAY - timedelta(microseconds=1)) is not None
    assert recent.plan(RULE, MONDAY) is None


@pytest.mark.parametrize("field", RULE)
def test_a_plan_is_taken_for_the_whole_rule_only(field: str) -> None:
    other = {"schedule_kind": "rrule", "schedule_expr": "*/6 * * * *", "timezone": "Asia/Tokyo",
             "dst_gap": "skip", "dst_fold": "both", "starts_at": MONDAY, "ends_at": MONDAY}  # fmt: skip
    assert kept().plan({**RULE, "title": "another", "priority": 1}, MONDAY) is not None
    assert kept().plan({**RULE, field: other[field]}, MONDAY) is None


def test_a_plan_that_hangs_on_the_making_of_its_task_is_not_taken_for_others() -> None:
    hourly = {"schedule_kind": "rrule", "schedule_expr": "FREQ=HOURLY"}
    assert kept(**hourly).plan({**RULE, **hourly}, MONDAY) is None


def test_no_more_plans_are_kept_than_there_is_room_for() -> None:
    recent = RecentPlans(most=2)
    rules = [{**RULE, "schedule_expr": f"{n} * * * *"} for n in (1, 2, 3)]
    for rule in rules:
        recent.keep(rule, MONDAY, tasks.planned(rule, MONDAY, MONDAY))
    assert [recent.plan(rule, MONDAY) is not None for rule in rules] == [False, False, True]


@pytest.mark.breaks
async def test_rules_and_plans_without_their_task_are_a_broken_invariant(
    app: httpx2.AsyncClient, conn: db.Connection
) -> None:
    found = await made(app, schedule_expr="0 * * * *")
    assert await (await conn.execute("select * from orc.check()")).fetchall() == []
    await conn.execute("delete from orchestrator.task")
    broken = await (await conn.execute("select * from orc.check()")).fetchall()
    assert [(row["invariant"], row["subject"]) for row in broken] == [
        ("rules_and_plans_are_of_tasks", found["id"])
    ]
