"""What expressions and templates give, how a refusal reads, and that the hostile gets nowhere."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from orchestrator.expr import (
    ROOTS,
    ExpressionError,
    TemplateErrors,
    compile,
    condition,
    template,
)
from orchestrator.expr.cost import pattern_weight

NOW = datetime(2026, 11, 21, 10, 0, tzinfo=UTC)


class Secret(str):
    """Hides what it is from whoever prints it."""

    def __str__(self) -> str:
        return "***"


SCOPE: dict[str, Any] = {
    "params": {
        "i": 7,
        "f": 1.5,
        "s": "text",
        "t": True,
        "n": None,
        "l": [1, 2, 3],
        "m": {"a": 1, "x-y": 2},
        "in": "reserved",
        "huge": 2**63,
        "orders": [
            {"id": "a", "total": 5, "lines": [{"qty": 1}, {"qty": 2}]},
            {"id": "b", "total": 50, "lines": []},
        ],
        "empty": [],
        "none": {},
    },
    "steps": {
        "weather": {"summary": "sunny", "temp": 21, "wind": None},
        "x-y": {"v": [{"w": "deep"}]},
        "skipped": None,
    },
    "state": {"a": {"at": NOW - timedelta(hours=2), "took": timedelta(seconds=90), "status": "ok"}},
    "item": {"name": "one"},
    "index": 0,
    "secrets": {"token": Secret("hunter2")},
    "now": NOW,
}


def value(source: str) -> Any:
    return compile(source).evaluate(SCOPE)


CONFORMANCE: list[tuple[str, Any]] = [
    # bare paths
    ("params.i", 7),
    ("params.f", 1.5),
    ("params.s", "text"),
    ("params.t", True),
    ("params.n", None),
    ("params.l", [1, 2, 3]),
    ("params.l[0]", 1),
    (" params . l [ 2 ] ", 3),
    ('params.m["x-y"]', 2),
    ("params.m['x-y']", 2),
    ("params.in", "reserved"),
    ("params.huge", 2**63),
    ('steps["x-y"].v[0].w', "deep"),
    ("params.orders[1].id", "b"),
    ("index", 0),
    ("now", "2026-11-21T10:00:00Z"),
    ("state.a.at", "2026-11-21T08:00:00Z"),
    ("state.a.took", "PT90S"),
    # fallbacks
    ('steps.weather.summary ?? "n/a"', "sunny"),
    ('steps.weather.rain ?? "n/a"', "n/a"),
    ('steps.weather.wind ?? "n/a"', "n/a"),
    ('steps.nothing.at.all ?? "n/a"', "n/a"),
    ('steps.skipped.field ?? "n/a"', "n/a"),
    ("params.s.field ?? 'scalar'", "scalar"),
    ("params.l[9] ?? -1", -1),
    ("params.zz ?? 1.25", 1.25),
    ("params.zz ?? null", None),
    ("params.zz ?? true", True),
    ("params.zz ?? params.yy ?? params.i", 7),
    ("params.zz ?? params.i ?? 'no'", 7),
    ("event.id ?? 'no event'", "no event"),
    ("params.zz ?? 3 > 2", True),
    ("params.zz ?? params.i + 1", 8),
    ("(params.zz ?? 3) + 1", 4),
    ("1 + (params.i ?? 3)", 8),
    ("params.zz ?? [1, params.i]", [1, 7]),
    ("params.zz ?? {'a': params.i}", {"a": 7}),
    ("params.zz ?? string(params.i) + '!'", "7!"),
    ("params.t ? params.zz ?? 1 : 2", 1),
    ("size(params.zz ?? 'four')", 4),
    ("params.orders.map(o, o.note ?? o.id)", ["a", "b"]),
    ("params.m[params.zz ?? 'a']", 1),
    ("params.m[params.zz] ?? 'no key'", "no key"),
    ('steps["x-y"].u ?? steps["x-y"].v[0].w == "deep"', True),
    ("params.zz ?? '??'", "??"),
    ('params.zz ?? "it\'s"', "it's"),
    # numbers
    ("params.i + 1", 8),
    ("params.i - 10", -3),
    ("params.i * 2", 14),
    ("params.i / 2", 3),
    ("params.i % 4", 3),
    ("-params.i", -7),
    ("params.f * 2.0", 3.0),
    ("double(params.i) + params.f", 8.5),
    ("int(params.f)", 1),
    ("int('42') + 1", 43),
    ("params.i > params.f", True),
    ("params.i == 7.0", True),
    ("0x1F", 31),
    ("3u", 3),
    ("9223372036854775807", 2**63 - 1),
    ("-9223372036854775808", -(2**63)),
    ("1e3", 1000.0),
    # text
    ("params.s + '!'", "text!"),
    ("'It is ' + string(params.i)", "It is 7"),
    ("size(params.s)", 4),
    ("params.s.size()", 4),
    ("params.s.contains('ex')", True),
    ("params.s.startsWith('te')", True),
    ("params.s.endsWith('te')", False),
    ("params.s.matches('^t.xt$')", True),
    ("matches(params.s, '[0-9]+')", False),
    (r"'a\n' + r'\n'", "a\n\\n"),
    ("'''triple's'''", "triple's"),
    ("'äöü' + '😀'", "äöü😀"),
    ("'a' < 'b'", True),
    ("b'abc'", "YWJj"),
    ("string(b'abc')", "abc"),
    # truth
    ("params.t && params.i == 7", True),
    ("!params.t || params.s == 'text'", True),
    ("params.i > 5 ? 'many' : 'few'", "many"),
    ("params.n == null", True),
    ("params.i != null", True),
    ("null", None),
    ("true", True),
    ("has(params.i)", True),
    ("has(params.zz)", False),
    ("has(params.zz) && params.zz > 1", False),
    ("has(params.m.a) ? params.m.a : 0", 1),
    ("params.zz.yy == 1 && false", False),
    ("type(params.i) == int", True),
    # lists and objects
    ("2 in params.l", True),
    ("'a' in params.m", True),
    ("params.l + [4]", [1, 2, 3, 4]),
    ("params.l == [1, 2, 3]", True),
    ("params.l.size()", 3),
    ("params.l[params.l[0]]", 2),
    ("params.m['x' + '-y']", 2),
    ("params.l.all(x, x > 0)", True),
    ("params.l.exists(x, x > 2)", True),
    ("params.l.exists_one(x, x > 1)", False),
    ("params.l.filter(x, x > 1)", [2, 3]),
    ("params.l.map(x, x * x)", [1, 4, 9]),
    ("params.l.map(x, x > 1, x * 10)", [20, 30]),
    ("params.orders.filter(o, o.total > 10).map(o, o.id)", ["b"]),
    ("params.orders.map(o, o.lines.map(l, l.qty))", [[1, 2], []]),
    ("params.orders.map(item, item.id)", ["a", "b"]),
    ("params.m.map(k, k + '!').size()", 2),
    ("{'a': 1, 'b': [params.i, null]}", {"a": 1, "b": [7, None]}),
    ("{1: 'one', 2: 'two'}", {"1": "one", "2": "two"}),
    ("[null, params.n, {'n': null}]", [None, None, {"n": None}]),
    ("[params.m]", [{"a": 1, "x-y": 2}]),
    (
        "[now, 1h, b'a', 1.5, {1: true}]",
        ["2026-11-21T10:00:00Z", "PT3600S", "YQ==", 1.5, {"1": True}],
    ),
    (
        "[now, 1h, b'a', 1.5, {1: null}]",
        ["2026-11-21T10:00:00Z", "PT3600S", "YQ==", 1.5, {"1": None}],
    ),
    ("params.empty == [] && params.none == {}", True),
    # time
    ("now+1h", "2026-11-21T11:00:00Z"),
    ("now-30m", "2026-11-21T09:30:00Z"),
    ("now + 90s", "2026-11-21T10:01:30Z"),
    ("now + 1d", "2026-11-22T10:00:00Z"),
    ("now - 2w", "2026-11-07T10:00:00Z"),
    ("now + 1h30m", "2026-11-21T11:30:00Z"),
    ("now + duration('1.5s')", "2026-11-21T10:00:01.500000Z"),
    ("now - timestamp('2026-11-21T09:00:00Z') == 1h", True),
    ("now.getFullYear()", 2026),
    ("now.getHours('Europe/Paris')", 11),
    ("now.getHours('+02:00')", 12),
    ("string(now)", "2026-11-21T10:00:00Z"),
    ("now - state.a.at", "PT7200S"),
    ("state.a.at < now && state.a.status == 'ok'", True),
    ("has(state.a.at) && state.a.at + 3h > now", True),
    ("state.a.took > 1m", True),
    ("[state.a].map(state, state.at)", ["2026-11-21T08:00:00Z"]),
    ("timestamp('2026-01-01T00:00:00+01:00')", "2025-12-31T23:00:00Z"),
    ("1h", "PT3600S"),
    # secrets
    ("secrets.token + '!'", "hunter2!"),
    ("size(secrets.token)", 7),
]


@pytest.mark.parametrize(("source", "expected"), CONFORMANCE)
def test_an_expression_has_its_value(source: str, expected: Any) -> None:
    found = value(source)
    assert found == expected
    assert type(found) is type(expected)


def test_the_table_has_at_least_a_hundred_rows() -> None:
    assert len(CONFORMANCE) >= 100


def test_a_bare_path_gives_the_value_itself_and_no_copy() -> None:
    assert value("params.orders") is SCOPE["params"]["orders"]
    assert value("params.zz ?? params.orders") is SCOPE["params"]["orders"]
    assert value("secrets.token") is SCOPE["secrets"]["token"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("steps.weather.summary", {("steps", "weather", "summary")}),
        ('steps["x-y"].v[0].w', {("steps", "x-y", "v")}),
        ("params.a ?? steps.b.c", {("params", "a"), ("steps", "b", "c")}),
        ("params.a + steps['b'].c > 1", {("params", "a"), ("steps", "b", "c")}),
        ("has(steps.a.b)", {("steps", "a", "b")}),
        ("steps[params.which].v", {("steps",), ("params", "which")}),
        ("params.l[0].x > 1", {("params", "l")}),
        ("params.l.map(x, x.y + params.z)", {("params", "l"), ("params", "z")}),
        ("params.l.map(steps, steps.y)", {("params", "l")}),
        ("params.l.all(x, steps.a ?? true)", {("params", "l"), ("steps", "a")}),
        ("now+1h", {("now",)}),
        ("1 + 1", set()),
    ],
)
def test_references_are_the_paths_that_an_expression_names(
    source: str, expected: set[tuple[str, ...]]
) -> None:
    assert compile(source).references == expected


def test_cel_is_given_only_what_an_expression_names() -> None:
    unfit = {"params": {"i": 1, "other": object(), "m": {"a": 2, "b": 2**70}}, "steps": object()}
    assert compile("params.i + params.m.a").evaluate(unfit) == 3


NOT_COMPILED = [
    ("stepz.weather.temp", "did you mean 'steps'", 0),
    ("1 < stepz.weather.temp", "did you mean 'steps'", 4),
    ("foo ?? 1", "there is no 'foo' here", 0),
    ("sise(params.l)", "did you mean 'size'", 0),
    ("params.a = 1", "`==`", 9),
    ("params.a === 1", "`==`", 11),
    ("params.a and params.b", "`&&` instead of `and`", 9),
    ("params.a or params.b", "`||` instead of `or`", 9),
    ("not params.a", "`!` instead of `not`", 4),
    ("params.a & params.b", "write `&&`", 9),
    ("params.a > 1 && None", "`null`", 16),
    ("1 +", "ends too early", 3),
    ("(params.a", "ends too early", 9),
    ("params.a)", "')' is unexpected", 8),
    ('"open', "unexpected", 0),
    ("1 + 1.5", "double(x)", 2),
    ("'a' + 1", "string(x)", 4),
    ("params.t ? null : 1", "dyn(x)", 9),
    ("9223372036854775808", "beyond 64 bits", 0),
    ("", "no expression", 0),
    ("  ", "no expression", 0),
    ("?? 1", "path at its left", 0),
    ("f(params.a) ?? 1", "path at its left", 12),
    ("params.a ??", "value at its right", 9),
    ("1 + params.a ?? 2", "parentheses", 13),
    ("-params.a ?? 2 > 1", "parentheses", 10),
    ("__or(params.a, 1)", "are ours", 0),
    ("params.l.map(__time0, 1)", "are ours", 13),
    ("'" + "x" * 1024 + "'", "longer than 1024 bytes", None),
    ("'" + "ä" * 512 + "'", "longer than 1024 bytes", None),
    ("'\ud800'", "not valid Unicode", 1),
    ("params.s.matches(params.p)", "pattern as a literal", None),
    ("now.getHours('../../etc/passwd')", "name of a time zone", None),
    ("now.getHours('/dev/stdin')", "name of a time zone", None),
    ("now.getHours(params.zone)", "name of a time zone", None),
    ("google.protobuf.Any{type_url: 'x'}", "no type 'google.protobuf.Any'", None),
    ("params.a{b: 1}", "no type", 0),
]


@pytest.mark.parametrize(("source", "words", "position"), NOT_COMPILED)
def test_what_can_not_be_compiled_says_what_to_do(
    source: str, words: str, position: int | None
) -> None:
    with pytest.raises(ExpressionError) as refusal:
        compile(source)
    assert words in refusal.value.message
    assert refusal.value.position == position
    assert refusal.value.type == "expression"


def test_roots_can_be_fewer() -> None:
    assert compile("params.a > 1", roots=["params"]).references == {("params", "a")}
    for source in ("item.a", "item.a > 1", "item.a ?? 1"):
        assert "item" in ROOTS and compile(source)
        with pytest.raises(ExpressionError, match="there is no 'item' here"):
            compile(source, roots=["params", "steps"])


NO_VALUE = [
    ("params.zz", "'params' has no 'zz'"),
    ("steps.wether.summary", "'steps' has no 'wether': did you mean 'weather'?"),
    ("steps.wether.summary == 'x'", "'steps' has no 'wether': did you mean 'weather'?"),
    ("steps.skipped.summary", "'steps.skipped' is null"),
    ("params.s.field", "'params.s' is no object"),
    ("params.s[0]", "'params.s' is no list"),
    ("params.m[0]", "'params.m' has no '0'"),
    ("params.l.x", "'params.l' is no object"),
    ("params.l[3]", "'params.l' has no element 3: the list has 3"),
    ("params.zz ?? params.yy", "'params' has no 'yy'"),
    ("event.id", "'event' has no value here"),
    ("event.id == 1", "'event' has no value here"),
    ("!has(params.zz) && params.m[params.s] == 1", "'text' is missing: test it with `has()`"),
    ("params.m[params.s]", "'text' is missing: test it with `has()`"),
    ("params.l[params.i]", "there is no element 7"),
    ("params.i + params.f", "both double with `double(x)`"),
    ("params.i + params.s", "both text with `string(x)`"),
    ("params.i + params.n", "another value for null with `??`"),
    ("params.i ? 1 : 2", "needs true or false"),
    ("!params.i", "needs true or false"),
    ("params.i && true", "needs true or false"),
    ("params.s.matches('(')", "invalid regular expression"),
    ("params.i.map(x, x)", "only a list or an object"),
    ("params.i / 0", "divide by zero"),
    ("9223372036854775807 + params.i", "overflow"),
    ("params.huge + 1", "params.huge can't be used: an integer in it is beyond 64 bits"),
    ("[params.i / 0]", "divide by zero"),
    ("1.0 / 0.0", "JSON doesn't have"),
    ("type(params.i)", "JSON doesn't have"),
    ("[params.l, [type(params.i)]]", "JSON doesn't have"),
    ("[null, {'a': 1.0 / 0.0}]", "JSON doesn't have"),
    ("now + 999999999w", "maximum allowed duration"),
    ("timestamp('yesterday')", "Timestamp"),
    ("(params.zz ?? params.i / 0) > 1", "divide by zero"),
]


@pytest.mark.parametrize(("source", "words"), NO_VALUE)
def test_what_has_no_value_says_where_and_what_to_do(source: str, words: str) -> None:
    expression = compile(source)
    with pytest.raises(ExpressionError) as refusal:
        expression.evaluate(SCOPE)
    assert words in refusal.value.message
    assert refusal.value.source == source


def nested(levels: int, inner: Any = 1) -> Any:
    for _ in range(levels):
        inner = [inner]
    return inner


UNFIT = {
    "NUL character": "a\0b",
    "beyond 64 bits": [{"a": -(2**63) - 1}],
    "valid Unicode": "\ud800",
    "deeper than 64": nested(5000),
    "more than 50,000": [0] * 60_000,
    "50,000 values": "x" * 900_000,
    "isn't JSON": [object()],
    "isn't text": {1: 2},
}


@pytest.mark.parametrize(("words", "unfit"), UNFIT.items(), ids=UNFIT)
def test_data_that_cel_can_not_have_are_a_typed_error(words: str, unfit: Any) -> None:
    with pytest.raises(ExpressionError, match=words):
        compile("size(params.x) > 1").evaluate({"params": {"x": unfit}})
    assert compile("params.x").evaluate({"params": {"x": unfit}}) is unfit


def test_a_mapping_of_any_kind_is_a_scope() -> None:
    from types import MappingProxyType as Proxy

    scope = Proxy({"params": Proxy({"a": Proxy({"b": 2}), "t": (1, 2)})})
    assert compile("params.a.b").evaluate(scope) == 2
    assert compile("params.a.b + params.t[1]").evaluate(scope) == 4
    assert compile("[params.a]").evaluate(scope) == [{"b": 2}]


def test_nulls_are_not_lost_to_the_interpreter() -> None:
    """The package drops a reference to None with each null that it hands out: enough end Python."""
    expression = compile("[null, params.n, params.l]")
    before = sys.getrefcount(None)
    for _ in range(5000):
        expression.evaluate({"params": {"n": None, "l": [None]}})
    assert sys.getrefcount(None) > before - 2500


# Hostile


NESTED = [
    "(" * 512 + "1" + ")" * 511,
    "[" * 1024,
    "{" * 1024,
    "((((" * 256,
    "params[" * 120,
    "size(" * 200,
    "[1].map(a," * 40 + "a" + ")" * 40,
    "true?1:" * 140 + "1",
    "1" + "+1" * 500,
    "[1]" + ".map(a,a)" * 110,
    "(params.a ?? " * 25 + "1" + ")" * 25,
    "'a'.matches(" * 80,
]


@pytest.mark.parametrize("source", NESTED)
def test_deep_syntax_is_refused(source: str) -> None:
    with pytest.raises(ExpressionError, match="nested too deeply"):
        compile(source)


GARBAGE = [
    "'" * 1000,
    '"""' + "\\a" * 500,
    "'''" + "\\\\" * 500,
    "r'" + "\\" * 1000,
    "`" * 1000,
    "//" * 500,
    "/*" * 500,
    "??" * 500,
    "params.a" + "??" * 400,
    "\0" * 1000,
    "😀" * 250,
    "true?" * 140 + "1" + ":1" * 140,
    "9" * 1000,
    "@not_strictly_false(1)",
    "cel.bind(x, 1, x)",
    "'\\ud800'",
]


