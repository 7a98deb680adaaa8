"""Runs that wait: for events, callbacks, people, other runs. What two of them do at once: test_meetings."""

# ruff: noqa: E501
from __future__ import annotations

import asyncio
import hmac
import time
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import pytest
from conftest import Connect, Make, Serve
from crew import Crew, call, ends, enqueue, look, until
from psycopg.types.json import Jsonb
from test_races import holding, meets
from test_work import Claimed, Work, said

from orchestrator import db
from orchestrator.auth import SYSTEM_AGENT
from orchestrator.errors import Conflict, Forbidden, Gone, Invalid, NotFound
from orchestrator.steps import Context, Done, Kind, Outcome

HOOK = {"id": "hook", "wait": {"callback": {}}}
SYSTEM = {"Authorization": f"Bearer {SYSTEM_AGENT}"}


@pytest.fixture
async def crew(make: Make, conn: db.Connection) -> AsyncIterator[Crew]:
    crew = Crew(make.config(python_modules=("deeds",)))
    yield crew
    await crew.end()


@pytest.fixture
async def work(conn: db.Connection) -> Work:
    return Work(conn)


@pytest.fixture
async def pair(connect: Connect) -> tuple[Work, Work]:
    return Work(await connect()), Work(await connect())


def waiting(run: Claimed, step: str = "w", **wait: Any) -> dict[str, Any]:
    """The record of a step that has been reached."""
    where = {"tenant": run.tenant, "run": run.run, "epoch": run.epoch, "step": step}
    return {**where, "state": "waiting", "attempt": 1, "wait": wait}


def parked(run: Claimed, *steps: str, **cursor: Any) -> dict[str, Any]:
    waits = [{"step": step, **cursor} for step in steps or ("w",)]
    return said(run, "parked", waiting_for="x", waits=waits)


async def token(work: Work, run: str, step: str = "w") -> str:
    key = bytes(await work.verb("callback_key"))
    body = UUID(run).bytes, step.encode()
    signed = body[0] + hmac.digest(key, b"".join(body), "sha256")[:16] + body[1]
    return "orc_cb_" + urlsafe_b64encode(signed).decode().rstrip("=")


async def asked(work: Work, run: Claimed, kind: str) -> dict[str, Any]:
    kinds: dict[str, dict[str, Any]] = {
        "event": {"topic": "x"},
        "callback": {"token": await token(work, run.run)},
        "approval": {"needed": 1},
        "unknown": {},
    }
    return waiting(run, kind=kind, **kinds[kind])


async def stands(work: Work, kind: str, **more: Any) -> tuple[UUID, Claimed]:
    """A run that is parked at one wait."""
    worker = await work.worker()
    await work.run()
    (held,) = await work.claim(worker)
    record = await asked(work, held, kind)
    record["wait"] |= more
    await db.call(work.conn, "record_steps", worker=worker, steps=[record])
    assert await work.settle(worker, parked(held)) == []
    assert await work.state(held.run) == "waiting"
    return worker, held


async def wait_of(work: Work, run: str, step: str = "w") -> db.Row:
    (row,) = await work.ask(
        "select * from orchestrator.wait where run_id = %s and step_id = %s", run, step
    )
    return row


async def seen(work: Work, run: Claimed, step: str = "w") -> Any:
    """The wait as a worker that takes the run up sees it."""
    wanted = [{"tenant": run.tenant, "run": run.run}]
    rows = await db.call(work.conn, "recorded_steps", wanted=wanted)
    return next(row["wait"] for row in rows if row["step_id"] == step)


async def emit(conn: db.Connection, topic: str, tenant: str = "t", **given: Any) -> None:
    """And what the scheduler does about it."""
    await db.call(conn, "emit_event", tenant=tenant, topic=topic, **given)
    await db.call(conn, "meet_events")


# Through the worker


async def test_an_event_meets_a_parked_run_and_is_its_value(
    crew: Crew, conn: db.Connection
) -> None:
    run = await enqueue(conn, {"id": "w", "wait": {"event": {"topic": "paid"}}})
    await crew.once()
    assert (await look(conn, run))["state"] == "waiting"
    await emit(conn, topic="other")
    await emit(conn, topic="paid", tenant="u")
    assert (await look(conn, run))["state"] == "waiting"
    await emit(conn, topic="paid", payload={"amount": 3}, source="shop")
    await crew.once()
    row = await look(conn, run)
    assert row["state"] == "succeeded"
    event = row["output"]["w"]
    assert (event["topic"], event["payload"], event["source"]) == ("paid", {"amount": 3}, "shop")
    assert (await wait_of(Work(conn), run))["answer"] == event["id"]


