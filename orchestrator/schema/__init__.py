"""Installs, migrates and checks the schema: facts once, verbs at every deploy.

`sql/install.sql` is the table of contents. Its pages are the ground (roles and schemas), facts
(`facts.sql`, `tables.sql`) and verbs (all others). `sql/migrations/` has the way from older facts.

Every change is one transaction that takes an advisory lock and only then reads the ledger, so two
installers at once are safe, through a transaction pooler, too. It waits for a lock only briefly, so
that nobody queues up behind it, and then tries again. Migrations run one by one; from the first
breaking one on, all that follow and the verbs are one transaction, so that no call ever sees new
facts through old verbs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import LiteralString

import msgspec

from .. import __version__
from ..errors import Unfit
from .change import (
    DEPENDENTS,
    FRAME,
    Report,
    alone,
    apply_migrations,
    create_facts,
    lay_ground,
    patiently,
    swap_verbs,
)
from .library import Library, Page, read_library, sql_folder
from .state import (
    NEWEST,
    Comparison,
    Connection,
    State,
    compare,
    connected,
    judge,
    look,
    version,
)

__all__ = [
    "Library",
    "Page",
    "Report",
    "Status",
    "dependents",
    "ensure_first_agent",
    "fingerprint",
    "install",
    "migrate",
    "read_library",
    "replace_verbs",
    "reset",
    "sql_folder",
    "status",
    "verify",
]


class Status(msgspec.Struct, frozen=True):
    """The server and its schema beside this program's."""

    server_version: str
    schema: str
    """missing, unledgered, behind, current, newer, breaking or diverged"""
    verbs: str
    """missing, current or different"""
    applied: list[str]
    pending: list[str]
    unknown: list[str]
    verbs_version: str | None

    def __str__(self) -> str:
        of = f" (of version {self.verbs_version})" if self.verbs_version else ""
        facts = {
            "server": f"PostgreSQL {self.server_version}",
            "schema": self.schema,
            "applied": f"up to {self.applied[-1]}" if self.applied else "",
            "pending": ", ".join(self.pending),
            "unknown to this program": ", ".join(self.unknown),
            "verbs": self.verbs + of,
        }
        return "\n".join(f"{name}: {words}" for name, words in facts.items() if words)


async def install(url: str, *, folder: Path | None = None) -> Report:
    """Makes the schema, or brings it up to date. Any number of installers may run at once."""
    return await _bring_up_to_date(url, read_library(folder), fresh=create_facts)


async def migrate(url: str, *, folder: Path | None = None) -> Report:
    """Applies the migrations that are missing (all, to an empty database), then the verbs."""
    return await _bring_up_to_date(url, read_library(folder), fresh=apply_migrations)


async def _bring_up_to_date(
    url: str,
    library: Library,
    fresh: Callable[[Connection, Library, Report], Awaitable[None]],
) -> Report:
    report = Report()
    async with connected(url) as connection:
        state = await look(connection)
        compared = judge(library, state)
        if compared.unknown or version(state.verbs_version or "") > version(__version__):
            report.done.append("left as it is: the schema is newer than this program")
            return report
        if _is_current(library, state, compared):
            return report
        if state.is_standby:
            raise Unfit("this server is a standby: install through the primary")
        if not state.has_ground:
            await lay_ground(connection, library)
        if not state.has_facts:
            await fresh(connection, library, report)
        await apply_migrations(connection, library, report)
        await swap_verbs(connection, library, report)
        await _as_owner(connection, "select from orc.keep_partitions()")
    return report


def _is_current(library: Library, state: State, compared: Comparison) -> bool:
    there = state.has_ground and state.has_facts
    return there and not compared.pending and state.verbs == library.digest


async def _as_owner(connection: Connection, statement: LiteralString) -> None:
    async with connection.transaction():
        await connection.execute("set local role orc_owner")
        await connection.execute(statement)


async def replace_verbs(url: str, *, folder: Path | None = None) -> Report:
    """Replaces the verbs and views while calls go on, unless they are these very ones."""
    report = Report()
    library = read_library(folder)
    async with connected(url) as connection:
        _require_present(await look(connection))
        await swap_verbs(connection, library, report)
    return report


def _require_present(state: State) -> None:
    if not state.has_facts:
        raise Unfit("this database has no schema yet: run `bin/db install`")


async def verify(url: str, *, folder: Path | None = None) -> None:
    """Raises Unfit, with what to do, unless this program can work with the schema."""
    library = read_library(folder)
    async with connected(url) as connection:
        state = await look(connection)
    _require_present(state)
    compared = judge(library, state)
    if compared.pending:
        raise Unfit(
            f"the schema is older than this program: it lacks {compared.pending[0].name}; "
            "run `bin/db migrate`"
        )
    if version(state.verbs_version or "") < version(__version__):
        there = f"of version {state.verbs_version}" if state.verbs_version else "missing"
        raise Unfit(f"the verbs are {there}, this program is {__version__}: run `bin/db migrate`")


async def status(url: str, *, folder: Path | None = None) -> Status:
    """What verify() would say, for people."""
    library = read_library(folder)
    async with connected(url) as connection:
        state = await look(connection)
    compared = compare(library, state.ledger or [])
    untested = " (newer than tested)" if state.major > NEWEST else ""
    verbs = "current" if state.verbs == library.digest else "different"
    return Status(
        server_version=state.server + untested,
        schema=_word(state, compared),
        verbs="missing" if state.verbs is None else verbs,
        applied=[row.name for row in state.ledger or []],
        pending=[one.name for one in compared.pending],
        unknown=[row.name for row in compared.unknown],
        verbs_version=state.verbs_version,
    )


def _word(state: State, compared: Comparison) -> str:
    words = {
        "missing": not state.has_facts,
        "unledgered": not state.ledger,
        "diverged": compared.changed or (compared.pending and compared.unknown),
        "breaking": compared.breaking,
        "newer": compared.unknown,
        "behind": compared.pending,
    }
    return next((word for word, holds in words.items() if holds), "current")


async def ensure_first_agent(url: str) -> None:
    """The system agent, which the first key belongs to."""
    async with connected(url) as connection:
        await _as_owner(connection, "select orc.ensure_system_agent()")


async def reset(url: str, *, yes: bool = False) -> None:
    """Drops both schemas with all data. Roles stay: other databases may use them."""
    if not yes:
        raise Unfit(
            "reset drops all data of Orchestrator in this database; say yes=True to do that"
        )

    async with connected(url) as connection:

        async def change() -> None:
            async with alone(connection) as state:
                if state.has_ground:
                    await connection.execute("set local role orc_owner")
                    await connection.execute("drop schema orc, orchestrator cascade")

        await patiently(connection, change)


async def fingerprint(url: str) -> list[str]:
    """The facts in words, a line for each thing: equal schemas give equal lines."""
    async with connected(url) as connection:
        return [
            row[0] async for row in await connection.execute("select * from orc.describe_facts()")
        ]


async def dependents(url: str) -> list[str]:
    """What outside schema orc depends on it, and so is in the way of a deploy."""
    async with connected(url) as connection, connection.transaction():
        await connection.execute(FRAME)
        return [row.object async for row in await connection.execute(DEPENDENTS)]
