"""The waist: calls, deadlines, lost connections, notifications."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import psycopg
import pytest
from conftest import Connect, Make, Proxied
from crew import own_clock
from psycopg.conninfo import conninfo_to_dict

from orchestrator import db
from orchestrator.errors import NotFound, Unavailable, is_lost, is_rolled_back

NOBODY = "99999999-0000-0000-0000-000000000000"


async def test_a_call_answers_with_rows_as_dicts(conn: db.Connection) -> None:
    row = await db.call_one(conn, "health")
    assert row["in_recovery"] is False
    assert row["server_version"]


async def test_objects_travel_as_jsonb_and_plain_lists_as_arrays(conn: db.Connection) -> None:
    await conn.execute(
        "set role orc_owner; create function orc.kinds(a jsonb, b text[], c jsonb, d int default 7)"
        " returns table (a text, b text, c text, d int) language sql"
        " return (jsonb_typeof(a), b[2], c -> 1 ->> 'x', d); reset role"
    )
    row = await db.call_one(
        conn, "kinds", a={"k": 1}, b=["x", "y"], c=[{"x": 1}, {"x": "z"}], d=msgspec.UNSET
    )
    assert row == {"a": "object", "b": "y", "c": "z", "d": 7}


async def test_a_refusal_of_a_verb_is_a_class_with_the_verbs_own_words(conn: db.Connection) -> None:
    with pytest.raises(NotFound) as refusal:
        await db.call(conn, "whoami", principal=NOBODY)
    assert refusal.value.sqlstate == "OR404"
    assert refusal.value.diag.message_primary
    assert NOBODY in str(refusal.value.diag.message_detail)


async def test_calls_together_are_one_transaction(conn: db.Connection) -> None:
    await conn.execute(
        "set role orc_owner; create function orc.xid(n int) returns table (xid text, n int)"
        " language sql return (pg_current_xact_id()::text, n); reset role"
    )
    first, second = await db.call_together(conn, ("xid", {"n": 1}), ("xid", {"n": 2}))
    assert first[0]["xid"] == second[0]["xid"]
    assert (first[0]["n"], second[0]["n"]) == (1, 2)


async def test_calls_together_leave_nothing_when_one_is_refused(conn: db.Connection) -> None:
    with pytest.raises(NotFound):
        await db.call_together(conn, ("ensure_system_agent", {}), ("whoami", {"principal": NOBODY}))
    with pytest.raises(NotFound):
        await db.call(conn, "whoami", principal="00000000-0000-0000-0000-000000000001")


async def test_a_deploy_that_changes_what_a_prepared_call_returns_fails_no_call(
    conn: db.Connection, connect: Connect
) -> None:
    def shape(columns: str, body: str) -> bytes:
        made = f"create function orc.shape() returns table ({columns}) language sql return ({body})"
        return f"set role orc_owner; drop function if exists orc.shape; {made}; reset role".encode()

    deployer = await connect()
    await deployer.execute(shape("a int, b int", "1, 2"))
    for _ in range(8):
        assert await db.call_one(conn, "shape") == {"a": 1, "b": 2}
    await deployer.execute(shape("a text, b int, c int", "'x'::text, 2, 3"))
    assert await db.call_one(conn, "shape") == {"a": "x", "b": 2, "c": 3}
    await deployer.execute(shape("a int, b int", "1, 2"))
    both = await db.call_together(conn, ("shape", {}), ("shape", {}))
    assert both == [[{"a": 1, "b": 2}], [{"a": 1, "b": 2}]]


async def test_a_statement_that_takes_too_long_is_ended_by_the_server(connect: Connect) -> None:
    connection = await connect(timeout=0.2)
    with pytest.raises(Unavailable, match="too long"), db.guarded(connection):
        await connection.execute("select pg_sleep(5)")
    assert not connection.closed
    await db.call_one(connection, "health")


async def test_a_silent_server_is_noticed_and_the_call_ends(proxied: Proxied) -> None:
    connection = await db.connect(proxied.url, timeout=0.3)
    proxied.proxy.cut()
    started = own_clock()
    with pytest.raises(Unavailable, match="did not answer in time"):
        await db.call(connection, "health")
    assert own_clock() - started < 0.3 + db.GRACE_SECONDS + 1
    await connection.close()


async def test_a_cancelled_call_ends_on_a_silent_server(proxied: Proxied) -> None:
    connection = await db.connect(proxied.url, timeout=0.3)
    proxied.proxy.cut()
    task = asyncio.create_task(db.call(connection, "health"))
    await asyncio.sleep(0.05)
    task.cancel()
    started = own_clock()
    with pytest.raises((asyncio.CancelledError, Unavailable, psycopg.OperationalError)):
        await task
    assert own_clock() - started < 8
    await connection.close()


async def test_a_server_that_never_answers_a_connection_is_given_up(proxied: Proxied) -> None:
    proxied.proxy.cut()
    started = own_clock()
    with pytest.raises((Unavailable, psycopg.OperationalError)):
        await db.connect(proxied.url)
    assert own_clock() - started < 8


def test_every_bound_of_the_network_is_below_ten_seconds() -> None:
    info = conninfo_to_dict(
        db.conninfo("postgresql://h/d", role="orc_api", timeout=5, application="t", pooler=False)
    )
    idle, interval, count = (
        int(str(info[f"keepalives_{name}"])) for name in ("idle", "interval", "count")
    )
    assert idle + interval * count < 10
    assert int(str(info["tcp_user_timeout"])) < 10_000
    assert 5 + db.GRACE_SECONDS < 10
    assert "role=orc_api" in str(info["options"])


def test_settings_in_the_url_survive() -> None:
    url = "postgresql://h/d?options=-c%20geqo%3Doff"
    info = conninfo_to_dict(db.conninfo(url, role=None, timeout=5, application="t", pooler=False))
    assert str(info["options"]).startswith("-c geqo=off -c statement_timeout=5000")


def test_a_transaction_pooler_gets_no_settings() -> None:
    info = conninfo_to_dict(
        db.conninfo("postgresql://h/d", role="orc_api", timeout=5, application="t", pooler=True)
    )
    assert "options" not in info


async def test_the_pool_takes_on_its_role(make: Make) -> None:
    async with db.Pool(make.config(), role="orc_api", application="t") as pool:
        async with pool.connection() as connection:
            cursor = await connection.execute("select current_user::text as me")
            assert await cursor.fetchone() == {"me": "orc_api"}


async def test_the_pool_never_hands_out_a_dead_connection(make: Make, conn: db.Connection) -> None:
    async with db.Pool(make.config(pool_size=2), role="orc_api", application="doomed") as pool:
        await pool.call("health")
        await conn.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where application_name = 'doomed' and datname = current_database()"
        )
        async with pool._lock:
            for idle in pool._pool:
                idle.used_at = 0.0
        for _ in range(5):
            await pool.call("health")


async def test_a_pool_behind_a_cut_network_refuses_in_time_and_recovers(
    proxied: Proxied, make: Make
) -> None:
    config = make.config(database_url=proxied.url, database_timeout=0.3, pool_size=2)
    async with db.Pool(config, role="orc_api", application="t") as pool:
        await pool.call("health")
        proxied.proxy.cut()
        started = own_clock()
        with pytest.raises(Unavailable):
            await pool.call("health")
        assert own_clock() - started < 10
        proxied.proxy.mend()
        started = own_clock()
        while own_clock() - started < 5:
            try:
                await pool.call("health")
                break
            except Unavailable:
                await asyncio.sleep(0.05)
        else:
            pytest.fail("the pool did not recover within 5 s")


async def test_listening_survives_a_lost_connection_and_says_so(
    database: str, conn: db.Connection
) -> None:
    heard: asyncio.Queue[str | None] = asyncio.Queue()

    async def ear() -> None:
        async for note in db.listen(database, ["orc_test"], application="ear"):
            await heard.put(note.payload if note else None)

    task = asyncio.create_task(ear())
    try:
        async with asyncio.timeout(60):
            assert await heard.get() is None
            await conn.execute("select pg_notify('orc_test', 'one')")
            assert await heard.get() == "one"
            await conn.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where application_name = 'ear'"
            )
            assert await heard.get() is None
            await conn.execute("select pg_notify('orc_test', 'two')")
            assert await heard.get() == "two"
    finally:
        task.cancel()


async def test_what_left_nothing_behind_is_run_again_and_nothing_else() -> None:
    calls: list[int] = []

    async def flaky() -> str:
        calls.append(1)
        if len(calls) < 3:
            raise psycopg.errors.DeadlockDetected
        return "done"

    assert await db.again(flaky) == "done"
    assert len(calls) == 3

    async def broken() -> None:
        calls.append(1)
        raise psycopg.errors.UniqueViolation

    with pytest.raises(psycopg.errors.UniqueViolation):
        await db.again(broken)
    assert len(calls) == 4


@pytest.mark.parametrize(
    ("error", "lost", "rolled_back"),
    [
        (psycopg.OperationalError("consuming input failed"), True, False),
        (psycopg.errors.AdminShutdown(), True, False),
        (psycopg.errors.ConnectionFailure(), True, False),
        (psycopg.errors.ReadOnlySqlTransaction(), True, False),
        (psycopg.errors.SerializationFailure(), False, True),
        (psycopg.errors.LockNotAvailable(), False, True),
        (psycopg.errors.UniqueViolation(), False, False),
        (psycopg.errors.DiskFull(), False, False),
        (NotFound(), False, False),
    ],
)
def test_errors_are_sorted_by_sqlstate(error: Any, lost: bool, rolled_back: bool) -> None:
    assert (is_lost(error), is_rolled_back(error)) == (lost, rolled_back)


async def test_an_unreachable_server_is_one_clear_line() -> None:
    with pytest.raises(
        Unavailable, match=r"127\.0\.0\.1:1 can't be used: Connection refused; check"
    ):
        await db.reachable("postgresql://x@127.0.0.1:1/x")
