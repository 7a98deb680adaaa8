"""Sends the outbox: to each sink what is next, and to the database what became of it.

Any number of relays may run. One of them delivers to a sink at a time, so that the order holds;
when it goes silent, another one takes over within seconds. A sink that is slow or down costs the
others nothing: each has a courier of its own.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import time
from collections.abc import Sequence
from typing import Any

from psycopg.types.json import Jsonb

from .config import Config
from .db import Pool
from .loop import Loop
from .sinks import Answer, Down, Message, Sink
from .sinks.configured import configured
from .telemetry import DELIVERED, log

AT_ONCE = 500
INTERVAL = 0.1
SAY_SECONDS = 10.0
"""How often a relay says which sinks it has."""
LONGEST_PAUSE = 10.0
SEND_SECONDS = 4.0
"""Less than the half of a hold that is left at least when messages are taken."""


class Courier:
    """Delivers to one sink."""

    def __init__(self, pool: Pool, sink: Sink, relay: str, hold: str = "10 seconds") -> None:
        self.pool, self.sink, self.relay, self.hold = pool, sink, relay, hold
        self.failures = 0
        self.rests_until = 0.0

    async def once(self) -> int:
        """One batch: how many were taken. What a crash leaves out is sent again, with its ids."""
        if time.monotonic() < self.rests_until:
            return 0
        rows = await self._exchange(want=AT_ONCE)
        if not rows:
            return 0
        messages = [Message(**{**row, "id": str(row["id"])}) for row in rows]
        try:
            answer = await self._send(messages)
        except Down as problem:
            await self._is_down(str(problem))
            return 0
        await self._settle(answer)
        return len(answer.delivered)

    async def _send(self, messages: Sequence[Message]) -> Answer:
        try:
            async with asyncio.timeout(SEND_SECONDS):
                return await self.sink.send(messages)
        except TimeoutError:
            raise Down(f"no answer within {SEND_SECONDS:g} s") from None

    async def _settle(self, answer: Answer) -> None:
        if self.failures:
            log("sink_is_back", sink=self.sink.name, after_failures=self.failures)
            self.failures = 0
        for position, problem in answer.refused.items():
            log("message_refused", "warning", sink=self.sink.name, position=position, why=problem)
        DELIVERED.labels(self.sink.name, "sent").inc(len(answer.delivered))
        DELIVERED.labels(self.sink.name, "refused").inc(len(answer.refused))
        refused = [{"position": n, "problem": text} for n, text in answer.refused.items()]
        await self._exchange(want=0, delivered=answer.delivered, failed=refused or None)

    async def _is_down(self, problem: str) -> None:
        self.failures += 1
        pause = min(LONGEST_PAUSE, 0.1 * 2.0 ** min(self.failures, 10)) * random.uniform(0.5, 1)
        self.rests_until = time.monotonic() + pause
        if self.failures == 1:
            log("sink_is_down", "warning", sink=self.sink.name, why=problem)
        await self._exchange(want=0, problem=problem)

    async def _exchange(self, **said: Any) -> list[dict[str, Any]]:
        return await self.pool.call(
            "exchange_messages", sink=self.sink.name, relay=self.relay, lease=self.hold, **said
        )


class Relay:
    def __init__(self, pool: Pool, sinks: Sequence[Sink], hold: str = "10 seconds") -> None:
        self.pool = pool
        self.name = f"{socket.gethostname()}:{os.getpid()}:{random.randrange(1 << 32):08x}"
        self.couriers = [Courier(pool, sink, self.name, hold) for sink in sinks]
        self.under_way: dict[Courier, asyncio.Task[int]] = {}
        self.said_at = -SAY_SECONDS

    async def say(self) -> None:
        if time.monotonic() - self.said_at >= SAY_SECONDS:
            kinds = [{"name": c.sink.name, "takes_events": c.sink.takes_events}
                     for c in self.couriers]  # fmt: skip
            await self.pool.call("register_sinks", relay=self.name, sinks=Jsonb(kinds))
            self.said_at = time.monotonic()

    async def once(self) -> int:
        """A turn of every courier that isn't still at its last one; it waits for the first."""
        await self.say()
        for courier in self.couriers:
            if courier not in self.under_way:
                self.under_way[courier] = asyncio.create_task(courier.once())
        if not self.under_way:
            return 0
        tasks = self.under_way.values()
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        ended = {courier: task for courier, task in self.under_way.items() if task.done()}
        for courier in ended:
            del self.under_way[courier]
        return sum(task.result() for task in ended.values())

    async def close(self) -> None:
        """What is under way ends; then others may deliver at once."""
        await asyncio.gather(*self.under_way.values(), return_exceptions=True)
        await self.pool.call("release_sinks", relay=self.name)
        for courier in self.couriers:
            await courier.sink.close()


async def main(config: Config, health_port: int | None = None) -> None:
    async with Pool(config, role="orc_worker", application="orchestrator relay") as pool:
        relay = Relay(pool, configured(config))
        log("started", sinks=[courier.sink.name for courier in relay.couriers])
        interval = INTERVAL if relay.couriers else 1.0
        await Loop(relay.once, interval=interval, health_port=health_port).run()
        await relay.close()


async def once(pool: Pool, sinks: Sequence[Sink]) -> int:
    """Delivers until nothing is left that can be delivered now."""
    relay = Relay(pool, sinks)
    did = 0
    while did != (did := did + await relay.once()) or relay.under_way:
        pass
    await relay.close()
    return did
