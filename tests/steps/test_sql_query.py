"""`sql.query`: a statement and the record of its step stand or fall together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import psycopg
import pytest
from conftest import Connect, Make
from crew import Crew, call, ends, enqueue, exit_status, look, until
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from orchestrator import db

COUNT = "insert into public.deed (run) values ($1) returning n"


def execute(url: str, text: str, *values: Any) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as admin:
        cursor = admin.execute(text.encode(), values or None)
        return cursor.fetchall() if cursor.description else []


@pytest.fixture
def login(database: str) -> Iterator[str]:
    """A login as the README makes it, on a database with a table of the user's."""
    name = f"reports_{conninfo_to_dict(database)['dbname']}"
    execute(database, "create table public.deed (n int generated always as identity, run text)")
    execute(database, f"create role {name} login password 'secret'")
    execute(database, f"grant orc_sql to {name}")
    execute(database, f"grant select, insert on public.deed to {name}")
    yield make_conninfo(database, user=name, password="secret")
    execute(database, f"drop owned by {name} cascade; drop role {name}")


def name_of(login: str) -> str:
    return str(conninfo_to_dict(login)["user"])


@pytest.fixture
async def crew(make: Make, login: str, conn: db.Connection) -> AsyncIterator[Crew]:
    crew = Crew(make.config(python_modules=("deeds",), sql_url=login, pool_size=8))
    yield crew
    await crew.end()


def query(statement: str, params: Any = None, id: str = "q", **more: Any) -> dict[str, Any]:
    given = {"statement": statement} | ({"params": params} if params is not None else {})
    given |= {"rows": more.pop("rows")} if "rows" in more else {}
    return {"id": id, "uses": "sql.query", "with": given, **more}


Ask = Callable[..., Awaitable[Any]]


@pytest.fixture
def ask(crew: Crew, conn: db.Connection) -> Ask:
    """What a run of one statement answers, or its error."""

    async def one(statement: str, params: Any = None, **more: Any) -> Any:
        run = await enqueue(conn, query(statement, params, **more))
        await crew.once()
        row = await look(conn, run)
        return row["output"]["q"] if row["state"] == "succeeded" else row["error"]

    return one


async def sole(conn: db.Connection, text: str, *values: Any) -> Any:
    row = await (await conn.execute(text.encode(), values)).fetchone()
    assert row is not None
    return next(iter(row.values()))


async def deeds(conn: db.Connection) -> int:
    return int(await sole(conn, "select count(*) from public.deed"))


# What it answers


async def test_rows_are_objects_with_values_of_json(ask: Ask) -> None:
    (row,) = await ask(
        "select 1 as int, 9007199254740993 as big, 0.1::numeric as tenth, 12.50 as price,"
        " 1e-5 as s,"
        " 12345678901234567890.123 as long, 'NaN'::float8 as nan, true as yes, null as nothing,"
        " '2026-01-02 03:04:05.5Z'::timestamptz as at, date '2026-01-02' as day, 'a' as text,"
        " '\\x00ff'::bytea as bytes, '{\"a\": [1]}'::jsonb as json, array[1.5, 2] as list,"
        " interval '1 day' as span, inet '10.0.0.1' as address, int4range(1, 3) as range,"
        " '0190c0de-0000-7000-8000-000000000001'::uuid as id, 'infinity'::timestamp as never"
    )
    assert row == {
        "int": 1, "big": 9007199254740993, "tenth": 0.1, "price": 12.5, "s": 0.00001,
        "long": "12345678901234567890.123", "nan": "NaN", "yes": True, "nothing": None,
        "at": "2026-01-02T03:04:05.5+00:00", "day": "2026-01-02", "text": "a",
        "bytes": {"base64": "AP8="}, "json": {"a": [1]}, "list": [1.5, 2], "span": "1 day",
        "address": "10.0.0.1", "range": "[1,3)", "never": "infinity",
        "id": "0190c0de-0000-7000-8000-000000000001",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "statement", "expected"),
    [
        ("all", "select n from generate_series(1, 3) n", [{"n": 1}, {"n": 2}, {"n": 3}]),
        ("all", "select 1 as n where false", []),
        ("one", "select 1 as n", {"n": 1}),
        ("none", "insert into public.deed (run) values ('a'), ('b')", {"count": 2}),
        ("none", "insert into public.deed (run) values ('a') returning n", {"count": 1}),
    ],
)
async def test_rows_says_how_many_come_back(
    ask: Ask, rows: str, statement: str, expected: Any
) -> None:
    assert await ask(statement, rows=rows) == expected