@pytest.mark.parametrize("source", GARBAGE)
def test_garbage_is_refused(source: str) -> None:
    with pytest.raises(ExpressionError):
        compile(source)


LONG = [
    ("!" * 1020 + "true", True),
    ("-" * 1020 + "1", 1),
    ("params.t" + "&&params.t" * 90, True),
    ("params.zz ?? " * 70 + "1", 1),
    ("steps" + "[steps['zz']" * 8 + "]" * 8 + " ?? 1", 1),
    ("[" + "1," * 500 + "1]", [1] * 501),
    ("'" + "a" * 900 + "'.size()", 900),
]


@pytest.mark.parametrize(("source", "expected"), LONG)
def test_long_but_flat_syntax_works(source: str, expected: Any) -> None:
    assert value(source) == expected


EXPLOSIVE = [
    '["ab"]' + ".map(a,a+a)" * 25,
    "[[0]]" + ".map(a,a+a)" * 25,
    "[0]" + ".map(a,[a,a])" * 22 + ".all(a,a==a)",
    "[dyn(0)]" + ".map(a,{'k':a,'j':a})" * 15,
    "[0,1,2,3,4,5,6,7,8,9].all(a," * 8 + "true" + ")" * 8,
    "'a'.matches('" + ".{999}" * 140 + "')",
    "'a'.matches('(((a{1,99}){1,99}){1,99})')",
    "'a'.matches('" + r"\\pL" * 200 + "')",
]


