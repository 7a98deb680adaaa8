"""From older facts to newer ones: the ledger, and what stands in the way."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import psycopg
import pytest
from test_schema import NEXT, NICKNAME, Folder, as_version, execute, numbered

from orchestrator import __version__, db, schema
from orchestrator.errors import Unfit

AFTER = numbered(2, "it_comes_after")
BREAKING = "-- breaking: the kind of a principal is gone\n" + NICKNAME


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "sql")


def ledger(url: str) -> list[str]:
    return [name for (name,) in execute(url, "select name from orc.migrations")]


async def test_a_fresh_schema_is_the_migrated_one(database: str, empty_database: str) -> None:
    report = await schema.migrate(empty_database)
    applied = [migration.name for migration in schema.read_library().migrations]
    assert report.done[:-1] == [f"applied migration {name}" for name in applied]
    assert await schema.fingerprint(empty_database) == await schema.fingerprint(database)
    assert ledger(empty_database) == ledger(database) == applied


CHANGES = [
    NICKNAME,
    "alter table orchestrator.tenant alter created_at drop not null",
    "alter table orchestrator.tenant alter created_at drop default",
    "alter table orchestrator.password alter hash type varchar",
    "alter table orchestrator.tenant alter id set storage external",
    "alter table orchestrator.tenant drop constraint id_is_1_to_200_characters",
    "alter table orchestrator.tenant rename constraint tenant_has_one_id to tenant_pkey",
    "alter table orchestrator.tenant disable row level security",
    "alter table orchestrator.tenant force row level security",
    "alter table orchestrator.tenant set (fillfactor = 50)",
    "create policy nobody on orchestrator.tenant using (false)",
    "create index on orchestrator.tenant (created_at)",
    "create trigger t before insert on orchestrator.tenant"
    " execute function suppress_redundant_updates_trigger()",
    "create table orchestrator.more ()",
    "create sequence orchestrator.more",
    "create type orchestrator.more as enum ('a')",
    "create domain orchestrator.more as int check (value > 1)",
    "comment on table orchestrator.tenant is 'x'",
    "comment on column orchestrator.tenant.id is 'x'",
    "comment on function orchestrator.now() is 'x'",
    "comment on domain orchestrator.seconds is 'x'",
    "grant insert on orchestrator.tenant to orc_api",
    "grant select (id) on orchestrator.tenant to orc_worker",
    "grant execute on function orchestrator.now() to public",
    "grant create on schema orchestrator to orc_api",
    "alter default privileges for role orc_owner grant select on tables to orc_api",
    "alter table orchestrator.tenant owner to orc_api",
    "alter function orchestrator.now() volatile",
    "alter function orchestrator.now() set work_mem = '1MB'",
    "insert into orchestrator.partitioned (table_name) values ('x')",
    "create table orchestrator.x (id uuid) partition by range (id)",
]


async def test_the_comparison_sees_every_kind_of_change(conn: db.Connection) -> None:
    async def described() -> list[str]:
        return [row["describe_facts"] for row in await db.call(conn, "describe_facts")]

    before = await described()
    for change in CHANGES:
        async with conn.transaction(force_rollback=True):
            await conn.execute(change)
            assert await described() != before, change
    assert await described() == before


async def test_a_missing_migration_is_applied_with_its_row(database: str, folder: Folder) -> None:
    folder.migration(NEXT, NICKNAME)
    with pytest.raises(
        Unfit, match=f"older than this program: it lacks {NEXT}; run `bin/db migrate`"
    ):
        await schema.verify(database, folder=folder.path)
    report = await schema.migrate(database, folder=folder.path)
    assert report.done == [f"applied migration {NEXT}"]
    await schema.verify(database, folder=folder.path)
    assert execute(database, "select nickname from orchestrator.principal") == []
    ((digest, breaking, by, version),) = execute(
        database,
        "select digest, breaking, applied_by, program_version from orc.migrations where name = %s",
        NEXT,
    )
    assert re.fullmatch("[0-9a-f]{64}", digest)
    assert (breaking, by, version) == (False, "orchestrator", __version__)


async def test_an_installation_migrates_what_is_there(database: str, folder: Folder) -> None:
    folder.migration(NEXT, NICKNAME)
    assert (await schema.install(database, folder=folder.path)).done == [
        f"applied migration {NEXT}"
    ]


async def test_many_migrators_at_once_apply_it_once(database: str, folder: Folder) -> None:
    folder.migration(NEXT, NICKNAME)
    folder.migration(AFTER, NICKNAME.replace("nickname", "another"))
    reports = await asyncio.gather(
        *(schema.migrate(database, folder=folder.path) for _ in range(5))
    )
    done = sorted(line for report in reports for line in report.done)
    assert done == [f"applied migration {NEXT}", f"applied migration {AFTER}"]


async def test_a_failing_migration_leaves_nothing_and_those_before_it_stay(
    database: str, folder: Folder
) -> None:
    folder.migration(NEXT, NICKNAME)
    folder.migration(AFTER, "create table orchestrator.half ();\n\nselect 1/0;\n")
    with pytest.raises(Unfit, match=rf"^sql/migrations/{AFTER}.sql.*: division by zero"):
        await schema.migrate(database, folder=folder.path)
    assert ledger(database)[-1] == NEXT
    assert execute(database, "select to_regclass('orchestrator.half')") == [(None,)]


async def test_a_changed_migration_is_refused_by_name(database: str, folder: Folder) -> None:
    first = schema.read_library().migrations[0].name
    folder.edit(f"migrations/{first}.sql", "-- The schema", "-- the schema")
    for work in (schema.install, schema.migrate, schema.verify, schema.replace_verbs):
        with pytest.raises(Unfit, match=f"migration {first} was changed after it had been applied"):
            await work(database, folder=folder.path)
    assert (await schema.status(database, folder=folder.path)).schema == "diverged"


async def test_the_end_of_lines_makes_no_difference(database: str, folder: Folder) -> None:
    for file in folder.path.rglob("*.sql"):
        file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    assert not (await schema.install(database, folder=folder.path)).changed


COMPLAINTS = {
    (AFTER,): f"{AFTER} should have number {NEXT[:4]}",
    ("0001_twice",): "0001_twice should have number 0002",
    (NEXT, numbered(1, "twice")): f"twice should have number {AFTER[:4]}",
    ("two",): "must be named by a number and a sentence",
}


@pytest.mark.parametrize("names", COMPLAINTS)
def test_numbers_are_unique_and_leave_no_gap(folder: Folder, names: tuple[str, ...]) -> None:
    for name in names:
        folder.migration(name, "select 1;")
    with pytest.raises(Unfit, match=COMPLAINTS[names]):
        schema.read_library(folder.path)


async def test_a_migration_before_the_last_applied_one_is_refused(
    database: str, folder: Folder
) -> None:
    folder.migration(NEXT, NICKNAME)
    folder.migration(AFTER, "select 1;")
    await schema.migrate(database, folder=folder.path)
    execute(database, "delete from orchestrator.migration where name = %s", NEXT)
    for work in (schema.migrate, schema.install, schema.verify):
        with pytest.raises(Unfit, match=f"{NEXT} comes before {AFTER}"):
            await work(database, folder=folder.path)


async def test_two_lines_of_development_are_refused(database: str, folder: Folder) -> None:
    folder.migration(NEXT, NICKNAME)
    await schema.migrate(database, folder=folder.path)
    (folder.path / f"migrations/{NEXT}.sql").unlink()
    other = numbered(1, "something_else")
    folder.migration(other, "select 1;")
    with pytest.raises(Unfit, match=f"has {NEXT}, which .* lacks {other}"):
        await schema.migrate(database, folder=folder.path)
    assert (await schema.status(database, folder=folder.path)).schema == "diverged"


async def test_a_newer_schema_that_breaks_nothing_lets_older_programs_go_on(
    database: str, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.migration(NEXT, NICKNAME)
    folder.edit("ops/views.sql", "-- Views", "-- More views")
    as_version(monkeypatch, "7.0.0")
    await schema.migrate(database, folder=folder.path)
    monkeypatch.undo()
    await schema.verify(database)
    status = await schema.status(database)
    assert (status.schema, status.unknown, status.verbs) == ("newer", [NEXT], "different")
    report = await schema.install(database)
    assert not report.changed
    assert report.done == ["left as it is: the schema is newer than this program"]
    with pytest.raises(Unfit, match=r"only version >= 7.0.0 may replace its verbs"):
        await schema.replace_verbs(database)


async def test_newer_verbs_are_left_alone_unless_they_are_replaced_on_purpose(
    database: str, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.edit("ops/views.sql", "-- Views", "-- More views")
    as_version(monkeypatch, "7.0.0")
    assert (await schema.install(database, folder=folder.path)).changed
    monkeypatch.undo()
    assert not (await schema.install(database)).changed
    await schema.verify(database)
    assert (await schema.replace_verbs(database)).changed


async def test_a_newer_schema_that_breaks_older_programs_stops_them(
    database: str, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.migration(NEXT, BREAKING)
    as_version(monkeypatch, "7.0.0")
    await schema.migrate(database, folder=folder.path)
    monkeypatch.undo()
    for work in (schema.verify, schema.install, schema.migrate, schema.replace_verbs):
        with pytest.raises(Unfit, match=f"{NEXT}.*: deploy version >= 7.0.0 and restart"):
            await work(database)
    assert (await schema.status(database)).schema == "breaking"


async def test_a_breaking_migration_and_the_verbs_are_one_transaction(
    database: str, folder: Folder
) -> None:
    folder.migration(NEXT, "-- breaking: why\nalter table orchestrator.migration drop applied_by;")
    folder.migration(AFTER, "select 1/0;")
    with pytest.raises(Unfit, match=AFTER):
        await schema.migrate(database, folder=folder.path)
    assert NEXT not in ledger(database), "the view works as before"
    folder.migration(NEXT, "-- breaking: why\nalter table orchestrator.tenant drop created_at;")
    folder.migration(AFTER, "drop function orchestrator.id_time(uuid);")
    with pytest.raises(Unfit, match=r"orchestrator.id_time"):  # the verbs need it
        await schema.migrate(database, folder=folder.path)
    folder.migration(AFTER, "alter table orchestrator.principal add x int;")
    report = await schema.migrate(database, folder=folder.path)
    assert report.done[:-1] == [f"applied migration {NEXT}", f"applied migration {AFTER}"]
    assert report.done[-1].startswith("replaced the verbs")
    await schema.verify(database, folder=folder.path)


async def test_a_breaking_migration_may_change_what_a_view_shows(
    database: str, folder: Folder
) -> None:
    folder.migration(NEXT, "alter table orchestrator.migration drop applied_by;")
    with pytest.raises(Unfit, match="other objects depend on it"):
        await schema.migrate(database, folder=folder.path)
    folder.migration(NEXT, "-- breaking: why\nalter table orchestrator.migration drop applied_by;")
    folder.edit("ops/views.sql", "applied_by, ", "")
    folder.edit("ops/views.sql", "comment on column orc.migrations.applied_by", "--")
    await schema.migrate(database, folder=folder.path)
    assert ledger(database)[-1] == NEXT


async def test_a_migration_waits_for_a_lock_only_briefly_at_a_time(
    database: str, conn: db.Connection, folder: Folder
) -> None:
    folder.migration(NEXT, NICKNAME)
    async with asyncio.timeout(10), conn.transaction():
        await conn.execute("select from orchestrator.principal")
        migration = asyncio.create_task(schema.migrate(database, folder=folder.path))
        await asyncio.sleep(0.3)
        assert not migration.done()
        async with await db.connect(database) as other:
            await other.execute("select from orchestrator.principal")
    assert (await migration).done == [f"applied migration {NEXT}"]


async def test_facts_do_not_depend_on_verbs(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("drop schema orc cascade")
        connection.execute("insert into orchestrator.tenant (id) values ('a')")
        connection.execute(
            "insert into orchestrator.principal (tenant_id, kind, name) values ('a', 'user', 'b')"
        )
        connection.execute("create schema orc authorization orc_owner")
        connection.execute("grant usage on schema orc to orc_api, orc_worker, orc_reader")
    assert (await schema.install(database)).changed
