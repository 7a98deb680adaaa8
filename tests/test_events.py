"""Events and the tasks that listen to them."""

# ruff: noqa: E501

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from conftest import Clock, Connect, Make, Running, Serve
from crew import Crew, until
from test_work import Claimed, Work, said

from orchestrator import auth, db, events, worker
from orchestrator.errors import Invalid, NotAllowed, Refused
from orchestrator.scheduler import Ticker
from orchestrator.wire import Principal

KEY = {"Authorization": f"Bearer {auth.SYSTEM_AGENT}"}
SET = {"pipeline": [{"id": "a", "uses": "set", "with": {"x": 1}}]}
CLOUD = {**KEY, "Content-Type": "application/cloudevents+json"}


class Desk(Work):
    """A session that makes tasks, publishes, and plays the scheduler."""

    async def open(self) -> Desk:
        await self.do("insert into orchestrator.tenant (id) values (%s) on conflict do nothing", self.tenant)  # fmt: skip
        return self

    async def claim(self, worker: uuid.UUID, want: int = 1, after: Any = None) -> list[Claimed]:
        row = await db.call_one(self.conn, "exchange_work", worker=worker, outcomes=None, want=want)
        return [Claimed(*run[:9]) for run in row["runs"] or ()]

    async def task(self, expr: str, kind: str = "event", **given: Any) -> str:
        said = {"title": expr[:50], "payload": SET, **given}
        made = await self.verb(
            "create_task", tenant=self.tenant, schedule_kind=kind, schedule_expr=expr, **said
        )
        return str(made["id"])

    async def publish(self, topic: str, payload: Any = None, **more: Any) -> db.Row:
        event = {"tenant": self.tenant, "topic": topic, "payload": payload, **more}
        async with self.conn.transaction():
            return await events.publish(self.conn, event)

    async def emit(self, topic: str, payload: Any = None, **more: Any) -> str:
        given = {"tenant": self.tenant, "topic": topic, "payload": payload, **more}
        return str(await self.verb("emit_event", **given))

    async def tick(self) -> int:
        """As a scheduler does, until nothing is left to decide. Answers the runs."""
        verdicts: list[dict[str, Any]] | None = None
        runs: int = 0
        for _ in range(50):
            row = await db.call_one(self.conn, "tick", scheduler="test", verdicts=verdicts)
            runs += row["fired"]
            if not row["undecided"] and not row["is_more"]:
                return runs
            asked = row["undecided"] or []
            verdicts = [events.judged(one, {"event": one["event"]}) for one in asked] or None
        raise AssertionError("it never ends")

    async def ledger(self, task: str | None = None) -> list[tuple[str, str | None]]:
        rows = await self.ask(
            "select state, reason from orc.occurrences where tenant_id = %s"
            " and coalesce(task_id = %s, true) order by nominal_at, id", self.tenant, task,
        )  # fmt: skip
        return [(row["state"], row["reason"]) for row in rows]

    async def fired(self, task: str) -> int:
        return sum(state == "fired" for state, _ in await self.ledger(task))


@pytest.fixture
async def desk(conn: db.Connection) -> Desk:
    return await Desk(conn).open()


@pytest.fixture
async def crew(make: Make) -> AsyncIterator[Crew]:
    crew = Crew(make.config(python_modules=("deeds",)))
    yield crew
    await crew.end()


@pytest.fixture
async def app(serve: Serve, conn: db.Connection) -> Running:
    await db.call(conn, "ensure_system_agent")
    return await serve()


async def post(app: Running, event: dict[str, Any], headers: dict[str, str] = KEY) -> Any:
    content = {"content": msgspec.json.encode(event)} if headers is CLOUD else {"json": event}
    answer = await app.client.post("/events", headers=headers, **content)
    assert answer.status_code == 202, answer.text
    return answer.json()["details"]


async def ticking(make: Make, stop: asyncio.Event) -> None:
    async with db.Pool(make.config(), role="orc_worker", application="s") as pool:
        ticker = Ticker(pool)
        while not stop.is_set():
            if not await ticker.once():
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), 0.02)


# Over HTTP


async def test_an_event_starts_the_task_that_listens_and_its_run_sees_the_event(
    app: Running, conn: db.Connection, make: Make
) -> None:
    said = {
        "title": "T", "schedule_kind": "event",
        "schedule_expr": "orders.* when event.payload.total > 100",
        "payload": {"pipeline": [{"id": "a", "uses": "set",
                                  "with": {"total": "${event.payload.total}"}}]},
    }  # fmt: skip
    assert (await app.client.post("/tasks", json=said, headers=KEY)).status_code == 201
    for total, triggered in ((5, 0), (500, 1)):
        details = await post(app, {"topic": "orders.created", "payload": {"total": total}})
        assert details["triggered_tasks"] == triggered
    assert await worker.once(make.config()) == 1
    cursor = await conn.execute("select output from orc.runs")
    assert [row["output"] for row in await cursor.fetchall()] == [{"a": {"total": 500}}]


async def test_an_event_is_answered_with_what_it_became(app: Running) -> None:
    answer = await app.client.post("/events", json={"topic": "a.b", "payload": [1]}, headers=KEY)
    body = answer.json()
    assert (answer.status_code, body["success"]) == (202, True)
    assert body["message"] == "Event 'a.b' published"
    details = body["details"]
    assert set(details) == {"event_id", "stream_id", "topic", "triggered_tasks", "published_at"}
    at = datetime.fromisoformat(details["published_at"])
    assert abs(at - datetime.now(UTC)) < timedelta(minutes=1)
    assert (details["topic"], details["triggered_tasks"]) == ("a.b", 0)


