"""What every command stands on: where the database is, forms of output, exit statuses."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Coroutine, Iterable, Mapping
from enum import IntEnum
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from uuid import UUID

import msgspec
import psycopg
import typer
import typer.core
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from .. import config, db, telemetry
from ..errors import Misconfigured, Problem, Unavailable, Unfit

T = TypeVar("T")


class Exit(IntEnum):
    """Exit statuses; 69 and 78 are those of sysexits.h, 130 is the shell's."""

    WRONG = 1  # something is wrong: it was refused, it failed, or a check has found something
    USAGE = 2  # the words, the file or the parameters make no sense
    CANCELED = 3  # the run was canceled
    TIMEOUT = 4  # the run took too long
    UNAVAILABLE = 69  # the database or the API can't be reached: trying again may help
    DENIED = 77  # there is no key, or it may not do this
    CONFIG = 78  # the settings or the schema can't work: trying again can't help
    INTERRUPTED = 130  # Ctrl-C: what was begun goes on


STATUSES = (
    "Exit status: 0 done · 1 refused, failed, or something is wrong · 2 the words, the file or the"
    " parameters make no sense · 3 the run was canceled · 4 the run timed out · 69 the database"
    " or the API can't be reached · 77 there is no key, or it may not · 78 the settings or the"
    " schema can't work · 130 interrupted."
)

Form = Literal["table", "json", "jsonl", "id"]
Output = Annotated[
    Form, typer.Option("-o", "--output", help="table for people; json, jsonl or id for programs.")
]
Tenant = Annotated[str, typer.Option(help="Whose it is.")]
Yes = Annotated[bool, typer.Option("--yes", help="Don't ask.")]


class Failure(Exception):
    """What is wrong, one thing a line, and the exit status that says of which kind it is."""

    def __init__(self, message: str, status: Exit = Exit.WRONG) -> None:
        super().__init__(message)
        self.status = status


def group(help: str, **options: Any) -> typer.Typer:
    """A noun, or the whole."""
    return typer.Typer(
        help=help,
        no_args_is_help=options.pop("no_args_is_help", True),
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        **options,
    )


class Starts(typer.core.TyperGroup):
    """A noun that is a command, too: what is no name of its commands goes to `start`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        first = args[0] if args else "" if ctx.resilient_parsing else "-"
        is_ours = first in self.commands or first in ("", "-h", "--help")
        if not is_ours and (first.startswith("-") or "." in first or Path(first).exists()):
            args = ["start", *args]
        return super().parse_args(ctx, args)


def sure(question: str, yes: bool) -> None:
    """Asks before something is destroyed. Where nobody can be asked, only --yes will do."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise Failure(f"{question} Nobody can be asked here: say --yes", Exit.USAGE)
    typer.confirm(question, abort=True, err=True)


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


def configured() -> config.Config:
    """What the environment says, whether there is a database or not."""
    return config.load()


def settings() -> config.Config:
    found = configured()
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
    said = escape(readable(telemetry.mask(words)))
    Console(stderr=True, highlight=False).print(said, soft_wrap=True)


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
            if (id := at(row, key)) is not None:
                print(id)
    elif listed:
        put(table(listed, list(columns)))
    elif empty:
        print(empty)


def show_one(row: Mapping[str, Any], form: Form, key: str = "id") -> None:
    """One thing: a line for each field, and a table for each list of things that it has."""
    if form != "table":
        show([row], "jsonl" if form == "json" else form, (), key)
        return
    inner = {name: rows for name, rows in row.items() if _is_listing(rows)}
    card = Table.grid(padding=(0, 2))
    for name, value in row.items():
        if name not in inner and value not in (None, [], {}):
            card.add_row(name.replace("_", " "), Text(cell(value), _style(value)))
    put(card)
    for name, rows in inner.items():
        columns = [n for n in rows[0] if any(one.get(n) not in (None, [], {}) for one in rows)]
        print(f"\n{name.replace('_', ' ')}")
        put(table(rows, columns))


def at(row: Mapping[str, Any], path: str) -> Any:
    """What stands at a name, or at names with dots between."""
    value: Any = row
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _is_listing(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)


def put(drawn: RenderableType) -> None:
    """A terminal is as wide as it is; a file, or a program, gets lines as long as they are."""
    if sys.stdout.isatty():
        Console(highlight=False).print(drawn)
        return
    console = Console(width=10_000, highlight=False)
    with console.capture() as held:
        console.print(drawn)
    print("\n".join(line.rstrip() for line in held.get().splitlines()))


SHORT = 24
"""Characters of a column that is never cut off, where there is any room."""


def table(rows: list[Mapping[str, Any]], columns: list[str]) -> Table:
    """A line for each row. Where the terminal is too narrow, the longest texts are cut off."""
    made = Table(box=None, pad_edge=False)
    for name in columns:
        longest = max(len(cell(row.get(name))) for row in rows)
        is_whole = longest <= SHORT or name in ("id", "run") or name.endswith("_id")
        width = longest if is_whole else None
        made.add_column(name.replace("_", " "), no_wrap=is_whole, min_width=width)
    for row in rows:
        made.add_row(*(_drawn(row.get(name)) for name in columns))
    return made


def _drawn(value: Any) -> Text:
    return Text(cell(value), _style(value), no_wrap=True, overflow="ellipsis")


def raw(value: Any) -> str:
    if isinstance(value, str | UUID):
        return str(value)
    return msgspec.json.encode(value).decode()


INSTANT = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)(\.\d+)?(Z|\+00:00)")
CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}
"""A title must not steer the terminal of whoever lists it."""


def readable(words: str) -> str:
    return "\n".join(line.translate(CONTROLS) for line in words.split("\n"))


STYLES = {
    "succeeded": "green", "active": "green", "live": "green", "ok": "green", "fired": "green",
    "failed": "red", "silent": "red", "wrong": "bold red", "down": "red", "running": "cyan",
    "canceled": "dim", "stopped": "dim", "warning": "yellow", "paused": "yellow",
    "blocked": "yellow", "waiting": "yellow",
}  # fmt: skip


def _style(value: Any) -> str:
    return STYLES.get(value, "") if isinstance(value, str) else ""


def cell(value: Any) -> str:
    """A value as people read it; times are UTC."""
    if value is None:
        return ""
    if hasattr(value, "strftime"):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    text = raw(value)
    if found := INSTANT.fullmatch(text):
        return f"{found[1]} {found[2]}"
    return text.translate(CONTROLS)


# The end


def guarded(work: typer.Typer) -> None:
    """What is wrong is one clear line, and the exit status says whether trying again can help."""
    telemetry.setup("orc", "error")  # a process says its own
    try:
        work()
    except Failure as error:
        sys.exit(_failed(error, error.status))
    except (Misconfigured, Unfit) as error:
        sys.exit(_failed(error, Exit.CONFIG))
    except (Problem, psycopg.OperationalError) as error:
        sys.exit(_failed(error, Exit.UNAVAILABLE))
    except psycopg.DatabaseError as error:
        sys.exit(_failed(error, Exit.WRONG))


def _failed(error: Exception, status: Exit) -> int:
    said = escape(readable(telemetry.mask(str(error).strip())))
    Console(stderr=True).print("[bold red]error[/]", said, soft_wrap=True)
    return int(status)
