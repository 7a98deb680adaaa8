"""The state of a database beside the library, and who must not touch it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import psycopg
from psycopg import errors as pg
from psycopg.rows import namedtuple_row

from .. import __version__
from ..errors import Unfit
from .library import Library, Migration

OLDEST, NEWEST = 14, 18
"""Major versions of Postgres. An older one is refused, a newer one is merely untested."""

Connection = psycopg.AsyncConnection[Any]


class Applied(msgspec.Struct, frozen=True):
    """A row of the ledger."""

    name: str
    digest: str
    breaking: bool
    program_version: str


class State(msgspec.Struct, frozen=True):
    """What is in the database."""

    server: str
    major: int
    is_standby: bool
    has_ground: bool
    has_facts: bool
    ledger: list[Applied] | None
    verbs: str | None  # their digest
    verbs_version: str | None


LOOK = """
select current_setting('server_version') as server,
       current_setting('server_version_num')::int / 10000 as major,
       pg_is_in_recovery() as is_standby,
       (select count(*) = 5 from pg_roles
        where rolname in ('orc_owner', 'orc_api', 'orc_worker', 'orc_reader', 'orc_sql')
          and pg_has_role(current_user, oid,
                          case when current_setting('server_version_num')::int >= 160000
                               then 'set' else 'member' end))
       and (select count(*) = 2 from pg_namespace
            where nspname in ('orc', 'orchestrator')
              and nspowner = to_regrole('orc_owner')) as has_ground,
       exists (select from pg_class
               where relnamespace = to_regnamespace('orchestrator')) as has_facts,
       exists (select from pg_class where relname = 'migration'
               and relnamespace = to_regnamespace('orchestrator')) as has_ledger,
       obj_description(to_regnamespace('orc'), 'pg_namespace') as about_verbs
"""

LEDGER = "select name, digest, breaking, program_version from orchestrator.migration order by name"


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Connection]:
    try:
        connection = await psycopg.AsyncConnection.connect(
            url,
            autocommit=True,
            connect_timeout=5,
            prepare_threshold=None,
            row_factory=namedtuple_row,
            application_name="orchestrator schema",
        )
    except psycopg.OperationalError as error:
        raise Unfit(f"Postgres can't be reached: {str(error).strip()}") from error
    async with connection:
        await connection.set_isolation_level(psycopg.IsolationLevel.READ_COMMITTED)
        yield connection


async def look(connection: Connection) -> State:
    row = await (await connection.execute(LOOK)).fetchone()
    assert row is not None
    if row.major < OLDEST:
        raise Unfit(f"PostgreSQL {row.server} is too old: {OLDEST} to {NEWEST} are supported")
    ledger = await _ledger(connection) if row.has_ledger else None
    about = re.search(r"Orchestrator (\S+), .* sha256 (\w+)", row.about_verbs or "")
    return State(
        server=row.server,
        major=row.major,
        is_standby=row.is_standby,
        has_ground=row.has_ground,
        has_facts=row.has_facts,
        ledger=ledger,
        verbs=about.group(2) if about else None,
        verbs_version=about.group(1) if about else None,
    )


async def _ledger(connection: Connection) -> list[Applied]:
    try:
        return [Applied(*row) async for row in await connection.execute(LEDGER)]
    except pg.InsufficientPrivilege as error:
        user = connection.info.user
        raise Unfit(
            f"{user} may not read the ledger of migrations: whoever installed the schema should "
            f"run: grant orc_api, orc_worker to {user}"
        ) from error


class Comparison(msgspec.Struct, frozen=True):
    """The ledger beside the folder."""

    pending: list[Migration]
    unknown: list[Applied]
    changed: list[str]

    @property
    def breaking(self) -> list[Applied]:
        return [row for row in self.unknown if row.breaking]


def compare(library: Library, ledger: list[Applied]) -> Comparison:
    known = {migration.name: migration for migration in library.migrations}
    applied = {row.name for row in ledger}
    return Comparison(
        pending=[one for one in library.migrations if one.name not in applied],
        unknown=[row for row in ledger if row.name not in known],
        changed=[
            row.name for row in ledger if row.name in known and known[row.name].digest != row.digest
        ],
    )


def judge(library: Library, state: State) -> Comparison:
    """The comparison, or Unfit for a schema that this program must not touch."""
    compared = compare(library, state.ledger or [])
    if state.has_facts and not state.ledger:
        raise Unfit(
            "schema orchestrator has tables but no ledger of migrations (psql read install.sql?): "
            "`bin/db reset` drops it with its data and installs it anew"
        )
    if compared.changed:
        raise Unfit(
            f"migration {compared.changed[0]} was changed after it had been applied: "
            "restore sql/migrations from the release, and put the change into a new migration"
        )
    if compared.breaking:
        newest = max((row.program_version for row in compared.breaking), key=version)
        raise Unfit(
            f"the schema is newer than this program ({__version__}) and breaks it "
            f"({compared.breaking[0].name}): deploy version >= {newest} and restart"
        )
    _refuse_another_order(state, compared)
    return compared


def _refuse_another_order(state: State, compared: Comparison) -> None:
    pending, unknown = compared.pending, compared.unknown
    if pending and unknown:
        raise Unfit(
            f"the schema has {unknown[0].name}, which this program doesn't know, and lacks "
            f"{pending[0].name}: they come from different lines of development; "
            "deploy a program that knows both"
        )
    last = max((row.name for row in state.ledger or []), default="")
    if pending and pending[0].name < last:
        raise Unfit(
            f"migration {pending[0].name} comes before {last}, which is applied already: "
            "give it the next free number"
        )


def refuse_newer(compared: Comparison) -> None:
    if compared.unknown:
        newest = max((row.program_version for row in compared.unknown), key=version)
        raise Unfit(
            f"the schema is newer than this program ({__version__}; {compared.unknown[-1].name}): "
            f"only version >= {newest} may replace its verbs"
        )


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])
