"""Servers that say what a test wants, byte for byte, and remember what they heard."""

from __future__ import annotations

import asyncio
import gc
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import msgspec

from orchestrator import guard

Speak = Callable[["Heard", asyncio.StreamWriter], Awaitable[None]]


class Heard(msgspec.Struct):
    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    connection: int

    @property
    def json(self) -> object:
        return msgspec.json.decode(self.body)


def says(
    status: int = 200, body: bytes | str = b"", kind: str = "text/plain", **headers: str
) -> Speak:
    """A plain answer, with keep-alive."""
    data = body.encode() if isinstance(body, str) else body
    lines = [f"HTTP/1.1 {status} X", f"content-type: {kind}", f"content-length: {len(data)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]

    async def speak(_: Heard, writer: asyncio.StreamWriter) -> None:
        writer.write("\r\n".join([*lines, "", ""]).encode() + data)

    return speak


def writes(*pieces: bytes, every: float = 0.0, for_ever: bool = False) -> Speak:
    """Raw bytes, the last one again and again, and then the end of the connection."""

    async def speak(_: Heard, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
        while for_ever:
            writer.write(pieces[-1])
            await writer.drain()
            await asyncio.sleep(every)
        writer.close()

    return speak


class Peer:
    """One HTTP server. `answers` maps a path to how it speaks; others get `otherwise`."""

    def __init__(self, otherwise: Speak, answers: dict[str, Speak]) -> None:
        self.otherwise = otherwise
        self.answers = answers
        self.heard: list[Heard] = []
        self.connections = 0
        self.writers: set[asyncio.StreamWriter] = set()
        self.port = 0
        self.scheme = "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        self.writers.add(writer)
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while not writer.is_closing():
                heard = await _hear(reader, number)
                self.heard.append(heard)
                speak = self.answers.get(heard.target.partition("?")[0], self.otherwise)
                await speak(heard, writer)
                await writer.drain()
        self.writers.discard(writer)
        writer.close()


async def _hear(reader: asyncio.StreamReader, connection: int) -> Heard:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, target, _ = head[0].split(" ")
    pairs = [line.split(": ", 1) for line in head[1:-2]]
    headers = {name.lower(): value for name, value in pairs}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Heard(method, target, headers, body, connection)


@asynccontextmanager
async def peer(
    otherwise: Speak | None = None, tls: ssl.SSLContext | None = None, **answers: Speak
) -> AsyncIterator[Peer]:
    """`peer(says(404), x=says(body="yes"))`: /x says yes. Closes the loop's guards, too."""
    server = Peer(otherwise or says(), {f"/{path}": speak for path, speak in answers.items()})
    listening = await asyncio.start_server(server.accept, "127.0.0.1", 0, ssl=tls)
    server.port = listening.sockets[0].getsockname()[1]
    server.scheme = "https" if tls else "http"
    try:
        yield server
    finally:
        await guard.close()
        listening.close()
        for writer in list(server.writers):
            writer.transport.abort()
        await asyncio.sleep(0)


@asynccontextmanager
async def loop_unblocked(longest: float = 0.1) -> AsyncIterator[None]:
    """Fails when the event loop stood still for longer.

    Counts our processor's time, and of the clock's a quarter: others use this machine, too. What
    the test run itself has in memory is kept from the garbage collector, which takes 70 ms for it.
    """
    gaps: list[float] = []

    async def tick() -> None:
        while True:
            worked, began = time.process_time(), time.monotonic()
            await asyncio.sleep(0.001)
            gaps.append(max(time.process_time() - worked, (time.monotonic() - began) / 4))

    gc.freeze()
    ticking = asyncio.create_task(tick())
    await asyncio.sleep(0)
    try:
        yield
    finally:
        await asyncio.sleep(0.005)  # the last gap counts
        ticking.cancel()
        gc.unfreeze()
    print("GAP", max(gaps))
    assert max(gaps, default=0.0) < longest
