"""The outbox: what is published leaves, in order, at least once, with the same id."""

from __future__ import annotations

import asyncio
import itertools
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from typing import Any

import msgspec
import pytest
from conftest import Connect, Make, Running, Serve, free_port
from crew import Crew, enqueue, until
from lines import Line
from psycopg.types.json import Jsonb
from redis.asyncio import Redis
from valkeys import Valkey
from valkeys import valkey as running_valkey

from orchestrator import auth, db, relay, worker
from orchestrator.sinks import Answer, Down, Message
from orchestrator.sinks.redis_pubsub import RedisPubSub
from orchestrator.sinks.redis_stream import RedisStream

EXPIRE = "update orchestrator.delivery set held_until = orchestrator.now() where relay is not null"
KEY = {"Authorization": f"Bearer {auth.SYSTEM_AGENT}"}


class Listed:
    """A sink that remembers what it took, and refuses what it is told to."""

    name = "listed"
    takes_events = True

    def __init__(self, name: str = "listed") -> None:
        self.name = name
        self.taken: list[Message] = []
        self.refuses: set[str] = set()
        self.is_down = False

    async def send(self, messages: Sequence[Message]) -> Answer:
        if self.is_down:
            raise Down("it is down")
        answer, stopped = Answer(), set()
        for message in messages:
            if message.key in self.refuses and message.line not in stopped:
                answer.refused[message.position] = "I don't like it"
                stopped.add(message.line)
            elif message.line not in stopped:
                self.taken.append(message)
                answer.delivered.append(message.position)
        return answer

    async def close(self) -> None:
        pass

    @property
    def payloads(self) -> list[Any]:
        return [message.body["payload"] for message in self.taken]


@pytest.fixture
async def pool(make: Make) -> AsyncIterator[db.Pool]:
    async with db.Pool(make.config(), role="orc_worker", application="relay") as made:
        yield made


@pytest.fixture
def valkey() -> Iterator[Valkey]:
    with running_valkey() as made:
        yield made


async def register(conn: db.Connection, *names: str) -> None:
    kinds = [{"name": name, "takes_events": True} for name in names]
    await db.call(conn, "register_sinks", relay="r", sinks=Jsonb(kinds))


async def emit(conn: db.Connection, topic: str, payload: Any = None, tenant: str = "t") -> str:
    said = {"tenant": tenant, "topic": topic, "payload": Jsonb(payload)}
    return str((await db.call_one(conn, "emit_event", **said))["emit_event"])


async def queued(conn: db.Connection) -> list[str]:
    cursor = await conn.execute("select key from orc.outbox order by position")
    return [row["key"] for row in await cursor.fetchall()]


async def sink_state(conn: db.Connection, name: str) -> db.Row:
    cursor = await conn.execute("select * from orc.sinks where name = %s", [name])
    row = await cursor.fetchone()
    assert row is not None
    return row


async def next_ones(conn: db.Connection, sink: str = "listed", name: str = "r") -> list[db.Row]:
    return await db.call(conn, "exchange_messages", sink=sink, relay=name, want=100)


# What is queued


async def test_without_a_sink_nothing_is_queued(conn: db.Connection) -> None:
    await emit(conn, "a")
    assert await queued(conn) == []


async def test_a_registered_sink_is_queued_for_while_no_relay_runs(conn: db.Connection) -> None:
    await register(conn, "listed")
    await emit(conn, "a")
    assert await queued(conn) == ["a"]


async def test_what_is_rolled_back_is_not_queued(conn: db.Connection) -> None:
    await register(conn, "listed")
    async with conn.transaction(force_rollback=True):
        await emit(conn, "a")
        assert await queued(conn) == ["a"]
    assert await queued(conn) == []


