"""MCP on the pipes of a child process. The SDK's own transport bounds neither lines nor groups."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import anyio
from mcp.client._transport import ReadStream, WriteStream
from mcp.shared.message import SessionMessage
from mcp_types import JSONRPCMessage, JSONRPCRequest

from ...config import bare_environment
from ...errors import Misconfigured
from ...secrets import hidden
from ...telemetry import MASK, log
from .. import child
from . import messages
from .servers import Server

Streams = tuple[ReadStream[SessionMessage | Exception], WriteStream[SessionMessage]]

MOST_GARBAGE = 1_048_576
"""Bytes on stdout that are no message, since the last message."""

MOST_QUESTIONS = 100
"""Requests of the server that aren't answered yet."""

TAIL = 2000
SECRET = 6
"""Values of the configured environment from this length on aren't repeated in errors."""

UNSENT = 256
END_SECONDS = 0.2
STUCK_SECONDS = 30.0
"""How long a server may leave its input unread."""


@asynccontextmanager
async def connect(server: Server, lost: Callable[..., None]) -> AsyncIterator[Streams]:
    """`lost` hears why there will be no more answers."""
    environment = {**bare_environment(), **server.env}
    process = child.start([server.command, *server.args], environment, server.cwd)
    pipes = Pipes(process, lost, server)
    parts = [asyncio.create_task(part) for part in (pipes.hear(), pipes.speak(), pipes.overhear())]
    async with AsyncExitStack() as stack:
        stack.push_async_callback(pipes.close)
        stack.push_async_callback(process.stop)
        stack.push_async_callback(_cancel, parts)
        yield pipes.incoming, pipes.outgoing


async def _cancel(parts: list[asyncio.Task[None]]) -> None:
    for part in parts:
        part.cancel()
    await asyncio.wait(parts, timeout=1)


class Pipes:
    def __init__(self, process: child.Child, lost: Callable[..., None], server: Server) -> None:
        self._child = process
        self._lost = lost
        self._command = server.command
        self._secrets = [value for value in server.env.values() if len(value) >= SECRET]
        self._was_called = False
        self._heard, self.incoming = anyio.create_memory_object_stream[SessionMessage | Exception]()
        self.outgoing, self._unsent = anyio.create_memory_object_stream[SessionMessage](UNSENT)
        self._garbage = self._questions = 0
        self._tail = b""

    async def hear(self) -> None:
        """Until its output ends, or can't be borne. Then nobody waits for an answer any more."""
        try:
            why = await self._listen()
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            return  # nobody listens
        await self._give_up(why)

    async def _listen(self) -> str:
        rest = bytearray()
        while chunk := await self._child.read(self._child.process.stdout):
            rest += chunk
            *lines, rest = rest.split(b"\n")
            for line in lines:
                await self._take(bytes(line))
            if len(rest) > messages.LONGEST:
                await self._take(bytes(rest))
                return f"wrote a line longer than {messages.LONGEST} bytes"
            if self._garbage > MOST_GARBAGE:
                return f"wrote {self._garbage} bytes that are no message"
            if self._questions > MOST_QUESTIONS:
                return f"asked {self._questions} times without waiting for an answer"
        return ""

    async def _take(self, line: bytes) -> None:
        if not line.strip():
            return
        try:
            message = self._read(line)
        except messages.Unreadable:
            self._garbage += len(line) + 1
            return
        self._garbage = 0
        self._questions += isinstance(message, JSONRPCRequest)
        if message is not None:
            await self._heard.send(SessionMessage(message))

    def _read(self, line: bytes) -> JSONRPCMessage | None:
        if len(line) > messages.LONGEST:
            return messages.refused(line, f"is longer than {messages.LONGEST} bytes")
        if not line.lstrip().startswith(b"{"):
            raise messages.Unreadable
        return messages.read(line)

    async def _give_up(self, why: str) -> None:
        """Says why, and how it ended if it does so at once."""
        if not why:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._child.ended.wait(), END_SECONDS)
        if self._child.problem:
            self._lost(f"can't be started: {self._child.problem}", Misconfigured)
        self._lost(why or self._end())
        self._heard.close()

    def _end(self) -> str:
        """Once it was called, its last words may be of anybody's call: they are the operator's."""
        status = self._child.status
        how = "closed its output" if status is None else f"ended with status {status}"
        tail = self._tail.decode(errors="replace").strip()
        for secret in self._secrets:
            tail = tail.replace(secret, MASK)
        tail = hidden.text(tail)[-500:]
        if tail and self._was_called:
            log("mcp_server_said", "warning", command=self._command, stderr=tail)
        return f"{how}: {tail}" if tail and not self._was_called else how

    async def speak(self) -> None:
        try:
            async for item in self._unsent:
                message = item.message
                self._was_called |= getattr(message, "method", "") == "tools/call"
                self._questions -= hasattr(message, "result") or hasattr(message, "error")
                text = message.model_dump_json(by_alias=True, exclude_unset=True)
                async with asyncio.timeout(STUCK_SECONDS):
                    await self._child.write(text.encode() + b"\n")
        except TimeoutError:
            self._lost(f"didn't read its input for {STUCK_SECONDS:g} s")
            self._heard.close()
        except OSError:
            pass  # its output ends, too, and says more
        except ValueError as error:  # not JSON, though it passed all checks
            self._lost(f"can't be told: {error}")
            self._heard.close()

    async def overhear(self) -> None:
        """Its standard error: read so that it isn't held up, and the end of it kept."""
        while chunk := await self._child.read(self._child.process.stderr):
            self._tail = (self._tail + chunk)[-TAIL:]

    async def close(self) -> None:
        for stream in (self._heard, self.incoming, self.outgoing, self._unsent):
            stream.close()
