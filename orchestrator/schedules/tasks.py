"""Tasks over HTTP."""

from __future__ import annotations

import asyncio
import re
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
from psycopg.types.json import Jsonb

from ..errors import Conflict, Malformed, NotAllowed, Problem, Stale, Unavailable
from ..wire import Call, Endpoint, Place, Reply, encode
from . import zones
from .limits import BadRule
from .plan import RecentPlans, following, next_after, rule_of
from .rules import check_limits, describe
from .shapes import (
    UNSET,
    Backfill,
    Backfilled,
    Cause,
    CreateTask,
    Details,
    Filled,
    Instants,
    Occurrence,
    Occurrences,
    Preview,
    Previewed,
    PreviewRule,
    Said,
    Snooze,
    Task,
    TaskQuery,
    Tasks,
    UpdateTask,
    WhyNot,
)

RULE = ("schedule_kind", "schedule_expr", "timezone", "dst_gap", "dst_fold", "starts_at", "ends_at")
TIMED = ("cron", "rrule", "once")


def _timed(said: dict[str, Any], anchor: datetime) -> dict[str, Any]:
    """A task as `next_after` takes it."""
    return {
        **{name: _text(said[name]) for name in ("starts_at", "ends_at")},
        "kind": said["schedule_kind"], "expr": said["schedule_expr"], "zone": said["timezone"],
        "dst_gap": said["dst_gap"], "dst_fold": said["dst_fold"], "anchor": anchor.isoformat(),
        "span": None,
    }  # fmt: skip


def planned(said: dict[str, Any], anchor: datetime, start: datetime) -> dict[str, Any]:
    """The beginning of a task's plan, as its verbs take it; nothing for a rule without times."""
    if said["schedule_kind"] not in TIMED:
        zones.zone(said["timezone"])
        check_limits(said["starts_at"], said["ends_at"])
        return {}
    task = _timed(said, anchor)
    if task["kind"] == "once" and not next_after(task, start).items:
        raise BadRule("schedule_expr", "this time is past", "give a time to come, or grace_seconds")
    row = {**task, "known_from": start.isoformat(), "until_at": None, "wanted": FIRST}
    instants, known_to = following(row)
    return {"instants": instants, "known_to": known_to}


FIRST = 6
"""Instants of a new task: a scheduler computes further ones before these are used up."""

RECENT = RecentPlans()


def _text(instant: datetime | None) -> str | None:
    return instant.isoformat() if instant else None


Known = dict[bytes, list[Place]]
"""What was found wrong with pipelines and conditions: equal ones are looked at once."""


async def _planned(
    call: Call,
    said: dict[str, Any],
    anchor: datetime,
    start: datetime,
    is_new: bool = True,
    known: Known | None = None,
) -> dict[str, Any]:
    """The beginning of its plan, or every problem of rule, pipeline and condition at once."""
    places = [*await _problems(call, said, known)]
    plan: dict[str, Any] = {}
    try:
        if is_new:
            plan = await _plan(said, anchor, start)
    except BadRule as error:
        if not places:
            raise
        places += error.detail
    if places:
        count = f"{len(places)} problems" if len(places) > 1 else "1 problem"
        raise Malformed(f"The task can't be kept: {count}", detail=places)
    return plan


async def _plan(said: dict[str, Any], anchor: datetime, start: datetime) -> dict[str, Any]:
    if (known := RECENT.plan(said, start)) is not None:
        return known
    plan = await asyncio.to_thread(planned, said, anchor, start)
    RECENT.keep(said, start, plan)
    return plan


async def _problems(call: Call, said: dict[str, Any], known: Known | None) -> list[Place]:
    if known is None:
        return await _found(call, said)
    expr = said["schedule_expr"] if said["schedule_kind"] in JUDGED else ""
    key = encode([said["schedule_kind"] if expr else "", expr, said["payload"]])
    if key not in known:
        known[key] = await _found(call, said)
    return known[key]


