"""One server, one warm session: from its start until it is idle, replaced, lost or closed."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import mcp_types as types
import msgspec
from mcp.client.session import ClientSession
from mcp.shared.exceptions import MCPError
from pydantic import TypeAdapter

from ... import __version__
from ...errors import Misconfigured
from ...shape import Shape, tolerant
from ...telemetry import log
from .. import words
from . import http, stdio
from .servers import Server

US = types.Implementation(name="orchestrator", version=__version__)
PAGES = 100
RELIST_SECONDS = 5.0
"""A tool that isn't known is looked for again, but not more often."""

EXPLAIN_SECONDS = 0.5

for _name in ("mcp", "client"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)
"""The SDK's loggers quote what servers say, secrets and all. What matters is in our errors."""

T = TypeVar("T")
Answer = types.CallToolResult | types.InputRequiredResult
ANSWER: TypeAdapter[Answer] = TypeAdapter(Answer)


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    sessions: int = 32
    idle: float = 300.0  # seconds without a call, then the session is closed
    start: float = 60.0  # seconds until a server has said what it can do
    call: float = 120.0
    first_delay: float = 0.1  # before a server that broke is started again; doubled each time
    longest_delay: float = 30.0
    patience: float = 5.0  # a longer delay is the run's, not the call's
    close: float = 2.0


class Lost(Exception):
    """The session is over, and with it every call."""

    def __init__(self, message: str, delay: float | None = None) -> None:
        super().__init__(message)
        self.delay = delay


class Tool:
    """What a server says of a tool. A schema that isn't one checks nothing."""

    def __init__(self, tool: types.Tool) -> None:
        self.name = tool.name
        self.description = tool.description or tool.title or ""
        self.input_schema = tool.input_schema
        self.output_schema = tool.output_schema
        self.arguments = _usable(tool.name, tool.input_schema)
        self.results = _usable(tool.name, tool.output_schema)


def _usable(tool: str, schema: dict[str, Any] | None) -> Shape | None:
    try:
        return tolerant(schema) if schema else None
    except ValueError as error:
        log("schema_unusable", "warning", tool=tool, error=str(error)[:500])
        return None


