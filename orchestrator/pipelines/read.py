"""A document becomes a pipeline, in the plain spelling or in a flow's."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from .document import Concurrency, Input, Pipeline, Retry, Steps, Timeout
from .expressions import Template, template
from .fields import choice, entries, fields, flag, items, mapping, name, span, text, whole, wrong
from .modifiers import retry, timeout
from .problems import At, Scope
from .shapes import shape
from .steps import Home, steps

LARGEST = 1 << 20
DEEPEST_VALUE = 100

DOCUMENT = ("pipeline", "params", "inputs", "vars", "secrets", "defaults", "concurrency", "timeout",
            "output", "on_error", "finally")  # fmt: skip
ALIASES = {"timeout_seconds": "timeout"}
FLOW = (*(field for field in DOCUMENT if field != "pipeline"),
        "tasks", "id", "version", "type", "tenant_id", "metadata")  # fmt: skip
FLOW_RETRY = Retry(attempts=4)
FLOW_TIMEOUT = Timeout(attempt=300.0)
LAST = Scope(is_last=True)


def read(at: At, document: Any) -> Pipeline | None:
    """The pipeline as far as it can be read; what can't be is noted."""
    if not is_bounded(at, document):
        return None
    is_flow = isinstance(document, dict) and "tasks" in document and "pipeline" not in document
    given = fields(at, document, FLOW if is_flow else DOCUMENT, ALIASES)
    if not isinstance(document, dict):
        return None
    home, queue, priority = given.read(
        "defaults", lambda place, value: _defaults(place, value, is_flow), _home(is_flow)
    )
    order = given.read("type", choice("DAG", "STATE_MACHINE"), "DAG" if is_flow else "")
    first = msgspec.structs.replace(home, is_flow=is_flow, is_parallel=order == "DAG")
    last = At(at.notes, at.path, LAST)

    def afterwards(place: At, value: Any) -> Steps:
        place = At(at.notes, place.path, LAST).seeing("error")
        return steps(place, value, home, at_least=0)

    return Pipeline(
        steps=given.need("tasks" if is_flow else "pipeline", _list(first), ()),
        params=given.read("params", mapping, {}),
        inputs=given.read("inputs", _inputs, {}),
        vars=given.read("vars", _vars, {}),
        secrets=given.read("secrets", _secrets, frozenset()),
        queue=queue,
        priority=priority,
        concurrency=given.read("concurrency", _concurrency, None),
        timeout=given.read("timeout", span, None),
        output=given.read("output", lambda _, value: template(last / "output", value), None),
        on_error=given.read("on_error", afterwards, ()),
        finally_=given.read("finally", afterwards, ()),
    )


def _list(home: Home) -> Any:
    return lambda at, value: steps(at, value, home)


def _home(is_flow: bool) -> tuple[Home, str | None, int | None]:
    return (Home(FLOW_RETRY, FLOW_TIMEOUT) if is_flow else Home()), None, None


def _defaults(at: At, value: Any, is_flow: bool) -> tuple[Home, str | None, int | None]:
    given = fields(at, value, ("retry", "timeout", "queue", "priority"),
                   {"timeout_seconds": "timeout", "max_retries": "retry"})  # fmt: skip
    usual = _home(is_flow)[0]
    home = Home(
        given.read("retry", retry, usual.retry), given.read("timeout", timeout, usual.timeout)
    )
    queue = given.read("queue", lambda at, value: text(at, value, 100), None)
    return home, queue, given.read("priority", whole(0, 100), None)


def _concurrency(at: At, value: Any) -> Concurrency:
    given = fields(at, value, ("key", "limit", "on_conflict"))
    policies = choice("queue", "skip", "replace", "cancel_running")
    return Concurrency(
        key=given.need("key", _key, template(at, "")),
        limit=given.read("limit", whole(1, 100_000), 1),
        on_conflict=given.read("on_conflict", policies, "queue"),
    )