@pytest.mark.parametrize("topic", ["", "$run.failed", "$x", "a" * 101, "orders.*", "*"])
async def test_a_topic_that_callers_cannot_publish_is_422(app: Running, topic: str) -> None:
    answer = await app.client.post("/events", json={"topic": topic}, headers=KEY)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "topic"]
    cloud = {"specversion": "1.0", "id": "1", "source": "/s", "type": topic}
    answer = await app.client.post("/events", json=cloud, headers=CLOUD)
    assert answer.status_code == 422


def test_agents_speak_for_themselves() -> None:
    me, other = str(uuid.uuid4()), str(uuid.uuid4())
    said = {"tenant_id": "t", "id": me, "kind": "agent", "name": "n"}
    agent = Principal(**said, scopes=["events:write"])
    events._refuse_foreign(me, agent)
    events._refuse_foreign(me.upper(), agent)
    events._refuse_foreign("https://shop.example", agent)
    with pytest.raises(NotAllowed):
        events._refuse_foreign(other, agent)
    events._refuse_foreign(other, Principal(**said, scopes=["admin"]))


async def test_a_cloud_event_is_an_event_and_the_same_one_again_fires_once(
    app: Running, conn: db.Connection
) -> None:
    desk = Desk(conn, "default")
    task = await desk.task("orders.paid")
    cloud = {
        "specversion": "1.0", "id": "A-1", "source": "https://shop.example", "type": "orders.paid",
        "subject": "order 7", "myextension": 3, "data": {"total": 9},
    }  # fmt: skip
    answers = await asyncio.gather(*(post(app, cloud, CLOUD) for _ in range(8)))
    assert len({answer["event_id"] for answer in answers}) == 1
    assert sum(answer["triggered_tasks"] for answer in answers) == await desk.fired(task) == 1
    other = await post(app, {**cloud, "source": "https://other.example"}, CLOUD)
    assert other["event_id"] != answers[0]["event_id"]
    (event,) = await desk.ask(
        "select topic, source, payload from orchestrator.event where id = %s",
        answers[0]["event_id"],
    )
    assert event == {
        "topic": "orders.paid", "source": "https://shop.example", "payload": {"total": 9},
    }  # fmt: skip


async def test_the_time_of_a_cloud_event_is_its_own_when_it_is_of_the_last_day(
    app: Running, conn: db.Connection
) -> None:
    cloud = {"specversion": "1.0", "source": "/s", "type": "t"}
    hour_ago = datetime.now(UTC) - timedelta(hours=1)
    for name, time, expected in (
        ("young", hour_ago, hour_ago),
        ("old", hour_ago - timedelta(days=9), datetime.now(UTC)),
    ):
        found = await post(app, {**cloud, "id": name, "time": time.isoformat()}, CLOUD)
        at = datetime.fromisoformat(found["published_at"])
        assert abs(at - expected) < timedelta(minutes=1)
    ours = str(uuid.UUID(found["event_id"]))
    again = await post(app, {**cloud, "id": ours}, CLOUD)
    assert again["event_id"] == ours  # a UUIDv7 is taken as it is
    await conn.execute("select orc.keep_partitions()")  # soon after midnight one is of yesterday


@pytest.mark.parametrize(
    ("change", "field"),
    [({"specversion": "0.3"}, "specversion"), ({"id": ""}, "id"), ({"type": None}, "type"),
     ({"data_base64": "AA=="}, "data_base64"), ({"datacontenttype": "text/xml"}, "datacontenttype")],
)  # fmt: skip
async def test_a_cloud_event_that_is_none_is_422(
    app: Running, change: dict[str, Any], field: str
) -> None:
    cloud = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t", **change}
    answer = await app.client.post("/events", json=cloud, headers=CLOUD)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", field]


async def test_events_are_listed_from_the_newest_page_by_page(
    app: Running, conn: db.Connection
) -> None:
    await (await Desk(conn, "other").open()).emit("a")
    for n in range(5):
        await post(app, {"topic": "a" if n % 2 else "b", "payload": n})
    found: list[Any] = []
    cursor: str | None = ""
    while cursor is not None:
        query: dict[str, str | int] = {"limit": 2, **({"cursor": cursor} if cursor else {})}
        page = (await app.client.get("/events", params=query, headers=KEY)).json()
        found += page["items"]
        cursor = page["cursor"]
    assert [event["payload"] for event in found] == [4, 3, 2, 1, 0]
    assert found[0]["source"] == auth.SYSTEM_AGENT
    page = (await app.client.get("/events", params={"topic": "a"}, headers=KEY)).json()
    assert [event["payload"] for event in page["items"]] == [3, 1]
    later = {"since": (datetime.now(UTC) + timedelta(seconds=5)).isoformat()}
    assert (await app.client.get("/events", params=later, headers=KEY)).json()["items"] == []
    for bad in ({"limit": 201}, {"topic": "a.*"}):
        assert (await app.client.get("/events", params=bad, headers=KEY)).status_code == 422


# Once, whoever publishes