async def test_an_event_that_does_not_fit_is_passed_over(crew: Crew, conn: db.Connection) -> None:
    match = "event.payload.order == params.order"
    step = {"id": "w", "wait": {"event": {"topic": "paid", "match": match}}}
    run = await enqueue(conn, step, input={"order": 250})
    await crew.once()
    for order in range(120):
        await emit(conn, topic="paid", payload={"order": order})
    await emit(conn, topic="paid", payload=Jsonb("odd"))
    await crew.once()
    assert (await look(conn, run))["state"] == "waiting"
    assert (await look(conn, run))["due_at"] is None
    for order in range(180, 300):
        await emit(conn, topic="paid", payload={"order": order})
    await crew.once()
    assert (await look(conn, run))["output"]["w"]["payload"] == {"order": 250}


async def test_an_event_of_before_the_wait_is_none_of_its_business(
    crew: Crew, conn: db.Connection
) -> None:
    run = await enqueue(conn, {"id": "w", "wait": {"event": {"topic": "paid"}}})
    await emit(conn, topic="paid")
    await asyncio.sleep(0.01)
    await crew.once()
    assert (await look(conn, run))["state"] == "waiting"


async def test_an_event_while_another_branch_still_works_counts(
    crew: Crew, conn: db.Connection
) -> None:
    open = asyncio.Event()

    async def gate(_: Any, context: Context) -> Outcome:
        await open.wait()
        return Done("passed")

    branches = {
        "a": [{"id": "w", "wait": {"event": {"topic": "paid"}}}],
        "b": [{"id": "g", "uses": "gate"}],
    }
    run = await enqueue(conn, {"id": "p", "parallel": {"branches": branches}})
    crew.worker(Kind("gate", dict[str, Any], gate))
    work = Work(conn)
    await until(lambda: work.ask("select from orchestrator.wait"))
    await emit(conn, topic="paid", payload=1)
    open.set()
    row = await ends(conn, run)
    assert row["output"]["p"]["b"] == "passed"
    assert row["output"]["p"]["a"]["payload"] == 1


async def test_a_callback_is_handed_out_before_its_step_and_answered_over_http(
    crew: Crew, conn: db.Connection, serve: Serve
) -> None:
    api = await serve()
    give = {"id": "give", "uses": "set", "with": {"url": "${run.callbacks.hook}"}}
    keep = {"id": "keep", **call("say", text="${run.callbacks.hook}")}
    run = await enqueue(conn, give, keep, HOOK)
    await crew.once()
    url = await Work(conn).one("select output from orchestrator.step where step_id = 'keep'")
    assert url == "/callbacks/" + await token(Work(conn), run, "hook")
    first = await api.client.post(url, json={"ok": True})
    again = await api.client.post(url, json={"ok": True})
    assert (first.status_code, first.json()) == (200, again.json())
    assert first.json()["step"] == "hook"
    other = await api.client.post(url, json={"ok": False})
    assert (other.status_code, other.json()["error"]) == (409, "conflict")
    await crew.once()
    assert (await look(conn, run))["output"]["hook"] == {"ok": True}
    late = await api.client.post(url, json={"ok": True})
    assert late.json() == first.json(), "said again, it is the same, even after the run"
    bent = await api.client.post(url[:-1] + ("A" if url[-1] != "A" else "B"), json=1)
    assert bent.status_code == 404
    assert (await api.client.post("/callbacks/orc_cb_x", json=1)).status_code == 404
    assert (await api.client.post(url, content=b"x")).status_code == 415


async def test_a_callback_within_a_loop_is_that_of_its_iteration(
    crew: Crew, conn: db.Connection
) -> None:
    each = {
        "id": "e", "for_each": [10, 20], "max_parallel": 2,
        "steps": [
            {"id": "give", **call("say", text="${run.callbacks.hook}")},
            HOOK,
        ],
    }  # fmt: skip
    run = await enqueue(conn, each)
    await crew.once()
    work = Work(conn)
    rows = await work.ask(
        "select step_id, output from orchestrator.step where step_id like '%%give'"
    )
    urls = {row["step_id"]: row["output"].removeprefix("/callbacks/") for row in rows}
    assert urls.keys() == {"e[0]/give", "e[1]/give"}
    for place, url in urls.items():
        await work.verb("answer_callback", token=url, body=Jsonb(place))
    await crew.once()
    assert (await look(conn, run))["output"]["e"] == ["e[0]/give", "e[1]/give"]


async def test_a_wait_that_nobody_answers_expires_as_the_step_says(
    crew: Crew, conn: db.Connection
) -> None:
    wait = {"callback": {}, "timeout": 0.05}
    fails = await enqueue(conn, {"id": "w", "wait": wait})
    goes_on = await enqueue(
        conn,
        {"id": "w", "wait": {**wait, "on_timeout": "continue"}},
        {"id": "s", "uses": "set", "with": {"a": 1}},
    )
    rejects = await enqueue(
        conn,
        {
            "id": "w",
            "wait": {"approval": {}, "timeout": 0.05, "on_timeout": "reject"},
            "catch": [{"id": "c", "uses": "set", "with": {"why": "${error.type}"}}],
        },
    )
    crew.worker()
    row = await ends(conn, fails)
    assert (row["state"], row["error"]["type"], row["error"]["step"]) == ("failed", "timeout", "w")
    row = await ends(conn, goes_on)
    assert (row["state"], row["output"]) == ("succeeded", {"w": None, "s": {"a": 1}})
    assert (await ends(conn, rejects))["output"]["w"] == {"why": "authorization"}
    with pytest.raises(Gone):
        await Work(conn).verb("answer_callback", token=await token(Work(conn), fails), body=1)


