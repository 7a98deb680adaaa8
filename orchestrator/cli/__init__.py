"""The command line: a file for each noun, over one core.

What has a route goes over HTTP, with a key (`nouns`, `retry`, `tail`, `login`): scopes, owners,
limits and the audit hold there, and one needs no database. What is about the place itself (`db`,
`queue`, `worker`, `top`, `doctor`, `secret`, `run FILE`, the processes) goes to the database, for
whoever has it. No command goes both ways.
"""

from __future__ import annotations

from . import (
    about,
    core,
    database,
    doctor,
    login,
    nouns,
    pipeline,
    processes,
    queues,
    retry,
    secret,
    tail,
    top,
)

app = core.group(
    "Jobs, schedules and agents on the Postgres that you already have.",
    name="orc",
    epilog=core.STATUSES,
)
for commands in (processes, nouns, retry, tail, top, doctor, login, about):
    app.registered_commands += commands.app.registered_commands
    app.registered_groups += commands.app.registered_groups
app.add_typer(queues.app, name="queue")
app.add_typer(database.app, name="db")
app.add_typer(pipeline.app, name="pipeline")
app.add_typer(secret.app, name="secret")


def main() -> None:
    core.guarded(app)
