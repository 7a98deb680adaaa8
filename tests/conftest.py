"""One server a run, one template database, one clone a test; no invariant broken after it."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import psycopg
import pytest
import structlog
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from pytest_postgresql.executors.noop import NoopExecutor
from pytest_postgresql.janitor import DatabaseJanitor

from orchestrator import api as http
from orchestrator import db, devpg, httpd, schema, telemetry
from orchestrator.config import Config
from orchestrator.wire import Endpoint

Connect = Callable[..., Awaitable[db.Connection]]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="run the long tests, too")


def pytest_configure(config: pytest.Config) -> None:
    """In a shell's background Ctrl-C is ignored, and what tests start would ignore it, too."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "soak: long; runs with --soak only")
    config.addinivalue_line("markers", "breaks: breaks an invariant on purpose")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--soak"):
        for item in items:
            if item.get_closest_marker("soak"):
                item.add_marker(pytest.mark.skip(reason="long: bin/test --soak runs it"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """What a test that failed has left open doesn't fail the next one, too."""
    failed = item.session.testsfailed
    result = yield
    if item.session.testsfailed > failed:
        for name in {"last_exc", "last_value", "last_traceback"} & vars(sys).keys():
            delattr(sys, name)
        with warnings.catch_warnings(action="ignore"):
            gc.collect()
    return result


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


def scratch() -> str:
    """Memory where there's enough of it: a clone makes 600 files, 0.36 s on a disk here."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 2**31
    return str(memory) if roomy and os.access(memory, os.W_OK) else tempfile.gettempdir()


SCRATCH = scratch()

# Below those that the system gives to whoever asks for any, and for each run of tests others.
PORTS = itertools.cycle(range(10_000, 32_000))
next(itertools.islice(PORTS, os.getpid() * 997 % 22_000, None))


def free_port() -> int:
    """For a process that is to listen there: nobody else gets it between now and then."""
    for port in PORTS:
        with socket.socket() as trial, suppress(OSError):
            trial.bind(("127.0.0.1", port))
            return port
    raise AssertionError("the ports never end")


@pytest.fixture
def free_tcp_port() -> int:
    return free_port()


@contextmanager
def scratch_server(**settings: str) -> Iterator[Callable[[], devpg.Cluster]]:
    """Starts a server of its own, again and again: ours, or the one that ORC_TEST_PG names."""
    folder = Path(tempfile.mkdtemp(prefix=f"orc-test-{os.getpid()}-", dir=SCRATCH))
    folder.chmod(0o755)
    bindir = Path(os.environ["ORC_TEST_PG"]) if os.environ.get("ORC_TEST_PG") else None
    try:
        yield lambda: devpg.start(folder, bindir=bindir, settings={"fsync": "off", **settings})
    finally:
        devpg.stop(folder, mode="immediate")
        shutil.rmtree(folder, ignore_errors=True)


def sweep() -> None:
    """Stops the servers of runs that were killed."""
    for folder in Path(SCRATCH).glob("orc-test-*-*"):
        pid = folder.name.split("-")[2]
        if not Path(f"/proc/{pid}").exists() and os.access(folder, os.W_OK):
            devpg.stop(folder, mode="immediate")
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def server() -> Iterator[devpg.Cluster]:
    """The server of this run. It may forget what it was told last: nobody crashes it."""
    sweep()
    with scratch_server(full_page_writes="off", synchronous_commit="off") as start:
        yield start()


@pytest.fixture
def own_server() -> Iterator[Callable[[], devpg.Cluster]]:
    """A server of this test alone, which may be stopped and started."""
    with scratch_server() as start:
        yield start


@contextmanager
def new_database(server: devpg.Cluster, name: str, template: str = "template0") -> Iterator[str]:
    """A database, and its end.

    Its files are copied, which costs 30 ms less than to write each page to the log, too (18.6,
    905 files; measured 2026-11-21).
    """
    names = sql.Identifier(name), sql.Identifier(template)
    with psycopg.connect(server.url, autocommit=True) as admin:
        how = " strategy file_copy" if admin.info.server_version >= 150000 else ""
        admin.execute(sql.SQL("create database {} template {}" + how).format(*names))
    try:
        yield make_conninfo(server.tcp_url, dbname=name)
    finally:
        with psycopg.connect(server.url, autocommit=True) as admin:
            admin.execute(sql.SQL("drop database {} with (force)").format(names[0]))


@pytest.fixture(scope="session")
def postgresql_noproc(server: devpg.Cluster) -> Iterator[NoopExecutor]:
    """The server as pytest-postgresql sees it, with an installed template database."""
    place = {name: str(v) for name, v in conninfo_to_dict(server.tcp_url).items()}
    executor = NoopExecutor(
        host=place["host"], port=place["port"], user=place["user"], password=place["password"],
        dbname="orc", options="",
    )  # fmt: skip
    janitor = DatabaseJanitor(
        host=place["host"], port=place["port"], user=place["user"], password=place["password"],
        dbname=executor.template_dbname, as_template=True,
    )  # fmt: skip
    with janitor:
        asyncio.run(schema.install(make_conninfo(server.tcp_url, dbname=executor.template_dbname)))
        yield executor


@pytest.fixture(scope="session")
def template(postgresql_noproc: NoopExecutor) -> str:
    """The name of the database that tests get clones of. pytest-postgresql's own clones are written
    to the log page by page."""
    return postgresql_noproc.template_dbname


@pytest.fixture
def database(server: devpg.Cluster, template: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a clone of the installed template. Every invariant must hold at its end."""
    with new_database(server, "orc", template) as url:
        yield url
        if not request.node.get_closest_marker("breaks"):
            with psycopg.connect(make_conninfo(server.url, dbname="orc")) as look:
                broken = look.execute("select * from orc.check()").fetchall()
            assert broken == [], f"broken invariants: {broken}"


@pytest.fixture
def empty_database(server: devpg.Cluster) -> Iterator[str]:
    """The URL of a database with nothing in it."""
    with new_database(server, f"empty_{time.monotonic_ns()}") as url:
        yield url


@pytest.fixture
async def connect(database: str) -> AsyncIterator[Connect]:
    """Makes connections to this test's database, and closes them at its end."""
    made: list[db.Connection] = []

    async def make_one(**options: Any) -> db.Connection:
        made.append(await db.connect(database, **options))
        return made[-1]

    yield make_one
    for connection in made:
        await connection.close()


@pytest.fixture
async def conn(connect: Connect) -> db.Connection:
    return await connect()


@pytest.fixture
def own_logs() -> Iterator[None]:
    """For a test that says where lines go: afterwards they go where they went before."""
    root = logging.getLogger()
    before = root.handlers[:], root.level, telemetry._process, telemetry._least
    yield
    structlog.reset_defaults()
    root.handlers[:], root.level, telemetry._process, telemetry._least = before


class Clock:
    """The database's time, for this test's sessions."""

    def __init__(self, connections: list[db.Connection]) -> None:
        self.connections = connections
        self.instant: datetime | None = None

    async def set(self, instant: datetime) -> None:
        self.instant = instant
        for connection in self.connections:
            await connection.execute(
                "select set_config('orchestrator.now', %s, false)", [instant.isoformat()]
            )

    async def advance(self, step: timedelta) -> None:
        assert self.instant is not None, "set the clock before it is advanced"
        await self.set(self.instant + step)


@pytest.fixture
def clock(conn: db.Connection) -> Clock:
    """Steers `conn`; add further connections to `clock.connections`."""
    return Clock([conn])


class Make:
    """Builders: the smallest thing of a kind, and what the test says about it."""

    def __init__(self, database: str) -> None:
        self.database = database

    def config(self, **changes: Any) -> Config:
        defaults: dict[str, Any] = {
            "database_url": self.database,
            "app_env": "development",
            "port": 0,
            "pool_size": 4,
        }
        return Config(**{**defaults, **changes})


@pytest.fixture
def make(database: str) -> Make:
    return Make(database)


class Running(msgspec.Struct):
    """An API that really listens."""

    url: str
    port: int
    api: http.Api
    client: httpx2.AsyncClient


Serve = Callable[..., Awaitable[Running]]


@pytest.fixture
async def serve(make: Make) -> AsyncIterator[Serve]:
    """Starts APIs on free ports: `await serve(endpoints=…, body_timeout=1)`."""
    ends = AsyncExitStack()

    async def start(endpoints: list[Endpoint] = http.ENDPOINTS, **changes: Any) -> Running:
        config = make.config(**changes)
        api = http.Api(config)
        server = httpd.server(http.build(api, endpoints), config, api.drain)
        listener = httpd.bind(config.api_host, config.port)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started and not task.done():
            await asyncio.sleep(0.005)
        if task.done():
            await task
        port = listener.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        client = httpx2.AsyncClient(base_url=url, timeout=20, trust_env=False)

        async def end() -> None:
            await client.aclose()
            server.should_exit = True
            with suppress(asyncio.CancelledError):
                await task

        ends.push_async_callback(end)
        return Running(url=url, port=port, api=api, client=client)

    async with ends:
        yield start


class Proxy:
    """A TCP proxy in front of a server that can stop answering, as a cut network does."""

    def __init__(self, host: str, port: int) -> None:
        self.target = (host, port)
        self.open = asyncio.Event()
        self.open.set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.writers: list[asyncio.StreamWriter] = []

    async def start(self) -> int:
        self.server = await asyncio.start_server(self.accept, "127.0.0.1", 0)
        port: int = self.server.sockets[0].getsockname()[1]
        return port

    def cut(self) -> None:
        """Nothing passes any more, and nobody is told."""
        self.open.clear()

    def mend(self) -> None:
        self.open.set()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        self.keep(asyncio.current_task())
        await self.open.wait()
        there, back = await asyncio.open_connection(*self.target)
        self.writers.append(back)
        for source, sink in ((reader, back), (there, writer)):
            self.keep(asyncio.create_task(self.pump(source, sink)))

    def keep(self, task: asyncio.Task[None] | None) -> None:
        assert task is not None
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await source.read(65536):
                await self.open.wait()
                sink.write(data)
                await sink.drain()
            sink.close()

    async def stop(self) -> None:
        """Whoever waits for the network opens nothing any more."""
        self.server.close()
        while self.tasks:
            for task in self.tasks:
                task.cancel()
            await asyncio.wait(self.tasks)
        for writer in self.writers:
            writer.transport.abort()
        for writer in self.writers:
            with suppress(ConnectionError):
                await writer.wait_closed()


class Proxied(msgspec.Struct):
    url: str
    proxy: Proxy


@pytest.fixture
async def proxied(database: str) -> AsyncIterator[Proxied]:
    """This test's database behind a network that can be cut."""
    place = conninfo_to_dict(database)
    proxy = Proxy(str(place["host"]), int(str(place["port"])))
    port = await proxy.start()
    yield Proxied(url=make_conninfo(database, host="127.0.0.1", port=port), proxy=proxy)
    await proxy.stop()


@pytest.fixture
def benchmark_seconds() -> Callable[[Callable[[], object]], float]:
    """The best of three: a bound with room for a noisy machine."""

    def measure(work: Callable[[], object]) -> float:
        times = []
        for _ in range(3):
            started = time.perf_counter()
            work()
            times.append(time.perf_counter() - started)
        return min(times)

    return measure
