"""One call of a tool, and what became of it."""

from __future__ import annotations

from asyncio import timeout
from typing import Any, NamedTuple

from mcp.shared.exceptions import MCPError
from pydantic import ValidationError

from .. import Fail, Outcome, Retry
from . import answers
from .pool import Pool
from .servers import Server, Silent, nearest
from .session import Lost, Session, Tool


class Asked(NamedTuple):
    """A call: the first of these tools that the server has."""

    address: str
    tools: tuple[str, ...]
    arguments: dict[str, Any]
    meta: dict[str, Any]
    seconds: float | None = None


async def call(pool: Pool, name: str, server: Server, asked: Asked) -> Outcome:
    limit, address = asked.seconds or pool.limits.call, asked.address
    try:
        async with timeout(limit), pool.session(name, server) as session:
            outcome = await _call(session, asked)
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


async def _call(session: Session, asked: Asked) -> Outcome:
    address, arguments = asked.address, asked.arguments
    tool = await session.tool(*asked.tools)
    if tool is None:
        way_out = nearest(asked.tools[0], session.tools)
        return Fail("configuration", f"{session.name!r} has no tool {asked.tools[0]!r}{way_out}")
    if problem := answers.unkeepable(arguments):
        return Fail("validation", f"the arguments of {address} {problem}")
    if tool.arguments and (wrong := tool.arguments.complaint(arguments)):
        return Fail("validation", f"the arguments of {address} are wrong: {wrong}")
    answer = await session.call(tool.name, arguments, asked.meta)
    return answers.outcome(address, tool, answer)


async def tools(pool: Pool, name: str, server: Server) -> list[Tool]:
    try:
        async with pool.session(name, server) as session:
            pool.works(name)
            return await session.offered()
    except (Lost, MCPError, ValidationError, RuntimeError) as error:
        raise Silent(str(error)) from error
