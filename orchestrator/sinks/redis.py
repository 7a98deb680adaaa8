"""Redis or Valkey: the connection that its sinks share, and whether it is there."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from ..telemetry import mask
from . import Down

SECONDS = 3.0
"""In which it connects, and answers: less than half of a relay's hold."""


def connect(url: str) -> Redis:
    """Nothing is repeated behind our back: the outbox repeats, and counts."""
    return Redis.from_url(
        url, socket_timeout=SECONDS, socket_connect_timeout=SECONDS, retry=Retry(NoBackoff(), 0)
    )


@contextmanager
def reached() -> Iterator[None]:
    try:
        yield
    except (RedisError, OSError, TimeoutError) as error:
        raise Down(mask(f"{type(error).__name__}: {error}")) from error


async def is_alive(url: str, seconds: float = 2.0) -> bool:
    try:
        async with (
            asyncio.timeout(seconds),
            Redis.from_url(url, socket_connect_timeout=seconds) as redis,
        ):
            return bool(await redis.ping())
    except (RedisError, OSError, TimeoutError, ValueError):
        return False