@pytest.mark.parametrize("ways", [[0], [0, 1, 2, 3]], ids=["POST", "every way"])
async def test_every_event_of_32_publishers_fires_each_task_that_listens_exactly_once(
    app: Running, make: Make, connect: Connect, crew: Crew, conn: db.Connection, ways: list[int]
) -> None:
    """By POST /events, in SQL at once, in SQL for a tick to decide, and by a step."""
    desk = Desk(conn, "default")
    tasks = {
        "exact": await desk.task("orders.new"),
        "pattern": await desk.task("orders.*"),
        "odd": await desk.task("orders.new when event.payload.n % 2 == 1"),
        "other": await desk.task("orders.old"),
        "counts": await desk.task("count(orders.new) >= 5 within 1h", "condition"),
        "counts too": await desk.task("count(orders.*) >= 7 within 1h", "condition"),
    }
    stop = asyncio.Event()
    schedulers = [asyncio.create_task(ticking(make, stop)) for _ in range(2)]
    crew.worker()
    triggered: list[int] = []

    async def publisher(number: int) -> None:
        way, mine = ways[number % len(ways)], None
        if way in (1, 2):
            mine = Desk(await connect(), "default")
        for n in range(number * 4, number * 4 + 4):
            event: dict[str, Any] = {"topic": "orders.new", "payload": {"n": n}}
            if way == 0:
                triggered.append((await post(app, event))["triggered_tasks"])
            elif way == 3:
                step = {"id": "e", "uses": "event.emit", "with": event}
                await db.call_one(
                    desk.conn, "enqueue", tenant="default", pipeline={"pipeline": [step]}
                )
            else:
                assert mine is not None
                await (mine.publish if way == 1 else mine.emit)(**event)

    await asyncio.gather(*(publisher(number) for number in range(32)))
    await until(lambda: _is_quiet(desk, 128), within=60)
    stop.set()
    await asyncio.gather(*schedulers)
    counts = {name: await desk.fired(task) for name, task in tasks.items()}
    assert counts == {
        "exact": 128, "pattern": 128, "odd": 64, "other": 0, "counts": 1, "counts too": 1,
    }  # fmt: skip
    if ways == [0]:
        assert sum(triggered) == 128 + 128 + 64 + 2, "all of it by the publishers themselves"
    twice = "select 1 from orchestrator.occurrence group by task_id, event_id having count(*) > 1"
    assert await desk.ask(twice) == []
    runs = "select count(distinct run_id) from orchestrator.occurrence where state = 'fired'"
    assert await desk.one(runs) == 128 + 128 + 64 + 2
    deadlocks = "select deadlocks from pg_stat_database where datname = current_database()"
    assert await desk.one(deadlocks) == 0


async def _is_quiet(desk: Desk, published: int) -> bool:
    found = "select count(*) from orchestrator.event where topic = 'orders.new'"
    left = "select count(*) from orchestrator.occurrence where state = 'undecided'"
    return bool(await desk.one(found) == published and await desk.one(left) == 0)


async def test_the_same_id_is_the_same_event_wherever_it_is_published(
    app: Running, connect: Connect, conn: db.Connection
) -> None:
    desk = Desk(conn, "default")
    task = await desk.task("x")
    others = [Desk(await connect(), "default") for _ in range(4)]
    for n in range(10):
        name = uuid.UUID(str(await desk.one("select orchestrator.new_id()")))
        event = {"topic": "x", "event_id": str(name)}
        await asyncio.gather(
            *(post(app, event) for _ in range(4)),
            *(other.publish("x", id=name) for other in others[:2]),
            *(other.emit("x", id=name) for other in others[2:]),
        )
        await desk.tick()
        assert await desk.fired(task) == n + 1


async def test_a_publisher_that_rolls_back_leaves_nothing(desk: Desk) -> None:
    await desk.task("x")
    before = await desk.everything()
    with suppress(ZeroDivisionError):
        async with desk.conn.transaction():
            assert (await desk.publish("x"))["triggered"] == 1
            raise ZeroDivisionError
    assert await desk.everything() == before
    assert await desk.tick() == 0


async def test_an_event_never_meets_a_task_of_another_tenant(desk: Desk) -> None:
    other = await Desk(desk.conn, "o").open()
    tasks = [
        await other.task("x"), await other.task("*"), await other.task("x when true"),
        await other.task("count(x) >= 1 within 1h", "condition"), await other.task("$run.*"),
    ]  # fmt: skip
    await desk.publish("x")
    await desk.emit("x")
    run = await desk.run()
    await desk.verb("cancel_run", tenant="t", run=run)
    assert await desk.tick() == 0
    assert [await other.ledger(task) for task in tasks] == [[]] * 5
    assert await desk.one("select count(*) from orchestrator.event where topic like '$%%'") == 0


# Topics


@pytest.mark.parametrize(
    ("pattern", "topic", "fits"),
    [("a.*", "a.b", True), ("a.*", "a.b.c", False), ("a.*", "a.", False), ("a.*", "a", False),
     ("*", "a", True), ("*", "a.b", False), ("*.b", "a.b", True), ("*.*", "a.b", True),
     ("a.*.c", "a.b.c", True), ("a.*.c", "a..c", False), ("a.*.c", "a...c", False),
     ("*.*", "a..", False), ("a_.*", "ab.c", False), ("a%.*", "abc.d", False),
     ("a\\.*", "a\\.b", True), ("a+.*", "aa.b", False), ("a+.*", "a+.b", True),
     ("*", "$a", False), ("*.failed", "$run.failed", False), ("$run.*", "$run.failed", True)],
)  # fmt: skip
async def test_a_star_stands_for_one_segment(
    desk: Desk, pattern: str, topic: str, fits: bool
) -> None:
    assert await desk.one("select orc._topic_fits(%s, %s)", pattern, topic) is fits


@pytest.mark.parametrize("topic", ["$run.failed", "$condition", "$", "a.*", "*"])
async def test_topics_of_the_core_and_patterns_are_refused_at_every_entrance(
    desk: Desk, crew: Crew, topic: str
) -> None:
    for verb in (desk.publish, desk.emit):
        with pytest.raises(Invalid):
            await verb(topic)
    steps = [
        {"id": "e", "uses": "event.emit", "with": {"topic": topic, "payload": {"holds": True}}}
    ]
    run = await desk.run(pipeline={"pipeline": steps}, max_attempts=1)
    await crew.once()
    row = await desk.row(run)
    assert (row["state"], row["error"]["type"]) == ("failed", "validation")
    if topic != "$condition":  # a worker's own word for what a probe found: of no effect elsewhere
        with pytest.raises(Invalid):
            await _record(desk, [{"topic": topic, "payload": None}])
    assert await desk.one("select count(*) from orchestrator.event") == 0


