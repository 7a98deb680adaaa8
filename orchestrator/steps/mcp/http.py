"""MCP over streamable HTTP, by the SDK, with bounded answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2
from mcp.client._transport import ReadStream
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.message import SessionMessage

from . import messages
from .servers import Server
from .stdio import Streams

CONNECT_SECONDS = 10.0


@asynccontextmanager
async def connect(server: Server, lost: Callable[..., None]) -> AsyncIterator[Streams]:
    client = httpx2.AsyncClient(
        headers={**server.headers, "Accept-Encoding": "identity"},
        timeout=httpx2.Timeout(CONNECT_SECONDS, read=None),  # calls have their own time limit
        transport=_Bounded(httpx2.AsyncHTTPTransport()),
        trust_env=False,
    )
    async with (
        client,
        streamable_http_client(
            server.url, http_client=client, max_sse_event_size=messages.LONGEST
        ) as (incoming, outgoing),
    ):
        yield _Sieve(incoming), outgoing


class _Bounded(httpx2.AsyncBaseTransport):
    """An answer that isn't a stream of events ends at the limit; none is compressed."""

    def __init__(self, inner: httpx2.AsyncBaseTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await self._inner.handle_async_request(request)
        if response.headers.get("content-encoding", "identity") != "identity":
            await response.aclose()
            raise httpx2.DecodingError("its answer is compressed", request=request)
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            assert isinstance(response.stream, httpx2.AsyncByteStream)
            response.stream = _Limited(response.stream)
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Limited(httpx2.AsyncByteStream):
    def __init__(self, inner: httpx2.AsyncByteStream) -> None:
        self._inner = inner

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self._inner:
            size += len(chunk)
            if size > messages.LONGEST:
                raise httpx2.StreamError(f"its answer is longer than {messages.LONGEST} bytes")
            yield chunk

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Sieve:
    """A stream of messages, each bounded before the session sees it."""

    def __init__(self, inner: ReadStream[SessionMessage | Exception]) -> None:
        self._inner = inner

    async def receive(self) -> SessionMessage | Exception:
        while (item := messages.only_bounded(await self._inner.receive())) is None:
            pass
        return item

    def __aiter__(self) -> _Sieve:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        while (item := messages.only_bounded(await self._inner.__anext__())) is None:
            pass
        return item

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def __aenter__(self) -> _Sieve:
        await self._inner.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> bool | None:
        return await self._inner.__aexit__(*error)
