"""Sessions of the login whose statements are written by users: one statement, then a clean slate.

A few of them for each event loop. A session that met trouble is closed, and its transaction with
it; one that didn't is emptied (settings, temporary tables, locks) before the next user has it.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from decimal import Decimal
from typing import Any
from weakref import WeakKeyDictionary

import msgspec
import psycopg
from psycopg import generators, pq
from psycopg.adapt import Loader
from psycopg.errors import error_from_result
from psycopg.types.json import Jsonb

from .. import db
from ..config import Config
from ..errors import Unavailable

MOST_ROWS = 10_000
MOST_BYTES = 1_048_576
CHUNK = 20

BOUNDS = f"the bound is {MOST_ROWS:,} rows and {MOST_BYTES:,} bytes: aggregate, or page by a key"


class Refusal(Exception):
    """It can't be done so, and trying again can't help."""

    def __init__(self, type: str, message: str) -> None:
        super().__init__(message)
        self.type = type
        self.message = message


class Told(msgspec.Struct):
    """What a statement answered. No names: it has no rows."""

    names: list[str] | None = None
    rows: list[tuple[Any, ...]] = []
    count: int = 0
    status: int = pq.TransactionStatus.UNKNOWN


# Values


class Text(Loader):
    def load(self, data: Any) -> str:
        return bytes(data).decode()


class Instant(Loader):
    """`2026-11-21 10:00:00.5+00` in ISO 8601; infinity stays what it is."""

    def load(self, data: Any) -> str:
        text = bytes(data).decode().replace(" ", "T", 1)
        return f"{text}:00" if text[-3:-2] in ("+", "-") and "T" in text else text


class Number(Loader):
    """A JSON number when a double says the same, else the digits."""

    def load(self, data: Any) -> int | float | str:
        text = bytes(data).decode()
        if text.lstrip("-").isdigit() and len(text) < 19:
            return int(text)
        number = float(text)
        same = math.isfinite(number) and Decimal(text) == Decimal(repr(number))
        return number if same else text


class Double(Loader):
    def load(self, data: Any) -> float | str:
        number = float(bytes(data))
        return number if math.isfinite(number) else bytes(data).decode()


class Octets(Loader):
    def load(self, data: Any) -> dict[str, str]:
        raw = psycopg.types.string.ByteaLoader(17).load(bytes(data))
        return {"base64": msgspec.to_builtins(bytes(raw))}


KEPT = {"bool", "int2", "int4", "int8", "oid", "json", "jsonb", "record"}
OWN: dict[str, type[Loader]] = {
    "numeric": Number,
    "float4": Double,
    "float8": Double,
    "bytea": Octets,
    "timestamp": Instant,
    "timestamptz": Instant,
}


def _teach(connection: db.Connection) -> None:
    """Loaders of values that JSON has; of arrays and rows they are used for what is inside."""
    for info in psycopg.adapters.types:
        if info.name not in KEPT:
            connection.adapters.register_loader(info.oid, OWN.get(info.name, Text))


def _given(value: Any) -> Any:
    is_object = isinstance(value, dict) or (
        isinstance(value, list) and any(isinstance(item, dict | list) for item in value)
    )
    return Jsonb(value) if is_object else value


# A statement


class Asking:
    """Executes by the extended protocol, which takes one statement only, and reads in pieces."""

    def __init__(self) -> None:
        self.told = Told()
        self.bytes = 0

    async def ask(self, statement: str, params: Any) -> Told:
        connection = self._conn  # type: ignore[attr-defined]
        await connection.wait(self._stream_send_gen(statement, params, size=CHUNK))  # type: ignore[attr-defined]
        while (result := await connection.wait(generators.fetch(connection.pgconn))) is not None:
            self._take(result)
        self.told.status = connection.pgconn.transaction_status
        return self.told

    def _take(self, result: Any) -> None:
        status = pq.ExecStatus(result.status)
        if status in (pq.ExecStatus.TUPLES_CHUNK, pq.ExecStatus.SINGLE_TUPLE):
            return self._rows(result)
        if status == pq.ExecStatus.TUPLES_OK:
            self._rows(result)
        elif status == pq.ExecStatus.FATAL_ERROR:
            raise error_from_result(result, encoding="utf-8")
        elif status != pq.ExecStatus.COMMAND_OK:
            raise Refusal("validation", f"a step can't do {status.name.lower()}")
        self.told.count = result.command_tuples or len(self.told.rows)
        return None

    def _rows(self, result: Any) -> None:
        told = self.told
        columns = range(result.nfields)
        if told.names is None:
            told.names = [(result.fname(at) or b"").decode() for at in columns]
        for row in range(result.ntuples):
            self.bytes += sum(len(result.get_value(row, at) or b"") for at in columns)
        if self.bytes > MOST_BYTES or len(told.rows) + result.ntuples > MOST_ROWS:
            raise Refusal("validation", f"its result is too large: {BOUNDS}")
        if result.ntuples:
            self._tx.set_pgresult(result)  # type: ignore[attr-defined]
            told.rows += self._tx.load_rows(0, result.ntuples, tuple)  # type: ignore[attr-defined]


class Numbered(Asking, psycopg.AsyncRawCursor[Any]):  # $1, $2
    def __init__(self, connection: db.Connection) -> None:
        psycopg.AsyncRawCursor.__init__(self, connection)
        Asking.__init__(self)


class Named(Asking, psycopg.AsyncCursor[Any]):  # %(name)s
    def __init__(self, connection: db.Connection) -> None:
        psycopg.AsyncCursor.__init__(self, connection)
        Asking.__init__(self)


class Session:
    def __init__(self, connection: db.Connection) -> None:
        self.connection = connection
        self.seconds = connection.deadline
        self.began_at = 0.0

    async def execute(self, text: str) -> Any:
        with db.guarded(self.connection):
            return await self.connection.execute(text.encode())

    async def ask(self, statement: str, params: Any, seconds: float) -> Told:
        """Begins, and executes what a user wrote."""
        self.began_at = time.monotonic()
        if isinstance(params, dict):
            cursor: Asking = Named(self.connection)
            given: Any = {name: _given(value) for name, value in params.items()}
        else:
            cursor, given = Numbered(self.connection), [_given(value) for value in params or ()]
        limit = f"begin; set local statement_timeout = {round(seconds * 1000)}"
        with db.guarded(self.connection, seconds + db.GRACE_SECONDS):
            await self.connection.execute(limit.encode())
            return await cursor.ask(statement, given or None)

    async def recover(self) -> None:
        """Who we are and how we are set doesn't depend on what the statement has said."""
        await self.execute("reset role; reset all")

    async def commit(self) -> None:
        cursor = await self.execute("commit")
        if cursor.statusmessage != "COMMIT":
            raise Refusal("runtime", f"the transaction ended by {cursor.statusmessage}")

    async def clean(self) -> None:
        await self.execute("discard all")

    async def give_up(self) -> None:
        """The server rolls back what is open."""
        await self.connection.close()


