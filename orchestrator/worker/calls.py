"""A tool is called, and what it is given and answers can be kept."""

from __future__ import annotations

import asyncio
import inspect
import time
from functools import cache
from typing import Any

from ..steps import Context, Fail, Kind, Retry, builtins, current
from ..telemetry import STEPS
from ..wire import LARGEST, unkeepable
from . import tracing
from .engine import Broken
from .values import passing


@cache
def _known() -> frozenset[str]:
    """Names that a metric may have for a label; those of operators' tools are without number."""
    return frozenset(builtins())


async def called(kind: Kind, arguments: Any, context: Context) -> Any:
    """In a span of its own, below which is what it asks of others."""
    began, how = time.monotonic(), "failed"
    try:
        with tracing.step(kind.name, context) as span:
            context.traceparent = span.traceparent
            outcome = await _called(kind, arguments, context)
            how = tracing.came_to(span, outcome, context)
            return outcome
    finally:
        tool = kind.name if kind.name in _known() else "operator"
        STEPS.labels(tool, how).observe(time.monotonic() - began)


async def _called(kind: Kind, arguments: Any, context: Context) -> Any:
    current.set(context)
    result = kind.run(arguments, context)
    if not inspect.isawaitable(result):
        return result
    task = asyncio.current_task()
    assert task is not None
    told = task.cancelling()
    try:
        outcome = await result
    except asyncio.CancelledError:
        if task.cancelling() > told:
            raise
        raise Broken(Retry("runtime", "the step canceled itself")) from None
    if task.cancelling() > told:  # it was told to stop, and didn't obey
        raise asyncio.CancelledError
    return outcome


WAYS_OUT = {
    "result": "project what is wanted by `output`, or keep it elsewhere and answer where"
    " (operators: ORC_VALUE_LIMIT)",
    "output": "say by `output` what is wanted of it (operators: ORC_VALUE_LIMIT)",
    "arguments": "give the tool a part of them, or where they are",
}


def kept(value: Any, what: str = "result", limit: int = LARGEST) -> Any:
    if (why := unkeepable(value, limit, passing)) is not None:
        hint = f"; {WAYS_OUT[what]}" if "the limit is" in why else ""
        raise Broken(Fail("validation", f"its {what} can't be kept: {why}{hint}"))
    return value
