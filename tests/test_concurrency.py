"""What a document says of its runs: their queue, their priority, and what a full key does to a new one."""

# ruff: noqa: E501
from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from conftest import Connect, Make
from crew import Crew
from test_races import holding, meets
from test_work import NOOP, Claimed, Work, said

from orchestrator import pipelines
from orchestrator.errors import Invalid

POLICIES = ["skip", "replace", "cancel_running"]


def of(policy: str | None = None, key: str = "k", limit: int | None = None, **more: Any) -> Any:
    said = {"key": key, "limit": limit, "on_conflict": policy}
    return {
        "pipeline": NOOP,
        "concurrency": {name: value for name, value in said.items() if value is not None},
        **more,
    }


@pytest.fixture
def work(conn: Any) -> Work:
    return Work(conn)


@pytest.fixture
async def pair(connect: Connect) -> tuple[Work, Work]:
    return Work(await connect()), Work(await connect())


@pytest.fixture
async def crew(make: Make) -> AsyncIterator[Crew]:
    crew = Crew(make.config())
    yield crew
    await crew.end()


async def begun(work: Work, **given: Any) -> tuple[str, Claimed]:
    """A run that a worker holds."""
    run = await work.run(**given)
    (held,) = await work.claim(await work.worker())
    assert held.run == run
    return run, held


async def place(work: Work, run: str) -> tuple[Any, ...]:
    row = await work.row(run)
    return row["queue"], row["priority"], row["concurrency_key"]


# What is inherited


async def test_a_run_has_the_documents_queue_and_priority_unless_it_is_given_its_own(
    work: Work,
) -> None:
    document = {"pipeline": NOOP, "defaults": {"queue": "mail", "priority": 7}}
    assert await place(work, await work.run(pipeline=document)) == ("mail", 7, None)
    own = await work.run(pipeline=document, queue="default", priority=50)
    assert await place(work, own) == ("default", 50, None)
    assert await place(work, await work.run()) == ("default", 50, None)
    assert await place(work, await work.run(queue=None, priority=None)) == ("default", 50, None)


async def test_many_at_once_inherit_the_same(work: Work) -> None:
    mail = {"pipeline": NOOP, "defaults": {"queue": "mail", "priority": 7}}
    other = {"pipeline": NOOP, "defaults": {"queue": "post"}, "vars": {"x": 1}}
    items = [
        {},
        {"queue": "q", "priority": 0},
        {"pipeline": other},
        {"pipeline": NOOP},
        {"pipeline": None},
    ]
    rows = await work.ask(
        "select * from orc.enqueue_many('t', %s::text::jsonb, %s::text::jsonb)",
        *map(jsonb, (items, mail)),
    )
    assert [await place(work, str(row["run_id"])) for row in rows] == [
        ("mail", 7, None), ("q", 0, None), ("post", 50, None), ("default", 50, None), ("mail", 7, None),
    ]  # fmt: skip


def jsonb(value: Any) -> str:
    return json.dumps(value)


@pytest.mark.parametrize("own", [True, False])
async def test_many_at_once_meet_each_other_by_the_key_of_their_pipeline(
    work: Work, own: bool
) -> None:
    document = of("skip", "k-${input.n}")
    items = [{"input": {"n": n}} | ({"pipeline": document} if own else {}) for n in (1, 1, 2)]
    usual = NOOP if own else document
    rows = await work.ask(
        "select * from orc.enqueue_many('t', %s::text::jsonb, %s::text::jsonb)",
        *map(jsonb, (items, usual)),
    )
    assert [row["decision"] for row in rows] == ["created", "skipped", "created"]
    by_id = await work.one(
        "select id::text from orchestrator.pipeline where concurrency_key is not null"
    )
    rows = await work.ask(
        "select * from orc.enqueue_many('t', %s::text::jsonb)",
        jsonb([{"pipeline": by_id, "input": {"n": 2}}]),
    )
    assert [row["decision"] for row in rows] == ["skipped"]


