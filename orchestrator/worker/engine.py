"""What a worker makes of a claimed run: its pipeline, compiled once, and its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec

from .. import pipelines, traces
from ..expr import Condition, ExpressionError, Template
from ..pipelines.document import Callback, Pipeline, Step, Use, Wait
from ..pipelines.order import every_step
from ..steps import Context, Done, Fail, Kind, Outcome, Park, Retry, words
from ..telemetry import log
from . import tracing

LONGEST_MESSAGE = 4000

Find = Callable[[str], Kind | None]


class Run(msgspec.Struct, array_like=True, frozen=True):
    """What a claim hands out, in its order."""

    tenant: str
    id: str
    epoch: int
    attempt: int
    max_attempts: int
    pipeline: str
    timeout: float | None
    input: Any
    due_at: str
    event: Any = None  # what made it: an event, or an instant of its task
    origin: tuple[str | None, str | None] | None = None  # its trace, and the request that made it


class Settled(msgspec.Struct, omit_defaults=True):
    """What became of a run, as `orc.settle_work` takes it."""

    tenant: str
    run: str
    epoch: int
    outcome: str
    output: Any = None
    error: dict[str, Any] | None = None
    retry: bool = True
    delay: float | None = None
    waiting_for: str | None = None
    until: str | None = None
    waits: list[dict[str, Any]] | None = (
        None  # where a parked run stands; [] when it stood somewhere
    )


class Broken(Exception):
    """A step, or the run, failed. What may go better another time is a Retry."""

    def __init__(self, outcome: Retry | Fail, step: str | None = None) -> None:
        super().__init__(outcome.message)
        self.outcome = outcome
        self.step = step

    @property
    def error(self) -> dict[str, Any]:
        said = {"type": self.outcome.type, "message": storable(self.outcome.message)}
        return said | ({"step": self.step} if self.step else {})


class Unknown(Broken):
    """A crash came in the middle of a step, and it isn't known what it did."""


class Tool(msgspec.Struct, frozen=True):
    """A kind, and its arguments: ready when they are constant."""

    kind: Kind
    template: Template
    constant: Any = msgspec.UNSET

    def arguments(self, scope: Mapping[str, Any]) -> Any:
        if self.constant is not msgspec.UNSET:
            return self.constant
        return self.made_of(self.template.render(scope))

    def made_of(self, given: Any) -> Any:
        return converted(self.kind, given)


def converted(kind: Kind, given: Any) -> Any:
    values = {"values": given} if kind.name == "set" else given
    return msgspec.convert(values, kind.arguments)


class Move(msgspec.Struct, frozen=True):
    """A step of a pure pipeline."""

    id: str
    save_as: str | None
    condition: Condition | None
    tool: Tool


class Plan(msgspec.Struct):
    """A pipeline, compiled once per process. `broken` says why it can't run."""

    pipeline: Pipeline = Pipeline(steps=())
    tools: dict[str, Tool] = {}
    row: list[Move] | None = None  # pure steps, one after the other
    constant: bool = False  # and none looks at a value
    broken: Fail | None = None
    callbacks: dict[str, str] = {}  # steps that wait for one, and their paths
    looks_back: bool = False  # counts times or attempts, or has what is left after a cancel

    @property
    def pure(self) -> bool:
        return self.row is not None or self.broken is not None


def compile(document: Any, kinds: Mapping[str, Kind], find: Find = lambda uses: None) -> Plan:
    """`find` knows the tools whose names aren't fixed."""
    try:
        plan = Plan(pipelines.compile(document))
        for steps in (plan.pipeline.steps, plan.pipeline.on_error, plan.pipeline.finally_):
            for step in every_step(steps):
                if isinstance(step.body, Use):
                    plan.tools[step.path] = _tool(step, step.body, kinds, find)
    except (pipelines.Problems, msgspec.ValidationError, LookupError) as error:
        return Plan(broken=Fail("validation", str(error)))
    plan.callbacks = _callbacks(plan.pipeline)
    plan.looks_back = _looks_back(plan.pipeline)
    _flatten(plan)
    return plan