async def test_parameters_are_numbered_or_named_and_never_text_of_the_statement(ask: Ask) -> None:
    evil = "'; drop table public.deed; --"
    assert await ask("select $1::text as a, $2::int + 1 as b", [evil, 2], rows="one") == {
        "a": evil, "b": 3,
    }  # fmt: skip
    named = "select %(a)s::text as a, %(j)s::jsonb as j, 5 %% 3 as rest"
    assert await ask(named, {"a": evil, "j": {"x": [1]}}, rows="one") == {
        "a": evil, "j": {"x": [1]}, "rest": 2,
    }  # fmt: skip
    assert await ask("select 'a%' as a", rows="one") == {"a": "a%"}
    listed = await ask("select n from generate_series(1, 3) n where n = any($1::int[])", [[1, 3]])
    assert listed == [{"n": 1}, {"n": 3}]


@pytest.mark.parametrize(
    ("statement", "rows", "type", "words"),
    [
        ("select * from generate_series(1, 10001)", "all", "validation", "too large"),
        ("select repeat('x', 1100000)", "all", "validation", "too large"),
        ("select 1 where false", "one", "validation", "there are none"),
        ("select generate_series(1, 2)", "one", "validation", "there are more"),
        ("select 1 as a, 2 as a", "all", "validation", "two columns have one name"),
        ("create temp table x ()", "all", "validation", 'say rows: "none"'),
        ("selekt 1", "all", "validation", "syntax error"),
        ("select * from nowhere", "all", "validation", "nowhere"),
        ("select 1/0", "all", "validation", "division by zero (22012)"),
        ("select $1::int", "all", "validation", ""),
        ("select 1; select 2", "all", "validation", "multiple commands"),
        ("update public.deed set run = 1", "none", "authorization", "permission denied"),
        ("do $$ begin raise exception 'no luck'; end $$", "none", "runtime", "no luck (P0001)"),
        ("do $$ begin raise unique_violation; end $$", "none", "conflict", "(23505)"),
        ("do $$ begin raise serialization_failure; end $$", "none", "conflict", "(40001)"),
        ("do $$ begin raise disk_full; end $$", "none", "communication", "(53100)"),
        ("commit", "none", "validation", "can't end the transaction"),
        ("rollback", "none", "validation", "can't end the transaction"),
        ("copy public.deed to stdout", "all", "validation", "copy_out"),
        ("copy public.deed from stdin", "none", "validation", "copy_in"),
    ],
)
async def test_what_goes_wrong_has_a_type_and_leaves_nothing(
    ask: Ask, conn: db.Connection, statement: str, rows: str, type: str, words: str
) -> None:
    error = await ask(statement, rows=rows)
    assert (error["type"], words in error["message"]) == (type, True), error
    assert await sole(conn, "select count(*) from orchestrator.step where state = 'succeeded'") == 0


async def test_a_statement_that_takes_too_long_ends_with_the_step(
    ask: Ask, conn: db.Connection
) -> None:
    error = await ask("select pg_sleep(30)", timeout=0.3)
    assert error["type"] == "timeout"
    busy = "select count(*) from pg_stat_activity where query ~ '^select pg_sleep'"
    busy += " and state = 'active'"
    await until(lambda: is_zero(conn, busy))


async def is_zero(conn: db.Connection, text: str) -> bool:
    return bool(await sole(conn, text) == 0)


async def test_a_template_in_the_statement_is_refused(ask: Ask) -> None:
    error = await ask("select '${run.id}'")
    assert (error["type"], "statement holds no" in error["message"]) == ("validation", True)


async def test_the_result_is_recorded_raw_and_projected_when_it_is_used(
    crew: Crew, conn: db.Connection
) -> None:
    step = query("select 7 as n", rows="one", output="${result.n}")
    run = await enqueue(conn, step)
    await crew.once()
    assert (await look(conn, run))["output"] == {"q": 7}
    assert await sole(conn, "select output from orchestrator.step where run_id = %s", run) == {
        "n": 7
    }


