"""Server-sent events: what is published, and what becomes of runs and tasks, as it happens.

A client that comes again with `Last-Event-ID` goes on where it was. What can't be told any more
is said by an event `resync`: read what there is anew, and go on.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated
from uuid import UUID

import msgspec

from ..errors import RouteNotFound
from ..wire import Call, Endpoint, Reply, Request, Stream
from .hub import PAGE, Entry, Hub, Memory, Watcher, change_entry, event_entry, frame

__all__ = ["ENDPOINTS", "Hub"]

HEARTBEAT_SECONDS = 15.0
LONGEST_SECONDS = 900.0
"""Then a stream ends, and the client shows its key again when it comes back."""
MOST_MISSED = 10_000
"""Events that are told to a client that comes again; one that missed more is told to resync."""

BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)

HELLO = b"retry: 1000\n\n"
HEARTBEAT = b":\n\n"
RESYNC = frame({"reason": "what came after your last id can't be told any more"}, event="resync")


class EventQuery(Request):
    """`*` stands for one segment. Topics of the service's own are told to filters that begin so."""

    topic: Annotated[str, msgspec.Meta(min_length=1, max_length=200)] | None = None


async def _events(call: Call) -> Stream:
    """All that is published in the tenant, as it can be seen.

    Everyone is told the same events in the same order. `id` is the event's id, `data` has
    `event_id`, `topic`, `payload`, `source_agent_id` and `published_at`. With `Last-Event-ID`, what
    came after that event is told first; when it isn't there any more, or more than 10,000 came
    after it, there is an event `resync`.
    """
    hub: Hub = call.app.streams
    last = call.headers.get("last-event-id", "")
    watcher = await hub.join(_who(call), "events")
    return Stream(_told_events(hub, watcher, last, call.query.topic), lambda: hub.leave(watcher))


async def _told_events(
    hub: Hub, watcher: Watcher, last: str, topic: str | None
) -> AsyncIterator[bytes]:
    fits, told = _filter(topic), 0
    yield HELLO
    if last:
        async for entry in _missed(hub, watcher, last):
            told = entry.position or told
            if not entry.row or fits(entry.row["topic"]):
                yield entry.frame
    async for heard in _live(watcher):
        if heard is None:
            yield HEARTBEAT
        elif heard.position > told and fits(heard.row["topic"]):
            yield heard.frame


async def _missed(hub: Hub, watcher: Watcher, last: str) -> AsyncIterator[Entry]:
    """What came after an event, until the live ones go on; or to resync."""
    tenant, count = watcher.channel.tenant, 0
    after = await _position(hub, tenant, last)
    joined = watcher.channel.after or 0
    if after is None:
        yield Entry(RESYNC)
        return
    yield Entry(b"", after)
    while after < joined and count < MOST_MISSED:
        wanted = [{"tenant": tenant, "after": after}]
        rows = await hub.pool.call("new_events", wanted=wanted, most=PAGE, is_recent=False)
        for row in rows:
            yield event_entry(row)
        if len(rows) < PAGE:
            return
        after, count = rows[-1]["position"], count + PAGE
    if after < joined:
        yield Entry(RESYNC, joined)


async def _position(hub: Hub, tenant: str, last: str) -> int | None:
    try:
        event = UUID(last)
    except ValueError:
        return None
    found = await hub.pool.call_one("event_position", tenant=tenant, event=event)
    position: int | None = found["event_position"]
    return position


def _filter(topic: str | None) -> Callable[[str], bool]:
    if topic is None:
        return lambda said: not said.startswith("$")
    pattern = re.compile(re.escape(topic).replace(r"\*", "[^.]+"))
    is_ours = topic.startswith("$")
    return lambda said: said.startswith("$") == is_ours and pattern.fullmatch(said) is not None


