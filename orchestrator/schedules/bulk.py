"""Many tasks at once: each stands or falls alone."""

from __future__ import annotations

from typing import Any

from psycopg.types.json import Jsonb

from .. import db
from ..errors import Problem
from ..wire import Call, Endpoint, Place, typed
from .shapes import CreateTask, CreateTasks, Made, MadeMany
from .tasks import WRITE, Known, prepared

PART = 250
"""Tasks that are made in one statement, which has its timeout."""

SECONDS = 60.0
ERRORS = {403: "forbidden", 404: "not_found", 409: "conflict", 422: "invalid"}


async def _create_many(call: Call) -> MadeMany:
    """Those that are good are made in one transaction. A task that is refused says why, and
    doesn't keep the others from being made."""
    assert call.principal is not None
    tenant = call.principal.tenant_id
    now = (await call.app.pool.call_one("clock"))["clock"]
    refused: list[Made] = []
    good: dict[int, dict[str, Any]] = {}
    known: Known = {}
    for index, item in enumerate(call.body.items):
        try:
            good[index] = await prepared(call, typed(item, CreateTask), now, known)
        except Problem as error:
            refused.append(_refused(index, error))
    made = await _make(call, tenant, good) if good else []
    items = sorted([*refused, *made], key=lambda row: row.index)
    failed = sum(row.status != 201 for row in items)
    return MadeMany(len(items) - failed, failed, items)


async def _make(call: Call, tenant: str, good: dict[int, dict[str, Any]]) -> list[Made]:
    places = list(good)

    async def work(connection: db.Connection) -> list[Made]:
        made: list[Made] = []
        for start in range(0, len(places), PART):
            part = places[start : start + PART]
            items = Jsonb([good[place] for place in part])
            rows = await db.call(connection, "create_tasks", tenant=tenant, items=items)
            made += [_made(part[row["nth"]], row) for row in rows]
        return made

    return await call.app.pool.together(work, SECONDS)


def _made(index: int, row: db.Row) -> Made:
    if row["code"] is None:
        return Made(index=index, status=201, id=row["task"])
    status = int(row["code"])
    message = str(row["message"]).replace("_", " ")
    return Made(index=index, status=status, error=ERRORS.get(status, "invalid"), message=message,
                hint=row["hint"] or None)  # fmt: skip


def _refused(index: int, error: Problem) -> Made:
    detail: list[Place] = [
        {"loc": ["body", "items", index, *place["loc"][1:]], "msg": place["msg"],
         "type": place["type"]}
        for place in (error.detail if isinstance(error.detail, list) else [])
    ]  # fmt: skip
    return Made(index=index, status=error.status, error=error.error, message=error.message,
                hint=error.details.get("hint"), detail=detail or None)  # fmt: skip


ENDPOINTS = [
    Endpoint("POST", "/tasks/bulk", "create_tasks", CreateTasks, MadeMany, scope=WRITE,
             handler=_create_many, body_limit=33_554_432,
             summary="Makes up to 10,000 tasks; each stands or falls alone"),
]  # fmt: skip