@pytest.mark.parametrize("source", EXPLOSIVE)
def test_what_explodes_by_itself_is_refused_while_compiling(source: str) -> None:
    with pytest.raises(ExpressionError, match="steps, and"):
        compile(source)


RECORDS = [{"id": n, "name": f"name {n}", "lines": [{"q": 1}, {"q": 2}]} for n in range(5000)]
EXPENSIVE: list[tuple[str, Any]] = [
    ("params.x.map(x, x)", list(range(9000))),
    ("params.x.filter(x, x >= 0)", list(range(9000))),
    ("params.x.all(x, x in params.x)", list(range(5000))),
    ("params.x.map(x, params.x)", list(range(1000))),
    ("params.x.exists(x, params.x == [x])", list(range(5000))),
    ("params.x.map(o, o.lines.map(l, l.q))", RECORDS),
    ("[params.x, null]", RECORDS[:2500]),
    ("params.x.matches('[ab]*a[ab]{900}c')", "ab" * 10_000),
    ("+".join(["params.x"] * 30) + " == 'a'", "x" * 700_000),
]


@pytest.mark.parametrize(("source", "data"), EXPENSIVE, ids=[row[0] for row in EXPENSIVE])
def test_what_costs_too_much_for_its_data_is_refused(source: str, data: Any) -> None:
    expression = compile(source)
    with pytest.raises(ExpressionError, match="steps, and 1,000,000 are allowed"):
        expression.evaluate({"params": {"x": data}})


