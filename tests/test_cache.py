"""Answers that serve again: `cache` beside a step, and `cache_seconds` of llm.complete."""

# ruff: noqa: E501
from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from acts import Tool, do, put, start, steps_of
from conftest import Make
from crew import Crew, look
from peers import peer, says
from psycopg.types.json import Jsonb
from test_course_durable import WEEK, wake
from test_work import Work

from orchestrator import db
from orchestrator.config import Hidden
from orchestrator.errors import Invalid
from orchestrator.pipelines import Problems, compile
from orchestrator.steps import Context, Done, Fail, Kind, Outcome, builtins
from orchestrator.steps.llm_complete import Prompt, question_digest
from orchestrator.worker.engine import compile as plan_of

PATH = "v1/chat/completions"
ANSWER: dict[str, Any] = {
    "model": "m",
    "choices": [{"message": {"content": "four"}, "finish_reason": "stop"}],
}
CACHED: dict[str, Any] = {"cache": {"key": "${params.k}", "ttl": "10m"}}


@pytest.fixture
async def crew(make: Make) -> AsyncIterator[Crew]:
    crew = Crew(make.config(secrets=Hidden(PIN="0123-secret"), secrets_tenants=("t",)), quiet=True)
    yield crew
    await crew.end()


@pytest.fixture
async def tool() -> Tool:
    return Tool(outside=True)


@pytest.fixture
async def work(conn: db.Connection) -> Work:
    return Work(conn)


async def ran(
    crew: Crew, conn: db.Connection, kind: Kind, *steps: Any, k: Any = 1, **more: Any
) -> db.Row:
    id = await start(conn, *steps, params={"k": k}, **more)
    await crew.once(kind)
    return await look(conn, id)


async def test_a_hit_skips_the_call_and_its_step_says_so(
    crew: Crew, conn: db.Connection, tool: Tool, work: Work
) -> None:
    tool.answer("a", Done("first"), Done("second"))
    said = {"value": "${steps.a}", "cached": "${state.a.cached}"}
    first = await ran(crew, conn, tool.kind, do("a", **CACHED), output=said)
    again = await ran(crew, conn, tool.kind, do("a", **CACHED), output=said)
    other = await ran(crew, conn, tool.kind, do("a", **CACHED), k=2, output=said)
    assert [row["output"] for row in (first, again, other)] == [
        {"value": "first", "cached": False}, {"value": "first", "cached": True}, {"value": "second", "cached": False},
    ]  # fmt: skip
    assert tool.calls == ["a", "a"]
    rows = await work.ask("select state, is_cached, output from orc.steps order by run_id")
    assert [(row["state"], row["is_cached"]) for row in rows] == [
        ("succeeded", False),
        ("succeeded", True),
        ("succeeded", False),
    ]


async def test_another_tenant_and_another_tool_have_their_own(
    crew: Crew, conn: db.Connection, tool: Tool
) -> None:
    other = Tool("other")
    await ran(crew, conn, tool.kind, do("a", 1, **CACHED))
    pipeline = {"pipeline": [do("a", 2, **CACHED)], "params": {"k": 1}}
    await db.call_one(conn, "enqueue", tenant="u", pipeline=pipeline)
    await crew.once(tool.kind)
    row = await ran(crew, conn, other.kind, do("a", 3, uses="other", **CACHED))
    assert (tool.given, row["output"]) == ([1, 2], {"a": 3})


async def test_an_answer_serves_until_its_time_is_over_and_is_purged_then(
    crew: Crew, conn: db.Connection, tool: Tool, work: Work
) -> None:
    await ran(crew, conn, tool.kind, do("a", 1, **CACHED))
    left = await work.one("select expires_at - orchestrator.now() from orchestrator.cache")
    assert timedelta(minutes=9) < left <= timedelta(minutes=10)
    await work.verb("purge")
    assert await work.one("select count(*) from orchestrator.cache") == 1
    await work.do("update orchestrator.cache set expires_at = orchestrator.now()")
    await ran(crew, conn, tool.kind, do("a", 2, **CACHED))
    assert tool.given == [1, 2]
    assert (await ran(crew, conn, tool.kind, do("a", 3, **CACHED)))["output"] == {"a": 2}, (
        "the newer one"
    )
    await work.do("update orchestrator.cache set expires_at = orchestrator.now()")
    await work.verb("purge")
    assert await work.ask("select from orchestrator.cache") == []


async def test_a_failure_is_not_cached(
    crew: Crew, conn: db.Connection, tool: Tool, work: Work
) -> None:
    tool.answer("a", Fail("conflict", "boom"))
    await ran(crew, conn, tool.kind, do("a", 1, **CACHED))
    assert await work.ask("select from orchestrator.cache") == []
    assert (await ran(crew, conn, tool.kind, do("a", 2, **CACHED)))["output"] == {"a": 2}


async def test_a_run_that_is_taken_up_knows_what_came_from_the_cache(
    crew: Crew, conn: db.Connection, tool: Tool
) -> None:
    big = "x" * 200_000
    await ran(crew, conn, tool.kind, do("a", big, **CACHED))
    wait: dict[str, Any] = {"id": "w", "wait": WEEK}
    output = ["${state.a.cached}", "${size(steps.a)}"]
    row = await ran(crew, conn, tool.kind, do("a", **CACHED), wait, output=output)
    await wake(conn, str(row["id"]))
    await crew.once(tool.kind)
    assert (await look(conn, str(row["id"])))["output"] == [True, 200_000]
    assert (await steps_of(conn, str(row["id"])))["a"]["is_cached"]