async def test_large_events_come_in_small_batches_and_all_are_looked_at(
    crew: Crew, conn: db.Connection
) -> None:
    match = "event.payload.n == 5"
    run = await enqueue(conn, {"id": "w", "wait": {"event": {"topic": "x", "match": match}}})
    await crew.once()
    noise = "".join(chr(0x4E00 + n % 20000) for n in range(0, 300_000 * 7, 7))
    for n in range(6):
        await emit(conn, "x", payload={"n": n, "noise": noise[n:]})
    found = await Work(conn).ask("select orc._wait_as_json(w) as w from orchestrator.wait w")
    assert len(found[0]["w"]["events"]) < 6
    await crew.once()
    large = "select v.body #>> '{w,payload,n}' as n from orchestrator.run r"
    large += f" join orchestrator.value v on v.digest = r.output_digest where r.id = '{run}'"
    assert await Work(conn).ask(large) == [{"n": "5"}]


async def test_a_deadline_stays_over_every_park(crew: Crew, conn: db.Connection) -> None:
    match = "event.payload == 1"
    step = {"id": "w", "wait": {"event": {"topic": "x", "match": match}, "timeout": 60}}
    run = await enqueue(conn, step)
    await crew.once()
    before = await wait_of(Work(conn), run)
    await emit(conn, topic="x", payload=2)
    await crew.once()
    row = await look(conn, run)
    assert (row["state"], row["due_at"]) == ("waiting", before["deadline"])
    assert (await wait_of(Work(conn), run))["deadline"] == before["deadline"]


async def test_an_approval_needs_as_many_as_it_says_and_each_once(
    crew: Crew, conn: db.Connection
) -> None:
    step = {"id": "w", "wait": {"approval": {"from": ["ann", "bob", "cy"], "count": 2}}}
    run = await enqueue(conn, step, labels={"actor": "cy"})
    await crew.once()
    work = Work(conn)
    approve = {"tenant": "t", "run": run}
    with pytest.raises(Forbidden):
        await work.verb("approve_run", **approve, by="eve")
    with pytest.raises(Forbidden, match="of their own"):
        await work.verb("approve_run", **approve, by="cy")
    assert (await work.verb("approve_run", **approve, by="ann"))["state"] == "waiting"
    with pytest.raises(Conflict):
        await work.verb("approve_run", **approve, by="ann")
    (why,) = await work.ask("select * from orc.why(%s)", run)
    assert why["cause"] == "waiting for an approval"
    assert (why["evidence"]["from"], why["evidence"]["given"]) == (["ann", "bob", "cy"], 1)
    assert (await work.verb("approve_run", **approve, by="bob", form={"x": 1}))["state"] == "met"
    with pytest.raises(Gone):
        await work.verb("approve_run", **approve, by="bob")
    await crew.once()
    value = (await look(conn, run))["output"]["w"]
    assert (value["decision"], value["form"]) == ("approve", {"x": 1})
    assert [one["by"] for one in value["approvals"]] == ["ann", "bob"]
    rows = await work.ask(
        "select actor from orchestrator.audit where action = 'approve_run' order by id"
    )
    assert [row["actor"] for row in rows] == ["ann", "bob"]


@pytest.mark.parametrize("is_child", [False, True])
async def test_who_made_a_task_approves_none_of_its_runs(
    crew: Crew, conn: db.Connection, is_child: bool
) -> None:
    """Nor what they make other runs do."""
    await enqueue(conn, {"uses": "set", "with": {}})  # the tenant is there
    work = Work(conn)
    ann, bob = [
        (await db.call_one(conn, "create_agent", tenant="t", name=name))["create_agent"]["id"]
        for name in ("ann", "bob")
    ]
    pipeline = [{"id": "w", "wait": {"approval": {}}}]
    if is_child:
        pipeline = [{"id": "c", "uses": "flow.run", "with": {"pipeline": pipeline}}]
    task = await work.verb(
        "create_task", tenant="t", title="T", schedule_kind="cron", schedule_expr="0 8 * * *",
        payload={"pipeline": pipeline}, created_by=ann,
    )  # fmt: skip
    await work.verb("run_task", tenant="t", task=task["id"])
    await crew.once()
    run = await work.one("select run_id from orchestrator.wait where kind = 'approval'")
    with pytest.raises(Forbidden, match="of their own"):
        await work.verb("approve_run", tenant="t", run=run, by=ann)
    assert (await work.verb("approve_run", tenant="t", run=run, by=bob))["state"] == "met"
    await crew.once()


