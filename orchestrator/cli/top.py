"""orc top: what happens now, again and again."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.text import Text

from .. import db
from . import core
from .queues import QUEUES, WORKERS

app = typer.Typer()
Overview = dict[str, Any]


@app.command()
def top(
    interval: Annotated[float, typer.Option(min=0.2, help="Seconds between looks.")] = 2,
    once: Annotated[bool, typer.Option("--once", help="Look once, and end.")] = False,
    output: core.Output = "table",
) -> None:
    """Show queues, workers and the rate of finished runs.

    Again and again until Ctrl-C; once where nobody watches. With -o jsonl a line for each look."""
    if output == "id":
        raise core.Failure("an overview has no ids: -o table, json or jsonl", core.Exit.USAGE)
    once = once or output == "json" or (output == "table" and not sys.stdout.isatty())
    try:
        core.run(_watch(None if once else interval, output))
    except KeyboardInterrupt:
        raise typer.Exit(core.Exit.INTERRUPTED) from None


async def _watch(interval: float | None, form: core.Form) -> None:
    from rich.live import Live

    async with await core.connect(core.settings().database_url) as connection:
        seen = await _look(connection, None)
        if interval is None or form != "table":
            _print(seen, form)
            while interval:
                await asyncio.sleep(interval)
                _print(seen := await _look(connection, seen), form)
            return
        with Live(_page(seen), screen=True, auto_refresh=False) as live:
            while True:
                await asyncio.sleep(interval)
                seen = await _look(connection, seen)
                live.update(_page(seen), refresh=True)


async def _look(connection: db.Connection, before: Overview | None) -> Overview:
    """One round trip. A rate needs a look before."""
    (figures,), queues, workers = await db.call_together(
        connection, ("overview", {}), ("list_queues", {}), ("list_workers", {})
    )
    rate = None
    if before:
        seconds = (figures["at"] - before["at"]).total_seconds()
        rate = max(0.0, (figures["finished"] - before["finished"]) / seconds) if seconds else None
    return {**figures, "finished_per_second": rate, "queues": queues, "workers": workers}


def _print(seen: Overview, form: core.Form) -> None:
    if form == "table":
        core.put(_page(seen))
    else:
        core.say(seen)
        sys.stdout.flush()


def _page(seen: Overview) -> Group:
    live = [worker for worker in seen["workers"] if worker["state"] == "live"]
    held, slots = (sum(worker[name] for worker in live) for name in ("running", "slots"))
    rate = seen["finished_per_second"]
    words = [
        f"{seen['at']:%H:%M:%S} UTC",
        f"{len(live)} workers, {held} of {slots} slots busy",
        f"{seen['schedulers']} schedulers",
        *([] if rate is None else [f"{rate:,.1f} runs/s finished"]),
        f"{seen['failed_last_hour']} failed in the last hour",
    ]
    busiest = sorted(seen["queues"], key=lambda queue: -queue["ready"] - queue["running"])
    return Group(
        Text(" · ".join(words)), "",
        core.table(busiest[:20], [*QUEUES]) if busiest else "no queue has work", "",
        core.table(seen["workers"][:20], [*WORKERS]) if seen["workers"] else "no worker lives",
    )  # fmt: skip
