"""`task.condition`: judges what a probe found. A condition task ends its probe with it.

What it says travels with the step's record; when the condition has become true, its task fires.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Any

import msgspec

from ..expr import Condition, ExpressionError, condition
from ..wire import unkeepable
from . import Context, Done, Fail, Kind, Outcome


class Judge(msgspec.Struct, forbid_unknown_fields=True):
    when: Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
    result: Any = None


@lru_cache(1024)
def _condition(source: str) -> Condition:
    return condition(source, ("result",))


def run(judge: Judge, context: Context) -> Outcome:
    if (why := unkeepable(judge.result)) is not None:
        return Fail("validation", f"the probe's result can't be kept: {why}")
    try:
        holds = _condition(judge.when).holds({"result": judge.result})
    except ExpressionError as error:
        return Fail("expression", str(error))
    said = {"holds": holds, "result": judge.result}
    context.events.append({"topic": "$condition", "payload": said, "source": None})
    return Done({"holds": holds})


KIND = Kind("task.condition", Judge, run, stores=True, inner=True)