async def test_every_path_of_an_event_queues_it_once_and_internal_topics_stay(
    conn: db.Connection, make: Make
) -> None:
    await register(conn, "listed")
    await emit(conn, "by.emit")
    await db.call_one(conn, "publish_event", tenant="t", topic="by.publish")
    await enqueue(conn, {"id": "e", "uses": "event.emit", "with": {"topic": "by.step"}})
    assert await worker.once(make.config()) == 1
    assert await queued(conn) == ["by.emit", "by.publish", "by.step"]
    cursor = await conn.execute("select m.id, e.id as event from orc.outbox m"
                                " join orchestrator.event e on e.id = m.id")  # fmt: skip
    assert len(await cursor.fetchall()) == 3


async def test_the_same_event_again_is_not_queued_again(conn: db.Connection) -> None:
    await register(conn, "listed")
    cursor = await conn.execute("select orchestrator.new_id() as id")
    row = await cursor.fetchone()
    assert row is not None
    for _ in range(2):
        await db.call_one(conn, "publish_event", tenant="t", topic="a", id=row["id"])
    assert await queued(conn) == ["a"]


async def test_a_sink_that_no_relay_has_any_more_is_retired_and_keeps_what_it_had(
    conn: db.Connection,
) -> None:
    await register(conn, "listed")
    await emit(conn, "a")
    await register(conn)
    assert (await sink_state(conn, "listed"))["state"] == "up", "another relay may have it"
    await conn.execute("update orchestrator.delivery set seen_at = seen_at - interval '2 minutes'")
    assert (await sink_state(conn, "listed"))["state"] == "unattended"
    await register(conn)
    await emit(conn, "b")
    assert (await sink_state(conn, "listed"))["state"] == "retired"
    assert await queued(conn) == ["a"]
    await register(conn, "listed")
    await emit(conn, "c")
    assert [row["key"] for row in await next_ones(conn)] == ["a", "c"]


# Order


async def test_what_commits_late_is_not_overtaken_and_holds_up_only_its_tenant(
    conn: db.Connection, connect: Connect
) -> None:
    await emit(conn, "first of the tenant")
    await register(conn, "listed")
    late = await connect()
    async with late.transaction():
        await emit(late, "k", 1)
        await emit(conn, "k", 2)
        await emit(conn, "k", 3, tenant="other")
        assert [row["tenant"] for row in await next_ones(conn)] == ["other"]
        await emit(late, "k", 4)
    found = [row["body"]["payload"] for row in await next_ones(conn) if row["tenant"] == "t"]
    assert found == [1, 2, 4]


async def test_a_long_transaction_that_publishes_nothing_holds_nobody_up(
    conn: db.Connection, connect: Connect
) -> None:
    await register(conn, "listed")
    long = await connect()
    async with long.transaction():
        await long.execute("create table public.mine (n int)")
        await emit(conn, "k", 1)
        assert len(await next_ones(conn)) == 1


async def test_a_position_is_given_up_with_its_savepoint(
    conn: db.Connection, connect: Connect
) -> None:
    await register(conn, "listed")
    await emit(conn, "k", 0)
    assert len(await next_ones(conn)) == 1
    await conn.execute("delete from orchestrator.message")
    late = await connect()
    async with late.transaction():
        async with late.transaction(force_rollback=True):
            await emit(late, "k", 0)
        await emit(conn, "k", 1)
        assert [row["body"]["payload"] for row in await next_ones(conn)] == [1]
        await emit(late, "k", 2)
        await emit(conn, "k", 3)
        assert [row["body"]["payload"] for row in await next_ones(conn)] == [1]
    assert [row["body"]["payload"] for row in await next_ones(conn)] == [1, 2, 3]


async def test_a_thousand_events_of_one_transaction_hold_one_lock(conn: db.Connection) -> None:
    async with conn.transaction():
        await conn.execute("select orc.emit_event('t', 'k') from generate_series(1, 1000)")
        cursor = await conn.execute(
            "select count(*) as n from pg_locks where locktype = 'advisory' and objsubid = 2"
            " and pid = pg_backend_pid()"
        )
        assert (await cursor.fetchone()) == {"n": 1}


