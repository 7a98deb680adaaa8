"""Sends the outbox. There's no outbox yet: it keeps its connection and its signals."""

from __future__ import annotations

from . import loop
from .config import Config
from .db import Pool


async def main(config: Config, health_port: int | None = None) -> None:
    await loop.run(config, "relay", once, health_port=health_port)


async def once(pool: Pool) -> int:
    """Notices a lost database; nothing is waiting to leave."""
    await pool.call_one("health")
    return 0