@pytest.mark.parametrize(
    ("key", "document", "given", "found"),
    [
        ("plain", {}, None, "plain"),
        ("customer-${input.customer}", {}, {"customer": "acme"}, "customer-acme"),
        ("${params.a}/${ input . b }", {}, {"a": 1, "b": True}, "1/true"),
        ('${input.order["no-1"][1]}', {}, {"order": {"no-1": [5, 6.5]}}, "6.5"),
        ("${input['it\"s'].x}", {}, {"it\"s": {"x": "y"}}, "y"),
        ("$${input.x} costs $5", {}, None, "${input.x} costs $5"),
        ("${params.a}", {"params": {"a": "theirs"}}, {}, "theirs"),
        ("${params.a}", {"params": {"a": "theirs"}}, {"a": "ours"}, "ours"),
        ("${params.a}", {"inputs": {"a": {"type": "string", "default": "usual"}}}, None, "usual"),
        ("${input}", {}, "scalar", "scalar"),
        ("${input[0]}", {}, [3], "3"),
    ],
)  # fmt: skip
async def test_a_key_takes_paths_of_the_input(
    work: Work, key: str, document: Any, given: Any, found: str
) -> None:
    whole = of(key=key, **document)
    assert pipelines.check(whole).errors == []
    run = await work.one(
        "select run_id::text from orc.enqueue('t', %s::text::jsonb, input => %s::text::jsonb)",
        *map(jsonb, (whole, given)),
    )
    assert (await work.row(run))["concurrency_key"] == found


@pytest.mark.parametrize(
    "key",
    ["${vars.x}", "${input.a + 1}", "${input.a ?? 'x'}", "${now}", "a-${input.a", "${}", "${input..a}",
     "${steps.a}", "${input.a}${run.id}", "${input[a]}", "${params.a()}", "${input.${input.a}}", "$$${x}${"],
)  # fmt: skip
async def test_anything_else_in_a_key_is_refused_by_the_reader_and_by_psql(
    work: Work, key: str
) -> None:
    document = of(key=key, vars={"x": 1})
    assert "/concurrency/key" in {error.pointer for error in pipelines.check(document).errors}
    with pytest.raises(Invalid, match=r"paths into the input"):
        await work.run(pipeline=document)


@pytest.mark.parametrize("given", [None, {}, {"a": None}, {"a": {}}, {"a": [1]}, [1], "text"])
async def test_an_input_without_the_value_of_the_key_is_refused(work: Work, given: Any) -> None:
    with pytest.raises(Invalid, match=r"concurrency key needs params\.a: a text, a number"):
        await work.ask(
            "select orc.enqueue('t', %s::text::jsonb, input => %s::text::jsonb)",
            *map(jsonb, (of(key="${params.a}"), given)),
        )


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"defaults": {"queue": ""}}, "1 to 100 characters"),
        ({"defaults": {"queue": 5}}, "1 to 100 characters"),
        ({"defaults": {"priority": 101}}, "A priority is 0"),
        ({"defaults": {"priority": "7"}}, "A priority is 0"),
        ({"defaults": {"priority": None}}, "A priority is 0"),
        ({"concurrency": {"limit": 1}}, "A concurrency key is a text"),
        ({"concurrency": "k"}, "A concurrency key is a text"),
        ({"concurrency": {"key": "k", "limit": 0}}, "1 to 100000 slots"),
        ({"concurrency": {"key": "k", "on_conflict": "wait"}}, "on_conflict is queue, skip"),
    ],
)  # fmt: skip
async def test_a_document_that_enqueue_cannot_go_by_is_refused(
    work: Work, document: Any, words: str
) -> None:
    assert pipelines.check({"pipeline": NOOP, **document}).errors != []
    with pytest.raises(Invalid, match=words):
        await work.run(pipeline={"pipeline": NOOP, **document})


async def test_a_key_that_is_given_replaces_the_documents_as_a_whole(work: Work) -> None:
    document = of("skip", limit=5)
    await begun(work, concurrency_key="db")
    waits = await work.enqueue(pipeline=document, concurrency_key="db")
    assert waits["decision"] == "created"
    assert await work.state(str(waits["run_id"])) == "blocked"
    assert await work.one("select max_running from orchestrator.concurrency where key = 'db'") == 1
    skipped = await work.enqueue(concurrency_key="db", on_conflict="skip")
    assert skipped["decision"] == "skipped"


