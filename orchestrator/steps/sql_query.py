"""`sql.query`: one statement, in the transaction that records its step, so exactly once.

Arguments: `statement`, which is written in the pipeline and holds no `${…}`; `params`, a list for
`$1, $2, …` or an object for `%(name)s` (then a percent sign is `%%`); `rows`: "all" (a list of
objects, at most 10,000 and 1 MiB), "one" (an object; none or more is an error) or "none".

Result: the rows, or `{count}` for "none". Numbers are numbers, a numeric that no double holds is
text; instants are ISO 8601, bytes `{"base64": …}`, json what it says, everything else is text as
Postgres writes it. The step is recorded with this result; `output` and `schema` are applied to it
afterwards, whenever the run needs it: if it doesn't fit, the step fails, and what it did stands.

The statement runs as the login of ORC_SQL_URL, in a session that is cleaned after it. It begins,
the statement is executed, `orc.record_once` records the step, and both are committed. If the lease
of the run has ended, or the step had been recorded already, all is rolled back. When the answer to
the commit is lost, the database is asked whether the step is recorded before anybody hears of it.
The timeout of the step (30 s if it has none) is that of the statement, too.
"""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any, Literal

import msgspec
import psycopg
from psycopg.pq import TransactionStatus

from .. import db
from ..errors import Gone, Unavailable, is_lost
from ..wire import unkeepable
from . import Context, Done, Fail, Kind, Outcome, Retry
from .sql_session import Refusal, Session, Sessions, Told, sessions_of

MOST_SECONDS = 3600.0
USUAL_SECONDS = 30.0
LONGEST_MESSAGE = 1000

OFF = "sql.query is off: set ORC_SQL_URL to the URL of a login of its own (see `orc guide sql`)"


class Query(msgspec.Struct, forbid_unknown_fields=True):
    statement: Annotated[str, msgspec.Meta(min_length=1, max_length=100_000)]
    params: list[Any] | dict[str, Any] | None = None
    rows: Literal["all", "one", "none"] = "all"


class Doubt(Exception):
    """The commit was sent, and its answer didn't come."""


async def run(query: Query, context: Context) -> Outcome:
    if not context.config.sql_url:
        return Fail("configuration", OFF)
    seconds = min(context.seconds or USUAL_SECONDS, MOST_SECONDS)
    sessions = sessions_of(context.config)
    try:
        return await _once(sessions, query, context, seconds)
    except Doubt:
        return await _recorded(sessions, context, seconds)
    except Refusal as refusal:
        return Fail(refusal.type, refusal.message)
    except (psycopg.Error, Unavailable, OSError) as error:
        return verdict(error)


async def _once(sessions: Sessions, query: Query, context: Context, seconds: float) -> Outcome:
    async with sessions.one(seconds) as session:
        told = await session.ask(query.statement, query.params, seconds)
        value = _value(query, told, context)
        await session.recover()
        recorded = await _record(session, context, value)
        if recorded["answer"] == "known":
            await session.execute("rollback")
            return Done(recorded["output"])
        try:
            await session.commit()
        except (psycopg.OperationalError, Unavailable) as error:
            if is_lost(error) or (isinstance(error, Unavailable) and not _is_late(error)):
                raise Doubt from error
            raise
    return Done(value)


async def _record(session: Session, context: Context, value: Any) -> db.Row:
    record = {**(context.record or {}), "output": value}
    spent = {"seconds": time.monotonic() - session.began_at}
    return await db.call_one(
        session.connection, "record_once", worker=context.worker, step=record | spent
    )