async def _found(call: Call, said: dict[str, Any]) -> list[Place]:
    """What is wrong with a task's pipeline, and with what decides whether it runs."""
    kind, expr, payload = said["schedule_kind"], said["schedule_expr"], said["payload"]
    if kind not in JUDGED:
        return await call.app.pipeline_problems(payload, ["body", "payload"])
    probe = payload.get("probe") if kind == "condition" else None
    if kind == "condition":
        payload = {name: value for name, value in payload.items() if name != "probe"}
    places: list[Place] = await call.app.pipeline_problems(payload, ["body", "payload"])
    if isinstance(probe, dict):
        places += await _problems_of_probe(call, payload, probe)
    parts = re.split(r"\swhen\s", expr, maxsplit=1)
    if len(parts) == 2:
        roots = ("event",) if kind == "event" else ("result",)
        places += await call.app.condition_problems(parts[1], roots)
    return places


JUDGED = {"event", "condition"}
"""Kinds of rules that may have a condition in CEL."""


async def _problems_of_probe(
    call: Call, payload: dict[str, Any], probe: dict[str, Any]
) -> list[Place]:
    document = {**payload, "pipeline": [{"id": "probe", **probe}]}
    found = await call.app.pipeline_problems(document, [])
    at = ["body", "payload", "probe"]
    return [{**p, "loc": [*at, *p["loc"][2:]]} for p in found if p["loc"][:1] == ["pipeline"]]


def _grace(said: dict[str, Any]) -> timedelta:
    """How far back a single time may lie."""
    return timedelta(seconds=said["grace_seconds"] if said["schedule_kind"] == "once" else 0)


async def prepared(
    call: Call, body: CreateTask, now: datetime, known: Known | None = None
) -> dict[str, Any]:
    """What `create_task` takes of a task that was read: checked, and planned."""
    principal, said = call.principal, msgspec.structs.asdict(body)
    assert principal is not None
    said["created_by"] = str(said["created_by"] or principal.id)
    if said["created_by"] != principal.id and not principal.may("admin"):
        raise NotAllowed("created_by is somebody else", hint="leave it out: a task is its caller's")
    since = now - _grace(said)
    plan = await _planned(call, said, since, since, known=known)
    return {**said, **plan, "made_at": now}


async def _create(call: Call) -> Any:
    assert call.principal is not None
    pool, clock = call.app.pool, call.app.clock
    for now in (await clock.now(pool), None, None):
        said = await prepared(call, call.body, now or await clock.read(pool))
        row = await pool.call_one("make_task", tenant=call.principal.tenant_id, task=said)
        if row["make_task"] is not None:
            return _answer({**said, **NEW, **row["make_task"]}, status=201)
    raise Unavailable("The database's clock is being set")


NEW = {"last_run_at": None, "problem": None}
"""What is so of each new task. The rest is what its maker has said, and what was made of it."""


async def _list(call: Call) -> Tasks:
    """An admin sees all tasks of the tenant, others their own."""
    asked, principal = msgspec.structs.asdict(call.query), call.principal
    assert principal is not None
    page = {name: asked.pop(name) for name in ("limit", "offset", "cursor")}
    row = await call.app.pool.call_one(
        "list_tasks", tenant=principal.tenant_id, **page,
        filter=Jsonb({name: value for name, value in asked.items() if value is not None}),
        owner=None if principal.may("admin") else principal.id,
    )  # fmt: skip
    return msgspec.convert({**row, **page}, Tasks)


async def _get(call: Call) -> Any:
    return _answer(await _read(call))


async def _read(call: Call) -> dict[str, Any]:
    assert call.principal is not None
    arguments = {"tenant": call.principal.tenant_id, "task": call.path["task"]}
    task: dict[str, Any] = (await call.app.pool.call_one("task", **arguments))["task"]
    return task


async def _update(call: Call) -> Any:
    """By the version that was read, so that the plan fits the rule; it is tried again unless the
    caller named the version."""
    changes = {k: v for k, v in msgspec.structs.asdict(call.body).items() if v is not UNSET}
    version = _version(call.headers.get("if-match"))
    for attempt in range(5):
        try:
            return await _try_update(call, changes, version)
        except Conflict as error:
            if "its version is" not in str(error):
                raise
            if version is not None:
                hint = "read it again, and send the ETag that you get"
                raise Stale(str(error.diag.message_primary), hint=hint) from error
            if attempt == 4:
                raise
    raise AssertionError("unreachable")


