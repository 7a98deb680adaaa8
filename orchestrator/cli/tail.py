"""orc tail: events, or what becomes of a run (with its log) or of a task, as it happens."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import Annotated, Any
from uuid import UUID

import typer

from . import core
from .follow import ENDED
from .remote import Remote, remote
from .runs import status_of

app = typer.Typer()

PATIENCE = 60
"""Seconds in which an API that went away may come back."""


@app.command()
def tail(
    topic: Annotated[
        str, typer.Option(help="Events of this topic; * is a segment. None: all but our own.")
    ] = "",
    run: Annotated[UUID | None, typer.Option(help="Follow a run and its log, to its end.")] = None,
    task: Annotated[UUID | None, typer.Option(help="Follow a task and its runs.")] = None,
    most: Annotated[int, typer.Option("-n", "--count", min=0, help="End after so many.")] = 0,
    output: core.Output = "table",
) -> None:
    """Follow events as they are published; or a run, or a task.

    A lost connection is made anew, and nothing is missed: it goes on after the last one that was
    told. With --run the exit status says how it ended, as that of `orc run --wait` does."""
    if sum(map(bool, (topic, run, task))) > 1:
        raise core.Failure("one of --topic, --run and --task", core.Exit.USAGE)
    path = f"/runs/{run}/events" if run else f"/tasks/{task}/events" if task else "/events/stream"
    told = Told(output, most)
    try:
        last = core.run(_follow(path, {"topic": topic} if topic else {}, run, told))
    except KeyboardInterrupt:
        raise typer.Exit(core.Exit.INTERRUPTED) from None
    if run and last.get("state") in ENDED:
        raise typer.Exit(status_of(last["state"], last.get("error")))


class Told:
    """What was told: whoever comes again to a run or a task hears its last seconds again."""

    def __init__(self, form: core.Form, most: int) -> None:
        self.form, self.most, self.count = form, most, 0
        self.lately: deque[tuple[str, str, Any]] = deque(maxlen=1000)

    @property
    def is_enough(self) -> bool:
        return 0 < self.most <= self.count

    def tell(self, id: str, kind: str, data: dict[str, Any]) -> None:
        if self.is_enough or (id, kind, data) in self.lately:
            return
        if id:
            self.lately.append((id, kind, data))
        self.count += 1
        _tell(kind, data, self.form)


class Lines:
    """The log of a run, as far as it was told."""

    def __init__(self, api: Remote, run: UUID, told: Told) -> None:
        self.api, self.path, self.told = api, f"/runs/{run}/logs", told
        self.last: str | None = None
        self.lock = asyncio.Lock()

    async def look(self) -> None:
        async with self.lock:
            rest = True
            while rest:
                after = {"cursor": self.last} if self.last else {}
                page = await self.api.ask("GET", self.path, {"limit": 200, **after})
                for line in page["items"]:
                    self.last = line["id"]
                    self.told.tell(line["id"], "log", line)
                rest = page["next_cursor"] is not None

    async def keep_looking(self) -> None:
        while True:
            with suppress(core.Failure):  # what is wrong is said by the stream
                await self.look()
            await asyncio.sleep(1)


async def _follow(path: str, query: dict[str, Any], run: UUID | None, told: Told) -> dict[str, Any]:
    """The last that was heard."""
    async with remote() as api:
        if run is None:
            return await _hear(api, path, query, told, None)
        lines = Lines(api, run, told)
        looking = asyncio.create_task(lines.keep_looking())
        try:
            return await _hear(api, path, query, told, lines)
        finally:
            looking.cancel()


async def _hear(
    api: Remote, path: str, query: dict[str, Any], told: Told, lines: Lines | None
) -> dict[str, Any]:
    """Streams end by themselves now and then: it comes again. That of a run ends with the run."""
    last, lost = "", 0
    data: dict[str, Any]
    while True:
        try:
            async for id, kind, data in api.events(path, query, last):
                has_ended = lines is not None and kind == "state" and data["state"] in ENDED
                if lines and has_ended:
                    await lines.look()
                told.tell(id, kind, data)
                last, lost = id or last, 0
                if told.is_enough or has_ended:
                    return data
        except core.Failure as error:
            if error.status is not core.Exit.UNAVAILABLE or lost > PATIENCE or not told.count:
                raise
            lost += 1
        await asyncio.sleep(1)


def _tell(kind: str, data: dict[str, Any], form: core.Form) -> None:
    if kind == "resync":
        core.note(f"some are missing: {data['reason']}")
    elif form == "id":
        names = ("event_id", "run_id", "task_id", "id")
        print(next(data[name] for name in names if name in data), flush=True)
    elif form != "table":
        core.say({"kind": kind, **data})
    else:
        print(core.cell(_line(kind, data)), flush=True)


def _line(kind: str, data: dict[str, Any]) -> str:
    if "event_id" in data:
        return f"{core.cell(data['published_at'])} {data['topic']} {core.cell(data['payload'])}"
    if kind == "log":
        facts = f" {core.cell(data['facts'])}" if data["facts"] else ""
        return f"{core.cell(data['at'])} {data['level']}: {data['message']}{facts}"
    time = data.get("finished_at") or data.get("started_at") or data.get("next_run_at")
    what = data.get("step") or (f"run {data['run_id']}" if "run_id" in data else kind)
    words = f"{core.cell(time)} {what} {data.get('state') or data.get('status')}".strip()
    if data.get("attempt", 1) > 1:
        words += f", attempt {data['attempt']}"
    error = data.get("error")
    said = error.get("message") if isinstance(error, dict) else error
    return f"{words}: {said}" if said else words