async def test_many_publish_at_once_and_each_key_arrives_in_the_order_of_its_commits(
    conn: db.Connection, connect: Connect, pool: db.Pool
) -> None:
    sink = Listed()
    await register(conn, "listed")

    async def publish(key: str) -> None:
        mine = await connect()
        for number in range(30):
            async with mine.transaction():
                await emit(mine, key, number)
                await asyncio.sleep(0.001 * (number % 3))

    async def deliver() -> None:
        courier = relay.Courier(pool, sink, "one")
        while len(sink.taken) < 180:
            await courier.once()

    async with asyncio.timeout(60):
        await asyncio.gather(deliver(), *(publish(f"k{n}") for n in range(6)))
    for n in range(6):
        mine = [m.body["payload"] for m in sink.taken if m.key == f"k{n}"]
        assert mine == list(range(30))


async def test_one_relay_delivers_at_a_time_and_another_takes_over(
    conn: db.Connection,
) -> None:
    await register(conn, "listed")
    await emit(conn, "k", 1)
    assert len(await next_ones(conn, name="a")) == 1
    assert await next_ones(conn, name="b") == []
    await conn.execute(EXPIRE)
    assert len(await next_ones(conn, name="b")) == 1
    assert await next_ones(conn, name="a") == []
    await db.call(conn, "release_sinks", relay="b")
    assert len(await next_ones(conn, name="a")) == 1


# What is refused


async def test_a_refused_message_holds_up_its_key_until_it_is_moved_aside(
    conn: db.Connection, pool: db.Pool
) -> None:
    sink = Listed()
    sink.refuses = {"bad"}
    await register(conn, "listed")
    for number, key in enumerate(["good", "bad", "good", "bad"]):
        await emit(conn, key, number)
    courier = relay.Courier(pool, sink, "one")
    for _ in range(10):
        await courier.once()
        assert sink.payloads == [0, 2]
        await conn.execute(
            "update orchestrator.message set due_at = orchestrator.now() where due_at is not null"
        )
    state = await sink_state(conn, "listed")
    assert (state["aside"], state["backlog"], state["state"]) == (1, 1, "up")
    sink.refuses = set()
    await courier.once()
    assert sink.payloads == [0, 2, 3]
    cursor = await conn.execute("select state, tries, problem from orc.outbox")
    assert await cursor.fetchall() == [
        {"state": "aside", "tries": 10, "problem": "I don't like it"}
    ]
    assert (await db.call_one(conn, "retry_messages", sink="listed"))["retry_messages"] == 1
    await courier.once()
    assert sink.payloads == [0, 2, 3, 1]
    assert await queued(conn) == []


async def test_a_message_that_waits_for_its_next_try_is_not_tried_before(
    conn: db.Connection, pool: db.Pool
) -> None:
    sink = Listed()
    sink.refuses = {"bad"}
    await register(conn, "listed")
    await emit(conn, "bad", 1)
    courier = relay.Courier(pool, sink, "one")
    await courier.once()
    await conn.execute(
        "update orchestrator.message set due_at = orchestrator.now() + interval '1 hour'"
    )
    sink.refuses = set()
    await emit(conn, "bad", 2)
    await emit(conn, "good", 3)
    await courier.once()
    assert sink.payloads == [3]


async def test_a_sink_that_is_down_costs_its_backlog_and_nothing_else(
    conn: db.Connection, pool: db.Pool
) -> None:
    up, down = Listed("up"), Listed("down")
    down.is_down = True
    await register(conn, "up", "down")
    await emit(conn, "k", 1)
    await relay.once(pool, [up, down])
    await emit(conn, "k", 2)
    await relay.once(pool, [up, down])
    assert up.payloads == [1, 2]
    state = await sink_state(conn, "down")
    assert (state["state"], state["backlog"], state["problem"]) == ("down", 2, "it is down")
    gauges = {(row["name"], row["labels"].get("sink")): row["value"]
              for row in await db.call(conn, "gauges")}  # fmt: skip
    assert gauges["outbox_backlog", "down"] == 2 and gauges["outbox_backlog", "up"] == 0
    assert gauges["sink_up", "down"] == 0 and gauges["sink_up", "up"] == 1
    assert gauges["outbox_oldest_age_seconds", "down"] > 0
    down.is_down = False
    await relay.once(pool, [up, down])
    assert down.payloads == [1, 2]
    assert (await sink_state(conn, "down"))["state"] == "up"


