"""What there is, what holds, and how fast it is."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import __version__
from . import core

app = typer.Typer()


@app.command()
def check(output: core.Output = "table") -> None:
    """List broken invariants. Exit status 1 when there are any."""
    rows = core.call("check")
    if output == "table":
        for row in rows:
            print(f"{row['invariant']}: {row['subject']}: {row['detail']}")
        if not rows:
            print("every invariant holds")
    else:
        core.show(rows, output, (), key="invariant")
    if rows:
        raise typer.Exit(core.Exit.WRONG)


@app.command()
def verbs(
    pattern: Annotated[str, typer.Argument(help="Part of a name.")] = "",
    output: core.Output = "table",
) -> None:
    """List the functions of orc: what psql, triggers and other languages call."""
    rows = core.call("help", pattern=pattern)
    called = [{**row, "call": f"{row['verb']}({row['arguments']})"} for row in rows]
    core.show(called, output, ("call", "purpose"), key="verb")


@app.command()
def bench(
    only: Annotated[str, typer.Option(help="Some figures, with commas.")] = "",
    scale: Annotated[float, typer.Option(min=0.001, max=10, help="Of the rows.")] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="One object instead of a table.")] = False,
) -> None:
    """Measure this machine: each figure beside a floor of bare SQL, on a server of its own."""
    from .. import bench as measure

    names = [name for name in only.split(",") if name]
    raise typer.Exit(measure.run(names, scale, as_json))


@app.command()
def guide(topic: Annotated[str, typer.Argument(help="None: what there is.")] = "") -> None:
    """Print a page of the guide, or list them."""
    from .. import guide as pages

    try:
        pages.show(topic)
    except LookupError as error:
        raise typer.BadParameter(str(error), param_hint="topic") from None


@app.command()
def version() -> None:
    """Say which version this is."""
    print(f"orchestrator {__version__}")
