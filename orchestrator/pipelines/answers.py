"""Answers to runs that wait, over HTTP: callbacks from outside, and approvals of people."""

from __future__ import annotations

import asyncio
from typing import Any, Literal
from uuid import UUID

import msgspec
from psycopg.types.json import Jsonb

from ..errors import Conflict, Gone, Malformed
from ..wire import Call, Endpoint, Instant, Place, Request
from .shapes import Shape


class Answered(msgspec.Struct):
    """The step, and since when it is answered: the same whenever it is said again."""

    run_id: UUID
    step: str
    answered_at: Instant


class Approve(Request):
    """A decision. The step is named when the run asks more than one question."""

    decision: Literal["approve", "reject"] = "approve"
    step: str | None = None
    form: Any = None


class Approval(msgspec.Struct):
    """How the question stands: waiting for others, or met."""

    step_id: str
    state: str
    given: int
    needed: int


async def _callback(call: Call) -> Any:
    """The token is the credential; it is used once."""
    token = call.path["token"]
    row = await call.app.pool.call_one("answer_callback", token=token, body=Jsonb(call.body))
    return Answered(**row)


async def _approve(call: Call) -> Any:
    """The form is checked against the step's schema; who may approve is the verb's matter."""
    assert call.principal is not None
    run, said, tenant = call.path["run"], call.body, call.principal.tenant_id
    pool = call.app.pool
    if said.decision == "approve":
        for question in await pool.call("open_approvals", tenant=tenant, run=run):
            if said.step in (None, question["step"]):
                # the loop answers others: a pattern or a schema may take its time
                await asyncio.to_thread(_check_form, question["form"], said.form)
    given = {
        "decision": said.decision,
        "step": said.step,
        "form": None if said.form is None else Jsonb(said.form),
    }
    row = await pool.call_one("approve_run", tenant=tenant, run=run, by=call.principal.id, **given)
    return Approval(**row)


def _check_form(schema: Any, form: Any) -> None:
    if schema is None:
        return
    places: list[Place] = [
        {"loc": ["body", "form", *problem.pointer.split("/")[1:]], "msg": problem.message,
         "type": "schema"}
        for problem in Shape(schema).problems(form)
    ]  # fmt: skip
    if places:
        raise Malformed("The form doesn't fit what the step asks for", detail=places)


ENDPOINTS = [
    Endpoint("POST", "/callbacks/{token}", "answer_callback", body=Any, returns=Answered,
             handler=_callback, errors=(404, Conflict.status, Gone.status), group="runs",
             summary="Answers a step that waits for a callback; the token is the credential"),
    Endpoint("POST", "/runs/{run:uuid}/approve", "approve_run", body=Approve, returns=Approval,
             handler=_approve, scope="runs:approve", errors=(404, Conflict.status, Gone.status),
             group="runs", summary="Approves or rejects what a run asks people"),
]  # fmt: skip