async def _record(desk: Desk, said_events: list[dict[str, Any]]) -> None:
    crewman = await desk.worker()
    await desk.run()
    (run,) = await desk.claim(crewman)
    step = {
        "tenant": run.tenant, "run": run.run, "epoch": run.epoch, "step": "e", "attempt": 1,
        "state": "succeeded", "events": said_events,
    }  # fmt: skip
    await db.call(desk.conn, "record_steps", worker=crewman, steps=[step])


async def test_a_run_waits_for_one_topic_and_for_no_pattern(desk: Desk, crew: Crew) -> None:
    plain = {"pipeline": [{"id": "w", "wait": {"event": {"topic": "orders.*"}}}]}
    given = {"pipeline": [{"id": "w", "wait": {"event": {"topic": "${params.t}"}}}]}
    runs = [
        await desk.run(pipeline=plain, max_attempts=1),
        await desk.run(pipeline={**given, "params": {"t": "orders.*"}}, max_attempts=1),
    ]
    await crew.once()
    for run in runs:
        error = (await desk.row(run))["error"]
        assert error["type"] == "validation"
        assert "one topic" in str(error)


# Tasks that follow tasks


async def test_a_task_follows_runs_that_succeed_fail_and_are_canceled(
    desk: Desk, crew: Crew
) -> None:
    seen = {"pipeline": [{"id": "e", "uses": "set", "with": {"e": "${event.payload}"}}]}
    follows = "'follows' in event.payload.labels"
    tasks = {
        state: await desk.task(f"$run.{state} when {follows}", payload=seen)
        for state in ("succeeded", "failed", "canceled")
    }
    everything = await desk.task(f"$run.* when {follows}")
    labels = {"labels": {"follows": 1}}
    good = await desk.run(pipeline=SET, **labels)
    bad = {"pipeline": [{"id": "b", "uses": "assert", "with": {"that": False, "message": "no"}}]}
    failed = await desk.run(pipeline=bad, max_attempts=1, **labels)
    canceled = await desk.run(**labels, queue="nobody")
    await desk.verb("cancel_run", tenant="t", run=canceled)
    await crew.once()
    await desk.tick()
    await crew.once()
    outputs = await desk.ask("select task_id, output from orc.runs where task_id is not null")
    said = {str(row["task_id"]): row["output"]["e"]["e"] for row in outputs if "e" in row["output"]}
    expected = {"succeeded": good, "failed": failed, "canceled": canceled}
    for state, task in tasks.items():
        assert (said[task]["run_id"], said[task]["state"]) == (expected[state], state)
    assert said[tasks["succeeded"]]["output"] == {"a": {"x": 1}}
    assert said[tasks["failed"]]["error"]["type"] == "validation"
    assert await desk.fired(everything) == 3


async def test_a_run_that_is_lost_for_ever_or_told_to_stop_is_announced_once(
    desk: Desk, clock: Clock
) -> None:
    await clock.set(datetime.now(UTC))
    tasks = [await desk.task("$run.failed"), await desk.task("$run.canceled")]
    crewman = await desk.worker()
    runs = [await desk.run(max_attempts=1) for _ in range(2)]
    claimed = await desk.claim(crewman, 2)
    assert len(claimed) == 2
    await desk.verb("cancel_run", tenant="t", run=runs[1])
    assert await desk.one("select count(*) from orchestrator.event") == 0  # it runs still
    await clock.advance(timedelta(minutes=5))
    await desk.verb("release_expired_work")
    await desk.verb("release_expired_work")
    assert await desk.tick() == 2
    assert [await desk.fired(task) for task in tasks] == [1, 1]
    await desk.do("select orc.keep_partitions()")


async def test_only_what_is_listened_to_is_announced(desk: Desk) -> None:
    other = await Desk(desk.conn, "o").open()
    await desk.task("$run.failed")
    crewman = await desk.worker()
    for work in (desk, other):
        await work.runs(2)
    runs = await desk.claim(crewman, 4)
    outcomes = ["succeeded" if n % 2 else "failed" for n in range(4)]
    runs = sorted(runs, key=lambda run: run.tenant)
    await desk.settle(
        crewman, *(said(run, how, retry=False) for run, how in zip(runs, outcomes, strict=True))
    )
    told = await desk.ask("select tenant_id, topic from orchestrator.event")
    assert told == [{"tenant_id": "t", "topic": "$run.failed"}]


async def test_a_run_waits_for_another_ones_failure(desk: Desk, crew: Crew) -> None:
    wait = {
        "id": "w",
        "wait": {"event": {"topic": "$run.failed"}},
        "output": "${result.payload.state}",
    }
    waiting = await desk.run(pipeline={"pipeline": [wait]})
    await crew.once()
    bad = {"pipeline": [{"id": "b", "uses": "assert", "with": {"that": False, "message": "no"}}]}
    await desk.run(pipeline=bad, max_attempts=1)
    await crew.once()
    await desk.verb("meet_events")
    await crew.once()
    assert (await desk.row(waiting))["output"] == {"w": "failed"}


EMIT = {"id": "e", "uses": "event.emit", "with": {"topic": "again"}}


