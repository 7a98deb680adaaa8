"""`GET /tools`: what a caller's steps may use."""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Annotated, Any, Literal

import msgspec

from .. import db
from ..config import READERS, Config
from ..errors import Misconfigured
from ..wire import Call, Endpoint, Instant, Principal, Request
from . import Kind, builtins, catalog, mcp
from .plugins import plugins

Source = Literal["builtin", "plugin", "catalog", "mcp"]


class Tool(msgspec.Struct, kw_only=True):
    """What `uses` may name. `recorded`: its answer is kept, and it isn't done again. `keyed`: it
    sends the step's key, so doing it again does no harm. `outside`: it can't be taken back."""

    name: str
    source: Source
    provider: str = ""  # the MCP server, or the distribution of a plug-in
    description: str = ""
    input_schema: dict[str, Any] | None = None
    output_schema: dict[str, Any] | None = None
    scopes: list[str] = []
    recorded: bool = True
    keyed: bool = False
    outside: bool = True
    needs: str | None = None  # a setting that the operator hasn't given, as far as the API knows
    problem: str | None = None  # why it can't be used now
    seen_at: Instant | None = None  # when its server was asked last


class Server(msgspec.Struct):
    """An MCP server, when it answered last, and why it doesn't now."""

    name: str
    seen_at: Instant | None
    problem: str | None


class Tools(msgspec.Struct):
    """A page of tools by name, and the servers that tools may come from."""

    items: list[Tool]
    next_cursor: str | None
    servers: list[Server]
    problems: list[str]


class ToolQuery(Request):
    q: str = ""  # a part of the name
    source: Source | msgspec.UnsetType = msgspec.UNSET
    cursor: str = ""
    limit: Annotated[int, msgspec.Meta(ge=1, le=200)] = 100


def of_kind(kind: Kind, config: Config, source: Source = "builtin", provider: str = "") -> Tool:
    needs = kind.needs if kind.needs and not getattr(config, READERS[kind.needs][0]) else None
    return Tool(
        name=kind.name,
        source=source,
        provider=provider,
        description=description(kind),
        input_schema=arguments(kind),
        recorded=kind.recorded,
        keyed=kind.keyed,
        outside=kind.outside,
        needs=needs,
    )


def description(kind: Kind) -> str:
    """The first paragraph of its file, without its name."""
    text = inspect.getdoc(sys.modules.get(getattr(kind.run, "__module__", ""))) or ""
    first = " ".join(text.partition("\n\n")[0].split())
    return first.removeprefix(f"`{kind.name}`: ")


def arguments(kind: Kind) -> dict[str, Any] | None:
    if kind.name == "set":
        return {"type": "object"}
    try:
        return msgspec.json.schema(kind.arguments)
    except TypeError:  # a plug-in's, of a type that has no schema
        return None


def _of_entry(entry: catalog.Entry) -> Tool:
    return Tool(
        name=entry.address,
        source="catalog",
        description=entry.description,
        input_schema=entry.input_schema,
        output_schema=entry.output_schema,
        scopes=entry.scopes,
    )


def _of_row(row: db.Row) -> Tool:
    return Tool(
        name=f"{row['server']}.{row['tool']}",
        source="mcp",
        provider=row["server"],
        description=row["description"] or "",
        input_schema=row["input_schema"],
        output_schema=row["output_schema"],
        problem=row["problem"],
        seen_at=row["seen_at"],
    )


def every(config: Config, entries: Iterable[catalog.Entry], rows: list[db.Row]) -> dict[str, Tool]:
    """By name. Where two have one, the first is what a step gets."""
    found = [of_kind(kind, config) for kind in builtins().values() if not kind.inner]
    for plugin in plugins().values():
        tool = of_kind(plugin.kind, config, "plugin", plugin.distribution)
        tool.problem = plugin.problem or None
        found.append(tool)
    found += map(_of_entry, entries)
    found += (_of_row(row) for row in rows if row["tool"] is not None)
    return {tool.name: tool for tool in reversed(found)}


def _page(tools: dict[str, Tool], query: ToolQuery, principal: Principal) -> Iterator[Tool]:
    for name in sorted(tools):
        tool = tools[name]
        if name <= query.cursor or query.q.lower() not in name.lower():
            continue
        if query.source in (msgspec.UNSET, tool.source) and all(map(principal.may, tool.scopes)):
            yield tool


async def _tools(call: Call) -> Tools:
    """Built-in kinds, plug-ins, the catalogue, and what workers saw at MCP servers.

    Of the catalogue, a caller sees the tools whose scopes it has. A kind that needs a setting which
    the operator hasn't given says which. MCP servers are asked by workers, once an hour and when
    their entry changes; `seen_at` says when.
    """
    assert call.principal is not None
    config, query = call.app.config, call.query
    problems: list[str] = []
    rows = await call.app.pool.call("list_tools")
    entries: Iterable[catalog.Entry] = ()
    try:
        if config.mcp_servers_path is not None:
            known = mcp.servers(config)
            rows = [row for row in rows if row["server"] in known]
        entries = catalog.entries(config).values()
    except Misconfigured as error:
        problems.append(str(error).partition("=")[0] + " names a file that can't be used")
    tools = await asyncio.to_thread(every, config, entries, rows)  # imports, the first time
    page = list(islice(_page(tools, query, call.principal), query.limit + 1))
    more = len(page) > query.limit
    servers = {row["server"]: Server(row["server"], row["seen_at"], row["problem"]) for row in rows}
    items = page[: query.limit]
    return Tools(items, items[-1].name if more else None, list(servers.values()), problems)


ENDPOINTS = [
    Endpoint("GET", "/tools", "list_tools", query=ToolQuery, returns=Tools, scope="tools:read",
             handler=_tools, summary="What steps may use, with the schemas of its arguments"),
]  # fmt: skip