async def test_a_result_that_does_not_fit_its_schema_fails_and_is_not_done_again(
    crew: Crew, conn: db.Connection
) -> None:
    insert = query(COUNT, ["x"], rows="one", schema={"required": ["m"]}, retry=3)
    insert["retry"] = {"attempts": 3, "delay": 0, "errors": ["validation"]}
    run = await enqueue(conn, insert)
    await crew.once()
    row = await look(conn, run)
    assert (row["state"], row["error"]["type"]) == ("failed", "validation")
    assert "doesn't fit its schema" in row["error"]["message"]
    assert await deeds(conn) == 1
    assert await sole(conn, "select state from orchestrator.step") == "succeeded"


# Who may


async def test_it_is_off_without_a_login_of_its_own(conn: db.Connection, make: Make) -> None:
    crew = Crew(make.config())
    run = await enqueue(conn, query("select 1"))
    await crew.once()
    error = (await look(conn, run))["error"]
    assert (error["type"], "ORC_SQL_URL" in error["message"]) == ("configuration", True)


@pytest.mark.parametrize(
    ("grant", "words"),
    [
        ("alter role {} superuser", "a superuser"),
        ("alter role {} createrole", "allowed to make roles"),
        ("grant orc_owner to {}", "a member of orc_owner"),
        ("grant orc_worker to {}", "a member of orc_worker"),
        ("grant orc_api to {}", "a member of orc_api"),
        ("grant orc_reader to {}", "a member of orc_reader"),
        ("grant pg_read_all_data to {}", "a member of pg_read_all_data"),
        ("grant pg_execute_server_program to {}", "a member of pg_execute_server_program"),
        ("grant select (tenant_id) on orchestrator.run to {}", "it may use orchestrator.run"),
        ("grant truncate on orchestrator.run to {}", "it may use orchestrator.run"),
        ("grant execute on function orc.whoami(uuid) to {}", "it may call orc.whoami"),
        ("grant create on schema orc to {}", "make things in schema orc"),
        ("alter role {} noinherit; grant orc_owner to {}", "a member of orc_owner"),
        ("revoke orc_sql from {}", "grant orc_sql to"),
    ],
)
async def test_a_login_that_may_do_too_much_is_refused(
    ask: Ask, login: str, database: str, grant: str, words: str
) -> None:
    execute(database, grant.replace("{}", name_of(login)))
    if "noinherit" in grant and execute(database, "show server_version_num") < [("160000",)]:
        words = "grant orc_sql to"  # before 16 a role inherits all of its memberships, or none
    error = await ask(COUNT, ["x"], retry=1)
    assert (error["type"], words in error["message"]) == ("configuration", True), error
    assert execute(database, "select count(*) from public.deed") == [(0,)]


async def test_a_wrong_password_is_a_matter_of_configuration(
    ask: Ask, login: str, database: str
) -> None:
    execute(database, f"alter role {name_of(login)} nologin")
    error = await ask("select 1")
    assert error["type"] == "configuration"
    assert "secret" not in error["message"]


async def test_the_role_of_statements_may_call_two_verbs_and_read_no_table(
    conn: db.Connection,
) -> None:
    cursor = await conn.execute(
        "select proname::text from pg_proc where pronamespace in"
        " ('orc'::regnamespace, 'orchestrator'::regnamespace)"
        " and has_function_privilege('orc_sql', oid, 'execute')"
    )
    assert {row["proname"] for row in await cursor.fetchall()} == {"record_once", "examine_login"}
    reads = "select count(*) from pg_class where relnamespace in ('orc'::regnamespace,"
    reads += " 'orchestrator'::regnamespace) and relkind in ('r', 'p', 'v')"
    assert await sole(conn, f"{reads} and has_any_column_privilege('orc_sql', oid, 'select')") == 0


REACH = [
    "set role orc_owner",
    "set session authorization orc_owner",
    "select * from orchestrator.run",
    "select * from orc.runs",
    "delete from orchestrator.due_work",
    "do $$ begin execute 'set role orc_owner'; delete from orchestrator.tenant; end $$",
    "do $$ begin update orchestrator.due_work set epoch = 99; end $$",
    "select * from orc.record_steps(gen_random_uuid(), '[]')",
    "select * from orc.recorded_steps('[]')",
    "select * from orc.secrets_of('[]')",
    "select orc.cancel_run('t', gen_random_uuid())",
    "create function orc.evil() returns int language sql as 'select 1'",
    "alter function orc.record_once(uuid, jsonb) security invoker",
    "grant orc_owner to current_user",
    "drop schema orc cascade",
    "copy (select 1) to program 'true'",
    "insert into public.deed (run) values ('x'); commit; select 1",
    "do $$ begin insert into public.deed (run) values ('x'); commit; end $$",
]


