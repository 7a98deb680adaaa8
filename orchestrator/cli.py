"""The command line. Every command is a few lines over what the other modules do."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import psycopg
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from . import __version__, config, db, telemetry
from .errors import Misconfigured, Problem, Unfit

EX_UNAVAILABLE = 69
EX_CONFIG = 78
"""Exit statuses of sysexits.h: the second says that trying again can't help."""

SCHEMA_SECONDS = 10.0
"""How soon a running process notices that the schema has become too new for it."""

app = typer.Typer(
    name="orc",
    help="Jobs, schedules and agents on the Postgres that you already have.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
database = typer.Typer(help="The database and its schema.", no_args_is_help=True)
app.add_typer(database, name="db")
language = typer.Typer(help="Pipelines as files.", no_args_is_help=True)
app.add_typer(language, name="pipeline")
secret = typer.Typer(help="Secrets of tenants, encrypted in the database.", no_args_is_help=True)
app.add_typer(secret, name="secret")

Tenant = Annotated[str, typer.Option(help="Whose it is.")]

HealthPort = Annotated[
    int | None, typer.Option(help="Answer GET /health/live and /health/ready on this port.")
]
Yes = Annotated[bool, typer.Option("--yes", help="Don't ask.")]


def main() -> None:
    """What is wrong is one clear line, and the exit status says whether trying again can help."""
    try:
        app()
    except (Misconfigured, Unfit) as error:
        sys.exit(_say(error, EX_CONFIG))
    except (Problem, psycopg.OperationalError) as error:
        sys.exit(_say(error, EX_UNAVAILABLE))
    except psycopg.DatabaseError as error:
        sys.exit(_say(error, 1))


def _say(error: Exception, status: int) -> int:
    Console(stderr=True).print(
        "[bold red]error[/]", escape(telemetry.mask(str(error).strip())), soft_wrap=True
    )
    return status


def _url(settings: config.Config) -> str:
    """DATABASE_URL, or the embedded server of this folder."""
    if settings.database_url:
        return settings.database_url
    from . import devpg

    cluster = devpg.status(settings.data)
    if cluster is None:
        raise Misconfigured(
            "no database: set DATABASE_URL, or start the embedded server with bin/db up"
        )
    return cluster.url


def _settings() -> config.Config:
    settings = config.load()
    return msgspec.structs.replace(settings, database_url=_url(settings))


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def _process(name: str, **options: Any) -> None:
    """One process in the foreground, once the database and its schema fit."""
    import importlib

    import uvloop

    from . import schema

    settings = config.load()
    telemetry.setup(name, settings.log_level, settings.log_format)
    settings = msgspec.structs.replace(settings, database_url=_url(settings))
    module = importlib.import_module(f".{name}", __package__)

    async def run() -> None:
        await db.reachable(settings.database_url)
        await schema.verify(settings.database_url)
        watch = asyncio.create_task(_watch_schema(settings.database_url))
        await module.main(settings, **options)
        if watch.done():
            watch.result()
        watch.cancel()

    gc.freeze()  # what was imported is here to stay: collections needn't look at it
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


async def _watch_schema(url: str) -> None:
    """Ends the process, with what to do, when a deploy has made the schema too new for it."""
    from . import schema

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
    from . import up as supervisor

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


@app.command()
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
    from .worker import Options

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


@app.command()
def check() -> None:
    """List broken invariants. Exit status 1 when there are any."""
    rows = _run(_call("check"))
    for row in rows:
        print(f"{row['invariant']}: {row['subject']}: {row['detail']}")
    if rows:
        raise typer.Exit(1)
    print("every invariant holds")


@app.command()
def verbs(pattern: Annotated[str, typer.Argument(help="Part of a name.")] = "") -> None:
    """List the functions of orc: what psql, triggers and other languages call."""
    table = Table("verb", "purpose", box=None, pad_edge=False)
    for row in _run(_call("help", pattern=pattern)):
        table.add_row(f"[bold]{row['verb']}[/]({row['arguments']})", row["purpose"])
    Console().print(table)


@app.command()
def bench(
    only: Annotated[str, typer.Option(help="Some figures, with commas.")] = "",
    scale: Annotated[float, typer.Option(min=0.001, max=10, help="Of the rows.")] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="One object instead of a table.")] = False,
) -> None:
    """Measure this machine: each figure beside a floor of bare SQL, on a server of its own."""
    from . import bench as measure

    names = [name for name in only.split(",") if name]
    raise typer.Exit(measure.run(names, scale, as_json))


@app.command()
def guide(topic: Annotated[str, typer.Argument(help="None: what there is.")] = "") -> None:
    """Print a page of the guide, or list them."""
    from . import guide as pages

    try:
        pages.show(topic)
    except LookupError as error:
        raise typer.BadParameter(str(error), param_hint="topic") from None


