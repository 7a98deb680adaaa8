"""Installing the schema, replacing its verbs while calls go on, and saying what doesn't fit."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from conftest import Connect
from psycopg import sql
from psycopg.conninfo import make_conninfo

from orchestrator import __version__, db, schema
from orchestrator.errors import Unfit

ROLES = ["orc_owner", "orc_api", "orc_worker", "orc_reader", "orc_sql"]


def numbered(step: int, name: str) -> str:
    """The name of a migration that comes after those that there are."""
    return f"{len(schema.read_library().migrations) + step:04}_{name}"


NEXT = numbered(1, "principals_have_a_nickname")
NICKNAME = "alter table orchestrator.principal add column nickname text;"


class Folder:
    """A copy of sql/ that a test may change."""

    def __init__(self, path: Path) -> None:
        self.path = path
        shutil.copytree(schema.sql_folder(), path)

    def write(self, name: str, text: str) -> None:
        (self.path / name).write_text(text, "utf-8")

    def edit(self, name: str, old: str, new: str) -> None:
        text = (self.path / name).read_text("utf-8")
        assert old in text
        self.write(name, text.replace(old, new))

    def migration(self, name: str, text: str) -> None:
        self.write(f"migrations/{name}.sql", text)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "sql")


def execute(url: str, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True, options="-c statement_timeout=10s") as connection:
        cursor = connection.execute(statement, values or None)
        return cursor.fetchall() if cursor.description else []


def as_version(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    for module in (schema, schema.change, schema.state):
        monkeypatch.setattr(module, "__version__", version)


@contextmanager
def databases(url: str, *names: str) -> Iterator[list[str]]:
    """Further empty databases of the server behind the URL."""
    with psycopg.connect(url, autocommit=True) as admin:
        for name in names:
            admin.execute(
                sql.SQL("create database {} template template0").format(sql.Identifier(name))
            )
        try:
            yield [make_conninfo(url, dbname=name) for name in names]
        finally:
            for name in names:
                admin.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


@contextmanager
def hidden_roles(url: str) -> Iterator[None]:
    """While this lasts the server has none of our roles. Databases made meanwhile must be gone."""
    with psycopg.connect(url, autocommit=True) as admin:
        for role in ROLES:
            admin.execute(f"alter role {role} rename to hidden_{role}")
        try:
            yield
        finally:
            for role in reversed(ROLES):
                admin.execute(f"drop role if exists {role}")
                admin.execute(f"alter role hidden_{role} rename to {role}")


@contextmanager
def login(url: str, name: str, attributes: str = "") -> Iterator[str]:
    """A login that is no superuser."""
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(f"create role {name} login password 'secret' {attributes}")
        try:
            yield make_conninfo(url, user=name, password="secret")
        finally:
            admin.execute(f"drop owned by {name} cascade; drop role {name}")


# Installing


async def test_an_installation_says_what_it_did_and_the_next_has_nothing_to_do(
    empty_database: str,
) -> None:
    first = await schema.install(empty_database)
    assert first.changed
    assert first.done == [
        "made the tables",
        f"replaced the verbs by those of version {__version__}",
    ]
    second = await schema.install(empty_database)
    assert (second.changed, second.done) == (False, [])
    third = await schema.migrate(empty_database)
    assert not third.changed
    await schema.verify(empty_database)
    assert execute(empty_database, "select * from orc.check()") == []


async def test_an_installation_takes_half_a_second_and_nothing_to_do_a_tenth_of_that(
    empty_database: str,
) -> None:
    """The best of some times, as others use this machine."""
    loop = asyncio.get_running_loop()
    first: list[float] = []
    again: list[float] = []
    while not first or (min(first) >= 2 and len(first) < 6):
        execute(empty_database, "drop schema if exists orc, orchestrator cascade")
        begun = loop.time()
        await schema.install(empty_database)
        first.append(loop.time() - begun)
    for _ in range(3):
        begun = loop.time()
        await schema.install(empty_database)
        again.append(loop.time() - begun)
    assert min(first) < 2  # half a second on a quiet machine
    assert min(again) < 0.2  # 0.01 s


async def test_a_table_that_is_registered_has_partitions_at_once(
    empty_database: str, folder: Folder
) -> None:
    folder.edit(
        "base/tables.sql",
        "grant select on orchestrator.partitioned to orc_reader;",
        "create table orchestrator.deed (id uuid primary key) partition by range (id);"
        "create table orchestrator.deed_default partition of orchestrator.deed default;"
        "insert into orchestrator.partitioned (table_name, ahead) values ('deed', 2);",
    )
    await schema.install(empty_database, folder=folder.path)
    assert execute(
        empty_database, 'select count(*) from orc.partitions where "table" = %s', "deed"
    ) == [(4,)]


async def test_two_installers_at_once_give_one_schema(empty_database: str) -> None:
    reports = await asyncio.gather(*(schema.install(empty_database) for _ in range(6)))
    done = [line for report in reports for line in report.done]
    assert sorted(done) == sorted(set(done)), "something was done twice"
    await schema.verify(empty_database)


async def test_an_installer_and_a_migrator_at_once_give_one_schema(empty_database: str) -> None:
    await asyncio.gather(
        schema.install(empty_database),
        schema.migrate(empty_database),
        schema.install(empty_database),
    )
    assert (await schema.status(empty_database)).schema == "current"


async def test_databases_of_one_server_can_be_installed_at_once(empty_database: str) -> None:
    with (
        hidden_roles(empty_database),
        databases(empty_database, "race_a", "race_b", "race_c") as urls,
    ):
        await asyncio.gather(*(schema.install(url) for url in urls))
        for url in urls:
            await schema.verify(url)


async def test_whoever_installs_needs_no_superuser(empty_database: str) -> None:
    with (
        hidden_roles(empty_database),
        login(empty_database, "installer", "createrole") as url,
        databases(empty_database, "theirs") as (theirs,),
    ):
        execute(empty_database, "grant create on database theirs to installer")
        url = make_conninfo(url, dbname="theirs")
        await schema.install(url)
        await schema.verify(url)
        await schema.ensure_first_agent(url)
        for role in ROLES[:4]:
            execute(url, f"set role {role}; select * from orc.health()")
        execute(url, "set role orc_sql; select * from orc.examine_login()")
        assert execute(url, "select * from orc.check()") == []
        assert execute(
            url, "select name from orc.whoami(%s)", "00000000-0000-0000-0000-000000000001"
        )
        execute(theirs, "revoke create on database theirs from installer")
        execute(theirs, "alter role installer nocreaterole")
        execute(theirs, "comment on schema orc is null")
        assert (await schema.install(url)).changed  # a deploy needs no more than the membership


async def test_a_login_that_may_not_install_is_told_what_it_lacks(empty_database: str) -> None:
    with login(empty_database, "nobody") as url:
        with pytest.raises(
            Unfit, match=r"nobody can neither make nor join the roles.* grant orc_owner"
        ):
            await schema.install(url)
    assert (await schema.status(empty_database)).schema == "missing"


async def test_a_login_that_may_not_look_is_told_what_it_lacks(database: str) -> None:
    with login(database, "nobody") as url:
        with pytest.raises(Unfit, match="grant orc_api, orc_worker to nobody"):
            await schema.verify(url)
        execute(database, "grant orc_api to nobody")
        await schema.verify(url)


async def test_facts_without_a_ledger_are_refused(empty_database: str) -> None:
    library = schema.read_library()
    owner = "set role orc_owner;"
    for page in library.ground:
        execute(empty_database, page.text)
    for page in [*library.facts, *library.verbs]:
        execute(empty_database, owner + page.text)
    for work in (schema.install, schema.migrate, schema.verify):
        with pytest.raises(Unfit, match=r"no ledger of migrations.*bin/db reset"):
            await work(empty_database)
    assert (await schema.status(empty_database)).schema == "unledgered"


async def test_a_schema_of_that_name_that_is_somebody_elses_is_left_alone(
    empty_database: str,
) -> None:
    execute(empty_database, "create schema orc; create table orc.precious as select 1 as x")
    with pytest.raises(Unfit, match="schema orc is there already and belongs to orchestrator"):
        await schema.install(empty_database)
    await schema.reset(empty_database, yes=True)
    assert execute(empty_database, "select x from orc.precious") == [(1,)]


async def test_a_mistake_in_a_page_is_named_by_file_and_line_and_leaves_nothing(
    empty_database: str, folder: Folder
) -> None:
    folder.edit("auth/tables.sql", "kind text not null,", "kind txt not null,")
    with pytest.raises(Unfit, match=r'^sql/auth/tables.sql:\d+: type "txt" does not exist'):
        await schema.install(empty_database, folder=folder.path)
    assert (await schema.status(empty_database)).schema == "missing"


async def test_a_server_that_is_too_old_is_refused_and_a_newer_one_is_not(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "NEWEST", 10)
    await schema.verify(database)
    assert "newer than tested" in str(await schema.status(database))
    monkeypatch.setattr(schema.state, "OLDEST", 99)
    with pytest.raises(Unfit, match="too old: 99 to"):
        await schema.verify(database)


async def test_a_server_that_is_not_there_is_one_line() -> None:
    with pytest.raises(Unfit, match="can't be reached"):
        await schema.verify("postgresql://nobody@127.0.0.1:1/nothing")


async def test_reset_asks_first_and_then_drops_everything_of_ours(database: str) -> None:
    execute(database, "create table public.mine as select 1 as x")
    with pytest.raises(Unfit, match="all data"):
        await schema.reset(database)
    await schema.verify(database)
    await schema.reset(database, yes=True)
    assert (await schema.status(database)).schema == "missing"
    assert execute(database, "select x from public.mine") == [(1,)]
    await schema.install(database)
    await schema.verify(database)


# Saying what doesn't fit


async def test_verify_says_what_to_do(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    await schema.verify(database)
    as_version(monkeypatch, "99.0.0")
    with pytest.raises(Unfit, match=r"verbs are of version .*, this program is 99.*bin/db migrate"):
        await schema.verify(database)
    assert (await schema.migrate(database)).changed is False, "the verbs are the same"


async def test_verify_says_that_there_is_nothing(empty_database: str) -> None:
    with pytest.raises(Unfit, match="no schema yet: run `bin/db install`"):
        await schema.verify(empty_database)
    with pytest.raises(Unfit, match="no schema yet"):
        await schema.replace_verbs(empty_database)


async def test_verify_says_that_the_verbs_are_missing(database: str) -> None:
    execute(database, "comment on schema orc is null")
    with pytest.raises(Unfit, match=r"verbs are missing.*bin/db migrate"):
        await schema.verify(database)
    assert (await schema.status(database)).verbs == "missing"
    assert (await schema.migrate(database)).changed
    await schema.verify(database)


async def test_status_is_readable(database: str, folder: Folder) -> None:
    folder.migration(NEXT, NICKNAME)
    said = str(await schema.status(database, folder=folder.path))
    assert said.startswith("server: PostgreSQL 1")
    assert "\nschema: behind\napplied: up to 0" in said
    assert f"\npending: {NEXT}\nverbs: current (of version {__version__})" in said


async def test_the_first_agent_is_made_once(database: str) -> None:
    await asyncio.gather(*(schema.ensure_first_agent(database) for _ in range(4)))
    assert execute(database, "select count(*) from orchestrator.principal") == [(1,)]


# Replacing verbs


async def test_replaced_verbs_are_the_new_ones_and_nothing_else_is_left(
    database: str, folder: Folder
) -> None:
    execute(
        database, "set role orc_owner; create function orc.old() returns int language sql return 1"
    )
    execute(database, "grant execute on function orc.keep_partitions(text) to orc_api")
    folder.edit(
        "ops/functions.sql",
        "create function orc.help(pattern text",
        "create function orc.help(part text",
    )
    folder.edit("ops/functions.sql", "pattern", "part")
    folder.edit(
        "auth/functions.sql",
        "tenant_id text, id uuid, kind text",
        "tenant_id text, id uuid, kind varchar",
    )
    folder.edit(
        "auth/functions.sql",
        "select p.tenant_id, p.id, p.kind,",
        "select p.tenant_id, p.id, p.kind::varchar,",
    )
    report = await schema.replace_verbs(database, folder=folder.path)
    assert report.changed
    assert not (await schema.replace_verbs(database, folder=folder.path)).changed
    assert execute(database, "select verb from orc.help(part => 'invariants that')") == [("check",)]
    assert execute(database, "select 1 from orc.help() where verb = 'old'") == []
    may = "select has_function_privilege('orc_api', 'orc.keep_partitions(text)', 'execute')"
    assert execute(database, may) == [(False,)]
    assert (await schema.replace_verbs(database)).changed
    assert execute(database, "select verb from orc.help(pattern => 'invariants that')") == [
        ("check",)
    ]
    for _ in range(2):
        execute(database, "comment on schema orc is null")
        await schema.replace_verbs(database)
    assert execute(database, "select proname from pg_proc where proname ~ '^_was_'") == []


CALLS = [
    "select * from orc.health()",
    "select * from orc.check()",
    "select * from orc.help(pattern => 'make')",
    "select name, applied_at from orc.migrations",
    "select * from orc.gauges",
    'select "table" from orc.partitions',
]


@asynccontextmanager
async def callers(connect: Connect, database: str) -> AsyncIterator[list[int]]:
    """Sessions that call verbs and read views all the time; one connects anew for each call."""
    going = True
    made: list[int] = []

    async def call(connection: db.Connection, first: int) -> None:
        for number in range(first, 10**9):
            if not going:
                break
            await (await connection.execute(CALLS[number % len(CALLS)])).fetchall()
            made.append(number)

    async def come_and_go() -> None:
        while going:
            async with await db.connect(database) as connection:
                for statement in CALLS:
                    await (await connection.execute(statement)).fetchall()
                made.append(0)

    tasks = [asyncio.create_task(call(await connect(), first)) for first in range(3)]
    tasks.append(asyncio.create_task(come_and_go()))
    try:
        yield made
        await asyncio.sleep(0)
        failed = [task.exception() for task in tasks if task.done()]
        assert failed == [], f"a call failed: {failed}"
    finally:
        going = False
        await asyncio.gather(*tasks)


@pytest.mark.parametrize("swaps", [12, pytest.param(60, marks=pytest.mark.soak)])
async def test_swaps_of_verbs_under_load_fail_no_call(
    database: str, connect: Connect, folder: Folder, swaps: int
) -> None:
    folder.edit(
        "auth/functions.sql",
        "function orc._check_auth()",
        "function orc._check_auth(extra int default 0)",
    )
    folder.edit(
        "auth/functions.sql",
        "function orc._check_auth(extra int default 0) is",
        "function orc._check_auth(int) is",
    )
    folders = [folder.path, schema.sql_folder()]
    async with callers(connect, database) as made:
        for number in range(swaps):
            before = len(made)
            assert (await schema.replace_verbs(database, folder=folders[number % 2])).changed
            while len(made) == before:
                await asyncio.sleep(0.001)
    assert len(made) > swaps


UNDER_WAY = """
select d.* from (select pg_advisory_lock_shared(42) offset 0) as waits,
    lateral (select count(*) from orc.health() offset 0) as looks_around,
    lateral orc._default_rows() as d
