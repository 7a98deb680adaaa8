"""What a pipeline may say, and how a document that can't be used is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import msgspec
import pytest
from conftest import Serve

from orchestrator import pipelines
from orchestrator.errors import Malformed
from orchestrator.pipelines import document as types
from orchestrator.pipelines.durations import LONGEST, seconds
from orchestrator.pipelines.expressions import Template
from orchestrator.pipelines.order import every_step
from orchestrator.pipelines.shapes import Shape

LANGUAGE = jsonschema_rs.Draft202012Validator(pipelines.schema(), offline=True)

Document = dict[str, Any]


def plain(id: str = "a", **fields: Any) -> Document:
    return {"id": id, "uses": "set", **fields}


def of(*steps: Any, **fields: Any) -> Document:
    return {"pipeline": list(steps), **fields}


def one(**fields: Any) -> Document:
    """A document with one step of a tool."""
    return of({"id": "a", "uses": "t.call", **fields})


def bare(**fields: Any) -> Document:
    """A document with one step that has only these fields."""
    return of({"id": "a", **fields})


def found(document: Any) -> set[tuple[str, str]]:
    report = pipelines.check(document)
    assert (report.pipeline is None) == bool(report.errors)
    return {(problem.pointer, problem.type) for problem in report.errors}


def only(document: Document) -> types.Step:
    (step,) = pipelines.compile(document).steps
    return step


WEATHER = of(
    {"id": "weather", "uses": "weather.current", "with": {"city": "Chisinau"}, "save_as": "w"},
    {"id": "tell", "uses": "telegram.send", "save_as": None,
     "with": {"chat_id": 7, "text": "Now: ${steps.w.summary}, ${steps.weather.degrees ?? 0}"}},
)  # fmt: skip

EVERYTHING: Document = {
    "params": {"city": "Chisinau"},
    "inputs": {
        "city": {"type": "string", "enum": ["Chisinau", "Balti"], "required": True},
        "days": {"type": "integer", "minimum": 1, "default": 3},
        "key": {"type": "string", "secret": True},
    },
    "vars": {"limit": 5, "names": ["a"]},
    "secrets": ["API_KEY"],
    "defaults": {"retry": 3, "timeout": "30s", "queue": "mail", "priority": 10},
    "concurrency": {"key": "city-${params.city}", "limit": 2, "on_conflict": "skip"},
    "timeout": "1h",
    "pipeline": [
        {"id": "look", "uses": "weather.look", "with": {"key": "${secrets.API_KEY}"},
         "retry": {"attempts": 5, "delay": "1s", "backoff": "linear", "factor": 1.5,
                   "max_delay": "1m", "jitter": True, "errors": ["timeout", "communication"],
                   "when": "error.message != ''"},
         "timeout": {"attempt": "10s", "total": 60}, "on_unknown": "ask",
         "output": "${result.body}", "schema": {"type": "object"},
         "cache": {"key": "look-${params.city}", "ttl": "10m"},
         "catch": {"errors": ["runtime"], "steps": [
             {"id": "sorry", "uses": "log.write", "with": {"message": "${error.message}"}}]}},
        {"id": "each", "for_each": "steps.look.days", "max_parallel": 4, "max_failures": 1,
         "if": "size(steps.look.days) > 0",
         "steps": [{"id": "one", "uses": "set", "with": {"day": "${item}", "n": "${index}"}},
                   {"id": "two", "uses": "set", "with": {"v": "${steps.one.day}"}}]},
        {"id": "poll", "uses": "t.poll", "until": "result.done || index > 3",
         "max_iterations": 10},
        {"id": "both", "needs": ["look"], "parallel": {"mode": "race", "branches": {
            "left": [{"id": "l", "uses": "set"}], "right": [{"id": "r", "uses": "set"}]}}},
        {"id": "choose", "needs": ["both", "poll"], "switch": [
            {"when": "steps.both.left != null", "steps": [{"id": "c1", "uses": "set"}]},
            {"else": [{"id": "c2", "uses": "set"}]}]},
        {"id": "rest", "wait": {"for": "5m"}},
        {"id": "dawn", "wait": {"until": "2026-03-01T09:00:00+02:00"}},
        {"id": "paid", "wait": {"event": {"topic": "paid", "match": "event.id == params.city"},
                                "timeout": "1d", "on_timeout": "continue"}},
        {"id": "call", "wait": {"callback": {}}},
        {"id": "agree", "wait": {"approval": {"from": ["ops"], "count": 2,
                                              "form": {"type": "object"}},
                                 "timeout": "2d", "on_timeout": "reject"}},
        {"id": "end", "uses": "set", "with": {"state": "${state.look.status}"},
         "continue_on_error": True},
    ],
    "output": {"days": "${steps.look.days}", "at": "${now}"},
    "on_error": [{"id": "alarm", "uses": "slack.post", "with": {"text": "${error.message}"}}],
    "finally": [{"id": "tidy", "uses": "set", "with": {"x": "${steps.look ?? null}"}}],
}  # fmt: skip

FLOW: Document = {
    "id": "billing", "version": "1.0", "type": "DAG", "tenant_id": "acme", "metadata": {},
    "tasks": [
        {"id": "a", "handler": "t.call", "inputs": {"x": 1}, "retries": 2, "timeout": 60,
         "condition": None, "depends_on": [], "metadata": {}},
        {"id": "b", "handler": "t.call", "inputs": None, "depends_on": ["a"],
         "condition": "steps.a.ok"},
        {"id": "c", "handler": "t.call"},
    ],
}  # fmt: skip

GOOD: dict[str, Document] = {
    "the quick start": WEATHER,
    "every field": EVERYTHING,
    "a flow's tasks": FLOW,
    "no ids": of({"uses": "set"}, {"steps": [{"uses": "set"}]}),
    "an empty needs": of(plain("a"), plain("b", needs=[])),
    "needs of a later step": of(plain("a", needs=["b"]), plain("b", needs=[])),
    "a diamond": of(plain("a"), plain("b", needs=["a"]), plain("c", needs=["a"]),
                    plain("d", needs=["b", "c"], **{"with": {"x": "${steps.b}${steps.c}"}})),
    "an if that is a boolean": one(**{"if": False}),
    "an if in braces": one(**{"if": "${params.go}"}),
    "arguments from a template": one(**{"with": "${params.args}"}),
    "no arguments": one(**{"with": None}),
    "a list to go through": one(for_each=[1, "${params.x}"], **{"with": {"x": "${item}"}}),
    "a while": bare(steps=[plain("b", **{"with": {"x": "${steps.c.x ?? 0}"}}), plain("c")],
                    **{"while": "index < 3"}, max_iterations=3),
    "an until that reads its steps": bare(steps=[plain("b")], until="steps.b.x > 1",
                                          max_iterations=9),
    "a wait for a template": bare(wait={"for": "${params.delay}"}),
    "a catch that is a list": one(catch=[plain("b", **{"with": {"x": "${error.type}"}})]),
    "the same name in two cases": bare(switch=[
        {"when": "params.x == 1", "steps": [plain("b", save_as="x")]},
        {"else": [plain("c", save_as="x")]}]),
    "a step inside a block that was": of(
        {"id": "block", "steps": [plain("b")]}, plain("c", **{"with": {"x": "${steps.b}"}})),
    "a recursive schema": one(schema={"type": "object", "properties": {"child": {"$ref": "#"}}}),
    "on_error without steps": of(plain(), on_error=[]),
}  # fmt: skip


@pytest.mark.parametrize("document", GOOD.values(), ids=GOOD)
def test_a_good_document_is_compiled_and_fits_the_schema(document: Document) -> None:
    report = pipelines.check(document)
    assert report.problems == []
    assert report.pipeline is not None
    assert [error.message for error in LANGUAGE.iter_errors(document)] == []


def nested(levels: int) -> Document:
    step: Document = {"id": "leaf", "uses": "set"}
    for level in range(levels):
        step = {"id": f"l{level}", "steps": [step]}
    return of(step)


SHAPE: list[tuple[Any, str, str]] = [
    ([], "", "type"),
    ("x", "", "type"),
    (None, "", "type"),
    ({}, "/pipeline", "missing"),
    ({"pipelines": []}, "/pipelines", "unknown_field"),
    (of(), "/pipeline", "value"),
    ({"pipeline": {}}, "/pipeline", "type"),
    (of(3), "/pipeline/0", "type"),
    (of(plain(), tasks=[]), "/tasks", "unknown_field"),
    (of(plain(), version="1"), "/version", "unknown_field"),
    (one(withh={}), "/pipeline/0/withh", "unknown_field"),
    (one(**{"a/b~c": 1}), "/pipeline/0/a~1b~0c", "unknown_field"),
    (of(plain("1a")), "/pipeline/0/id", "name"),
    (of(plain("a b")), "/pipeline/0/id", "name"),
    (of(plain("a" * 65)), "/pipeline/0/id", "name"),
    (of(plain("a\n")), "/pipeline/0/id", "name"),
    (of({"id": 3, "uses": "set"}), "/pipeline/0/id", "type"),
    (one(save_as="x.y"), "/pipeline/0/save_as", "name"),
    (one(save_as=True), "/pipeline/0/save_as", "type"),
    (bare(), "/pipeline/0", "body"),
    (bare(uses="set", steps=[plain("b")]), "/pipeline/0/steps", "body"),
    (bare(uses="set", wait={"for": 1}), "/pipeline/0/wait", "body"),
    (bare(uses=["set"]), "/pipeline/0/uses", "type"),
    (bare(uses=""), "/pipeline/0/uses", "value"),
    (bare(uses="${params.tool}"), "/pipeline/0/uses", "value"),
    (bare(uses="two words"), "/pipeline/0/uses", "value"),
    (one(**{"with": [1]}), "/pipeline/0/with", "type"),
    (bare(wait={"for": 1}, **{"with": {}}), "/pipeline/0/with", "value"),
    (one(**{"if": 3}), "/pipeline/0/if", "type"),
    (one(needs="b"), "/pipeline/0/needs", "type"),
    (one(needs=[3]), "/pipeline/0/needs/0", "type"),
    (one(for_each=3), "/pipeline/0/for_each", "type"),
    (one(for_each=[1], max_parallel=0), "/pipeline/0/max_parallel", "value"),
    (one(for_each=[1], max_parallel=1.5), "/pipeline/0/max_parallel", "type"),
    (one(for_each=[1], max_failures=-1), "/pipeline/0/max_failures", "value"),
    (one(max_parallel=2), "/pipeline/0/max_parallel", "value"),
    (one(max_failures=2), "/pipeline/0/max_failures", "value"),
    (one(**{"while": "true"}), "/pipeline/0/max_iterations", "missing"),
    (one(until="true"), "/pipeline/0/max_iterations", "missing"),
    (one(until="true", max_iterations=0), "/pipeline/0/max_iterations", "value"),
    (one(until="true", max_iterations=True), "/pipeline/0/max_iterations", "type"),
    (one(until="true", max_iterations=1, **{"while": "true"}), "/pipeline/0/until", "conflict"),
    (one(until="true", max_iterations=1, for_each=[1]), "/pipeline/0/until", "conflict"),
    (bare(steps=[]), "/pipeline/0/steps", "value"),
    (bare(steps=plain("b")), "/pipeline/0/steps", "type"),
    (bare(parallel=[]), "/pipeline/0/parallel", "type"),
    (bare(parallel={}), "/pipeline/0/parallel/branches", "missing"),
    (bare(parallel={"branches": {}}), "/pipeline/0/parallel/branches", "value"),
    (bare(parallel={"branches": []}), "/pipeline/0/parallel/branches", "type"),
    (bare(parallel={"branches": {"x": []}}), "/pipeline/0/parallel/branches/x", "value"),
    (bare(parallel={"branches": {"x y": [plain("b")]}}),
     "/pipeline/0/parallel/branches/x y", "name"),
    (bare(parallel={"branches": {"x": [plain("b")]}, "mode": "any"}),
     "/pipeline/0/parallel/mode", "value"),
    (bare(switch={}), "/pipeline/0/switch", "type"),
    (bare(switch=[]), "/pipeline/0/switch", "value"),
    (bare(switch=[{"steps": [plain("b")]}]), "/pipeline/0/switch/0/when", "missing"),
    (bare(switch=[{"when": "true"}]), "/pipeline/0/switch/0/steps", "missing"),
    (bare(switch=[{"else": [plain("b")], "steps": [plain("c")]}]),
     "/pipeline/0/switch/0/steps", "conflict"),
    (bare(wait={}), "/pipeline/0/wait", "body"),
    (bare(wait="5m"), "/pipeline/0/wait", "type"),
    (bare(wait={"for": 1, "callback": {}}), "/pipeline/0/wait/callback", "body"),
    (bare(wait={"for": "soon"}), "/pipeline/0/wait/for", "duration"),
    (bare(wait={"until": 5}), "/pipeline/0/wait/until", "type"),
    (bare(wait={"event": {}}), "/pipeline/0/wait/event/topic", "missing"),
    (bare(wait={"event": {"topic": "x", "when": "true"}}),
     "/pipeline/0/wait/event/when", "unknown_field"),
    (bare(wait={"callback": {"x": 1}}), "/pipeline/0/wait/callback/x", "unknown_field"),
    (bare(wait={"approval": {"count": 0}}), "/pipeline/0/wait/approval/count", "value"),
    (bare(wait={"approval": {"from": 3}}), "/pipeline/0/wait/approval/from", "type"),
    (bare(wait={"approval": {"form": {"type": "x"}}}),
     "/pipeline/0/wait/approval/form/type", "schema"),
    (bare(wait={"callback": {}, "timeout": -1}), "/pipeline/0/wait/timeout", "duration"),
    (bare(wait={"callback": {}, "timeout": 1, "on_timeout": "die"}),
     "/pipeline/0/wait/on_timeout", "value"),
    (one(retry=0), "/pipeline/0/retry", "value"),
    (one(retry=101), "/pipeline/0/retry", "value"),
    (one(retry="3"), "/pipeline/0/retry", "type"),
    (one(retry=True), "/pipeline/0/retry", "type"),
    (one(retry={}), "/pipeline/0/retry/attempts", "missing"),
    (one(retry={"attempts": 2, "backoff": "cubic"}), "/pipeline/0/retry/backoff", "value"),
    (one(retry={"attempts": 2, "delay": "-1s"}), "/pipeline/0/retry/delay", "duration"),
    (one(retry={"attempts": 2, "factor": 0.5}), "/pipeline/0/retry/factor", "value"),
    (one(retry={"attempts": 2, "jitter": 2}), "/pipeline/0/retry/jitter", "value"),
    (one(retry={"attempts": 2, "errors": ["timeouts"]}), "/pipeline/0/retry/errors/0", "value"),
    (one(retry={"attempts": 2, "times": 3}), "/pipeline/0/retry/times", "unknown_field"),
    (one(max_retries=-1), "/pipeline/0/max_retries", "value"),
    (one(max_retries=1, retry=2), "/pipeline/0/retry", "conflict"),
    (one(timeout="soon"), "/pipeline/0/timeout", "duration"),
    (one(timeout={}), "/pipeline/0/timeout", "value"),
    (one(timeout={"each": 1}), "/pipeline/0/timeout/each", "unknown_field"),
    (one(timeout_seconds=1, timeout=1), "/pipeline/0/timeout", "conflict"),
    (one(catch=3), "/pipeline/0/catch", "type"),
    (one(catch={"errors": ["runtime"]}), "/pipeline/0/catch/steps", "missing"),
    (one(continue_on_error="yes"), "/pipeline/0/continue_on_error", "type"),
    (one(on_unknown="guess"), "/pipeline/0/on_unknown", "value"),
    (one(schema={"type": "nothing"}), "/pipeline/0/schema/type", "schema"),
    (one(schema=3), "/pipeline/0/schema", "type"),
    (one(resources={}), "/pipeline/0/resources", "type"),
    (one(resources=[{}]), "/pipeline/0/resources/0/pool", "missing"),
    (one(resources=[{"pool": "p", "hold": "day"}]), "/pipeline/0/resources/0/hold", "value"),
    (one(cache={"key": "x"}), "/pipeline/0/cache/ttl", "missing"),
    (one(cache={"ttl": 5}), "/pipeline/0/cache/key", "missing"),
    (of(plain(), params=[]), "/params", "type"),
    (of(plain(), inputs={"x": "string"}), "/inputs/x", "type"),
    (of(plain(), inputs={"x y": {}}), "/inputs/x y", "name"),
    (of(plain(), inputs={"x": {"secret": "no"}}), "/inputs/x/secret", "type"),
    (of(plain(), vars=3), "/vars", "type"),
    (of(plain(), secrets="KEY"), "/secrets", "type"),
    (of(plain(), secrets=["a b"]), "/secrets/0", "name"),
    (of(plain(), defaults={"priority": 101}), "/defaults/priority", "value"),
    (of(plain(), defaults={"queue": ""}), "/defaults/queue", "value"),
    (of(plain(), defaults={"retries": 1}), "/defaults/retries", "unknown_field"),
    (of(plain(), concurrency={}), "/concurrency/key", "missing"),
    (of(plain(), concurrency={"key": "x", "limit": 0}), "/concurrency/limit", "value"),
    (of(plain(), concurrency={"key": "x", "on_conflict": "x"}),
     "/concurrency/on_conflict", "value"),
    (of(plain(), timeout="1 hour"), "/timeout", "duration"),
    (of(plain(), on_error=plain("b")), "/on_error", "type"),
    (of(plain(), **{"finally": [bare()]}), "/finally/0/pipeline", "unknown_field"),
    ({"tasks": [{"id": "a", "handler": "t.call", "retries": -1}]}, "/tasks/0/retries", "value"),
    ({"tasks": [{"id": "a", "handlr": "t.call"}]}, "/tasks/0/handlr", "unknown_field"),
    ({"tasks": [plain()], "type": "TREE"}, "/type", "value"),
]  # fmt: skip

MEANING: list[tuple[Any, str, str]] = [
    (of(plain("a"), plain("a")), "/pipeline/1/id", "duplicate"),
    (of(plain("a"), {"id": "b", "steps": [plain("a")]}), "/pipeline/1/steps/0/id", "duplicate"),
    (of(plain("a"), on_error=[plain("a")]), "/on_error/0/id", "duplicate"),
    (of(plain("a"), plain("b", save_as="a")), "/pipeline/1/save_as", "duplicate"),
    (of(plain("a", save_as="x"), plain("b", save_as="x")), "/pipeline/1/save_as", "duplicate"),
    (of(plain(), secrets=["k", "k"]), "/secrets/1", "duplicate"),
    (one(needs=["b"]), "/pipeline/0/needs/0", "reference"),
    (of(plain("a"), plain("b", needs=["a", "a"])), "/pipeline/1/needs/1", "duplicate"),
    (of(plain("a"), {"id": "b", "steps": [plain("c", needs=["a"])]}),
     "/pipeline/1/steps/0/needs/0", "reference"),
    (one(needs=["a"]), "/pipeline/0/needs/0", "cycle"),
    (of(plain("a", needs=["b"]), plain("b")), "/pipeline/0/needs/0", "cycle"),
    (one(**{"with": {"x": ["${steps.b}"]}}), "/pipeline/0/with/x/0", "reference"),
    (one(**{"with": {"x": "${steps.a}"}}), "/pipeline/0/with/x", "reference"),
    (of(plain("a", **{"if": "steps.b.x"}), plain("b")), "/pipeline/0/if", "reference"),
    (of(plain("a"), plain("b", needs=[], **{"if": "steps.a.x"})), "/pipeline/1/if", "reference"),
    (of(plain("a", save_as=None), plain("b", **{"if": "steps.a"})), "/pipeline/1/if", "reference"),
    (of({"id": "a", "for_each": [1], "steps": [plain("b")]}, plain("c", **{"if": "steps.b"})),
     "/pipeline/1/if", "reference"),
    (bare(parallel={"branches": {"x": [plain("b")], "y": [plain("c", **{"if": "steps.b"})]}}),
     "/pipeline/0/parallel/branches/y/0/if", "reference"),
    (one(**{"if": "state.b.status"}), "/pipeline/0/if", "reference"),
    (one(**{"if": "item.x"}), "/pipeline/0/if", "reference"),
    (one(for_each=[1], **{"if": "item.x"}), "/pipeline/0/if", "reference"),
    (one(**{"with": {"x": "${error.type}"}}), "/pipeline/0/with/x", "reference"),
    (one(**{"with": {"x": "${result}"}}), "/pipeline/0/with/x", "reference"),
    (one(**{"with": {"x": "${param.x}"}}), "/pipeline/0/with/x", "expression"),
    (one(**{"with": {"x": "${vars.x}"}}), "/pipeline/0/with/x", "reference"),
    (one(**{"with": {"x": "${secrets.KEY}"}}), "/pipeline/0/with/x", "reference"),
    (one(**{"with": {"x": "${pool.box}"}}), "/pipeline/0/with/x", "reference"),
    (of(plain(**{"if": "params.citi"}), inputs={"city": {}}), "/pipeline/0/if", "reference"),
    (of(plain(), output="${secrets.KEY}", secrets=["KEY"]), "/output", "reference"),
    (of(plain(), concurrency={"key": "${steps.a}"}), "/concurrency/key", "expression"),
    (of(plain(), output={"x": "${steps.b}"}), "/output/x", "reference"),
    (one(**{"if": "(("}), "/pipeline/0/if", "expression"),
    (one(**{"if": ""}), "/pipeline/0/if", "expression"),
    (one(**{"with": {"x": {"y": "a ${((} b"}}}), "/pipeline/0/with/x/y", "expression"),
    (one(until="((", max_iterations=2), "/pipeline/0/until", "expression"),
    (one(retry={"attempts": 2, "when": "(("}), "/pipeline/0/retry/when", "expression"),
    (one(retry={"attempts": 2, "delay": "5m", "max_delay": "1m"}),
     "/pipeline/0/retry/max_delay", "value"),
    (one(timeout={"attempt": 9, "total": 8}), "/pipeline/0/timeout/total", "value"),
    (one(timeout=0), "/pipeline/0/timeout", "duration"),
    (one(timeout="11y"), "/pipeline/0/timeout", "duration"),
    (bare(switch=[{"else": [plain("b")]}, {"when": "true", "steps": [plain("c")]}]),
     "/pipeline/0/switch/0/else", "value"),
    (bare(wait={"until": "2026-03-01T09:00:00"}), "/pipeline/0/wait/until", "value"),
    (bare(wait={"until": "tomorrow"}), "/pipeline/0/wait/until", "value"),
    (bare(wait={"callback": {}, "on_timeout": "fail"}), "/pipeline/0/wait/on_timeout", "value"),
    (bare(wait={"callback": {}, "timeout": 1, "on_timeout": "reject"}),
     "/pipeline/0/wait/on_timeout", "value"),
    (bare(wait={"callback": {}, "timeout": 1}, timeout=1), "/pipeline/0/timeout", "conflict"),
    (one(schema={"$ref": "http://127.0.0.1/x"}), "/pipeline/0/schema", "schema"),
    (one(schema={"$ref": "file:///etc/passwd"}), "/pipeline/0/schema", "schema"),
    (one(schema={"$ref": "#/$defs/x"}), "/pipeline/0/schema", "schema"),
    (one(schema={"pattern": "("}), "/pipeline/0/schema/pattern", "schema"),
    (one(schema={"description": "x" * 70_000}), "/pipeline/0/schema", "size"),
    (one(resources=[{"pool": "inbox", "as": "box"}]), "/pipeline/0/resources", "unsupported"),
    (of(plain(), inputs={"n": {"type": "integer", "default": "x"}}), "/inputs/n/default", "schema"),
    (of(plain(), inputs={"n": {"type": "integer"}}, params={"n": "x"}), "/params/n", "schema"),
    (of(plain(), inputs={"city": {}}, params={"citi": "x"}), "/params/citi", "unknown_field"),
    (one(**{"with": {"x": float("nan")}}), "/pipeline/0/with/x", "value"),
    (one(**{"with": {"x": 10**30}}), "/pipeline/0/with/x", "value"),
    (one(**{"with": {"x": "a\0"}}), "/pipeline/0/with/x", "value"),
    (one(**{"with": {"x": "\ud800"}}), "/pipeline/0/with/x", "value"),
    (one(**{"with": {"x": {1}}}), "/pipeline/0/with/x", "type"),
    (one(**{"with": {3: 1}}), "/pipeline/0/with", "type"),
    (one(**{"with": {"x": "y" * 2**20}}), "", "size"),
    (of(*(plain(f"s{n}") for n in range(1001))), "/pipeline/1000", "size"),
    (nested(16), "/pipeline/0" + "/steps/0" * 15 + "/steps", "size"),
]  # fmt: skip


@pytest.mark.parametrize(("document", "pointer", "type"), SHAPE)
def test_a_bad_shape_is_refused_with_its_place_and_by_the_schema(
    document: Any, pointer: str, type: str
) -> None:
    assert (pointer, type) in found(document)
    assert not LANGUAGE.is_valid(document)


@pytest.mark.parametrize(("document", "pointer", "type"), MEANING)
def test_a_bad_meaning_is_refused_with_its_place(document: Any, pointer: str, type: str) -> None:
    assert found(document) == {(pointer, type)}


JUNK: list[Any] = [None, True, 3, -1, "x y", "${((", [], {}, [None], {"x": 1}, [[]], [plain("q")]]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict | list):
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(item, (*path, name))


def replaced(value: Any, path: tuple[Any, ...], junk: Any) -> Any:
    if not path:
        return junk
    other = value.copy()
    other[path[0]] = replaced(value[path[0]], path[1:], junk)
    return other


@pytest.mark.parametrize("document", [EVERYTHING, FLOW], ids=["plain", "flow"])
def test_whatever_stands_anywhere_is_a_problem_and_no_crash(document: Document) -> None:
    for number, path in enumerate(places(document)):
        other = replaced(document, path, JUNK[number % len(JUNK)])
        assert LANGUAGE.is_valid(other) or pipelines.check(other).errors, path


def test_a_thousand_steps_and_fifteen_levels_are_fine() -> None:
    assert found(of(*(plain(f"s{n}") for n in range(1000)))) == set()
    assert found(nested(15)) == set()


def test_all_problems_are_told_at_once() -> None:
    document = of(
        {"id": "1", "uses": "t.call", "withh": {}, "timeout": "soon"},
        {"id": "b", "needs": ["c"], "if": "((", "wait": {}},
        {"id": "c", "uses": "t.call", "with": {"x": "${steps.nobody}", "y": "${((}"}},
        secrets=[1],
        finaly=[],
    )
    assert found(document) == {
        ("/pipeline/0/id", "name"),
        ("/pipeline/0/withh", "unknown_field"),
        ("/pipeline/0/timeout", "duration"),
        ("/pipeline/1/needs/0", "cycle"),
        ("/pipeline/1/if", "expression"),
        ("/pipeline/1/wait", "body"),
        ("/pipeline/2/with/x", "reference"),
        ("/pipeline/2/with/y", "expression"),
        ("/secrets/0", "type"),
        ("/finaly", "unknown_field"),
    }


def test_a_flood_of_problems_is_cut() -> None:
    report = pipelines.check(one(**{f"field{n}": n for n in range(50_000)}))
    assert len(report.problems) == 200
    assert report.pipeline is None


HINTS = [
    (one(whith={}), "did you mean with?"),
    (bare(use="set"), "did you mean uses?"),
    (of(plain("weather"), plain("b", **{"if": "steps.wether.x"})), "did you mean weather?"),
    (of(plain("weather"), plain("b", needs=["wether"])), "did you mean weather?"),
    (of(plain("a"), plain("b", needs=[], **{"if": "steps.a"})),
     "let this step need it: needs: [a]"),
    (one(retry={"attempts": 2, "errors": ["time_out"]}), "did you mean timeout?"),
    (one(**{"if": "item"}), "it's there inside for_each"),
    (one(**{"if": "secrets.K"}), "a secret is read in the arguments of a tool only"),
    (one(**{"with": {"x": "${secrets.K}"}}), "name it in the document: secrets: [K]"),
    (one(schema={"$ref": "http://x/y"}), "copy it below $defs"),
    (of(plain("a"), plain("a")), "at /pipeline/0/id"),
    (one(on_unknown="ak"), "did you mean ask?"),
]  # fmt: skip


@pytest.mark.parametrize(("document", "hint"), HINTS)
def test_a_problem_says_the_way_out(document: Document, hint: str) -> None:
    assert hint in [problem.hint for problem in pipelines.check(document).errors]


def test_a_circle_is_named_once_by_its_steps() -> None:
    document = of(
        plain("a", needs=["c"]), plain("b", needs=["a"]), plain("c", needs=["b"]),
        plain("x", needs=["y"]), plain("y", needs=["x"]),
    )  # fmt: skip
    assert [problem.message for problem in pipelines.check(document).errors] == [
        "steps wait for each other: a → c → b → a",
        "steps wait for each other: x → y → x",
    ]


def test_compile_raises_every_error_as_a_422_with_places() -> None:
    with pytest.raises(pipelines.Problems) as refusal:
        pipelines.compile(of(plain("1"), plain("2")))
    assert isinstance(refusal.value, Malformed)
    assert refusal.value.status == 422
    detail: Any = refusal.value.detail
    assert [place["loc"] for place in detail] == [
        ["body", "pipeline", 0, "id"],
        ["body", "pipeline", 1, "id"],
    ]


# Other spellings


SAME: list[tuple[Document, Document]] = [
    (one(timeout_seconds=30), one(timeout="30s")),
    (one(timeout="PT30S"), one(timeout={"attempt": 30})),
    (one(max_retries=2), one(retry=3)),
    (one(retry=3), one(retry={"attempts": 3})),
    (of(plain(), timeout_seconds=5), of(plain(), timeout=5)),
    (one(**{"if": "${steps}"}), one(**{"if": "steps"})),
    (one(**{"if": True}), one(**{"if": "true"})),
    (one(**{"with": None}), one(**{"with": {}})),
    (one(save_as="a"), one()),
    (bare(wait={"callback": {}}, timeout=5), bare(wait={"callback": {}, "timeout": 5})),
    (bare(wait={"callback": {}, "on_timeout": "continue"}, timeout=5),
     bare(wait={"callback": {}, "on_timeout": "continue", "timeout": 5})),
    (of(plain("a"), plain("b")), of(plain("a"), plain("b", needs=["a"]))),
    (of(plain("a")), of(plain("a", needs=[]))),
    (one(for_each="params.x"), one(for_each="${params.x}")),
    (one(catch=[plain("b")]), one(catch={"steps": [plain("b")]})),
    (of(plain(), defaults={"max_retries": 1, "timeout_seconds": 3}),
     of(plain(), defaults={"retry": 2, "timeout": "3s"})),
    (of(plain(), defaults={"retry": 2, "timeout": 3}), of(plain(retry=2, timeout=3))),
    ({"tasks": [{"id": "a", "handler": "t.call", "inputs": {"x": 1}, "retries": 2,
                 "timeout": 60, "condition": "params.go", "depends_on": []}]},
     of({"id": "a", "uses": "t.call", "with": {"x": 1}, "retry": 3, "timeout": 60,
         "if": "params.go"})),
    ({"tasks": [plain("a"), plain("b")]},
     of(plain("a"), plain("b", needs=[]), defaults={"retry": 4, "timeout": 300})),
    ({"tasks": [plain("a"), plain("b")], "type": "STATE_MACHINE"},
     of(plain("a"), plain("b"), defaults={"retry": 4, "timeout": 300})),
    ({"tasks": [plain("a")], "defaults": {"retry": 1}},
     of(plain("a"), defaults={"retry": 1, "timeout": 300})),
]  # fmt: skip


@pytest.mark.parametrize(("spelled", "normal"), SAME)
def test_another_spelling_is_the_same_pipeline(spelled: Document, normal: Document) -> None:
    assert seen(pipelines.compile(spelled)) == seen(pipelines.compile(normal))
    assert LANGUAGE.is_valid(spelled)
    assert LANGUAGE.is_valid(normal)


def seen(value: Any) -> Any:
    """What was compiled, with expressions as their source."""
    if isinstance(value, msgspec.Struct):
        return {name: seen(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, tuple | list):
        return [seen(item) for item in value]
    if isinstance(value, dict):
        return {name: seen(item) for name, item in value.items()}
    if isinstance(value, Template):
        return [sorted(value.references), value.is_constant and value.render({})]
    return getattr(value, "source", value)


# What the engine is handed


def test_the_engine_gets_every_field() -> None:
    pipeline = pipelines.compile(EVERYTHING)
    look, each, poll, both, choose, rest, dawn, paid, call, agree, end = pipeline.steps
    assert isinstance(look.body, types.Use)
    assert look.retry.attempts == 5
    assert (look.retry.delay, look.retry.backoff, look.retry.max_delay) == (1, "linear", 60)
    assert (look.retry.factor, look.retry.jitter) == (1.5, 1.0)
    assert look.retry.errors == frozenset(["timeout", "communication"])
    assert look.timeout == types.Timeout(attempt=10, total=60)
    assert (look.on_unknown, look.cache and look.cache.ttl) == ("ask", 600)
    assert look.schema == Shape({"type": "object"})
    assert look.catch is not None
    assert (look.catch.errors, look.catch.steps[0].path) == (
        frozenset(["runtime"]), "look/sorry")  # fmt: skip
    assert each.each is not None
    assert (each.each.max_parallel, each.each.max_failures) == (4, 1)
    assert poll.loop is not None
    assert (poll.loop.proceed, poll.loop.max_iterations) == (None, 10)
    assert isinstance(both.body, types.Parallel)
    assert (both.body.mode, list(both.body.branches), both.needs) == (
        "race", ["left", "right"], ("look",))  # fmt: skip
    assert isinstance(choose.body, types.Switch)
    assert [case.when is None for case in choose.body.cases] == [False, True]
    waits = [step.body.what for step in (rest, dawn, paid, call, agree) if
             isinstance(step.body, types.Wait)]  # fmt: skip
    assert [type(wait).__name__ for wait in waits] == [
        "Sleep", "Until", "Event", "Callback", "Approval"]  # fmt: skip
    assert waits[0] == types.Sleep(delay=300.0)
    assert (end.continue_on_error, end.needs) == (True, ("agree",))
    assert (pipeline.queue, pipeline.priority, pipeline.timeout) == ("mail", 10, 3600)
    assert pipeline.concurrency is not None
    assert (pipeline.concurrency.limit, pipeline.concurrency.on_conflict) == (2, "skip")
    assert pipeline.secrets == {"API_KEY"}


def test_only_tools_inherit_retries_and_times() -> None:
    pipeline = pipelines.compile(EVERYTHING)
    by_id = {step.id: step for step in every_step(pipeline.steps)}
    assert (by_id["one"].retry.attempts, by_id["one"].timeout.attempt) == (3, 30)
    for id in ("each", "both", "choose", "rest"):
        assert (by_id[id].retry.attempts, by_id[id].timeout) == (1, types.Timeout())


def test_a_path_is_the_ids_from_the_outside_in() -> None:
    paths = [step.path for step in every_step(pipelines.compile(nested(3)).steps)]
    assert paths == ["l2", "l2/l1", "l2/l1/l0", "l2/l1/l0/leaf"]


def test_steps_without_an_id_are_called_by_their_place() -> None:
    document = of({"uses": "set"}, {"steps": [{"uses": "set"}]}, plain("c"))
    steps = list(every_step(pipelines.compile(document).steps))
    assert [step.id for step in steps] == ["0", "1", "1.steps.0", "c"]
    assert [step.save_as for step in steps] == ["0", "1", "1.steps.0", "c"]
    assert steps[3].needs == ("1",)


def test_what_is_compiled_cannot_be_changed() -> None:
    step = only(one(retry=2))
    with pytest.raises(AttributeError):
        step.id = "b"  # type: ignore[misc]
    with pytest.raises(AttributeError):
        step.retry.attempts = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("retry", "delays"),
    [
        ({"delay": 2, "backoff": "fixed"}, [2, 2, 2]),
        ({"delay": 2, "backoff": "linear"}, [2, 4, 6]),
        ({"delay": 2, "factor": 3}, [2, 6, 18]),
        ({"delay": 2, "factor": 3, "max_delay": 5}, [2, 5, 5]),
        ({"delay": "1h"}, [3600, 3600, 3600]),
    ],
)
def test_delays_grow_as_told(retry: Document, delays: list[float]) -> None:
    found = only(one(retry={"attempts": 9, **retry})).retry
    assert [found.delay_after(attempt) for attempt in (1, 2, 3)] == delays
    assert found.delay_after(1, chance=0) == delays[0] / 2
    assert found.delay_after(10**6) <= max(300, found.delay)


# Parameters

CITY: Document = {
    "city": {"type": "string", "required": True},
    "days": {"type": "integer", "minimum": 1, "default": 3},
    "box": {"type": "object", "required": ["x"], "properties": {"x": {"type": "integer"}}},
    "key": {"type": "string", "secret": True},
}


def bind(given: Document | None = None, /, **document: Any) -> Document:
    return pipelines.compile(of(plain(), **document)).bind(given)


def test_parameters_are_the_defaults_the_documents_and_then_the_runs() -> None:
    assert bind({"city": "B"}, inputs=CITY, params={"city": "A"}) == {"city": "B", "days": 3}
    assert bind(inputs=CITY, params={"city": "A", "days": 1}) == {"city": "A", "days": 1}


def test_without_declarations_everything_is_taken() -> None:
    assert bind({"y": [1]}, params={"x": 1}) == {"x": 1, "y": [1]}


def test_wrong_parameters_are_told_at_once_with_their_places() -> None:
    with pytest.raises(pipelines.Problems) as refusal:
        bind({"days": 0, "box": {"x": "1"}, "citi": 1}, inputs=CITY)
    assert {(problem.pointer, problem.type) for problem in refusal.value.problems} == {
        ("/params/days", "schema"),
        ("/params/box/x", "schema"),
        ("/params/citi", "unknown_field"),
        ("/params/city", "missing"),
    }


def test_secret_inputs_are_marked() -> None:
    inputs = pipelines.compile(of(plain(), inputs=CITY)).inputs
    assert [name for name, declared in inputs.items() if declared.secret] == ["key"]


def test_a_pattern_takes_linear_time(benchmark_seconds: Any) -> None:
    shape = Shape({"pattern": "^(a+)+$"})
    assert benchmark_seconds(lambda: shape.fits("a" * 50_000 + "b")) < 1.0


# Tools


def test_an_unknown_tool_is_a_warning_and_when_strict_an_error() -> None:
    report = pipelines.check(one(), tools={"t.cal"})
    (problem,) = report.warnings
    assert (problem.pointer, problem.hint) == ("/pipeline/0/uses", "did you mean t.cal?")
    assert report.pipeline is not None
    assert pipelines.check(one(), tools={"t.cal"}, strict=True).pipeline is None
    assert pipelines.check(one(), tools={"t.call"}, strict=True).problems == []


TOOLS = {
    "t.call": Shape({
        "type": "object", "required": ["chat"], "additionalProperties": False,
        "properties": {"chat": {"type": "integer"}, "text": {"type": "string"},
                       "more": {"type": "array", "items": {"type": "integer"}}},
    }),
}  # fmt: skip


@pytest.mark.parametrize(
    ("given", "places"),
    [
        ({"chat": 1, "text": "x"}, []),
        ({"chat": "${params.chat}", "more": ["${params.x}", 3]}, []),
        ({"chat": "1"}, ["/with/chat"]),
        ({"chat": 1, "more": ["${params.x}", "3"]}, ["/with/more/1"]),
        ({"text": "x"}, ["/with"]),
        ({"chat": "${params.chat}", "texd": "x"}, ["/with"]),
        ("${params.all}", []),
    ],
)
def test_arguments_are_checked_as_far_as_they_are_known(given: Any, places: list[str]) -> None:
    report = pipelines.check(one(**{"with": given}), tools=TOOLS)
    assert [problem.pointer.removeprefix("/pipeline/0") for problem in report.errors] == places


def test_a_tool_that_needs_arguments_wants_them() -> None:
    assert len(pipelines.check(one(), tools=TOOLS).errors) == 1


# Warnings


@pytest.mark.parametrize(
    ("document", "pointer"),
    [
        (of(plain(), vars={"x": "${params.x}"}), "/vars/x"),
        (bare(wait={"for": 5, "timeout": 3}), "/pipeline/0/wait/timeout"),
    ],
)
def test_what_is_odd_is_a_warning(document: Document, pointer: str) -> None:
    report = pipelines.check(document)
    assert [problem.pointer for problem in report.warnings] == [pointer]
    assert report.pipeline is not None


# Durations


@pytest.mark.parametrize(
    ("written", "length"),
    [
        ("250ms", 0.25), ("30s", 30), ("5m", 300), ("2h", 7200), ("1d", 86400), ("1w", 604800),
        ("1h30m", 5400), ("1d2h3m4s5ms", 93784.005), ("1.5h", 5400), ("0s", 0),
        ("PT5M", 300), ("P1DT2H", 93600), ("P2W", 1209600), ("PT0.5S", 0.5), ("P1D", 86400),
        (30, 30), (0.25, 0.25), (0, 0), (LONGEST, LONGEST), ("3660d", LONGEST),
    ],
)  # fmt: skip
def test_a_duration_is_read(written: Any, length: float) -> None:
    assert seconds(written) == pytest.approx(length)


@pytest.mark.parametrize(
    "written",
    ["", "5", "5 m", "m", "-5s", "30m1h", "5m5m", "1y", "P", "PT", "P1Y", "P1M", "PT5", "1e3s",
     "٣s", "5M", -1, float("nan"), float("inf"), 1e300, 10**400, "3661d", "9" * 1000 + "s", True,
     None, [], "1.s", ".5s", "5m\n"],
)  # fmt: skip
def test_what_is_no_duration_is_refused(written: Any) -> None:
    with pytest.raises(ValueError):
        seconds(written)


# The schema


def test_the_schema_is_a_valid_schema() -> None:
    jsonschema_rs.meta.validate(pipelines.schema())


def test_the_schema_knows_the_same_fields_as_the_reader() -> None:
    from orchestrator.pipelines import read, steps

    schema = pipelines.schema()
    assert set(schema["else"]["properties"]) == {*read.DOCUMENT, *read.ALIASES}
    assert set(schema["then"]["properties"]) == {*read.FLOW, *read.ALIASES}
    assert set(schema["$defs"]["step"]["properties"]) == {*steps.STEP, *steps.ALIASES}
    assert set(schema["$defs"]["task"]["properties"]) == {*steps.TASK, *steps.TASK_ALIASES}


async def test_the_schema_is_served_to_everyone(serve: Serve) -> None:
    answer = await (await serve()).client.get("/schemas/pipeline.json")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/schema+json"
    assert "max-age" in answer.headers["cache-control"]
    assert answer.json() == msgspec.json.decode(msgspec.json.encode(pipelines.schema()))
