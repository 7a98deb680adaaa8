"""The ground of the library: clock, ids, bounds on json, partitions, roles, help and check."""

from __future__ import annotations

import asyncio
import json
import random
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import msgspec
import psycopg
import pytest
from conftest import Clock, Connect, new_database
from crew import own_clock
from psycopg import sql
from psycopg.types.json import Json

from orchestrator import db, devpg, errors, schema

INSTANT = datetime(2031, 5, 6, 7, 8, 9, 123457, tzinfo=UTC)
DAY = timedelta(days=1)
ROLES = ["orc_owner", "orc_api", "orc_worker", "orc_reader", "orc_sql"]
SYSTEM_AGENT = uuid.UUID("00000000-0000-0000-0000-000000000001")


async def ask(conn: db.Connection, statement: str, *values: Any) -> list[Any]:
    """The first column of all rows."""
    cursor = await conn.execute(statement, values or None)
    return [next(iter(row.values())) for row in await cursor.fetchall()]


async def one(conn: db.Connection, statement: str, *values: Any) -> Any:
    (answer,) = await ask(conn, statement, *values)
    return answer


@pytest.fixture(scope="module")
def shared_database(server: devpg.Cluster, template: str) -> Iterator[str]:
    """One clone for all tests here that leave nothing behind."""
    with new_database(server, "shared", template) as url:
        yield url


@pytest.fixture
async def looker(shared_database: str) -> AsyncIterator[db.Connection]:
    async with await db.connect(shared_database) as connection:
        yield connection


async def broken(conn: db.Connection) -> list[tuple[str, str]]:
    """What is broken, except in tables of verticals, whose clock may have been moved here."""
    names = [(row["invariant"], row["subject"]) for row in await db.call(conn, "check")]
    registered = await ask(conn, "select table_name from orchestrator.partitioned")
    return sorted(name for name in names if name[1] == "deed" or name[1] not in registered)


# The clock


async def test_now_is_the_clock_and_runs_on_within_a_transaction(looker: db.Connection) -> None:
    async with looker.transaction():
        first = await one(looker, "select orchestrator.now()")
        second = await one(looker, "select orchestrator.now()")
    assert first < second
    assert abs(second - datetime.now(UTC)) < timedelta(seconds=5)


async def test_the_clock_stands_where_it_is_set_until_it_is_unset(
    conn: db.Connection, clock: Clock, connect: Connect
) -> None:
    await clock.set(INSTANT)
    assert await ask(conn, "select orchestrator.now() from generate_series(1, 3)") == [INSTANT] * 3
    await clock.advance(DAY)
    assert await one(conn, "select orchestrator.now()") == INSTANT + DAY
    assert await one(await connect(), "select orchestrator.now()") < INSTANT
    await conn.execute("set orchestrator.now = ''")
    assert await one(conn, "select orchestrator.now()") < INSTANT


async def test_an_index_is_used_for_what_is_due_now(looker: db.Connection) -> None:
    await looker.execute(
        "create temp table due as select orchestrator.now() + n * interval '1 minute' as due_at"
        " from generate_series(-100, 9900) as n"
    )
    await looker.execute("create index on due (due_at)")
    await looker.execute("analyze due")
    plan = "\n".join(
        await ask(looker, "explain select * from due where due_at <= orchestrator.now()")
    )
    assert "Index Cond" in plan, plan
    assert "Filter" not in plan, plan


# Ids


async def test_ids_are_version_7_and_carry_the_time_at_which_they_were_made(
    looker: db.Connection,
) -> None:
    before = await one(looker, "select clock_timestamp()")
    made = await one(looker, "select orchestrator.new_id()")
    after = await one(looker, "select clock_timestamp()")
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    microsecond = timedelta(microseconds=1)  # a server's nanoseconds are rounded
    carried = await one(looker, "select orchestrator.id_time(%s)", made)
    assert before - microsecond <= carried <= after + microsecond


async def test_ids_are_unique_and_grow(conn: db.Connection, connect: Connect) -> None:
    make = "select orchestrator.new_id() from generate_series(1, 20000)"
    connections = [conn, await connect(), await connect()]
    batches = await asyncio.gather(*(ask(connection, make) for connection in connections))
    assert len({made for batch in batches for made in batch}) == 60000
    for batch in batches:  # two of one microsecond may swap on servers before 18
        times = [made.int >> 64 for made in batch]
        assert times == sorted(times)