@pytest.mark.parametrize(
    ("exprs", "steps"),
    [(["$run.succeeded"], []), (["$run.succeeded when event.payload.kind == 'task'"] * 2, []),
     (["again"], [EMIT]),
     (["again"], [{"id": "c", "uses": "flow.run", "with": {"pipeline": [EMIT]}}]),
     (["again"], [{"id": "c", "uses": "flow.run", "with": {"pipeline": [EMIT], "wait": False}}])],
    ids=["after itself", "after each other", "emits", "its child emits", "its free child emits"],
)  # fmt: skip
async def test_an_endless_chain_is_cut_after_16_runs_and_the_ledger_says_so(
    desk: Desk, crew: Crew, exprs: list[str], steps: list[dict[str, Any]]
) -> None:
    pipeline = {"pipeline": steps or SET["pipeline"]}
    names = [f"{n}" for n in range(len(exprs))]
    task = ""
    for name, expr in zip(names, exprs, strict=True):
        if len(exprs) == 2:
            other = names[1 - int(name)]
            labels = f" && event.payload.labels.name == '{other}'"
            task = await desk.task(expr + labels, payload=pipeline, labels={"name": name})
        else:
            task = await desk.task(expr, payload=pipeline)
    if exprs == ["again"]:
        await desk.emit("again")
    else:
        await desk.verb("run_task", tenant="t", task=task)
    for _ in range(60):
        await crew.once()
        if (
            not await desk.tick()
            and await desk.one("select count(*) from orchestrator.due_work") == 0
        ):
            break
    ledger = await desk.ledger()
    fired = sum(state == "fired" for state, _ in ledger)
    assert fired == 16
    assert ("skipped", "a chain of 16 runs that events made") in ledger


# What is undecided while its task changes


async def open_event(desk: Desk) -> list[dict[str, Any]]:
    """Publishes for a task with a condition; answers what is to be decided, and decides nothing."""
    row = await db.call_one(desk.conn, "publish_event", tenant="t", topic="x", payload={"n": 5})
    assert row["triggered"] == 0
    asked: list[dict[str, Any]] = row["open"]
    return [events.judged(one, {"event": row["event"]}) for one in asked]


async def test_a_condition_that_fails_does_not_fire_and_the_ledger_says_why(desk: Desk) -> None:
    tasks = [await desk.task(f"x when {w}") for w in ("event.payload.m > 1", "event.payload.n")]
    tasks.append(await desk.task("x when nonsense("))
    assert (await desk.publish("x", {"n": 5}))["triggered"] == 0
    for task, words in zip(tasks, ("m", "true or false", "nonsense"), strict=True):
        ((state, reason),) = await desk.ledger(task)
        assert state == "skipped" and reason is not None
        assert reason.startswith("the condition failed: ") and words in reason


async def test_a_verdict_of_a_rule_that_was_replaced_says_nothing(desk: Desk) -> None:
    task = await desk.task("x when event.payload.n > 1")
    verdicts = await open_event(desk)
    assert verdicts[0]["holds"] is True
    changes = {"schedule_expr": "x when event.payload.n > 9"}
    await desk.verb("update_task", tenant="t", task=task, changes=changes)
    assert await desk.verb("decide_event", verdicts=verdicts) == 0
    assert await desk.tick() == 0
    assert await desk.ledger(task) == [("skipped", "the condition doesn't hold")]


@pytest.mark.parametrize(
    ("changes", "state"),
    [({"schedule_expr": "x"}, "fired"), ({"schedule_expr": "*"}, "fired"),
     ({"schedule_expr": "y"}, "skipped"), ({"schedule_kind": "cron", "schedule_expr": "0 8 * * *"}, "skipped"),
     ({"schedule_kind": "condition", "schedule_expr": "count(x) >= 1 within 1h"}, "fired")],
)  # fmt: skip
async def test_what_is_undecided_is_decided_by_the_new_rule(
    desk: Desk, changes: dict[str, Any], state: str
) -> None:
    task = await desk.task("x when event.payload.n > 9")
    await open_event(desk)
    await desk.verb("update_task", tenant="t", task=task, changes=changes)
    await desk.tick()
    assert [state for state, _ in await desk.ledger(task)] == [state]


@pytest.mark.parametrize("act", ["pause_task", "cancel_task"])
@pytest.mark.parametrize("expr", ["x", "x when true", "*"])
async def test_an_event_that_commits_after_its_task_was_stopped_fires_nothing(
    desk: Desk, connect: Connect, act: str, expr: str
) -> None:
    task = await desk.task(expr)
    other = Desk(await connect())
    async with other.conn.transaction():
        await other.emit("x")  # waits for nobody, and nobody for it
        await desk.verb(act, tenant="t", task=task)
    assert (await desk.ledger(task))[0][0] == "undecided"
    assert await desk.tick() == 0
    ((state, reason),) = await desk.ledger(task)
    assert (
        state == "skipped"
        and reason is not None
        and "paused" in reason + "paused" * (act != "pause_task")
    )
    assert await desk.one("select count(*) from orchestrator.due_work") == 0


async def test_whoever_changes_a_task_keeps_no_publisher_waiting(
    desk: Desk, connect: Connect
) -> None:
    task, other_task = await desk.task("x"), await desk.task("x")
    other = Desk(await connect())
    async with other.conn.transaction():
        await other.verb("pause_task", tenant="t", task=task)
        assert (await desk.publish("x"))["triggered"] == 1
        assert await desk.tick() == 0
    assert await desk.tick() == 0
    assert await desk.ledger(task) == [("skipped", "paused: events are not caught up")]
    assert await desk.fired(other_task) == 1


