"""What every command stands on: where the database is, forms of output, exit statuses."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine, Iterable, Mapping
from enum import IntEnum
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import psycopg
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .. import config, db, telemetry
from ..errors import Misconfigured, Problem, Unavailable, Unfit

T = TypeVar("T")


class Exit(IntEnum):
    """Exit statuses; 69 and 78 are those of sysexits.h, 130 is the shell's."""

    WRONG = 1  # something is wrong: it was refused, it failed, or a check has found something
    USAGE = 2  # the words, the file or the parameters make no sense
    CANCELED = 3  # the run was canceled
    TIMEOUT = 4  # the run took too long
    UNAVAILABLE = 69  # the database can't be reached: trying again may help
    CONFIG = 78  # the settings or the schema can't work: trying again can't help
    INTERRUPTED = 130  # Ctrl-C: what was begun goes on


STATUSES = (
    "Exit status: 0 done · 1 refused, failed, or something is wrong · 2 the words, the file or the"
    " parameters make no sense · 3 the run was canceled · 4 the run timed out · 69 the database"
    " can't be reached · 78 the settings or the schema can't work · 130 interrupted."
)

Form = Literal["table", "json", "jsonl", "id"]
Output = Annotated[
    Form, typer.Option("-o", "--output", help="table for people; json, jsonl or id for programs.")
]
Tenant = Annotated[str, typer.Option(help="Whose it is.")]
Yes = Annotated[bool, typer.Option("--yes", help="Don't ask.")]


def group(help: str, **options: Any) -> typer.Typer:
    """A noun, or the whole."""
    return typer.Typer(
        help=help,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        **options,
    )


def sure(question: str, yes: bool) -> None:
    """Asks before something is destroyed."""
    if not yes:
        typer.confirm(question, abort=True)


# Connecting


def url(settings: config.Config) -> str:
    """DATABASE_URL, or the embedded server of this folder."""
    if settings.database_url:
        return settings.database_url
    from .. import devpg

    cluster = devpg.status(settings.data)
    if cluster is None:
        raise Misconfigured(
            "no database: set DATABASE_URL, or start the embedded server with bin/db up"
        )
    return cluster.url


def settings() -> config.Config:
    found = config.load()
    return msgspec.structs.replace(found, database_url=url(found))


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def call(verb: str, **arguments: Any) -> list[db.Row]:
    """One call over a connection of its own."""

    async def work() -> list[db.Row]:
        async with await connect(settings().database_url) as connection:
            return await db.call(connection, verb, **arguments)

    return run(work())


async def connect(url: str) -> db.Connection:
    """A connection, or one clear line that says what is in the way."""
    try:
        return await db.connect(url, application="orc")
    except (psycopg.OperationalError, Unavailable):
        await db.reachable(url)
        raise


# Output


def note(words: str) -> None:
    """What people read beside the output."""
    Console(stderr=True, highlight=False).print(escape(telemetry.mask(words)), soft_wrap=True)


def say(value: Any) -> None:
    """One JSON value for a program."""
    print(msgspec.json.encode(value).decode())


def show(
    rows: Iterable[Mapping[str, Any]],
    form: Form,
    columns: Iterable[str],
    key: str = "id",
    empty: str = "",
) -> None:
    """Rows in the form that was asked for. A program gets all they hold, people the columns."""
    listed = list(rows)
    if form == "json":
        say(listed)
    elif form == "jsonl":
        for row in listed:
            say(row)
    elif form == "id":
        for row in listed:
            print(row[key])
    elif listed:
        Console(width=None if sys.stdout.isatty() else 10_000).print(_table(listed, list(columns)))
    elif empty:
        print(empty)


def _table(rows: list[Mapping[str, Any]], columns: list[str]) -> Table:
    table = Table(*(name.replace("_", " ") for name in columns), box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(escape(_cell(row[name])) for name in columns))
    return table


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if hasattr(value, "strftime"):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


# The end


def guarded(work: typer.Typer) -> None:
    """What is wrong is one clear line, and the exit status says whether trying again can help."""
    telemetry.setup("orc", "error")  # a process says its own
    try:
        work()
    except (Misconfigured, Unfit) as error:
        sys.exit(_failed(error, Exit.CONFIG))
    except (Problem, psycopg.OperationalError) as error:
        sys.exit(_failed(error, Exit.UNAVAILABLE))
    except psycopg.DatabaseError as error:
        sys.exit(_failed(error, Exit.WRONG))


def _failed(error: Exception, status: Exit) -> int:
    Console(stderr=True).print(
        "[bold red]error[/]", escape(telemetry.mask(str(error).strip())), soft_wrap=True
    )
    return int(status)
