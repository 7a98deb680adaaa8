"""The built-in kinds, one by one, without a database."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import msgspec
import pytest

from orchestrator.config import Config
from orchestrator.steps import Context, Done, Fail, Retry, builtins
from orchestrator.worker.course import Course
from orchestrator.worker.engine import Plan, Run, Settled, compile, run_pure, storable
from orchestrator.worker.memory import Memory
from orchestrator.worker.news import Record

RUN_ID = "019aa000-0000-7000-8000-000000000001"
RUN = Run("t", RUN_ID, 1, 1, 3, "p", None, {"x": 1}, "2026-11-21T00:00:00+00:00")


def context() -> Context:
    return Context(Config(python_modules=("json", "math")), "t", RUN_ID, 1, 1, {"x": 1}, {})


def compiled(*steps: dict[str, Any]) -> Plan:
    return compile({"pipeline": list(steps)}, builtins())


def course(run: Run, plan: Plan, its: Context) -> Course:
    async def commit(record: Record) -> None: ...

    return Course(plan, its, Memory(run, {}, lambda record: None), commit)


async def followed(run: Run, plan: Plan, its: Context) -> Settled:
    return await course(run, plan, its).follow()


def said(*steps: dict[str, Any]) -> Settled:
    return run_pure(RUN, compiled(*steps), context())


def test_set_gives_its_values_under_the_name_of_its_step() -> None:
    assert said({"id": "a", "uses": "set", "with": {"x": 1}}).output == {"a": {"x": 1}}
    assert said({"uses": "set", "save_as": "b"}).output == {"b": {}}


def test_a_pipeline_stops_at_the_first_step_that_fails() -> None:
    outcome = said({"uses": "assert", "with": {"that": False}}, {"uses": "set"})
    assert (outcome.outcome, outcome.retry, outcome.output) == ("failed", False, None)
    assert outcome.error == {"type": "validation", "message": "the assertion does not hold"}


def test_a_message_is_made_storable() -> None:
    text = storable("a\0\ud800" + "x" * 10_000)
    assert text.startswith("a\\0\\ud800xx")
    assert len(text) < 5000


def test_lines_are_kept_with_their_level_and_facts() -> None:
    its = context()
    line = {"message": "m", "level": "error", "facts": {"a": 1}}
    run_pure(RUN, compiled({"uses": "log.write", "with": line}), its)
    assert its.lines == [line]


def test_only_pipelines_of_pure_steps_are_pure() -> None:
    assert compiled({"uses": "set"}, {"uses": "log.write", "with": {"message": "m"}}).pure
    assert not compiled({"uses": "set"}, python("math:sqrt")).pure


def python(function: str, **args: Any) -> dict[str, Any]:
    return {"id": "a", "uses": "python.call", "with": {"function": function, "args": args}}


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (python("json:loads", s="[1]"), Done([1])),
        (python("json:loads", s="["), Retry("runtime", "JSONDecodeError: ")),
        (python("json:loads", t="["), Fail("validation", "json:loads: ")),
        (python("json:nothing"), Fail("configuration", "json:nothing: ")),
        (python("os:getpid"), Fail("authorization", "module 'os' isn't allowed")),
    ],
)
async def test_a_call_answers_or_says_whether_trying_again_may_help(
    step: dict[str, Any], expected: Done | Retry | Fail
) -> None:
    outcome = await followed(RUN, compiled(step), context())
    if isinstance(expected, Done):
        assert outcome.output == {"a": expected.value}
        return
    assert outcome.error is not None
    assert outcome.error["type"] == expected.type
    assert outcome.error["message"].startswith(expected.message)
    assert outcome.retry == isinstance(expected, Retry)


async def test_a_run_that_takes_longer_than_it_may_is_stopped() -> None:
    run = msgspec.structs.replace(RUN, timeout=0.01)
    its = context()
    step = {"uses": "python.call", "with": {"function": "deeds:rest", "args": {"seconds": 0.2}}}
    its.config = msgspec.structs.replace(its.config, python_modules=("deeds",))
    outcome = await followed(run, compiled(step), its)
    assert outcome.error == {"type": "timeout", "message": "longer than 0.01 s"}


async def test_a_run_that_has_ended_leaves_nothing_to_the_collector() -> None:
    given = {"function": "json:loads", "args": {"s": "4"}}
    plan, its = compiled({"id": "a", "uses": "python.call", "with": given}), context()
    gc.disable()
    try:
        made = course(RUN, plan, its)
        assert (await made.follow()).outcome == "succeeded"
        left = weakref.ref(made)
        del made
        assert left() is None
        assert its.calls == []
    finally:
        gc.enable()
