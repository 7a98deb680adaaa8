"""Which tools the operator's MCP servers have: asked by workers, kept in Postgres, listed by all.

Whoever answers requests starts no servers. So each server is asked by one of the workers, when it's
new, when its entry in the file changes, and once an hour.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.types.json import Jsonb

from .. import db, wire
from ..config import Config
from ..errors import Misconfigured, Unavailable
from ..telemetry import log
from . import mcp

if TYPE_CHECKING:
    from .mcp.session import Tool

LOOK_SECONDS = 60.0
ANSWER_SECONDS = 60.0
MOST_BYTES = 1_000_000
DEEPEST = wire.MAX_DEPTH - 2
"""A list and an object are around a tool when it's kept."""


class Survey:
    def __init__(self, config: Config) -> None:
        self.config = config
        self.known: dict[str, mcp.Server] = {}

    async def keep(self) -> None:
        """Until it is canceled."""
        while True:
            try:
                await self.once()
            except (psycopg.Error, Unavailable, Misconfigured) as error:
                log("tools_not_looked_at", "warning", error=str(error)[:500])
            await asyncio.sleep(LOOK_SECONDS)

    async def once(self) -> int:
        """How many servers were asked."""
        servers = mcp.servers(self.config)
        if not servers:
            return 0
        known, self.known = self.known, dict(servers)
        changed = [name for name in servers if known.get(name, servers[name]) != servers[name]]
        asked = await self._call("ask_tool_servers", servers=list(servers))
        if changed:
            asked += await self._call("ask_tool_servers", servers=changed, fresh_for=0.0)
        names = {row["name"] for row in asked} & servers.keys()
        await asyncio.gather(*(self._ask(name, servers[name]) for name in sorted(names)))
        return len(names)

    async def _ask(self, name: str, server: mcp.Server) -> None:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                found = await mcp.tools_of(name, server)
        except (mcp.Silent, Misconfigured, TimeoutError) as error:
            why = str(error) or f"it didn't answer within {ANSWER_SECONDS:g} s"
            log("mcp_server_unlisted", "warning", server=name, error=why[:500])
            await self._call("report_tools", server=name, problem=_storable(why)[:1000])
            return
        await self._call("report_tools", server=name, tools=Jsonb(_kept(name, found)))

    async def _call(self, verb: str, **arguments: Any) -> list[db.Row]:
        """On a connection of its own, for a moment."""
        connection = await db.connect(
            self.config.database_url,
            role="orc_worker",
            timeout=self.config.database_timeout,
            application="orchestrator survey",
            pooler=self.config.database_pooler,
        )
        async with connection:
            return await db.call(connection, verb, **arguments)


def _kept(server: str, found: list[Tool]) -> list[dict[str, Any]]:
    """As many as there's room for; a schema that can't be kept is left out."""
    kept: list[dict[str, Any]] = []
    room = float(MOST_BYTES)
    for tool in found:
        said = {"name": tool.name, "description": tool.description,
                "input_schema": tool.input_schema, "output_schema": tool.output_schema}  # fmt: skip
        if _size(said) > room:
            said |= {"input_schema": None, "output_schema": None}
        if (size := _size(said)) <= room:
            room -= size
            kept.append(said)
    if len(kept) < len(found):
        log("tools_left_out", "warning", server=server, count=len(found) - len(kept))
    return kept


def _size(said: dict[str, Any]) -> float:
    """Of what can't be kept: endless."""
    if wire.unkeepable(said):
        return float("inf")
    data = wire.encode(said)
    return float("inf") if wire.is_too_deep(data, DEEPEST) else len(data)


def _storable(text: str) -> str:
    return text.replace("\0", "\ufffd").encode(errors="replace").decode()


async def keep(config: Config) -> None:
    await Survey(config).keep()
