"""Redis. In time the outbox goes here; today the health page asks whether it is there."""

from __future__ import annotations

import asyncio

from redis.asyncio import Redis
from redis.exceptions import RedisError


async def is_alive(url: str, seconds: float = 2.0) -> bool:
    try:
        async with (
            asyncio.timeout(seconds),
            Redis.from_url(url, socket_connect_timeout=seconds) as redis,
        ):
            return bool(await redis.ping())
    except (RedisError, OSError, TimeoutError, ValueError):
        return False
