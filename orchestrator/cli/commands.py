"""A row of a table becomes a command: a request, its options, and the columns of its answer.

Options are written as words: `status:active|paused` is a choice, `priority:int` a number, `q` text;
with `!` they are required. They become the query of a GET or a DELETE, and the body of a POST or a
PUT. tests/test_cli_nouns.py holds them to what the API takes.
"""

from __future__ import annotations

import re
import sys
from datetime import UTC, datetime, timedelta
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import typer

from . import core

LIMIT = 50
MOST = 10_000


class Command(NamedTuple):
    """One row. `words` are its arguments and options, `columns` those of its list."""

    name: str
    method: str
    path: str
    help: str
    words: str = ""
    columns: str = ""
    key: str = "id"
    file: str = ""  # what the file is that it takes: the whole body, or this field of it
    asks: str = ""  # before it destroys something
    waits: bool = False  # it starts a run, whose end can be waited for
    pages: bool = False  # its list is read page after page

    @property
    def is_list(self) -> bool:
        return bool(self.columns)


class Word(NamedTuple):
    """An option: its field, and what it may be."""

    field: str
    kind: str
    is_required: bool

    @property
    def name(self) -> str:
        return f"{self.field}_" if self.field in ("from", "is") else self.field


def words(row: Command) -> list[Word]:
    """`name`, `name!`, `name:kind`, `name:kind!`."""
    found = []
    for word in row.words.split():
        name, _, kind = word.rstrip("!").partition(":")
        found.append(Word(name, kind or "text", word.endswith("!")))
    return found


def holes(row: Command) -> list[str]:
    return re.findall(r"{(\w+)", row.path)


MEANINGS = {
    "q": "Part of the title or the description.",
    "label": "A key, or key:value.",
    "start_time": "Made at or after: a time, or 2h for two hours ago.",
    "end_time": "Made before: a time, or 2h for two hours ago.",
    "since": "A time, or 2h for two hours ago.",
    "from": "A time, or 2h for two hours ago.",
    "to": "A time, or 2h for two hours ago.",
    "success": "Succeeded, or failed and canceled.",
    "kind": "Runs of tasks, unless it says otherwise.",
    "error_type": "timeout, communication, …",
    "fingerprint": "Of a group of `orc failures`.",
    "payload": "JSON, or @FILE.",
    "form": "JSON, or @FILE.",
    "scopes": "With commas: tasks:read,tasks:write.",
    "priority": "1 is the most urgent, 9 the least.",
    "dry_run": "Say what would be done; the default.",
    "grace_seconds": "In which what was before is good, too.",
    "force": "Its active tasks are canceled.",
    "timezone": "Such as Europe/Chisinau.",
}
KINDS: dict[str, Any] = {"int": int, "float": float, "bool": bool}


def command(row: Command) -> Any:
    """The function that typer makes a command of."""

    def work(**given: Any) -> None:
        from .perform import perform

        perform(row, given)

    parameters = [Parameter(name, Parameter.KEYWORD_ONLY, **how) for name, how in _asked(row)]
    vars(work)["__signature__"] = Signature(parameters)
    work.__annotations__ = {one.name: one.annotation for one in parameters}
    work.__doc__ = row.help
    return work


def _asked(row: Command) -> list[tuple[str, dict[str, Any]]]:
    """Its parameters, each with its type and its default."""
    found: list[tuple[str, dict[str, Any]]] = [
        (name, {"annotation": Annotated[str, typer.Argument(metavar=name.upper())]})
        for name in holes(row)
    ]
    if row.file:
        say = typer.Argument(help="JSON (.json) or YAML, - for standard input.", metavar="FILE")
        found.append(("file", {"annotation": Annotated[Path | None, say], "default": None}))
    found += [_option(word) for word in words(row)]
    if row.pages:
        say = typer.Option(min=1, max=MOST, help="At most so many.")
        found.append(("limit", {"annotation": Annotated[int, say], "default": LIMIT}))
    if row.waits:
        say = typer.Option(min=1, max=60, help="Seconds to wait for the run to end.")
        found.append(("wait", {"annotation": Annotated[int | None, say], "default": None}))
    if row.asks:
        found.append(("yes", {"annotation": core.Yes, "default": False}))
    return [*found, ("output", {"annotation": core.Output, "default": "table"})]


def _option(word: Word) -> tuple[str, dict[str, Any]]:
    kind: Any = KINDS.get(word.kind, str)
    if "|" in word.kind:
        kind = Literal[tuple(word.kind.split("|"))]
    flag = "--" + word.field.replace("_", "-")
    names = [f"{flag}/--no-{flag[2:]}"] if kind is bool else [flag]
    say = typer.Option(*names, help=MEANINGS.get(word.field, ""))
    if word.is_required:
        return word.name, {"annotation": Annotated[kind, say]}
    return word.name, {"annotation": Annotated[kind | None, say], "default": None}


# What is said becomes what is sent


def value(word: Word, text: Any) -> Any:
    """As JSON has it, or Failure that names the option."""
    try:
        if word.kind == "time":
            return instant(text)
        if word.kind == "json":
            return msgspec.json.decode(content(text[1:]) if text.startswith("@") else text)
        if word.kind == "list":
            return [part.strip() for part in text.split(",") if part.strip()]
    except (ValueError, OSError, msgspec.DecodeError) as error:
        flag = "--" + word.field.replace("_", "-")
        raise core.Failure(f"{flag}: {error}", core.Exit.USAGE) from None
    return text


def content(name: str) -> str:
    return sys.stdin.read() if name == "-" else Path(name).read_text("utf-8")


AGO = re.compile(r"(\+?)(\d+)([smhdw])")
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def instant(text: str) -> str:
    """A time as ISO 8601 has it, or so long ago (`2h`), or so far ahead (`+2h`)."""
    if found := AGO.fullmatch(text):
        length = timedelta(**{UNITS[found[3]]: int(found[2])})
        now = datetime.now(UTC)
        return (now + length if found[1] else now - length).isoformat()
    try:
        return datetime.fromisoformat(text).astimezone(UTC).isoformat()
    except ValueError:
        raise ValueError(
            f"{text!r} isn't a time: 2026-03-01T08:30, 2026-03-01, 2h (ago) or +2h"
        ) from None
