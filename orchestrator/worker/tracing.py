"""A run as a trace shows it: how long it was due, its attempt, its steps."""

from __future__ import annotations

import contextvars
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from .. import telemetry, traces
from ..steps import Context, Done, Fail, Outcome, Park, Retry
from ..traces import Span

if TYPE_CHECKING:
    from .engine import Run, Settled


NOTHING = Span(None)
"""Of the many runs that no request made, where nothing is recorded: it costs nothing."""


def begin(run: Run) -> Span:
    """Below the request that made it; else in a trace that has its id, whoever takes it up."""
    if run.origin is None and not traces.is_on():
        return NOTHING
    parent = run.origin[0] if run.origin else None
    if parent is not None:
        parent = traces.received([parent])  # from psql, it may be anything
    if not traces.is_on():
        return Span(parent)
    facts: dict[str, str | int] = {
        "orchestrator.run.id": run.id,
        "orchestrator.tenant": run.tenant,
    }
    now = datetime.now(UTC)
    since = min(_instant(run.due_at) or now, now)
    due = traces.begin("due work", parent, "producer", facts, own=run.id, since=since)
    due.end()
    facts |= {"orchestrator.pipeline": run.pipeline, "orchestrator.attempt": run.attempt}
    return traces.begin("run", due.traceparent, "consumer", facts)


def _instant(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:  # infinity
        return None


def end(span: Span, said: Settled) -> None:
    if span is NOTHING:
        return
    span.note({"orchestrator.outcome": said.outcome})
    if said.outcome == "failed":
        span.fail(str((said.error or {}).get("type", "unknown")))
    span.end()


def lost(span: Span) -> None:
    """Somebody else has the run."""
    span.note({"orchestrator.outcome": "lost"})
    span.end()


def around(run: Run, span: Span) -> contextvars.Context | None:
    """Where lines of the log say what the run belongs to; None: nowhere."""
    if span is NOTHING:
        return None
    correlation = run.origin[1] if run.origin else None
    context = contextvars.copy_context()
    context.run(telemetry.carry, correlation, span.traceparent)
    return context


def step(tool: str, context: Context) -> Span:
    if not traces.is_on():
        return Span(context.traceparent)
    record = context.record or {}
    facts = {"orchestrator.tool": tool, "orchestrator.run.id": context.run}
    facts |= {"orchestrator.step": record["step"]} if "step" in record else {}
    return traces.begin(f"step {tool}", context.traceparent, facts=facts)


def came_to(span: Span, outcome: Outcome, context: Context) -> str:
    """How a step ended, in a word."""
    match outcome:
        case Done():
            return "done"
        case Park():
            return "parked"
        case Retry(type=type) | Fail(type=type):
            span.fail(context.masks.text(type))
    return "failed"
