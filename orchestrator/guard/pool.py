"""Connections that wait for their next request, each for one scheme, host, address and port."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import deque
from typing import Any

import httpcore2
import httpx2
import msgspec

from .addresses import is_address

KEEP_SECONDS = 4.0  # servers commonly hang up after 5
MOST_OPEN = 750  # a process commonly has 1024 files
SIP = 8192  # bytes


class Place(msgspec.Struct, frozen=True):
    """Where a connection goes: a checked address, for one name."""

    scheme: str
    host: str
    address: str
    port: int


class Sips(httpcore2.AsyncNetworkStream):
    """A stream in small reads: 64 KiB of the smallest messages keep a parser busy for 90 ms."""

    def __init__(self, stream: httpcore2.AsyncNetworkStream) -> None:
        self.stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return await self.stream.read(min(max_bytes, SIP), timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self.stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self.stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        try:
            return Sips(await self.stream.start_tls(ssl_context, server_hostname, timeout))
        except BaseException:  # when it's canceled, httpcore2 doesn't close it
            await self.stream.aclose()
            raise

    def get_extra_info(self, info: str) -> Any:
        return self.stream.get_extra_info(info)


class Network(httpcore2.AnyIOBackend):
    async def connect_tcp(self, host: str, *rest: Any, **options: Any) -> Sips:
        assert is_address(host), "a name was about to be resolved again"
        return Sips(await super().connect_tcp(host, *rest, **options))


class Connection(httpcore2.AsyncHTTPConnection):
    """To an address; the name is for the certificate and the Host header."""

    def __init__(self, place: Place, tls: ssl.SSLContext | None) -> None:
        origin = httpcore2.Origin(place.scheme.encode(), place.address.encode(), place.port)
        super().__init__(origin, ssl_context=tls, network_backend=Network())
        self.place = place
        self.idle_since = 0.0


class Pool:
    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.tls = tls
        self.idle: dict[Place, deque[Connection]] = {}
        self.count = 0  # of those that wait
        self.busy = 0  # calls, each with one connection at most
        self.closed = False
        self.sweeper: asyncio.Task[None] | None = None

    async def take(self, place: Place) -> Connection | None:
        """One that is still open, the last used first."""
        while waiting := self.idle.get(place):
            connection = self._remove(place, waiting.pop())
            if not connection.has_expired():
                return connection
            await connection.aclose()
        return None

    async def dial(self, place: Place) -> Connection:
        """A new one. It connects with its first request."""
        while self.idle and self.count + self.busy > MOST_OPEN:
            await self._close_one(next(iter(self.idle)))
        if place.scheme == "https" and self.tls is None:  # 0.1 s of reading certificates
            self.tls = await asyncio.to_thread(httpx2.create_ssl_context)
        return Connection(place, self.tls)

    async def give_back(self, connection: Connection) -> None:
        if not connection.is_idle() or self.closed:
            await connection.aclose()
            return
        connection.idle_since = time.monotonic()
        self.idle.setdefault(connection.place, deque()).append(connection)
        self.count += 1
        if self.sweeper is None or self.sweeper.done():
            self.sweeper = asyncio.create_task(self._sweep())

    def _remove(self, place: Place, connection: Connection) -> Connection:
        self.count -= 1
        if not self.idle[place]:
            del self.idle[place]
        return connection

    async def _sweep(self) -> None:
        """Closes what waited too long, until nothing waits."""
        while self.idle:
            await asyncio.sleep(KEEP_SECONDS / 4)
            await self._close_before(time.monotonic() - KEEP_SECONDS)

    async def _close_before(self, instant: float) -> None:
        for place, waiting in list(self.idle.items()):
            while waiting and waiting[0].idle_since <= instant:
                await self._close_one(place)

    async def _close_one(self, place: Place) -> None:
        """The one that waited longest."""
        await self._remove(place, self.idle[place].popleft()).aclose()

    async def aclose(self) -> None:
        self.closed = True
        if self.sweeper is not None:
            self.sweeper.cancel()
            await asyncio.wait([self.sweeper])
        await self._close_before(float("inf"))