def _callbacks(pipeline: Pipeline) -> dict[str, str]:
    """Steps that wait for a callback, with their paths; `[]` follows a step that goes round."""
    found: dict[str, str] = {}
    marks: dict[str, str] = {}
    for steps in (pipeline.steps, pipeline.on_error, pipeline.finally_):
        for step in every_step(steps):
            above, _, id = step.path.rpartition("/")
            loops = step.each is not None or step.loop is not None
            marks[step.path] = (marks[above] + "/" if above else "") + id + "[]" * loops
            if isinstance(step.body, Wait) and isinstance(step.body.what, Callback):
                found[step.id] = marks[step.path]
    return found


def _looks_back(pipeline: Pipeline) -> bool:
    lists = (pipeline.steps, pipeline.on_error, pipeline.finally_)
    return bool(pipeline.timeout or pipeline.finally_) or any(
        step.retry.attempts > 1 or step.timeout.total or step.timeout.attempt
        for steps in lists
        for step in every_step(steps)
    )


def _tool(step: Step, use: Use, kinds: Mapping[str, Kind], find: Find) -> Tool:
    kind = kinds.get(use.uses) or find(use.uses)
    if kind is None:
        known = ", ".join(sorted(kinds))
        raise LookupError(f"step {step.path}: there is no tool {use.uses!r}; known: {known}")
    for name in kind.fixed:
        if use.arguments.varies(name):
            raise LookupError(f"step {step.path}: {name} holds no `${{…}}`: pass values beside it")
    if kind.keeps_arguments and any(path[0] == "secrets" for path in use.arguments.references):
        raise LookupError(f"step {step.path}: {use.uses} keeps what it's given: it takes no secret")
    if step.cache is not None:
        _check_cache(step, kind)
    if not use.arguments.is_constant:
        return Tool(kind, use.arguments)
    try:
        return Tool(kind, use.arguments, converted(kind, use.arguments.render({})))
    except msgspec.ValidationError as error:
        raise LookupError(f"step {step.path}: {error}") from None


def _check_cache(step: Step, kind: Kind) -> None:
    if not kind.recorded or kind.records_itself:
        raise LookupError(f"step {step.path}: what {kind.name} answers isn't cached")


def _flatten(plan: Plan) -> None:
    """Finds out whether it can run without a task and without a record."""
    whole = plan.pipeline
    steps = whole.steps
    if whole.on_error or whole.finally_ or whole.timeout or whole.output or not in_a_row(steps):
        return
    if not all(step == _plain(step) and plan.tools[step.path].kind.pure for step in steps):
        return
    if any("state" in _roots(step, plan.tools[step.path]) for step in steps):
        return
    plan.row = [Move(s.id, s.save_as, s.condition, plan.tools[s.path]) for s in steps]
    given = whole.inputs or whole.params
    plan.constant = not given and all(
        move.condition is None and move.tool.constant is not msgspec.UNSET for move in plan.row
    )


def _plain(step: Step) -> Step | None:
    """The step with nothing but a tool, a condition and its place in the row."""
    if not isinstance(step.body, Use):
        return None
    return Step(
        id=step.id, path=step.path, body=step.body, save_as=step.save_as, needs=step.needs,
        condition=step.condition, retry=step.retry,
    )  # fmt: skip


def _roots(step: Step, tool: Tool) -> set[str]:
    paths = {*tool.template.references, *(step.condition.references if step.condition else ())}
    return {path[0] for path in paths}


def in_a_row(steps: tuple[Step, ...]) -> bool:
    """Each step needs the one before it, and no other."""
    before = ((), *((step.id,) for step in steps))
    return all(step.needs == need for step, need in zip(steps, before, strict=False))


# Scope