@app.command()
def version() -> None:
    """Say which version this is."""
    print(f"orchestrator {__version__}")


async def _call(verb: str, **arguments: Any) -> list[db.Row]:
    async with await db.connect(_settings().database_url) as connection:
        return await db.call(connection, verb, **arguments)


@language.command()
def lint(
    files: Annotated[list[Path], typer.Argument(help="JSON (.json) or YAML.", metavar="FILE…")],
    output: Annotated[Literal["text", "json"], typer.Option("-o", "--output")] = "text",
) -> None:
    """Say everything that is wrong with pipelines. Exit status 1 when there are errors."""
    from .pipelines import source

    found = [problem for file in files for problem in source.lint(file)]
    if output == "json":
        print(msgspec.json.encode(found).decode())
    else:
        print("\n".join(map(str, found)) or "nothing is wrong")
    if any(problem.severity == "error" for problem in found):
        raise typer.Exit(1)


@secret.command("set")
def secret_set(name: str, tenant: Tenant = "default") -> None:
    """Set a secret. Its value comes from standard input, or is asked for."""
    from . import secrets

    if sys.stdin.isatty():
        value = typer.prompt(f"Value of {name}", hide_input=True, confirmation_prompt=True)
    else:
        value = sys.stdin.read().removesuffix("\n").removesuffix("\r")
    try:
        row = secrets.sealed(config.load(), tenant, name, value)
    except secrets.Missing as error:
        raise Misconfigured(f"secret {name} {error}") from None
    (put,) = _run(_call("put_secret", **row))
    print("set" if put["created"] else "replaced")


@secret.command("list")
def secret_list(tenant: Tenant = "default") -> None:
    """List the secrets of a tenant: their names, not what they are."""
    for row in _run(_call("list_secrets", tenant=tenant)):
        print(
            f"{row['name']}  key {row['key_id']}, {row['created_at']:%Y-%m-%d %H:%M} by {row['by']}"
        )


@secret.command("delete")
def secret_delete(name: str, tenant: Tenant = "default") -> None:
    """Delete a secret."""
    _run(_call("delete_secret", tenant=tenant, name=name))
    print("deleted")


@database.command("up")
def db_up() -> None:
    """Start the embedded PostgreSQL of this folder."""
    from . import devpg

    cluster = devpg.start(config.load().data)
    print(f"PostgreSQL {cluster.version} listens at {cluster.tcp_url}")


@database.command("down")
def db_down() -> None:
    """Stop it."""
    from . import devpg

    print("stopped" if devpg.stop(config.load().data) else "it was not running")


@database.command("url")
def db_url() -> None:
    """Print the database's URL, for other tools."""
    from . import devpg

    settings = config.load()
    url = _url(settings)
    cluster = None if settings.database_url else devpg.status(settings.data)
    print(cluster.tcp_url if cluster else url)


@database.command(
    "psql", context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
)
def db_psql(context: typer.Context) -> None:
    """Open psql on the database; arguments go to psql."""
    _tool("psql", context.args)


@database.command(
    "dump", context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
)
def db_dump(context: typer.Context) -> None:
    """Write the database to standard output, by pg_dump; arguments go to pg_dump."""
    _tool("pg_dump", context.args)


def _tool(name: str, arguments: list[str]) -> None:
    """The bundled tool, so that nothing need be installed."""
    from . import devpg

    devpg.exec_tool(name, arguments, _settings().database_url)


@database.command("install")
def db_install() -> None:
    """Install the schema, or bring it up to date: migrations, then verbs."""
    from . import schema

    _report(_run(schema.install(_settings().database_url)))


@database.command("migrate")
def db_migrate() -> None:
    """Apply the migrations that are missing."""
    from . import schema

    _report(_run(schema.migrate(_settings().database_url)))


@database.command("reload")
def db_reload() -> None:
    """Replace the verbs, while calls go on."""
    from . import schema

    _report(_run(schema.replace_verbs(_settings().database_url)))


def _report(report: Any) -> None:
    print("\n".join(report.done) or "nothing to do")


@database.command("status")
def db_status() -> None:
    """Say which server this is and what state the schema is in."""
    from . import schema

    print(_run(schema.status(_settings().database_url)))


@database.command("reset")
def db_reset(yes: Yes = False) -> None:
    """Drop the schema with all of its data, and install it anew."""
    from . import schema

    settings = _settings()
    if not yes:
        typer.confirm("Every task, run and event goes. Sure?", abort=True)
    _run(schema.reset(settings.database_url, yes=True))
    _report(_run(schema.install(settings.database_url)))


if __name__ == "__main__":
    main()
