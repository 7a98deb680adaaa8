"""The operator's tool catalogue: addresses, where they are, what they take and answer."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from .. import wire
from ..config import Config
from ..guard import Answer
from ..shape import Shape
from . import Context, Done, Fail, Outcome, Retry, mcp
from .answers import Unreadable, ask, json_of
from .reread import Reread

DEFAULT_SECONDS = 120.0
PLACES = {"http": "endpoint", "mcp": "server", "stdio": "command"}
PARTS = {"result", "error"}
ENVELOPE = {"jsonrpc", "id"} | PARTS


class Entry(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, dict=True):
    address: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z_][\w.:/-]{0,127}$")]
    transport: Literal["http", "mcp", "stdio"]
    endpoint: Annotated[str, msgspec.Meta(pattern=r"^https?://[^\s]+$")] | None = None
    server: str | None = None
    command: str | list[str] | None = None
    input_schema: dict[str, Any] | None = None
    output_schema: dict[str, Any] | None = None
    timeout_seconds: Annotated[float, msgspec.Meta(gt=0, le=86_400)] | None = None
    scopes: list[str] = []
    description: str = ""

    @cached_property
    def arguments(self) -> Shape:
        return Shape(self.input_schema or {}, formats=False)

    @cached_property
    def results(self) -> Shape:
        return Shape(self.output_schema or {}, formats=False)


class _Catalog(msgspec.Struct, forbid_unknown_fields=True):
    tools: list[Entry]


def entries(config: Config) -> dict[str, Entry]:
    """Raises Misconfigured while there's nothing that can be used."""
    return _file(config.tool_catalog_path).get() if config.tool_catalog_path else {}


@cache
def _file(path: Path) -> Reread[dict[str, Entry]]:
    return Reread("TOOL_CATALOG_PATH", path, understand)


def understand(data: bytes) -> dict[str, Entry]:
    """Raises Malformed or ValueError with every problem."""
    is_list = data.lstrip().startswith(b"[")
    found = wire.decode(data, list[Entry] if is_list else _Catalog)
    known: list[Entry] = found if is_list else found.tools
    problems = [problem for number, entry in enumerate(known) for problem in _wrong(number, entry)]
    counts = Counter(entry.address for entry in known)
    problems += [f"{address} stands {n} times" for address, n in counts.items() if n > 1]
    if problems:
        raise ValueError("; ".join(problems))
    return {entry.address: entry for entry in known}


def _wrong(number: int, entry: Entry) -> Iterator[str]:
    """What the types can't say."""
    needed = PLACES[entry.transport]
    for place in PLACES.values():
        if bool(getattr(entry, place)) != (place == needed):
            verb = "needs" if place == needed else "takes no"
            yield f"/{number}: {entry.transport} {verb} {place}"
    for field, schema in (("input_schema", "arguments"), ("output_schema", "results")):
        try:
            getattr(entry, schema)
        except ValueError as error:
            yield f"/{number}/{field}: no usable JSON Schema: {getattr(error, 'message', error)}"


async def call(context: Context, entry: Entry, arguments: dict[str, Any]) -> Outcome:
    if wrong := entry.arguments.complaint(arguments):
        return Fail("validation", f"the arguments of {entry.address} are wrong: {wrong}")
    outcome = await (_call_http if entry.transport == "http" else _call_mcp)(
        context, entry, arguments
    )
    if isinstance(outcome, Done) and (wrong := entry.results.complaint(outcome.value)):
        return Fail("validation", f"what {entry.address} answered is wrong: {wrong}")
    return outcome


async def _call_mcp(context: Context, entry: Entry, arguments: dict[str, Any]) -> Outcome:
    """The tool's name is the address, or what follows its first dot."""
    if entry.server:
        name, server = entry.server, mcp.named(context.config, entry.server)
    else:
        words = shlex.split(entry.command) if isinstance(entry.command, str) else entry.command
        name, (program, *args) = f"catalog:{entry.address}", words or [""]
        server = mcp.Server(command=program, args=args)
    tools = (entry.address.partition(".")[2], entry.address)
    names = tuple(tool for tool in tools if tool)
    return await mcp.call_at(
        context, name, server, entry.address, names, arguments, entry.timeout_seconds
    )


async def _call_http(context: Context, entry: Entry, arguments: dict[str, Any]) -> Outcome:
    params = {"name": entry.address, "arguments": arguments}
    answer = await ask(
        context,
        "POST",
        str(entry.endpoint),
        headers={"content-type": "application/json"},
        body=wire.encode({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}),
        timeout=entry.timeout_seconds or DEFAULT_SECONDS,
        trusted=True,
    )
    if not isinstance(answer, Answer):
        return answer
    try:
        return _answered(entry.address, answer.status, await json_of(answer))
    except Unreadable as problem:
        if answer.status >= 300:
            return _refused(entry.address, answer.status)
        return Fail("validation", f"what {entry.address} answered can't be kept: {problem}")


def _answered(address: str, status: int, reply: Any) -> Outcome:
    is_rpc = isinstance(reply, dict) and reply.keys() <= ENVELOPE and bool(reply.keys() & PARTS)
    if is_rpc and reply.get("error") is not None:
        return _error(address, reply["error"])
    if status >= 300:
        return _refused(address, status)
    return Done(reply.get("result") if is_rpc else reply)


def _error(address: str, error: Any) -> Outcome:
    if not isinstance(error, dict):
        return Retry("runtime", f"{address}: {error}")
    message = f"{address}: {error.get('message', error)}"
    match error.get("code"):
        case -32602 | -32600 | -32700:
            return Fail("validation", message)
        case -32601:
            return Fail("configuration", message)
        case _:
            return Retry("runtime", message)


def _refused(address: str, status: int) -> Outcome:
    message = f"{address} answered with status {status}"
    match status:
        case 401:
            return Fail("authentication", message)
        case 403:
            return Fail("authorization", message)
        case 408 | 504:
            return Retry("timeout", message)
        case 409:
            return Retry("conflict", message)
        case 429:
            return Retry("rate_limited", message)
        case _ if status >= 500:
            return Retry("communication", message)
        case _:
            return Fail("configuration", message)
