"""orc retry --where …, and orc explain."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

import typer

from . import core
from .commands import Command, instant, value, words
from .nouns import FILTER
from .remote import Remote, remote

app = typer.Typer()


@app.command()
def retry(
    where: Annotated[
        list[str],
        typer.Option(metavar="NAME=VALUE", help="As of `orc run list`; may be repeated."),
    ],
    per_second: Annotated[float, typer.Option(min=0.001, help="How many start in a second.")] = 100,
    most: Annotated[int, typer.Option(min=1, max=10_000, help="The oldest first.")] = 1000,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say which, and do nothing.")] = False,
    yes: core.Yes = False,
    output: core.Output = "table",
) -> None:
    """Retry failed runs that weren't retried yet, by a filter.

    Asks, with their number, unless --yes says so.

    orc retry --where error_type=timeout --where start_time=2h --per-second 5
    """
    body = {"where": _filter(where), "per_second": per_second, "most": most}
    if not (dry_run or yes):
        would = core.run(_retry({**body, "dry_run": True}))
        if would["count"]:
            core.sure(f"{would['count']} runs are retried. Sure?", yes)
    done = core.run(_retry({**body, "dry_run": dry_run}))
    key = "run" if dry_run else "retried_as"
    core.show(done["items"], output, ("run", "retried_as")[: 2 - dry_run], key)
    if output == "table":
        core.note(f"{done['count']} runs {'would be' if dry_run else 'are'} retried")


def _filter(said: list[str]) -> dict[str, Any]:
    """NAME=VALUE, with the names and values of the options of `orc run list`."""
    known = {word.field: word for word in words(Command("", "", "", "", FILTER))}
    found: dict[str, Any] = {}
    for one in said:
        name, sign, text = one.partition("=")
        word = known.get(name.replace("-", "_"))
        if word is None or not sign:
            names = ", ".join(known)
            raise core.Failure(f"--where {one}: NAME=VALUE, with one of {names}", core.Exit.USAGE)
        choices = ["true", "false"] if word.kind == "bool" else word.kind.split("|")
        if len(choices) > 1 and text not in choices:
            raise core.Failure(f"--where {one}: one of {', '.join(choices)}", core.Exit.USAGE)
        found[word.field] = text == "true" if word.kind == "bool" else value(word, text)
    return found


async def _retry(body: dict[str, Any]) -> dict[str, Any]:
    async with remote() as api:
        answer: dict[str, Any] = await api.ask("POST", "/runs/retry", body=body)
        return answer


@app.command()
def explain(
    id: Annotated[UUID, typer.Argument(help="Of a run, or of a task with --at.")],
    at: Annotated[str, typer.Option(help="An instant at which the task did not run.")] = "",
    output: core.Output = "table",
) -> None:
    """Say why a run is where it is, or why a task did not run.

    Every cause, with its evidence and when it clears."""
    causes = core.run(_causes(str(id), _instant(at) if at else ""))
    if output != "table":
        core.show(causes, output, (), key="cause")
        return
    for cause in causes:
        facts = ", ".join(f"{name} {core.cell(fact)}" for name, fact in cause["evidence"].items())
        print(core.cell(cause["cause"]) + (f": {facts}" if facts else ""))
        if cause["clears"]:
            print(f"  clears {core.cell(cause['clears'])}")


def _instant(text: str) -> str:
    try:
        return instant(text)
    except ValueError as error:
        raise core.Failure(f"--at: {error}", core.Exit.USAGE) from None


async def _causes(id: str, at: str) -> list[dict[str, Any]]:
    async with remote() as api:
        return await _of_task(api, id, at) if at else await _of_run(api, id)


async def _of_task(api: Remote, id: str, at: str) -> list[dict[str, Any]]:
    causes: list[dict[str, Any]] = await api.ask("GET", f"/tasks/{id}/why_not", {"instant": at})
    return causes


async def _of_run(api: Remote, id: str) -> list[dict[str, Any]]:
    try:
        causes: list[dict[str, Any]] = await api.ask("GET", f"/runs/{id}/why")
    except core.Failure as error:
        if "not found" not in str(error):
            raise
        raise core.Failure(f"{error}\n  of a task: --at says which instant is meant") from None
    return causes