class Session:
    def __init__(
        self, name: str, server: Server, limits: Limits, broke: Callable[[str], None]
    ) -> None:
        self.name = name
        self.server = server
        self.tools: dict[str, Tool] = {}
        self.calls = 0
        self.used_at = time.monotonic()
        self._broke = broke  # hears at once that it ends, and that nobody asked it to
        self._limits = limits
        self._client: ClientSession | None = None
        self._why: tuple[type[Exception], str] | None = None
        self._retired = self._ending = False
        self._listed_at = 0.0
        self._stirred = asyncio.Event()
        self._settled = asyncio.Event()  # it can be called, or it never will be
        self._listing = asyncio.Lock()
        alone = contextvars.Context()  # of no call, though the first one starts it
        self.task = asyncio.create_task(self._live(), name=f"mcp {name}", context=alone)

    @property
    def usable(self) -> bool:
        return not (self._retired or self._ending or self._why or self.task.done())

    # Life

    async def _live(self) -> None:
        connect = stdio.connect if self.server.command else http.connect
        try:
            async with (
                connect(self.server, self._lose) as (incoming, outgoing),
                ClientSession(
                    incoming, outgoing, message_handler=self._notice, client_info=US
                ) as client,
            ):
                await self._start(client)
                await self._until_over()
        except Exception as error:
            self._lose(*_cause(error))
        finally:
            self._ending = True
            self._settled.set()
            log("mcp_session_ended", server=self.name, why=(self._why or ("", "closed"))[1])

    async def _start(self, client: ClientSession) -> None:
        try:
            async with asyncio.timeout(self._limits.start):
                await _introduce(client)
                self._client = client
                await self._list()
        except TimeoutError:
            self._lose(f"didn't answer within {self._limits.start:g} s of its start")
            raise
        self._settled.set()
        log("mcp_session_started", server=self.name, tools=len(self.tools))

    async def _until_over(self) -> None:
        while self._why is None:
            self._stirred.clear()
            rest = self.used_at + self._limits.idle - time.monotonic()
            if not self.calls and (self._retired or rest <= 0):
                return
            try:
                await asyncio.wait_for(self._stirred.wait(), None if self.calls else rest)
            except TimeoutError:
                continue

    def _lose(self, why: str, kind: type[Exception] = Lost) -> None:
        """The first reason is the one that counts."""
        if self._why is None and not self._ending:
            self._why = (kind, f"MCP server {self.name!r} {why}")
            self._broke(self.name)
        self._stirred.set()

    async def _notice(self, message: object) -> None:
        if isinstance(message, types.ToolListChangedNotification):
            self._listed_at = 0.0
            self.tools = {}

    def retire(self) -> None:
        """No new calls; it ends with its last one."""
        self._retired = True
        self._stirred.set()

    def take(self) -> None:
        self.calls += 1
        self._stirred.set()

    def give_back(self) -> None:
        self.calls -= 1
        self.used_at = time.monotonic()
        self._stirred.set()

    # Use

    async def opened(self) -> ClientSession:
        await self._settled.wait()
        if self._client is None or self._ending or self._why:
            raise self._reason()
        return self._client

    def _reason(self) -> Exception:
        kind, why = self._why or (Lost, f"MCP server {self.name!r} was closed")
        return kind(why)

    async def tool(self, *names: str) -> Tool | None:
        """The first of them that the server has."""
        await self.opened()
        for _ in range(2):
            for name in names:
                if name in self.tools:
                    return self.tools[name]
            if time.monotonic() - self._listed_at < RELIST_SECONDS:
                return None
            await self._ask(self._list())
        return None

    async def offered(self) -> list[Tool]:
        """All that the server has."""
        await self.opened()
        if not self.tools:  # it said that they have changed
            await self._ask(self._list())
        return list(self.tools.values())

    async def call(self, tool: str, arguments: dict[str, Any], meta: dict[str, Any]) -> Answer:
        """Raises Lost, and the server's own MCPError. Canceled, it tells the server."""
        client = await self.opened()
        more: Any = {"_meta": meta} if meta else {}
        params = types.CallToolRequestParams(name=tool, arguments=arguments, **more)
        return await self._ask(client.send_request(types.CallToolRequest(params=params), ANSWER))

    async def _ask(self, question: Awaitable[T]) -> T:
        try:
            return await question
        except MCPError as error:
            if _is_over(error):
                await asyncio.wait({self.task}, timeout=0 if self._why else EXPLAIN_SECONDS)
                self._lose(f"is gone: {error}")
                raise self._reason() from None
            if error.code == types.CONNECTION_CLOSED:
                raise Lost(f"MCP server {self.name!r}: {error}") from None
            raise

    async def _list(self) -> None:
        assert self._client
        async with self._listing:
            if time.monotonic() - self._listed_at < RELIST_SECONDS:
                return
            found: dict[str, Tool] = {}
            params = types.PaginatedRequestParams()
            for _ in range(PAGES):
                page = await self._client.list_tools(params=params)
                found.update({tool.name: Tool(tool) for tool in page.tools})
                if not page.next_cursor:
                    break
                params = types.PaginatedRequestParams(cursor=page.next_cursor)
            self.tools = found
            self._listed_at = time.monotonic()


async def _introduce(client: ClientSession) -> None:
    """The handshake that every server knows, or else the one that replaced it in 2026."""
    try:
        await client.initialize()
    except MCPError as error:
        if error.code not in (types.METHOD_NOT_FOUND, types.UNSUPPORTED_PROTOCOL_VERSION):
            raise
        await client.discover()


def _is_over(error: MCPError) -> bool:
    """The SDK's words for a connection that ended, and for a session that a server forgot."""
    said = (error.code, error.message)
    return said in {
        (types.CONNECTION_CLOSED, "Connection closed"),
        (types.INVALID_REQUEST, "Session terminated"),
    }


def _cause(error: BaseException) -> tuple[str, type[Exception]]:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, OSError):
        return f"can't be started: {error}", Misconfigured
    if isinstance(error, MCPError):
        return f"refused to begin: {error}", Lost
    return f"broke: {words(error)}"[:1000], Lost