async def test_a_limit_or_a_policy_that_is_given_wins_over_the_documents(work: Work) -> None:
    document = of("skip")
    await begun(work, pipeline=document)
    made = await work.enqueue(pipeline=document, concurrency_limit=2)
    assert made["decision"] == "created"
    made = await work.enqueue(pipeline=document, concurrency_limit=2, on_conflict="queue")
    assert await work.state(str(made["run_id"])) == "blocked"
    with pytest.raises(Invalid, match="on_conflict is queue, skip, replace or cancel_running"):
        await work.enqueue(on_conflict="wait")


# When the key is full


async def test_queue_waits_for_the_slot_and_why_names_who_has_it(work: Work) -> None:
    document = of("queue")
    first, _ = await begun(work, pipeline=document)
    made = await work.enqueue(pipeline=document)
    assert (made["decision"], made["reason"]) == ("created", None)
    why = (await work.ask("select * from orc.why(%s)", str(made["run_id"])))[0]
    assert (why["cause"], why["evidence"]["held_by"]) == ("key full", [first])


async def test_skip_makes_no_run_and_names_the_one_that_has_the_slot(work: Work) -> None:
    document = of("skip")
    first, held = await begun(work, pipeline=document)
    before = await work.everything()
    made = await work.enqueue(pipeline=document)
    assert (str(made["run_id"]), made["decision"]) == (first, "skipped")
    assert made["reason"] == f"concurrency key k is full: run {first} is running"
    assert await work.everything() == before
    await work.settle(await holder(work), said(held))
    assert (await work.enqueue(pipeline=document))["decision"] == "created"


async def holder(work: Work) -> Any:
    return await work.one("select worker_id from orchestrator.due_work where state = 'running'")


async def test_skip_leaves_the_dedupe_key_to_the_run_that_has_it(work: Work) -> None:
    await begun(work, pipeline=of("skip"))
    made = await work.enqueue(pipeline=of("skip"), dedupe_key="d", dedupe_window="1 hour")
    assert made["decision"] == "skipped"
    assert await work.one("select count(*) from orchestrator.dedupe") == 0
    made = await work.enqueue(dedupe_key="d", on_duplicate="reject")
    assert made["decision"] == "created"


async def test_skip_counts_those_that_wait_for_the_slot(work: Work) -> None:
    _, held = await begun(work, concurrency_key="k")
    queued = await work.run(concurrency_key="k")
    worker = await holder(work)
    await work.do("update orchestrator.due_work set state = 'blocked' where run_id = %s", queued)
    await work.settle(worker, said(held))
    made = await work.enqueue(pipeline=of("skip"))
    assert (str(made["run_id"]), made["decision"]) == (queued, "skipped")


async def test_replace_gives_the_queued_run_the_new_input_in_its_place(work: Work) -> None:
    document = of("replace")
    running, _ = await begun(work, pipeline=document, input={"n": 1})
    queued = await work.enqueue(pipeline=document, input={"n": 2})
    assert queued["decision"] == "created"
    newer = of("replace", vars={"x": 1})
    made = await work.enqueue(pipeline=newer, input={"n": 3}, labels={"a": 1}, dedupe_key="d")
    assert (made["run_id"], made["decision"]) == (queued["run_id"], "replaced")
    assert made["reason"] == "it had not begun, and has the new input"
    row = await work.row(str(queued["run_id"]))
    assert (row["state"], row["input"], row["labels"]) == ("blocked", {"n": 3}, {"a": 1})
    stored = await work.one(
        "select document -> 'vars' from orchestrator.pipeline where id = %s", row["pipeline_id"]
    )
    assert stored == {"x": 1}
    assert (await work.row(running))["input"] == {"n": 1}
    again = await work.enqueue(dedupe_key="d")
    assert (again["run_id"], again["decision"]) == (queued["run_id"], "skipped")


async def test_replace_takes_a_run_that_has_its_slot_and_has_not_begun(work: Work) -> None:
    first = await work.run(pipeline=of("replace"), input={"n": 1})
    made = await work.enqueue(pipeline=of("replace"), input={"n": 2})
    assert (str(made["run_id"]), made["decision"]) == (first, "replaced")


async def test_replace_leaves_retries_and_awaited_runs_and_what_has_begun_alone(work: Work) -> None:
    document = of("replace")
    _, held = await begun(work, pipeline=document, max_attempts=2)
    retry = await work.run(concurrency_key="k", retry_of="0" * 32)
    child = await work.run(concurrency_key="k")
    await work.do("update orchestrator.due_work set parent_id = %s where run_id = %s", retry, child)
    made = await work.enqueue(pipeline=document, input={"n": 2})
    assert (made["decision"], made["reason"]) == ("created", None)
    assert await work.state(str(made["run_id"])) == "blocked"
    await work.settle(await holder(work), said(held, "failed", delay=0))
    await work.do("update orchestrator.due_work set parent_id = null where run_id = %s", child)


