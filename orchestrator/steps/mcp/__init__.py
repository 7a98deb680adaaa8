"""Tools of MCP servers: `<server>.<tool>`, over pipes or streamable HTTP.

One process and one session a server, shared by all calls, which the protocol tells apart by number.
A call that is canceled or too late is canceled at the server, too. The SDK is imported by the first
call, in a thread, because that takes most of a second.
"""

from __future__ import annotations

import asyncio
from importlib import import_module
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from ... import traces
from .. import Context, Fail, Outcome, Retry
from .servers import Server, Silent, named, servers

if TYPE_CHECKING:
    from .pool import Pool
    from .session import Tool

__all__ = [
    "Server", "Silent", "call", "call_at", "close", "named", "servers", "sessions", "tools_of",
]  # fmt: skip

_POOLS: WeakKeyDictionary[asyncio.AbstractEventLoop, Pool] = WeakKeyDictionary()


async def sessions() -> Pool:
    """The sessions of this loop."""
    loop = asyncio.get_running_loop()
    if loop not in _POOLS:
        module = await asyncio.to_thread(import_module, f"{__name__}.pool")
        _POOLS.setdefault(loop, module.Pool())
    return _POOLS[loop]


async def close() -> None:
    """Ends every session of this loop, and its process."""
    if made := _POOLS.pop(asyncio.get_running_loop(), None):
        await made.close()


async def call(context: Context, address: str, arguments: dict[str, Any]) -> Outcome:
    """`<server>.<tool>` of the operator's file. Raises Misconfigured."""
    name, _, tool = address.partition(".")
    server = named(context.config, name)
    return await call_at(context, name, server, address, (tool,), arguments)


async def call_at(
    context: Context,
    name: str,
    server: Server,
    address: str,
    tools: tuple[str, ...],
    arguments: dict[str, Any],
    seconds: float | None = None,
) -> Outcome:
    """The first of these tools that the server has."""
    pool = await sessions()
    from .calling import Asked, call  # with the SDK, which is imported by now

    facts = {"mcp.method.name": "tools/call", "mcp.tool.name": tools[-1]}
    with traces.begin("MCP tools/call", context.traceparent, "client", facts) as span:
        said = meta(context, span.traceparent)
        outcome = await call(pool, name, server, Asked(address, tools, arguments, said, seconds))
        if isinstance(outcome, Retry | Fail):
            span.fail(outcome.type)
        return outcome


KEY = "orchestrator/idempotency-key"


def meta(context: Context, traceparent: str | None) -> dict[str, Any]:
    """What goes beside the arguments: the same key on every attempt, and the trace."""
    said = {KEY: context.key, "traceparent": traceparent}
    return {name: value for name, value in said.items() if value}


async def tools_of(name: str, server: Server) -> list[Tool]:
    """What the server offers. Raises Silent and Misconfigured."""
    pool = await sessions()
    from .calling import tools

    return await tools(pool, name, server)
