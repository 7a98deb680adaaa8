"""A connection that comes back. What was asked is asked again: calls bear repetition."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import psycopg
from msgspec import MsgspecError

from .. import db
from ..config import Config
from ..errors import Unavailable, is_lost, is_rolled_back
from ..telemetry import log
from .news import Said

CLASSES_THAT_PASS = ("53", "57", "58")
"""No room, an operator, a sick disk: the server's troubles, not ours."""

UNSAYABLE = (
    psycopg.DataError,
    psycopg.IntegrityError,
    psycopg.errors.ProgramLimitExceeded,
    psycopg.errors.StatementTooComplex,
    MsgspecError,
    TypeError,
    ValueError,  # a lone surrogate
    OverflowError,
    RecursionError,
)
"""An outcome or a line that can't be stored. It must not take the others with it."""


class Line:
    def __init__(self, config: Config) -> None:
        self.config = config
        self.connection: db.Connection | None = None
        self.is_over = False
        self.in_doubt = False  # an answer was lost that may have handed out runs

    async def close(self) -> None:
        if self.connection is not None:
            await self.connection.close()

    def hang_up(self) -> None:
        """Ends a call under way, even if the server is silent, and asks nothing again."""
        self.is_over = True
        if self.connection is not None:
            db.sever(self.connection)

    async def exchange(
        self,
        worker: str,
        said: Said,
        want: int,
        after: str | None,
    ) -> db.Row:
        """All of it in one transaction: said again, it changes nothing."""
        told = {
            "worker": worker,
            "outcomes": said.outcomes or None,
            "want": want,
            "after_tenant": after,
            "steps": said.records or None,
            "lines": said.lines or None,
        }
        return await self.call_one("exchange_work", **told)

    async def call_one(self, verb: str, **arguments: Any) -> db.Row:
        return (await self.call(verb, **arguments))[0]

    async def call(self, verb: str, **arguments: Any) -> list[db.Row]:
        """The answer, however often it takes."""
        failures = 0
        while True:
            try:
                connection = await self._connected()
                try:
                    return await _ask(connection, verb, arguments)
                except (psycopg.Error, Unavailable) as error:
                    self._doubt(error, arguments)
                    raise
            except (psycopg.Error, Unavailable) as error:
                if self.is_over or not _passes(error):
                    raise
                failures += 1
                if failures == 1:
                    log("database_lost", "warning", error=str(error))
                await asyncio.sleep(min(2.0, 0.05 * 2 ** min(failures, 6)) * random.uniform(0.5, 1))

    def _doubt(self, error: Exception, arguments: dict[str, Any]) -> None:
        """Runs may have been handed out, and nobody heard which: it asks for no more of them."""
        if arguments.get("want") and not _left_nothing(error) and _passes(error):
            arguments["want"] = 0
            self.in_doubt = True

    async def _connected(self) -> db.Connection:
        if self.connection is None or self.connection.closed:
            self.connection = await db.connect(
                self.config.database_url,
                role="orc_worker",
                timeout=self.config.database_timeout,
                application="orchestrator worker",
                pooler=self.config.database_pooler,
            )
        return self.connection


async def _ask(connection: db.Connection, verb: str, arguments: dict[str, Any]) -> list[db.Row]:
    return await db.call(connection, verb, **arguments)


def _passes(error: Exception) -> bool:
    """Whether it may go better in a moment."""
    if isinstance(error, Unavailable) or is_lost(error) or is_rolled_back(error):
        return True
    return isinstance(error, psycopg.Error) and (error.sqlstate or "")[:2] in CLASSES_THAT_PASS


def _left_nothing(error: Exception) -> bool:
    """Whether the transaction is known to be rolled back."""
    return is_rolled_back(error) or isinstance(error.__cause__, psycopg.errors.QueryCanceled)