def _version(tag: str | None) -> int | None:
    if tag is None or tag.strip() == "*":
        return None
    text = tag.strip().removeprefix("W/").strip('"')
    if not text.isascii() or not text.isdigit():
        raise Malformed(f"If-Match is {tag[:40]!r}", hint='send the ETag of the task: "3"')
    return int(text)


async def _try_update(call: Call, changes: dict[str, Any], version: int | None) -> Reply:
    assert call.principal is not None
    before = await _read(call)
    said = _with_times(before | changes)
    if "payload" not in changes and said["schedule_kind"] != "condition":
        said["payload"] = {k: v for k, v in said["payload"].items() if k != "probe"}
    plan: dict[str, Any] = {}
    if changes.keys() & {*RULE, "payload"}:
        now = (await call.app.pool.call_one("clock"))["clock"]
        is_new = bool(changes.keys() & set(RULE))
        plan = await _planned(call, said, _anchor(before, said), now - _grace(said), is_new)
    made = await call.app.pool.call_one(
        "update_task", tenant=call.principal.tenant_id, task=call.path["task"],
        changes=Jsonb(changes), version=version or before["version"], **plan,
    )  # fmt: skip
    return _answer(made["update_task"])


def _with_times(task: dict[str, Any]) -> dict[str, Any]:
    said = {n: task[n] for n in ("starts_at", "ends_at") if isinstance(task[n], str)}
    return task | {name: datetime.fromisoformat(text) for name, text in said.items()}