async def test_one_rejection_fails_the_step(crew: Crew, conn: db.Connection) -> None:
    run = await enqueue(conn, {"id": "w", "wait": {"approval": {"count": 2}}})
    await crew.once()
    await Work(conn).verb("approve_run", tenant="t", run=run, decision="reject", by="ann")
    await crew.once()
    row = await look(conn, run)
    assert row["error"] == {"type": "authorization", "message": "ann rejected it", "step": "w"}


async def test_an_approval_over_http_is_checked_against_its_form(
    crew: Crew, conn: db.Connection, serve: Serve
) -> None:
    api = await serve()
    await db.call(conn, "ensure_system_agent")
    form = {"type": "object", "required": ["amount"], "properties": {"amount": {"type": "integer"}}}
    pipeline = [{"id": "w", "wait": {"approval": {"from": "system", "form": form}}}]
    run = (await db.call_one(conn, "enqueue", tenant="default", pipeline=pipeline))["run_id"]
    await crew.once()
    url = f"/runs/{run}/approve"
    assert (await api.client.post(url, json={})).status_code == 401
    bad = await api.client.post(url, json={"form": {"amount": "x"}}, headers=SYSTEM)
    assert (bad.status_code, bad.json()["detail"][0]["loc"]) == (422, ["body", "form", "amount"])
    good = await api.client.post(url, json={"form": {"amount": 5}}, headers=SYSTEM)
    assert (good.status_code, good.json()["state"]) == (200, "met")
    assert (
        await api.client.post(url, json={"form": {"amount": 5}}, headers=SYSTEM)
    ).status_code == 410
    assert (
        await api.client.post(f"/runs/{uuid4()}/approve", json={}, headers=SYSTEM)
    ).status_code == 404
    await crew.once()
    assert (await look(conn, run))["output"]["w"]["form"] == {"amount": 5}


async def test_a_child_runs_while_its_parent_is_parked(crew: Crew, conn: db.Connection) -> None:
    child = [{"id": "c", "uses": "set", "with": {"twice": "$${params.n * 2}"}}]
    step = {
        "id": "w",
        "uses": "flow.run",
        "with": {"pipeline": child, "input": {"n": "${params.n}"}},
    }
    run = await enqueue(conn, step, input={"n": 4})
    await crew.once()
    row = await look(conn, run)
    assert row["state"] == "succeeded", row["error"]
    assert row["output"]["w"]["output"] == {"c": {"twice": 8}}
    assert row["output"]["w"]["state"] == "succeeded"
    assert await Work(conn).one("select count(*) from orc.runs") == 2


async def test_a_child_that_fails_fails_its_step_and_can_be_caught(
    crew: Crew, conn: db.Connection
) -> None:
    child = [{"id": "c", "uses": "assert", "with": {"that": False, "message": "no"}}]
    step = {"id": "w", "uses": "flow.run", "with": {"pipeline": child}}
    fails = await enqueue(conn, step)
    caught = await enqueue(conn, {**step, "catch": [{"id": "k", "uses": "set", "with": {"a": 1}}]})
    odd = await enqueue(conn, {"id": "w", "uses": "flow.run", "with": {"pipeline": "none"}})
    await crew.once()
    error = (await look(conn, fails))["error"]
    assert error["step"] == "w"
    assert "no" in error["message"]
    assert (await look(conn, caught))["output"]["w"] == {"a": 1}
    assert (await look(conn, odd))["error"]["type"] == "validation"


async def test_a_wait_that_is_over_wakes_its_run_no_more(crew: Crew, conn: db.Connection) -> None:
    child = {"id": "c", "uses": "flow.run", "with": {"pipeline": [{"uses": "set"}]}}
    races = {"a": [child], "b": [{"id": "w", "wait": {"event": {"topic": "x"}}}]}
    race = {"id": "r", "parallel": {"branches": races, "mode": "race"}}
    run = await enqueue(conn, race, {"id": "nap", "wait": {"for": "7d"}})
    await crew.once()
    await db.call(conn, "meet_events")
    await crew.once()
    assert (await look(conn, run))["state"] == "waiting"
    await db.call(conn, "emit_event", tenant="t", topic="x")
    assert (await db.call_one(conn, "meet_events"))["meet_events"] == 0
    assert (await wait_of(Work(conn), run, "r/w"))["state"] == "canceled"


async def test_a_child_that_is_not_awaited_is_named_at_once(
    crew: Crew, conn: db.Connection
) -> None:
    child = [{"id": "c", "uses": "set", "with": {"a": 1}}]
    run = await enqueue(
        conn, {"id": "w", "uses": "flow.run", "with": {"pipeline": child, "wait": False}}
    )
    await crew.once()
    value = (await look(conn, run))["output"]["w"]
    assert (await look(conn, value["run_id"]))["state"] == "succeeded"