@pytest.mark.parametrize("statement", REACH)
async def test_a_statement_can_reach_neither_our_tables_nor_our_roles(
    ask: Ask, conn: db.Connection, statement: str
) -> None:
    error = await ask(statement, rows="none")
    assert error["type"] in ("authorization", "validation", "runtime"), error
    assert await deeds(conn) == 0


async def test_what_a_statement_sets_is_gone_before_the_record_and_the_next_statement(
    crew: Crew, conn: db.Connection, login: str, database: str
) -> None:
    name = name_of(login)
    execute(database, f"create role {name}_b; grant {name}_b to {name}")
    crew.config = type(crew.config)(**{**_fields(crew.config), "pool_size": 1})
    steps = [
        query(f"set role {name}_b", id="a", rows="none"),
        query("select set_config('orchestrator.now', '1999-01-01', false)", id="b", rows="none"),
        query("select set_config('search_path', 'nowhere', false)", id="c", rows="none"),
        query("select pg_advisory_lock(7)", id="d", rows="none"),
        query("create temp table pg_temp.mine as select 1", id="e", rows="none"),
        query(
            "select current_user::text as me, current_setting('orchestrator.now', true) as now,"
            " (select count(*) from pg_locks where locktype = 'advisory') as locks,"
            " to_regclass('pg_temp.mine')::text as mine, current_setting('search_path') as path",
            rows="one",
        ),
    ]
    run = await enqueue(conn, *steps)
    await crew.once()
    row = await look(conn, run)
    execute(database, f"drop role {name}_b")
    assert row["state"] == "succeeded", row["error"]
    found = row["output"]["q"]
    assert found["me"] == name
    assert not found["now"]
    assert (found["locks"], found["mine"], found["path"]) == (0, None, '"$user", public')
    oldest = await sole(conn, "select min(finished_at) from orchestrator.step")
    assert oldest.year > 2000


def _fields(config: Any) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.__struct_fields__}


async def test_a_statement_can_record_nothing_for_a_run_that_it_does_not_know(
    ask: Ask, conn: db.Connection
) -> None:
    forged = """select * from orc.record_once(gen_random_uuid(), '{"tenant": "t", "run":
        "0190c0de-0000-7000-8000-000000000001", "epoch": 1, "step": "x"}')"""
    error = await ask(forged)
    assert error["type"] == "conflict"


# Exactly once


async def test_a_stale_lease_rolls_the_statement_back(
    crew: Crew, conn: db.Connection, login: str
) -> None:
    await conn.execute("select pg_advisory_lock(42)")
    slow = "with x as (select pg_advisory_lock(42)) insert into public.deed (run) select $1 from x"
    run = await enqueue(conn, query(slow, ["x"], rows="none"))
    worker = crew.worker()
    waiting = "select count(*) = 1 from pg_locks where locktype = 'advisory' and not granted"
    await until(lambda: sole(conn, waiting))
    await conn.execute(
        "update orchestrator.due_work set epoch = epoch + 1 where run_id = %s", [run]
    )
    await conn.execute("select pg_advisory_unlock(42)")
    await until(lambda: not worker.hands.running)
    assert await deeds(conn) == 0
    await conn.execute(
        "update orchestrator.due_work set epoch = epoch - 1 where run_id = %s", [run]
    )
    await db.call(conn, "cancel_run", tenant="t", run=run)


async def test_a_step_that_was_recorded_meanwhile_is_not_done_again(
    crew: Crew, conn: db.Connection
) -> None:
    """As after a commit whose answer nobody heard."""
    slow = "insert into public.deed (run) select $1 from pg_advisory_lock(42)"
    await conn.execute("select pg_advisory_lock(42)")
    run = await enqueue(conn, query(slow, ["x"], rows="none"))
    worker = crew.worker()
    waiting = "select count(*) = 1 from pg_locks where locktype = 'advisory' and not granted"
    await until(lambda: sole(conn, waiting))
    record = {"tenant": "t", "run": run, "epoch": 1, "step": "q", "state": "succeeded"}
    record |= {"attempt": 1, "output": {"count": 1234}}
    await db.call(conn, "record_steps", worker=worker.id, steps=[record])
    await conn.execute("select pg_advisory_unlock(42)")
    assert (await ends(conn, run))["output"] == {"q": {"count": 1234}}
    assert await deeds(conn) == 0