async def test_cancel_running_tells_the_running_one_and_waits_for_its_slot(work: Work) -> None:
    document = of("cancel_running")
    first, held = await begun(work, pipeline=document)
    worker = await holder(work)
    await work.do("listen orc_cancel")
    made = await work.enqueue(pipeline=document)
    second = str(made["run_id"])
    assert made["reason"] == f"run {first} of this key is told to cancel"
    async for note in work.conn.notifies(timeout=5, stop_after=1):
        assert (note.channel, note.payload) == ("orc_cancel", first)
    assert await work.state(second) == "blocked"
    assert [row["cause"] for row in await work.ask("select * from orc.why(%s)", first)] == [
        "told to cancel",
        "running",
    ]
    assert (await work.ask("select * from orc.why(%s)", second))[0]["evidence"]["held_by"] == [
        first
    ]
    assert second in await work.one("select message from orchestrator.log where run_id = %s", first)
    third = await work.enqueue(pipeline=document)
    assert (await work.state(str(third["run_id"])), third["reason"]) == ("blocked", None)
    await work.settle(worker, said(held))
    assert await work.state(first) == "canceled"
    assert [run.run for run in await work.claim(worker, 5)] == [second]


async def test_cancel_running_tells_one_for_each_that_waits(work: Work) -> None:
    document = of("cancel_running", limit=3)
    worker = await work.worker()
    first, second, _ = [await work.run(pipeline=document) for _ in range(3)]
    await work.claim(worker, 3)
    await work.verb("cancel_run", tenant="t", run=first)  # a slot comes anyway
    assert (await work.enqueue(pipeline=document))["reason"] is None
    made = await work.enqueue(pipeline=document)
    assert made["reason"] == f"run {second} of this key is told to cancel"


@pytest.mark.parametrize("policy", POLICIES)
async def test_with_a_free_slot_or_a_later_time_no_policy_has_anything_to_do(
    work: Work, policy: str
) -> None:
    document = of(policy, limit=2)
    await begun(work, pipeline=document)
    made = await work.enqueue(pipeline=document)
    assert (made["decision"], made["reason"]) == ("created", None)
    later = await work.one(
        "select decision from orc.enqueue('t', %s::text::jsonb, due_at => orchestrator.now() + interval '1 day')",
        jsonb(document),
    )
    assert later == "created"


async def test_a_retry_waits_for_its_slot_whatever_the_document_says(work: Work) -> None:
    document = of("skip")
    failed, held = await begun(work, pipeline=document)
    await work.settle(await holder(work), said(held, "failed"))
    await begun(work, pipeline=document)
    retry = str(await work.verb("retry_run", tenant="t", run=failed))
    assert retry != failed
    assert await work.state(retry) == "blocked"


# Two sessions


async def known(work: Work, document: Any) -> None:
    """Its pipeline and its key are there: what a second session waits for is no first insert."""
    run = await work.run(pipeline=document, on_conflict="queue")
    await work.verb("cancel_run", tenant="t", run=run)


async def test_of_two_that_skip_at_once_one_is_made(pair: tuple[Work, Work]) -> None:
    a, b = pair
    await known(a, of("skip"))
    async with holding(a):
        first = await a.run(pipeline=of("skip"))
        task = await meets(a, b, b.enqueue(pipeline=of("skip")))
        assert not task.done()
    made = await task
    assert (str(made["run_id"]), made["decision"]) == (first, "skipped")


async def test_when_the_first_rolls_back_the_second_is_made(pair: tuple[Work, Work]) -> None:
    a, b = pair
    await known(a, of("skip"))
    await a.do("begin")
    await a.run(pipeline=of("skip"))
    task = await meets(a, b, b.enqueue(pipeline=of("skip")))
    assert not task.done()
    await a.do("rollback")
    assert (await task)["decision"] == "created"


