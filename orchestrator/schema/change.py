"""Changes of the schema: each is one transaction, alone among installers."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import psycopg
from psycopg import errors as pg
from psycopg import sql

from .. import __version__
from ..errors import Unfit
from .library import Library, Migration, Page
from .state import Connection, State, judge, look, refuse_newer

PATIENCE = 60.0
"""Seconds in which a change must get its locks."""


class Report(msgspec.Struct):
    """What was done, in words."""

    changed: bool = False
    done: list[str] = []

    def add(self, words: str) -> None:
        self.changed = True
        self.done.append(words)


CREATE = re.compile(r"^create function\b", re.M)

ABOUT_VERBS = "Verbs and views of Orchestrator {version}, rebuilt at each deploy: sha256 {digest}"


FRAME = """
set local lock_timeout = '100ms';
set local statement_timeout = 0;
set local idle_in_transaction_session_timeout = 0;
set local client_min_messages = warning;
set local check_function_bodies = on;
set local search_path = pg_catalog;
set local timezone = 'UTC';
"""

REPLACED = f"replaced the verbs by those of version {__version__}"

NO_LOCK = (pg.LockNotAvailable, pg.DeadlockDetected)

LOST_RACES = (*NO_LOCK, pg.UniqueViolation, pg.DuplicateObject, pg.InternalError_)
"""Somebody else made or changed the same role first: "tuple concurrently updated" is internal."""

LOCK = "select pg_advisory_xact_lock(7303779, 1)"

VIEWS = """
select format('drop view %s cascade',
              string_agg(oid::regclass::text, ', ' order by oid desc)) as gone
from pg_class where relnamespace = 'orc'::regnamespace and relkind = 'v'
having count(*) > 0
"""

ROUTINES = """
select format('%s(%s) %s %s', proname, pg_get_function_arguments(oid),
              pg_get_function_result(oid), prokind) as signature,
       proname like '\\_was\\_%' as is_past,
       format('drop routine if exists %s cascade', oid::regprocedure) as gone,
       format('alter routine %s rename to %I', oid::regprocedure, '_was_' || oid) as aside
from pg_proc where pronamespace = 'orc'::regnamespace
"""

DEPENDENTS = """
with ours(classid, objid) as (
  select 'pg_proc'::regclass, oid from pg_proc where pronamespace = to_regnamespace('orc')
  union all
  select 'pg_class'::regclass, oid from pg_class where relnamespace = to_regnamespace('orc')
  union all
  select 'pg_type'::regclass, oid from pg_type where typnamespace = to_regnamespace('orc')
)
select distinct case when r.oid is null then pg_describe_object(d.classid, d.objid, d.objsubid)
                     else pg_describe_object('pg_class'::regclass, r.ev_class, 0) end as object
from pg_depend d
join ours o on (o.classid, o.objid) = (d.refclassid, d.refobjid)
left join pg_rewrite r on d.classid = 'pg_rewrite'::regclass and r.oid = d.objid
left join pg_attrdef f on d.classid = 'pg_attrdef'::regclass and f.oid = d.objid
left join pg_trigger g on d.classid = 'pg_trigger'::regclass and g.oid = d.objid
left join pg_policy y on d.classid = 'pg_policy'::regclass and y.oid = d.objid
left join pg_class c on c.oid = coalesce(r.ev_class, f.adrelid, g.tgrelid, y.polrelid, d.objid)
                    and (d.classid = 'pg_class'::regclass
                         or coalesce(r.oid, f.oid, g.oid, y.oid) is not null)
left join pg_proc p on d.classid = 'pg_proc'::regclass and p.oid = d.objid
left join pg_type t on d.classid = 'pg_type'::regclass and t.oid = d.objid
left join pg_constraint k on d.classid = 'pg_constraint'::regclass and k.oid = d.objid
where coalesce(c.relnamespace, p.pronamespace, t.typnamespace, k.connamespace)
      is distinct from to_regnamespace('orc')
order by 1
"""

BLOCKERS = """
select format('session %s of %s (%s%s, its transaction began %s ago)', pid, usename,
              coalesce(nullif(application_name, '') || ', ', ''), state,
              date_trunc('second', clock_timestamp() - xact_start)) as session
from pg_stat_activity
where pid <> pg_backend_pid() and pid in (
  select l.pid from pg_locks l left join pg_class c on c.oid = l.relation
  where l.database = (select oid from pg_database where datname = current_database()) and l.granted
    and (c.relnamespace in (to_regnamespace('orc'), to_regnamespace('orchestrator'))
         or (l.locktype = 'advisory' and (l.classid, l.objid) = (7303779, 1))))
order by xact_start
"""


@asynccontextmanager
async def alone(connection: Connection) -> AsyncIterator[State]:
    """One transaction, alone among installers, with what it finds."""
    async with connection.transaction():
        await connection.execute(FRAME)
        await connection.execute(LOCK)
        yield await look(connection)


async def patiently(connection: Connection, change: Callable[[], Awaitable[None]]) -> None:
    """Runs a change again until it gets its locks."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return await change()
        except LOST_RACES as error:
            if time.monotonic() > deadline:
                raise Unfit(await _blocked(connection, error)) from error
        await asyncio.sleep(random.uniform(0.01, 0.1))


async def _blocked(connection: Connection, error: psycopg.Error) -> str:
    holders = [row.session async for row in await connection.execute(BLOCKERS)]
    return (
        f"the schema couldn't be changed within {PATIENCE:.0f} s ({error.diag.message_primary}); "
        f"who may be in the way: {'; '.join(holders) or 'nobody any more'}; end them, or try again"
    )