async def test_a_canceled_parent_takes_its_child_along(crew: Crew, conn: db.Connection) -> None:
    child = [{"id": "c", "wait": {"callback": {}}}]
    run = await enqueue(conn, {"id": "w", "uses": "flow.run", "with": {"pipeline": child}})
    await crew.once()
    work = Work(conn)
    (why,) = await work.ask("select * from orc.why(%s)", run)
    young = why["evidence"]["run"]
    assert await work.verb("cancel_orphans") == 0
    await work.verb("cancel_run", tenant="t", run=run)
    assert await work.verb("cancel_orphans") == 1
    assert (await look(conn, young))["state"] == "canceled"


async def test_a_canceled_child_fails_its_parent_as_canceled(
    crew: Crew, conn: db.Connection
) -> None:
    child = [{"id": "c", "wait": {"callback": {}}}]
    run = await enqueue(conn, {"id": "w", "uses": "flow.run", "with": {"pipeline": child}})
    await crew.once()
    young = await Work(conn).one(
        "select child_run from orchestrator.wait where child_run is not null"
    )
    await Work(conn).verb("cancel_run", tenant="t", run=young)
    await crew.once()
    assert (await look(conn, run))["error"]["type"] == "canceled"


@pytest.mark.parametrize("decision", ["approve", "reject"])
async def test_a_call_whose_outcome_nobody_knows_asks_and_does_as_it_is_told(
    crew: Crew, conn: db.Connection, decision: str
) -> None:
    calls = []

    async def pay(_: Any, context: Context) -> Outcome:
        calls.append(context.key)
        return Done("paid")

    kind = Kind("pay", dict[str, Any], pay, outside=True)
    run = await enqueue(conn, {"id": "w", "uses": "pay", "on_unknown": "ask"}, max_attempts=3)
    work = Work(conn)
    worker = await work.worker()
    (held,) = await work.claim(worker)
    started = {**waiting(held), "state": "started"}
    del started["wait"]
    await db.call(conn, "record_steps", worker=worker, steps=[started])
    await work.settle(worker, said(held, "failed", delay=0, error={"type": "lost"}))
    await crew.once(kind)
    assert (calls, (await look(conn, run))["state"]) == ([], "waiting")
    await work.verb("approve_run", tenant="t", run=run, decision=decision, by="ann")
    await crew.once(kind)
    row = await look(conn, run)
    if decision == "approve":
        assert (len(calls), row["output"]) == (1, {"w": "paid"})
    else:
        assert (calls, row["error"]["type"]) == ([], "unknown")


async def test_an_emitted_event_is_published_once_with_its_record(
    crew: Crew, conn: db.Connection
) -> None:
    listener = await enqueue(conn, {"id": "w", "wait": {"event": {"topic": "done"}}})
    await crew.once()
    emit = {
        "id": "e",
        "uses": "event.emit",
        "with": {"topic": "done", "payload": {"n": "${params.n}"}},
    }
    run = await enqueue(
        conn,
        emit,
        {"id": "f", **call("shout")},
        input={"n": 1},
        max_attempts=2,
        backoff="fixed",
        backoff_seconds=0,
    )
    await crew.once()
    await Work(conn).verb("meet_events")
    await crew.once()
    events = await Work(conn).ask("select payload, source from orchestrator.event")
    assert events == [{"payload": {"n": 1}, "source": f"run:{run}"}]
    assert (await look(conn, listener))["output"]["w"]["payload"] == {"n": 1}


async def test_a_scheduler_brings_events_to_runs_as_they_are_published(
    crew: Crew, conn: db.Connection
) -> None:
    work = Work(conn)
    crew.process(name="scheduler")
    crew.worker()
    listens = (
        "select count(*) > 0 from pg_stat_activity where query ~* '^listen'and query ~ 'orc_events'"
    )
    await until(lambda: work.one(listens))
    seconds: list[float] = []
    while len(seconds) < 3 or (min(seconds) >= 0.5 and len(seconds) < 20):
        run = await enqueue(conn, {"id": "w", "wait": {"event": {"topic": "paid"}}})
        await until(lambda: work.ask("select from orc.waiting where waiting_for is not null"))
        began = time.monotonic()
        await work.verb("emit_event", tenant="t", topic="paid")
        await ends(conn, run)
        seconds.append(time.monotonic() - began)
    assert min(seconds) < 0.5 and max(seconds) < 20, seconds  # others use this machine


# Verbs


async def test_an_event_with_the_same_id_is_one_event(work: Work) -> None:
    id = await work.one("select orchestrator.new_id()")
    for payload in (1, 2):
        assert await work.verb("emit_event", tenant="t", topic="x", payload=payload, id=id) == id
    assert await work.one("select payload from orchestrator.event") == 1
    await work.verb("emit_event", tenant="u", topic="x", id=id)
    assert await work.one("select count(*) from orchestrator.event") == 2, (
        "another tenant's is another"
    )


