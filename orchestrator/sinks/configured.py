"""Which sinks the environment asks for."""

from __future__ import annotations

from ..config import Config
from . import Sink


def configured(config: Config) -> list[Sink]:
    """The client of Redis is imported where there is one: it brings the SDK of OpenTelemetry."""
    if not config.redis_url:
        return []
    from .redis_pubsub import RedisPubSub
    from .redis_stream import RedisStream

    return [RedisStream(config.redis_url), RedisPubSub(config.redis_url)]