PART = r"""\s*\.\s*[A-Za-z_]\w*|\s*\[\s*(?:\d{1,9}|"[^"\\\n{}]*"|'[^'\\\n{}]*')\s*\]"""
KEY = re.compile(
    rf"(?:\$\$\{{|\$\{{\s*(?:params|input)(?:{PART})*\s*\}}|[^$]|\$(?!\$?\{{))*", re.A | re.S
)
"""What `orc._is_key` takes: enqueue makes the key, and knows no expressions."""


def _key(at: At, value: Any) -> Template:
    """In `${…}` there are bare paths into the input only."""
    given = text(at, value, 1100)
    if KEY.fullmatch(given):
        return template(at, given)
    hint = "such as ${input.customer}; what is computed comes with enqueue, as concurrency_key"
    at.say("expression", "the ${…} of a concurrency key are paths into the input", hint)
    return template(at, "")


def _vars(at: At, value: Any) -> dict[str, Any]:
    for place, _, item in entries(at, value):
        if isinstance(item, str) and "${" in item:
            place.warn("value", "constants aren't rendered", "compute values by a step of set")
    return value if isinstance(value, dict) else {}


def _secrets(at: At, value: Any) -> frozenset[str]:
    found: set[str] = set()
    for place, item in items(at, value, at_least=0):
        if name(place, item) in found:
            place.say("duplicate", f"{item!r} is named twice")
        found.add(str(item))
    return frozenset(found)


# Declared inputs


def _inputs(at: At, value: Any) -> dict[str, Input]:
    found = {}
    for place, declared, item in entries(at, value):
        name(place, declared)
        if isinstance(item, dict):
            found[declared] = _input(place, item)
        else:
            wrong(place, 'a declaration, such as {"type": "string"}', item)
    return found


def _input(at: At, value: dict[str, Any]) -> Input:
    """A JSON Schema, with `required` and `secret` as booleans beside its keywords."""
    own = {"secret"} | ({"required"} if isinstance(value.get("required"), bool) else set())
    compiled = shape(at, {keyword: item for keyword, item in value.items() if keyword not in own})
    secret = flag(at / "secret", value["secret"]) if "secret" in value else False
    default = value.get("default", msgspec.UNSET)
    if compiled and default is not msgspec.UNSET:
        at.notes.problems += compiled.problems(default, (at / "default").pointer)
    required = value.get("required") is True
    return Input(shape=compiled, required=required, secret=secret, default=default)  # type: ignore[arg-type]


# What JSON, and Postgres, can hold


def is_bounded(at: At, document: Any) -> bool:
    before = len(at.notes.problems)
    for path, value in _values(document):
        if problem := _unstorable(path, value):
            At(at.notes, path).say(*problem)
    if len(at.notes.problems) == before and len(msgspec.json.encode(document)) > LARGEST:
        at.say("size", f"a document has at most {LARGEST // 1024} KiB")
    return len(at.notes.problems) == before


def _values(document: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every value with its path, no deeper than one level below the deepest that may be."""
    waiting: list[tuple[tuple[Any, ...], Any]] = [((), document)]
    while waiting:
        path, value = waiting.pop()
        yield path, value
        if len(path) > DEEPEST_VALUE:
            continue
        if isinstance(value, dict):
            waiting += (((*path, key), item) for key, item in value.items())
        elif isinstance(value, list):
            waiting += (((*path, number), item) for number, item in enumerate(value))


def _unstorable(path: tuple[Any, ...], value: Any) -> tuple[str, str] | None:
    if len(path) > DEEPEST_VALUE:
        return "size", f"values are nested deeper than {DEEPEST_VALUE} levels"
    if isinstance(value, float) and not math.isfinite(value):
        return "value", "a number must be finite"
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return "value", "a whole number must fit in 64 bits"
    if isinstance(value, str):
        return _bad_text(value)
    for key in value if isinstance(value, dict) else ():
        if not isinstance(key, str):
            return "type", f"the key {key!r} must be text"
        if _bad_text(key):
            return "value", "a key has a character that can't be kept"
    is_json = value is None or isinstance(value, dict | list | int | float)
    return None if is_json else ("type", f"{type(value).__name__} isn't JSON")


def _bad_text(text: str) -> tuple[str, str] | None:
    if "\0" in text:
        return "value", "a NUL character can't be kept"
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        return "value", "half of a surrogate pair can't be kept"
    return None