async def test_ids_of_a_steered_instant_carry_it_and_keep_their_order(
    looker: db.Connection,
) -> None:
    clock = Clock([looker])
    await clock.set(INSTANT)
    made = await ask(looker, "select orchestrator.new_id() from generate_series(1, 5000)")
    assert {each.version for each in made} == {7}
    assert {each.variant for each in made} == {uuid.RFC_4122}
    assert set(await ask(looker, "select distinct orchestrator.id_time(unnest(%s))", made)) == {
        INSTANT
    }
    assert len(set(made)) == 5000
    swapped = sum(a > b for a, b in pairwise(made))
    assert swapped < 50  # those of one microsecond


async def test_the_floor_of_an_instant_is_its_smallest_id_and_nothing_earlier(
    looker: db.Connection,
) -> None:
    clock = Clock([looker])
    for _ in range(50):
        instant = datetime.fromtimestamp(random.randint(0, 4 * 10**9), UTC)
        await clock.set(instant + timedelta(microseconds=random.randint(0, 999_999)))
        row = await (
            await looker.execute(
                "select orchestrator.new_id() as id, orchestrator.id_floor(t) as floor,"
                " orchestrator.id_floor(t - interval '1 microsecond') as before,"
                " orchestrator.id_floor(t + interval '1 microsecond') as after,"
                " orchestrator.id_time(orchestrator.id_floor(t)) = t as is_exact"
                " from orchestrator.now() as t"
            )
        ).fetchone()
        assert row is not None
        assert row["before"] < row["floor"] <= row["id"] < row["after"]
        assert row["is_exact"]


async def test_an_id_made_by_the_clock_is_not_below_the_floor_of_its_instant(
    looker: db.Connection,
) -> None:
    assert await one(
        looker,
        "select bool_and(orchestrator.id_floor(t) <= id and id_time between t and t + '1 minute')"
        " from (select t, id, orchestrator.id_time(id) as id_time"
        "       from (select clock_timestamp() as t, orchestrator.new_id() as id"
        "             from generate_series(1, 20000) offset 0) as made offset 0) as timed",
    )


async def test_a_floor_exists_for_every_instant(looker: db.Connection) -> None:
    for instant in ("infinity", "-infinity", "1900-01-01", "20000-01-01"):
        floor = await one(looker, "select orchestrator.id_floor(%s::timestamptz)", instant)
        assert floor.version == 7


# Bounds on json


def nested(levels: int, kind: str = "array") -> str:
    opening, closing = ("[", "]") if kind == "array" else ('{"a":', "}")
    return opening * (levels - 1) + ("[]" if kind == "array" else "{}") + closing * (levels - 1)


ACCEPTED = {
    "an empty object": "{}",
    "a bare null": "null",
    "32 arrays": nested(32),
    "32 objects": nested(32, "object"),
    "a number in 31 arrays": "[" * 31 + "1" + "]" * 31,
    "the largest number": "1e308",
    "the smallest": "[-1e308, 1e308]",
    "a number with many decimals": "0." + "1" * 5000,
    "a number near nothing": "1e-5000",
    "digits in a string": json.dumps("9" * 5000),
    "brackets in a string": json.dumps("[" * 5000),
    "an emoji as a pair of surrogates": '"\\ud83d\\ude00"',
    "every kind": '{"a": [1, -2.5e3, true, false, null, "\\u0001\\"\\\\/é"]}',
    "a megabyte less two": json.dumps("x" * (1048576 - 2)),
}

REFUSED = {
    "33 arrays": nested(33),
    "33 objects": nested(33, "object"),
    "33 levels at the end of a long list": json.dumps([0] * 500)[:-1] + ", " + nested(32) + "]",
    "1,000 arrays": nested(1000),
    "a number too large": "1e309",
    "one a little too large": "1" + "0" * 307 + "11",
    "one too small": '{"a": [-1.1e308]}',
    "a number of 10,000 digits": "9" * 10000,
    "one inside others": json.dumps({"a": [{"b": 1}] * 100})[:-1] + ', "c": 1e400}',
    "a megabyte and a bit": json.dumps("x" * 1048576),
}


