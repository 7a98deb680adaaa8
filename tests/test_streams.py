"""Server-sent events: everyone hears everything once, in one order, and soon."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import msgspec
import pytest
from acts import do
from conftest import Connect, Make, Running, Serve
from psycopg.types.json import Jsonb

from orchestrator import auth, db, streams, worker
from orchestrator.streams import hub

KEY = {"Authorization": f"Bearer {auth.SYSTEM_AGENT}"}
PATIENCE = 20.0


class Heard(msgspec.Struct):
    event: str = ""
    id: str = ""
    data: Any = None


class Client:
    """Speaks HTTP by itself: five hundred of them cost little."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.status = 0
        self.head = ""
        self.comments = 0

    async def begin(self, path: str, **headers: str) -> None:
        lines = [
            f"GET {path} HTTP/1.1",
            "Host: localhost",
            f"Authorization: {KEY['Authorization']}",
        ]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.writer.write("\r\n".join([*lines, "", ""]).encode())
        self.head = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower()
        self.status = int(self.head.split()[1])

    async def next(self, seconds: float = PATIENCE) -> Heard | None:
        """The next event, or None at the end of the stream."""
        async with asyncio.timeout(seconds):
            while True:
                size = int(await self.reader.readline() or b"0", 16)
                chunk = (await self.reader.readexactly(size + 2))[:-2]
                if not size:
                    return None
                fields = dict(
                    line.split(": ", 1) for line in chunk.decode().splitlines() if ": " in line
                )
                self.comments += chunk == streams.HEARTBEAT
                if "data" in fields:
                    return Heard(
                        fields.get("event", ""), fields.get("id", ""), json.loads(fields["data"])
                    )

    async def all(self) -> list[Heard]:
        found = []
        while (heard := await self.next()) is not None:
            found.append(heard)
        return found


@asynccontextmanager
async def listening(
    app: Running, path: str = "/events/stream", **headers: str
) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", app.port)
    client = Client(reader, writer)
    try:
        await client.begin(path, **headers)
        yield client
    finally:
        writer.transport.abort()


@pytest.fixture
async def app(serve: Serve, conn: db.Connection) -> Running:
    await db.call(conn, "ensure_system_agent")
    return await serve()


async def publish(app: Running, topic: str, payload: Any = None) -> str:
    answer = await app.client.post(
        "/events", json={"topic": topic, "payload": payload}, headers=KEY
    )
    assert answer.status_code == 202, answer.text
    stream_id: str = answer.json()["details"]["stream_id"]
    return stream_id


async def emit(conn: db.Connection, topic: str, payload: Any, tenant: str = "default") -> None:
    said = {"tenant": tenant, "topic": topic, "payload": Jsonb(payload)}
    await db.call_one(conn, "emit_event", **said)


async def until(condition: Any) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


# Events


async def test_an_event_is_told_with_the_id_that_its_publisher_was_given(app: Running) -> None:
    async with listening(app) as client:
        assert client.status == 200 and "content-type: text/event-stream" in client.head
        stream_id = await publish(app, "orders.created", {"total": 5})
        heard = await client.next()
    assert heard is not None and heard.id == stream_id
    assert heard.data.pop("published_at")
    assert heard.data == {
        "event_id": stream_id, "topic": "orders.created", "payload": {"total": 5},
        "source_agent_id": auth.SYSTEM_AGENT,
    }  # fmt: skip


async def test_a_client_that_comes_again_goes_on_after_its_last_id(app: Running) -> None:
    ids = [await publish(app, "k", number) for number in range(5)]
    async with listening(app, Last_Event_ID=ids[1]) as client:
        ids.append(await publish(app, "k", 5))
        heard = [await client.next() for _ in range(4)]
    assert [h.id for h in heard if h] == ids[2:]


