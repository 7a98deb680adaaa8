"""How fast the API answers, beside bare Starlette and msgspec that echo the same JSON.

One API process, one of the floor, both served by the same settings; some clients on connections
that stay open ask one after the other. No worker runs: it is the API and its transaction.
"""

from __future__ import annotations

import asyncio
import os
import socket
import statistics
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

from .. import db
from . import sql
from .figure import Figure, spread
from .place import Place, rows
from .stage import PIPELINE, STUCK_SECONDS, TENANT, Stage, stage

CLIENTS = 64
REQUESTS = 4000
WATCHERS = 500
UPDATES = 20
API = ("-P", "-m", "orchestrator.cli", "api")
BARE = ("-P", "-m", "orchestrator.bench.bare_api")
TASK = {
    "title": "Weather Chisinau 08:30",
    "schedule_kind": "cron",
    "schedule_expr": "30 8 * * 1-5",
    "timezone": "Europe/Chisinau",
    "payload": {"pipeline": PIPELINE},
}


@dataclass
class Server:
    """Where it listens, and how a request of ours begins."""

    port: int
    key: str

    def request(self, method: str, path: str, body: bytes = b"") -> bytes:
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n"
            f"Authorization: Bearer {self.key}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


Requests = Callable[[int], bytes]


async def post_tasks(place: Place) -> Figure:
    """`POST /tasks` as a program makes them: with titles of their own, a cron rule and a pipeline
    that others have, too."""
    bodies = [msgspec.json.encode({**TASK, "title": f"Weather {n:04}"}) for n in range(1000)]
    async with _servers(place) as (_, api, bare):
        asked = [api.request("POST", "/tasks", body) for body in bodies]
        return await _beside(place, api, lambda n: asked[n % len(asked)], bare, bodies[0])


async def post_events(place: Place) -> Figure:
    """`POST /events` of a topic that no task waits for."""

    async with _servers(place) as (_, api, bare):
        body = msgspec.json.encode({"topic": "orders.created", "payload": {"id": 1, "total": 9.5}})
        own = api.request("POST", "/events", body)
        return await _beside(place, api, lambda _: own, bare, body)


async def get_run(place: Place) -> Figure:
    """`GET /runs/{id}` of finished runs. The floor echoes as much."""
    async with _servers(place) as (on, api, bare):
        await on.insert(sql.HISTORY, place.scaled(10_000, least=100))
        ids = [str(row["id"]) for row in await rows(on.conn, "select id from orchestrator.run")]
        one = await _Caller.once(api, api.request("GET", f"/runs/{ids[0]}"))
        asked = [api.request("GET", f"/runs/{id}") for id in ids]
        return await _beside(place, api, lambda n: asked[n % len(asked)], bare, one)


async def sse_500(place: Place) -> Figure:
    """From the commit of an event until the last of 500 listening clients has it, in ms.

    `connections`: of the API to the database, more than before. The floor is the first of them."""
    count, updates = place.scaled(WATCHERS, least=20), place.scaled(UPDATES, least=3)
    async with _servers(place) as (on, api, _), AsyncExitStack() as stack:
        before = (await rows(on.conn, sql.API_CONNECTIONS))[0]["n"]
        heard: asyncio.Queue[float] = asyncio.Queue()
        for _ in range(count):
            await stack.enter_async_context(_listening(api, heard))
        first, last = [], []
        for _ in range(updates):
            began = time.perf_counter()
            await db.call(on.conn, "publish_event", tenant=TENANT, topic="orders.created")
            async with asyncio.timeout(STUCK_SECONDS):
                at = [await heard.get() for _ in range(count)]
            first.append((min(at) - began) * 1000)
            last.append((max(at) - began) * 1000)
        more = (await rows(on.conn, sql.API_CONNECTIONS))[0]["n"] - before
    own, least = spread(last), spread(first)
    facts = {"clients": count, "updates": updates, "connections": more}
    ratio = round(own["p50"] / least["p50"], 3)
    return Figure(own["p50"], "ms", least["p50"], ratio, **own, repetitions=1, extra=facts)


@asynccontextmanager
async def _servers(place: Place) -> AsyncIterator[tuple[Stage, Server, Server]]:
    async with stage(place) as on:
        made = await db.call_one(on.conn, "create_agent", tenant=TENANT, name="bench")
        key = made["create_agent"]["key"]
        async with _served(on.url, key, API) as api, _served(on.url, key, BARE) as bare:
            yield on, api, bare


@asynccontextmanager
async def _served(url: str, key: str, command: tuple[str, ...]) -> AsyncIterator[Server]:
    server = Server(_free_port(), key)
    environment = {
        **os.environ, "DATABASE_URL": url, "API_HOST": "127.0.0.1", "PORT": str(server.port),
        "RATE_LIMIT": "none", "LOG_LEVEL": "error", "LOG_FORMAT": "json",
        "ORC_STREAM_LIMIT": "1000",
    }  # fmt: skip
    words = command if command is API else (*command, str(server.port))
    process = await asyncio.create_subprocess_exec(
        sys.executable, *words, env=environment, stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE
    )
    try:
        await _listens(server.port)
        yield server
    finally:
        process.kill()
        await process.communicate()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