AFFORDABLE: list[tuple[str, Any, Any]] = [
    ("params.x.map(x, x).size()", list(range(1300)), 1300),
    ("params.x.exists(x, x < 0)", list(range(9000)), False),
    ("params.x.filter(o, o.id < 3).map(o, o.id)", RECORDS[:900], [0, 1, 2]),
    ("params.x.all(o, o.lines.all(l, l.q > 0))", RECORDS[:2000], True),
    ("params.x.filter(o, o.name in ['name 3', 'name 5']).size()", RECORDS[:900], 2),
    ("params.x[0] + 1", list(range(40_000)), 1),
    ("[params.x]", RECORDS[:2500], [RECORDS[:2500]]),
    ("[params.x]", [*RECORDS[:1000], None], [[*RECORDS[:1000], None]]),
    ("params.x.contains('y')", "x" * 700_000, False),
    ("params.x.matches('^[a-z0-9._%+-]+@[a-z0-9.-]+[.][a-z]{2,}$')", "ann@example.org", True),
]


@pytest.mark.parametrize(
    ("source", "data", "expected"), AFFORDABLE, ids=[row[0] for row in AFFORDABLE]
)
def test_what_people_write_is_affordable(source: str, data: Any, expected: Any) -> None:
    assert compile(source).evaluate({"params": {"x": data}}) == expected