"""


@pytest.mark.parametrize("signature", ["()", "(extra int default 0)"])
async def test_a_statement_under_way_finds_the_functions_that_it_looked_up(
    database: str, conn: db.Connection, connect: Connect, folder: Folder, signature: str
) -> None:
    page = "base/partitions.sql"
    folder.edit(page, "-- Keeps the partitions", "-- It keeps the partitions")
    folder.edit(
        page,
        "function orc._default_rows() returns",
        f"function orc._default_rows{signature} returns",
    )
    folder.edit(
        page,
        "_default_rows() is",
        f"_default_rows{signature.replace('extra', '').replace('default 0', '')} is",
    )
    waiter = await connect()
    async with asyncio.timeout(10):
        await conn.execute("select pg_advisory_lock(42)")
        under_way = asyncio.create_task(waiter.execute(UNDER_WAY))
        while execute(database, "select pid from pg_locks where objid = 42 and not granted") == []:
            await asyncio.sleep(0.01)
        assert (await schema.replace_verbs(database, folder=folder.path)).changed
        await conn.execute("select pg_advisory_unlock(42)")
        assert {row["stray_rows"] async for row in await under_way} <= {0}


DEPENDENTS = {
    "view public.mine": "create view public.mine as select * from orc.gauges",
    "materialized view public.kept": (
        "create materialized view public.kept as select verb from orc.help()"
    ),
    "trigger on_change on table public.theirs": (
        "set role orc_owner;"
        "create function orc.react() returns trigger language plpgsql as 'begin return null; end';"
        "reset role; create trigger on_change after insert on public.theirs"
        " execute function orc.react()"
    ),
    "default value for column agent of table public.theirs": (
        "alter table public.theirs alter agent set default orc.ensure_system_agent()"
    ),
    "policy mine_only on table public.theirs": (
        "create policy mine_only on public.theirs using (agent = orc.ensure_system_agent())"
    ),
    "function public.wrapped()": (
        "create function public.wrapped() returns bigint language sql"
        " begin atomic; select count(*) from orc.check(); end"
    ),
    "column g of table public.theirs": "alter table public.theirs add g orc.gauges",
    "constraint checked on table public.theirs": (
        "alter table public.theirs add constraint checked"
        " check (orc.ensure_system_agent() <> agent)"
    ),
    "function public.typed(orc.migrations)": (
        "create function public.typed(orc.migrations) returns int language sql as 'select 1'"
    ),
}


async def test_what_depends_on_verbs_is_named_and_not_dropped(database: str) -> None:
    execute(database, "create table public.theirs (id int, agent uuid)")
    for statement in DEPENDENTS.values():
        execute(database, statement)
    execute(database, "comment on schema orc is null")
    assert set(await schema.dependents(database)) == set(DEPENDENTS)
    with pytest.raises(Unfit, match=r"others depend on them: .*view public.mine.* Drop these"):
        await schema.replace_verbs(database)
    assert execute(database, "select count(*) > 0 from public.mine") == [(True,)]
    execute(
        database,
        "drop view public.mine; drop materialized view public.kept; drop function public.wrapped;"
        "drop function public.typed; drop table public.theirs",
    )
    assert await schema.dependents(database) == []
    assert (await schema.replace_verbs(database)).changed


async def test_a_swap_waits_for_a_reader_and_goes_on(database: str, conn: db.Connection) -> None:
    execute(database, "comment on schema orc is null")
    async with asyncio.timeout(10), conn.transaction():
        await conn.execute("select * from orc.migrations")
        swap = asyncio.create_task(schema.replace_verbs(database))
        await asyncio.sleep(0.3)
        assert not swap.done()
        assert execute(database, "select count(*) > 0 from orc.migrations") == [(True,)]
    assert (await swap).changed


async def test_a_reader_that_never_ends_is_named(
    database: str, conn: db.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema.change, "PATIENCE", 0.2)
    execute(database, "comment on schema orc is null")
    async with asyncio.timeout(10), conn.transaction():
        await conn.execute("select * from orc.migrations")
        pid = conn.info.backend_pid
        with pytest.raises(Unfit, match=f"session {pid} of orchestrator .*idle in transaction"):
            await schema.replace_verbs(database)


async def test_a_view_that_is_unsafe_or_a_verb_open_to_all_is_not_installed(
    database: str, folder: Folder
) -> None:
    folder.edit(
        "auth/functions.sql",
        "language plpgsql stable security definer set search_path = pg_catalog, pg_temp",
        "language plpgsql stable security definer",
    )
    with pytest.raises(Unfit, match=r"not safe to install: orc.whoami\(uuid\).*search_path"):
        await schema.replace_verbs(database, folder=folder.path)
    assert (await schema.status(database)).verbs == "current"