def scope_of(run: Run, plan: Plan, context: Context) -> dict[str, Any]:
    """The names that expressions see. `now` is the time at which the run was made."""
    given = run.input if isinstance(run.input, dict) else {}
    try:
        params = plan.pipeline.bind(given)
    except pipelines.Problems as problems:
        raise Broken(Fail("validation", str(problems))) from None
    made_by = {} if run.event is None else {"event": run.event}
    return made_by | {
        "params": params,
        "input": params if isinstance(run.input, dict | None) else run.input,
        "vars": plan.pipeline.vars,
        "run": {"id": run.id, "tenant": run.tenant, "attempt": run.attempt},
        "now": _made_at(run.id),
        "steps": {},
        "state": {},
        "secrets": context.vault.placeholders if context.vault else {},
    }


def _made_at(id: str) -> datetime:
    milliseconds = UUID(id).int >> 80
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=milliseconds)


# Pure runs


def run_pure(run: Run, plan: Plan, context: Context) -> Settled:
    """Where it arrives: no task, no await."""
    try:
        outcome = plan.broken or _row(run, plan, context)
    except Exception as error:
        outcome = failure(run, error).outcome
    return settled(run, outcome, context)


def _row(run: Run, plan: Plan, context: Context) -> Outcome:
    scope = {} if plan.constant else scope_of(run, plan, context)
    is_traced = traces.is_on()
    for move in plan.row or ():
        value = None
        if move.condition is None or move.condition.holds(scope):
            arguments = move.tool.arguments(scope)
            kind = move.tool.kind
            outcome = (_traced(kind, arguments, context) if is_traced
                       else kind.run(arguments, context))  # fmt: skip
            if not isinstance(outcome, Done):
                assert isinstance(outcome, Retry | Fail | Park)
                return outcome
            value = outcome.value
            if move.save_as is not None:
                context.steps[move.save_as] = value
        if scope:
            scope["steps"][move.id] = value
            if move.save_as is not None:
                scope["steps"][move.save_as] = value
    return Done()


def _traced(kind: Kind, arguments: Any, context: Context) -> Outcome:
    with tracing.step(kind.name, context) as span:
        outcome = kind.run(arguments, context)
        assert isinstance(outcome, Outcome)
        tracing.came_to(span, outcome, context)
        return outcome


# Ends


def failure(run: Run, error: Exception) -> Broken:
    """What an exception says, in the words of the language."""
    match error:
        case Broken():
            return error
        case ExpressionError():
            return Broken(Fail("expression", str(error)))
        case msgspec.ValidationError():
            return Broken(Fail("validation", str(error)))
    log("step_broke", "error", run_id=run.id, exc_info=error)  # a kind raised, and should answer
    return Broken(Retry("runtime", words(error)))


def settled(
    run: Run, outcome: Outcome, context: Context, error: dict[str, Any] | None = None
) -> Settled:
    said = Settled(run.tenant, run.id, run.epoch, "succeeded")
    match outcome:
        case Done(value):
            said.output = context.steps if value is None else value
        case Park(waiting_for, until):
            said.outcome, said.waiting_for, said.until = "parked", waiting_for, until
        case Retry() | Fail():
            said.outcome, said.retry = "failed", isinstance(outcome, Retry)
            said.delay = outcome.delay if isinstance(outcome, Retry) else None
            said.error = error or Broken(outcome).error
    return said


def unstorable(said: Settled, error: Exception) -> Settled:
    """What became of a run whose own words Postgres can't hold."""
    message = storable(f"what it said can't be stored: {words(error)}")
    failed = {"type": "validation", "message": message}
    return Settled(said.tenant, said.run, said.epoch, "failed", error=failed, retry=False)


def storable(message: str) -> str:
    """Text that jsonb takes, of a length that a person reads."""
    return message[:LONGEST_MESSAGE].replace("\0", "\\0").encode(errors="backslashreplace").decode()