def test_more_than_ten_thousand_rounds_are_refused() -> None:
    source = "[0,1,2,3,4,5,6,7,8,9].all(a," * 4 + "true" + ")" * 4
    with pytest.raises(ExpressionError, match="10,000 rounds"):
        compile(source).evaluate({})


@pytest.mark.parametrize(
    ("pattern", "weight"),
    [
        ("abc", 4),
        ("a{100}", 101),
        ("(a{10}){10}", 111),
        ("(ab){3,5}c", 17),
        ("[a-z]+", 2),
        ("[]a]{9}", 10),
        (".", 9),
        (r"\pL", 601),
        ("a)", 2),
        ("(((", 1),
        ("{9}{9}", 1),
    ],
)
def test_a_pattern_weighs_what_it_repeats(pattern: str, weight: float) -> None:
    assert pattern_weight(pattern) == pytest.approx(weight, abs=2)


# Templates


def render(given: Any) -> Any:
    return template(given).render(SCOPE)


TEMPLATES: list[tuple[Any, Any]] = [
    ("${params.i}", 7),
    ("${ params.l }", [1, 2, 3]),
    ("${params.n}", None),
    ("${params.i + 1}", 8),
    (" ${params.i}", " 7"),
    ("${params.i}${params.i}", "77"),
    ("${params.s}${params.t}", "texttrue"),
    ("It is ${steps.weather.temp} °C, ${steps.weather.summary}.", "It is 21 °C, sunny."),
    ("t: ${params.t}, n: ${params.n}, f: ${params.f}", "t: true, n: null, f: 1.5"),
    ("n: ${params.n ?? ''}", "n: "),
    ("m: ${params.m}, l: ${params.l}", 'm: {"a":1,"x-y":2}, l: [1,2,3]'),
    ("huge: ${params.huge}", "huge: 9223372036854775808"),
    ("at ${now}", "at 2026-11-21T10:00:00Z"),
    ("Bearer ${secrets.token}", "Bearer hunter2"),
    ("$${params.i}", "${params.i}"),
    ("a $${b} ${params.i}", "a ${b} 7"),
    ("$$${params.i}", "$${params.i}"),
    ("$ {params.i} $x $", "$ {params.i} $x $"),
    ("cost: $${params.i} is $${", "cost: ${params.i} is ${"),
    ("", ""),
    ("}", "}"),
    ('${"}" + params.s}', "}text"),
    ("${'{' + params.s}!", "{text!"),
    ('${"${x}" + params.s}', "${x}text"),
    (r'${"\"}" + params.s}', '"}text'),
    (r"${r'\}' + params.s}", "\\}text"),
    ("${'''}''' + params.s}", "}text"),
    ("${{'a': {'b': params.i}}.a.b}", 7),
    ("${{'a': 1}}", {"a": 1}),
    ("${params.zz ?? '}'} ${params.i}", "} 7"),
    ({"a": "${params.i}", "b": ["${params.s}", 1, None]}, {"a": 7, "b": ["text", 1, None]}),
    ({"${params.s}": "${params.i}"}, {"${params.s}": 7}),
    ({"a": {"b": "$${x}"}, "c": 1}, {"a": {"b": "${x}"}, "c": 1}),
    ([], []),
    (1.5, 1.5),
    (None, None),
]