async def test_the_low_water_follows_what_is_delivered_and_nothing_is_lost_behind_it(
    conn: db.Connection, connect: Connect, pool: db.Pool
) -> None:
    sink = Listed()
    await register(conn, "listed")
    late = await connect()
    async with late.transaction():
        await emit(late, "late", "late", tenant="other")
        await conn.execute(
            "select orc.emit_event('t', 'k', to_jsonb(n)) from generate_series(1, 1500) as n"
        )
        courier = relay.Courier(pool, sink, "one")
        while await courier.once():
            pass
        assert sink.payloads == list(range(1, 1501))
    await conn.execute(
        "select orc.emit_event('t', 'k', to_jsonb(n)) from generate_series(1, 1500) as n"
    )
    while await courier.once():
        pass
    assert sink.payloads[1500:1501] == ["late"]
    cursor = await conn.execute("select low_water from orchestrator.delivery")
    row = await cursor.fetchone()
    assert row is not None and row["low_water"] > 1000


# Over HTTP


async def test_an_admin_sees_the_sinks_and_retries_what_stands_aside(
    serve: Serve, conn: db.Connection
) -> None:
    await db.call(conn, "ensure_system_agent")
    await register(conn, "listed")
    await emit(conn, "k", tenant="default")
    await emit(conn, "theirs", tenant="t")
    await conn.execute(
        "update orchestrator.message set aside_at = orchestrator.now(), problem = 'x'"
    )
    app = await serve()
    listed = (await app.client.get("/ops/sinks", headers=KEY)).json()
    assert [(s["name"], s["state"], s["backlog"], s["aside"]) for s in listed] == [
        ("listed", "up", 0, 1)
    ], "messages of another tenant are counted"
    retried = await app.client.post("/ops/sinks/listed/retry", headers=KEY)
    assert retried.json() == {"count": 1}
    cursor = await conn.execute("select key, state from orc.outbox order by position")
    assert [(row["key"], row["state"]) for row in await cursor.fetchall()] == [
        ("k", "queued"), ("theirs", "aside")
    ]  # fmt: skip
    audit = (await app.client.get("/audit?action=retry_messages", headers=KEY)).json()["items"]
    assert [(line["subject"], line["details"]) for line in audit] == [("listed", {"count": 1})]
    assert (await app.client.post("/ops/sinks/nothing/retry", headers=KEY)).status_code == 404


# A real Valkey


async def test_an_event_is_an_entry_of_the_stream_with_its_fixed_fields(
    conn: db.Connection, pool: db.Pool, valkey: Valkey
) -> None:
    await relay.once(pool, [RedisStream(valkey.url)])
    event = await db.call_one(conn, "publish_event", tenant="t", topic="orders.created",
                              payload={"total": 5, "who": "Zoë"}, source="agent")  # fmt: skip
    text = await emit(conn, "plain", "a text")
    assert await relay.once(pool, [RedisStream(valkey.url)]) == 2
    entry, second = await valkey.entries()
    assert list(entry) == ["topic", "payload", "event_id", "published_at", "source_agent_id"]
    at = datetime.fromisoformat(entry.pop("published_at"))
    assert at == event["published_at"]
    assert entry == {
        "event_id": str(event["event_id"]), "topic": "orders.created",
        "payload": '{"who":"Zoë","total":5}', "source_agent_id": "agent",
    }  # fmt: skip
    assert (second["event_id"], second["payload"], second["source_agent_id"]) == (
        text,
        '"a text"',
        "",
    )
    assert await queued(conn) == []


