"""Who watches what, in one process: one reader for all of them.

While anybody watches, the hub asks the database a few times a second for what is new, in one call
for all events, one for all runs and one for all tasks, whatever the number of watchers. It takes
connections from the process's pool, and none for itself. A watcher whose client doesn't read has a
bounded queue; when that is full, its stream ends, and the client may come again.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Awaitable
from contextvars import Context
from datetime import datetime, timedelta
from typing import Any

import msgspec
import psycopg

from ..db import Pool, Row
from ..errors import TooManyStreams, Unavailable
from ..telemetry import log

INTERVAL = 0.1
PAGE = 500
BACK_SECONDS = 5.0
"""Entries of runs are asked for again for so long: a transaction may commit after a later one."""
QUEUE = 1000
REMEMBERED = 10_000

VERBS = {"run": "run_changes", "task": "task_changes"}


class Entry(msgspec.Struct, frozen=True):
    """What a client is told: a frame, and where it stands."""

    frame: bytes
    position: int = 0
    row: Row = {}


class Memory:
    """What was told of a run or a task: entries by their times, and how things stand."""

    def __init__(self) -> None:
        self.told: dict[tuple[str, str, datetime], None] = {}
        self.stands: dict[tuple[str, str], Any] = {}

    def is_new(self, row: Row) -> bool:
        what = (row["kind"], row["name"])
        if row["at"] is None:
            before = self.stands.get(what)
            self.stands[what] = row["data"]
            return bool(before != row["data"])
        key = (*what, row["at"])
        if key in self.told:
            return False
        self.told[key] = None
        if len(self.told) > REMEMBERED:
            del self.told[next(iter(self.told))]
        self.stands.pop((row["kind"], "") if row["kind"] == "state" else what, None)
        return True


class Channel:
    """What some watchers have in common: the events of a tenant, a run, a task."""

    def __init__(self, kind: str, tenant: str, subject: str = "") -> None:
        self.kind, self.tenant, self.subject = kind, tenant, subject
        self.watchers: set[Watcher] = set()
        self.after: int | None = None
        self.memory = Memory()

    @property
    def wanted(self) -> dict[str, Any]:
        if self.kind == "events":
            return {"tenant": self.tenant, "after": self.after}
        known = [name for kind, name in self.memory.stands if kind == "run"]
        return {"tenant": self.tenant, "subject": self.subject, "known": known}

    def tell(self, entry: Entry) -> None:
        for watcher in list(self.watchers):
            watcher.offer(entry)


class Watcher:
    """One client: what it is still to be told."""

    def __init__(self, channel: Channel, who: tuple[str, str]) -> None:
        self.channel, self.who = channel, who
        self.queue: deque[Entry] = deque()
        self.stirred = asyncio.Event()
        self.ended = False

    def offer(self, entry: Entry) -> None:
        if len(self.queue) >= QUEUE:
            log("slow_stream_dropped", "warning", tenant=self.channel.tenant, of=self.channel.kind)
            self.queue.clear()
            self.end()
        elif not self.ended:
            self.queue.append(entry)
            self.stirred.set()

    def end(self) -> None:
        self.ended = True
        self.stirred.set()

    async def next(self, seconds: float) -> Entry | None:
        """The next entry, or None: nothing came for so long, or it ended."""
        if not self.queue and not self.ended:
            self.stirred.clear()
            try:
                await asyncio.wait_for(self.stirred.wait(), seconds)
            except TimeoutError:
                return None
        return self.queue.popleft() if self.queue else None


class Hub:
    def __init__(self, pool: Pool, limit: int) -> None:
        self.pool, self.limit = pool, limit
        self.channels: dict[tuple[str, str, str], Channel] = {}
        self.held: Counter[tuple[str, str]] = Counter()
        self.reader: asyncio.Task[None] | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.closing = False

    @property
    def open(self) -> Counter[str]:
        """How many watch what."""
        count = Counter[str]()
        for channel in self.channels.values():
            count[channel.kind] += len(channel.watchers)
        return count

    async def join(self, who: tuple[str, str], kind: str, subject: str = "") -> Watcher:
        """A place in a channel. `leave` gives it back."""
        if self.closing:
            raise Unavailable("The service is about to stop", hint="connect again")
        if self.held[who] >= self.limit:
            raise TooManyStreams(f"{self.limit} streams are open already", hint="close some")
        self.held[who] += 1
        key = (kind, who[0], subject)
        channel = self.channels.setdefault(key, Channel(*key))
        watcher = Watcher(channel, who)
        channel.watchers.add(watcher)
        try:
            if kind == "events" and channel.after is None:
                head = await self.pool.call_one("stream_head", tenant=who[0])
                channel.after = channel.after or head["stream_head"]
        except BaseException:
            self.leave(watcher)
            raise
        self._read()
        return watcher

    def leave(self, watcher: Watcher) -> None:
        channel = watcher.channel
        if watcher not in channel.watchers:
            return
        channel.watchers.discard(watcher)
        self.held[watcher.who] -= 1
        if not self.held[watcher.who]:
            del self.held[watcher.who]
        if not channel.watchers:
            self.channels.pop((channel.kind, channel.tenant, channel.subject), None)

    async def history(self, channel: Channel, since: datetime | None) -> list[Row]:
        """What happened to a run or a task since a time and a little before; and how it stands."""
        wanted: dict[str, Any] = {"tenant": channel.tenant, "subject": channel.subject}
        if since is not None:
            back = timedelta(seconds=BACK_SECONDS) if since.year > 1970 else timedelta()
            wanted["since"] = (since - back).isoformat()
        return await self.pool.call(VERBS[channel.kind], wanted=[wanted], back=0)

    def close(self) -> None:
        """Ends all streams. A signal handler may call it."""
        self.closing = True
        if self.loop is not None and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._end_all)

    async def stop(self) -> None:
        """Nobody is told anything any more, and nothing is read."""
        self.closing = True
        self._end_all()
        if self.reader is not None:
            self.reader.cancel()
            await asyncio.wait([self.reader])

    def _end_all(self) -> None:
        for channel in self.channels.values():
            for watcher in channel.watchers:
                watcher.end()

    def _read(self) -> None:
        self.loop = asyncio.get_running_loop()
        if self.reader is None or self.reader.done():
            self.reader = asyncio.create_task(self._turns(), context=Context())

    async def _turns(self) -> None:
        """Ends when nobody watches any more."""
        read_at, failures = time.monotonic(), 0
        while self.channels:
            began, more = time.monotonic(), False
            try:
                more = await self._turn(began - read_at + BACK_SECONDS)
                read_at, failures = began, 0
            except (psycopg.Error, Unavailable) as error:
                failures += 1
                if failures == 1:
                    log("streams_stand_still", "warning", error=str(error))
            if not more:
                await asyncio.sleep(min(INTERVAL * 2**failures, 2.0))

    async def _turn(self, back: float) -> bool:
        """What is new, to whom it concerns; whether there may be more at once."""
        turns: list[Awaitable[bool]] = []
        if known := [c for c in self._channels("events") if c.after is not None]:
            turns.append(self._events(known))
        turns += [
            self._changes(verb, self._channels(kind), back)
            for kind, verb in VERBS.items()
            if self._channels(kind)
        ]
        return any(await asyncio.gather(*turns))

    def _channels(self, kind: str) -> list[Channel]:
        return [channel for channel in self.channels.values() if channel.kind == kind]

    async def _events(self, channels: list[Channel]) -> bool:
        wanted = [channel.wanted for channel in channels]
        rows = await self.pool.call("new_events", wanted=wanted, most=PAGE)
        by_tenant = {channel.tenant: channel for channel in channels}
        for row in rows:
            by_tenant[row["tenant"]].after = row["position"]
            by_tenant[row["tenant"]].tell(event_entry(row))
        return len(rows) >= PAGE

    async def _changes(self, verb: str, channels: list[Channel], back: float) -> bool:
        by_subject = {(c.tenant, c.subject): c for c in channels}
        wanted = [channel.wanted for channel in channels]
        for row in await self.pool.call(verb, wanted=wanted, back=back):
            channel = by_subject[row["tenant"], str(row["subject"])]
            if channel.memory.is_new(row):
                channel.tell(change_entry(row))
        return False


def event_entry(row: Row) -> Entry:
    return Entry(frame(row["event"], id=str(row["id"])), position=row["position"], row=row["event"])


def change_entry(row: Row) -> Entry:
    id = "" if row["at"] is None else str(round(row["at"].timestamp() * 1_000_000))
    return Entry(frame(row["data"], event=row["kind"], id=id), row=row)


def frame(data: Any, *, event: str = "", id: str = "") -> bytes:
    """One event as text/event-stream has it. JSON has no line breaks of its own."""
    head = (f"id: {id}\n" if id else "") + (f"event: {event}\n" if event else "")
    return head.encode() + b"data: " + msgspec.json.encode(data) + b"\n\n"
