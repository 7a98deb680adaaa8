"""`python.call`: a function of a module that the operator allowed by name, in a thread.

Python can't stop a thread. A call that is canceled, or takes too long, is given up: its run goes on
without it, and what it answers is thrown away, but its slot is taken until it really ends. The
threads are daemons, so they don't keep a worker from ending. `orchestrator.steps.current` tells the
function which run it works for. What it prints are lines of the run's log.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import msgspec

from . import Context, Done, Fail, Kind, Outcome, Retry, current, words
from .overhearing import Heard, overheard
from .threads import Threads

threads = Threads()


class Call(msgspec.Struct, forbid_unknown_fields=True):
    function: str  # module:name
    args: dict[str, Any] = {}


async def run(call: Call, context: Context) -> Outcome:
    module = call.function.partition(":")[0]
    if module not in context.config.python_modules:
        return Fail(
            "authorization", f"module {module!r} isn't allowed: name it in ORC_PYTHON_MODULES"
        )
    heard = Heard()
    job = threads.call(partial(_overheard, call, context, heard))
    context.calls.append(job)
    try:
        answer: Outcome = await job.answer
    finally:
        context.lines += heard.end()
    context.calls.remove(job)
    return answer


def _overheard(call: Call, context: Context, heard: Heard) -> Outcome:
    with overheard(heard):
        return _outcome(call, context)


def _outcome(call: Call, context: Context) -> Outcome:
    current.set(context)
    try:
        function = _function(call)
        _signature(function).bind(**call.args)
    except (ImportError, AttributeError) as error:
        return Fail("configuration", f"{call.function}: {error}")
    except (TypeError, ValueError) as error:
        return Fail("validation", f"{call.function}: {error}")
    except BaseException as error:  # the module broke while it was imported
        return Retry("runtime", words(error))
    try:
        result = function(**call.args)
        if inspect.iscoroutine(result):
            result = asyncio.run(result)
    except BaseException as error:  # sys.exit() ends the call, not the worker
        return Retry("runtime", words(error))
    try:
        return Done(msgspec.to_builtins(result))
    except Exception as error:
        return Fail("validation", f"{call.function} answered what isn't JSON: {error}")


def _function(call: Call) -> Callable[..., Any]:
    module, _, name = call.function.partition(":")
    if not name or name.startswith("_"):
        raise AttributeError("name a public function: module:name")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


@lru_cache
def _signature(function: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(function)


KIND = Kind("python.call", Call, run, needs="ORC_PYTHON_MODULES")