@pytest.mark.parametrize(("given", "expected"), TEMPLATES)
def test_a_template_renders(given: Any, expected: Any) -> None:
    found = render(given)
    assert found == expected
    assert type(found) is type(expected)


def test_results_are_never_rendered_again() -> None:
    scope = {"params": {"evil": "${secrets.token}", "l": ["${secrets.token}"]}, **SCOPE["secrets"]}
    rendered = template({"a": "${params.evil}", "b": "x${params.evil}", "c": "${params.l}"})
    assert rendered.render(scope) == {
        "a": "${secrets.token}",
        "b": "x${secrets.token}",
        "c": ["${secrets.token}"],
    }


def test_constant_parts_are_not_copied_and_the_rest_is_new_each_time() -> None:
    given: dict[str, Any] = {"fixed": {"big": [1, 2]}, "moving": {"x": "${params.i}", "same": [3]}}
    made = template(given)
    first, second = made.render(SCOPE), made.render(SCOPE)
    assert first["fixed"] is given["fixed"] and first["moving"]["same"] is given["moving"]["same"]
    assert first["moving"] is not second["moving"] and first is not second
    assert given["moving"] == {"x": "${params.i}", "same": [3]}
    assert list(first) == ["fixed", "moving"]


def test_a_constant_template_is_its_value() -> None:
    given = {"a": [1, {"b": "text"}]}
    assert template(given).is_constant and template(given).render({}) is given
    escaped = template({"a": "$${b}", "c": given})
    assert escaped.is_constant and escaped.render({}) == {"a": "${b}", "c": given}
    assert not template({"a": "${params.i}"}).is_constant