async def test_a_client_that_missed_more_than_a_page_is_told_all_of_it_once(
    app: Running, conn: db.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "PAGE", 7)
    first = await publish(app, "k", 0)
    await conn.execute(
        "select orc.emit_event('default', 'k', to_jsonb(n)) from generate_series(1, 40) as n"
    )
    async with listening(app, Last_Event_ID=first) as client:
        await publish(app, "k", 41)
        heard = [await client.next() for _ in range(41)]
    assert [h.data["payload"] for h in heard if h] == list(range(1, 42))


@pytest.mark.parametrize("last", [str(UUID(int=7)), "no id", "7", "' or 1=1"])
async def test_an_id_that_is_not_there_any_more_is_told_to_resync(app: Running, last: str) -> None:
    async with listening(app, Last_Event_ID=last) as client:
        await publish(app, "k")
        heard = [await client.next() for _ in range(2)]
    assert [h.event or h.data["topic"] for h in heard if h] == ["resync", "k"]


async def test_a_client_that_missed_too_much_is_told_to_resync(
    app: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "PAGE", 2)
    monkeypatch.setattr(streams, "MOST_MISSED", 2)
    ids = [await publish(app, "k", number) for number in range(5)]
    async with listening(app, Last_Event_ID=ids[0]) as client:
        heard = [await client.next() for _ in range(3)]
        ids.append(await publish(app, "k", 5))
        after = await client.next()
    assert [h.event or h.data["payload"] for h in heard if h] == [1, 2, "resync"]
    assert after is not None and after.data["payload"] == 5


async def test_a_filter_names_a_topic_or_segments_and_internal_ones_want_to_be_named(
    app: Running, conn: db.Connection
) -> None:
    topics = ["orders.created", "orders.a.b", "orders", "other.created"]
    async with (
        listening(app, "/events/stream?topic=orders.*") as some,
        listening(app, "/events/stream?topic=orders") as one,
        listening(app) as every,
    ):
        for topic in [*topics, "orders.end", "orders", "end"]:
            await publish(app, topic)
        assert [h.data["topic"] for h in [await some.next() for _ in range(2)] if h] == [
            topics[0],
            "orders.end",
        ]
        assert [h.data["topic"] for h in [await one.next() for _ in range(2)] if h] == [
            "orders",
            "orders",
        ]
        assert len([await every.next() for _ in range(7)]) == 7
    fits = streams._filter("*")
    assert fits("k") and not fits("$k") and not fits("a.b")
    assert streams._filter("$run.*")("$run.failed") and not streams._filter(None)("$run.failed")


async def test_another_tenants_events_are_not_told(app: Running, conn: db.Connection) -> None:
    await emit(conn, "k", 0, tenant="other")
    cursor = await conn.execute("select id from orchestrator.event where tenant_id = 'other'")
    foreign = await cursor.fetchone()
    assert foreign is not None
    async with listening(app, Last_Event_ID=str(foreign["id"])) as client:
        await emit(conn, "k", 1, tenant="other")
        await emit(conn, "k", 2)
        first, second = await client.next(), await client.next()
    assert first is not None and first.event == "resync"
    assert second is not None and second.data["payload"] == 2


async def test_what_commits_late_is_told_and_nothing_goes_past_it(
    app: Running, conn: db.Connection, connect: Connect
) -> None:
    late = await connect()
    async with listening(app) as client:
        async with late.transaction():
            await emit(late, "k", 1)
            await emit(conn, "k", 2)
            with pytest.raises(TimeoutError):
                await client.next(0.5)
        heard = [await client.next() for _ in range(2)]
    assert [h.data["payload"] for h in heard if h] == [1, 2]