@pytest.mark.parametrize(
    "given",
    [{"topic": ""}, {"topic": "x" * 201}, {"id": uuid4()}, {"tenant": ""}, {"source": "x" * 201},
     {"id": UUID("01000000-0000-7000-8000-000000000000")}],
)  # fmt: skip
async def test_an_event_that_makes_no_sense_is_refused(work: Work, given: Any) -> None:
    with pytest.raises(Invalid):
        await work.verb("emit_event", **{"tenant": "t", "topic": "x", **given})
    assert await work.ask("select from orchestrator.event") == []


async def test_a_park_with_a_stale_epoch_registers_nothing(work: Work) -> None:
    worker, run = await stands(work, "event")
    await emit(work.conn, "x")
    (again,) = await work.claim(await work.worker())
    before = await work.everything()
    late = [{**waiting(run, "z", kind="event", topic="y"), "state": "waiting"}]
    rows = await db.call(work.conn, "record_steps", worker=worker, steps=late)
    assert [str(row["stale"]) for row in rows] == [run.run]
    assert await work.settle(worker, parked(run, "w", "z")) in ([], [run.run])
    assert await work.everything() == before
    assert again.epoch == 2


async def test_a_callback_may_come_before_its_step_is_reached(work: Work) -> None:
    worker = await work.worker()
    await work.run()
    (run,) = await work.claim(worker)
    await work.verb("answer_callback", token=await token(work, run.run), body=Jsonb(7))
    await db.call(
        work.conn, "record_steps", worker=worker, steps=[await asked(work, run, "callback")]
    )
    assert await work.settle(worker, parked(run)) == []
    assert await work.state(run.run) == "scheduled"
    assert (await seen(work, run))["answer"] == 7


async def test_a_token_of_another_key_or_step_is_unknown(work: Work) -> None:
    _, run = await stands(work, "callback")
    good = await token(work, run.run)
    body = UUID(run.run).bytes, b"w"
    forged = body[0] + hmac.digest(b"k" * 32, b"".join(body), "sha256")[:16] + body[1]
    for bad in ("", "orc_cb_", good[:-2], good + "AA", "orc_cb_" + urlsafe_b64encode(forged).decode(),
                good.replace("orc_cb_", "orc_cd_")):  # fmt: skip
        with pytest.raises(NotFound):
            await work.verb("answer_callback", token=bad, body=Jsonb(1))
    with pytest.raises(Gone):
        await work.verb(
            "answer_callback",
            token=await token(work, str(await work.one("select orchestrator.new_id()"))),
            body=Jsonb(1),
        )
    assert (await wait_of(work, run.run))["state"] == "waiting"
    hashes = [await work.one("select encode(token_hash, 'escape') from orchestrator.wait")]
    assert good not in str(hashes)


async def test_only_the_owner_reads_the_key(work: Work) -> None:
    for role in ("orc_reader", "orc_api"):
        assert not await work.one(
            "select has_table_privilege(%s, 'orchestrator.callback_key', 'select')", role
        )
        assert not await work.one(
            "select has_function_privilege(%s, 'orc.callback_key()', 'execute')", role
        )


@pytest.mark.parametrize("end", ["cancel", "settle", "lose"])
async def test_no_wait_outlives_its_run(work: Work, end: str) -> None:
    worker, run = await stands(work, "callback")
    if end == "cancel":
        await work.verb("cancel_run", tenant="t", run=run.run)
    else:
        await work.verb("wake_run", tenant="t", run=run.run)
        (again,) = await work.claim(worker)
        if end == "settle":
            await work.settle(worker, said(again))
        else:
            await work.verb("end_worker", worker=worker)
            assert await work.verb("release_expired_work") == 1
    assert (await wait_of(work, run.run))["state"] == "canceled"
    with pytest.raises(Gone):
        await work.verb("answer_callback", token=await token(work, run.run), body=Jsonb(1))


async def test_a_wait_that_a_run_went_on_without_is_canceled(work: Work) -> None:
    worker, run = await stands(work, "callback")
    await work.verb("wake_run", tenant="t", run=run.run)
    (again,) = await work.claim(worker)
    record = waiting(again, "v", kind="event", topic="x")
    await db.call(work.conn, "record_steps", worker=worker, steps=[record])
    await work.settle(worker, parked(again, "v"))
    assert (await wait_of(work, run.run))["state"] == "canceled"
    assert (await wait_of(work, run.run, "v"))["state"] == "waiting"


async def test_a_run_that_is_woken_for_nothing_parks_again(work: Work) -> None:
    worker, run = await stands(work, "event")
    assert await work.verb("wake_run", tenant="t", run=run.run)
    (again,) = await work.claim(worker)
    found = await seen(work, again)
    assert (found["events"], found["after"]) == ([], None)
    await work.settle(worker, parked(again, upto=found["upto"], after=None))
    assert await work.state(run.run) == "waiting"