async def test_a_stream_is_cut_to_about_its_length(
    conn: db.Connection, pool: db.Pool, valkey: Valkey
) -> None:
    await register(conn, "redis_stream")
    await conn.execute(
        "select orc.emit_event('t', 'k', to_jsonb(n)) from generate_series(1, 1500) as n"
    )
    assert await relay.once(pool, [RedisStream(valkey.url, longest=500)]) == 1500
    entries = await valkey.entries()
    assert 500 <= len(entries) < 800
    assert entries[-1]["payload"] == "1500"


async def test_what_a_stream_refuses_is_moved_aside_and_the_rest_goes_on(
    conn: db.Connection, pool: db.Pool, valkey: Valkey
) -> None:
    await register(conn, "redis_stream")
    async with Redis.from_url(valkey.url) as redis:
        await redis.set("taken", "a text, not a stream")
    for address in ("taken", "taken", "free"):
        await conn.execute("select orc._send('redis_stream', 't', %s, '{\"n\": 1}')", [address])
    await conn.execute("select orc._send('redis_stream', 't', 'free', '[1]', 'no fields')")
    await emit(conn, "k")
    sink = RedisStream(valkey.url)
    courier = relay.Courier(pool, sink, "one")
    for _ in range(10):
        await courier.once()
        await conn.execute(
            "update orchestrator.message set due_at = orchestrator.now() where due_at is not null"
        )
    cursor = await conn.execute("select address, state, problem from orc.outbox order by position")
    first, second, third = await cursor.fetchall()
    assert (first["state"], second["state"], third["state"]) == ("aside", "queued", "aside")
    assert first["problem"].startswith("WRONGTYPE") and "fields" in third["problem"]
    assert len(await valkey.entries("free")) == 1 and len(await valkey.entries()) == 1
    async with Redis.from_url(valkey.url) as redis:
        await redis.delete("taken")
    await db.call(conn, "retry_messages", sink="redis_stream")
    await courier.once()
    assert len(await valkey.entries("taken")) == 2
    await sink.close()


async def test_a_channel_hears_what_is_sent_to_it_and_no_events(
    conn: db.Connection, pool: db.Pool, valkey: Valkey
) -> None:
    await relay.once(pool, [RedisPubSub(valkey.url)])
    await emit(conn, "k")
    async with Redis.from_url(valkey.url) as redis, redis.pubsub() as channel:
        await channel.subscribe("mission:7")
        assert (await channel.get_message(timeout=5) or {})["type"] == "subscribe"
        for n in range(3):
            await conn.execute(
                "select orc._send('redis_pubsub', 't', 'mission:7', %s)", [Jsonb({"progress": n})]
            )
        assert await relay.once(pool, [RedisPubSub(valkey.url)]) == 3
        heard = [(await channel.get_message(timeout=5) or {})["data"] for _ in range(3)]
    assert heard == [b'{"progress":0}', b'{"progress":1}', b'{"progress":2}']


class Killed(BaseException):
    """The relay is gone at this very point."""


class Mortal:
    """Dies at its n-th statement: before it, or after it and before anybody hears of it."""

    def __init__(self, inner: Any, lives: list[float]) -> None:
        self.inner, self.lives = inner, lives

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.inner, name)
        if name not in ("call", "send"):
            return value

        async def mortal(*args: Any, **options: Any) -> Any:
            self.lives[0] -= 0.5
            if self.lives[0] == 0:
                raise Killed
            answer = await value(*args, **options)
            self.lives[0] -= 0.5
            if self.lives[0] == 0:
                raise Killed
            return answer

        return mortal


async def for_ever(courier: relay.Courier) -> None:
    while True:
        await courier.once()


