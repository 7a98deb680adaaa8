"""orc db …: the database and its schema."""

from __future__ import annotations

from typing import Any

import typer

from .. import config
from . import core

app = core.group("The database and its schema.")


@app.command("up")
def db_up() -> None:
    """Start the embedded PostgreSQL of this folder."""
    from .. import devpg

    cluster = devpg.start(config.load().data)
    print(f"PostgreSQL {cluster.version} listens at {cluster.tcp_url}")


@app.command("down")
def db_down() -> None:
    """Stop it."""
    from .. import devpg

    print("stopped" if devpg.stop(config.load().data) else "it was not running")


@app.command("url")
def db_url() -> None:
    """Print the database's URL, for other tools."""
    from .. import devpg

    settings = config.load()
    url = core.url(settings)
    cluster = None if settings.database_url else devpg.status(settings.data)
    print(cluster.tcp_url if cluster else url)


@app.command("psql", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def db_psql(context: typer.Context) -> None:
    """Open psql on the database; arguments go to psql."""
    _tool("psql", context.args)


@app.command("dump", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def db_dump(context: typer.Context) -> None:
    """Write the database to standard output, by pg_dump; arguments go to pg_dump."""
    _tool("pg_dump", context.args)


def _tool(name: str, arguments: list[str]) -> None:
    """The bundled tool, so that nothing need be installed."""
    from .. import devpg

    devpg.exec_tool(name, arguments, core.settings().database_url)


@app.command("install")
def db_install() -> None:
    """Install the schema, or bring it up to date: migrations, then verbs."""
    from .. import schema

    _report(core.run(schema.install(core.settings().database_url)))


@app.command("migrate")
def db_migrate() -> None:
    """Apply the migrations that are missing."""
    from .. import schema

    _report(core.run(schema.migrate(core.settings().database_url)))


@app.command("reload")
def db_reload() -> None:
    """Replace the verbs, while calls go on."""
    from .. import schema

    _report(core.run(schema.replace_verbs(core.settings().database_url)))


def _report(report: Any) -> None:
    print("\n".join(report.done) or "nothing to do")


@app.command("status")
def db_status() -> None:
    """Say which server this is and what state the schema is in."""
    from .. import schema

    print(core.run(schema.status(core.settings().database_url)))


@app.command("reset")
def db_reset(yes: core.Yes = False) -> None:
    """Drop the schema with all of its data, and install it anew."""
    from .. import schema

    settings = core.settings()
    core.sure("Every task, run and event goes. Sure?", yes)
    core.run(schema.reset(settings.database_url, yes=True))
    _report(core.run(schema.install(settings.database_url)))
