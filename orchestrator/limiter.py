"""How often a caller may ask: by principal (or address) and class of route, reads and writes apart.

With Redis configured, all API processes count together; without it, or while it is down, each one
counts by itself. Nobody is refused because Redis is.
"""

from __future__ import annotations

import asyncio
import math
import time

import limits
import msgspec
from limits.aio import storage
from limits.aio.strategies import SlidingWindowCounterRateLimiter as Window

from .config import Config
from .errors import Problem, TooMany
from .telemetry import log

USUAL = "100/minute"
"""Of each caller, when nothing is said."""

REDIS_SECONDS = 0.25
"""Redis has so long to answer; then this process counts."""

REST_SECONDS = 5.0
"""And is not asked again for so long."""


class Left(msgspec.Struct, frozen=True):
    """What a caller has left of a class, and for how many seconds."""

    name: str
    quota: int
    window: int
    remaining: int
    seconds: int

    @property
    def headers(self) -> dict[str, str]:
        """As the draft of the HTTP working group has them."""
        return {
            "RateLimit-Policy": f'"{self.name}";q={self.quota};w={self.window}',
            "RateLimit": f'"{self.name}";r={self.remaining};t={self.seconds}',
        }


class Limiter:
    def __init__(self, config: Config) -> None:
        self.limit = limits.parse(config.rate_limit or USUAL) if config.limits_rates else None
        self.own = Window(storage.MemoryStorage())
        self.shared = _shared(config.redis_url) if config.redis_url and self.limit else None
        self.asked_again_at = 0.0

    async def take(self, caller: str, method: str) -> dict[str, str]:
        """The headers of the answer, or a 429. Costs nothing when there is no limit."""
        if self.limit is None:
            return {}
        name = "read" if method in {"GET", "HEAD"} else "write"
        taken, left = await self._count(self.limit, name, caller)
        if taken:
            return left.headers
        raise Problem(
            f"More than {left.quota} {name} requests in {left.window} s",
            hint=f"try again in {left.seconds} s",
            headers={**left.headers, "Retry-After": str(left.seconds)},
            kind=TooMany,
        )

    async def _count(
        self, limit: limits.RateLimitItem, name: str, caller: str
    ) -> tuple[bool, Left]:
        if self.shared is not None and time.monotonic() >= self.asked_again_at:
            try:
                async with asyncio.timeout(REDIS_SECONDS):
                    return await _hit(self.shared, limit, name, caller)
            except Exception as error:  # whatever its client raises
                self.asked_again_at = time.monotonic() + REST_SECONDS
                log("rate_limits_by_process", "warning", error=f"{type(error).__name__}: {error}")
        return await _hit(self.own, limit, name, caller)


def _shared(url: str) -> Window:
    return Window(
        storage.RedisStorage(
            f"async+{url}", implementation="redispy", key_prefix="orchestrator:limits",
            socket_timeout=REDIS_SECONDS, socket_connect_timeout=REDIS_SECONDS,
        )
    )  # fmt: skip


async def _hit(
    window: Window, limit: limits.RateLimitItem, name: str, caller: str
) -> tuple[bool, Left]:
    taken = await window.hit(limit, name, caller)
    stats = await window.get_window_stats(limit, name, caller)
    seconds = max(1, math.ceil(stats.reset_time - time.time()))
    remaining = max(0, int(stats.remaining))
    return taken, Left(name, limit.amount, limit.get_expiry(), remaining, seconds)