async def test_what_a_run_waits_for_can_be_read(work: Work) -> None:
    for kind, cause in (
        ("event", "an event"), ("callback", "a callback"), ("approval", "an approval"), ("unknown", "a decision"),
    ):  # fmt: skip
        _, run = await stands(work, kind, timeout=60)
        (why,) = await work.ask("select * from orc.why(%s)", run.run)
        assert why["cause"] == f"waiting for {cause}"
        assert why["evidence"]["deadline"]
        assert why["clears"].endswith("or at its deadline")
        (row,) = await work.ask("select waits from orc.waiting where id = %s", run.run)
        assert row["waits"][0]["kind"] == kind


@pytest.mark.breaks
async def test_the_check_names_waits_that_nobody_could_meet(work: Work) -> None:
    _, ended = await stands(work, "callback")
    await work.do("delete from orchestrator.due_work where run_id = %s", ended.run)
    _, met = await stands(work, "callback")
    await work.do(
        "update orchestrator.wait set state = 'met', answer = '1', answered_at = orchestrator.now() where run_id = %s",
        met.run,
    )
    _, late = await stands(work, "callback")
    await work.do(
        "update orchestrator.wait set deadline = orchestrator.now() where run_id = %s", late.run
    )
    await stands(work, "event", topic="$run.failed")
    await work.do("update orchestrator.tenant set waits_for_ends = false")
    found = {row["invariant"] for row in await work.ask("select * from orc.check()")}
    assert found == {
        "a_run_that_ended_waits_for_nothing", "an_answer_wakes_its_run",
        "a_parked_run_stands_at_a_wait_or_has_a_time", "a_deadline_is_kept",
        "a_wait_hears_of_the_ends_of_runs",
    }  # fmt: skip


# Two sessions at once


@pytest.mark.parametrize("emits_first", [True, False])
async def test_an_event_and_a_park_at_the_same_time_meet(
    pair: tuple[Work, Work], emits_first: bool
) -> None:
    """Neither sees the other; housekeeping introduces them."""
    a, b = pair
    worker = await a.worker()
    await a.run()
    (run,) = await a.claim(worker)
    records = [waiting(run, kind="event", topic="x")]

    async def parks() -> None:
        await db.call(a.conn, "record_steps", worker=worker, steps=records)
        await a.settle(worker, parked(run))

    if emits_first:
        async with holding(b):
            await b.verb("emit_event", tenant="t", topic="x")
            await parks()
            assert await a.verb("meet_events") == 0
    else:
        async with holding(a):
            await parks()
            await b.verb("emit_event", tenant="t", topic="x")
            assert await b.verb("meet_events") == 0
            assert await b.verb("meet_events") == 0, "the park is under way still"
    assert await a.state(run.run) == "waiting"
    assert await a.verb("meet_events") == 1
    assert await a.state(run.run) == "scheduled"
    assert len((await seen(a, run))["events"]) == 1


async def test_an_event_that_commits_late_is_found_though_its_id_is_old(
    pair: tuple[Work, Work],
) -> None:
    a, b = pair
    worker, run = await stands(a, "event")
    async with holding(b):
        await b.verb("emit_event", tenant="t", topic="x", payload=Jsonb("late"))
        await b.do("select pg_advisory_lock(1)")
        await a.verb("emit_event", tenant="t", topic="x", payload=Jsonb("early"))
        await a.verb("meet_events")
        await a.do(
            "update orchestrator.due_work set due_at = orchestrator.now() where state = 'waiting'"
        )
        (again,) = await a.claim(worker)
        found = await seen(a, again)
        assert [event["payload"] for event in found["events"]] == ["early"]
        await a.settle(worker, parked(again, upto=found["upto"], after=found["after"]))
        assert await a.state(run.run) == "waiting"
        await a.verb("meet_events")
        await a.verb("meet_events")
    assert await a.verb("meet_events") == 1
    assert [event["payload"] for event in (await seen(a, run))["events"]] == ["late"]


async def test_an_event_wakes_a_run_whose_row_was_locked_later(pair: tuple[Work, Work]) -> None:
    a, b = pair
    _, run = await stands(a, "event")
    async with holding(b):
        await b.do("select from orchestrator.due_work where run_id = %s for update", run.run)
        await a.verb("emit_event", tenant="t", topic="x")
        assert await a.verb("meet_events") == 0
        assert await a.state(run.run) == "waiting"
    assert await a.verb("meet_events") == 1
    assert await a.state(run.run) == "scheduled"
    assert await a.verb("meet_events") == 0


async def test_an_emit_that_is_rolled_back_never_was(pair: tuple[Work, Work]) -> None:
    a, b = pair
    _, run = await stands(a, "event")
    await b.do("begin")
    await b.verb("emit_event", tenant="t", topic="x")
    await b.do("rollback")
    for _ in range(3):
        assert await a.verb("meet_events") == 0
    assert await a.state(run.run) == "waiting"


