"""orc pipeline …: documents as files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .. import config
from ..errors import Misconfigured
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
    from ..steps.plugins import plugins

    known: dict[str, Any] = {**dict.fromkeys(steps.builtins()), **dict.fromkeys(plugins())}
    for entry in catalog.entries(settings).values():
        known[entry.address] = _shape(entry.input_schema)
    asked = {name: it for name, it in mcp.servers(settings).items() if _mention(files, name)}
    try:
        for name, server in asked.items():
            try:
                found = await mcp.tools_of(name, server)
            except (mcp.Silent, Misconfigured) as error:
                core.note(f"the server {name} didn't say which tools it has: {error}")
                continue
            known |= {f"{name}.{tool.name}": _shape(tool.input_schema) for tool in found}
    finally:
        await steps.close()
    return known


def _mention(files: list[Path], server: str) -> bool:
    """Whether a server has to be asked: it's started for that."""
    return any(f"{server}.".encode() in file.read_bytes() for file in files if file.is_file())


def _shape(schema: dict[str, Any] | None) -> Any:
    """A schema that can't be used here is the tool's matter, not the document's."""
    from ..pipelines.shapes import Shape

    try:
        return None if schema is None else Shape(schema)
    except ValueError:
        return None