async def test_many_publish_at_once_and_all_clients_hear_all_in_one_order(
    app: Running, connect: Connect
) -> None:
    async def talk(name: str) -> None:
        mine = await connect()
        for number in range(20):
            async with mine.transaction():
                await emit(mine, name, number)
                await asyncio.sleep(0.001 * (number % 3))

    async with listening(app) as one, listening(app) as two:
        talking = asyncio.gather(*(talk(f"k{n}") for n in range(5)))
        heard = [[await client.next() for _ in range(100)] for client in (one, two)]
        await talking
    first, second = ([h.id for h in some if h] for some in heard)
    assert first == second and len(set(first)) == 100
    for n in range(5):
        mine = [h.data["payload"] for h in heard[0] if h and h.data["topic"] == f"k{n}"]
        assert mine == list(range(20))


# Runs and tasks


async def _begin(conn: db.Connection, *steps: dict[str, Any]) -> str:
    row = await db.call_one(conn, "enqueue", tenant="default", pipeline={"pipeline": list(steps)})
    return str(row["run_id"])


def told(heard: list[Heard]) -> list[str]:
    return [
        f"{h.event} {h.data.get('step', '')} {h.data['state']}".replace("  ", " ") for h in heard
    ]


async def test_a_run_is_told_from_its_beginning_to_its_end(
    app: Running, conn: db.Connection, make: Make
) -> None:
    steps = [{"id": id, "uses": "event.emit", "with": {"topic": "k"}} for id in ("a", "b")]
    run = await _begin(conn, *steps)
    async with listening(app, f"/runs/{run}/events") as client:
        first = await client.next()
        assert await worker.once(make.config()) == 1
        rest = await client.all()
    assert first is not None and told([first]) == ["state ready"]
    assert told(rest) == [
        "state running",
        "step a succeeded",
        "step b succeeded",
        "state succeeded",
    ]
    assert rest[-1].data["success"] is True
    async with listening(app, f"/runs/{run}/events") as late:
        assert told(await late.all()) == told(rest)
    async with listening(app, f"/runs/{run}/events", Last_Event_ID=rest[-1].id) as again:
        assert again.status == 204
    async with listening(app, f"/runs/{run}/events", Last_Event_ID=rest[0].id) as again:
        assert told(await again.all())[-1] == "state succeeded"


async def test_a_run_that_fails_is_told_with_its_error(
    app: Running, conn: db.Connection, make: Make
) -> None:
    run = await _begin(conn, {"id": "a", "uses": "assert", "with": {"that": False}})
    async with listening(app, f"/runs/{run}/events") as client:
        await worker.once(make.config())
        found = await client.all()
    assert told(found)[-1] == "state failed"
    assert found[-1].data["error"] and found[-1].data["success"] is False


async def test_a_run_that_is_not_there_is_404_and_so_is_another_tenants(
    app: Running, conn: db.Connection
) -> None:
    row = await db.call_one(
        conn, "enqueue", tenant="other", pipeline={"pipeline": [do("a", uses="set")]}
    )
    for run in (str(UUID(int=7)), str(row["run_id"])):
        answer = await app.client.get(f"/runs/{run}/events", headers=KEY)
        assert answer.status_code == 404


async def test_a_task_and_its_runs_are_told(app: Running, make: Make) -> None:
    said = {"title": "T", "schedule_kind": "event", "schedule_expr": "go",
            "payload": {"pipeline": [{"id": "a", "uses": "set", "with": {"n": 1}}]}}  # fmt: skip
    task = (await app.client.post("/tasks", json=said, headers=KEY)).json()["id"]
    async with listening(app, f"/tasks/{task}/events") as client:
        first = await client.next()
        assert first is not None and (first.event, first.data["status"]) == ("task", "active")
        await publish(app, "go")
        ready = await client.next()
        assert ready is not None and told([ready]) == ["run ready"]
        assert await worker.once(make.config()) == 1
        done = await client.next()
        while done is not None and done.data["state"] == "running":
            done = await client.next()
        assert done is not None and told([done]) == ["run succeeded"]
        assert done.data["run_id"] == ready.data["run_id"]
        await app.client.post(f"/tasks/{task}/pause", headers=KEY)
        paused = await client.next()
        assert paused is not None and paused.data["status"] == "paused"
    async with listening(app, f"/tasks/{task}/events", Last_Event_ID=done.id) as again:
        heard = [await again.next() for _ in range(2)]
    assert {h.event for h in heard if h} == {"task", "run"}
    assert (await app.client.get(f"/tasks/{UUID(int=7)}/events", headers=KEY)).status_code == 404