async def _listens(port: int) -> None:
    async with asyncio.timeout(STUCK_SECONDS):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                return writer.close()


async def _beside(
    place: Place, api: Server, requests: Requests, bare: Server, echoed: bytes
) -> Figure:
    """Rounds of the same number of requests to both, one after the other."""
    count = place.scaled(REQUESTS, least=40)
    echo = bare.request("POST", "/", echoed)
    await _drive(api, requests, CLIENTS * 20)
    await _drive(bare, lambda _: echo, CLIENTS * 20)
    own: list[float] = []
    floor: list[float] = []
    rates: list[float] = []
    floors: list[float] = []
    for _ in range(place.repetitions):
        for server, asked, times, rate in (
            (api, requests, own, rates), (bare, lambda _: echo, floor, floors),
        ):  # fmt: skip
            began = time.perf_counter()
            times += await _drive(server, asked, count)
            rate.append(count / (time.perf_counter() - began))
    ratios = [mine / least for mine, least in zip(rates, floors, strict=True)]
    mine, least = spread(own), spread(floor)
    return Figure(
        round(statistics.median(rates)), "requests/s", round(statistics.median(floors)),
        round(statistics.median(ratios), 3), **mine, repetitions=len(rates),
        extra={"clients": CLIENTS, "floor_p99": least["p99"],
               "p99_ratio": round(mine["p99"] / least["p99"], 2)},
    )  # fmt: skip


async def _drive(server: Server, requests: Requests, count: int) -> list[float]:
    """Milliseconds that each of so many requests took."""
    left = iter(range(count))
    times: list[float] = []
    loop = asyncio.get_running_loop()
    clients = [_Client(requests, left, times) for _ in range(CLIENTS)]
    with _stepping_back():
        for client in clients:
            await loop.create_connection(partial(_same, client), "127.0.0.1", server.port)
        await asyncio.gather(*(client.over for client in clients))
    return times


def _same(client: _Client) -> _Client:
    return client


@contextmanager
def _stepping_back() -> Iterator[None]:
    """Who measures shares two cores with the measured, and waits until these give one up: else the
    kernel lets it cut in on each answer, on the core of who gives it. Where it may, that is."""
    with suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    try:
        yield
    finally:
        with suppress(OSError, AttributeError):
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


class _Client(asyncio.Protocol):
    """One request after the other over a connection. It shares two cores with what it measures: so
    it does no more than an answer needs."""

    def __init__(self, requests: Requests, left: Iterator[int], times: list[float]) -> None:
        self.requests, self.left, self.times = requests, left, times
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.heard = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        number = next(self.left, None)
        if number is None:
            self.over.set_result(None)
            self.transport.close()
        else:
            self.began = time.perf_counter()
            self.transport.write(self.requests(number))

    def data_received(self, data: bytes) -> None:
        self.heard += data
        end = self.heard.find(b"\r\n\r\n")
        if end < 0 or len(self.heard) - end - 4 < _size(self.heard[: end + 2]):
            return
        if self.heard.startswith(b"HTTP/1.1 2"):
            self.times.append((time.perf_counter() - self.began) * 1000)
            self.heard = b""
            self.ask()
        else:
            self.fail(RuntimeError(f"the API refused: {self.heard.decode()}"))

    def connection_lost(self, error: Exception | None) -> None:
        self.fail(error or ConnectionError("the API hung up"))

    def fail(self, error: Exception) -> None:
        if not self.over.done():
            self.over.set_exception(error)
            self.transport.close()


def _size(head: bytes) -> int:
    """Of the body."""
    return int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])


class _Caller:
    """A connection that is asked now and then, or listens. It knows as much HTTP as that needs."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    @asynccontextmanager
    async def of(cls, server: Server) -> AsyncIterator[_Caller]:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        try:
            yield cls(reader, writer)
        finally:
            writer.close()

    @classmethod
    async def once(cls, server: Server, request: bytes) -> bytes:
        async with cls.of(server) as caller:
            return await caller.ask(request)

    async def head(self, request: bytes) -> bytes:
        self.writer.write(request)
        head = await self.reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 2"):
            raise RuntimeError(f"the API refused: {head.decode()} {await self.reader.read(2000)!r}")
        return head

    async def ask(self, request: bytes) -> bytes:
        head = await self.head(request)
        return await self.reader.readexactly(_size(head))


@asynccontextmanager
async def _listening(api: Server, heard: asyncio.Queue[float]) -> AsyncIterator[None]:
    """A client of the events' stream; says when it heard each."""
    async with _Caller.of(api) as caller:
        await caller.head(api.request("GET", "/events/stream"))
        ear = asyncio.create_task(_hear(caller, heard))
        try:
            yield
        finally:
            ear.cancel()
            await asyncio.wait([ear])


async def _hear(caller: _Caller, heard: asyncio.Queue[float]) -> Any:
    while line := await caller.reader.readline():
        if line.startswith(b"data:") and b"orders.created" in line:
            heard.put_nowait(time.perf_counter())