READY = b"Z\0\0\0\5"
"""How an answer of Postgres ends, but for the state of the transaction."""


class Wire:
    """A proxy before Postgres that stops where a test says: it swallows what the server answers
    to a text, and then tells the test, which lets go of the connection or kills somebody."""

    def __init__(self, url: str) -> None:
        place = conninfo_to_dict(url)
        self.target = (str(place["host"]), int(str(place["port"])))
        self.url = url
        self.text = b"\0never\0"
        self.before = False  # stop before the server hears it
        self.swallowed = asyncio.Event()
        self.stopped = asyncio.Event()
        self.writers: list[asyncio.StreamWriter] = []
        self.tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> str:
        self.server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = self.server.sockets[0].getsockname()[1]
        return make_conninfo(self.url, host="127.0.0.1", port=port, sslmode="disable")

    async def _accept(self, near: asyncio.StreamReader, to_near: asyncio.StreamWriter) -> None:
        far, to_far = await asyncio.open_connection(*self.target)
        mute = asyncio.Event()
        self.writers += [to_near, to_far]
        for work in (self._up(near, to_far, mute), self._down(far, to_near, mute)):
            task = asyncio.create_task(work)
            self.tasks.add(task)

    async def _up(
        self, near: asyncio.StreamReader, far: asyncio.StreamWriter, mute: asyncio.Event
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await near.read(65536):
                if self.text in data and not self.stopped.is_set():
                    mute.set()
                    if not self.before:
                        far.write(data)
                        await self.swallowed.wait()
                    self.stopped.set()
                    return
                far.write(data)
        far.close()

    async def _down(
        self, far: asyncio.StreamReader, near: asyncio.StreamWriter, mute: asyncio.Event
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await far.read(65536):
                if not mute.is_set():
                    near.write(data)
                elif data[-6:-1] == READY:
                    self.swallowed.set()
        if not mute.is_set():
            near.close()

    def cut(self) -> None:
        for writer in self.writers:
            writer.close()

    async def close(self) -> None:
        self.cut()
        self.server.close()
        for task in self.tasks:
            task.cancel()


@pytest.fixture
async def wire(login: str) -> AsyncIterator[Wire]:
    wire = Wire(login)
    yield wire
    await wire.close()


LAST = {"id": "end", "uses": "set", "with": {"a": 1}}

PLACES = [
    (b"insert into public.deed", True, 0),
    (b"insert into public.deed", False, 0),
    (b"reset role", False, 0),
    (b"record_once", True, 0),
    (b"record_once", False, 0),
    (b"commit", True, 0),
    (b"commit", False, 1),
]
"""Where it stops, whether before or after the server has heard it, and what then stands."""


@pytest.mark.parametrize(("text", "before", "stands"), PLACES)
async def test_a_lost_connection_leaves_one_effect_and_one_record(
    crew: Crew, conn: db.Connection, wire: Wire, text: bytes, before: bool, stands: int
) -> None:
    url = await wire.start()
    crew.config = type(crew.config)(**{**_fields(crew.config), "sql_url": url})
    wire.text, wire.before = text, before
    retry = {"attempts": 5, "delay": 0}
    run = await enqueue(conn, query(COUNT, ["x"], rows="one", retry=retry), LAST)
    crew.worker()
    await asyncio.wait_for(wire.stopped.wait(), 60)
    assert await deeds(conn) == stands
    wire.cut()
    row = await ends(conn, run)
    assert (row["state"], await deeds(conn)) == ("succeeded", 1), row["error"]
    n = await sole(conn, "select n from public.deed")
    assert await sole(conn, "select output from orchestrator.step where step_id = 'q'") == {"n": n}


@pytest.mark.parametrize(
    ("before", "state", "stands"), [(True, "failed", 0), (False, "succeeded", 1)]
)
async def test_a_lost_answer_to_the_commit_is_looked_up_before_anybody_hears(
    crew: Crew, conn: db.Connection, wire: Wire, before: bool, state: str, stands: int
) -> None:
    """Without a second attempt, which would find it out, too."""
    url = await wire.start()
    crew.config = type(crew.config)(**{**_fields(crew.config), "sql_url": url})
    wire.text, wire.before = b"commit", before
    run = await enqueue(conn, query(COUNT, ["x"], rows="one"))
    crew.worker()
    await asyncio.wait_for(wire.stopped.wait(), 60)
    wire.cut()
    row = await ends(conn, run)
    assert (row["state"], await deeds(conn)) == (state, stands), row["error"]
    if state == "failed":
        assert row["error"]["message"] == "the connection was lost, and nothing has happened"


@pytest.mark.parametrize(("text", "before", "stands"), PLACES)
async def test_a_killed_worker_leaves_as_many_effects_as_finished_steps(
    crew: Crew, conn: db.Connection, wire: Wire, text: bytes, before: bool, stands: int
) -> None:
    url = await wire.start()
    wire.text, wire.before = text, before
    run = await enqueue(
        conn, query(COUNT, ["x"], rows="one"), query(COUNT, ["y"], "r", rows="one"), max_attempts=3,
        backoff="fixed", backoff_seconds=0,
    )  # fmt: skip
    process = crew.process("--lease", "1", environment={"ORC_SQL_URL": url})
    await asyncio.wait_for(wire.stopped.wait(), 60)
    process.kill()
    await exit_status(process)
    wire.cut()
    done = "select count(*) from orchestrator.step where state = 'succeeded'"
    await until(lambda: is_so(conn, "select count(*) = 0 from pg_stat_activity"
                              " where application_name = 'orchestrator sql.query'"))  # fmt: skip
    assert (await deeds(conn), await sole(conn, done)) == (stands, stands)
    await release(conn)
    crew.worker()
    row = await ends(conn, run)
    assert (row["state"], row["attempt"]) == ("succeeded", 2), row["error"]
    assert (await deeds(conn), await sole(conn, done)) == (2, 2)
    numbers = await sole(conn, "select array_agg(n order by n) from public.deed")
    assert [row["output"]["q"]["n"], row["output"]["r"]["n"]] == numbers


async def is_so(conn: db.Connection, text: str) -> bool:
    return bool(await sole(conn, text))


async def release(conn: db.Connection) -> None:
    """Gives the work of the killed worker to others."""
    await until(lambda: is_so(conn, "select every(expires_at < orchestrator.now()) from"
                              " orchestrator.worker where ended_at is null"))  # fmt: skip
    await db.call(conn, "release_expired_work")


async def test_a_worker_that_dies_in_the_next_step_does_not_repeat_the_statement(
    crew: Crew, conn: db.Connection, login: str
) -> None:
    run = await enqueue(conn, query(COUNT, ["x"], rows="one"), {"id": "d", **call("die")})
    process = crew.process("--lease", "1", environment={"ORC_SQL_URL": login})
    assert await exit_status(process) == 9
    await release(conn)
    await ends(conn, run)
    assert await deeds(conn) == 1


async def test_many_at_once_share_a_few_connections(crew: Crew, conn: db.Connection) -> None:
    runs = [await enqueue(conn, query(COUNT, ["x"], rows="one")) for _ in range(60)]
    worker = crew.worker()
    for run in runs:
        assert (await ends(conn, run))["state"] == "succeeded"
    assert await deeds(conn) == 60
    sessions = "select count(*) from pg_stat_activity where application_name ~ 'sql.query'"
    assert 1 <= await sole(conn, sessions) <= crew.config.pool_size
    worker.drain()
    await crew.task(worker)
    await until(lambda: is_zero(conn, sessions))


async def test_a_connection_that_the_server_ended_is_replaced(
    crew: Crew, conn: db.Connection, connect: Connect
) -> None:
    worker = crew.worker()
    first = await enqueue(conn, query("select 1 as n"))
    await ends(conn, first)
    await conn.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where application_name ~ 'sql.query'"
    )
    await asyncio.sleep(1.1)  # past the second in which a used connection is believed
    again = await enqueue(conn, query("select 2 as n"))
    assert (await ends(conn, again))["output"] == {"q": [{"n": 2}]}
    assert worker.alive