async def test_bounded_json_is_accepted_and_can_be_read(looker: db.Connection) -> None:
    for name, text in ACCEPTED.items():
        assert await one(looker, "select orchestrator.json_is_bounded(%s::jsonb)", text), name
        msgspec.json.decode(await one(looker, "select (%s::jsonb)::text", text))


async def test_unbounded_json_is_refused(looker: db.Connection) -> None:
    for name, text in REFUSED.items():
        assert not await one(looker, "select orchestrator.json_is_bounded(%s::jsonb)", text), name


async def test_json_that_is_stored_compressed_is_judged_all_the_same(looker: db.Connection) -> None:
    await looker.execute("create temp table document (body jsonb)")
    for text in (REFUSED["1,000 arrays"], REFUSED["a megabyte and a bit"]):
        await looker.execute("insert into document values (%s::jsonb)", [text])
    verdict = "select distinct orchestrator.json_is_bounded(body) from document"
    assert await ask(looker, verdict) == [False]


async def test_the_size_can_be_bounded_closer_and_null_passes_a_check(
    looker: db.Connection,
) -> None:
    judge = "select orchestrator.json_is_bounded(%s::jsonb, max_bytes => 10)"
    assert await one(looker, judge, '"12345678"')
    assert not await one(looker, judge, '"123456789"')
    assert await one(looker, judge, None) is None


async def test_jsonb_itself_refuses_what_text_cannot_hold(looker: db.Connection) -> None:
    for text in ('"\\u0000"', '"\\ud800"'):
        with pytest.raises(psycopg.DataError):
            await looker.execute("select %s::jsonb", [text])


def random_document(dice: random.Random, depth: int) -> Any:
    kind = dice.choice("nnsssbalo") if depth < 40 else "n"
    if kind in "al":
        return [random_document(dice, depth + 1) for _ in range(dice.randint(0, 3))]
    if kind == "o":
        names = ["a", "é", "\x01", "x" * 50, "", '"']
        return {dice.choice(names): random_document(dice, depth + 1) for _ in range(3)}
    numbers = [0, -1, 2**63, 2**64, -(10**300), 10 ** dice.randint(300, 312), 1e308, -0.0, 1e-300]
    texts = ["", "\x7f", "\u2028", "😀", "\\", "1" * dice.randint(1, 400), "[" * 40]
    return dice.choice(numbers if kind == "n" else texts if kind == "s" else [True, False, None])


async def test_whatever_is_accepted_can_be_read(looker: db.Connection) -> None:
    seed = random.randrange(10**9)
    dice = random.Random(seed)
    verdicts: Counter[bool] = Counter()
    for _ in range(400):
        document = random_document(dice, dice.randint(0, 3))
        for _ in range(dice.choice([0, 0, 0, 25, 31, 33])):
            document = [document]
        row = await (
            await looker.execute(
                "select orchestrator.json_is_bounded(d) as ok, d::text as text"
                " from (select %s::jsonb as d) as t",
                [Json(document)],
            )
        ).fetchone()
        assert row is not None
        verdicts[row["ok"]] += 1
        if row["ok"]:
            read = msgspec.json.decode(row["text"])
            assert depth_of(read) <= 32, f"seed {seed}"
            assert all(abs(number) <= 1e308 for number in numbers_in(read)), f"seed {seed}"
    assert min(verdicts[True], verdicts[False]) > 20, f"seed {seed}: {verdicts}"


def parts_of(document: Any) -> list[Any]:
    if isinstance(document, dict):
        return list(document.values())
    return document if isinstance(document, list) else []


def depth_of(document: Any) -> int:
    if not isinstance(document, dict | list):
        return 0
    return 1 + max((depth_of(part) for part in parts_of(document)), default=0)


def numbers_in(document: Any) -> list[float]:
    if isinstance(document, int | float):
        return [document]
    return [number for part in parts_of(document) for number in numbers_in(part)]


# Partitions


