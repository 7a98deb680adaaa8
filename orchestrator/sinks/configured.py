"""Which sinks the environment asks for."""

from __future__ import annotations

from ..config import Config
from . import Sink
from .redis_pubsub import RedisPubSub
from .redis_stream import RedisStream


def configured(config: Config) -> list[Sink]:
    if not config.redis_url:
        return []
    return [RedisStream(config.redis_url), RedisPubSub(config.redis_url)]