async def test_of_two_that_replace_at_once_the_later_has_its_input(pair: tuple[Work, Work]) -> None:
    a, b = pair
    await begun(a, pipeline=of("replace"))
    async with holding(a):
        queued = await a.run(pipeline=of("replace"), input={"n": 1})
        task = await meets(a, b, b.enqueue(pipeline=of("replace"), input={"n": 2}))
        assert not task.done()
    made = await task
    assert (str(made["run_id"]), made["decision"]) == (queued, "replaced")
    assert (await a.row(queued))["input"] == {"n": 2}
    assert await a.one("select count(*) from orchestrator.due_work") == 2


async def test_a_run_that_is_claimed_meanwhile_is_not_replaced(pair: tuple[Work, Work]) -> None:
    a, b = pair
    first = await a.run(pipeline=of("replace"), input={"n": 1})
    worker = await a.worker()
    async with holding(a):
        assert [run.run for run in await a.claim(worker)] == [first]
        task = await meets(a, b, b.enqueue(pipeline=of("replace"), input={"n": 2}))
        assert not task.done()
    made = await task
    assert (made["decision"], await a.state(str(made["run_id"]))) == ("created", "blocked")
    assert (await a.row(first))["input"] == {"n": 1}


async def test_of_two_that_cancel_at_once_each_tells_one(pair: tuple[Work, Work]) -> None:
    a, b = pair
    document = of("cancel_running", limit=2)
    runs = [await a.run(pipeline=document) for _ in range(2)]
    await a.claim(await a.worker(), 2)
    async with holding(a):
        one = await a.enqueue(pipeline=document)
        task = await meets(a, b, b.enqueue(pipeline=document))
        assert not task.done()
    two = await task
    assert {one["reason"], two["reason"]} == {
        f"run {run} of this key is told to cancel" for run in runs
    }


async def test_a_run_that_ends_meanwhile_is_not_told_and_its_slot_is_taken(
    pair: tuple[Work, Work],
) -> None:
    a, b = pair
    document = of("cancel_running")
    first, held = await begun(a, pipeline=document)
    worker = await holder(a)
    async with holding(a):
        await a.settle(worker, said(held))
        task = await meets(a, b, b.enqueue(pipeline=document))
        assert not task.done()
    made = await task
    assert await a.state(first) == "succeeded"
    assert made["reason"] is None
    await a.verb("fill_keys")
    assert [run.run for run in await a.claim(worker)] == [str(made["run_id"])]


@pytest.mark.parametrize("policy", POLICIES)
async def test_no_claim_waits_for_an_enqueue_with_a_policy(
    pair: tuple[Work, Work], policy: str
) -> None:
    """Its transaction may be long: others of the key are claimed and settled meanwhile."""
    a, b = pair
    document = of(policy, limit=2)
    worker = await b.worker()
    await b.runs(2, concurrency_key="k", concurrency_limit=2)
    one, two = await b.claim(worker, 2)
    async with holding(a):
        await a.enqueue(pipeline=document)
        told = (
            await a.one(
                "select run_id::text from orchestrator.due_work where cancel_requested_at is not null"
            )
            if policy == "cancel_running"
            else one.run
        )
        free = two if told == one.run else one
        await b.do("set statement_timeout = '5s'")
        assert await b.settle(worker, said(free)) == []
        await b.claim(worker, 2)


# The spelling of flows


async def test_a_flows_spelling_is_enqueued_and_runs_in_its_order(work: Work, crew: Crew) -> None:
    tasks = [
        {"id": "b", "handler": "set", "inputs": {"v": "${steps.a.v}"}, "depends_on": ["a"]},
        {"id": "a", "handler": "set", "inputs": {"v": 5}},
    ]
    run = await work.run(pipeline={"tasks": tasks, "concurrency": {"key": "f"}})
    await crew.once()
    row = await work.row(run)
    assert (row["state"], row["output"]["b"]) == ("succeeded", {"v": 5})
    assert row["concurrency_key"] == "f"
    with pytest.raises(Invalid, match="needs a tenant and a pipeline"):
        await work.run(pipeline={"tasks": []})


# Failures


async def test_failures_of_each_item_of_a_step_are_one_group(work: Work) -> None:
    prints = {
        await work.one(
            "select orc._fingerprint(jsonb_build_object('type', 'runtime', 'step', %s::text, 'message', 'no'))",
            place,
        )
        for place in ("each[1]/pay", "each[27]/pay", "other[1]/pay")
    }
    assert len(prints) == 2
