"""The command line: a file for each noun, over one core.

A command is a few lines over what the other modules do. A new noun is a file here with its `app`,
and a line below.
"""

from __future__ import annotations

from . import about, core, database, pipeline, processes, runs, secret

app = core.group(
    "Jobs, schedules and agents on the Postgres that you already have.",
    name="orc",
    epilog=core.STATUSES,
)
for commands in (processes, runs, about):
    app.registered_commands += commands.app.registered_commands
app.add_typer(database.app, name="db")
app.add_typer(pipeline.app, name="pipeline")
app.add_typer(secret.app, name="secret")


def main() -> None:
    core.guarded(app)
