"""MCP over streamable HTTP, by the SDK, with bounded answers."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import msgspec
from mcp.client._transport import ReadStream
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.message import SessionMessage

from ... import guard
from ...config import Config
from . import messages
from .servers import Server
from .stdio import Streams

END = re.compile(rb"\r\n\r\n|\n\n|\r\r")
"""Of an event."""


@asynccontextmanager
async def connect(server: Server, lost: Callable[..., None]) -> AsyncIterator[Streams]:
    aside = messages.Aside()
    trusted = guard.Transport(guard.of(Config()), server.url)  # so no setting matters
    client = httpx2.AsyncClient(
        headers=server.headers,
        timeout=None,  # calls have their own time limit, and so have connections
        transport=_Bounded(trusted, aside),
        trust_env=False,
    )
    async with (
        client,
        streamable_http_client(
            server.url, http_client=client, max_sse_event_size=messages.LONGEST
        ) as (incoming, outgoing),
    ):
        yield _Sieve(incoming, aside), outgoing


class _Bounded(httpx2.AsyncBaseTransport):
    """What the SDK would decode at once is bounded before; none is compressed."""

    def __init__(self, inner: httpx2.AsyncBaseTransport, aside: messages.Aside) -> None:
        self._inner, self._aside = inner, aside

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if (trace := _trace_of(await request.aread())) is not None:
            request.headers["traceparent"] = trace
        response = await self._inner.handle_async_request(request)
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        if response.headers.get("content-encoding", "identity") != "identity":
            await response.aclose()
            raise httpx2.DecodingError("its answer is compressed", request=request)
        streams = response.headers.get("content-type", "").startswith("text/event-stream")
        response.stream = (_Events if streams else _Message)(response.stream, self._aside)
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Meta(msgspec.Struct):
    traceparent: str | None = None


class _Params(msgspec.Struct):
    meta: _Meta = msgspec.field(name="_meta", default_factory=_Meta)


class _Asked(msgspec.Struct):
    params: _Params = msgspec.field(default_factory=_Params)


_ASKED = msgspec.json.Decoder(_Asked)


def _trace_of(body: bytes) -> str | None:
    """Of the call that a message is: the SDK sends them all from one task, which has no trace."""
    if b"traceparent" not in body:
        return None
    try:
        return _ASKED.decode(body).params.meta.traceparent
    except msgspec.MsgspecError:
        return None


class _Message(httpx2.AsyncByteStream):
    """One message, whole."""

    def __init__(self, inner: httpx2.AsyncByteStream, aside: messages.Aside) -> None:
        self._inner, self._aside = inner, aside

    async def __aiter__(self) -> AsyncIterator[bytes]:
        data = bytearray()
        async for chunk in self._inner:
            data += chunk
            if len(data) > messages.LONGEST:
                raise httpx2.StreamError(f"its answer is longer than {messages.LONGEST} bytes")
        yield self._lightened(bytes(data))

    def _lightened(self, data: bytes) -> bytes:
        try:
            return self._aside.lighten(data)
        except messages.Unreadable as why:
            raise httpx2.StreamError(f"its answer {why}") from None

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Events(_Message):
    """One event after the other, each of which may be a message."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        rest, looked = bytearray(), 0
        async for chunk in self._inner:
            rest += chunk
            while found := END.search(rest, max(0, looked - 3)):
                yield self._event(bytes(rest[: found.end()]))
                del rest[: found.end()]
                looked = 0
            looked = len(rest)
            if looked > messages.LONGEST:
                raise httpx2.SSEError(f"an event is longer than {messages.LONGEST} bytes")
        yield bytes(rest)  # half an event is none

    def _event(self, event: bytes) -> bytes:
        if len(event) <= messages.DECODED_BY_THE_SDK:
            return event
        lines = event.splitlines()
        data = [line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:")]
        others = [line for line in lines if line and not line.startswith(b"data:")]
        return b"\n".join([*others, b"data: " + self._lightened(b"\n".join(data)), b"", b""])


class _Sieve:
    """A stream of messages, each bounded before the session sees it."""

    def __init__(
        self, inner: ReadStream[SessionMessage | Exception], aside: messages.Aside
    ) -> None:
        self._inner, self._aside = inner, aside

    async def receive(self) -> SessionMessage | Exception:
        while (item := self._aside.restored(await self._inner.receive())) is None:
            pass
        return item

    def __aiter__(self) -> _Sieve:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        while (item := self._aside.restored(await self._inner.__anext__())) is None:
            pass
        return item

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def __aenter__(self) -> _Sieve:
        await self._inner.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> bool | None:
        return await self._inner.__aexit__(*error)
