"""Events over HTTP: published once, and every task that listens starts in the same transaction."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any
from uuid import UUID

import msgspec
from psycopg.types.json import Jsonb

from . import db
from .errors import NotAllowed
from .expr import ExpressionError, condition
from .wire import Call, Endpoint, Instant, Request


class PublishEvent(Request):
    """Topics that begin with `$` are the service's own. The same `id` again is the same event."""

    topic: Annotated[str, msgspec.Meta(min_length=1, max_length=100, pattern=r"^[^$\x00]")]
    payload: Any = None
    source_agent_id: UUID | None = None
    id: UUID | None = None


class Published(msgspec.Struct):
    event_id: UUID
    stream_id: str
    topic: str
    triggered_tasks: int
    published_at: Instant


class Said(msgspec.Struct):
    success: bool
    message: str
    details: Published


async def _publish(call: Call) -> Said:
    principal, said = call.principal, call.body
    assert principal is not None
    source = str(said.source_agent_id or principal.id)
    if source != principal.id and not principal.may("admin"):
        raise NotAllowed("source_agent_id is somebody else", hint="leave it out")
    event = {
        "tenant": principal.tenant_id, "topic": said.topic, "payload": Jsonb(said.payload),
        "id": said.id, "source": source,
    }  # fmt: skip
    row = await call.app.pool.together(lambda connection: publish(connection, event))
    details = Published(
        row["event_id"], str(row["event_id"]), said.topic, row["triggered"], row["published_at"]
    )
    what = "published" if row["is_new"] else "was published before"
    return Said(True, f"Event {said.topic!r} {what}", details)


async def publish(connection: db.Connection, event: dict[str, Any]) -> db.Row:
    """With the conditions of tasks that listen, evaluated in between: one transaction."""
    row = await db.call_one(connection, "publish_event", **event)
    if row["open"]:
        scope = {"event": row["event"]}
        verdicts = await asyncio.to_thread(lambda: [judged(one, scope) for one in row["open"]])
        decided = await db.call_one(connection, "decide_event", verdicts=verdicts)
        row["triggered"] += decided["decide_event"]
    return row


def judged(asked: dict[str, Any], scope: dict[str, Any]) -> dict[str, Any]:
    """Whether the condition of a task holds. One that can't be evaluated doesn't."""
    said = {name: asked[name] for name in ("tenant", "occurrence", "revision")}
    try:
        return {**said, "holds": condition(asked["condition"], ("event",)).holds(scope)}
    except ExpressionError as error:
        return {**said, "holds": False, "problem": str(error)}


ENDPOINTS = [
    Endpoint("POST", "/events", "publish_event", PublishEvent, Said, scope="events:write",
             status=202, handler=_publish,
             summary="Publishes an event and starts the tasks that listen to its topic"),
]  # fmt: skip
