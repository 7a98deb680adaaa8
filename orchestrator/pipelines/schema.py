"""The language as a JSON Schema, for editors and for other programs.

It says what a document looks like. That names exist, expressions compile and nothing waits for
itself is said by `check` only.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from .document import ERRORS
from .modifiers import MOST_ATTEMPTS, MOST_ITERATIONS, MOST_PARALLEL
from .steps import MOST_STEPS

Schema = dict[str, Any]

ID = r"^[A-Za-z_][A-Za-z0-9_-]{0,63}$"
AMOUNT = r"[0-9]+(\.[0-9]+)?"
DURATION = (
    rf"^(?:(?:{AMOUNT})(?:w|d|h|ms|m|s))+$"
    rf"|^P(?:{AMOUNT}[WD])*(?:T(?:{AMOUNT}[HMS])+)?$"
)


def _ref(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


def _object(required: tuple[str, ...] = (), **fields: Schema) -> Schema:
    fields = {name.rstrip("_"): field for name, field in fields.items()}
    schema: Schema = {"type": "object", "properties": fields, "additionalProperties": False}
    return schema | ({"required": list(required)} if required else {})


def _said(words: str, schema: Schema) -> Schema:
    return schema | {"description": words}


def _one_of(*names: str) -> Schema:
    return {"oneOf": [{"required": [name]} for name in names]}


def _whole(low: int, high: int) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high}


def _text(longest: int = 200) -> Schema:
    return {"type": "string", "minLength": 1, "maxLength": longest}


def _list(item: Schema, at_least: int = 0) -> Schema:
    return {"type": "array", "items": item} | ({"minItems": at_least} if at_least else {})


ANY: Schema = {}
TEXT: Schema = {"type": "string"}
OBJECT: Schema = {"type": "object"}
FLAG: Schema = {"type": "boolean"}
JSON_SCHEMA: Schema = {"$ref": "https://json-schema.org/draft/2020-12/schema"}

VALUES: Schema = {
    "name": {"type": "string", "pattern": ID},
    "duration": _said(
        "250ms, 30s, 1h30m, PT5M, or a number of seconds",
        {"anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": DURATION}]},
    ),
    "open_duration": {"anyOf": [_ref("duration"), {"type": "string", "pattern": r"\$\{"}]},
    "condition": _said("CEL, with or without ${…}", {"type": ["string", "boolean"]}),
    "arguments": _said(
        "The tool's arguments, or one template that gives them",
        {
            "anyOf": [
                {"type": ["object", "null"]},
                {"type": "string", "pattern": r"^\$\{[\s\S]*\}$"},
            ]
        },
    ),
    "errors": _list({"enum": list(ERRORS)}, 1),
    "retry": {
        "anyOf": [
            _said("How often it runs in all", _whole(1, MOST_ATTEMPTS)),
            _object(
                ("attempts",),
                attempts=_whole(1, MOST_ATTEMPTS),
                delay=_ref("duration"),
                backoff={"enum": ["fixed", "linear", "exponential"]},
                factor={"type": "number", "minimum": 1, "maximum": 100},
                max_delay=_ref("duration"),
                jitter={"anyOf": [FLAG, {"type": "number", "minimum": 0, "maximum": 1}]},
                errors=_ref("errors"),
                when=_ref("condition"),
            ),
        ]
    },
    "timeout": {
        "anyOf": [
            _ref("duration"),
            _object(attempt=_ref("duration"), total=_ref("duration")) | {"minProperties": 1},
        ]
    },
}

WAIT: Schema = _object(
    for_=_ref("open_duration"),
    until=_said("A point in time with its zone, or a template of one", _text(1100)),
    event=_object(("topic",), topic=_text(), match=_ref("condition")),
    callback=_object(),
    approval=_object(
        from_={"anyOf": [_text(), _list(_text(), 1)]}, count=_whole(1, 100), form=JSON_SCHEMA
    ),
    timeout=_ref("duration"),
    on_timeout={"enum": ["fail", "continue", "reject"]},
) | _one_of("for", "until", "event", "callback", "approval")

BODIES: Schema = {
    "steps": _list(_ref("step"), 1),
    "parallel": _object(
        ("branches",),
        branches={
            "type": "object",
            "minProperties": 1,
            "propertyNames": _ref("name"),
            "additionalProperties": _ref("steps"),
        },
        mode={"enum": ["all", "race"]},
    ),
    "switch": _list(
        {
            "anyOf": [
                _object(("when", "steps"), when=_ref("condition"), steps=_ref("steps")),
                _object(("else",), else_=_ref("steps")),
            ]
        },
        1,
    ),
    "wait": WAIT,
}

MODIFIERS: dict[str, Schema] = {
    "save_as": _said(
        "The name below steps., besides the id; null keeps nothing",
        {"anyOf": [_ref("name"), {"type": "null"}]},
    ),
    "if": _ref("condition"),
    "needs": _said("The step before it, unless given; [] starts at once", _list(TEXT)),
    "for_each": {"type": ["string", "array"]},
    "max_parallel": _whole(1, MOST_PARALLEL),
    "max_failures": _whole(0, 1_000_000),
    "while": _ref("condition"),
    "until": _ref("condition"),
    "max_iterations": _whole(1, MOST_ITERATIONS),
    "retry": _ref("retry"),
    "timeout": _ref("timeout"),
    "catch": {
        "anyOf": [
            _ref("steps"),
            _object(("steps",), errors=_ref("errors"), steps=_ref("steps")),
        ]
    },
    "continue_on_error": FLAG,
    "on_unknown": {"enum": ["retry", "ask", "fail"]},
    "output": ANY,
    "schema": JSON_SCHEMA,
    "resources": _list(
        _object(
            ("pool",), pool=_text(), select=ANY, as_=_ref("name"), hold={"enum": ["step", "run"]}
        ),
        1,
    ),
    "cache": _object(("key", "ttl"), key=ANY, ttl=_ref("duration")),
    "timeout_seconds": _said("The same as timeout", _ref("timeout")),
    "max_retries": _said("retry, not counting the first run", _whole(0, MOST_ATTEMPTS - 1)),
}
BESIDE = {
    "with": ["uses"],
    "max_parallel": ["for_each"],
    "max_failures": ["for_each"],
    "while": ["max_iterations"],
    "until": ["max_iterations"],
}
APART = [("for_each", "while"), ("for_each", "until"), ("while", "until"),
         ("timeout", "timeout_seconds"), ("retry", "max_retries")]  # fmt: skip

STEP: Schema = _object(
    (),
    id=_ref("name"),
    uses=_said("The tool", _text() | {"pattern": r"^[^\s${}]+$"}),
    with_=_ref("arguments"),
    steps=_ref("steps"),
    parallel=_ref("parallel"),
    switch=_ref("switch"),
    wait=_ref("wait"),
    **MODIFIERS,
) | {
    **_one_of("uses", "steps", "parallel", "switch", "wait"),
    "dependentRequired": BESIDE,
    "allOf": [{"not": {"required": list(pair)}} for pair in APART],
}

TASK: Schema = {
    "type": "object",
    "anyOf": [{"required": ["handler"]}, _one_of("uses", "steps", "parallel", "switch", "wait")],
    "properties": {
        **STEP["properties"],
        "handler": _text(),
        "inputs": _ref("arguments"),
        "depends_on": {"type": ["array", "null"], "items": TEXT},
        "retries": {"type": ["integer", "null"], "minimum": 0, "maximum": MOST_ATTEMPTS - 1},
        "timeout": {"anyOf": [_ref("timeout"), {"type": "null"}]},
        "condition": {"type": ["string", "boolean", "null"]},
        "metadata": ANY,
    },
    "additionalProperties": False,
}

INPUT = _said(
    "A JSON Schema; required and secret are ours",
    {
        "type": "object",
        "properties": {"required": {"type": ["boolean", "array"]}, "secret": FLAG},
    },
)

DOCUMENT: dict[str, Schema] = {
    "params": _said("Given values", OBJECT),
    "inputs": {"type": "object", "propertyNames": _ref("name"), "additionalProperties": INPUT},
    "vars": _said("Constants", OBJECT),
    "secrets": _list(_ref("name")),
    "defaults": _object(
        retry=_ref("retry"),
        max_retries=_whole(0, MOST_ATTEMPTS - 1),
        timeout=_ref("timeout"),
        timeout_seconds=_ref("timeout"),
        queue=_text(100),
        priority=_said("0 is the most urgent", _whole(0, 100)),
    ),
    "concurrency": _object(
        ("key",),
        key=_text(1100),
        limit=_whole(1, 100_000),
        on_conflict={"enum": ["queue", "skip", "replace", "cancel_running"]},
    ),
    "timeout": _ref("duration"),
    "timeout_seconds": _ref("duration"),
    "output": _said("The run's result; every saved value, unless given", ANY),
    "on_error": _list(_ref("step")),
    "finally": _list(_ref("step")),
}
FLOW: dict[str, Schema] = {
    "id": ANY, "version": ANY, "tenant_id": ANY, "metadata": ANY,
    "type": {"enum": ["DAG", "STATE_MACHINE"]},
}  # fmt: skip


@cache
def schema() -> Schema:
    steps = {"type": "array", "minItems": 1, "maxItems": MOST_STEPS}
    plain = {"pipeline": steps | {"items": _ref("step")}, **DOCUMENT}
    flow = {"tasks": steps | {"items": _ref("task")}, **DOCUMENT, **FLOW}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Pipeline",
        "description": "A list of steps that Orchestrator runs",
        "if": {"type": "object", "required": ["tasks"], "not": {"required": ["pipeline"]}},
        "then": _object(("tasks",), **flow),
        "else": _object(("pipeline",), **plain),
        "$defs": {**VALUES, **BODIES, "step": STEP, "task": TASK},
    }
