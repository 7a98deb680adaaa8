"""The waist: every word between this program and Postgres passes here.

No call can hang. The server ends a statement after its timeout; if the server is silent, the kernel
gives the connection up (keepalives, TCP_USER_TIMEOUT); and if that fails too, the client's own
deadline shuts the socket, which psycopg sees as a lost connection. psycopg's cancellation isn't
used for this, because it asks the very server that doesn't answer.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import datetime, timedelta
from functools import cache
from typing import Any, NamedTuple, TypeVar

import msgspec
import psycopg
import psycopg_pool
from psycopg import sql
from psycopg.adapt import Dumper
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import DictRow, dict_row
from psycopg.types.json import Jsonb, set_json_dumps, set_json_loads

from .config import Config
from .errors import Unavailable, is_lost, is_rolled_back
from .telemetry import traceparent

T = TypeVar("T")
Row = dict[str, Any]


class Actor(NamedTuple):
    """Who acts in the transactions of a request. Without a tenant: nobody, under a request's id."""

    tenant: str | None
    id: str
    scopes: str
    request: str


acting: ContextVar[Actor | None] = ContextVar("acting", default=None)
"""Verbs with a tenant are told who acts, in the same statement (sql/auth/acting.sql). What a
request starts in the background inherits it: start that in a `contextvars.Context()` of its own."""

CONNECT_SECONDS = 3
GRACE_SECONDS = 2.0
"""How much longer the client waits than the server may work."""

FRESH_SECONDS = 1.0
"""A connection that was used so recently is handed out without asking it whether it lives."""

CLOCK_SECONDS = 1.0
"""What the database's clock said is gone on from for so long."""


class Connection(psycopg.AsyncConnection[DictRow]):
    """A connection with a deadline for each call."""

    deadline: float = 5.0 + GRACE_SECONDS
    used_at: float = 0.0
    severed: bool = False


def conninfo(url: str, *, role: str | None, timeout: float, application: str, pooler: bool) -> str:
    """The URL with what keeps a connection from hanging. A transaction pooler takes no settings."""
    given = conninfo_to_dict(url)
    settings = {
        "statement_timeout": f"{timeout * 1000:.0f}",
        "idle_in_transaction_session_timeout": "60000",
        "timezone": "UTC",
    }
    if role:
        settings["role"] = role
    options = " ".join(f"-c {name}={value}" for name, value in settings.items())
    bounds: dict[str, Any] = {
        "connect_timeout": CONNECT_SECONDS,
        "keepalives": 1,
        "keepalives_idle": 4,
        "keepalives_interval": 2,
        "keepalives_count": 2,
        "tcp_user_timeout": 6000,
        "application_name": application,
    }
    if not pooler:
        bounds["options"] = f"{given.get('options') or ''} {options}".strip()
    return make_conninfo(url, **bounds)


async def connect(
    url: str,
    *,
    role: str | None = None,
    timeout: float = 5.0,
    application: str = "orchestrator",
    pooler: bool = False,
) -> Connection:
    """An autocommit connection whose calls end within `timeout` seconds, a little later here."""
    info = conninfo(url, role=role, timeout=timeout, application=application, pooler=pooler)
    try:
        async with asyncio.timeout(CONNECT_SECONDS + GRACE_SECONDS):
            connection = await Connection.connect(
                info,
                autocommit=True,
                row_factory=dict_row,
                prepare_threshold=None if pooler else 5,
            )
    except TimeoutError:
        raise Unavailable(f"No answer from Postgres within {CONNECT_SECONDS} s") from None
    await _configure(connection, timeout)
    return connection


class Number(Dumper):
    """A number without a type: Postgres takes the argument's, and says so when it doesn't fit."""

    oid = 0

    def dump(self, value: float) -> bytes:
        return repr(value).encode()


async def _configure(connection: psycopg.AsyncConnection[Any], timeout: float = 5.0) -> None:
    assert isinstance(connection, Connection)
    connection.deadline = timeout + GRACE_SECONDS
    connection.used_at = time.monotonic()
    connection.adapters.register_dumper(int, Number)
    connection.adapters.register_dumper(float, Number)
    set_json_loads(msgspec.json.decode, connection)
    set_json_dumps(msgspec.json.encode, connection)


@contextmanager
def guarded(connection: Connection, seconds: float | None = None) -> Iterator[None]:
    """Ends what runs inside after the deadline, whatever the network does."""
    loop = asyncio.get_running_loop()
    timer = loop.call_later(seconds or connection.deadline, sever, connection)
    try:
        yield
    except psycopg.errors.QueryCanceled as error:
        raise Unavailable("The database took too long and stopped", hint=str(error)) from error
    except psycopg.OperationalError as error:
        if connection.severed:
            raise Unavailable("The database did not answer in time") from error
        raise
    finally:
        timer.cancel()
        connection.used_at = time.monotonic()


