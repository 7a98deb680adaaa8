"""orc run [start] FILE: a document becomes a run, which can be followed to its end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

import psycopg
import typer
from psycopg.types.json import Jsonb

from .. import db
from ..errors import Unavailable
from . import core
from .follow import follow

app = core.group("Runs: what was, is and will be done.", cls=core.Starts)

ENDS = {"succeeded": 0, "canceled": core.Exit.CANCELED}


@app.command()
def start(
    file: Annotated[Path, typer.Argument(help="A pipeline: JSON (.json) or YAML.")],
    param: Annotated[
        list[str] | None,
        typer.Option("--param", "-p", metavar="NAME=VALUE", help="See below; may be repeated."),
    ] = None,
    tenant: core.Tenant = "default",
    queue: Annotated[str | None, typer.Option(help="Instead of the document's.")] = None,
    priority: Annotated[
        int | None, typer.Option(min=0, max=100, help="0 is the most urgent.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Until it ends; print its output.")] = False,
    following: Annotated[
        bool, typer.Option("--follow", "-f", help="The same, with a line for each step.")
    ] = False,
    output: Annotated[Literal["text", "json"], typer.Option("-o", "--output")] = "text",
) -> None:
    """Run a pipeline, and print the run's id; with --wait or --follow, its output. `orc run FILE`
    is short for it. It goes to the database.

    NAME=VALUE is what the document's inputs say it is; else JSON when it is JSON, and text when
    it isn't. NAME:=JSON is JSON in any case, NAME=@FILE is what a file holds.

    Ctrl-C ends the following, not the run. Exit status with --wait and --follow: 0 when the run
    has succeeded, 1 when it failed, 3 when it was canceled, 4 when it timed out.
    """
    document, params = _read(file, param or [])
    given = {"queue": queue, "priority": priority}
    given = {name: value for name, value in given.items() if value is not None}
    (made,) = core.call(
        "enqueue", tenant=tenant, pipeline=Jsonb(document), input=Jsonb(params), **given
    )
    if not (wait or following):
        _made(made, output)
        return
    core.note(f"run {_words(made)}")
    raise typer.Exit(_watch(tenant, made, following, output))


def _made(made: db.Row, output: str) -> None:
    if output == "json":
        core.say(made)
        return
    if made["decision"] != "created":
        core.note(f"run {_words(made)}")
    print(made["run_id"])


def _words(made: db.Row) -> str:
    reason = f" ({made['reason']})" if made["reason"] else ""
    return f"{made['run_id']} {made['decision']}{reason}"


# What goes in


def _read(file: Path, words: list[str]) -> tuple[Any, dict[str, Any]]:
    """The document and its parameters, both checked; every problem is a line."""
    from ..pipelines import Problems, compile, source
    from .params import Unreadable, parsed

    loaded = source.load(file)
    errors = [found for found in source.lint(file) if found.severity == "error"]
    if errors or not loaded.is_read:
        raise _usage(map(str, errors))
    pipeline = compile(loaded.document)
    try:
        params = parsed(words, {name: one.shape.schema for name, one in pipeline.inputs.items()})
        pipeline.bind(params)
    except Unreadable as error:
        raise _usage(error.problems) from None
    except Problems as error:
        raise _usage(
            f"{problem.pointer.removeprefix('/params/')}: {problem.message}"
            + (f" ({problem.hint})" if problem.hint else "")
            for problem in error.problems
        ) from None
    return loaded.document, params


def _usage(lines: Any) -> typer.Exit:
    for line in lines:
        core.note(line)
    return typer.Exit(core.Exit.USAGE)


# What comes out


def _watch(tenant: str, made: db.Row, following: bool, output: str) -> int:
    run: UUID = made["run_id"]
    tell = core.note if following else None
    try:
        ended = core.run(follow(core.settings().database_url, tenant, run, tell))
    except KeyboardInterrupt:
        core.note(f"run {run} goes on. {_how_to_cancel(tenant, run)}")
        return core.Exit.INTERRUPTED
    except (Unavailable, psycopg.OperationalError):
        core.note(f"run {run} goes on, as far as is known: the database can't be reached")
        raise
    state, error = ended["state"], ended["error"] or {}
    if output == "json":
        core.say({**made, "state": state, "output": ended["output"], "error": ended["error"]})
    else:
        core.say(ended["output"])
    if state != "succeeded":
        said = f": {error['message']}" if error.get("message") else ""
        core.note(f"run {run} {state}{said}")
    return status_of(state, error)


def status_of(state: str, error: Any) -> int:
    """The exit status that says how a run ended."""
    timed_out = state == "failed" and isinstance(error, dict) and error.get("type") == "timeout"
    return core.Exit.TIMEOUT if timed_out else ENDS.get(state, core.Exit.WRONG)


def _how_to_cancel(tenant: str, run: UUID) -> str:
    verb = f"orc.cancel_run('{tenant.replace(chr(39), chr(39) * 2)}', '{run}')"
    return f'Cancel it: orc db psql -c "select {verb}"'
