"""A step: its name, its body, and what stands beside that."""

from __future__ import annotations

from typing import Any

import msgspec

from .bodies import body
from .document import Catch, Retry, Step, Steps, Timeout, Use, Wait
from .expressions import condition, template
from .fields import Fields, choice, fields, flag, items, name, wrong
from .modifiers import cache, each, errors, loop, resources, retry, timeout
from .problems import At
from .shapes import shape

MOST_STEPS = 1000
DEEPEST = 16

MODIFIERS = (
    "save_as", "if", "needs", "for_each", "max_parallel", "max_failures", "while", "until",
    "max_iterations", "retry", "timeout", "catch", "continue_on_error", "on_unknown", "output",
    "schema", "resources", "cache",
)  # fmt: skip
STEP = ("id", "uses", "with", "steps", "parallel", "switch", "wait", *MODIFIERS)
ALIASES = {"timeout_seconds": "timeout", "max_retries": "retry"}

TASK = (*STEP, "metadata")
TASK_ALIASES = {**ALIASES, "handler": "uses", "inputs": "with", "depends_on": "needs",
                "retries": "retry", "condition": "if"}  # fmt: skip


class Home(msgspec.Struct, frozen=True):
    """Where a list of steps stands, and what its steps inherit."""

    retry: Retry = Retry()
    timeout: Timeout = Timeout()
    path: tuple[str, ...] = ()
    is_flow: bool = False  # its steps are a flow's tasks
    is_parallel: bool = False  # a step without needs starts at once
    depth: int = 1

    def below(self, id: str) -> Home:
        path = (*self.path, id)
        return Home(self.retry, self.timeout, path, self.is_flow, False, self.depth + 1)


def steps(at: At, value: Any, home: Home, at_least: int = 1) -> Steps:
    found: list[Step] = []
    if home.depth > DEEPEST:
        at.say("size", f"steps are nested deeper than {DEEPEST} levels")
        return ()
    for number, (place, item) in enumerate(items(at, value, at_least)):
        at.notes.steps += 1
        if at.notes.steps == MOST_STEPS + 1:
            place.say("size", f"a pipeline has at most {MOST_STEPS} steps")
        if at.notes.steps > MOST_STEPS:
            break
        before = () if home.is_parallel or not found else (found[-1].id,)
        found.append(_step(place, item, home, _id(place, item, number), before))
    return tuple(found)


def _id(at: At, value: Any, number: int) -> str:
    """The step's own id; else its place, which has a dot or starts with a digit as no id does."""
    given = value.get("id") if isinstance(value, dict) else None
    if isinstance(given, str):
        name(at / "id", given)
        if given not in at.notes.ids:
            at.notes.ids[given] = (at / "id").pointer
            return given
        hint = f"at {at.notes.ids[given]}"
        (at / "id").say("duplicate", f"another step is called {given!r}", hint)
    listed = at.path[:-1] if at.path[0] not in ("pipeline", "tasks") else at.path[1:-1]
    return ".".join(map(str, (*listed, number)))


def _step(at: At, value: Any, home: Home, id: str, before: tuple[str, ...]) -> Step:
    at = at.of_step(id)
    at.notes.places[id] = at
    if home.is_flow and isinstance(value, dict):
        value = {field: item for field, item in value.items() if item is not None}
    known, aliases = (TASK, TASK_ALIASES) if home.is_flow else (STEP, ALIASES)
    given = fields(at, value, known, aliases)
    given.read("id", _is_text, None)
    inner = _with_item(given)
    below = home.below(id)
    content = body(inner, lambda place, listed: steps(place, listed, below))
    is_use = isinstance(content, Use)
    if isinstance(content, Wait):  # which took the timeout for its own
        given.found.pop("timeout", None)
    if not is_use and "cache" in given:
        given.place("cache").say("value", "cache has a meaning only beside uses")
    return Step(
        id=id,
        path="/".join([*home.path, id]),
        body=content,
        save_as=given.read("save_as", _save_as, id),
        needs=given.read("needs", _needs, before),
        condition=given.read("if", condition, None),
        each=each(given),
        loop=loop(given),
        retry=inner.read("retry", retry, home.retry if is_use else Retry()),
        timeout=given.read("timeout", timeout, home.timeout if is_use else Timeout()),
        catch=given.read("catch", lambda place, item: _catch(place, item, below), None),
        continue_on_error=given.read("continue_on_error", flag, False),
        on_unknown=given.read("on_unknown", choice("retry", "ask", "fail"), None),
        output=inner.read("output", _output, None),
        schema=given.read("schema", shape, None),
        resources=inner.read("resources", resources, ()),
        cache=inner.read("cache", cache, None),
    )


def _with_item(given: Fields) -> Fields:
    """The fields that are read anew for each item, or each time around."""
    names = ["item", "index"] if "for_each" in given else []
    names += ["index"] if "while" in given or "until" in given else []
    if not names:
        return given
    seeing = {name: (at.seeing(*names), value) for name, (at, value) in given.found.items()}
    return Fields(given.at, seeing)


def _is_text(at: At, value: Any) -> None:
    if not isinstance(value, str):
        wrong(at, "a name", value)


def _save_as(at: At, value: Any) -> str | None:
    return None if value is None else name(at, value)


def _needs(at: At, value: Any) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for place, id in items(at, value, at_least=0):
        if not isinstance(id, str):
            wrong(place, "the id of a step", id)
        elif id in found:
            place.say("duplicate", f"{id!r} is named twice")
        else:
            found[id] = None
            at.notes.needs[at.scope.step or "", id] = place
    return tuple(found)


def _output(at: At, value: Any) -> Any:
    return template(at.seeing("result", is_after=True), value)


def _catch(at: At, value: Any, home: Home) -> Catch:
    """The steps alone, or `{errors, steps}`."""
    at = at.seeing("error", is_after=True)
    if not isinstance(value, dict):
        return Catch(errors=None, steps=steps(at, value, home))
    given = fields(at, value, ("errors", "steps"))
    caught = given.need("steps", lambda place, item: steps(place, item, home), ())
    return Catch(errors=given.read("errors", errors, None), steps=caught)