async def test_a_relay_killed_at_any_statement_loses_nothing_and_keeps_the_order(
    conn: db.Connection, pool: db.Pool, valkey: Valkey
) -> None:
    await register(conn, "redis_stream")
    sink, number = RedisStream(valkey.url), 0
    for half in range(1, 9):
        for _ in range(4):
            await emit(conn, f"k{number % 3}", number)
            number += 1
        lives = [half / 2]
        mortal: Any = Mortal(pool, lives)
        courier = relay.Courier(mortal, Mortal(sink, lives), f"relay {half}")
        with pytest.raises(Killed):
            await for_ever(courier)
        await conn.execute(EXPIRE)
    courier = relay.Courier(pool, sink, "the last")
    while await courier.once():
        pass
    await sink.close()
    entries = await valkey.entries()
    assert len(entries) > number, "nothing was sent twice: the kills came at the wrong places"
    assert all_there_in_order(entries) == number


def all_there_in_order(entries: list[dict[str, str]]) -> int:
    """How many different events; their payloads grow by one within each key, on first sight."""
    first: dict[str, dict[str, str]] = {}
    for entry in entries:
        first.setdefault(entry["event_id"], entry)
        assert first[entry["event_id"]] == entry, "one id, and two events"
    for topic in {entry["topic"] for entry in first.values()}:
        numbers = [int(e["payload"]) for e in first.values() if e["topic"] == topic]
        assert numbers == sorted(numbers), f"{topic} is out of order"
    assert sorted(int(entry["payload"]) for entry in first.values()) == list(range(len(first)))
    return len(first)


Ask = Callable[[bytes], Awaitable[int]]


async def publish_for(lines: Sequence[Ask], seconds: float, rate: float) -> tuple[int, list[float]]:
    """So many events over HTTP, each line one after the other with a key of its own, and how long
    each took."""
    numbers, times, began = itertools.count(), [], time.monotonic()

    async def publish(key: str, ask: Ask) -> None:
        for turn in itertools.count(1):
            asked = time.monotonic()
            event = msgspec.json.encode({"topic": key, "payload": next(numbers)})
            assert await ask(event) == 202
            times.append(time.monotonic() - asked)
            await asyncio.sleep(max(0.0, began + turn * len(lines) / rate - time.monotonic()))
            if time.monotonic() - began >= seconds:
                return

    await asyncio.gather(*(publish(f"k{n}", line) for n, line in enumerate(lines)))
    return len(times), times


def by_client(running: Running) -> Ask:
    async def ask(event: bytes) -> int:
        headers = {**KEY, "Content-Type": "application/json"}
        answer = await running.client.post("/events", content=event, headers=headers)
        return int(answer.status_code)

    return ask


