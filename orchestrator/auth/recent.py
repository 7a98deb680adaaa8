"""What was looked up a moment ago, and is still believed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """Answers are kept for `seconds`. Who asks while an answer is being fetched waits for that."""

    def __init__(self, seconds: float, most: int = 10_000) -> None:
        self.seconds = seconds
        self.most = most
        self._kept: dict[K, tuple[V, float]] = {}
        self._fetched: dict[K, asyncio.Future[tuple[V, float]]] = {}

    async def get(self, key: K, fetch: Callable[[], Awaitable[tuple[V, float]]]) -> V:
        """`fetch` answers the value, and until when (in seconds of the epoch) it is one."""
        kept = self._kept.get(key)
        if kept is not None and kept[1] > time.monotonic():
            return kept[0]
        fetching = self._fetched.get(key)
        if fetching is None:
            fetching = asyncio.ensure_future(fetch())
            self._fetched[key] = fetching
            asked_at = time.monotonic()
            fetching.add_done_callback(lambda done: self._keep(key, done, asked_at))
        return (await asyncio.shield(fetching))[0]

    def _keep(self, key: K, done: asyncio.Future[tuple[V, float]], asked_at: float) -> None:
        del self._fetched[key]
        if done.cancelled() or done.exception() is not None:
            return
        value, ends_at = done.result()
        if len(self._kept) >= self.most:
            self._kept.clear()
        self._kept[key] = value, asked_at + min(self.seconds, ends_at - time.time())