async def make_history(conn: db.Connection, retention: str | None = "10 days") -> None:
    """A table partitioned by day, three days ahead, as a vertical's tables.sql makes it."""
    await conn.execute(
        "set role orc_owner;"
        "create table orchestrator.deed (id uuid not null default orchestrator.new_id(), word text,"
        " twice text generated always as (word || word) stored,"
        " constraint deed_has_one_id primary key (id)) partition by range (id);"
        "create table orchestrator.deed_default partition of orchestrator.deed default;"
        "reset role"
    )
    await conn.execute(
        "insert into orchestrator.partitioned (table_name, ahead, retention)"
        " values ('deed', 3, %s)",
        [retention],
    )


async def keep(conn: db.Connection) -> list[tuple[str, str | None]]:
    done = await db.call(conn, "keep_partitions", only_table="deed")
    return [(row["action"], row["partition"]) for row in done]


async def add(conn: db.Connection, word: str) -> None:
    await conn.execute("insert into orchestrator.deed (word) values (%s)", [word])


async def places(conn: db.Connection) -> list[str]:
    return await ask(
        conn,
        "select relname || ' ' || twice from orchestrator.deed d"
        " join pg_class c on c.oid = d.tableoid order by id",
    )


NEW_YEARS_EVE = datetime(2030, 12, 31, 12, tzinfo=UTC)
FOUR_DAYS = ["deed_2030_12_31", "deed_2031_01_01", "deed_2031_01_02", "deed_2031_01_03"]


@pytest.mark.breaks
async def test_partitions_are_made_ahead_of_the_clock(conn: db.Connection, clock: Clock) -> None:
    await make_history(conn)
    await clock.set(NEW_YEARS_EVE)
    assert await keep(conn) == [("created", name) for name in FOUR_DAYS]
    assert await keep(conn) == []
    await add(conn, "a")
    await clock.advance(3 * DAY)
    await add(conn, "b")
    assert await places(conn) == [
        "deed_2030_12_31 aa",
        "deed_2031_01_03 bb",
    ]
    await clock.advance(-2 * DAY)
    assert await keep(conn) == [("created", "deed_2031_01_04")]
    assert await broken(conn) == []


@pytest.mark.breaks
async def test_a_row_of_the_first_and_of_the_last_instant_of_a_day_is_in_that_day(
    conn: db.Connection, clock: Clock
) -> None:
    await make_history(conn)
    midnight = datetime(2031, 1, 1, tzinfo=UTC)
    await clock.set(midnight)
    await keep(conn)
    await add(conn, "first")
    await clock.set(midnight + DAY - timedelta(microseconds=1))
    await add(conn, "last")
    assert {place.split()[0] for place in await places(conn)} == {"deed_2031_01_01"}


@pytest.mark.breaks
async def test_rows_that_landed_in_the_default_partition_are_moved(
    conn: db.Connection, clock: Clock
) -> None:
    await make_history(conn)
    await clock.set(NEW_YEARS_EVE)
    await add(conn, "a")
    await clock.advance(DAY)
    await add(conn, "b")
    assert ("default_partitions_are_empty", "deed") in await broken(conn)
    await clock.advance(DAY)
    done = await db.call(conn, "keep_partitions", only_table="deed")
    moved = [(row["partition"], row["detail"]) for row in done if row["action"] == "moved"]
    expected = "rows from the default partition: 1"
    assert moved == [("deed_2030_12_31", expected), ("deed_2031_01_01", expected)]
    assert await places(conn) == [
        "deed_2030_12_31 aa",
        "deed_2031_01_01 bb",
    ]
    assert await broken(conn) == []


@pytest.mark.breaks
async def test_a_row_whose_key_is_no_time_stays_and_is_reported(conn: db.Connection) -> None:
    await make_history(conn)
    await conn.execute("insert into orchestrator.deed (id) values (gen_random_uuid())")
    await keep(conn)
    assert await keep(conn) == []
    assert await broken(conn) == [("default_partitions_are_empty", "deed")]


@pytest.mark.breaks
async def test_what_is_past_its_retention_is_dropped_whole(
    conn: db.Connection, clock: Clock
) -> None:
    await make_history(conn, retention="2 days")
    await clock.set(NEW_YEARS_EVE)
    await keep(conn)
    await add(conn, "a")
    await clock.advance(2 * DAY + timedelta(hours=11, minutes=59))
    assert not [done for done in await keep(conn) if done[0] == "dropped"]
    await clock.advance(timedelta(minutes=1))
    assert ("dropped", "deed_2030_12_31") in await keep(conn)
    assert await places(conn) == []
    await db.call(conn, "set_retention", table="deed", retention=None)
    await clock.advance(100 * DAY)
    assert not [done for done in await keep(conn) if done[0] == "dropped"]


