"""The body of a step: exactly one of `uses`, `steps`, `parallel`, `switch` and `wait`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from .document import (
    Approval,
    Block,
    Body,
    Callback,
    Case,
    Event,
    Parallel,
    Sleep,
    Steps,
    Switch,
    Until,
    Use,
    Wait,
)  # fmt: skip
from .expressions import condition, template
from .fields import Fields, choice, entries, fields, items, name, span, text, whole, wrong
from .modifiers import delay, instant
from .problems import At
from .shapes import shape

KINDS = ("uses", "steps", "parallel", "switch", "wait")
WAITS = ("for", "until", "event", "callback", "approval")
TOOL = re.compile(r"[^\s\x00-\x1f${}]{1,200}")

Reader = Callable[[At, Any], Steps]
"""Reads a list of steps one level down."""


def body(given: Fields, steps: Reader) -> Body:
    kinds = [kind for kind in KINDS if kind in given]
    given.needs_beside("with", ["uses"])
    if not kinds:
        given.at.say("body", f"a step has one of {', '.join(KINDS)}; this one has none")
    for kind in kinds[1:]:
        given.place(kind).say("body", f"a step has one body: {kinds[0]} and {kind} are two")
    kind = kinds[0] if kinds else "uses"
    if kind == "uses":
        return _use(given)
    at, value = given.found[kind]
    if kind == "steps":
        return Block(steps=steps(at, value))
    if kind == "wait":
        return _wait(at, value, given)
    return _parallel(at, value, steps) if kind == "parallel" else _switch(at, value, steps)


def _use(given: Fields) -> Use:
    uses = given.read("uses", _tool, "")
    arguments = given.raw("with") if given.raw("with") is not None else {}
    at = given.place("with")
    if not isinstance(arguments, dict) and not _is_one_template(arguments):
        wrong(at, "an object, or one template that gives it", arguments)
        arguments = {}
    at = at.seeing("secrets")
    if uses:
        given.at.notes.uses.append((given.place("uses"), uses, given.found.get("with")))
    return Use(uses=uses, arguments=template(at, arguments))


def _is_one_template(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("${") and value.endswith("}")


def _tool(at: At, value: Any) -> str:
    uses = text(at, value)
    if uses and not TOOL.fullmatch(uses):
        at.say("value", f"{uses[:80]!r} can't be the name of a tool", "it is never a template")
        return ""
    return uses


def _parallel(at: At, value: Any, steps: Reader) -> Parallel:
    given = fields(at, value, ("branches", "mode"))

    def named(at: At, value: Any) -> dict[str, Steps]:
        found = {name(place, key): steps(place, item) for place, key, item in entries(at, value)}
        if value == {}:
            at.say("value", "there are no branches")
        return found

    branches = given.need("branches", named, {}) if isinstance(value, dict) else {}
    return Parallel(branches=branches, mode=given.read("mode", choice("all", "race"), "all"))


def _switch(at: At, value: Any, steps: Reader) -> Switch:
    cases: list[Case] = []
    for place, item in items(at, value):
        given = fields(place, item, ("when", "steps", "else"))
        if "else" in given:
            _else_is_last_and_alone(given, len(value))
            listed = given.read("else", steps, ())
            cases.append(Case(when=None, steps=listed))
        elif isinstance(item, dict):
            when = given.need("when", condition, None)
            cases.append(Case(when=when, steps=given.need("steps", steps, ())))
    return Switch(cases=tuple(cases))


def _else_is_last_and_alone(given: Fields, count: int) -> None:
    if given.at.path[-1] != count - 1:
        given.place("else").say("value", "else is the last case: those after it never run")
    for other in ("when", "steps"):
        if other in given:
            given.place(other).say("conflict", f"a case with else has no {other}")


# Waits


def _wait(at: At, value: Any, step: Fields) -> Wait:
    """Its timeout may stand beside it, as that of every step does."""
    given = fields(at, value, (*WAITS, "timeout", "on_timeout"))
    kinds = [kind for kind in WAITS if kind in given]
    if not kinds and isinstance(value, dict):
        at.say("body", f"a wait is for one of {', '.join(WAITS)}; this one for nothing")
    for kind in kinds[1:]:
        given.place(kind).say("body", f"a wait is for one thing: {kinds[0]} and {kind} are two")
    if "timeout" in step:
        if "timeout" in given:
            step.place("timeout").say("conflict", "the wait has a timeout of its own: keep one")
        given.found.setdefault("timeout", step.found["timeout"])
    return Wait(
        what=given.read(kinds[0], READERS[kinds[0]], Callback()) if kinds else Callback(),
        timeout=given.read("timeout", span, None),
        on_timeout=_on_timeout(given, kinds),
    )


def _on_timeout(given: Fields, kinds: list[str]) -> Any:
    given.needs_beside("on_timeout", ["timeout"])
    chosen = given.read("on_timeout", choice("fail", "continue", "reject"), "fail")
    if chosen == "reject" and kinds != ["approval"]:
        given.place("on_timeout").say("value", "only an approval can be rejected")
    if "timeout" in given and kinds and kinds[0] in ("for", "until"):
        given.place("timeout").warn("value", "a wait for a time ends by itself")
    return chosen


def _sleep(at: At, value: Any) -> Sleep:
    return Sleep(delay=delay(at, value))


def _until(at: At, value: Any) -> Until:
    return Until(instant=instant(at, value))


def _event(at: At, value: Any) -> Event:
    given = fields(at, value, ("topic", "match"))
    topic = given.need("topic", text, "")
    if "*" in topic and "${" not in topic:
        given.place("topic").say(
            "value", "a run waits for one topic, only tasks listen to patterns"
        )
    return Event(
        topic=template(given.place("topic"), topic), match=given.read("match", condition, None)
    )


def _callback(at: At, value: Any) -> Callback:
    fields(at, value, ())
    return Callback()


def _approval(at: At, value: Any) -> Approval:
    given = fields(at, value, ("from", "count", "form"))
    return Approval(
        by=given.read("from", _approvers, None),
        count=given.read("count", whole(1, 100), 1),
        form=given.read("form", shape, None),
    )


def _approvers(at: At, value: Any) -> Any:
    if isinstance(value, list):
        for place, item in items(at, value):
            text(place, item)
    else:
        text(at, value)
    return template(at, value)


READERS: dict[str, Callable[[At, Any], Any]] = {
    "for": _sleep,
    "until": _until,
    "event": _event,
    "callback": _callback,
    "approval": _approval,
}