def _anchor(task: dict[str, Any], said: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(task["created_at"]) - _grace(said)


def _answer(task: dict[str, Any], status: int = 200) -> Reply:
    found = msgspec.convert(task, Task)
    headers = {"ETag": f'"{found.version}"'}
    if status == 201:
        headers["Location"] = f"/tasks/{found.id}"
    return Reply(body=found, status=status, headers=headers)


def _act(verb: str, done: str) -> Any:
    """A handler that calls a verb about one task and says what is so now."""

    async def handler(call: Call) -> Said:
        assert call.principal is not None
        place = {"tenant": call.principal.tenant_id, "task": call.path["task"]}
        row = (await call.app.pool.call_one(verb, **place))[verb]
        return _said(row, done)

    return handler


def _said(task: dict[str, Any], done: str, **more: Any) -> Said:
    at = task["next_run_at"]
    next_run_at = datetime.fromisoformat(at) if at else None
    details = Details(task_id=UUID(task["id"]), next_run_at=next_run_at, **more)
    return Said(message=f"Task {task['title']!r} {done}", details=details)


async def _run_now(call: Call) -> Reply:
    assert call.principal is not None
    place = {"tenant": call.principal.tenant_id, "task": call.path["task"]}
    run = (await call.app.pool.call_one("run_task", **place))["run_task"]
    said = _said(await _read(call), "runs now", run_id=run, due_work_id=run)
    return Reply(body=said, run=str(run))


def _with_run(said: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    return {**said, "details": {**said["details"], "run": run}}


async def _snooze(call: Call) -> Said:
    assert call.principal is not None
    said = call.body
    delay = said.delay_seconds or said.seconds
    if delay is None or (said.delay_seconds and said.seconds):
        text = "give delay_seconds, or seconds, and not both"
        raise Malformed(text, detail=[_place("delay_seconds", text)])
    row = await call.app.pool.call_one(
        "snooze_task", tenant=call.principal.tenant_id, task=call.path["task"],
        delay_seconds=delay, reason=said.reason,
    )  # fmt: skip
    return _said(row["snooze_task"], f"is snoozed by {delay} s")


def _place(field: str, text: str) -> Place:
    return {"loc": ["body", field], "msg": text, "type": "value"}


async def _saved(call: Call) -> dict[str, Any]:
    task = await _read(call)
    if task["schedule_kind"] not in TIMED:
        text = "The task has no times: it goes by events, or by a probe"
        raise Problem(text, kind=Conflict)
    return _timed(_with_times(task), _anchor(task, task))


async def _backfill(call: Call) -> Backfilled:
    assert call.principal is not None
    said, task = call.body, await _saved(call)
    until = said.to + timedelta(microseconds=1)
    before = said.from_ - timedelta(microseconds=1)
    moments = await asyncio.to_thread(next_after, task, before, 1001, until)
    if len(moments.items) > 1000:
        text = "more than 1000 instants: take a shorter time"
        raise Malformed(text, detail=[_place("to", text)])
    rows = await call.app.pool.call(
        "backfill_task", tenant=call.principal.tenant_id, task=call.path["task"],
        instants=[moment.at for moment in moments.items], dry_run=said.dry_run,
    )  # fmt: skip
    return Backfilled(said.dry_run, [Filled(**row) for row in rows])


async def _preview(call: Call) -> Instants:
    return await _shown(call, await _saved(call), call.query)


async def _preview_rule(call: Call) -> Instants:
    now = (await call.app.pool.call_one("clock"))["clock"]
    return await _shown(call, _timed(msgspec.structs.asdict(call.body), now), call.body)


async def _shown(call: Call, task: dict[str, Any], asked: Any) -> Instants:
    start = asked.from_ or (await call.app.pool.call_one("clock"))["clock"]
    return await asyncio.to_thread(_look, task, start, asked.n)


def _look(task: dict[str, Any], start: datetime, n: int) -> Instants:
    items = [Previewed(m.at, m.local.isoformat(), m.mark) for m in next_after(task, start, n).items]
    return Instants(items, describe(rule_of(task, start)))


TASK = "/tasks/{task:uuid}"
WRITE, READ = "tasks:write", "tasks:read"

ENDPOINTS = [
    Endpoint("POST", "/tasks", "create_task", CreateTask, Task, scope=WRITE, status=201,
             handler=_create, errors=(409,), summary="Makes a task"),
    Endpoint("GET", "/tasks", "list_tasks", query=TaskQuery, returns=Tasks, scope=READ,
             handler=_list, summary="Tasks, newest first"),
    Endpoint("POST", "/tasks/preview", "preview_rule", PreviewRule, Instants, scope=READ,
             handler=_preview_rule, summary="When a rule would fire, without saving it"),
    Endpoint("GET", TASK, "task", returns=Task, scope=READ, handler=_get, errors=(404,),
             summary="A task; its ETag is its version"),
    Endpoint("PUT", TASK, "update_task", UpdateTask, Task, scope=WRITE, handler=_update,
             errors=(404, 409, 412),
             summary="Changes the named fields; a new rule holds at once"),
    Endpoint("POST", f"{TASK}/run_now", "run_task", returns=Said, scope=WRITE, handler=_run_now,
             errors=(404, 409), finished=_with_run, summary="Runs a task once, now"),
    Endpoint("POST", f"{TASK}/snooze", "snooze_task", Snooze, Said, scope=WRITE, handler=_snooze,
             errors=(404, 409), summary="Moves the next run, and only that"),
    Endpoint("POST", f"{TASK}/pause", "pause_task", returns=Said, scope=WRITE,
             handler=_act("pause_task", "is paused"), errors=(404, 409),
             summary="Holds what is queued; running work is finished"),
    Endpoint("POST", f"{TASK}/resume", "resume_task", returns=Said, scope=WRITE,
             handler=_act("resume_task", "goes on"), errors=(404, 409),
             summary="Lets a paused task go on"),
    Endpoint("POST", f"{TASK}/cancel", "cancel_task", returns=Said, scope=WRITE,
             handler=_act("cancel_task", "is canceled"), errors=(404, 409),
             summary="Ends a task for good"),
    Endpoint("POST", f"{TASK}/backfill", "backfill_task", Backfill, Backfilled, scope=WRITE,
             handler=_backfill, errors=(404, 409), summary="Runs what did not run in the past"),
    Endpoint("GET", f"{TASK}/preview", "preview_task", query=Preview, returns=Instants, scope=READ,
             handler=_preview, errors=(404, 409), summary="When a task will fire"),
    Endpoint("GET", f"{TASK}/occurrences", "list_occurrences", query=Occurrences,
             returns=list[Occurrence], scope=READ, errors=(404,),
             summary="What became of its instants"),
    Endpoint("GET", f"{TASK}/why_not", "why_not", query=WhyNot, returns=list[Cause], scope=READ,
             errors=(404,), summary="Why it did not run at an instant"),
]  # fmt: skip