async def test_the_retention_of_an_unknown_table_is_not_found(looker: db.Connection) -> None:
    with pytest.raises(errors.NotFound) as refusal:
        await db.call(looker, "set_retention", table="nothing", retention=DAY)
    assert refusal.value.diag.message_detail == "nothing"
    assert refusal.value.diag.message_hint


CHANGE = "update orchestrator.partitioned set span = "


@pytest.mark.breaks
async def test_a_changed_span_fills_the_gaps_and_overlaps_nothing(
    conn: db.Connection, clock: Clock
) -> None:
    await make_history(conn, retention=None)
    await clock.set(NEW_YEARS_EVE)  # a Tuesday
    await keep(conn)
    await conn.execute(CHANGE + "'7 days', ahead = 1 where table_name = 'deed'")
    await clock.advance(4 * DAY)
    assert await keep(conn) == [("created", "deed_2031_01_04"), ("created", "deed_2031_01_06")]
    await conn.execute(CHANGE + "'6 hours', ahead = 2 where table_name = 'deed'")
    await clock.set(datetime(2031, 1, 12, 23, tzinfo=UTC))
    assert await keep(conn) == [("created", "deed_2031_01_13"), ("created", "deed_2031_01_13_06")]
    bounds = await conn.execute("select * from orc.partitions where \"table\" = 'deed'")
    dated = [(row["starts_at"], row["ends_at"]) async for row in bounds if row["starts_at"]]
    dated.sort()
    assert all(before[1] <= after[0] for before, after in pairwise(dated))


PARTITIONS_OF_DEED = """
select partition from orc.partitions where "table" = 'deed' order by starts_at nulls last
"""


@pytest.mark.breaks
async def test_a_busy_table_is_reported_and_not_waited_for(
    conn: db.Connection, connect: Connect, clock: Clock
) -> None:
    await make_history(conn)
    await clock.set(NEW_YEARS_EVE)
    reader = await connect()
    async with reader.transaction():
        await reader.execute("select from orchestrator.deed")
        started = own_clock()
        done = await keep(conn)
        assert own_clock() - started < 2, "a call has 5 s"
        assert {action for action, _ in done} == {"busy"}
        assert await ask(conn, PARTITIONS_OF_DEED) == ["deed_default"]
    assert await keep(conn) == [("created", name) for name in FOUR_DAYS]


@pytest.mark.breaks
async def test_a_drop_that_is_busy_or_depended_on_is_reported(
    conn: db.Connection, connect: Connect, clock: Clock
) -> None:
    await make_history(conn, retention="2 days")
    await clock.set(NEW_YEARS_EVE)
    await keep(conn)
    await clock.advance(2 * DAY)
    await keep(conn)
    await clock.advance(DAY / 2)
    reader = await connect()
    async with reader.transaction():
        await reader.execute("select from orchestrator.deed_2030_12_31")
        assert ("busy", "deed_2030_12_31") in await keep(conn)
    await conn.execute("create view public.mine as select * from orchestrator.deed_2030_12_31")
    assert ("busy", "deed_2030_12_31") in await keep(conn)
    await conn.execute("drop view public.mine")
    assert ("dropped", "deed_2030_12_31") in await keep(conn)


@pytest.mark.breaks
async def test_two_housekeepers_at_once_do_it_once(
    conn: db.Connection, connect: Connect, clock: Clock
) -> None:
    await make_history(conn)
    clock.connections += [await connect() for _ in range(3)]
    await clock.set(NEW_YEARS_EVE)
    for step in range(5):
        await clock.advance(step * DAY)
        answers = await asyncio.gather(*(keep(each) for each in clock.connections))
        done = [row for rows in answers for row in rows if row != ("busy", None)]
        assert done == sorted(set(done), key=done.index), "something was done twice"
        assert await broken(conn) == []