async def test_many_that_cannot_be_decided_now_keep_no_others_back(
    desk: Desk, connect: Connect
) -> None:
    held, slow = await desk.task("held"), await desk.task("slow when true")
    quick = await desk.task("quick")
    for _ in range(30):
        await desk.emit("held")
        await desk.emit("slow")
    await desk.emit("quick")
    other = Desk(await connect())
    async with other.conn.transaction():
        await other.do("select orc._own_task('t', %s)", held)
        await db.call(desk.conn, "tick", scheduler="s", most=10)
        assert await desk.fired(quick) == 1
    await desk.tick()
    assert [await desk.fired(task) for task in (held, slow)] == [30, 30]


async def test_of_runs_that_must_not_overlap_concurrent_publishers_start_one(
    desk: Desk, connect: Connect
) -> None:
    skips = [await desk.task(expr, overlap="skip") for expr in ("x", "x when true", "*")]
    replaces = await desk.task("x", overlap="replace")
    desks = [Desk(await connect()) for _ in range(8)]
    await asyncio.gather(*(one.publish("x") for one in desks))
    assert [await desk.fired(task) for task in skips] == [1, 1, 1]
    live = "select count(*) from orchestrator.due_work where task_id = %s"
    assert (await desk.fired(replaces), await desk.one(live, replaces)) == (8, 1)
    for task in skips:
        reasons = [reason for state, reason in await desk.ledger(task) if state == "skipped"]
        assert len(reasons) == 7 and all(str(r).startswith("overlap: ") for r in reasons)


async def test_an_event_that_a_dedupe_window_skips_starts_nothing_and_says_so(desk: Desk) -> None:
    windowed: dict[str, Any] = {"dedupe_key": "k", "dedupe_window_seconds": 3600}
    tasks = [await desk.task(expr, **windowed) for expr in ("x", "x when true")]
    assert [(await desk.publish("x"))["triggered"] for _ in range(2)] == [1, 0]
    states = [state for task in tasks for state, _ in await desk.ledger(task)]
    assert sorted(states) == ["fired", "skipped", "skipped", "skipped"]
    await desk.task("x")
    assert (await desk.publish("x"))["triggered"] == 1
    await desk.emit("x")
    assert await desk.tick() == 1


async def last_run_at(desk: Desk, task: str) -> datetime | None:
    said = (await desk.verb("task", tenant="t", task=task))["last_run_at"]
    return datetime.fromisoformat(said) if said else None


@pytest.mark.parametrize("dedupe", [{}, {"dedupe_key": "k", "dedupe_window_seconds": 0.001}])
@pytest.mark.parametrize(
    ("expr", "kind"), [("x", "event"), ("*", "event"), ("x when event.payload > 0", "event"),
                       ("count(x) >= 1 within 1ms", "condition")],
)  # fmt: skip
async def test_a_task_says_when_an_event_made_it_run_last(
    desk: Desk, clock: Clock, expr: str, kind: str, dedupe: dict[str, Any]
) -> None:
    start = datetime.now(UTC).replace(microsecond=0)
    await clock.set(start)
    task = await desk.task(expr, kind, **dedupe)
    assert await last_run_at(desk, task) is None
    for seconds, payload, last in ((1, 1, 1), (5, 1, 5), (5.5, 1, 5), (9, 0, 5), (10, 1, 10)):
        await clock.set(start + timedelta(seconds=seconds))
        await desk.publish("x" if payload or "when" in expr else "y.z", payload)
        await clear(desk)
        assert await last_run_at(desk, task) == start + timedelta(seconds=last), seconds
    await desk.do("select orc.keep_partitions()")


async def test_publishers_do_not_wait_to_say_when_a_task_ran_last(
    desk: Desk, connect: Connect
) -> None:
    task = await desk.task("x")
    other = Desk(await connect())
    async with other.conn.transaction():
        assert (await other.publish("x"))["triggered"] == 1
        await desk.do("set lock_timeout = '50ms'")
        assert (await desk.publish("x"))["triggered"] == 1
    assert await desk.fired(task) == 2


# Counts


class Model:
    """A second opinion, moment by moment: what holds, since when, and what fired for it."""

    def __init__(self, needed: int, span: int) -> None:
        self.needed, self.span = needed, span
        self.looked: list[tuple[int, int]] = []  # time, order of ties
        self.marks: list[tuple[int, int]] = []

    def count(self, at: tuple[int, int]) -> int:
        return sum(at[0] - self.span < other[0] and other <= at for other in self.looked)

    def holds(self, at: tuple[int, int]) -> bool:
        return self.count(at) >= self.needed

    def begins(self, at: tuple[int, int]) -> bool:
        return self.count(at) == self.needed

    def look(self, event: tuple[int, int]) -> tuple[int, int] | None:
        """The event that fires, now that this one is known."""
        self.looked.append(event)
        near = sorted(o for o in self.looked if event <= o and o[0] < event[0] + self.span)
        until = next((o for o in reversed(near) if self.holds(o)), None)
        begun = [o for o in near if until is not None and o <= until and self.begins(o)]
        if not begun or any(
            mark >= begun[-1] for mark in self.marks if mark[0] < event[0] + self.span
        ):
            return None
        self.marks.append(begun[-1])
        return begun[-1]


def edges(times: list[int], needed: int, span: int) -> int:
    """How often `at least so many within the span` becomes true as time goes by, half a step at a time."""
    risen, held = 0, False
    for half in range(2 * min(times) - 1, 2 * max(times) + 2):
        now = half / 2
        if sum(now - span < t < now for t in times) < needed:
            held = False
        arrived = sum(now - span < t <= now for t in times)
        if arrived >= needed and not held:
            risen += 1
            held = True
    return risen