def test_a_template_knows_its_references() -> None:
    given: dict[str, Any] = {
        "a": "${steps.x.y} and ${params.b}",
        "c": ["${steps.z > 1}", "$${steps.q}"],
    }
    assert template(given).references == {("steps", "x", "y"), ("params", "b"), ("steps", "z")}
    assert template(given["c"][1]).references == frozenset()


def test_text_of_secrets_is_plain_text() -> None:
    assert type(render("Bearer ${secrets.token}")) is str
    assert type(render("${secrets.token + ''}")) is str


def test_all_problems_of_a_template_are_named_at_once_with_their_pointers() -> None:
    given: dict[str, Any] = {
        "ok": "${params.i}",
        "a/b": ["fine", "${stepz.x}", {"~": "${1 +}"}],
        "open": "text ${params.i",
        "deep": nested(70, "${params.i}"),
    }
    with pytest.raises(TemplateErrors) as refusal:
        template(given)
    found = dict(refusal.value.problems)
    assert list(found)[:3] == ["/a~1b/1", "/a~1b/2/~0", "/open"]
    assert "did you mean 'steps'" in found["/a~1b/1"].message
    assert found["/open"].message == "`${` without its `}`" and found["/open"].position == 5
    assert "nested deeper" in found["/deep" + "/0" * 63].message
    assert len(found) == 4


