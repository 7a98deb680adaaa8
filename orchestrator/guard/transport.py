"""The guard below another library's client: for what streams, and goes where the operator said."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import anyio
import httpcore2
import httpx2

from .message import OURS, Failed, Hop, place
from .pool import Connection

if TYPE_CHECKING:
    from . import Guard

Response = httpcore2.Response


class Transport(httpx2.AsyncBaseTransport):
    """`url` is what the operator named, and trusted. Time and sizes are the caller's matter. No
    answer is unpacked."""

    def __init__(self, guard: Guard, url: str) -> None:
        self.guard = guard
        self.place = place(httpx2.URL(url))

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        headers = tuple(pair for pair in request.headers.items() if pair[0] not in OURS)
        at = Hop(request.method, request.url, headers, await request.aread(), "identity")
        try:
            connection, response = await self.guard.open(at, place(at.url) == self.place)
        except Failed as error:
            raise httpx2.ConnectError(str(error), request=request) from None
        stream = Stream(self.guard, at, connection, response)
        return httpx2.Response(response.status, headers=response.headers, stream=stream)


class Stream(httpx2.AsyncByteStream):
    """An answer's body as it arrives. Its connection goes back when it is closed."""

    def __init__(self, guard: Guard, at: Hop, connection: Connection, response: Response) -> None:
        self.guard, self.at = guard, at
        self.connection, self.response = connection, response
        self.is_open = True

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self.response.aiter_stream():
                await asyncio.sleep(0)  # others want the loop, too
                yield chunk
        except (httpcore2.ProtocolError, httpcore2.NetworkError):
            raise httpx2.ReadError(f"{place(self.at.url)} hung up") from None

    async def aclose(self) -> None:
        if self.is_open:
            self.is_open = False
            with anyio.CancelScope(shield=True):  # a scope cancels every await in it
                await self.guard.end(self.connection, self.response)
