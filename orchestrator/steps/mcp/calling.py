"""One call of a tool, and what became of it."""

from __future__ import annotations

from asyncio import timeout
from typing import Any

from mcp.shared.exceptions import MCPError
from pydantic import ValidationError

from .. import Fail, Outcome, Retry
from . import answers
from .pool import Pool
from .servers import Server, Silent, nearest
from .session import Lost, Session, Tool


async def call(
    pool: Pool,
    name: str,
    server: Server,
    address: str,
    tools: tuple[str, ...],
    arguments: dict[str, Any],
    seconds: float | None,
) -> Outcome:
    limit = seconds or pool.limits.call
    try:
        async with timeout(limit), pool.session(name, server) as session:
            outcome = await _call(session, address, tools, arguments)
            pool.works(name)
            return outcome
    except TimeoutError:
        return Retry("timeout", f"{address} took longer than {limit:g} s")
    except Lost as lost:
        return Retry("communication", f"{address}: {lost}", lost.delay)
    except MCPError as error:
        return answers.refused(address, error.code, error.message, error.data)
    except (ValidationError, RuntimeError) as error:
        return Fail("validation", f"what {address} answered isn't MCP: {error}"[:1000])


async def _call(
    session: Session, address: str, tools: tuple[str, ...], arguments: dict[str, Any]
) -> Outcome:
    tool = await session.tool(*tools)
    if tool is None:
        way_out = nearest(tools[0], session.tools)
        return Fail("configuration", f"{session.name!r} has no tool {tools[0]!r}{way_out}")
    if problem := answers.unkeepable(arguments):
        return Fail("validation", f"the arguments of {address} {problem}")
    if tool.arguments and (wrong := tool.arguments.problems(arguments)):
        return Fail("validation", f"the arguments of {address} are wrong: {wrong}")
    return answers.outcome(address, tool, await session.call(tool.name, arguments))


async def tools(pool: Pool, name: str, server: Server) -> list[Tool]:
    try:
        async with pool.session(name, server) as session:
            pool.works(name)
            return list(session.tools.values())
    except (Lost, MCPError, ValidationError, RuntimeError) as error:
        raise Silent(str(error)) from error