def sever(connection: Connection) -> None:
    """Shuts the socket: whoever waits for an answer hears that the connection is lost."""
    connection.severed = True
    if connection.closed:
        return
    line = socket.socket(fileno=os.dup(connection.fileno()))
    with line, suppress(OSError):  # it was gone already
        line.shutdown(socket.SHUT_RDWR)


async def call(connection: Connection, verb: str, /, **arguments: Any) -> list[Row]:
    """`orc.<verb>(name => value, …)`: its rows. An UNSET argument takes the verb's default."""

    async def work() -> list[Row]:
        cursor = await connection.execute(*_statement(verb, arguments))
        return await cursor.fetchall()

    return await _over_deploys(connection, work)


def call_now(connection: psycopg.Connection[Any], verb: str, /, **arguments: Any) -> list[Row]:
    """The same for a thread. Nothing shuts its socket: the caller bounds it by timeouts."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(*_statement(verb, arguments)).fetchall()


async def call_one(connection: Connection, verb: str, /, **arguments: Any) -> Row:
    """The only row of a verb that answers with one."""
    rows = await call(connection, verb, **arguments)
    if len(rows) != 1:
        raise RuntimeError(f"orc.{verb} answered with {len(rows)} rows instead of one")
    return rows[0]


async def call_together(
    connection: Connection, *calls: tuple[str, dict[str, Any]]
) -> list[list[Row]]:
    """Several calls in one transaction and one round trip."""

    async def work() -> list[list[Row]]:
        async with connection.pipeline(), connection.transaction():
            cursors = [await connection.execute(*_statement(*one)) for one in calls]
            return [await cursor.fetchall() for cursor in cursors]

    return await _over_deploys(connection, work)


async def _over_deploys(connection: Connection, work: Callable[[], Awaitable[T]]) -> T:
    """Guarded, and once more when a deploy has changed what a prepared call returns."""
    with guarded(connection):
        try:
            return await work()
        except psycopg.errors.FeatureNotSupported as error:
            if "cached plan" not in str(error):
                raise
            await connection.execute("deallocate all")
            return await work()


def _statement(verb: str, arguments: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    given = {
        name: _adapted(value) for name, value in arguments.items() if value is not msgspec.UNSET
    }
    actor = acting.get()
    if actor is None or "tenant" not in given:
        return _text(verb, tuple(given)), given
    if actor.tenant not in (None, given["tenant"]):
        raise RuntimeError(f"orc.{verb} is called for a tenant that the caller doesn't belong to")
    told = {"_actor": actor.id, "_scopes": actor.scopes, "_request": actor.request}
    if (trace := traceparent.get()) is not None:
        told["_trace"] = trace
    return _text(verb, tuple(given), tuple(told)), given | told


@cache
def _text(verb: str, names: tuple[str, ...], told: tuple[str, ...] = ()) -> bytes:
    arguments: list[sql.Composable] = [
        sql.SQL("{} => {}").format(sql.Identifier(name), sql.Placeholder(name)) for name in names
    ]
    if told:
        places = sql.SQL(", ").join(map(sql.Placeholder, ("tenant", *told)))
        arguments[names.index("tenant")] = sql.SQL("tenant => orc.acting({})").format(places)
    text = sql.SQL("select * from orc.{}({})").format(
        sql.Identifier(verb), sql.SQL(", ").join(arguments)
    )
    return text.as_bytes(None)  # psycopg caches what it makes of bytes


def _adapted(value: Any) -> Any:
    """Objects travel as jsonb, plain lists as arrays."""
    if isinstance(value, msgspec.Struct):
        return Jsonb(value)
    if isinstance(value, dict):
        return Jsonb(value)
    if isinstance(value, list) and value and isinstance(value[0], dict | msgspec.Struct):
        return Jsonb(value)
    return value


class Pool(psycopg_pool.AsyncConnectionPool[Connection]):
    """Connections of one process and one role, given out alive."""

    def __init__(self, config: Config, *, role: str, application: str) -> None:
        self.timeout_of_calls = config.database_timeout
        pooler = config.database_pooler
        info = conninfo(
            config.database_url,
            role=role,
            timeout=config.database_timeout,
            application=application,
            pooler=pooler,
        )
        super().__init__(
            info,
            connection_class=Connection,
            kwargs={
                "autocommit": True,
                "row_factory": dict_row,
                "prepare_threshold": None if pooler else 5,
            },
            min_size=1,
            max_size=config.pool_size,
            open=False,
            configure=self._prepare,
            check=alive,
            timeout=CONNECT_SECONDS,
            reconnect_timeout=CONNECT_SECONDS,
            max_waiting=20 * config.pool_size,
            name=application,
        )

    async def _prepare(self, connection: Connection) -> None:
        await _configure(connection, self.timeout_of_calls)

    async def call(self, verb: str, /, **arguments: Any) -> list[Row]:
        return await again(lambda: self._call(verb, arguments))

    async def call_one(self, verb: str, /, **arguments: Any) -> Row:
        rows = await self.call(verb, **arguments)
        if len(rows) != 1:
            raise RuntimeError(f"orc.{verb} answered with {len(rows)} rows instead of one")
        return rows[0]

    async def together(
        self, work: Callable[[Connection], Awaitable[T]], seconds: float | None = None
    ) -> T:
        """Calls in one transaction; all of them again when it was rolled back by others."""

        async def once() -> T:
            async with self.connection() as connection:
                with guarded(connection, seconds):
                    async with connection.transaction():
                        return await work(connection)

        return await self._reachable(lambda: again(once))

    async def _call(self, verb: str, arguments: dict[str, Any]) -> list[Row]:
        async def once() -> list[Row]:
            connection = await self.getconn()  # leaves no transaction, so needs no end of one
            try:
                return await call(connection, verb, **arguments)
            finally:
                await self.putconn(connection)

        return await self._reachable(once)

    async def _reachable(self, work: Callable[[], Awaitable[T]]) -> T:
        try:
            return await work()
        except psycopg_pool.TooManyRequests:
            raise Unavailable("Too many requests wait for the database") from None
        except psycopg.Error as error:
            if is_lost(error):
                raise Unavailable("The database can't be reached") from error
            raise


class Clock:
    """What time the database says, without asking it each time: what it said a moment ago, gone on
    from there. A clock that runs isn't behind that; one that was set may be."""

    def __init__(self) -> None:
        self._said: tuple[datetime, float] | None = None

    async def now(self, pool: Pool) -> datetime:
        if self._said is None or (since := time.monotonic() - self._said[1]) > CLOCK_SECONDS:
            return await self.read(pool)
        return self._said[0] + timedelta(seconds=since)

    async def read(self, pool: Pool) -> datetime:
        now: datetime = (await pool.call_one("clock"))["clock"]
        self._said = now, time.monotonic()
        return now