# Clients


async def test_a_principal_has_so_many_streams_and_gets_them_back(
    serve: Serve, conn: db.Connection
) -> None:
    await db.call(conn, "ensure_system_agent")
    app = await serve(stream_limit=2)
    async with listening(app), listening(app):
        refused = await app.client.get("/events/stream", headers=KEY)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "5")
        assert refused.json()["error"] == "too_many"
    held = app.api.streams.held
    await until(lambda: not held)
    async with listening(app) as client:
        assert client.status == 200
    await until(lambda: not app.api.streams.channels)
    assert app.api.streams.reader is not None
    await asyncio.wait([app.api.streams.reader], timeout=PATIENCE)
    assert app.api.streams.reader.done(), "it reads although nobody watches"


async def test_a_silent_stream_has_a_heartbeat(
    app: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "HEARTBEAT_SECONDS", 0.05)
    async with listening(app) as client:
        with pytest.raises(TimeoutError):
            await client.next(1)
        assert client.comments >= 3


async def test_a_stream_ends_after_a_while_so_that_keys_are_shown_again(
    app: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "LONGEST_SECONDS", 0.1)
    async with listening(app) as client:
        assert await client.next() is None


async def test_who_does_not_read_is_dropped_and_the_others_hear_everything(
    app: Running, conn: db.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "QUEUE", 20)
    monkeypatch.setattr(hub, "PAGE", 10)
    async with listening(app), listening(app) as reads:
        for number in range(60):
            await emit(conn, "k", [number, "x" * 200_000])
            heard = await reads.next()
            assert heard is not None and heard.data["payload"][0] == number
        (channel,) = app.api.streams.channels.values()
        await until(lambda: [watcher.ended for watcher in channel.watchers].count(False) == 1)
        await emit(conn, "k", "last")
        last = await reads.next()
        assert last is not None and last.data["payload"] == "last"


async def test_a_drain_ends_all_streams_at_once_and_takes_no_new_ones(app: Running) -> None:
    async with listening(app) as one, listening(app) as two:
        app.api.drain()
        assert await one.next() is None and await two.next() is None
    assert (await app.client.get("/events/stream", headers=KEY)).status_code == 503


async def test_five_hundred_clients_cost_no_connection_and_hear_an_update_at_once(
    serve: Serve, conn: db.Connection
) -> None:
    await db.call(conn, "ensure_system_agent")
    app = await serve(stream_limit=500, pool_size=4)
    sessions = (
        "select count(*) as n from pg_stat_activity where application_name = 'orchestrator api'"
    )

    async def count() -> int:
        row = await (await conn.execute(sessions.encode())).fetchone()
        assert row is not None
        return int(row["n"])

    await app.client.get("/auth/me", headers=KEY)
    before = await count()
    clients = []
    for _ in range(500):
        made = Client(*await asyncio.open_connection("127.0.0.1", app.port))
        await made.begin("/events/stream")
        clients.append(made)
    assert [made.status for made in clients] == [200] * 500
    took: list[float] = []
    for number in range(20):
        began = time.monotonic()
        await emit(conn, "k", number)
        heard = await asyncio.gather(*(made.next() for made in clients))
        took.append(time.monotonic() - began)
        assert [h.data["payload"] for h in heard if h] == [number] * 500
        if number > 3 and min(took) < 1.0:
            break
    after = await count()
    for made in clients:
        made.writer.transport.abort()
    assert after <= before + 2
    assert min(took) < 1.0, f"{took}: 0.25 s on a quiet machine"
