"""Values that are too large for their row: stored once by digest, complete, and read when they're named."""

# ruff: noqa: E501
from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from acts import Tool, do, put, start, steps_of
from conftest import Make
from crew import Crew, call, ends, enqueue_many, exit_status, look, until
from test_course_durable import WEEK, is_in, wake
from test_work import Work, said

from orchestrator import db
from orchestrator.errors import NotFound
from orchestrator.pipelines import compile
from orchestrator.steps import Done
from orchestrator.worker.engine import Settled
from orchestrator.worker.news import MOST_BYTES, News, Record, Said, packed
from orchestrator.worker.values import Desk, beside, named, within

BIG = {"text": "ä" * 100_000, "n": 1}
W: dict[str, Any] = {"id": "w", "wait": WEEK}


@pytest.fixture
async def crew(make: Make) -> AsyncIterator[Crew]:
    crew = Crew(make.config(python_modules=("deeds",)), quiet=True)
    yield crew
    await crew.end()


@pytest.fixture
async def tool() -> Tool:
    return Tool()


@pytest.fixture
async def work(conn: db.Connection) -> Work:
    return Work(conn)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What runs ask for between the exchanges."""
    heard: list[str] = []
    ask = Desk.ask

    async def listen(desk: Desk, verb: str, **arguments: Any) -> list[db.Row]:
        heard.append(verb)
        return await ask(desk, verb, **arguments)

    monkeypatch.setattr(Desk, "ask", listen)
    return heard


async def stored(work: Work) -> list[db.Row]:
    return await work.ask("select * from orchestrator.value order by created_at")


# Where they are


async def test_a_large_value_stands_by_its_digest_and_a_small_one_in_its_row(
    crew: Crew, conn: db.Connection, tool: Tool, work: Work
) -> None:
    tool.answer("big", Done(BIG))
    id = await start(conn, do("small", "x" * 60_000), do("big"), output={"n": "${steps.big.n}"})
    await crew.once(tool.kind)
    steps = {
        row["step_id"]: row
        for row in await work.ask("select * from orc.steps where run_id = %s", id)
    }
    assert steps["small"]["output"] == "x" * 60_000
    assert steps["small"]["output_digest"] is None
    big = steps["big"]
    assert big["output"] is None
    assert 200_000 < big["output_bytes"] < 200_100
    assert await work.one("select orc.value('t', %s)", big["output_digest"]) == BIG
    assert await work.one("select orc.value('t', %s, %s)", big["output_digest"], id) == BIG
    with pytest.raises(NotFound, match="no such value"):
        await work.one("select orc.value('u', %s)", big["output_digest"])
    assert (await look(conn, id))["output"] == {"n": 1}
    assert len(await stored(work)) == 1


async def test_equal_values_are_stored_once_and_never_shared_by_tenants(
    crew: Crew, conn: db.Connection, tool: Tool, work: Work
) -> None:
    for tenant in ("t", "t", "u"):
        for name in ("a", "b"):
            tool.answers.setdefault(name, []).append(Done(BIG))
        pipeline = {"pipeline": [do("a"), do("b")], "output": None}
        await db.call_one(conn, "enqueue", tenant=tenant, pipeline=pipeline)
    await crew.once(tool.kind)
    assert Counter(row["tenant_id"] for row in await stored(work)) == {"t": 1, "u": 1}
    assert (
        await work.one("select count(*) from orchestrator.step where output_digest is not null")
        == 6
    )


async def test_the_output_of_a_run_may_be_large_too(
    crew: Crew, conn: db.Connection, tool: Tool, work: Work
) -> None:
    tool.answer("a", Done(BIG))
    id = await start(conn, do("a"))
    await crew.once(tool.kind)
    row = await look(conn, id)
    assert (row["state"], row["output"]) == ("succeeded", None)
    assert row["output_bytes"] > 200_000
    assert await work.one("select orc.value('t', %s)", row["output_digest"]) == {"a": BIG}


async def test_nothing_that_a_step_answers_is_taken_for_a_reference(
    crew: Crew, conn: db.Connection, tool: Tool
) -> None:
    odd = {"digest": "00" * 32, "bytes": 100_000, "output_digest": "x", "run": "y"}
    tool.answer("a", Done(odd))
    id = await start(conn, do("a"), W, do("b", "${steps.a}"))
    await crew.once(tool.kind)
    await wake(conn, id)
    await crew.once(tool.kind)
    assert tool.given[-1] == odd
    assert (await look(conn, id))["output"]["a"] == odd


async def test_a_value_goes_with_the_history_of_its_runs_day(work: Work) -> None:
    parts = await work.ask(
        "select p.retention, p.span from orchestrator.partitioned p where table_name in ('value', 'step')"
    )
    assert parts[0] == parts[1]
    run = await work.one("select orchestrator.new_id()")
    day = await work.one("select orchestrator.id_time(orc._day(%s))", run)
    assert (day.hour, day.minute, day.second) == (0, 0, 0)
    assert await work.one("select orc._day(%s) = orc._day(orc._day(%s))", run, run)


# Bounds


async def test_over_the_limit_a_step_fails_by_name_and_nothing_is_cut(
    make: Make, conn: db.Connection, tool: Tool, work: Work
) -> None:
    crew = Crew(make.config(value_limit=100_000))
    tool.answer("a", Done("x" * 200_000))
    id = await start(conn, do("a"), do("b"))
    await crew.once(tool.kind)
    await crew.end()
    error = (await look(conn, id))["error"]
    assert (error["type"], error["step"]) == ("validation", "a")
    for words in ("200,002 bytes", "the limit is 100,000", "`output`", "ORC_VALUE_LIMIT"):
        assert words in error["message"]
    assert (await stored(work), tool.calls) == ([], ["a"])


async def test_arguments_and_events_over_their_limit_fail_by_name(
    crew: Crew, conn: db.Connection, work: Work
) -> None:
    outside = Tool("out", outside=True)
    tool = Tool()
    tool.answer("a", Done("x" * 1_200_000))
    ask = await start(conn, do("a"), do("b", "${steps.a}", uses="out"))
    tool.answers["a"].append(Done("x" * 1_200_000))
    emit = await start(
        conn,
        do("a"),
        {"id": "e", "uses": "event.emit", "with": {"topic": "t", "payload": "${steps.a}"}},
    )
    tool.answers["a"].append(Done("x" * 1_200_000))
    child = {"id": "c", "uses": "flow.run", "with": {"pipeline": [put("p")], "input": "${steps.a}"}}
    born = await start(conn, do("a"), child)
    await crew.once(tool.kind, outside.kind)
    for id, step, words in (
        (ask, "b", "its arguments can't be kept: it has 1,200,0"),
        (
            emit,
            "e",
            "the payload can't be kept: it has 1,200,002 bytes, and the limit is 1,048,576",
        ),
        (born, "c", "The input or the labels are too large"),
    ):
        error = (await ends(conn, id))["error"]
        assert (error["type"], error["step"]) == ("validation", step)
        assert words in error["message"], error
    assert outside.calls == []
    assert await work.ask("select from orchestrator.event") == []


async def test_many_large_values_at_once_are_said_in_parts(
    crew: Crew, conn: db.Connection, tool: Tool, work: Work
) -> None:
    for n in range(6):
        tool.answers[f"i{n}"] = [Done(str(n) * 3_000_000)]
    each = {
        "id": "e",
        "uses": "do",
        "with": {"name": "i${item}"},
        "for_each": [*range(6)],
        "max_parallel": 6,
    }
    id = await start(conn, each, do("z", 6), output={"z": "${steps.z}"})
    worker = await crew.once(tool.kind)
    row = await look(conn, id)
    assert (row["state"], row["output"]) == ("succeeded", {"z": 6})
    assert all(0 < row["bytes"] - 3_000_000 < 20 for row in await stored(work))
    assert len(await stored(work)) == 6
    assert worker.counters.stale == 0


def test_what_one_exchange_carries_is_bounded_and_keeps_the_order_of_each_run() -> None:
    news = News(asyncio.Event())
    large = packed("x" * (MOST_BYTES // 2 + 1))

    def record(run: str, step: str, output: Any = None) -> Record:
        return {"run": run, "step": step, "output": output}

    def end(run: str) -> Settled:
        return Settled("t", run, 1, "succeeded")

    for one in (
        record("a", "1", large),
        record("b", "1", large),
        record("b", "2"),
        record("a", "2"),
        record("c", "1"),
    ):
        news.record(one)
    for run in "abc":
        news.end(end(run), [{"run": run}])
    taken: list[Said] = []
    while news:
        taken.append(news.take())
        news.heard(taken[-1], set())
    assert len(taken) == 2
    heard = [(r["run"], r["step"]) for said in taken for r in said.records]
    for run, steps in (("a", ["1", "2"]), ("b", ["1", "2"]), ("c", ["1"])):
        assert [step for known, step in heard if known == run] == steps
    assert [[end.run for end in said.outcomes] for said in taken] == [["a", "c"], ["b"]]
    assert [[line["run"] for line in said.lines] for said in taken] == [["a", "c"], ["b"]]


# Read when they're named


async def test_a_run_that_is_taken_up_reads_a_large_value_only_when_it_is_named(
    crew: Crew, conn: db.Connection, tool: Tool, asked: list[str]
) -> None:
    tool.answers["big"] = [Done(BIG)]
    names = do("named", "${size(steps.big.text)}")
    id = await start(
        conn,
        do("big"),
        do("done", "${steps.big.n}"),
        W,
        do("other"),
        {**W, "id": "v"},
        names,
        output="${steps.named}",
    )
    await crew.once(tool.kind)
    await wake(conn, id)
    await crew.once(tool.kind)
    assert (tool.calls, asked) == (["big", "done", "other"], []), "nobody names it any more"
    await wake(conn, id)
    await crew.once(tool.kind)
    assert asked == ["value"]
    assert (await look(conn, id))["output"] == 100_000


@pytest.mark.parametrize(
    ("around", "more", "gives"),
    [
        ({}, do("z", "${steps.big.n}"), 1),
        ({}, do("z", "${steps}", output="${result.b.n}"), 1),
        ({}, do("z", 1, **{"if": "size(steps.big.text) == 100000"}), 1),
        ({}, do("z", "${item}", for_each="[steps.big.n, 2]"), [1, 2]),
        ({}, {"id": "z", "switch": [{"when": "steps.big.n == 1", "steps": [do("y", 7)]}]}, 7),
        ({}, do("z", 5, output="${result + steps.big.n}"), 6),
        ({"id": "b", "steps": ["big"]}, do("z", "${steps.b.n}"), 1),
        ({"id": "b", "steps": ["big"], "output": "${result.n}"}, do("z", "${steps.b}"), 1),
        ({"id": "b", "steps": ["big"], "schema": {"type": "object"}}, do("z", "${steps.b.n}"), 1),
        ({"id": "b", "steps": ["big"], "until": "result.n == 1", "max_iterations": 2}, do("z", "${steps.b.n}"), 1),
        ({"id": "b", "steps": ["big"], "for_each": [1, 2]}, do("z", "${steps.b[1].n}"), 1),
        ({"id": "b", "parallel": {"branches": {"x": ["big"]}}}, do("z", "${steps.b.x.n}"), 1),
        ({"id": "b", "parallel": {"branches": {"x": ["big"]}, "mode": "race"}}, do("z", "${steps.b.x.n}"), 1),
    ],
)  # fmt: skip
async def test_wherever_it_is_named_it_is_there(
    crew: Crew, conn: db.Connection, tool: Tool, around: Any, more: Any, gives: Any
) -> None:
    """The same with a rest in between as without."""
    text = json.dumps(around or {"id": "b", "steps": ["big"]})
    step = json.loads(text.replace('"big"', json.dumps(do("big"))))
    outputs = []
    for rests in (False, True):
        tool.answers["big"] = [Done(BIG), Done(BIG)]
        steps = [step, W, more] if rests else [step, more]
        id = await start(conn, *steps, output={"z": "${steps.z}", "all": "${steps}"})
        await crew.once(tool.kind)
        if rests:
            await wake(conn, id)
            await crew.once(tool.kind)
        row = await look(conn, id)
        assert row["state"] == "succeeded", row["error"]
        output = await value_of(conn, row)
        assert output["z"] == gives
        outputs.append([output["z"], output["all"]["b"]])
    assert outputs[0] == outputs[1]


async def value_of(conn: db.Connection, row: db.Row) -> Any:
    if row["output_digest"] is None:
        return row["output"]
    return await Work(conn).one("select orc.value(%s, %s)", row["tenant_id"], row["output_digest"])


async def test_a_run_without_large_values_asks_for_nothing(
    crew: Crew, conn: db.Connection, tool: Tool, asked: list[str]
) -> None:
    id = await start(conn, do("a", 1), W, do("b", "${steps.a}"))
    await crew.once(tool.kind)
    await wake(conn, id)
    worker = await crew.once(tool.kind)
    assert (await look(conn, id))["state"] == "succeeded"
    assert (asked, worker.hands.desk.line.connection) == ([], None)


async def test_the_large_output_of_a_child_reaches_its_parent(
    crew: Crew, conn: db.Connection, tool: Tool, work: Work
) -> None:
    tool.answer("big", Done(BIG))
    child = {"id": "c", "uses": "flow.run", "with": {"pipeline": [do("big")]}}
    id = await start(
        conn,
        child,
        do("z", "${steps.c.output.big.n}"),
        W,
        do("y", "${steps.c.output.big.text}"),
        output=["${steps.z}", "${steps.c.state}"],
    )
    crew.worker(tool.kind)
    await until(lambda: is_in(conn, id, "waiting") if "z" in tool.calls else False)
    await wake(conn, id)
    row = await ends(conn, id)
    assert row["output"] == [1, "succeeded"]
    assert tool.given[-1] == BIG["text"]
    answer = await work.one("select answer from orchestrator.wait where kind = 'child'")
    assert (answer["output"], answer["bytes"] > 200_000) == (None, True)


def test_what_a_step_names_is_known_before_it_runs() -> None:
    step = compile({"pipeline": [
        put("a"), put("b"), put("c"), put("d"),
        {"id": "z", "uses": "x.y", "if": "steps.a == 1", "for_each": "${steps.b}", "with": {"v": ["${steps.c.x[0]}"]},
         "cache": {"key": "${steps.d}", "ttl": 5}, "retry": {"attempts": 2, "when": "steps['a'] == 2"}},
        {"id": "all", "uses": "x.y", "with": {"v": "${steps}"}},
    ]}).steps  # fmt: skip
    assert beside(step[4]) == frozenset("abd")
    assert within(step[4]) == frozenset("cd")
    assert within(step[5]) is None
    assert named([("params", "x")]) == frozenset()


# What stands in the database


async def test_a_stale_lease_stores_no_value(work: Work) -> None:
    worker = await work.worker()
    await work.run()
    (run,) = await work.claim(worker)
    record = {
        "tenant": run.tenant,
        "run": run.run,
        "step": "a",
        "state": "succeeded",
        "output": BIG,
    }
    rows = await db.call(work.conn, "record_steps", worker=worker, steps=[{**record, "epoch": 7}])
    assert [str(row["stale"]) for row in rows] == [run.run]
    assert await stored(work) == []
    await db.call(work.conn, "record_steps", worker=worker, steps=[{**record, "epoch": run.epoch}])
    before = await work.everything()
    again = {**record, "epoch": run.epoch, "output": "y" * 100_000}
    await db.call(work.conn, "record_steps", worker=worker, steps=[again])
    assert await work.everything() == before, "what succeeded stays as it is"
    assert len(await stored(work)) == 1
    await work.settle(worker, said(run))


@pytest.mark.breaks
async def test_the_check_names_a_reference_to_nothing(work: Work) -> None:
    worker = await work.worker()
    await work.run()
    (run,) = await work.claim(worker)
    await work.settle(worker, said(run, output=BIG))
    await work.do("truncate orchestrator.value")
    found = [row["invariant"] for row in await work.ask("select * from orc.check()")]
    assert found == ["a_large_value_is_there"]


async def test_a_worker_that_dies_around_a_large_value_leaves_all_of_it_or_nothing(
    crew: Crew, conn: db.Connection, work: Work, tmp_path: Path
) -> None:
    ledger, chance = str(tmp_path / "ledger"), random.Random(5)
    steps = [{"id": name, **call("vast", ledger=ledger, length=400_000)} for name in ("a", "b")]
    runs = await enqueue_many(conn, 6, *steps, max_attempts=90)
    for run in runs:
        Path(f"{ledger}.{run}").write_text(str(chance.uniform(0, 0.12)))
    deaths = 0
    while await work.one("select count(*) from orchestrator.due_work"):
        process = crew.process("--slots", "1", "--lease", "10", "--once")
        deaths += await exit_status(process, 40) < 0
        assert await work.ask("select * from orc.check()") == []
        for row in await work.ask("select * from orc.steps where state = 'succeeded'"):
            value = await work.one(
                "select orc.value('t', %s, %s)", row["output_digest"], row["run_id"]
            )
            assert value == str(row["run_id"])[-1] * 400_000
        await work.do(
            "update orchestrator.worker set expires_at = orchestrator.now() where ended_at is null"
        )
        await work.verb("release_expired_work")
        await work.do(
            "update orchestrator.due_work set due_at = orchestrator.now() where state = 'scheduled'"
        )
    assert deaths >= 2
    for run in runs:
        row = await look(conn, run)
        assert row["state"] == "succeeded", row["error"]
        assert await value_of(conn, row) == dict.fromkeys("ab", run[-1] * 400_000)
        assert len(await steps_of(conn, run)) == 2