async def test_a_housekeeper_beside_another_is_told_so(
    conn: db.Connection, connect: Connect
) -> None:
    other = await connect()
    async with other.transaction():
        await db.call(other, "keep_partitions")
        (told,) = await db.call(conn, "keep_partitions")
    assert (told["action"], told["partition"]) == ("busy", None)


async def test_writes_go_on_while_partitions_come_and_go(
    conn: db.Connection, connect: Connect, clock: Clock
) -> None:
    await make_history(conn, retention="2 days")
    await keep(conn)
    writer = await connect()
    going = True

    async def write() -> int:
        written = 0
        while going:
            await add(writer, "x")
            written += 1
        return written

    async def housekeep() -> None:
        nonlocal going
        actual = await one(conn, "select clock_timestamp()")
        for step in range(10):
            await clock.set(actual + step * DAY)
            await keep(conn)
        going = False

    written, _ = await asyncio.gather(write(), housekeep())
    left = await one(conn, "select count(*) from orchestrator.deed")
    await conn.execute("set orchestrator.now = ''")
    await keep(conn)
    assert 0 < left <= written


async def test_a_partition_has_what_its_table_has(conn: db.Connection) -> None:
    await make_history(conn)
    await conn.execute("create index deed_by_word on orchestrator.deed (word)")
    await keep(conn)
    name, *_ = await ask(conn, PARTITIONS_OF_DEED)
    assert await one(conn, "select count(*) from pg_indexes where tablename = %s", name) == 2
    described = "select obj_description(to_regclass('orchestrator.' || %s), 'pg_class')"
    assert (await one(conn, described, name)).startswith("Rows of deed from ")
    owner = "select relowner::regrole::text from pg_class where relname = %s"
    assert await one(conn, owner, name) == "orc_owner"


# Who may do what


