"""Redis Pub/Sub: the address is the channel, such as `mission:{id}`; who listens then hears it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from . import Answer, Message
from .redis import connect, reached


class RedisPubSub:
    name = "redis_pubsub"
    takes_events = False

    def __init__(self, url: str) -> None:
        self.redis = connect(url)

    async def send(self, messages: Sequence[Message]) -> Answer:
        with reached():
            async with self.redis.pipeline(transaction=False) as pipe:
                for message in messages:
                    pipe.publish(message.address, msgspec.json.encode(message.body))
                await pipe.execute()
        return Answer(delivered=[message.position for message in messages])

    async def close(self) -> None:
        await self.redis.aclose()
