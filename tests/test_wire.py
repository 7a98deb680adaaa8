"""What may cross the wire, and how a refusal reads."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

import msgspec
import pytest

from orchestrator import wire
from orchestrator.errors import Malformed, NotFound, Problem


class Step(wire.Request):
    id: str
    timeout: int = 0


class Order(wire.Request):
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=5)]
    steps: list[Step] = []
    ref: UUID | None = None
    payload: dict[str, Any] = {}


def places(data: bytes, kind: Any = Order) -> list[Any]:
    with pytest.raises(Malformed) as refusal:
        wire.decode(data, kind)
    assert refusal.value.status == 422
    return list(refusal.value.detail)


def test_a_good_body_becomes_its_type() -> None:
    order = wire.decode(b'{"name": "ann", "steps": [{"id": "a"}]}', Order)
    assert order == Order(name="ann", steps=[Step(id="a")])


def test_all_problems_are_named_at_once_with_their_places() -> None:
    found = places(
        b'{"name": "too long", "steps": [{"id": 1}, {"timeout": "x", "no": 1}], "ref": "z", "u": 0}'
    )
    assert {(tuple(p["loc"]), p["type"]) for p in found} == {
        (("body", "name"), "value"),
        (("body", "steps", 0, "id"), "type"),
        (("body", "steps", 1, "timeout"), "type"),
        (("body", "steps", 1, "id"), "missing"),
        (("body", "steps", 1, "no"), "unknown_field"),
        (("body", "ref"), "value"),
        (("body", "u"), "unknown_field"),
    }


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"[" * 1100 + b"]" * 1100, "depth"),
        (b'{"payload":' * 600 + b"1" + b"}" * 600, "depth"),
        (b'{"name": "\\u0000"}', "character"),
        (b'{"name": "\xff"}', "encoding"),
        (b'{"name": "\\ud800"}', "syntax"),
        (b"{", "syntax"),
        (b"", "syntax"),
        (b"NaN", "syntax"),
        (b'{"name": "a", "payload": {"x": 1e5000}}', "value"),
        (b'{"name": "a", "payload": {"x": ' + b"9" * 5000 + b"}}", "value"),
        (b"[]", "type"),
        (b"null", "type"),
    ],
)
def test_hostile_bodies_are_refused_by_kind(data: bytes, kind: str) -> None:
    assert [place["type"] for place in places(data)] == [kind]


def test_brackets_in_strings_are_not_depth() -> None:
    text = '{"name": "a", "payload": {"x": "' + "[{" * 500 + '\\"["}}'
    assert wire.decode(text.encode(), Order).payload["x"].startswith("[{[{")


@pytest.mark.parametrize("depth", [31, 32])
def test_depth_up_to_the_bound_is_read(depth: int) -> None:
    wire.decode(b"[" * depth + b"]" * depth)


def test_an_escaped_backslash_before_u0000_is_no_nul() -> None:
    assert wire.decode(b'"\\\\u0000"') == "\\u0000"


def test_depth_of_a_large_body_is_found_fast(benchmark_seconds: Any) -> None:
    data = b"[" + b"[]," * 300_000 + b"[]]"
    assert benchmark_seconds(lambda: wire.is_too_deep(data)) < 1.0


class Page(wire.Request):
    size: Annotated[int, msgspec.Meta(ge=1, le=200)] = 10
    q: str | None = None


def test_query_texts_become_their_types() -> None:
    assert wire.convert({"size": "20", "q": "7"}, Page, "query") == Page(size=20, q="7")


def test_a_bad_query_names_its_places() -> None:
    with pytest.raises(Malformed) as refusal:
        wire.convert({"size": "0", "no": "1"}, Page, "query")
    found: Any = refusal.value.detail
    assert {tuple(p["loc"]) for p in found} == {("query", "size"), ("query", "no")}


def test_the_error_body_has_every_field_that_users_rely_on() -> None:
    body = msgspec.to_builtins(wire.problem(Problem("No", hint="try"), "/x", "r1"))
    assert body.pop("timestamp")
    assert body == {
        "type": "/redoc#error-internal",
        "title": "Internal Server Error",
        "status": 500,
        "instance": "/x",
        "error": "internal",
        "message": "No",
        "detail": "No",
        "details": {"hint": "try"},
        "request_id": "r1",
    }


def test_a_problem_takes_the_status_of_a_sqlstate() -> None:
    problem = Problem("Run not found", kind=NotFound)
    assert (problem.status, problem.error) == (404, "not_found")
    assert (Problem.status, Problem.error) == (500, "internal")