async def killed_again_and_again(valkey: Valkey, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        await asyncio.sleep(seconds / 6)
        await asyncio.to_thread(valkey.kill)
        await asyncio.sleep(seconds / 12)
        await asyncio.to_thread(valkey.start)


async def relaying(pool: db.Pool, url: str, hold: str = "10 seconds") -> None:
    """A relay that runs until it is canceled, where it stands: nothing is given back."""
    sink = RedisStream(url)
    one = relay.Relay(pool, [sink], hold)
    try:
        while True:
            if not await one.once():
                await asyncio.sleep(0.02)
    finally:
        for task in one.under_way.values():
            task.cancel()
        await asyncio.gather(*one.under_way.values(), return_exceptions=True)
        await sink.close()


async def ended(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def relays_killed_again_and_again(pool: db.Pool, valkey: Valkey, every: float) -> None:
    """Two relays, of which one after the other is killed."""

    def start() -> asyncio.Task[None]:
        return asyncio.create_task(relaying(pool, valkey.url, hold="1 second"))

    running = [start(), start()]
    try:
        while True:
            await asyncio.sleep(every)
            running.append(start())
            await ended(running.pop(0))
    finally:
        await ended(*running)


async def processes_killed_again_and_again(crew: Crew, place: dict[str, str], every: float) -> None:
    """The same with processes."""
    running = [crew.process(name="relay", environment=place) for _ in range(2)]
    try:
        while True:
            await asyncio.sleep(every)
            running.append(crew.process(name="relay", environment=place))
            running[0].kill()
            await asyncio.to_thread(running.pop(0).wait)
    finally:
        for process in running:
            process.kill()
            process.wait()


async def all_arrive(conn: db.Connection, pool: db.Pool, valkey: Valkey, number: int) -> None:
    await asyncio.to_thread(valkey.kill)
    await asyncio.to_thread(valkey.start)
    await conn.execute(EXPIRE)
    sink = RedisStream(valkey.url)
    async with asyncio.timeout(60):
        courier = relay.Courier(pool, sink, "the last")
        while await queued(conn):
            await courier.once()
    await sink.close()
    assert all_there_in_order(await valkey.entries()) == number


async def test_valkey_and_relays_killed_under_events_and_every_event_is_in_the_stream(
    serve: Serve, conn: db.Connection, pool: db.Pool, valkey: Valkey
) -> None:
    await db.call(conn, "ensure_system_agent")
    await register(conn, "redis_stream")
    lines = [by_client(await serve())] * 5
    relays = asyncio.create_task(relays_killed_again_and_again(pool, valkey, 0.45))
    (number, _), _ = await asyncio.gather(
        publish_for(lines, 5, 100), killed_again_and_again(valkey, 5)
    )
    await ended(relays)
    await all_arrive(conn, pool, valkey, number)


@pytest.fixture
async def crew(make: Make) -> AsyncIterator[Crew]:
    crew = Crew(make.config(), quiet=True)
    yield crew
    await crew.end()


@asynccontextmanager
async def an_api(crew: Crew, place: dict[str, str]) -> AsyncIterator[list[Ask]]:
    """Twenty lines to a process."""
    port = free_port()
    crew.process(name="api", environment={**place, "PORT": str(port)})
    await until(lambda: listens(port), 30)
    lines = [Line(port) for _ in range(20)]
    yield [partial(line.post, "/events") for line in lines]
    for line in lines:
        await line.close()


def listens(port: int) -> bool:
    with socket.socket() as trial:
        return trial.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.soak
async def test_valkey_and_relays_killed_under_500_events_a_second(
    crew: Crew, conn: db.Connection, pool: db.Pool, valkey: Valkey
) -> None:
    await db.call(conn, "ensure_system_agent")
    await register(conn, "redis_stream")
    place = {"APP_ENV": "development", "LOG_LEVEL": "error", "REDIS_URL": valkey.url}
    relays = asyncio.create_task(processes_killed_again_and_again(crew, place, 5))
    async with an_api(crew, place) as lines:
        (number, times), _ = await asyncio.gather(
            publish_for(lines, 60, 500), killed_again_and_again(valkey, 60)
        )
    await ended(relays)
    await all_arrive(conn, pool, valkey, number)
    print(f"{number / 60:.0f} events/s, median {sorted(times)[number // 2] * 1000:.1f} ms")
    assert number >= 60 * 500 * 0.9


@pytest.mark.soak
async def test_publishing_is_not_slower_while_valkey_is_gone(
    crew: Crew, conn: db.Connection, pool: db.Pool, valkey: Valkey
) -> None:
    await db.call(conn, "ensure_system_agent")
    await register(conn, "redis_stream")
    place = {"APP_ENV": "development", "LOG_LEVEL": "error", "REDIS_URL": valkey.url}
    crew.process(name="relay", environment=place)
    medians: dict[bool, list[float]] = {True: [], False: []}
    async with an_api(crew, place) as lines:
        for turn in range(12):
            if turn % 2:
                await asyncio.to_thread(valkey.kill)
            number, times = await publish_for(lines, 3, 200)
            medians[bool(turn % 2)].append(sorted(times)[number // 2])
            if turn % 2:
                await asyncio.to_thread(valkey.start)
    gone, there = min(medians[True]), min(medians[False])
    print(f"{gone * 1000:.2f} ms while it is gone, {there * 1000:.2f} ms else")
    assert gone < there * 1.1, f"{gone * 1000:.2f} ms while it is gone, {there * 1000:.2f} ms else"
