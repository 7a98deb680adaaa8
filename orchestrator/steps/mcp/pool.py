"""Warm sessions of a process: one a server, as many as the cap, started again with backoff."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import msgspec

from .servers import Server
from .session import Limits, Lost, Session


class _Trouble(msgspec.Struct):
    times: int = 0
    until: float = 0.0


class Pool:
    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.sessions: dict[str, Session] = {}
        self._alive: set[Session] = set()  # the retired ones, too
        self._troubles: dict[str, _Trouble] = {}
        self._freed = asyncio.Event()

    @asynccontextmanager
    async def session(self, name: str, server: Server) -> AsyncIterator[Session]:
        """A session that has begun, for one call. Raises Lost."""
        session = await self._take(name, server)
        try:
            await session.opened()
            yield session
        finally:
            session.give_back()
            self._freed.set()

    async def _take(self, name: str, server: Server) -> Session:
        while True:
            session = self.sessions.get(name)
            if session and session.usable and session.server == server:
                session.take()
                return session
            if session:
                session.retire()
                del self.sessions[name]
            elif not await self._must_wait(name):
                session = self.sessions[name] = Session(name, server, self.limits, self._broke)
                self._alive.add(session)
                session.task.add_done_callback(partial(self._ended, session))

    async def _must_wait(self, name: str) -> bool:
        """Whether it waited, for the end of a backoff or for room: then all may be different."""
        rest = self._troubles.get(name, _Trouble()).until - time.monotonic()
        if rest > self.limits.patience:
            raise Lost(f"MCP server {name!r} keeps breaking; it has a rest", delay=rest)
        if rest > 0:
            await asyncio.sleep(rest)
            return True
        if len(self._alive) < self.limits.sessions:
            return False
        self._freed.clear()
        idle = [session for session in self._alive if not session.calls]
        if idle:
            min(idle, key=lambda session: session.used_at).retire()
        await self._freed.wait()
        return True

    def _ended(self, session: Session, _: asyncio.Task[None]) -> None:
        self._alive.discard(session)
        self._freed.set()
        if self.sessions.get(session.name) is session:
            del self.sessions[session.name]

    def _broke(self, name: str) -> None:
        trouble = self._troubles.setdefault(name, _Trouble())
        delay = self.limits.first_delay * 2.0 ** min(trouble.times, 20)
        trouble.until = time.monotonic() + min(delay, self.limits.longest_delay)
        trouble.times += 1

    def works(self, name: str) -> None:
        """It has answered: its next trouble is its first."""
        self._troubles.pop(name, None)

    async def close(self) -> None:
        """Ends them all. What doesn't end in time is killed."""
        tasks = [session.task for session in self._alive]
        for seconds in (self.limits.close, self.limits.close / 4):
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks, timeout=seconds)
