"""orc tail: events, or what becomes of a run or a task, as it happens."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any
from uuid import UUID

import typer

from . import core
from .follow import ENDED
from .remote import remote
from .runs import status_of

app = typer.Typer()

PATIENCE = 60
"""Seconds in which an API that went away may come back."""


@app.command()
def tail(
    topic: Annotated[
        str, typer.Option(help="Events of this topic; * is a segment. None: all but our own.")
    ] = "",
    run: Annotated[UUID | None, typer.Option(help="Follow this run, until it ends.")] = None,
    task: Annotated[UUID | None, typer.Option(help="Follow this task and its runs.")] = None,
    most: Annotated[int, typer.Option("-n", "--count", min=0, help="End after so many.")] = 0,
    output: core.Output = "table",
) -> None:
    """Follow events as they are published; or a run, or a task.

    A lost connection is made anew, and nothing is missed: it goes on after the last one that was
    told. With --run the exit status says how it ended, as that of `orc run --wait` does."""
    if sum(map(bool, (topic, run, task))) > 1:
        raise core.Failure("one of --topic, --run and --task", core.Exit.USAGE)
    path = f"/runs/{run}/events" if run else f"/tasks/{task}/events" if task else "/events/stream"
    try:
        last = core.run(_follow(path, {"topic": topic} if topic else {}, bool(run), most, output))
    except KeyboardInterrupt:
        raise typer.Exit(core.Exit.INTERRUPTED) from None
    if run and last.get("state") in ENDED:
        raise typer.Exit(status_of(last["state"], last.get("error")))


async def _follow(
    path: str, query: dict[str, Any], is_run: bool, most: int, form: core.Form
) -> dict[str, Any]:
    """The last that was told. Streams end by themselves now and then: it comes again."""
    last, told, lost = "", 0, 0
    data: dict[str, Any]
    async with remote() as api:
        while True:
            try:
                async for id, kind, data in api.events(path, query, last):
                    last, told, lost = id or last, told + 1, 0
                    _tell(kind, data, form)
                    if told == most or (is_run and kind == "state" and data["state"] in ENDED):
                        return data
            except core.Failure as error:
                if error.status is not core.Exit.UNAVAILABLE or lost > PATIENCE or not told:
                    raise
                lost += 1
            await asyncio.sleep(1)


def _tell(kind: str, data: dict[str, Any], form: core.Form) -> None:
    if kind == "resync":
        core.note(f"some are missing: {data['reason']}")
    elif form == "id":
        print(data.get("event_id") or data.get("run_id") or data.get("task_id"), flush=True)
    elif form != "table":
        core.say({"kind": kind, **data})
    else:
        print(core.cell(_line(kind, data)), flush=True)


def _line(kind: str, data: dict[str, Any]) -> str:
    if "event_id" in data:
        return f"{core.cell(data['published_at'])} {data['topic']} {core.cell(data['payload'])}"
    time = data.get("finished_at") or data.get("started_at") or data.get("next_run_at")
    what = data.get("step") or (f"run {data['run_id']}" if "run_id" in data else kind)
    words = f"{core.cell(time)} {what} {data.get('state') or data.get('status')}".strip()
    if data.get("attempt", 1) > 1:
        words += f", attempt {data['attempt']}"
    error = data.get("error")
    said = error.get("message") if isinstance(error, dict) else error
    return f"{words}: {said}" if said else words
