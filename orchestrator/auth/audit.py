"""Who changed what, for admins."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

import msgspec

from ..wire import Endpoint, Instant, Request

Text = Annotated[str, msgspec.Meta(max_length=400)]


class AuditQuery(Request):
    """Which rows: all that is named must fit. Ids of a page are smaller than its cursor."""

    cursor: UUID | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=200)] = 50
    actor: Text | None = None
    action: Text | None = None
    subject: Text | None = None
    since: Instant | None = None
    until: Instant | None = None


class Line(msgspec.Struct):
    """One change. The actor is the id of a principal, or a login of the database."""

    id: UUID
    at: Instant
    actor: str
    actor_name: str | None
    action: str
    subject: str
    request_id: str | None
    details: Any


class Audit(msgspec.Struct):
    """A page, the newest first; the next one is after `next_cursor`."""

    items: list[Line]
    next_cursor: UUID | None


ENDPOINTS = [
    Endpoint(
        "GET",
        "/audit",
        "list_audit",
        query=AuditQuery,
        returns=Audit,
        scope="admin",
        summary="Who changed what",
    ),
]
