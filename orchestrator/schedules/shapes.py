"""What callers say of tasks, and what they are answered."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec

from ..wire import Instant, Limit, Offset, Place, Request

Title = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
Description = Annotated[str, msgspec.Meta(max_length=2000)]
Expression = Annotated[str, msgspec.Meta(min_length=1, max_length=4000)]
Key = Annotated[str, msgspec.Meta(min_length=1, max_length=400)]
Priority = Annotated[int, msgspec.Meta(ge=1, le=9)]
Retries = Annotated[int, msgspec.Meta(ge=0, le=10)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=316_224_000)]
Count = Annotated[int, msgspec.Meta(ge=1, le=1000)]
Queue = Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
Kind = Literal["cron", "rrule", "once", "event", "condition"]
Backoff = Literal["fixed", "linear", "exponential", "exponential_jitter"]
CatchUp = Literal["none", "latest", "all"]
Overlap = Literal["allow", "skip", "queue", "replace"]
Gap = Literal["shift", "next_valid", "skip"]
Fold = Literal["second", "first", "both"]


class Settings(Request, kw_only=True):
    """What a rule says besides its kind and its expression."""

    timezone: str = "Europe/Chisinau"
    dst_gap: Gap = "shift"
    dst_fold: Fold = "second"
    starts_at: Instant | None = None
    ends_at: Instant | None = None


class CreateTask(Settings, kw_only=True):
    """What is to be run, and when. 1 is the most urgent priority."""

    title: Title
    schedule_kind: Kind
    schedule_expr: Expression
    payload: dict[str, Any]
    description: Description | None = None
    priority: Priority = 5
    dedupe_key: Key | None = None
    dedupe_window_seconds: Seconds = 0
    max_retries: Retries = 3
    backoff_strategy: Backoff = "exponential_jitter"
    concurrency_key: Key | None = None
    concurrency_limit: Count | None = None
    created_by: UUID | None = None
    catch_up: CatchUp = "latest"
    catch_up_limit: Count = 100
    grace_seconds: Seconds = 60
    overlap: Overlap = "allow"
    jitter_seconds: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 0
    queue: Queue = "default"
    timeout_seconds: Annotated[float, msgspec.Meta(gt=0, le=1e8)] | None = None
    labels: dict[str, Any] | None = None


Unset = msgspec.UnsetType
UNSET = msgspec.UNSET


class UpdateTask(Request):
    """The fields that are to change, and no others."""

    title: Title | Unset = UNSET
    description: Description | Unset | None = UNSET
    schedule_kind: Kind | Unset = UNSET
    schedule_expr: Expression | Unset = UNSET
    timezone: str | Unset = UNSET
    dst_gap: Gap | Unset = UNSET
    dst_fold: Fold | Unset = UNSET
    starts_at: Instant | Unset | None = UNSET
    ends_at: Instant | Unset | None = UNSET
    payload: dict[str, Any] | Unset = UNSET
    priority: Priority | Unset = UNSET
    dedupe_key: Key | Unset | None = UNSET
    dedupe_window_seconds: Seconds | Unset = UNSET
    max_retries: Retries | Unset = UNSET
    backoff_strategy: Backoff | Unset = UNSET
    concurrency_key: Key | Unset | None = UNSET
    concurrency_limit: Count | Unset | None = UNSET
    catch_up: CatchUp | Unset = UNSET
    catch_up_limit: Count | Unset = UNSET
    grace_seconds: Seconds | Unset = UNSET
    overlap: Overlap | Unset = UNSET
    jitter_seconds: Annotated[float, msgspec.Meta(ge=0, le=86_400)] | Unset = UNSET
    queue: Queue | Unset = UNSET
    timeout_seconds: Annotated[float, msgspec.Meta(gt=0, le=100000000.0)] | Unset | None = UNSET
    labels: dict[str, Any] | Unset | None = UNSET


class Task(msgspec.Struct, kw_only=True):
    """A task as it is. `problem` says why no instants can be computed."""

    id: UUID
    title: str
    description: str | None
    status: Literal["active", "paused", "canceled", "completed"]
    schedule_kind: Kind
    schedule_expr: str
    timezone: str
    payload: dict[str, Any]
    priority: int
    dedupe_key: str | None
    dedupe_window_seconds: float
    max_retries: int
    backoff_strategy: Backoff
    concurrency_key: str | None
    concurrency_limit: int | None
    catch_up: CatchUp
    catch_up_limit: int
    grace_seconds: float
    overlap: Overlap
    jitter_seconds: float
    dst_gap: Gap
    dst_fold: Fold
    starts_at: Instant | None
    ends_at: Instant | None
    queue: str
    timeout_seconds: float | None
    labels: dict[str, Any] | None
    created_by: UUID | None
    created_at: Instant
    updated_at: Instant
    version: int
    next_run_at: Instant | None
    last_run_at: Instant | None
    problem: str | None


class TaskQuery(Request):
    """`q` is looked for in title and description; a `label` is a key, or key:value. The cursor is
    the `next_cursor` of a page."""

    status: Literal["active", "paused", "canceled", "completed"] | None = None
    created_by: UUID | None = None
    schedule_kind: Kind | None = None
    q: Title | None = None
    label: Key | None = None
    limit: Limit = 50
    offset: Offset = 0
    cursor: UUID | None = None


class Tasks(msgspec.Struct):
    """A page, newest first. `total` is counted up to 10,000: then it isn't exact, but at least."""

    items: list[Task]
    total: int
    total_is_exact: bool
    limit: int
    offset: int
    has_more: bool
    next_cursor: UUID | None


