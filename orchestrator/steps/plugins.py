"""Step kinds of others: entry points of the group `orchestrator.steps`, named as steps use them.

An entry point leads to a `Kind`, or to a module that has one as `KIND`. All are loaded once, before
the first run. One that can't be loaded is a line in the log, and fails the steps that use it; none
takes the name of a built-in.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, NamedTuple

from ..telemetry import log
from . import Context, Fail, Kind, builtins, words

GROUP = "orchestrator.steps"


class Plugin(NamedTuple):
    kind: Kind
    distribution: str
    problem: str = ""


@cache
def plugins() -> dict[str, Plugin]:
    found: dict[str, Plugin] = {}
    for point in entry_points(group=GROUP):
        whose = f"{point.dist.name} {point.dist.version}" if point.dist else point.value
        if point.name in builtins():
            _refuse(point, whose, "a built-in has this name")
        elif point.name in found:
            _refuse(point, whose, f"{found[point.name].distribution} has this name")
        else:
            found[point.name] = _loaded(point, whose)
    return found


def _refuse(point: EntryPoint, whose: str, why: str) -> None:
    log("step_kind_refused", "error", kind=point.name, distribution=whose, error=why)


def _loaded(point: EntryPoint, whose: str) -> Plugin:
    try:
        return Plugin(_kind(point), whose)
    except (Exception, SystemExit) as error:
        _refuse(point, whose, words(error))
        return Plugin(_broken(point.name, whose, words(error)), whose, words(error))


def _kind(point: EntryPoint) -> Kind:
    loaded = point.load()
    kind = getattr(loaded, "KIND", loaded)
    if not isinstance(kind, Kind):
        raise TypeError(f"{point.value} is neither a Kind nor a module with one as KIND")
    if kind.name != point.name:
        raise ValueError(f"the kind calls itself {kind.name!r}, the entry point {point.name!r}")
    return kind


def _broken(name: str, whose: str, why: str) -> Kind:
    def run(_: Any, __: Context) -> Fail:
        return Fail("configuration", f"{name} can't be loaded from {whose}: {why}")

    return Kind(name, dict[str, Any], run)
