"""The course of a run: what is next, what it answers, and how it ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
from acts import Tool, do, lines_of, put, start, steps_of
from conftest import Make
from crew import Crew, ends, look, until

from orchestrator import db
from orchestrator.steps import Context, Done, Fail, Kind, Outcome, Retry

BOOM = Fail("conflict", "boom")
AGAIN = Retry("communication", "not now")


@pytest.fixture
async def crew(make: Make) -> AsyncIterator[Crew]:
    crew = Crew(make.config())
    yield crew
    await crew.end()


@pytest.fixture
async def tool() -> Tool:
    return Tool()


class Runs:
    """Runs a document to its end, and remembers which run it was."""

    def __init__(self, crew: Crew, conn: db.Connection, tool: Tool) -> None:
        self.crew, self.conn, self.tool = crew, conn, tool
        self.id = ""

    async def __call__(self, *steps: dict[str, Any], **more: Any) -> db.Row:
        self.id = await start(self.conn, *steps, **more)
        await self.crew.once(self.tool.kind)
        return await look(self.conn, self.id)

    async def output(self, *steps: dict[str, Any], **more: Any) -> Any:
        row = await self(*steps, **more)
        assert row["state"] == "succeeded", row["error"]
        return row["output"]

    async def error(self, *steps: dict[str, Any], **more: Any) -> dict[str, Any]:
        row = await self(*steps, **more)
        assert row["state"] == "failed", row["state"]
        return dict(row["error"])


@pytest.fixture
async def run(crew: Crew, conn: db.Connection, tool: Tool) -> Runs:
    return Runs(crew, conn, tool)


# Values


async def test_values_keep_their_types_from_step_to_step(run: Runs) -> None:
    output = await run.output(
        do("a", {"n": 7, "list": [1, None, True, 1.5], "text": "x"}),
        put("b", n="${steps.a.n}", list="${steps.a.list}", text="${steps.a.n}: ${steps.a.list}"),
        do("c", "${steps.b.list[0]}", save_as="last"),
    )
    assert output["b"] == {"n": 7, "list": [1, None, True, 1.5], "text": "7: [1,null,true,1.5]"}
    assert output["last"] == 1


@pytest.mark.parametrize("is_pure", [True, False])
async def test_a_step_whose_condition_is_false_is_skipped_and_its_value_is_null(
    run: Runs, tool: Tool, is_pure: bool
) -> None:
    skipped = put("a", x=1) if is_pure else do("a")
    output = await run.output(
        skipped | {"if": "1 == 2"},
        put("b", was="${steps.a}", status="${state.a.status}"),
    )
    assert output == {"b": {"was": None, "status": "skipped"}}
    assert tool.calls == []


@pytest.mark.parametrize("is_pure", [True, False])
async def test_a_later_step_sees_how_an_earlier_one_fared(run: Runs, is_pure: bool) -> None:
    first = put("a", x=1) if is_pure else do("a")
    output = await run.output(
        first, put("b", status="${state.a.status}", attempt="${state.a.attempt}")
    )
    assert output["b"] == {"status": "succeeded", "attempt": 1}


async def test_a_step_that_is_saved_as_null_keeps_nothing(run: Runs) -> None:
    assert await run.output(do("a", 1, save_as=None), do("b", 2)) == {"b": 2}


async def test_the_output_of_a_run_is_what_its_pipeline_says(run: Runs) -> None:
    output = await run.output(do("a", 2), output={"double": "${steps.a * 2}", "of": "${params.p}"},
                              params={"p": "x"})  # fmt: skip
    assert output == {"double": 4, "of": "x"}


async def test_params_are_bound_to_declared_inputs_with_their_defaults(run: Runs) -> None:
    inputs = {"a": {"type": "integer", "required": True}, "b": {"type": "string", "default": "d"}}
    document = {"inputs": inputs, "vars": {"c": [3]}}
    step = do("s", {"a": "${params.a}", "b": "${input.b}", "c": "${vars.c}"})
    assert await run.output(step, **document, run={"input": {"a": 1}}) == {
        "s": {"a": 1, "b": "d", "c": [3]}
    }
    error = await run.error(step, **document)
    assert error["type"] == "validation"
    assert "a is required" in error["message"]


async def test_now_is_the_same_on_every_attempt(
    run: Runs, crew: Crew, conn: db.Connection, tool: Tool
) -> None:
    tool.answer("a", AGAIN, AGAIN)
    await run.output(
        do("a", "${now}", retry={"attempts": 2, "delay": 0}),
        run={"max_attempts": 2, "backoff_seconds": 0},
    )
    assert len(tool.given) == 3
    assert len(set(map(str, tool.given))) == 1


@pytest.mark.parametrize(
    ("value", "type", "words"),
    [
        ("${steps.a.missing}", "expression", "missing"),
        ("${steps.a.n + 'x'}", "expression", "`+` can't take"),
    ],
)
async def test_what_has_no_value_fails_its_step_with_a_typed_error(
    run: Runs, tool: Tool, value: str, type: str, words: str
) -> None:
    error = await run.error(do("a", {"n": 1}), do("b", value), secrets=["token"])
    assert (error["type"], error.get("step", "b")) == (type, "b")
    assert words in error["message"]
    assert "b" not in tool.calls


async def test_an_unknown_tool_is_refused_with_the_names_of_the_known(run: Runs) -> None:
    error = await run.error(do("a", uses="dO"))
    assert error["type"] == "validation"
    assert "there is no tool 'dO'; known: assert, do, " in error["message"]


# Order


async def test_steps_without_common_needs_run_beside_each_other(
    crew: Crew, conn: db.Connection, tool: Tool
) -> None:
    tool.hold("a", "b", "c")
    id = await start(
        conn,
        do("a", 1),
        do("b", 2, needs=[]),
        do("c", "${steps.a + steps.b}", needs=["a", "b"]),
    )
    crew.worker(tool.kind)
    await until(lambda: sorted(tool.inside) == ["a", "b"])
    tool.free("b")
    await until(lambda: tool.inside == ["a"])
    tool.free("a")
    await until(lambda: tool.inside == ["c"])
    tool.free("c")
    assert (await ends(conn, id))["output"] == {"a": 1, "b": 2, "c": 3}


async def test_a_failed_step_stops_those_that_need_it_and_cancels_the_others(
    crew: Crew, conn: db.Connection, tool: Tool
) -> None:
    tool.hold("slow")
    tool.answer("bad", BOOM)
    id = await start(
        conn, do("slow", needs=[]), do("bad", needs=[]), do("after", needs=["bad"]), do("last")
    )
    crew.worker(tool.kind)
    row = await ends(conn, id)
    assert row["error"] == {"type": "conflict", "message": "boom", "step": "bad"}
    assert (sorted(tool.calls), tool.stopped) == (["bad", "slow"], ["slow"])


async def test_a_skipped_step_satisfies_needs(run: Runs) -> None:
    output = await run.output(do("a", **{"if": "false"}), do("b", 1, needs=["a"]), do("c", 2))
    assert output == {"b": 1, "c": 2}


async def test_branches_run_beside_each_other_and_all_answer(
    crew: Crew, conn: db.Connection, tool: Tool
) -> None:
    tool.hold("x1", "y1")
    branches = {"x": [do("x1", 1), do("x2", 2)], "y": [do("y1", 3)]}
    id = await start(conn, {"id": "p", "parallel": {"branches": branches}},
                     do("z", "${steps.p.x + steps.y1}"))  # fmt: skip
    crew.worker(tool.kind)
    await until(lambda: sorted(tool.inside) == ["x1", "y1"])
    tool.free()
    output = (await ends(conn, id))["output"]
    assert (output["p"], output["z"]) == ({"x": 2, "y": 3}, 5)


async def test_a_race_is_won_by_the_first_and_the_others_are_stopped(run: Runs, tool: Tool) -> None:
    tool.hold("slow")
    branches = {"slow": [do("slow")], "quick": [do("quick", 1)]}
    output = await run.output({"id": "r", "parallel": {"branches": branches, "mode": "race"}})
    assert output["r"] == {"quick": 1}
    assert tool.stopped == ["slow"]


@pytest.mark.parametrize(("n", "expected"), [(1, "one"), (2, "two"), (3, "many")])
async def test_a_switch_takes_the_first_case_that_holds(
    run: Runs, tool: Tool, n: int, expected: str
) -> None:
    cases: list[dict[str, Any]] = [
        {"when": "params.n == 1", "steps": [do("one", "one")]},
        {"when": "params.n <= 2", "steps": [do("two", "two")]},
        {"else": [do("many", "many")]},
    ]
    output = await run.output({"id": "s", "switch": cases}, params={"n": n})
    assert (output["s"], tool.calls) == (expected, [expected])


async def test_a_switch_without_a_case_that_holds_is_null(run: Runs) -> None:
    case = {"when": "false", "steps": [do("a")]}
    assert await run.output({"id": "s", "switch": [case]}) == {"s": None}


# Items


async def test_items_are_worked_in_bounded_parallel_and_answer_in_their_order(
    crew: Crew, conn: db.Connection, tool: Tool
) -> None:
    items = list(range(7))
    tool.hold(*[f"i{n}" for n in items])
    step = {"id": "e", "uses": "do", "with": {"name": "i${item}", "give": "${index * 10}"}}
    id = await start(conn, step | {"for_each": "${params.items}", "max_parallel": 3},
                     params={"items": items})  # fmt: skip
    crew.worker(tool.kind)
    for n in (2, 1, 0, 5, 4, 3, 6):
        name = f"i{n}"
        await until(partial(tool.inside.__contains__, name))
        tool.free(name)
        await until(lambda name=name: name not in tool.inside)  # type: ignore[misc]
    row = await ends(conn, id)
    assert (row["output"], tool.most) == ({"e": [n * 10 for n in items]}, 3)


async def test_what_an_item_leaves_is_its_own(run: Runs) -> None:
    output = await run.output(
        {
            "id": "e", "for_each": [1, 2], "max_parallel": 2,
            "steps": [do("x", "${item}"), do("m"), put("y", x="${steps.x}", n="${index}")],
        },
        put("z", all="${steps.e}"),
    )  # fmt: skip
    values = [{"x": 1, "n": 0}, {"x": 2, "n": 1}]
    assert output == {"e": values, "z": {"all": values}}


@pytest.mark.parametrize(("failures", "ends_well"), [(1, False), (2, True)])
async def test_as_many_items_may_fail_as_were_allowed(
    run: Runs, tool: Tool, failures: int, ends_well: bool
) -> None:
    for name in ("i1", "i2"):
        tool.answer(name, BOOM)
    step = {"id": "e", "uses": "do", "with": {"name": "i${item}", "give": "${item}"}}
    row = await run(step | {"for_each": [1, 2, 3, 4], "max_failures": failures})
    if ends_well:
        assert row["output"] == {"e": [None, None, 3, 4]}
    else:
        assert row["error"] == {"type": "conflict", "message": "boom", "step": "e[1]"}
        assert tool.calls == ["i1", "i2"]


async def test_no_items_give_an_empty_list_and_too_many_or_none_at_all_an_error(
    run: Runs,
) -> None:
    assert await run.output(do("e", for_each=[])) == {"e": []}
    error = await run.error(do("e", for_each="${params.n}"), params={"n": [0] * 10_001})
    assert error["message"] == "for_each takes at most 10000 items"
    error = await run.error(do("e", for_each="${params.n}"), params={"n": 1})
    assert error == {"type": "validation", "message": "for_each needs a list", "step": "e"}


# Loops


async def test_while_goes_on_as_long_as_it_holds(run: Runs) -> None:
    step = {**do("w", "${index + 1}"), "while": "index < 3", "max_iterations": 10}
    assert await run.output(step) == {"w": 3}
    assert await run.output(step | {"max_iterations": 2}) == {"w": 2}


async def test_until_fails_when_it_never_comes_true(run: Runs, tool: Tool) -> None:
    step = do("u", "${index}", until="result >= 2", max_iterations=5)
    assert await run.output(step) == {"u": 2}
    error = await run.error(step | {"max_iterations": 2})
    assert error["message"] == "not so after 2 iterations"


async def test_a_round_sees_what_the_one_before_it_left(run: Runs) -> None:
    output = await run.output(
        do("n", 0),
        {
            "id": "w", "while": "size(string(steps.t ?? '')) < 3", "max_iterations": 9,
            "steps": [do("t", "${steps.t ?? ''}x")],
        },
    )  # fmt: skip
    assert output["t"] == "xxx"


# Attempts


async def test_a_step_is_tried_again_as_often_as_it_says_under_one_key(
    run: Runs, tool: Tool
) -> None:
    tool.answer("a", AGAIN, AGAIN)
    assert await run.output(do("a", 1, retry={"attempts": 3, "delay": 0})) == {"a": 1}
    assert len(tool.keys["a"]) == 3
    assert len(set(tool.keys["a"])) == 1
    tool.answer("b", AGAIN, AGAIN)
    error = await run.error(do("b", retry={"attempts": 2, "delay": 0}))
    assert error == {"type": "communication", "message": "not now", "step": "b"}
    assert tool.keys["b"][0] != tool.keys["a"][0]


@pytest.mark.parametrize(
    ("retry", "outcome", "calls"),
    [
        ({}, BOOM, 1),
        ({}, AGAIN, 3),
        ({"errors": ["timeout"]}, AGAIN, 1),
        ({"errors": ["conflict"]}, BOOM, 3),
        ({"when": "error.message == 'not now'"}, AGAIN, 3),
        ({"when": "error.message == 'never'"}, AGAIN, 1),
        ({"when": "error.type == 'conflict'"}, BOOM, 3),
    ],
)
async def test_only_errors_that_were_named_are_tried_again(
    run: Runs, tool: Tool, retry: dict[str, Any], outcome: Outcome, calls: int
) -> None:
    tool.answer("a", *[outcome] * 5)
    await run.error(do("a", retry={"attempts": 3, "delay": 0, **retry}))
    assert len(tool.calls) == calls


@pytest.mark.parametrize(("own", "wish"), [(0.3, None), (0.0, 0.3)])
async def test_the_longer_of_two_delays_is_kept(
    run: Runs, tool: Tool, own: float, wish: float | None
) -> None:
    tool.answer("a", Retry("rate_limited", "slow down", delay=wish))
    started = time.monotonic()
    await run.output(do("a", retry={"attempts": 2, "delay": own, "jitter": 0}))
    assert time.monotonic() - started > 0.3


async def test_an_attempt_has_its_time_and_all_of_them_have_theirs(run: Runs, tool: Tool) -> None:
    tool.hold("a")
    retry = {"attempts": 3, "delay": 0}
    error = await run.error(do("a", timeout=0.02, retry=retry))
    assert error == {"type": "timeout", "message": "longer than 0.02 s", "step": "a"}
    assert (tool.calls, tool.stopped) == (["a"] * 3, ["a"] * 3)
    forever = {"attempts": 100, "delay": 0}
    error = await run.error(do("a", timeout={"attempt": 0.02, "total": 0.5}, retry=forever))
    assert error["message"] == "longer than 0.5 s"
    assert 3 + 2 <= len(tool.calls) <= 3 + 25 + 1


async def test_a_block_is_tried_again_without_its_steps_that_have_succeeded(
    run: Runs, conn: db.Connection, tool: Tool
) -> None:
    tool.answer("b", AGAIN)
    block = {"id": "x", "steps": [do("a", 1), do("b", 2)], "retry": {"attempts": 2, "delay": 0}}
    assert (await run.output(block))["x"] == 2
    assert tool.calls == ["a", "b", "b"]
    assert (await steps_of(conn, run.id))["x/b"]["attempt"] == 2


# Failures that are caught


async def test_what_is_caught_gives_the_value_of_the_catching_steps(run: Runs, tool: Tool) -> None:
    tool.answer("a", BOOM, BOOM)
    saved = do("c", {"why": "${error.message}", "type": "${error.type}", "step": "${error.step}"})
    output = await run.output(do("a", catch=[saved]), put("b", a="${steps.a}"))
    value = {"why": "boom", "type": "conflict", "step": "a"}
    assert output == {"a": value, "c": value, "b": {"a": value}}
    error = await run.error(do("a", catch={"errors": ["timeout"], "steps": [do("c")]}))
    assert error["message"] == "boom"


async def test_a_failure_that_is_passed_over_leaves_null_and_its_error(
    run: Runs, tool: Tool
) -> None:
    tool.answer("a", BOOM)
    after = put("b", a="${steps.a}", status="${state.a.status}", why="${state.a.error.message}")
    output = await run.output(do("a", continue_on_error=True), after)
    assert output["b"] == {"a": None, "status": "failed", "why": "boom"}


async def test_a_kind_that_cancels_itself_can_be_caught(run: Runs, tool: Tool) -> None:
    tool.answer("a", asyncio.CancelledError("canceled"))
    output = await run.output(do("a", catch=[do("c", "${error.message}")]))
    assert output["a"] == "the step canceled itself"


# What comes after the end


async def test_on_error_sees_the_error_and_finally_runs_after_it(run: Runs, tool: Tool) -> None:
    tool.answer("a", BOOM)
    error = await run.error(
        do("a"), on_error=[do("e", "${error.message}")], finally_=[do("f", "${error.step}")]
    )
    assert error["message"] == "boom"
    assert (tool.calls, tool.given[1:]) == (["a", "e", "f"], ["boom", "a"])


async def test_finally_runs_after_success_and_its_failure_is_a_line_of_the_log(
    run: Runs, conn: db.Connection, tool: Tool
) -> None:
    tool.answer("f", BOOM)
    output = await run.output(do("a", 1), on_error=[do("e")], finally_=[do("f", "${error}")])
    assert (output, tool.calls, tool.given) == ({"a": 1}, ["a", "f"], [1, None])
    assert await lines_of(conn, run.id) == ["finally: boom"]


async def test_nothing_comes_after_an_attempt_that_is_not_the_last(run: Runs, tool: Tool) -> None:
    tool.answer("a", AGAIN)
    options = {"max_attempts": 2, "backoff_seconds": 0}
    await run.output(do("a", 1), on_error=[do("e")], finally_=[do("f")], run=options)
    assert tool.calls == ["a", "a", "f"]


async def test_finally_runs_to_its_end_when_a_running_run_is_canceled(
    crew: Crew, conn: db.Connection, tool: Tool
) -> None:
    tool.hold("b", "f1")
    branches = {"x": [do("a"), do("b")], "y": [do("c")]}
    id = await start(conn, {"id": "p", "parallel": {"branches": branches}}, do("after"),
                     finally_=[do("f1", "${error.type}"), do("f2")])  # fmt: skip
    worker = crew.worker(tool.kind, lease=1.0)
    await until(lambda: tool.inside == ["b"])
    await db.call(conn, "cancel_run", tenant="t", run=id)
    await until(lambda: tool.inside == ["f1"])
    lease = worker.lease
    assert lease
    told_at = lease.renewed_at + 0.4  # it was told so once more by then
    await until(lambda: lease.renewed_at > told_at)
    tool.free("f1")
    assert (await ends(conn, id))["state"] == "canceled"
    assert (tool.stopped, tool.calls[-2:]) == (["b"], ["f1", "f2"])
    assert "after" not in tool.calls


async def test_a_canceled_run_goes_no_further_even_if_its_step_does_not_obey(
    crew: Crew, conn: db.Connection, tool: Tool
) -> None:
    inside = asyncio.Event()

    async def run(_: Any, context: Context) -> Outcome:
        try:
            inside.set()
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return Done("never mind")
        return Done()

    stubborn = Kind("stubborn", dict, run)
    id = await start(conn, {"uses": "stubborn"}, do("after"), finally_=[do("f")])
    crew.worker(tool.kind, stubborn)
    await inside.wait()
    await db.call(conn, "cancel_run", tenant="t", run=id)
    assert (await ends(conn, id))["state"] == "canceled"
    assert tool.calls == ["f"]


async def test_a_pipeline_has_its_time(run: Runs, tool: Tool) -> None:
    tool.hold("a")
    error = await run.error(do("a"), timeout=0.5, finally_=[do("f")])
    assert error == {"type": "timeout", "message": "longer than 0.5 s"}
    assert (tool.stopped, tool.calls) == (["a"], ["a", "f"])


# Results


async def test_a_result_is_projected_and_checked_and_a_misfit_is_not_tried_again(
    run: Runs, tool: Tool
) -> None:
    schema = {"type": "object", "required": ["n"]}
    step = do("a", {"m": {"n": 1}}, output="${result.m}", schema=schema, retry=3)
    assert await run.output(step) == {"a": {"n": 1}}
    error = await run.error(step | {"output": "${result.m.n}"})
    assert (error["type"], error["step"]) == ("validation", "a")
    assert error["message"].startswith("its result doesn't fit its schema: ")
    assert len(tool.calls) == 2


async def test_an_output_that_is_too_large_fails_its_run_before_the_end(
    run: Runs, tool: Tool
) -> None:
    for name in ("a", "b"):
        tool.answer(name, Done("x" * 9_000_000))
    error = await run.error(do("a"), do("b"), on_error=[do("e", "${error.type}")])
    assert error["message"].startswith("its output can't be kept: it has 18,000,0")
    assert tool.given[-1] == "validation"


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize("outside", [True, False])
async def test_a_result_that_cannot_be_kept_fails_its_step_and_the_worker_lives(
    crew: Crew, conn: db.Connection, outside: bool
) -> None:
    tool = Tool(outside=outside)
    odd = {
        "large": ("x" * 17_000_000, "bytes, and the limit is"),
        "nul": ("a\0b", "it has a NUL character"),
        "deep": (deep(5000), ""),
        "deepish": (deep(40), "nested deeper than 32 levels"),
        "vast": (10**400, "a number over 1e308"),
        "strange": (object(), "it isn't JSON"),
        "surrogate": ("\ud800", "it isn't JSON"),
    }
    runs = {}
    for name, (value, _) in odd.items():
        tool.answer(name, Done(value))
        runs[name] = await start(conn, do(name), do("never"))
    good = await start(conn, do("good", 1))
    await crew.once(tool.kind)
    for name, (_, words) in odd.items():
        error = (await look(conn, runs[name]))["error"]
        assert (error["type"], error["step"]) == ("validation", name)
        assert error["message"].startswith("its result can't be kept: ")
        assert words in error["message"]
    assert (await look(conn, good))["output"] == {"good": 1}
    assert "never" not in tool.calls
