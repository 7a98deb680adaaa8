"""Where outbox messages go: one file a sink.

A sink is told which messages are next, and says which it took and which it refused; the others come
again. When it can't be reached at all, that is no message's fault: it raises `Down`. Messages come
in their order, and it holds within a key: after one that it refuses, a sink takes no later one of
the same key. A name of its own, `takes_events`, these two functions, and a line in configured.py
are all that a new sink needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec


class Message(msgspec.Struct, frozen=True):
    """The id is the same however often it comes; the address is a stream, a channel, a topic."""

    position: int
    id: str
    tenant: str
    address: str
    key: str
    body: Any

    @property
    def line(self) -> tuple[str, str]:
        """What it must not overtake within."""
        return self.tenant, self.key


class Answer(msgspec.Struct):
    """Positions that were taken, and those refused, with the reason. The others weren't tried."""

    delivered: list[int] = []
    refused: dict[int, str] = {}


class Down(Exception):
    """The sink can't be reached, or takes nothing at all. Its text says why, without passwords."""


class Sink(Protocol):
    name: str
    takes_events: bool

    async def send(self, messages: Sequence[Message]) -> Answer: ...

    async def close(self) -> None: ...