async def test_without_a_cache_nobody_looks(crew: Crew, conn: db.Connection, tool: Tool) -> None:
    id = await start(conn, do("a", 1), do("b", 2))
    worker = await crew.once(tool.kind)
    assert (await look(conn, id))["state"] == "succeeded"
    assert worker.hands.desk.line.connection is None


async def test_no_secret_is_in_the_cache(crew: Crew, conn: db.Connection, work: Work) -> None:
    async def tell(given: Any, context: Context) -> Outcome:
        return Done({"it": given["pin"]})

    kind = Kind("tell", dict[str, Any], tell, outside=True, caches=lambda given: (given, 60.0))
    step = {"id": "a", "uses": "tell", "with": {"pin": "${secrets.PIN}"}}
    for more in ({"cache": {"key": "x", "ttl": 60}}, {}):
        for _ in range(2):
            row = await ran(crew, conn, kind, {**step, **more}, secrets=["PIN"])
            assert row["output"] == {"a": {"it": "[secret PIN]"}}
    rows = await work.ask("select * from orchestrator.cache")
    assert [row["value"] for row in rows] == [{"it": "[secret PIN]"}] * 2
    hidden = await work.one("select orc._key_digest('tell', %s)", Jsonb({"pin": "[secret PIN]"}))
    assert hidden in [row["digest"] for row in rows]
    steps = await work.ask("select is_cached from orc.steps order by run_id")
    assert [row["is_cached"] for row in steps] == [False, True, False, True]


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({**put("a"), "cache": {"key": "x", "ttl": 1}}, "what set answers isn't cached"),
        ({"id": "a", "uses": "sql.query", "with": {"statement": "select 1"}, "cache": {"key": "x", "ttl": 1}}, "isn't cached"),
        (do("a", cache={"key": "${secrets.PIN}", "ttl": 1}), "there is no 'secrets' here"),
    ],
)  # fmt: skip
def test_what_cannot_be_cached_is_refused(step: Any, words: str) -> None:
    plan = plan_of({"pipeline": [step], "secrets": ["PIN"]}, {**builtins(), "do": Tool().kind})
    assert plan.broken is not None
    assert words in plan.broken.message


def test_a_cache_stands_beside_a_tool() -> None:
    with pytest.raises(Problems, match="only beside uses"):
        compile({"pipeline": [{"id": "b", "steps": [put("a")], "cache": {"key": "x", "ttl": 1}}]})


async def test_a_cache_is_filled_from_outside(
    crew: Crew, conn: db.Connection, tool: Tool, work: Work
) -> None:
    fill: dict[str, Any] = {"tenant": "t", "tool": "do", "key": Jsonb(1), "value": Jsonb("given")}
    until = await work.verb("fill_cache", **fill, ttl="1 hour")
    (row,) = await db.call(conn, "cached", tenant="t", tool="do", key=Jsonb(1))
    assert row["value"] == "given"
    assert abs(row["expires_at"] - until) < timedelta(seconds=5)
    assert (await ran(crew, conn, tool.kind, do("a", 1, **CACHED)))["output"] == {"a": "given"}
    assert tool.calls == []
    for bad in (
        {"ttl": "0"},
        {"ttl": "-1 hour"},
        {"ttl": "1 hour", "tool": ""},
        {"ttl": "1 hour", "tenant": ""},
    ):
        with pytest.raises(Invalid):
            await work.verb("fill_cache", **{**fill, **bad})


async def test_a_completion_is_asked_for_once(make: Make, conn: db.Connection) -> None:
    answer: Any = says(200, msgspec.json.encode(ANSWER), "application/json")
    async with peer(says(404), **{PATH: answer}) as here:
        crew = Crew(make.config(llm_url=here.url, llm_key="sk-1"))
        for prompt, seconds in (("2+2?", 60), ("2+2?", 60), ("2+2?", None), ("3+1?", 60)):
            given = {"model": "m", "prompt": prompt, "cache_seconds": seconds}
            id = await start(conn, {"id": "a", "uses": "llm.complete", "with": given})
            await crew.once()
            assert (await look(conn, id))["output"]["a"]["text"] == "four"
        await crew.end()
        asked: list[Any] = [heard.json for heard in here.heard]
    assert [one["messages"][0]["content"] for one in asked] == ["2+2?", "2+2?", "3+1?"]
    assert not any("cache_seconds" in one for one in asked)


def test_the_digest_of_a_question_is_of_all_that_changes_the_answer() -> None:
    def digest(**given: Any) -> str:
        return question_digest(msgspec.convert({"model": "m", "prompt": "p", **given}, Prompt))

    same = {digest(), digest(timeout=5), digest(cache_seconds=5)}
    assert same == {digest(prompt=None, messages=[{"role": "user", "content": "p"}])}
    others: list[dict[str, Any]] = [{"model": "n"}, {"prompt": "q"}, {"temperature": 0}, {"max_tokens": 5}, {"url": "https://x"},
              {"response_format": {"type": "json_object"}}]  # fmt: skip
    assert len({*same, *(digest(**other) for other in others)}) == 1 + len(others)
