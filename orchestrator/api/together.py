"""Calls of requests that come at the same time, in one transaction.

A small call costs less than the transaction around it: round trip, plan, commit. So what comes
while a statement is under way waits for it, and then goes together. A call that is refused there
leaves nothing, and is made again alone: its error is its own.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextvars import Context
from typing import Any, NamedTuple

import msgspec
import psycopg
from psycopg.types.json import Jsonb

from .. import db
from ..errors import Unavailable, is_lost
from ..telemetry import traceparent

SHARED = {
    "run": "runs_together", "make_task": "make_together", "publish_event": "publish_together",
}  # fmt: skip
"""Small calls, and the verbs that take many of one: {tenant, actor, scopes, request, given}. They
answer each; null is for one that is to be made alone, and has left nothing."""

MOST, MOST_BYTES = 32, 10_000
"""Calls in a statement, and of one of them: what is larger goes alone. While the server works for
some callers, this process does for as many others: two statements at once would cost both more."""

PATIENCE_SECONDS = 0.01
"""A statement that takes longer doesn't keep the others waiting: they get one of their own."""


class Asked(NamedTuple):
    verb: str
    actor: db.Actor
    trace: str | None
    arguments: dict[str, Any]
    given: bytes
    answer: asyncio.Future[db.Row | None]

    def told(self) -> dict[str, Any]:
        tenant, actor, scopes, request = self.actor
        return {"tenant": tenant, "actor": actor, "scopes": scopes, "request": request,
                "given": msgspec.Raw(self.given)}  # fmt: skip


class Pool(db.Pool):
    """Connections, and the calls that share them."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.queues = {verb: Queue(self) for verb in SHARED}

    async def call(self, verb: str, /, **arguments: Any) -> list[db.Row]:
        queue, actor = self.queues.get(verb), db.acting.get()
        if queue is not None and actor is not None and actor.tenant == arguments["tenant"]:
            row = await queue.ask(verb, actor, arguments)
            if row is not None:
                return [row]
        return await super().call(verb, **arguments)

    async def call_alone(self, one: Asked) -> db.Row | None:
        """As its caller would."""
        db.acting.set(one.actor)
        traceparent.set(one.trace)
        rows = await super().call(one.verb, **one.arguments)
        return rows[0] if len(rows) == 1 else None

    async def call_all(self, batch: list[Asked]) -> list[db.Row | None]:
        db.acting.set(None)
        verb, calls = SHARED[batch[0].verb], Jsonb([one.told() for one in batch])
        try:
            return [row[verb] for row in await super().call(verb, calls=calls)]
        except psycopg.Error as error:
            if is_lost(error):
                raise
            return [None] * len(batch)  # the server has undone it: each hears alone what is wrong


class Queue:
    """Those who wait with calls of one verb, and the statements under way."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.waiting: deque[Asked] = deque()
        self.carriers: set[asyncio.Task[None]] = set()
        self.prompt: asyncio.Task[None] | None = None  # for whom it's worth to wait

    async def ask(self, verb: str, actor: db.Actor, arguments: dict[str, Any]) -> db.Row | None:
        """The row; None when it must be asked for alone."""
        given = msgspec.json.encode(arguments, enc_hook=plain)
        if len(given) > MOST_BYTES:
            return None
        if len(self.waiting) >= self.pool.max_waiting:
            raise Unavailable("Too many requests wait for the database")
        answer: asyncio.Future[db.Row | None] = asyncio.get_running_loop().create_future()
        self.waiting.append(Asked(verb, actor, traceparent.get(), arguments, given, answer))
        self._go_on()
        return await answer

    def _go_on(self) -> None:
        if self.waiting and self.prompt is None and len(self.carriers) < self.pool.max_size:
            self.prompt = asyncio.create_task(self._carry(), context=Context())
            self.carriers.add(self.prompt)
            self.prompt.add_done_callback(self._carried)

    def _carried(self, carrier: asyncio.Task[None]) -> None:
        self.carriers.discard(carrier)
        self._lose_patience(carrier)

    def _lose_patience(self, carrier: asyncio.Task[None]) -> None:
        if self.prompt is carrier:
            self.prompt = None
        self._go_on()

    async def _carry(self) -> None:
        """As long as it is prompt."""
        me = asyncio.current_task()
        assert me is not None
        await asyncio.sleep(0)  # requests that have arrived are read first
        while self.waiting and me is self.prompt:
            batch = [self.waiting.popleft() for _ in range(min(MOST, len(self.waiting)))]
            timer = me.get_loop().call_later(PATIENCE_SECONDS, self._lose_patience, me)
            await self._send(batch)
            timer.cancel()

    async def _send(self, batch: list[Asked]) -> None:
        try:
            if len(batch) == 1:
                rows = [await self.pool.call_alone(batch[0])]
            else:
                rows = await self.pool.call_all(batch)
        except Exception as error:
            for one in batch:
                if not one.answer.done():
                    one.answer.set_exception(error)
            return
        for one, row in zip(batch, rows, strict=True):
            if not one.answer.done():
                one.answer.set_result(row)


def plain(value: Any) -> Any:
    if isinstance(value, Jsonb):
        return value.obj
    raise NotImplementedError
