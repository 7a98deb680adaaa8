"""What counts on when a run is taken up again, and what is left of it after a cancel."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import pytest
from acts import Tool, do, put, start, steps_of
from conftest import Make
from crew import Crew, ends, look, until
from test_course_durable import is_in, sole

from orchestrator import db
from orchestrator.steps import Fail, Retry
from orchestrator.worker import attempts

AGAIN = Retry("communication", "not now")
BOOM = Fail("conflict", "boom")
OVER = b"""update orchestrator.step set output = '{"until": "2020-01-01T00:00:00Z", "turn": ""}'"""
NAP = {"id": "nap", "wait": {"for": "7d"}}


@pytest.fixture
async def crew(make: Make) -> AsyncIterator[Crew]:
    crew = Crew(make.config(), quiet=True)
    yield crew
    await crew.end()


@pytest.fixture
async def tool() -> Tool:
    return Tool()


async def parks(conn: db.Connection, run: str) -> None:
    await until(lambda: is_in(conn, run, "waiting"))


async def outcomes(conn: db.Connection, run: str) -> list[str]:
    text = b"select outcome from orc.attempts where run_id = %s order by epoch"
    return [row["outcome"] for row in await (await conn.execute(text, [run])).fetchall()]


async def an_hour_passes(conn: db.Connection, run: str) -> None:
    """For a parked run: what has begun began an hour earlier, and what it sleeps for is near."""
    for text in (
        b"update orchestrator.attempt set started_at = started_at - interval '1 h'"
        b" where run_id = %s",
        b"update orchestrator.step set output = jsonb_set(output, '{until}', to_jsonb("
        b"(output ->> 'until')::timestamptz - interval '1 h')) where run_id = %s"
        b" and state = 'waiting'",
        b"update orchestrator.step set error = jsonb_set(error, '{again_at}', to_jsonb("
        b"(error ->> 'again_at')::timestamptz - interval '1 h')) where run_id = %s"
        b" and error ? 'again_at'",
    ):
        await conn.execute(text, [run])
    assert await sole(conn, "select orc.wake_run('t', %s)", run)


# Times


async def test_a_parked_run_is_woken_when_its_time_ends_and_runs_what_comes_after(
    crew: Crew, conn: db.Connection, tool: Tool
) -> None:
    after = {"on_error": [do("e", "${error.type}")], "finally_": [do("f")]}
    id = await start(conn, do("a"), NAP, timeout=0.5, **after)
    crew.worker(tool.kind)
    row = await ends(conn, id)
    assert row["error"] == {"type": "timeout", "message": "longer than 0.5 s"}
    assert (tool.calls, tool.given[1]) == (["a", "e", "f"], "timeout")
    assert "parked" in await outcomes(conn, id)


async def test_the_time_of_a_pipeline_is_of_the_whole_run_and_is_not_tried_again(
    crew: Crew, conn: db.Connection, tool: Tool
) -> None:
    tool.answer("a", AGAIN)
    options = {"max_attempts": 5, "backoff_seconds": 0.0}
    id = await start(conn, do("a"), NAP, do("b"), timeout="30m", run=options)
    crew.worker(tool.kind)
    await parks(conn, id)
    await an_hour_passes(conn, id)
    assert (await ends(conn, id))["error"]["type"] == "timeout"
    assert await outcomes(conn, id) == ["retried", "parked", "failed"]


async def test_the_time_of_an_attempt_goes_on_while_it_is_parked_and_starts_anew_with_the_next(
    crew: Crew, conn: db.Connection, tool: Tool
) -> None:
    options = {"max_attempts": 2, "backoff_seconds": 0.0, "timeout_seconds": 1800.0}
    id = await start(conn, NAP, run=options)
    crew.worker(tool.kind)
    await parks(conn, id)
    assert await sole(conn, "select due_at < now() + interval '31 min' from orc.runs")
    await an_hour_passes(conn, id)
    await until(lambda: retried_and_parked(conn, id))
    await db.call(conn, "cancel_run", tenant="t", run=id)


async def test_a_step_has_the_times_of_its_record_after_a_park_too(
    crew: Crew, conn: db.Connection, tool: Tool
) -> None:
    times = put("b", began="${state.a.started_at}", ended="${state.a.finished_at}")
    took = "${timestamp(state.b.finished_at) >= timestamp(state.a.started_at)}"
    id = await start(conn, do("a", 1), NAP, times, put("c", later=took))
    crew.worker(tool.kind)
    await parks(conn, id)
    await conn.execute(OVER + b" where step_id = 'nap'")
    assert await sole(conn, "select orc.wake_run('t', %s)", id)
    output = (await ends(conn, id))["output"]
    record = (await steps_of(conn, id))["a"]
    told = [datetime.fromisoformat(output["b"][name]) for name in ("began", "ended")]
    assert told == [record["started_at"], record["finished_at"]]
    assert output["c"] == {"later": True}


async def retried_and_parked(conn: db.Connection, run: str) -> bool:
    return await outcomes(conn, run) == ["parked", "retried", "parked"]


@pytest.mark.parametrize("timeout", [{"total": "30m"}, "30m"])
async def test_the_time_of_a_group_goes_on_while_it_is_parked(
    crew: Crew, conn: db.Connection, tool: Tool, timeout: Any
) -> None:
    group = {"id": "g", "steps": [do("a"), NAP], "timeout": timeout}
    id = await start(conn, group | {"catch": [do("c", "${error.message}")]})
    crew.worker(tool.kind)
    await parks(conn, id)
    assert await sole(conn, "select due_at < now() + interval '31 min' from orc.runs")
    await an_hour_passes(conn, id)
    assert (await ends(conn, id))["output"]["c"] == "longer than 1800 s"


@pytest.mark.parametrize("timeout", [{"total": "30m"}, "30m"])
async def test_the_time_of_a_group_that_is_over_does_not_matter_any_more(
    crew: Crew, conn: db.Connection, tool: Tool, timeout: Any
) -> None:
    group = {"id": "g", "steps": [do("a"), do("b", 2)], "timeout": timeout}
    total = do("x", 1, timeout={"total": "30m"})
    id = await start(conn, group, total, NAP, do("z"))
    crew.worker(tool.kind)
    await parks(conn, id)
    await conn.execute(OVER + b" where step_id = 'nap' or step_id like '%:%'")
    assert await sole(conn, "select orc.wake_run('t', %s)", id)
    assert (await ends(conn, id))["state"] == "succeeded"
    assert tool.calls == ["a", "b", "x", "z"]


async def test_finally_has_its_own_time_after_a_pipeline_that_ended_in_time(
    crew: Crew, conn: db.Connection, tool: Tool
) -> None:
    id = await start(conn, do("a", 1), finally_=[NAP, do("f")], timeout="30m")
    crew.worker(tool.kind)
    await parks(conn, id)
    assert await sole(conn, "select due_at > now() + interval '6 days' from orc.runs")
    await conn.execute("update orchestrator.attempt set started_at = started_at - interval '1 day'")
    await conn.execute(OVER + b" where step_id = 'nap'")
    assert await sole(conn, "select orc.wake_run('t', %s)", id)
    row = await ends(conn, id)
    assert (row["state"], row["output"]["a"], tool.calls) == ("succeeded", 1, ["a", "f"])


async def test_a_wait_for_no_duration_is_a_validation_that_names_its_field(
    crew: Crew, conn: db.Connection, tool: Tool
) -> None:
    wait = {"id": "w", "wait": {"for": "${params.x}"}}
    id = await start(conn, wait, params={"x": "soon"})
    await crew.once(tool.kind)
    error = (await look(conn, id))["error"]
    assert (error["type"], error["step"]) == ("validation", "w")
    assert error["message"].startswith("wait.for: '")


# Attempts


def tried(name: str, attempts: int = 3, **more: Any) -> dict[str, Any]:
    return do(name, 1, retry={"attempts": attempts, "delay": "10m", "max_delay": "1h"}, **more)


@pytest.mark.parametrize("outside", [False, True])
async def test_a_long_pause_holds_no_worker_and_its_step_goes_on_counting(
    crew: Crew, conn: db.Connection, outside: bool
) -> None:
    tool = Tool(outside=outside, keyed=True)
    tool.answer("a", AGAIN, Retry("rate_limited", "slow down", delay=3000), AGAIN)
    id = await start(conn, tried("a", catch=[do("c", "${state.a.attempt}")]))
    worker = crew.worker(tool.kind, slots=1)
    for calls in (1, 2):
        await parks(conn, id)
        assert (len(tool.calls), worker.hands.running) == (calls, {})
        await an_hour_passes(conn, id)
        await until(lambda calls=calls: len(tool.calls) > calls)  # type: ignore[misc]
    row = await ends(conn, id)
    assert (tool.calls, row["output"]["a"]) == (["a"] * 3 + ["c"], 3)
    assert len(set(tool.keys["a"])) == 1


async def test_another_attempt_is_given_what_the_first_one_was(
    crew: Crew, conn: db.Connection, tool: Tool
) -> None:
    tool.answer("a", AGAIN)
    id = await start(conn, tried("a"))
    crew.worker(tool.kind)
    await parks(conn, id)
    await conn.execute("update orchestrator.step set arguments = arguments || '{\"give\": 7}'")
    await an_hour_passes(conn, id)
    assert (await ends(conn, id))["output"] == {"a": 7}
    assert tool.given == [1, 7]


async def test_a_run_that_is_woken_in_a_pause_goes_on_pausing(
    crew: Crew, conn: db.Connection, tool: Tool
) -> None:
    tool.answer("a", AGAIN)
    id = await start(conn, tried("a"))
    crew.worker(tool.kind)
    await parks(conn, id)
    assert await sole(conn, "select orc.wake_run('t', %s)", id)
    await until(lambda: parked_twice(conn, id))
    assert tool.calls == ["a"]
    await db.call(conn, "cancel_run", tenant="t", run=id)


async def parked_twice(conn: db.Connection, run: str) -> bool:
    return await outcomes(conn, run) == ["parked", "parked"]


@pytest.mark.parametrize("outside", [False, True])
async def test_an_attempt_that_was_cut_off_is_made_again_and_those_before_it_count(
    crew: Crew, conn: db.Connection, outside: bool
) -> None:
    tool = Tool(outside=outside, keyed=True)
    tool.answer("a", AGAIN, AGAIN, AGAIN, AGAIN)
    id = await start(conn, do("a", retry={"attempts": 3, "delay": 0.3, "jitter": 0}))
    worker = crew.worker(tool.kind)
    await until(lambda: len(tool.calls) == 1)
    tool.hold("a")
    await until(lambda: len(tool.calls) == 2 and tool.inside == ["a"])
    worker.drain()
    worker.release()
    await crew.task(worker)
    tool.free()
    crew.worker(tool.kind)
    assert (await ends(conn, id))["error"]["message"] == "not now"
    assert tool.calls == ["a"] * 4


async def test_another_try_of_the_run_counts_anew(
    crew: Crew, conn: db.Connection, tool: Tool
) -> None:
    tool.answer("a", *[AGAIN] * 5)
    options = {"max_attempts": 2, "backoff_seconds": 0.0}
    id = await start(conn, do("a", retry={"attempts": 2, "delay": 0}), run=options)
    await crew.once(tool.kind)
    assert (await ends(conn, id))["attempt"] == 2
    assert tool.calls == ["a"] * 4


async def test_a_group_that_is_tried_again_gives_its_steps_all_their_attempts(
    crew: Crew, conn: db.Connection, tool: Tool
) -> None:
    """Also when the run parked in between."""
    tool.answer("a", *[AGAIN] * 9)
    inner = do("a", retry={"attempts": 2, "delay": 0}, timeout={"total": "20m"})
    retry = {"attempts": 2, "delay": "30m", "jitter": 0}
    id = await start(conn, {"id": "g", "steps": [inner], "retry": retry})
    crew.worker(tool.kind)
    await parks(conn, id)
    assert tool.calls == ["a"] * 2
    await an_hour_passes(conn, id)
    assert (await ends(conn, id))["error"]["type"] == "communication"
    assert tool.calls == ["a"] * 4


async def test_a_pause_that_its_group_ended_is_no_pause_of_the_next_attempt_of_the_group(
    crew: Crew, conn: db.Connection, tool: Tool
) -> None:
    tool.answer("a", AGAIN, AGAIN)
    tool.answer("b", AGAIN)
    tool.hold("b")
    group = [tried("a", 2, needs=[]), do("b", needs=[])]
    retry = {"attempts": 2, "delay": "30m", "jitter": 0}
    id = await start(conn, {"id": "g", "steps": group, "retry": retry})
    crew.worker(tool.kind)
    await until(lambda: recorded(conn, id, "g/a"))
    tool.free()
    for calls in (1, 2):
        await parks(conn, id)
        assert tool.calls.count("a") == calls
        await an_hour_passes(conn, id)
        await until(lambda calls=calls: tool.calls.count("a") > calls)  # type: ignore[misc]
    assert (await ends(conn, id))["state"] == "succeeded"
    assert tool.calls.count("a") == 3


# Cancel


async def test_a_parked_run_that_is_canceled_runs_its_finally_and_nothing_else(
    crew: Crew, conn: db.Connection, tool: Tool
) -> None:
    steps = [do("a", 5), {"id": "s", "uses": "set", "with": {"x": "${steps.a}"}}, NAP, do("b")]
    late = [do("f", "${[steps.s.x, error.type]}"), do("g")]
    id = await start(conn, *steps, finally_=late, on_error=[do("e")])
    crew.worker(tool.kind)
    await parks(conn, id)
    row = await db.call_one(conn, "cancel_run", tenant="t", run=id)
    assert (row["state"], row["canceled"]) == ("scheduled", True)
    row = await ends(conn, id)
    assert (row["state"], row["attempt"]) == ("canceled", 1)
    assert (tool.calls, tool.given[1]) == (["a", "f", "g"], [5, "canceled"])


@pytest.mark.parametrize("finally_", [[], [do("f")]])
async def test_a_run_that_never_began_is_canceled_at_once(
    conn: db.Connection, finally_: list[dict[str, Any]]
) -> None:
    id = await start(conn, do("a"), finally_=finally_)
    row = await db.call_one(conn, "cancel_run", tenant="t", run=id)
    assert row["state"] == (await look(conn, id))["state"] == "canceled"


async def test_a_run_that_is_to_be_tried_again_is_canceled_with_its_finally(
    crew: Crew, conn: db.Connection, tool: Tool
) -> None:
    tool.answer("a", AGAIN)
    options = {"max_attempts": 2, "backoff_seconds": 3600.0}
    id = await start(conn, do("a"), finally_=[do("f")], run=options)
    crew.worker(tool.kind)
    await until(lambda: is_in(conn, id, "scheduled"))
    await db.call(conn, "pause_queue", tenant="t", queue="default")
    await db.call(conn, "cancel_run", tenant="t", run=id)
    await db.call(conn, "cancel_run", tenant="t", run=id)
    causes = [row["cause"] for row in await db.call(conn, "why", run=id)]
    assert causes[:2] == ["canceled, but for its finally", "queue paused"]
    await db.call(conn, "resume_queue", tenant="t", queue="default")
    assert (await ends(conn, id))["state"] == "canceled"
    assert tool.calls == ["a", "f"]


async def test_a_finally_that_was_cut_off_is_finished_by_another_worker(
    crew: Crew, conn: db.Connection, tool: Tool
) -> None:
    tool.hold("g")
    id = await start(conn, do("a"), NAP, finally_=[do("f"), do("g")])
    worker = crew.worker(tool.kind, lease=1.0)
    await parks(conn, id)
    await db.call(conn, "cancel_run", tenant="t", run=id)
    await until(lambda: tool.inside == ["g"])
    lease = worker.lease
    assert lease
    told_at = lease.renewed_at + 0.4  # it was told that the run is canceled by then
    await until(lambda: lease.renewed_at > told_at)
    assert tool.inside == ["g"]
    worker.drain()
    worker.release()
    await crew.task(worker)
    assert (await look(conn, id))["finished_at"] is None
    tool.free()
    crew.worker(tool.kind)
    assert (await ends(conn, id))["state"] == "canceled"
    assert tool.calls == ["a", "f", "g", "g"]


async def test_a_canceled_run_waits_for_nothing_even_while_its_finally_is_due(
    crew: Crew, conn: db.Connection, tool: Tool
) -> None:
    event = {"id": "w", "wait": {"event": {"topic": "x"}}}
    id = await start(conn, event, finally_=[do("f")])
    await crew.once(tool.kind)
    await parks(conn, id)
    await db.call(conn, "cancel_run", tenant="t", run=id)
    assert await sole(conn, "select state from orchestrator.wait") == "canceled"
    await crew.once(tool.kind)
    assert ((await look(conn, id))["state"], tool.calls) == ("canceled", ["f"])
    assert (await steps_of(conn, id))["f"]["state"] == "succeeded"


# Beside branches that work


async def answer(conn: db.Connection, run: str, kind: str) -> None:
    if kind == "event":
        await db.call(conn, "emit_event", tenant="t", topic="x", payload=1)
        await db.call(conn, "emit_event", tenant="t", topic="x", payload=2)
    elif kind == "approval":
        await db.call(conn, "approve_run", tenant="t", run=run, step="p/w")


WAITS: dict[str, dict[str, Any]] = {
    "for": {"for": "300ms"},
    "event": {"event": {"topic": "x", "match": "event.payload == 2"}},
    "approval": {"approval": {}},
    "expired": {"callback": {}, "timeout": "300ms", "on_timeout": "continue"},
}


@pytest.mark.parametrize("kind", WAITS)
async def test_a_branch_goes_on_when_its_wait_is_met_while_another_one_works(
    crew: Crew, conn: db.Connection, tool: Tool, kind: str
) -> None:
    tool.hold("busy")
    branches = {"x": [{"id": "w", "wait": WAITS[kind]}, do("next")], "y": [do("busy")]}
    id = await start(conn, {"id": "p", "parallel": {"branches": branches}})
    crew.worker(tool.kind)
    await until(lambda: recorded(conn, id, "p/w"))
    await answer(conn, id, kind)
    await until(lambda: "next" in tool.calls)
    assert "busy" in tool.inside
    tool.free()
    assert (await ends(conn, id))["state"] == "succeeded"
    assert await outcomes(conn, id) == ["succeeded"]


async def recorded(conn: db.Connection, run: str, step: str) -> bool:
    return step in await steps_of(conn, run)


async def test_a_pause_beside_a_branch_that_works_ends_in_time(
    crew: Crew, conn: db.Connection, tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "PATIENCE_SECONDS", 0.0)
    tool.hold("busy")
    tool.answer("a", AGAIN)
    retry = {"attempts": 2, "delay": 0.2, "jitter": 0}
    branches = {"x": [do("a", retry=retry)], "y": [do("busy")]}
    id = await start(conn, {"id": "p", "parallel": {"branches": branches}})
    crew.worker(tool.kind)
    await until(lambda: tool.calls.count("a") == 2)
    assert "busy" in tool.inside
    tool.free()
    assert (await ends(conn, id))["state"] == "succeeded"
