"""orc pipeline …: documents as files."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .. import config
from . import core

app = core.group("Pipelines as files.")


@app.command()
def lint(
    files: Annotated[list[Path], typer.Argument(help="JSON (.json) or YAML.", metavar="FILE…")],
    output: Annotated[Literal["text", "json"], typer.Option("-o", "--output")] = "text",
    strict: Annotated[bool, typer.Option("--strict", help="Unknown tools are errors.")] = False,
) -> None:
    """Say everything that is wrong with pipelines. Exit status 1 when there are errors.

    A tool is known when it is built in, or the tool catalogue or an MCP server of this
    environment (TOOL_CATALOG_PATH, MCP_SERVERS_PATH) has it.
    """
    from ..pipelines import source

    tools = core.run(_tools(config.load(), files))
    found = [problem for file in files for problem in source.lint(file, tools, strict)]
    if output == "json":
        core.say(found)
    else:
        print("\n".join(map(str, found)) or "nothing is wrong")
    if any(problem.severity == "error" for problem in found):
        raise typer.Exit(core.Exit.WRONG)


async def _tools(settings: config.Config, files: list[Path]) -> dict[str, Any]:
    """By name, with the schema of their arguments where one is known."""
    from .. import steps
    from ..steps import catalog, mcp

    known: dict[str, Any] = dict.fromkeys(steps.builtins())
    servers = mcp.servers(settings)
    if _mention(files, servers):
        try:
            listed = await catalog.tools(settings)
        finally:
            await steps.close()
        known |= {tool.address: _shape(tool.input_schema) for tool in listed}
        for name in set(servers) - {tool.source for tool in listed}:
            core.note(f"the server {name} didn't say which tools it has: they count as unknown")
    else:
        listed_here = catalog.entries(settings).values()
        known |= {entry.address: _shape(entry.input_schema) for entry in listed_here}
    return known


def _mention(files: list[Path], servers: Collection[str]) -> bool:
    """Whether a server has to be asked: it's started for that."""
    texts = [file.read_bytes() for file in files if file.is_file()]
    return any(f"{name}.".encode() in text for name in servers for text in texts)


def _shape(schema: dict[str, Any] | None) -> Any:
    """A schema that can't be used here is the tool's matter, not the document's."""
    from ..pipelines.shapes import Shape

    try:
        return None if schema is None else Shape(schema)
    except ValueError:
        return None
