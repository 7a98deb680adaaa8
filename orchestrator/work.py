"""Runs over HTTP: lists by filters, one run with its steps, and what people do to runs."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from psycopg.types.json import Jsonb

from .wire import Call, Endpoint, Instant, Limit, Offset, Reply, Request

State = Literal[
    "scheduled", "ready", "blocked", "running", "waiting", "succeeded", "failed", "canceled",
    "skipped",
]  # fmt: skip
Kind = Literal["task", "flow", "mission", "run"]
Word = Annotated[str, msgspec.Meta(min_length=1, max_length=400)]


class Filter(Request, kw_only=True):
    """Which runs: the same words for lists and for what is done to many at once. What isn't
    named isn't asked for. `success` false is failed or canceled; times are of the making, from
    `start_time` up to before `end_time`; a `label` is a key, or key:value."""

    kind: Kind | Literal["all"] = "task"
    task_id: UUID | None = None
    flow_id: Word | None = None
    queue: Word | None = None
    state: State | None = None
    success: bool | None = None
    start_time: Instant | None = None
    end_time: Instant | None = None
    error_type: Word | None = None
    fingerprint: Word | None = None
    label: Word | None = None


class RunQuery(Filter, kw_only=True):
    """Runs of tasks, unless `kind` says otherwise. The cursor is the `next_cursor` of a page."""

    limit: Limit = 50
    offset: Offset = 0
    cursor: UUID | None = None


class FailureQuery(Filter):
    limit: Limit = 50


class LogQuery(Request):
    """Lines after that of the cursor: the `next_cursor` of a page, or the id of the last line."""

    limit: Limit = 50
    cursor: UUID | None = None


class OutputQuery(Request):
    """A step's, when it is named as `steps` show it."""

    step: Word | None = None


class Elsewhere(msgspec.Struct):
    """A value that is too large to be shown here: its size, and where it is whole."""

    bytes: int
    url: str


class Run(msgspec.Struct, kw_only=True):
    """A run. 1 is the most urgent priority of a task's run, 9 the least."""

    id: UUID
    kind: str
    task_id: UUID | None
    state: State
    success: bool | None
    attempt: int
    lease_owner: UUID | None
    leased_until: Instant | None
    started_at: Instant | None
    finished_at: Instant | None
    error: str | None
    output: Any
    output_ref: Elsewhere | None
    created_at: Instant
    due_at: Instant | None
    priority: int
    retry_of: UUID | None


class Step(msgspec.Struct, kw_only=True):
    """What is on record of a step; `orders[2]/pay` is one inside, of the third time round."""

    step: str
    state: Literal["started", "waiting", "succeeded", "failed", "skipped", "unknown"]
    attempt: int
    started_at: Instant | None
    finished_at: Instant | None
    arguments: Any
    output: Any
    output_ref: Elsewhere | None
    error: Any
    cached: bool


class Attempt(msgspec.Struct, kw_only=True):
    """A try of the run; `outcome` is its state while it runs, and when it ended the run."""

    attempt: int
    outcome: str
    worker_id: UUID | None
    started_at: Instant | None
    finished_at: Instant | None
    error: Any


class WholeRun(Run, kw_only=True):
    """A run with its first 1,000 steps and its last 200 attempts."""

    steps: list[Step]
    has_more_steps: bool
    attempts: list[Attempt]


class Runs(msgspec.Struct):
    """A page, newest first. `total` is counted up to 10,000: then it isn't exact, but at least."""

    items: list[Run]
    total: int
    total_is_exact: bool
    limit: int
    offset: int
    has_more: bool
    next_cursor: UUID | None


class FailureGroup(msgspec.Struct):
    """Failed runs with the same type of error, step and message, but for numbers and quotes."""

    fingerprint: str
    type: str | None
    message: str | None
    runs: int
    first_at: Instant
    last_at: Instant
    latest_run: UUID


class Failures(msgspec.Struct):
    """Groups, by the latest failure; of the latest 5,000 failed runs that fit."""

    items: list[FailureGroup]
    looked_at: int
    is_all: bool


class LogLine(msgspec.Struct):
    """What a run wrote with log.write, or the service about it."""

    id: UUID
    at: Instant
    level: Literal["debug", "info", "warning", "error"]
    message: str
    facts: Any


class Logs(msgspec.Struct):
    """A page, the oldest first."""

    items: list[LogLine]
    next_cursor: UUID | None


class Canceled(msgspec.Struct):
    """`canceled` is false when it had ended before; `state` is what it is now."""

    run_id: UUID
    state: State
    canceled: bool


class RetryMany(Request):
    """Failed runs that weren't retried yet. A dry run, which is the default, says which."""

    where: Filter = msgspec.field(default_factory=Filter)
    dry_run: bool = True
    most: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 1000
    per_second: Annotated[float, msgspec.Meta(gt=0, le=10_000)] = 100


class Retried(msgspec.Struct):
    run: UUID
    retried_as: UUID | None


class RetriedMany(msgspec.Struct):
    """The oldest first; `count` of them."""

    dry_run: bool
    count: int
    items: list[Retried]


class RunCause(msgspec.Struct):
    """Why a run is where it is: the cause, its evidence, and when it clears."""

    cause: str
    evidence: dict[str, Any]
    clears: str | None


def owner(call: Call) -> str | None:
    """Whose things a caller sees: his own, an admin all of the tenant."""
    assert call.principal is not None
    return None if call.principal.may("admin") else call.principal.id


def _wanted(filter: Filter) -> Jsonb:
    names = Filter.__struct_fields__
    said = {name: value for name in names if (value := getattr(filter, name)) is not None}
    return Jsonb(said)


