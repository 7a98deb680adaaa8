"""A tool of the operator: an address of the catalogue, or `<server>.<tool>` of an MCP server.

What is behind an address is looked up at every call, so both files may change while runs wait.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from ..errors import Misconfigured
from . import Context, Fail, Kind, Outcome, catalog, mcp


def kind(address: str) -> Kind:
    return Kind(address, dict[str, Any], partial(_run, address), outside=True)


async def _run(address: str, arguments: dict[str, Any], context: Context) -> Outcome:
    try:
        entry = catalog.entries(context.config).get(address)
        if entry is not None:
            return await catalog.call(context, entry, arguments)
        return await mcp.call(context, address, arguments)
    except Misconfigured as problem:
        return Fail("configuration", f"{address}: {problem}")