async def _load(
    connection: Connection,
    pages: list[Page],
    races: tuple[type[psycopg.Error], ...] = NO_LOCK,
) -> None:
    for page in pages:
        try:
            await connection.execute(page.text)
        except races:
            raise
        except psycopg.Error as error:
            raise Unfit(_where(page, error)) from error


def _where(page: Page, error: psycopg.Error) -> str:
    """`sql/base/tables.sql:12: what the server said, detail, hint`."""
    at = int(error.diag.statement_position or 0)
    line = f":{page.text.count(chr(10), 0, at) + 1}" if at else ""
    said = [
        error.diag.message_primary or str(error),
        error.diag.message_detail,
        error.diag.message_hint,
    ]
    return f"sql/{page.name}{line}: {'; '.join(part for part in said if part)}"


async def lay_ground(connection: Connection, library: Library) -> None:
    """Roles are the server's: another database may be making them at this moment."""

    async def change() -> None:
        async with alone(connection) as state:
            if not state.has_ground:
                await _load(connection, library.ground, LOST_RACES)

    await patiently(connection, change)


async def create_facts(connection: Connection, library: Library, report: Report) -> None:
    async def change() -> None:
        async with alone(connection) as state:
            if state.has_facts:
                return
            await connection.execute("set local role orc_owner")
            await _load(connection, library.facts)
            await _record(connection, library.migrations)
        report.add("made the tables")

    await patiently(connection, change)


async def _record(connection: Connection, migrations: list[Migration]) -> None:
    for one in migrations:
        await connection.execute(
            "insert into orchestrator.migration (name, digest, breaking, program_version)"
            " values (%s, %s, %s, %s)",
            [one.name, one.digest, one.breaking is not None, __version__],
        )


async def apply_migrations(connection: Connection, library: Library, report: Report) -> None:
    left = True

    async def change() -> None:
        nonlocal left
        async with alone(connection) as state:
            batch = _next(library, state)
            left = bool(batch)
            await _apply(connection, library, batch)
        for one in batch:
            report.add(f"applied migration {one.name}")
        if batch and batch[0].breaking:
            report.add(REPLACED)

    while left:
        await patiently(connection, change)


def _next(library: Library, state: State) -> list[Migration]:
    """The migrations of the next transaction: one, or from a breaking one on all that are left."""
    pending = judge(library, state).pending
    return pending if pending and pending[0].breaking else pending[:1]


async def _apply(connection: Connection, library: Library, batch: list[Migration]) -> None:
    if not batch:
        return
    breaks = batch[0].breaking is not None
    if breaks:
        await _refuse_dependents(connection)
    await connection.execute("set local role orc_owner")
    if breaks:
        await _empty(connection)
    for one in batch:
        await _load(connection, [one.page])
        await _record(connection, [one])
    if breaks:
        await _fill(connection, library)


async def swap_verbs(connection: Connection, library: Library, report: Report) -> None:
    async def change() -> None:
        async with alone(connection) as state:
            refuse_newer(judge(library, state))
            if state.verbs == library.digest:
                return
            await _refuse_dependents(connection)
            await connection.execute("set local role orc_owner")
            await _make_room(connection, library)
            await _fill(connection, library)
        report.add(REPLACED)

    await patiently(connection, change)


async def _refuse_dependents(connection: Connection) -> None:
    outside = [row.object async for row in await connection.execute(DEPENDENTS)]
    if outside:
        raise Unfit(
            f"the verbs can't be replaced, because others depend on them: {'; '.join(outside)}. "
            "Drop these, run this again, and make them anew (or put them into plpgsql functions, "
            "which don't depend on what they call)"
        )


async def _make_room(connection: Connection, library: Library) -> None:
    """Drops the views, and moves functions aside whose signature is no longer wanted.

    A statement that is under way has looked up its functions and may not have called them yet, so
    a function that stays keeps its identity, and one that goes is there until the next swap.
    The newest view is locked first: whoever reads it may be about to read those that it's made of.
    """
    there = await _routines(connection)
    if not there:
        return
    wanted = await _signatures(connection, library)
    await _run(connection, [row.gone async for row in await connection.execute(VIEWS)])
    await _run(connection, [one.gone for one in there if one.is_past])
    obsolete = [one for one in there if not one.is_past and one.signature not in wanted]
    await _run(connection, [one.aside for one in obsolete])
    await connection.execute(
        "revoke all on all routines in schema orc"
        " from public, orc_api, orc_worker, orc_reader, orc_sql"
    )


async def _signatures(connection: Connection, library: Library) -> set[str]:
    """What the library's functions look like to a caller: loaded for a look, and taken back."""
    async with connection.transaction(force_rollback=True):
        await _empty(connection)
        await _load(connection, library.verbs)
        return {one.signature for one in await _routines(connection)}


async def _routines(connection: Connection) -> list[Any]:
    return await (await connection.execute(ROUTINES)).fetchall()


async def _empty(connection: Connection) -> None:
    await _run(connection, [row.gone async for row in await connection.execute(VIEWS)])
    await _run(connection, [one.gone for one in await _routines(connection)])


async def _run(connection: Connection, statements: list[str]) -> None:
    await connection.execute(";".join(statements))


async def _fill(connection: Connection, library: Library) -> None:
    pages = [
        Page(page.name, CREATE.sub("create or replace function", page.text))
        for page in library.verbs
    ]
    await _load(connection, pages)
    about = ABOUT_VERBS.format(version=__version__, digest=library.digest)
    await connection.execute(sql.SQL("comment on schema orc is {}").format(about))