async def _run(call: Call) -> Stream | Reply:
    """What becomes of a run: how it stands, each attempt, each step, how it ended.

    An event `state` has `state`, `attempt` and, at the end, `success` and `error`; an event `step`
    has `step`, `state`, `attempt` and `error`. All of it is told from the beginning, or with
    `Last-Event-ID` from some seconds before that. The stream ends with the run; a client that comes
    again after its end is answered 204, and need not come any more.
    """
    hub: Hub = call.app.streams
    tenant, run, last = _who(call)[0], call.path["run"], _instant(call)
    if not (await hub.pool.call_one("run_exists", tenant=tenant, run=run))["run_exists"]:
        raise RouteNotFound(f"There is no run {run}", hint="GET /runs lists those that there are")
    watcher = await hub.join(_who(call), "run", run)
    stream = Stream(_told_changes(hub, watcher, last or BEGINNING), lambda: hub.leave(watcher))
    if last is not None and await _has_told_all(hub, tenant, run, last):
        stream.close()
        return Reply(status=204)
    return stream


async def _has_told_all(hub: Hub, tenant: str, run: str, last: datetime) -> bool:
    wanted = [{"tenant": tenant, "subject": run, "since": last.isoformat()}]
    rows = await hub.pool.call("run_changes", wanted=wanted)
    return any(row["is_last"] and row["at"] <= last for row in rows)


async def _task(call: Call) -> Stream:
    """What becomes of a task and of its runs.

    An event `task` has `status` and `next_run_at`, an event `run` has `run_id`, `state`, `attempt`
    and, at its end, `success` and `error`. It begins with how they stand. With `Last-Event-ID`,
    runs that ended since are told, too; after more than a day there is an event `resync`.
    """
    hub: Hub = call.app.streams
    task, last = call.path["task"], _instant(call)
    await hub.pool.call_one("task", tenant=_who(call)[0], task=task)
    watcher = await hub.join(_who(call), "task", task)
    is_late = last is not None and last < datetime.now(UTC) - timedelta(days=1)
    frames = _told_changes(hub, watcher, None if is_late else last, RESYNC if is_late else b"")
    return Stream(frames, lambda: hub.leave(watcher))


async def _told_changes(
    hub: Hub, watcher: Watcher, since: datetime | None, first: bytes = b""
) -> AsyncIterator[bytes]:
    """What was, then what is: each entry once."""
    yield HELLO + first
    memory = Memory()
    for row in await hub.history(watcher.channel, since):
        if memory.is_new(row):
            yield change_entry(row).frame
        if row["is_last"]:
            return
    async for heard in _live(watcher):
        if heard is None:
            yield HEARTBEAT
        elif memory.is_new(heard.row):
            yield heard.frame
            if heard.row["is_last"]:
                return


async def _live(watcher: Watcher) -> AsyncIterator[Entry | None]:
    """What is new, and None when nothing was for a while; until the stream is to end."""
    until = time.monotonic() + LONGEST_SECONDS
    while (seconds := until - time.monotonic()) > 0:
        entry = await watcher.next(min(seconds, HEARTBEAT_SECONDS))
        if entry is None and watcher.ended:
            return
        yield entry


def _who(call: Call) -> tuple[str, str]:
    assert call.principal is not None
    return call.principal.tenant_id, call.principal.id


def _instant(call: Call) -> datetime | None:
    """The time that an id of runs and tasks is; none, or one of something else, is none."""
    last = call.headers.get("last-event-id", "")
    if not (last.isascii() and last.isdigit() and len(last) < 17):
        return None
    return BEGINNING + timedelta(microseconds=int(last))


SSE = "text/event-stream"

ENDPOINTS = [
    Endpoint("GET", "/events/stream", "stream_events", query=EventQuery, scope="events:read",
             handler=_events, content_type=SSE, errors=(429,),
             summary="All that is published, as it happens (server-sent events)"),
    Endpoint("GET", "/runs/{run:uuid}/events", "stream_run", scope="runs:read",
             handler=_run, content_type=SSE, errors=(429,),
             summary="What becomes of a run, as it happens (server-sent events)"),
    Endpoint("GET", "/tasks/{task:uuid}/events", "stream_task", scope="tasks:read",
             handler=_task, content_type=SSE, errors=(429,),
             summary="What becomes of a task and its runs, as it happens (server-sent events)"),
]  # fmt: skip
