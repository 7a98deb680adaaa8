"""The life of a process that isn't the API: turns, rests, wake-ups, drain, liveness.

A process is `once() -> int`, how much it did. This calls it again at once while there is work,
rests with jitter when there's none, and wakes on a notification. The first SIGTERM or SIGINT stops
new turns and gives the running one its grace; the second ends it.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import psycopg
from prometheus_client import CONTENT_TYPE_LATEST as PLAIN
from prometheus_client import generate_latest

from .config import Config
from .db import Pool
from .errors import Misconfigured, Unavailable, is_lost
from .telemetry import METRICS, TURNS, log

STUCK_SECONDS = 60.0
LONGEST_PAUSE = 5.0


async def run(
    config: Config,
    name: str,
    once: Callable[[Pool], Awaitable[int]],
    *,
    interval: float = 1.0,
    health_port: int | None = None,
    wakes: Callable[[], AsyncIterator[Any]] | None = None,
) -> None:
    """A whole process: its pool, its turns, its end."""
    async with Pool(config, role="orc_worker", application=f"orchestrator {name}") as pool:
        log("started")
        turns = Loop(lambda: once(pool), interval=interval, health_port=health_port, wakes=wakes)
        await turns.run()


class Loop:
    """Runs `once` until told to stop."""

    def __init__(
        self,
        once: Callable[[], Awaitable[int]],
        *,
        interval: float = 1.0,
        drain: float = 30.0,
        wakes: Callable[[], AsyncIterator[Any]] | None = None,
        health_port: int | None = None,
    ) -> None:
        self.once = once
        self.interval = interval
        self.drain = drain
        self.wakes = wakes
        self.health_port = health_port
        self.stopping = asyncio.Event()
        self.woken = asyncio.Event()
        self.turned_at = time.monotonic()
        self.failures = 0

    @property
    def alive(self) -> bool:
        """Whether a turn ended lately. A turn that hangs is what a supervisor must see."""
        return time.monotonic() - self.turned_at < STUCK_SECONDS + self.interval

    @property
    def ready(self) -> bool:
        return self.alive and self.failures == 0 and not self.stopping.is_set()

    async def run(self) -> None:
        """Until the first signal, and then until the running turn ended."""
        async with (
            answer_health(self.health_port, lambda: self.alive, lambda: self.ready),
            AsyncExitStack() as stack,
        ):
            turns = asyncio.create_task(self._turns())
            self._obey_signals(turns)
            if self.wakes is not None:
                waker = asyncio.create_task(self._wake(self.wakes))
                stack.callback(waker.cancel)
            await self._until_drained(turns)
        log("stopped")

    def stop(self) -> None:
        self.stopping.set()
        self.woken.set()

    def _obey_signals(self, turns: asyncio.Task[None]) -> None:
        def obey() -> None:
            if self.stopping.is_set():
                log("stopping_now", "warning")
                turns.cancel()
            else:
                log("draining", grace_seconds=self.drain)
                self.stop()

        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, obey)

    async def _until_drained(self, turns: asyncio.Task[None]) -> None:
        stop = asyncio.create_task(self.stopping.wait())
        await asyncio.wait({turns, stop}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        await asyncio.wait({turns}, timeout=self.drain)
        if not turns.done():
            log("drain_ran_out", "warning", grace_seconds=self.drain)
            turns.cancel()
        with suppress(asyncio.CancelledError):
            await turns

    async def _turns(self) -> None:
        while not self.stopping.is_set():
            self.woken.clear()
            did = await self.turn()
            self.turned_at = time.monotonic()
            if did == 0:
                await self._rest(self._pause())

    async def turn(self) -> int:
        """One call of `once`. What goes wrong is a line in the log, and the next turn comes."""
        try:
            did = await self.once()
        except (psycopg.Error, Unavailable) as error:
            self._failed(error, lost=isinstance(error, Unavailable) or is_lost(error))
            return 0
        except Exception as error:
            self._failed(error, lost=False)
            return 0
        TURNS.labels("done" if did else "idle").inc()
        if self.failures:
            log("recovered", after_failures=self.failures)
            self.failures = 0
        return did

    def _failed(self, error: Exception, *, lost: bool) -> None:
        """Says a lost database once, and every other failure each time."""
        self.failures += 1
        TURNS.labels("failed").inc()
        if not lost:
            log("turn_failed", "error", exc_info=error)
        elif self.failures == 1:
            log("database_lost", "warning", error=str(error))

    def _pause(self) -> float:
        """The interval, or after failures a growing pause; never in step with other processes."""
        if self.failures:
            return min(LONGEST_PAUSE, 0.2 * 2.0 ** min(self.failures, 10)) * random.uniform(0.5, 1)
        return self.interval * random.uniform(0.8, 1.2)

    async def _rest(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self.woken.wait(), seconds)

    async def _wake(self, wakes: Callable[[], AsyncIterator[Any]]) -> None:
        async for _ in wakes():
            self.woken.set()


@asynccontextmanager
async def answer_health(
    port: int | None,
    alive: Callable[[], bool],
    ready: Callable[[], bool],
    figures: Callable[[], tuple[bytes, str]] = lambda: (generate_latest(METRICS), PLAIN),
) -> AsyncIterator[None]:
    """`GET /health/live`, `/health/ready` and `/metrics` on the port, from memory."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(2):
                path = [*(await reader.readline()).split(), b"", b""][1]
                good = {b"/health/live": alive, b"/health/ready": ready}.get(path)
                if path == b"/metrics":
                    writer.write(_answer("200 OK", *figures()))
                elif good is None:
                    writer.write(_answer("404 Not Found"))
                else:
                    writer.write(_answer("200 OK" if good() else "503 Service Unavailable"))
                await writer.drain()
        except (TimeoutError, ConnectionError, ValueError):
            pass  # it came, and said nothing that can be answered
        finally:
            writer.close()

    if port is None:
        yield
        return
    try:
        server = await asyncio.start_server(answer, "127.0.0.1", port)
    except OSError as error:
        raise Misconfigured(f"health port {port} can't be used: {error.strerror}") from error
    try:
        yield
    finally:
        server.close()


def _answer(status: str, body: bytes = b"", kind: str = "text/plain") -> bytes:
    lines = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
    return f"{lines}Connection: close\r\n\r\n".encode() + body
