"""A tool is called, and what it is given and answers can be kept."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

from ..steps import Context, Fail, Kind, Retry, current
from ..wire import unkeepable
from .engine import Broken


async def called(kind: Kind, arguments: Any, context: Context) -> Any:
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


def kept(value: Any, what: str = "result") -> Any:
    if (why := unkeepable(value)) is not None:
        raise Broken(Fail("validation", f"its {what} can't be kept: {why}"))
    return value