class CreateTasks(Request):
    """Tasks, each as POST /tasks takes it."""

    items: Annotated[list[Any], msgspec.Meta(min_length=1, max_length=10_000)]


class Made(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What became of one: its task, or why there is none."""

    index: int
    status: int
    id: UUID | None = None
    error: str | None = None
    message: str | None = None
    hint: str | None = None
    detail: list[Place] | None = None


class MadeMany(msgspec.Struct):
    """In the order in which they were given."""

    created: int
    failed: int
    items: list[Made]


class Details(msgspec.Struct, kw_only=True, omit_defaults=True):
    """`run` is the finished run, for a caller who preferred to wait for it."""

    task_id: UUID
    next_run_at: Instant | None = None
    due_work_id: UUID | None = None
    run_id: UUID | None = None
    run: dict[str, Any] | None = None


class Said(msgspec.Struct, kw_only=True):
    """What was done."""

    success: bool = True
    message: str
    details: Details


class Snooze(Request):
    """`seconds` is another name of `delay_seconds`."""

    delay_seconds: Annotated[int, msgspec.Meta(ge=1, le=604_800)] | None = None
    seconds: Annotated[int, msgspec.Meta(ge=1, le=604_800)] | None = None
    reason: Annotated[str, msgspec.Meta(max_length=1000)] | None = None


class Backfill(Request, rename={"from_": "from"}):
    """Instants from `from` up to `to` that did not run; a dry run says which."""

    from_: Instant
    to: Instant
    dry_run: bool = True


class Filled(msgspec.Struct):
    nominal_at: Instant
    state: str
    run_id: UUID | None


class Backfilled(msgspec.Struct):
    dry_run: bool
    items: list[Filled]


class Preview(Request, rename={"from_": "from"}):
    """How many instants, from when on; now when it isn't said."""

    n: Annotated[int, msgspec.Meta(ge=1, le=200)] = 10
    from_: Instant | None = None


class PreviewRule(Settings, kw_only=True, rename={"from_": "from"}):
    """A rule that isn't saved."""

    schedule_kind: Literal["cron", "rrule", "once"]
    schedule_expr: Expression
    n: Annotated[int, msgspec.Meta(ge=1, le=200)] = 10
    from_: Instant | None = None


class Previewed(msgspec.Struct):
    at: Instant
    local: str
    mark: Literal["gap", "fold"] | None


class Instants(msgspec.Struct):
    """The instants in UTC with their local times, and the rule in plain words."""

    items: list[Previewed]
    text: str


class Occurrences(Request):
    """The newest first, before an instant."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=200)] = 50
    before: Instant | None = None


class Occurrence(msgspec.Struct):
    id: UUID
    nominal_at: Instant
    state: Literal["undecided", "fired", "skipped", "coalesced", "backfilled"]
    reason: str | None
    run_id: UUID | None
    event_id: UUID | None
    decided_at: Instant
    late_seconds: float


class WhyNot(Request):
    instant: Instant


class Cause(msgspec.Struct):
    cause: str
    evidence: dict[str, Any]
    clears: str | None