@pytest.mark.parametrize("late", [False, True], ids=["in order", "some late"])
@pytest.mark.parametrize("seed", range(4))
async def test_a_count_fires_as_a_second_opinion_says(
    desk: Desk, clock: Clock, seed: int, late: bool
) -> None:
    chance = random.Random(seed * 2 + late)
    needed, span = chance.choice([1, 2, 3, 5]), chance.choice([5, 20])
    start = datetime(2026, 5, 5, 12, tzinfo=UTC)
    await clock.set(start + timedelta(hours=1))
    task = await desk.task(f"count(x.*) >= {needed} within {span}s", "condition")
    times = sorted(
        chance.choice([chance.randrange(200), 50 + chance.randrange(9)]) for _ in range(70)
    )
    if late:
        times.sort(key=lambda t: t + chance.choice([0, 0, 0, 3, 30]))
    model, fired = Model(needed, span), set()
    for n, time in enumerate(times):
        at = start + timedelta(seconds=time)
        name = await desk.one("select orc._timed_id(%s, %s)", at, f"{seed} {n}")
        rank = await desk.one("select orc._occurrence_id(%s, %s, %s)", task, at, name)
        expected = model.look((time, int(rank)))
        row = await desk.publish(f"x.{n % 3}", id=name)
        assert row["triggered"] == (expected is not None), (n, time)
        fired |= {expected[1]} if expected else set()
    found = await desk.ask("select id from orc.occurrences where state = 'fired'")
    assert {int(row["id"]) for row in found} == fired
    if not late and len(set(times)) == len(times):
        assert len(fired) == edges(times, needed, span)
    await desk.do("select orc.keep_partitions()")


@pytest.mark.parametrize("seed", range(6))
def test_the_second_opinion_agrees_with_time_going_by(seed: int) -> None:
    chance = random.Random(seed)
    needed, span = chance.choice([1, 2, 3, 5]), chance.choice([5.5, 20.5])
    times = sorted(chance.sample(range(400), 90))
    model = Model(needed, span)  # type: ignore[arg-type]
    fired = [model.look((time, 0)) for time in times]
    assert sum(event is not None for event in fired) == edges(times, needed, span)  # type: ignore[arg-type]


async def test_a_new_rule_counts_from_nothing(desk: Desk) -> None:
    task = await desk.task("count(x) >= 3 within 1h", "condition")
    for _ in range(2):
        await desk.publish("x")
    changes = {"schedule_expr": "count(x) >= 3 within 2h"}
    await desk.verb("update_task", tenant="t", task=task, changes=changes)
    assert [(await desk.publish("x"))["triggered"] for _ in range(4)] == [0, 0, 1, 0]


async def test_what_a_pause_skips_does_not_count(desk: Desk) -> None:
    task = await desk.task("count(x) >= 2 within 1h", "condition")
    await desk.publish("x")
    await desk.verb("pause_task", tenant="t", task=task)
    await desk.publish("x")
    await desk.verb("resume_task", tenant="t", task=task)
    assert [(await desk.publish("x"))["triggered"] for _ in range(2)] == [1, 0]


async def test_publishers_that_count_in_many_tasks_never_lock_each_other(
    desk: Desk, connect: Connect
) -> None:
    tasks = [await desk.task("count(x) >= 7 within 1h", "condition") for _ in range(6)]
    tasks += [await desk.task("x when true", overlap="skip") for _ in range(3)]
    desks = [Desk(await connect()) for _ in range(8)]

    async def publish(one: Desk) -> None:
        for _ in range(5):
            await one.publish("x")

    await asyncio.gather(*map(publish, desks), desk.tick())
    assert [await desk.fired(task) for task in tasks] == [1] * 9
    deadlocks = "select deadlocks from pg_stat_database where datname = current_database()"
    assert await desk.one(deadlocks) == 0


# Probes


class Probes:
    """Probes of a task, begun and judged when the test says so."""

    def __init__(self, desk: Desk, clock: Clock, crewman: Any) -> None:
        self.desk, self.clock, self.crewman = desk, clock, crewman

    async def begin(self) -> Any:
        """The next probe: it is due, and a worker has it."""
        await self.clock.advance(timedelta(seconds=60))
        await self.desk.tick()
        (run,) = await self.desk.claim(self.crewman)
        return run

    async def end(self, run: Any, holds: bool | None) -> int:
        """It found what it found, or failed. Answers how many runs of the task that makes."""
        if holds is not None:
            step = {
                "tenant": "t", "run": run.run, "epoch": run.epoch, "step": "condition", "attempt": 1,
                "state": "succeeded", "events": [{"topic": "$condition", "payload": {"holds": holds, "result": 7}}],
            }  # fmt: skip
            await db.call(self.desk.conn, "record_steps", worker=self.crewman, steps=[step])
        await self.desk.settle(
            self.crewman, said(run, "failed" if holds is None else "succeeded", retry=False)
        )
        before = await self.fired()
        await self.desk.tick()
        return await self.fired() - before

    async def fired(self) -> int:
        return int(await self.desk.one(
            "select count(*) from orchestrator.occurrence where state = 'fired' and event_id is not null"
        ))  # fmt: skip

    async def look(self, holds: bool | None) -> int:
        return await self.end(await self.begin(), holds)


PROBE = {**SET, "probe": {"uses": "set", "with": {"x": 1}}}


@pytest.fixture
async def probes(desk: Desk, clock: Clock) -> AsyncIterator[Probes]:
    await clock.set(datetime.now(UTC).replace(microsecond=0))
    yield Probes(desk, clock, await desk.worker(lease="1 hour"))
    await desk.do("select orc.keep_partitions()")


