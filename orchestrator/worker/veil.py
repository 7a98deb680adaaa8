"""A call with secrets: values go in at the last moment, and nothing comes out that shows them."""

from __future__ import annotations

import traceback
from typing import Any

import msgspec
import psycopg

from ..errors import Unavailable
from ..secrets import Masks, Missing
from ..steps import Context, Done, Fail, Kind, Park, Retry, words
from ..telemetry import log
from . import calls
from .engine import Broken, Settled, Tool, converted
from .watch import Work


async def arguments(tool: Tool, given: Any, context: Context) -> Any:
    """What the tool is called with. Without secrets there's nothing to wait for."""
    vault = context.vault
    if vault is None or tool.kind.pure:
        return tool.made_of(given)
    try:
        given = await vault.reveal(given)
    except Missing as error:
        raise Broken(Fail("configuration", str(error))) from None
    except (psycopg.Error, Unavailable):
        raise Broken(Retry("communication", "the table of secrets can't be read")) from None
    try:
        return converted(tool.kind, given)
    except msgspec.ValidationError as error:
        raise Broken(Fail("validation", vault.masks.text(str(error)))) from None


def shown(given: Any, context: Context) -> Any:
    """What it is given, as it may be stored."""
    return given if context.vault is None else context.vault.shown(given)


def called(kind: Kind, given: Any, context: Context) -> Work:
    if context.vault is None:
        return calls.called(kind, given, context)
    return _called(kind, given, context)


async def _called(kind: Kind, given: Any, context: Context) -> Any:
    try:
        return veiled(await calls.called(kind, given, context), context.masks)
    except Exception as error:
        raise _broken(error, context) from None


def _broken(error: Exception, context: Context) -> Broken:
    """What a kind raised, told without what it was given."""
    masks = context.masks
    if isinstance(error, RecursionError):
        return Broken(Fail("validation", "its result is nested too deep to be kept"))
    if isinstance(error, Broken):
        return Broken(veiled(error.outcome, masks), error.step)
    said = masks.text(words(error))
    if isinstance(error, msgspec.ValidationError):
        return Broken(Fail("validation", masks.text(str(error))))
    trace = masks.text("".join(traceback.format_exception(error)))
    log("step_broke", "error", run_id=context.run, error=said, trace=trace)
    return Broken(Retry("runtime", said))


def veiled(outcome: Any, masks: Masks) -> Any:
    match outcome:
        case Done(value):
            outcome.value = masks.value(value)
        case Retry() | Fail():
            outcome.message = masks.text(outcome.message)
            outcome.type = masks.text(outcome.type)
        case Park():
            outcome.waiting_for = masks.text(outcome.waiting_for)
    return outcome


def veil_end(said: Settled, masks: Masks) -> None:
    """Once more where all that is stored passes, whoever made it."""
    said.output, said.error = masks.value(said.output), masks.value(said.error)
    said.waiting_for = masks.value(said.waiting_for)


def veil_record(record: dict[str, Any], masks: Masks) -> None:
    for name in ("output", "error", "lines"):
        if name in record:
            record[name] = masks.value(record[name])
