"""Events over HTTP: published once, and every task that listens starts in the same transaction."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import lru_cache
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from psycopg.types.json import Jsonb

from . import db
from .errors import Malformed, NotAllowed
from .expr import Condition, ExpressionError, condition
from .wire import Call, Endpoint, Instant, Principal, Request

Topic = Annotated[str, msgspec.Meta(min_length=1, max_length=100, pattern=r"^[^$*\x00][^*]*\Z")]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class PublishEvent(Request):
    """Topics that begin with `$` are the service's own, and `*` is for those who listen. The same
    `event_id`, a UUIDv7 of the last day, is the same event again."""

    topic: Topic
    payload: Any = None
    source_agent_id: UUID | None = None
    event_id: UUID | None = None


class CloudEvent(msgspec.Struct, kw_only=True):
    """CloudEvents 1.0, structured: `type` is the topic and `data` the payload. The same `source`
    and `id` are the same event again, for a week. Other attributes aren't kept."""

    specversion: Literal["1.0"]
    id: Name
    source: Name
    type: Topic
    data: Any = None
    time: Instant | None = None
    datacontenttype: str = "application/json"
    data_base64: str | None = None


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


class Events(Request):
    """Of one topic, since an instant. `cursor` is the one of the page before."""

    topic: str | None = None
    since: Instant | None = None
    cursor: UUID | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=200)] = 50


class Event(msgspec.Struct):
    event_id: UUID
    topic: str
    payload: Any
    source: str | None
    published_at: Instant


class Page(msgspec.Struct):
    """The newest first. Without a cursor there are no more."""

    items: list[Event]
    cursor: UUID | None


async def _publish(call: Call) -> Said:
    principal, said = call.principal, call.body
    assert principal is not None
    event = _of_cloud(said) if isinstance(said, CloudEvent) else _ours(said, principal)
    _refuse_foreign(event["source"], principal)
    event |= {"tenant": principal.tenant_id, "payload": Jsonb(event["payload"])}
    row = await call.app.pool.call_one("publish_event", **event, at_once=True)
    if row["event_id"] is None:
        row = await call.app.pool.together(lambda connection: publish(connection, event))
    topic = event["topic"]
    details = Published(
        row["event_id"],
        str(row["event_id"]),
        topic,
        row["triggered"],
        msgspec.convert(row["published_at"], Instant),
    )
    what = "published" if row["is_new"] else "was published before"
    return Said(True, f"Event {topic!r} {what}", details)


def _ours(said: PublishEvent, principal: Principal) -> dict[str, Any]:
    source = str(said.source_agent_id or principal.id)
    return {"topic": said.topic, "payload": said.payload, "source": source, "id": said.event_id}


def _of_cloud(said: CloudEvent) -> dict[str, Any]:
    kind = said.datacontenttype.partition(";")[0].strip().lower()
    if said.data_base64 is not None or not (kind.endswith(("/json", "+json"))):
        name = "datacontenttype" if said.data_base64 is None else "data_base64"
        text = "an event's data is JSON"
        place = {"loc": ["body", name], "msg": text, "type": "value"}
        raise Malformed("The body can't be used: " + text, detail=[place])
    event = {"topic": said.type, "payload": said.data, "source": said.source}
    with suppress(ValueError):
        if (found := UUID(said.id)).version == 7:
            return {**event, "id": found}
    return {**event, "name": said.id, "at": said.time}


def _refuse_foreign(source: str, principal: Principal) -> None:
    """Agents speak for themselves: nobody else's id is a source, except to those who may do all."""
    with suppress(ValueError):
        if str(UUID(source)) != principal.id and not principal.may("admin"):
            raise NotAllowed("source_agent_id is somebody else", hint="leave it out")


async def publish(connection: db.Connection, event: dict[str, Any]) -> db.Row:
    """With the conditions of tasks that listen, evaluated in between: one transaction."""
    row = await db.call_one(connection, "publish_event", **event)
    if row["open"]:
        scope = {"event": row["event"]}
        verdicts = await asyncio.to_thread(lambda: [judged(one, scope) for one in row["open"]])
        decided = await db.call_one(connection, "decide_event", verdicts=verdicts)
        row["triggered"] += decided["decide_event"]
    return row


@lru_cache(1024)
def _condition(source: str) -> Condition:
    return condition(source, ("event",))


def judged(asked: dict[str, Any], scope: dict[str, Any]) -> dict[str, Any]:
    """Whether the condition of a task holds. One that can't be evaluated doesn't."""
    said = {name: asked[name] for name in ("tenant", "occurrence", "revision")}
    if asked["condition"] is None:
        return said
    try:
        return {**said, "holds": _condition(asked["condition"]).holds(scope)}
    except ExpressionError as error:
        return {**said, "holds": False, "problem": str(error)}


async def _list(call: Call) -> Page:
    assert call.principal is not None
    asked = msgspec.structs.asdict(call.query)
    found = await call.app.pool.call_one("list_events", tenant=call.principal.tenant_id, **asked)
    return msgspec.convert(found["list_events"], Page)


ENDPOINTS = [
    Endpoint("POST", "/events", "publish_event", PublishEvent, Said, scope="events:write",
             status=202, handler=_publish, bodies={"application/cloudevents+json": CloudEvent},
             summary="Publishes an event and starts the tasks that listen to its topic"),
    Endpoint("GET", "/events", "list_events", query=Events, returns=Page, scope="events:read",
             handler=_list, summary="What was published, the newest first"),
]  # fmt: skip
