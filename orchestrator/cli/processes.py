"""The processes, in the foreground."""

from __future__ import annotations

import asyncio
import gc
import importlib
import os
import signal
import subprocess
import sys
from typing import Annotated, Any

import msgspec
import psycopg
import typer

from .. import config, db, telemetry
from ..errors import Problem, Unfit
from . import core
from .queues import worker_list

SCHEMA_SECONDS = 10.0
"""How soon a running process notices that the schema has become too new for it."""

HealthPort = Annotated[
    int | None, typer.Option(help="Answer /health/live, /health/ready and /metrics on this port.")
]

app = typer.Typer()
workers = core.group(
    "Workers; without a command, or with options of `start`, start one.",
    cls=core.Starts,
    no_args_is_help=False,
)
workers.command("list")(worker_list)
app.add_typer(workers, name="worker")


def _process(name: str, **options: Any) -> None:
    """One process in the foreground, once the database and its schema fit."""
    import uvloop

    from .. import schema

    settings = config.load()
    telemetry.setup(name, settings.log_level, settings.log_format)
    settings = msgspec.structs.replace(settings, database_url=core.url(settings))
    module = importlib.import_module(f"..{name}", __package__)

    async def run() -> None:
        await db.reachable(settings.database_url)
        await schema.verify(settings.database_url)
        watch = asyncio.create_task(_watch_schema(settings.database_url))
        await module.main(settings, **options)
        if watch.done():
            watch.result()
        watch.cancel()

    gc.freeze()  # what was imported is here to stay: collections needn't look at it
    gc.set_threshold(700, 10, 50)  # else a look at all that a worker has in hand is a tenth of it
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


async def _watch_schema(url: str) -> None:
    """Ends the process, with what to do, when a deploy has made the schema too new for it."""
    from .. import schema

    while True:
        await asyncio.sleep(SCHEMA_SECONDS)
        try:
            await schema.verify(url)
        except Unfit as error:
            telemetry.log("schema_unfit", "error", str(error))
            os.kill(os.getpid(), signal.SIGTERM)
            raise
        except (psycopg.Error, Problem):
            continue  # a lost database is the loop's matter


@app.command()
def up(
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Where the API listens.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Go on in the background.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Stop what runs in the background.")] = False,
    reset: Annotated[bool, typer.Option("--reset", help="Start with an empty database.")] = False,
) -> None:
    """Set up and run everything: Postgres, schema, API, worker, scheduler, relay."""
    from .. import up as supervisor

    settings = config.load()
    if stop:
        raise typer.Exit(supervisor.stop(settings))
    raise typer.Exit(supervisor.run(settings, port=port, detach=detach, reset=reset))


@app.command()
def api(
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Instead of PORT.")] = None,
) -> None:
    """Answer HTTP."""
    if port is not None:
        os.environ["PORT"] = str(port)
    _process("api")


@workers.command("start")
def worker(
    queues: Annotated[str, typer.Option(help="The queues to take from, with commas.")] = "default",
    slots: Annotated[int, typer.Option(min=1, max=100_000, help="Runs at once.")] = 100,
    processes: Annotated[int, typer.Option(min=1, max=64, help="Processes of it.")] = 1,
    once: Annotated[bool, typer.Option("--once", help="End when nothing is due.")] = False,
    drain_timeout: Annotated[float, typer.Option(help="Seconds for running work to end.")] = 30,
    lease: Annotated[float, typer.Option(min=1, help="Seconds that it may be silent.")] = 30,
    poll: Annotated[float, typer.Option(help="Seconds between looks, without a hint.")] = 0.2,
    hints: Annotated[bool, typer.Option(help="Ask for a NOTIFY when idle.")] = True,
    health_port: HealthPort = None,
) -> None:
    """Claim due work and run it."""
    from ..worker import Options

    if processes > 1:
        raise typer.Exit(_several(processes, health_port))
    options = Options(
        queues=tuple(name.strip() for name in queues.split(",") if name.strip()),
        slots=slots,
        once=once,
        drain_timeout=drain_timeout,
        lease=lease,
        poll=poll,
        hints=hints and not config.load().database_pooler,
    )
    _process("worker", options=options, health_port=health_port)


def _several(count: int, health_port: int | None) -> int:
    """The same command once a process, health ports counted up. The worst exit status is ours."""
    command = [
        sys.executable,
        "-P",
        "-m",
        "orchestrator.cli",
        *_without("--processes", sys.argv[1:]),
    ]
    if health_port is not None:
        command = _without("--health-port", command)
    parts = [
        subprocess.Popen(
            command if health_port is None else [*command, f"--health-port={health_port + number}"]
        )
        for number in range(count)
    ]

    def pass_on(number: int, _: object) -> None:
        for part in parts:
            part.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    return max(abs(part.wait()) for part in parts)


def _without(option: str, words: list[str]) -> list[str]:
    words = [word for word in words if not word.startswith(f"{option}=")]
    if option in words:
        at = words.index(option)
        del words[at : at + 2]
    return words


@app.command()
def scheduler(health_port: HealthPort = None) -> None:
    """Turn schedules into due work, and keep the house."""
    _process("scheduler", health_port=health_port)


@app.command()
def relay(health_port: HealthPort = None) -> None:
    """Send the outbox."""
    _process("relay", health_port=health_port)