@pytest.mark.parametrize("text", ["${", "a ${params.i", "${'}'", "${{}", "${params.i} ${"])
def test_an_unclosed_brace_is_an_error(text: str) -> None:
    with pytest.raises(TemplateErrors, match="without its `}`"):
        template(text)


@pytest.mark.parametrize("text", ["${}", "${ }", "a ${} b"])
def test_empty_braces_are_an_error(text: str) -> None:
    with pytest.raises(TemplateErrors, match="no expression"):
        template(text)


def test_what_is_missing_is_an_error_of_rendering() -> None:
    made = template({"a": "x ${steps.weather.sumary}"})
    with pytest.raises(ExpressionError, match="did you mean 'summary'"):
        made.render(SCOPE)


def test_what_is_not_json_can_not_become_text() -> None:
    with pytest.raises(ExpressionError, match="can't become text"):
        template("a ${params.x}").render({"params": {"x": object()}})


# Conditions


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("params.t", True),
        ("${params.t}", True),
        (" ${ params.i > 5 } ", True),
        ("params.i > 5 && false", False),
        ("params.n", False),
        ("params.empty", False),
        ("params.none", False),
        ("${steps.skipped}", False),
        ("params.zz ?? false", False),
        ("steps.weather.rain ?? steps.weather.temp > 20", True),
        ("{'}': true}['}']", True),
    ],
)
def test_a_condition_holds_or_not(source: str, expected: bool) -> None:
    assert condition(source).holds(SCOPE) is expected


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("params.i", "a number"),
        ("${index}", "a number"),
        ("params.s", "text"),
        ("'' + ''", "text"),
        ("params.l", "a list"),
        ("params.m", "an object"),
        ("params.f", "a number"),
    ],
)
def test_there_is_no_other_truthiness(source: str, kind: str) -> None:
    made = condition(source)
    with pytest.raises(ExpressionError, match=f"true or false, and this is {kind}"):
        made.holds(SCOPE)


@pytest.mark.parametrize("source", ["${params.t} and", "${params.t}${params.t}", "${params.t", ""])
def test_a_condition_is_one_expression(source: str) -> None:
    with pytest.raises(ExpressionError):
        condition(source)


def test_a_condition_knows_its_references() -> None:
    assert condition("${steps.a.b > params.c}").references == {("steps", "a", "b"), ("params", "c")}