class Sessions:
    """Those of one loop."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.free = asyncio.Semaphore(config.pool_size)
        self.idle: list[Session] = []
        self.closed = False

    @asynccontextmanager
    async def one(self, seconds: float) -> AsyncIterator[Session]:
        """A clean session. It comes back clean, or not at all."""
        try:
            async with asyncio.timeout(seconds):
                await self.free.acquire()
        except TimeoutError:
            raise Unavailable("every connection of sql.query is busy") from None
        try:
            session = await self._session()
            try:
                yield session
            except BaseException:
                await session.give_up()
                raise
            await self._put_back(session)
        finally:
            self.free.release()

    async def _put_back(self, session: Session) -> None:
        try:
            if not session.connection.closed:
                await session.clean()
                self.idle.append(session)
        except (psycopg.Error, Unavailable, asyncio.CancelledError):
            await session.give_up()
        if self.closed:
            await self.close()

    async def _session(self) -> Session:
        while self.idle:
            session = self.idle.pop()
            with suppress(psycopg.Error, Unavailable):
                await db.alive(session.connection)
                return session
            await session.give_up()
        return await self._new()

    async def _new(self) -> Session:
        connection = await db.connect(
            self.config.sql_url,
            timeout=self.config.database_timeout,
            application="orchestrator sql.query",
        )
        try:
            connection.prepare_threshold = None
            await self._examine(connection)
            _teach(connection)
        except BaseException:
            await connection.close()
            raise
        return Session(connection)

    async def _examine(self, connection: db.Connection) -> None:
        """Refuses a login that could do more to us than it should."""
        login = connection.info.user
        try:
            found = [row["problem"] for row in await db.call(connection, "examine_login")]
        except (psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedFunction,
                psycopg.errors.InvalidSchemaName, psycopg.errors.UndefinedTable):  # fmt: skip
            raise Refusal(
                "configuration",
                f"the login {login} of ORC_SQL_URL can't record steps: it must reach our database,"
                f" and someone must run there: grant orc_sql to {login}",
            ) from None
        if found:
            raise Refusal(
                "configuration",
                f"the login {login} of ORC_SQL_URL may do too much for what users write: "
                + "; ".join(found[:5]),
            )

    async def close(self) -> None:
        self.closed = True
        while self.idle:
            await self.idle.pop().give_up()


_made: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, Sessions]] = WeakKeyDictionary()


def sessions_of(config: Config) -> Sessions:
    """Those of the running loop, made when they are first asked for."""
    known = _made.setdefault(asyncio.get_running_loop(), {})
    if config.sql_url not in known:
        known[config.sql_url] = Sessions(config)
    return known[config.sql_url]


async def close() -> None:
    for sessions in _made.pop(asyncio.get_running_loop(), {}).values():
        await sessions.close()
