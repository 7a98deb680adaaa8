"""orc queue … and orc worker list: by the database, as no tenant's key sees all of them."""

from __future__ import annotations

from typing import Annotated

import typer

from . import core

app = core.group("Queues: what is in them, their limits and pauses.")
Name = Annotated[str, typer.Argument(help="Of the queue.")]

QUEUES = ("tenant_id", "queue", "ready", "running", "scheduled", "blocked", "waiting",
          "oldest_ready_seconds", "max_running", "paused_at")  # fmt: skip
WORKERS = ("id", "name", "state", "queues", "slots", "running", "expires_at")


@app.command("list")
def queue_list(
    tenant: Annotated[str | None, typer.Option(help="None: of all.")] = None,
    output: core.Output = "table",
) -> None:
    """Queues and what is in them."""
    rows = core.call("list_queues", tenant=tenant)
    core.show(rows, output, QUEUES, key="queue", empty="there are none")


@app.command()
def pause(queue: Name, tenant: core.Tenant = "default") -> None:
    """Let nothing more of it be claimed; what runs goes on."""
    core.call("pause_queue", tenant=tenant, queue=queue)
    print(f"{queue} is paused")


@app.command()
def resume(queue: Name, tenant: core.Tenant = "default") -> None:
    """Let it be claimed again."""
    core.call("resume_queue", tenant=tenant, queue=queue)
    print(f"{queue} goes on")


@app.command()
def limit(
    queue: Name,
    most: Annotated[int | None, typer.Argument(min=0, help="None: any number.")] = None,
    tenant: core.Tenant = "default",
) -> None:
    """Let at most so many of its runs run at once."""
    core.call("limit_queue", tenant=tenant, queue=queue, max_running=most)
    print(f"{queue} runs {'any number' if most is None else f'at most {most}'} at once")


def worker_list(output: core.Output = "table") -> None:
    """Workers that live or are silent, and those that ended in the last hour."""
    core.show(core.call("list_workers"), output, WORKERS, empty="there are none")