async def test_a_passer_by_may_execute_nothing(looker: db.Connection) -> None:
    await looker.execute("create role passer_by")
    try:
        await looker.execute("set role passer_by")
        for statement in ("select orchestrator.new_id()", "select * from orc.help()"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                await looker.execute(statement)
    finally:
        await looker.execute("reset role; drop role passer_by")


ALLOWED = {
    "orc_api": {"whoami", "check", "help", "health", "gauges"},
    "orc_worker": {
        "whoami",
        "check",
        "help",
        "health",
        "gauges",
        "keep_partitions",
        "secrets_of",
    },
    "orc_reader": {"check", "help", "health", "gauges", "describe_facts", "list_secrets"},
    "orc_sql": {"record_once", "examine_login"},
}


OWNERS_ONLY = {"ensure_system_agent", "set_retention", "put_secret", "delete_secret"}


async def test_each_role_may_call_its_verbs_and_no_other(looker: db.Connection) -> None:
    ours = OWNERS_ONLY.union(*ALLOWED.values())
    for role, verbs in ALLOWED.items():
        callable_verbs = await ask(
            looker,
            "select proname::text from pg_proc where pronamespace = 'orc'::regnamespace"
            " and proname !~ '^_' and has_function_privilege(%s, oid, 'execute')",
            role,
        )
        assert set(callable_verbs) & ours == verbs, role


async def test_no_role_but_the_owner_may_write_a_table(looker: db.Connection) -> None:
    writable = await ask(
        looker,
        "select rolname || oid::regclass from pg_class"
        " cross join unnest('{orc_api,orc_worker,orc_reader,orc_sql}'::text[]) as role(rolname)"
        " where relkind in ('r', 'p') and relnamespace = 'orchestrator'::regnamespace and"
        " has_table_privilege(rolname, oid, 'insert, update, delete, truncate, trigger')",
    )
    assert writable == []


async def test_each_role_can_do_its_part(conn: db.Connection, connect: Connect) -> None:
    await db.call(conn, "ensure_system_agent")
    api, worker, reader = [
        await connect(role=role) for role in ("orc_api", "orc_worker", "orc_reader")
    ]
    assert (await db.call_one(api, "whoami", principal=SYSTEM_AGENT))["name"] == "system"
    assert await db.call(worker, "keep_partitions") == [], "installation made them all"
    for view in ("orc.gauges", "orc.migrations", "orc.partitions", "orchestrator.tenant"):
        await reader.execute(sql.SQL("select * from {}").format(sql.SQL(view)))
    for connection in (api, worker, reader):
        await db.call_one(connection, "health")
        assert await db.call(connection, "gauges")
        assert await db.call(connection, "check") == []
        assert await one(connection, "select orchestrator.now()")
    for connection in (api, worker):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await connection.execute("select from orchestrator.principal")


async def test_views_show_what_their_reader_may_see(looker: db.Connection) -> None:
    if await one(looker, "select current_setting('server_version_num')::int") < 150000:
        pytest.skip("there's no security_invoker before 15")
    unsafe = await ask(
        looker,
        "select relname::text from pg_class where relnamespace = 'orc'::regnamespace"
        " and relkind = 'v' and not coalesce(reloptions, '{}') @> '{security_invoker=true}'",
    )
    assert unsafe == []


# Refusals, help, check


REFUSALS = {
    "_forbidden": errors.Forbidden,
    "_not_found": errors.NotFound,
    "_conflict": errors.Conflict,
    "_gone": errors.Gone,
    "_invalid": errors.Invalid,
    "_too_many": errors.TooMany,
}


async def test_a_refusal_says_what_which_and_what_next(looker: db.Connection) -> None:
    for helper, kind in REFUSALS.items():
        with pytest.raises(kind) as refusal:
            await db.call(looker, helper, what="It is so", which="the third", next_step="wait")
        said = refusal.value.diag
        words = (said.message_primary, said.message_detail, said.message_hint)
        assert words == ("It is so", "the third", "wait")
        with pytest.raises(kind):
            await db.call(looker, helper, what="It is so")


async def test_help_lists_every_verb_with_its_purpose(looker: db.Connection) -> None:
    listed = await db.call(looker, "help")
    verbs = await ask(
        looker,
        "select proname::text from pg_proc where pronamespace = 'orc'::regnamespace"
        " and proname not like '\\_%' order by 1",
    )
    assert [row["verb"] for row in listed] == verbs
    assert all(row["purpose"] and row["returns"] for row in listed)
    by_name = {row["verb"]: row for row in listed}
    assert by_name["help"]["arguments"] == "pattern text DEFAULT NULL::text"
    found = {row["verb"] for row in await db.call(looker, "help", pattern="RETENTION")}
    assert {"keep_partitions", "set_retention"} <= found < set(verbs)


async def test_roles_say_what_they_are_for(looker: db.Connection) -> None:
    about = "select shobj_description(oid, 'pg_authid') from pg_roles where rolname = any(%s)"
    described = await ask(looker, about, ROLES)
    assert len(described) == 5
    assert all(described)


async def test_check_adds_up_the_invariants_of_every_vertical(looker: db.Connection) -> None:
    body = await one(looker, "select prosrc from pg_proc where oid = 'orc._broken'::regproc")
    verticals = [page.name.partition("/")[0] for page in schema.read_library().verbs]
    checks = {f"_check_{vertical}" for vertical in verticals}
    there = await ask(
        looker, "select proname::text from pg_proc where proname = any(%s)", [*checks]
    )
    assert {"_check_base", "_check_auth", "_check_ops"} <= set(there)
    assert [name for name in there if f"orc.{name}()" not in body] == []


DAMAGE = {
    "registered_tables_are_partitioned_by_one_uuid": (
        "insert into orchestrator.partitioned (table_name) values ('tenant')"
    ),
    "partitioned_tables_have_a_default_partition": "drop table orchestrator.deed_default",
    "default_partitions_are_empty": (
        "insert into orchestrator.deed values ('00000000-0000-7000-8000-000000000000')"
    ),
    "partitions_exist_ahead": CHANGE + "'10 days' where table_name = 'deed'",
    "functions_are_closed_to_public": "grant execute on function orc.help(text) to public",
    "definer_functions_pin_their_search_path": "alter function orc.check(text) reset search_path",
    "everything_belongs_to_orc_owner": "create view orc.mine as select 1 as x",
    "the_system_agent_belongs_to_the_default_tenant": (
        "insert into orchestrator.tenant values ('other');"
        "insert into orchestrator.principal (tenant_id, id, kind, name)"
        " values ('other', '00000000-0000-0000-0000-000000000001', 'agent', 'x')"
    ),
}


async def test_check_finds_what_is_broken(conn: db.Connection) -> None:
    await make_history(conn)
    await keep(conn)
    for invariant, damage in DAMAGE.items():
        assert await broken(conn) == []
        async with conn.transaction(force_rollback=True):
            await conn.execute(damage)
            assert invariant in [row["invariant"] for row in await db.call(conn, "check")]


async def test_gauges_are_figures_with_labels_and_cheap(
    conn: db.Connection, connect: Connect
) -> None:
    await make_history(conn)
    await keep(conn)
    other = await connect()
    async with other.transaction():
        await other.execute("select from orchestrator.deed")
        gauges = await db.call(conn, "gauges")
        seconds = []
        for _ in range(10):
            started = time.monotonic()
            await db.call(conn, "gauges")
            seconds.append(time.monotonic() - started)
        assert min(seconds) < 0.05
    found = {(row["name"], *row["labels"].values()): row["value"] for row in gauges}
    assert found["database_bytes",] > 1_000_000
    assert found["connections", "idle in transaction"] == 1
    assert found["oldest_transaction_seconds",] > 0
    assert found["oldest_snapshot_transactions",] >= 0
    assert found["partitions", "deed"] == 5
    assert found["default_partition_rows", "deed"] == 0


async def test_the_oldest_snapshot_is_noticed(conn: db.Connection, connect: Connect) -> None:
    other = await connect()
    await other.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
    async with other.transaction():
        await other.execute("select 1")
        for _ in range(5):
            await conn.execute("select pg_current_xact_id()")
        found = {row["name"]: row["value"] for row in await db.call(conn, "gauges")}
    assert found["oldest_snapshot_transactions"] >= 5


# Tenants and principals


async def test_the_first_agent_is_made_once_however_many_make_it(connect: Connect) -> None:
    connections = [await connect() for _ in range(8)]
    made = await asyncio.gather(*(db.call_one(each, "ensure_system_agent") for each in connections))
    assert {row["ensure_system_agent"] for row in made} == {SYSTEM_AGENT}
    found = await db.call(connections[0], "whoami", principal=SYSTEM_AGENT)
    assert found == [
        {
            "tenant_id": "default",
            "id": SYSTEM_AGENT,
            "kind": "agent",
            "name": "system",
            "scopes": ["admin"],
        }
    ]


async def test_a_taken_name_keeps_the_first_agent_out(conn: db.Connection) -> None:
    await conn.execute("insert into orchestrator.tenant values ('default')")
    await conn.execute(
        "insert into orchestrator.principal (tenant_id, kind, name)"
        " values ('default', 'user', 'system')"
    )
    with pytest.raises(errors.Conflict):
        await db.call(conn, "ensure_system_agent")


async def test_a_disabled_or_unknown_principal_is_nobody(conn: db.Connection) -> None:
    await db.call(conn, "ensure_system_agent")
    await conn.execute("update orchestrator.principal set disabled_at = orchestrator.now()")
    for principal in (SYSTEM_AGENT, uuid.uuid4()):
        with pytest.raises(errors.NotFound):
            await db.call(conn, "whoami", principal=principal)


UNFIT_PRINCIPALS: list[tuple[str, tuple[Any, ...]]] = [
    ("kind_is_agent_user_or_service", ("robot", "x", [])),
    ("name_is_1_to_100_characters", ("user", "", [])),
    ("name_is_unique_within_its_tenant", ("user", "system", [])),
    ("scopes_are_plain_words", ("user", "x", [None])),
    ("scopes_are_plain_words", ("user", "x", ["tasks:write", "a b"])),
    ("scopes_are_plain_words", ("user", "x", ["a,b"])),
    ("scopes_are_plain_words", ("user", "x", [""])),
    ("scopes_are_plain_words", ("user", "x", ["Admin"])),
]


async def test_constraints_of_principals_are_sentences(conn: db.Connection) -> None:
    await db.call(conn, "ensure_system_agent")
    for constraint, values in UNFIT_PRINCIPALS:
        with pytest.raises(psycopg.IntegrityError) as refusal:
            await conn.execute(
                "insert into orchestrator.principal (tenant_id, kind, name, scopes)"
                " values ('default', %s, %s, %s::text[])",
                values,
            )
        assert refusal.value.diag.constraint_name == constraint
