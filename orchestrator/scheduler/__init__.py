"""Turns rules and events into due work, and keeps the house. Any number of schedulers may run.

A tick is one call: what is due is fired by SQL, and what Python is to compute comes back with it:
further instants of rules, conditions of events. Ticks go on while it is computed; the answers go
along with the next one. Between two ticks a scheduler rests until the next instant, a
notification, or a second.

APScheduler is the clock: it wakes the ticks, and runs the chores at their cadences.
"""

from __future__ import annotations

from ..config import Config
from ..db import Pool
from ..loop import Loop
from ..telemetry import log
from .clock import Clock
from .house import Housekeeping, all_of, minutely
from .ticker import Ticker

__all__ = ["Housekeeping", "Ticker", "main", "once"]


async def main(config: Config, health_port: int | None = None) -> None:
    async with Pool(config, role="orc_worker", application="orchestrator scheduler") as pool:
        log("started")
        ticker, house, url = Ticker(pool), Housekeeping(), config.database_url
        wakes = None if config.database_pooler else lambda: ticker.hints(url)
        chores = Loop(lambda: house.once(pool))

        async def turn() -> int:
            """And an alarm for the next instant, unless a poll comes before it."""
            did = await ticker.once()
            clock.keep()
            if not did and (rest := ticker.rest()) is not None and rest < 2:
                clock.ring(rest)
            return did

        turns = Loop(turn, health_port=health_port, wakes=wakes)
        ticker.wake = turns.woken.set
        clock = Clock(turns.woken, chores.turn)
        try:
            await turns.run()
        finally:
            await clock.stop()


async def once(pool: Pool) -> int:
    """What is due now: ticks until nothing is left, and the chores of each minute."""
    ticker = Ticker(pool)
    did = 0
    while await ticker.once() or await ticker.has_answers():
        did += 1
    return did + await all_of(minutely(pool))