async def planned(desk: Desk, task: str) -> None:
    """Instants as a scheduler's Python computes them."""
    await desk.do(
        "update orchestrator.plan set known_to = through + interval '20 minutes', upcoming = array("
        " select through + n * interval '1 minute' from generate_series(1, 20) as n),"
        " next_at = through + interval '1 minute', wants_more = false where task_id = %s", task,
    )  # fmt: skip


async def watch(desk: Desk) -> str:
    task = await desk.task("every 60s when result.x > 1", "condition", payload=PROBE)
    await planned(desk, task)
    return task


async def clear(desk: Desk) -> None:
    """The runs that the condition made are somebody else's."""
    await desk.do(
        "select orc.cancel_run(tenant_id, run_id) from orchestrator.due_work where kind = 'task'"
    )


async def test_a_condition_fires_when_it_becomes_true_and_again_after_it_was_false(
    desk: Desk, probes: Probes
) -> None:
    task = await watch(desk)
    found, ran = [], []
    for holds in (False, True, True, None, True, False, None, True, True):
        found.append(await probes.look(holds))
        ran.append(await last_run_at(desk, task) is not None)
        await clear(desk)
    assert found == [0, 1, 0, 0, 0, 0, 0, 1, 0]
    assert ran == [False] + [True] * 8, "a probe is no run of the task"
    assert await desk.one("select count(*) from orchestrator.event where topic like '$run%%'") == 0


async def test_an_earlier_probe_that_ends_later_changes_nothing(desk: Desk, probes: Probes) -> None:
    await watch(desk)
    first, second = await probes.begin(), await probes.begin()
    assert await probes.end(second, True) == 1
    await clear(desk)
    assert await probes.end(first, False) == 0
    assert await probes.look(True) == 0


async def test_an_edit_forgets_what_probes_found_and_those_under_way(
    desk: Desk, probes: Probes
) -> None:
    task = await watch(desk)
    assert await probes.look(True) == 1
    await clear(desk)
    old = await probes.begin()
    changes = {"schedule_expr": "every 60s when result.x > 2"}
    await desk.verb("update_task", tenant="t", task=task, changes=changes)
    assert await probes.end(old, True) == 0
    await planned(desk, task)
    assert await probes.look(True) == 1


async def test_a_finding_that_is_undecided_when_the_rule_changes_fires_nothing(
    desk: Desk, probes: Probes
) -> None:
    task = await watch(desk)
    run = await probes.begin()
    step = {
        "tenant": "t", "run": run.run, "epoch": run.epoch, "step": "condition", "attempt": 1,
        "state": "succeeded", "events": [{"topic": "$condition", "payload": {"holds": True}}],
    }  # fmt: skip
    await db.call(desk.conn, "record_steps", worker=probes.crewman, steps=[step])
    changes = {"schedule_expr": "every 60s when result.x > 2"}
    await desk.verb("update_task", tenant="t", task=task, changes=changes)
    assert await probes.end(run, None) == 0
    reasons = [reason for _, reason in await desk.ledger(task)]
    assert "the rule was changed, and the event doesn't fit the new one" in reasons


async def test_a_probe_of_a_paused_task_fires_nothing(desk: Desk, probes: Probes) -> None:
    task = await watch(desk)
    run = await probes.begin()
    await desk.verb("pause_task", tenant="t", task=task)
    assert await probes.end(run, True) == 0
    await desk.verb("resume_task", tenant="t", task=task)
    assert await probes.look(True) == 1


async def test_a_probe_that_asks_the_outside_fires_the_task_with_what_it_found(
    desk: Desk, crew: Crew, make: Make
) -> None:
    payload = {
        "pipeline": [{"id": "a", "uses": "set", "with": {"found": "${event.payload.result}"}}],
        "probe": {"uses": "python.call", "save_as": None,
                  "with": {"function": "deeds:add", "args": {"a": 20, "b": 22}}},
    }  # fmt: skip
    task = await desk.task("every 1s when result == 42", "condition", payload=payload)
    stop = asyncio.Event()
    scheduler = asyncio.create_task(ticking(make, stop))
    crew.worker()
    done = "select count(*) from orc.runs where kind = 'task' and state = 'succeeded'"
    more = "select count(*) from orc.runs where kind = 'probe' and state = 'succeeded'"

    async def looked() -> bool:
        return bool(await desk.one(done) == 1 and await desk.one(more) >= 3)

    await until(looked, within=30)
    await desk.verb("pause_task", tenant="t", task=task)
    stop.set()
    await scheduler
    (row,) = await desk.ask("select output from orc.runs where kind = 'task'")
    assert row["output"] == {"a": {"found": 42}}


async def test_a_condition_that_cannot_be_evaluated_fails_its_probe(desk: Desk, crew: Crew) -> None:
    steps = [{"id": "c", "uses": "task.condition", "with": {"when": "result.x > 1", "result": 3}}]
    run = await desk.run(pipeline={"pipeline": steps}, max_attempts=1)
    await crew.once()
    row = await desk.row(run)
    assert (row["state"], row["error"]["type"]) == ("failed", "expression")


async def test_rules_that_make_no_sense_are_refused(desk: Desk) -> None:
    for kind, expr in [
        ("event", " "), ("event", "a b"), ("event", "a.b* when true"), ("condition", "every 5m"),
        ("condition", "every 1ms when true"), ("condition", "count(a) >= 0 within 1m"),
        ("condition", "count(a) >= 2 within 32d"), ("condition", "count(a.*b) >= 2 within 1d"),
        ("condition", "sometimes"), ("condition", "count(a) > 2 within 1m"),
    ]:  # fmt: skip
        with pytest.raises(Refused):
            await desk.task(expr, kind, payload=PROBE if kind == "condition" else SET)