async def alive(connection: Connection) -> None:
    """Raises unless the connection answers. One that was used a moment ago is believed."""
    if time.monotonic() - connection.used_at < FRESH_SECONDS and not connection.closed:
        return
    with guarded(connection, GRACE_SECONDS):
        await connection.execute("")


async def again(work: Callable[[], Awaitable[T]], attempts: int = 5) -> T:
    """Runs it again when the transaction left nothing behind (serialization, deadlock, lock)."""
    for attempt in range(1, attempts + 1):
        try:
            return await work()
        except psycopg.Error as error:
            if attempt == attempts or not is_rolled_back(error):
                raise
            await asyncio.sleep(random.uniform(0, 0.02 * 2**attempt))
    raise AssertionError("unreachable")


async def listen(
    url: str, channels: Sequence[str], *, application: str = "orchestrator"
) -> AsyncIterator[psycopg.Notify | None]:
    """Notifications for ever, over lost connections. None says: some may have been missed, look."""
    while True:
        try:
            async with await connect(url, application=application) as connection:
                for channel in channels:
                    await connection.execute(sql.SQL("listen {}").format(sql.Identifier(channel)))
                yield None
                async for note in _notes(connection):
                    yield note
        except (psycopg.OperationalError, Unavailable):
            await asyncio.sleep(random.uniform(0.1, 0.5))


async def _notes(connection: Connection) -> AsyncIterator[psycopg.Notify]:
    """Asks a silent server every few seconds whether it's there: a cut cable is silent, too."""
    while True:
        async for note in connection.notifies(timeout=4):
            yield note
        with guarded(connection, GRACE_SECONDS):
            await connection.execute("")


async def reachable(url: str) -> None:
    """One clear line when there's no server behind the URL."""
    where = conninfo_to_dict(url)
    place = f"{where.get('host') or 'the local socket'}:{where.get('port') or 5432}"
    way_out = "check DATABASE_URL, or start the embedded server with bin/db up"
    try:
        await (await connect(url)).close()
    except Unavailable as error:
        raise Unavailable(f"Postgres at {place} is silent: {way_out}") from error
    except psycopg.OperationalError as error:
        said = str(error).strip().splitlines()[0].rpartition("failed: ")[2]
        raise Unavailable(f"Postgres at {place} can't be used: {said}; {way_out}") from error