@pytest.mark.parametrize("answers_first", [True, False])
async def test_a_callback_and_a_park_at_the_same_time_meet(
    pair: tuple[Work, Work], answers_first: bool
) -> None:
    a, b = pair
    worker = await a.worker()
    await a.run()
    (run,) = await a.claim(worker)
    name = await token(a, run.run)
    record = await asked(a, run, "callback")

    async def parks() -> None:
        await db.call_one(
            a.conn, "exchange_work", worker=worker, want=0, steps=[record], outcomes=[parked(run)]
        )

    async def answers() -> None:
        await b.verb("answer_callback", token=name, body=Jsonb(1))

    if answers_first:
        async with holding(b):
            await answers()
            task = await meets(b, a, parks())
            assert not task.done()
    else:
        async with holding(a):
            await parks()
            task = await meets(a, b, answers())
            assert not task.done()
    await task
    assert await a.state(run.run) == "scheduled"
    assert (await seen(a, run))["answer"] == 1


@pytest.mark.parametrize("answers_first", [True, False])
async def test_of_a_deadline_and_a_callback_one_is_first(
    pair: tuple[Work, Work], answers_first: bool
) -> None:
    a, b = pair
    worker, run = await stands(a, "callback", timeout=1.5)
    name = await token(a, run.run)
    if answers_first:
        async with holding(b):
            await b.verb("answer_callback", token=name, body=Jsonb(1))
            await asyncio.sleep(1.5)
            assert await a.claim(worker) == [], "its row is locked"
        assert (await seen(a, run))["state"] == "met"
        assert len(await a.claim(worker)) == 1
    else:
        await asyncio.sleep(1.5)
        async with holding(a):
            assert len(await a.claim(worker)) == 1
            task = await meets(a, b, b.verb("answer_callback", token=name, body=Jsonb(1)))
            assert not task.done()
        with pytest.raises(Gone):
            await task
        assert (await seen(a, run))["state"] == "expired"


@pytest.mark.parametrize("answers_first", [True, False])
async def test_of_a_cancel_and_a_callback_one_is_first(
    pair: tuple[Work, Work], answers_first: bool
) -> None:
    a, b = pair
    _, run = await stands(a, "callback")
    name = await token(a, run.run)
    answer = b.verb("answer_callback", token=name, body=Jsonb(1))
    cancel = a.verb("cancel_run", tenant="t", run=run.run)
    if answers_first:
        async with holding(b):
            await answer
            task = await meets(b, a, cancel)
        assert (await task)["canceled"]
        assert (await wait_of(a, run.run))["state"] == "met"
    else:
        async with holding(a):
            await cancel
            task = await meets(a, b, answer)
        with pytest.raises(Gone):
            await task
        assert (await wait_of(a, run.run))["state"] == "canceled"
    assert await a.state(run.run) == "canceled"


async def test_two_callbacks_at_once_are_one_answer(pair: tuple[Work, Work]) -> None:
    a, b = pair
    _, run = await stands(a, "callback")
    name = await token(a, run.run)
    for body, same in ((1, True), (2, False)):
        async with holding(a):
            first = await a.verb("answer_callback", token=name, body=Jsonb(1))
            task = await meets(a, b, b.verb("answer_callback", token=name, body=Jsonb(body)))
        if same:
            assert await task == first
        else:
            with pytest.raises(Conflict):
                await task


async def test_two_approvals_at_once_are_counted_twice_and_meet_once(
    pair: tuple[Work, Work],
) -> None:
    a, b = pair
    _, run = await stands(a, "approval", needed=2)
    async with holding(a):
        first = await a.verb("approve_run", tenant="t", run=run.run, by="ann")
        task = await meets(a, b, b.verb("approve_run", tenant="t", run=run.run, by="bob"))
        assert not task.done()
    assert (first["state"], first["given"]) == ("waiting", 1)
    assert ((await task)["state"], (await task)["given"]) == ("met", 2)
    assert await a.state(run.run) == "scheduled"


async def test_a_child_that_ends_while_its_parent_parks_wakes_it(pair: tuple[Work, Work]) -> None:
    a, b = pair
    worker = await a.worker()
    await a.run()
    (run,) = await a.claim(worker)
    record = waiting(run, kind="child", pipeline=[{"id": "a", "uses": "set"}])
    await db.call(a.conn, "record_steps", worker=worker, steps=[record])
    await db.call(a.conn, "record_steps", worker=worker, steps=[record])
    (child,) = await a.claim(worker)
    async with holding(a):
        await a.settle(worker, parked(run))
        task = await meets(a, b, b.settle(worker, said(child, output={"x": 1})))
        assert not task.done()
    await task
    assert await a.verb("meet_events") in (0, 1)
    assert await a.state(run.run) == "scheduled"
    assert (await seen(a, run))["answer"] == {
        "run_id": child.run, "state": "succeeded", "output": {"x": 1}, "error": None,
    }  # fmt: skip