def _value(query: Query, told: Told, context: Context) -> Any:
    """What the statement answers, as it is kept; or a refusal, and nothing has happened."""
    if told.status != TransactionStatus.INTRANS:
        raise Refusal("validation", "a statement can't end the transaction of its step")
    if query.rows == "none":
        return {"count": told.count}
    if told.names is None:
        raise Refusal("validation", 'the statement answers no rows: say rows: "none"')
    if len(set(told.names)) < len(told.names):
        raise Refusal("validation", "two columns have one name: give them names by `as`")
    if query.rows == "one" and len(told.rows) != 1:
        some = "none" if not told.rows else "more"
        raise Refusal("validation", f'rows: "one" needs one row, and there are {some}')
    rows = [dict(zip(told.names, row, strict=True)) for row in told.rows]
    value = context.masks.value(rows if query.rows == "all" else rows[0])
    if (why := unkeepable(value)) is not None:
        raise Refusal("validation", f"its result can't be kept: {why}")
    return value


async def _recorded(sessions: Sessions, context: Context, seconds: float) -> Outcome:
    """Whether it was committed. Recording it again, in vain, waits for who is still at it."""
    ends_at, pause = time.monotonic() + seconds, 0.05
    while True:
        try:
            async with sessions.one(seconds) as session:
                try:
                    recorded = await _again(session, context)
                finally:
                    await session.give_up()
        except (psycopg.Error, Unavailable, OSError, Refusal) as error:
            if isinstance(error, Gone):
                return verdict(error)
            if time.monotonic() + pause > ends_at:
                return Retry("unknown", "the answer to its commit was lost; trying again finds out")
            await asyncio.sleep(pause)
            pause = min(2.0, pause * 2)
            continue
        if recorded["answer"] == "known":
            return Done(recorded["output"])
        return Retry("communication", "the connection was lost, and nothing has happened")


async def _again(session: Session, context: Context) -> db.Row:
    await session.execute("begin")
    session.began_at = time.monotonic()
    return await _record(session, context, None)


# What an error means


AGAIN = {"57014": "timeout", "55P03": "conflict", "40": "conflict",
         **dict.fromkeys(("08", "53", "57", "58"), "communication")}  # fmt: skip
FINAL = {"08P01": "validation", "42501": "authorization", "23": "conflict",
         "28": "configuration", "3D": "configuration", "": "validation",
         **dict.fromkeys(("0A", "21", "22", "25", "42", "54"), "validation")}  # fmt: skip
"""By SQLSTATE, else by its class."""


def verdict(error: Exception) -> Retry | Fail:
    """What went wrong, in the words of the language and in those of Postgres."""
    if isinstance(error, Gone):
        return Retry("conflict", "the lease of the run has ended, so nothing has happened")
    if isinstance(error, Unavailable):
        return Retry("timeout" if _is_late(error) else "communication", error.message)
    if isinstance(error, psycopg.OperationalError) and error.sqlstate is None:
        return _unreachable(error)
    state = (error.sqlstate or "") if isinstance(error, psycopg.Error) else "XX000"
    words = _words(error, state)
    type = AGAIN.get(state) or AGAIN.get(state[:2])
    if type and state not in FINAL:
        return Retry(type, words)
    return Fail(FINAL.get(state) or FINAL.get(state[:2]) or "runtime", words)


def _is_late(error: Unavailable) -> bool:
    """The server has stopped it, and rolled it back."""
    return isinstance(error.__cause__, psycopg.errors.QueryCanceled)


def _unreachable(error: psycopg.OperationalError) -> Retry | Fail:
    """libpq gives no SQLSTATE to what it hears while it connects."""
    said = str(error)
    for words in ("authentication failed", "does not exist", "is not permitted to log in"):
        if words in said:
            return Fail("configuration", f"the login of ORC_SQL_URL isn't let in: {words}")
    return Retry("communication", "the database of ORC_SQL_URL can't be reached")


def _words(error: Exception, state: str) -> str:
    diag = error.diag if isinstance(error, psycopg.Error) else None
    parts = [diag.message_primary, diag.message_detail, diag.message_hint] if diag else []
    said = "; ".join(part for part in parts if part) or str(error)
    return f"{said[:LONGEST_MESSAGE]} ({state})" if state else said[:LONGEST_MESSAGE]


KIND = Kind(
    "sql.query",
    Query,
    run,
    outside=True,
    keyed=True,
    records_itself=True,
    fixed=("statement",),
    needs="ORC_SQL_URL",
)