async def _ask(call: Call, verb: str, **arguments: Any) -> Any:
    """One row of a verb about what the caller may see."""
    assert call.principal is not None
    tenant = call.principal.tenant_id
    return await call.app.pool.call_one(verb, tenant=tenant, owner=owner(call), **arguments)


async def _act(call: Call, verb: str, **arguments: Any) -> Any:
    """The same of a verb that changes a run, once the caller has seen that it is there."""
    assert call.principal is not None
    tenant, run = call.principal.tenant_id, call.path["run"]
    await _ask(call, "see_run", run=run)
    return await call.app.pool.call_one(verb, tenant=tenant, run=run, **arguments)


async def _list(call: Call) -> Runs:
    asked = call.query
    page = {name: getattr(asked, name) for name in ("limit", "offset", "cursor")}
    row = await _ask(call, "list_runs", filter=_wanted(asked), **page)
    return msgspec.convert({**row, **page}, Runs)


async def _run(call: Call) -> WholeRun:
    return await _read(call, call.path["run"])


async def _read(call: Call, run: str) -> WholeRun:
    return msgspec.convert((await _ask(call, "run", run=run))["run"], WholeRun)


async def _output(call: Call) -> Reply:
    """The output of a run that has ended, or of one of its steps, however large."""
    row = await _ask(call, "run_output", run=call.path["run"], step=call.query.step)
    return Reply(body=row["run_output"])


async def _logs(call: Call) -> Logs:
    page = {"limit": call.query.limit, "cursor": call.query.cursor}
    row = await _ask(call, "list_logs", run=call.path["run"], **page)
    return msgspec.convert(row["list_logs"], Logs)


async def _why(call: Call) -> list[RunCause]:
    assert call.principal is not None
    run, tenant = call.path["run"], call.principal.tenant_id
    await _ask(call, "see_run", run=run)
    rows = await call.app.pool.call("why", run=run, tenant=tenant)
    return [RunCause(**row) for row in rows]


async def _failures(call: Call) -> Failures:
    row = await _ask(call, "run_failures", filter=_wanted(call.query), limit=call.query.limit)
    return msgspec.convert(row, Failures)


async def _cancel(call: Call) -> Canceled:
    row = await _act(call, "cancel_run")
    return Canceled(UUID(call.path["run"]), row["state"], row["canceled"])


async def _retry(call: Call) -> Reply:
    return await _started(call, (await _act(call, "retry_run"))["retry_run"])


async def _retry_from(call: Call) -> Reply:
    """The new run has the records of the steps that don't come after the named one."""
    step = call.path["step"]
    document = (await _act(call, "pipeline_of"))["pipeline_of"]
    keep = await call.app.steps_before(document, step)
    row = await _act(call, "retry_from", step=step, keep=keep)
    return await _started(call, row["retry_from"])


async def _started(call: Call, run: UUID) -> Reply:
    location = {"Location": f"/runs/{run}"}
    return Reply(body=await _read(call, str(run)), status=202, headers=location, run=str(run))


async def _retry_many(call: Call) -> RetriedMany:
    said = call.body
    assert call.principal is not None
    rows = await call.app.pool.call(
        "retry_where", tenant=call.principal.tenant_id, owner=owner(call), most=said.most,
        filter=_wanted(said.where), dry_run=said.dry_run, per_second=said.per_second,
    )  # fmt: skip
    return RetriedMany(said.dry_run, len(rows), [Retried(**row) for row in rows])


RUN = "/runs/{run:uuid}"
READ, WRITE = "runs:read", "runs:write"

ENDPOINTS = [
    Endpoint("GET", "/runs", "list_runs", query=RunQuery, returns=Runs, scope=READ, handler=_list,
             summary="Runs, newest first"),
    Endpoint("GET", "/runs/failures", "run_failures", query=FailureQuery, returns=Failures,
             scope=READ, handler=_failures, summary="Failed runs, grouped by what went wrong"),
    Endpoint("POST", "/runs/retry", "retry_where", RetryMany, RetriedMany, scope=WRITE,
             handler=_retry_many, summary="Retries failed runs by a filter; says which, first"),
    Endpoint("GET", RUN, "run", returns=WholeRun, scope=READ, handler=_run,
             summary="A run with its steps and attempts"),
    Endpoint("GET", f"{RUN}/output", "run_output", query=OutputQuery, returns=Any, scope=READ,
             handler=_output, errors=(409,), summary="What came out of a run, whole"),
    Endpoint("GET", f"{RUN}/logs", "list_logs", query=LogQuery, returns=Logs, scope=READ,
             handler=_logs, summary="The lines that a run wrote"),
    Endpoint("GET", f"{RUN}/why", "why", returns=list[RunCause], scope=READ, handler=_why,
             summary="Why a run is where it is"),
    Endpoint("POST", f"{RUN}/cancel", "cancel_run", returns=Canceled, scope=WRITE,
             handler=_cancel, summary="Ends a run, or tells a running one to stop"),
    Endpoint("POST", f"{RUN}/retry", "retry_run", returns=WholeRun, scope=WRITE, status=202,
             handler=_retry, errors=(409,), finished=lambda _, run: run,
             summary="Makes a new run like a finished one"),
    Endpoint("POST", f"{RUN}/retry_from/{{step}}", "retry_from", returns=WholeRun, scope=WRITE,
             status=202, handler=_retry_from, errors=(409, 422), finished=lambda _, run: run,
             summary="The same from a step on: what came before it isn't done again"),
]  # fmt: skip
