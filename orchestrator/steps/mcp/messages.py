"""Messages of a server, bounded before the SDK's models see them.

The models are generous: a result of 330,000 empty contents (1 MB) kept their validation, and with
it the event loop, busy for 10 s (mcp 2.3). So lines are decoded here, and what is too deep, too
many or unreadable becomes an error of the call that it answers.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
from mcp.shared.message import SessionMessage
from mcp_types import (
    PARSE_ERROR,
    ErrorData,
    JSONRPCError,
    JSONRPCMessage,
    JSONRPCNotification,
    JSONRPCRequest,
    JSONRPCResponse,
)

from ... import wire

LONGEST = 1_048_576
"""Bytes of a message. One of this size is decoded and checked in less than 100 ms."""

MOST_CONTENTS = 256
MOST_TOOLS = 1000
MOST_CONTAINERS = 50_000
"""Arrays and objects of a message: they cost the most, by far."""

DECODED_BY_THE_SDK = 32_768
ASIDE = "orchestrator/aside"

ENVELOPE = 8
"""Levels that a message puts around what a tool answered."""

TOOLS_CHANGED = "notifications/tools/list_changed"
ID = re.compile(rb'\A\s*\{\s*(?:"jsonrpc"\s*:\s*"2\.0"\s*,\s*)?"id"\s*:\s*(\d{1,15})\b')


class Unreadable(Exception):
    """Not a message, and nothing tells which call it may be meant for."""


class _Message(msgspec.Struct):
    id: int | str | None = None
    method: str | None = None
    params: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None


_DECODER = msgspec.json.Decoder(_Message)


def read(line: bytes) -> JSONRPCMessage | None:
    """The message, or None for one that nobody needs. Raises Unreadable."""
    try:
        if wire.is_too_deep(line, wire.MAX_DEPTH + ENVELOPE):
            raise ValueError(f"nested deeper than {wire.MAX_DEPTH} levels")
        if line.count(b"[") + line.count(b"{") > MOST_CONTAINERS:
            raise ValueError(f"more than {MOST_CONTAINERS} arrays and objects")
        return _bounded(_typed(_DECODER.decode(line)))
    except (ValueError, RecursionError) as error:  # msgspec's own are ValueErrors
        return refused(line, f"can't be read: {error}"[:500])


def refused(line: bytes, why: str) -> JSONRPCError:
    """The error of the call that the line answers."""
    if found := ID.match(line[:200]):
        return _error(int(found[1]), f"what it answered {why}")
    raise Unreadable(why)


class Aside:
    """Over HTTP the SDK decodes, and its models took 700 ms for 1 MB of empty arrays. So what is
    large is decoded here, and a stub goes through the SDK in its place."""

    def __init__(self) -> None:
        self._kept: dict[int, JSONRPCMessage] = {}
        self._count = 0

    def lighten(self, data: bytes) -> bytes:
        """What stands for a message; nothing for one that nobody needs. Raises Unreadable."""
        if len(data) <= DECODED_BY_THE_SDK:
            return data
        message = read(data)
        if not isinstance(message, JSONRPCResponse | JSONRPCError):
            return b""
        self._count += 1
        self._kept[self._count] = message
        return wire.encode({"jsonrpc": "2.0", "id": message.id, "result": {ASIDE: self._count}})

    def restored(self, item: SessionMessage | Exception) -> SessionMessage | Exception | None:
        """What the SDK has read, bounded."""
        if isinstance(item, Exception):
            return item
        message = item.message
        if isinstance(message, JSONRPCResponse) and message.result.keys() == {ASIDE}:
            kept = self._kept.pop(message.result[ASIDE], None)
            if kept is not None:  # the SDK knows better which request it answers
                message = kept.model_copy(update={"id": message.id})
        bounded = _bounded(message)
        return SessionMessage(bounded, item.metadata) if bounded else None


def _error(id: int | str, message: str) -> JSONRPCError:
    error = ErrorData(code=PARSE_ERROR, message=message)
    return JSONRPCError(jsonrpc="2.0", id=id, error=error)


def _typed(said: _Message) -> JSONRPCMessage:
    if said.method is not None and said.id is not None:
        return JSONRPCRequest(jsonrpc="2.0", id=said.id, method=said.method, params=said.params)
    if said.method is not None:
        return JSONRPCNotification(jsonrpc="2.0", method=said.method, params=said.params)
    if said.error is not None:
        return JSONRPCError(jsonrpc="2.0", id=said.id, error=ErrorData(**said.error))
    if said.result is not None and said.id is not None:
        return JSONRPCResponse(jsonrpc="2.0", id=said.id, result=said.result)
    raise ValueError("neither a request nor an answer")


def _bounded(message: JSONRPCMessage) -> JSONRPCMessage | None:
    if isinstance(message, JSONRPCNotification) and message.method != TOOLS_CHANGED:
        return None
    if isinstance(message, JSONRPCResponse):
        for field, most in (("content", MOST_CONTENTS), ("tools", MOST_TOOLS)):
            items = message.result.get(field)
            if isinstance(items, list) and len(items) > most:
                why = f"has {len(items)} {field} items; {most} are taken"
                return _error(message.id, f"what it answered {why}")
    return message
