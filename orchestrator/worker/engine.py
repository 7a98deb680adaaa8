"""Runs a pipeline: one step after the other, each by its kind."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Mapping
from typing import Any

import msgspec

from ..config import Config
from ..steps import Context, Done, Fail, Kind, Outcome, Park, Retry, find, words
from ..telemetry import log

LONGEST_MESSAGE = 4000


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


class Step(msgspec.Struct):
    id: str
    save_as: str
    kind: Kind
    arguments: Any


class Pipeline(msgspec.Struct):
    """Compiled once per process. `broken` says why it can't run."""

    steps: list[Step] = []
    pure: bool = True
    broken: Fail | None = None


def compile(
    document: Mapping[str, Any], kinds: Mapping[str, Kind], config: Config | None = None
) -> Pipeline:
    compiled = Pipeline()
    for number, step in enumerate(document["pipeline"]):
        try:
            compiled.steps.append(_step(number, step, kinds, config or Config()))
        except (msgspec.ValidationError, LookupError, TypeError, AttributeError) as error:
            compiled.broken = Fail("validation", f"step {number}: {error}")
            return compiled
    compiled.pure = all(step.kind.pure for step in compiled.steps)
    return compiled


def _step(number: int, step: Mapping[str, Any], kinds: Mapping[str, Kind], config: Config) -> Step:
    uses = str(step.get("uses"))
    kind = kinds.get(uses) or find(uses, config)
    if kind is None:
        raise LookupError(f"there is no tool {uses!r}; known: {', '.join(sorted(kinds))}")
    given = step.get("with") or {}
    arguments = msgspec.convert({"values": given} if uses == "set" else given, kind.arguments)
    id = str(step.get("id", number))
    return Step(id, str(step.get("save_as") or id), kind, arguments)


def run_pure(run: Run, pipeline: Pipeline, context: Context) -> Settled:
    """Where it arrives: no task, no await."""
    outcome: Outcome = pipeline.broken or Done()
    try:
        for step in pipeline.steps if not pipeline.broken else ():
            outcome = step.kind.run(step.arguments, context)  # type: ignore[assignment]
            if not isinstance(outcome, Done):
                break
            context.steps[step.save_as] = outcome.value
    except Exception as error:
        outcome = _broke(run, error)
    return settled(run, outcome, context)


async def run_any(run: Run, pipeline: Pipeline, context: Context) -> Settled:
    try:
        async with asyncio.timeout(run.timeout) as limit:
            outcome = await _steps(pipeline, context)
    except Exception as error:
        if isinstance(error, TimeoutError) and limit.expired():
            outcome = Retry("timeout", f"longer than {run.timeout:g} s")
        else:
            outcome = _broke(run, error)
    return settled(run, outcome, context)


async def _steps(pipeline: Pipeline, context: Context) -> Outcome:
    for step in pipeline.steps:
        result = step.kind.run(step.arguments, context)
        outcome = await result if inspect.isawaitable(result) else result
        if not isinstance(outcome, Done):
            return outcome
        context.steps[step.save_as] = outcome.value
    return Done()


def _broke(run: Run, error: Exception) -> Retry:
    """A kind raised what it should have answered."""
    log("step_broke", "error", run_id=run.id, exc_info=error)
    return Retry("runtime", words(error))


def settled(run: Run, outcome: Outcome, context: Context) -> Settled:
    said = Settled(run.tenant, run.id, run.epoch, "succeeded")
    match outcome:
        case Done():
            said.output = context.steps
        case Park(waiting_for, until):
            said.outcome, said.waiting_for, said.until = "parked", waiting_for, until
        case Retry(type, message, delay):
            said.outcome, said.delay = "failed", delay
            said.error = {"type": type, "message": _storable(message)}
        case Fail(type, message):
            said.outcome, said.retry = "failed", False
            said.error = {"type": type, "message": _storable(message)}
    return said


def unstorable(said: Settled, error: Exception) -> Settled:
    """What became of a run whose own words Postgres can't hold."""
    message = _storable(f"what it said can't be stored: {words(error)}")
    failed = {"type": "validation", "message": message}
    return Settled(said.tenant, said.run, said.epoch, "failed", error=failed, retry=False)


def _storable(message: str) -> str:
    """Text that jsonb takes, of a length that a person reads."""
    return message[:LONGEST_MESSAGE].replace("\0", "\\0").encode(errors="backslashreplace").decode()
