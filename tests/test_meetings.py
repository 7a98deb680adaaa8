"""Events, callbacks, deadlines and cancels in any order at once: none lost, none doubled, none across tenants."""

# ruff: noqa: E501
from __future__ import annotations

import asyncio
import itertools
import json
import random
from contextlib import suppress
from typing import Any

import pytest
from conftest import Connect
from psycopg.types.json import Jsonb
from test_plans import Plans
from test_waits import parked, seen, stands, token, waiting
from test_work import Claimed, Work, said

from orchestrator import db
from orchestrator.errors import Conflict, Gone

TICKS = itertools.count()


class Meeting:
    """Two tenants, each with a run that waits for a fitting event and one for a callback; sessions that do
    random things at once. A session plays the worker, too: it takes runs up as the engine does."""

    def __init__(self, sessions: list[Work], seed: int) -> None:
        self.sessions = sessions
        self.random = random.Random(seed)
        self.tenants = [f"m{seed}", f"n{seed}"]
        self.queue = f"q{seed}"
        self.fit: dict[str, int] = {}  # what an event must say
        self.tokens: dict[str, str] = {}
        self.reached: dict[str, int] = {}  # when the wait was known to be registered
        self.emitted: list[tuple[int, str, int]] = []  # begun at, tenant, what it says
        self.given: dict[str, list[int]] = {}  # answers that were accepted
        self.over: dict[str, tuple[str, Any]] = {}  # how it ended, as the worker understood
        self.canceled: set[str] = set()

    async def set_up(self) -> None:
        work = self.sessions[0]
        self.workers = [await s.worker(self.queue, lease="1 hour") for s in self.sessions]
        for tenant in self.tenants:
            work.tenant = tenant
            for kind in ("event", "callback"):
                run = await work.run(queue=self.queue)
                if kind == "event":
                    self.fit[run] = self.random.randrange(3)
                else:
                    self.tokens[run] = await token(work, run)
        self.timeout = {
            run: self.random.choice([None, None, 0.002]) for run in (*self.fit, *self.tokens)
        }

    # What sessions do

    async def take_up(self, n: int) -> int:
        work, worker = self.sessions[n], self.workers[n]
        runs = await work.claim(worker, self.random.randint(1, 3))
        for run in runs:
            await self.go_on(work, worker, run)
        return len(runs)

    async def go_on(self, work: Work, worker: Any, run: Claimed) -> None:
        rows = await db.call(
            work.conn, "recorded_steps", wanted=[{"tenant": run.tenant, "run": run.run}]
        )
        wait = next((row["wait"] for row in rows if row["wait"]), None)
        record = {**waiting(run), "wait": self.wait(run)}
        if wait is None or (wait["state"] == "waiting" and not any(row["state"] for row in rows)):
            await self.exchange(work, worker, record, parked(run))
            self.reached.setdefault(run.run, next(TICKS))
        elif wait["state"] != "waiting":
            await self.end(work, worker, run, wait["state"], wait["answer"])
        elif run.run in self.tokens:
            await self.exchange(work, worker, None, parked(run))
        else:
            fits = [e for e in wait["events"] if e["payload"] == self.fit[run.run]]
            if fits:
                record |= {"state": "succeeded", "wait": {"event": fits[0]["id"]}}
                await self.end(work, worker, run, "event", fits[0], record)
            else:
                cursor = {"upto": wait["upto"], "after": wait["after"]}
                await self.exchange(work, worker, None, parked(run, **cursor))

    def wait(self, run: Claimed) -> dict[str, Any]:
        if run.run in self.fit:
            asked = {"kind": "event", "topic": "x"}
        else:
            asked = {"kind": "callback", "token": self.tokens[run.run]}
        return {**asked, "timeout": self.timeout[run.run]}

    async def end(
        self, work: Work, worker: Any, run: Claimed, how: str, answer: Any, record: Any = None
    ) -> None:
        await self.exchange(work, worker, record, said(run, output=answer))
        if await work.state(run.run) == "succeeded":
            assert run.run not in self.over, "it ended twice"
            self.over[run.run] = (how, answer)

    async def exchange(self, work: Work, worker: Any, record: Any, outcome: Any) -> None:
        await db.call_one(
            work.conn, "exchange_work", worker=worker, want=0, outcomes=[outcome],
            steps=[record] if record else None,
        )  # fmt: skip

    async def emit(self, n: int) -> None:
        """Perhaps in a transaction that commits late, or never."""
        work, tenant = self.sessions[n], self.random.choice(self.tenants)
        says, begun, topic = self.random.randrange(3), next(TICKS), self.random.choice("xxy")
        how = self.random.choice(["at once", "at once", "late", "never"])
        if how != "at once":
            await work.do("begin")
        await work.verb("emit_event", tenant=tenant, topic=topic, payload=says)
        if how != "at once":
            for _ in range(self.random.randint(1, 30)):
                await asyncio.sleep(0)
            await work.do("commit" if how == "late" else "rollback")
        if how != "never" and topic == "x":
            self.emitted.append((begun, tenant, says))

    async def answer(self, n: int) -> None:
        run, body = self.random.choice([*self.tokens]), self.random.randrange(2)
        with suppress(Gone, Conflict):
            await self.sessions[n].verb("answer_callback", token=self.tokens[run], body=Jsonb(body))
            self.given.setdefault(run, []).append(body)

    async def cancel(self, n: int) -> None:
        run = self.random.choice([*self.tokens, *self.fit])
        tenant = await self.sessions[n].one("select tenant_id from orc.runs where id = %s", run)
        reply = await self.sessions[n].verb("cancel_run", tenant=tenant, run=run)
        if reply["canceled"]:
            self.canceled.add(run)

    async def keep(self, n: int) -> int:
        woken: int = await self.sessions[n].verb("meet_events")
        return woken

    async def play(self, n: int, actions: list[Any]) -> None:
        for action in actions:
            await action(n)

    async def run(self) -> None:
        await self.set_up()
        choices = [self.take_up, self.emit, self.answer, self.cancel, self.keep]
        scripts = [
            self.random.choices(choices, [8, 5, 3, 1, 3], k=self.random.randint(3, 7))
            for _ in self.sessions
        ]
        await asyncio.gather(*(self.play(n, script) for n, script in enumerate(scripts)))
        await self.quiet()
        await self.judge()

    async def quiet(self) -> None:
        """Housekeeping and the workers go on until nothing changes any more."""
        idle = 0
        while idle < 2:
            woken, taken = await self.keep(0), await self.take_up(0)
            idle = 0 if woken or taken else idle + 1

    async def judge(self) -> None:
        work = self.sessions[0]
        for run, fit in self.fit.items():
            row = await work.row(run)
            how, event = self.over.get(run, ("", None))
            if how == "event":
                owner = await work.ask(
                    "select tenant_id from orchestrator.event where id = %s", event["id"]
                )
                assert owner == [{"tenant_id": row["tenant_id"]}], (
                    "it met an event that was not its own"
                )
                assert (event["topic"], event["payload"]) == ("x", fit)
            elif row["state"] == "waiting":
                missed = [
                    e
                    for e in self.emitted
                    if e[1:] == (row["tenant_id"], fit) and e[0] > self.reached[run]
                ]
                assert missed == [], "an event was lost"
                assert self.timeout[run] is None or row["due_at"], "a deadline was lost"
            else:
                self.explained(run, row, how)
        for run in self.tokens:
            row, answers = await work.row(run), set(self.given.get(run, []))
            assert len(answers) <= 1, "two answers were accepted"
            how, answer = self.over.get(run, ("", None))
            if how == "met":
                assert {answer} == answers
            elif answers:
                assert run in self.canceled, f"an answer was lost: {row['state']}"
            else:
                self.explained(run, row, how)

    def explained(self, run: str, row: db.Row, how: str) -> None:
        if row["state"] == "canceled":
            assert run in self.canceled
        elif row["state"] == "succeeded":
            assert (how, self.timeout[run] is not None) == ("expired", True)
        else:
            assert row["state"] in ("waiting", "scheduled", "ready"), row["state"]


async def hold(connect: Connect, seeds: range) -> None:
    sessions = [Work(await connect()) for _ in range(3)]
    print(f"seeds {seeds.start} to {seeds.stop - 1}")
    for seed in seeds:
        try:
            await Meeting(sessions, seed).run()
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise
        if seed % 100 == 99:
            assert await sessions[0].ask("select * from orc.check()") == [], f"up to seed {seed}"
            await sessions[0].do("delete from orchestrator.lane")
            for table in ("due_work", "run", "wait", "step", "event", "attempt", "audit"):
                await sessions[0].do(f"truncate orchestrator.{table}")


@pytest.mark.parametrize("part", range(2))
async def test_what_meets_in_any_order_is_neither_lost_nor_doubled(
    connect: Connect, part: int
) -> None:
    await hold(connect, range(part * 150, part * 150 + 150))


@pytest.mark.soak
@pytest.mark.parametrize("part", range(10))
async def test_a_hundred_thousand_meetings_lose_nothing(connect: Connect, part: int) -> None:
    """In parts, so that as many are held at once as there are cores."""
    await hold(connect, range(part * 10_000 + 1000, part * 10_000 + 11_000))


# A hundred thousand that are parked


class Reads(Plans):
    def check(self) -> None:
        super().check()
        for node in self.nodes():
            name = node.get("Relation Name", "")
            if name != "event_cursor" and name.split("_")[0] in ("wait", "event", "step", "due"):
                assert node["Node Type"] != "Seq Scan", json.dumps(node)
                assert node.get("Actual Rows", 0) * node.get("Actual Loops", 1) <= 2000, json.dumps(
                    node
                )
                assert node.get("Rows Removed by Filter", 0) <= 200, json.dumps(node)


async def fill(work: Work, rows: int) -> None:
    """Runs that are parked, a third each at an event of their own, one that many want, a callback."""
    await work.do(
        "with made as (insert into orchestrator.due_work (tenant_id, run_id, pipeline_id, due_at, state, epoch, waiting_for)"
        " select 't', orchestrator.new_id(), (select id from orchestrator.pipeline limit 1), 'infinity', 'waiting', 1, 'x'"
        f" from generate_series(1, {rows}) returning run_id)"
        " insert into orchestrator.wait (tenant_id, run_id, step_id, kind, topic, since, seen, token_hash)"
        " select 't', run_id, 'w', case n % 3 when 2 then 'callback' else 'event' end,"
        " case n % 3 when 0 then 'own ' || n when 1 then 'many' end, orchestrator.now(), pg_current_snapshot(),"
        " case n % 3 when 2 then sha256(uuid_send(run_id)) end"
        " from (select run_id, row_number() over () as n from made) as m"
    )


async def talk(work: Work, worker: Any) -> None:
    """All verbs of waits once."""
    for kind in ("event", "callback", "approval"):
        _, run = await stands(work, kind)
        await seen(work, run)
        if kind == "event":
            await work.verb("emit_event", tenant="t", topic="x")
        elif kind == "callback":
            name = await token(work, run.run)
            await work.verb("answer_callback", token=name, body=Jsonb(1))
        else:
            await work.verb("approve_run", tenant="t", run=run.run, by="ann")
        await work.verb("meet_events")
        await work.ask("select * from orc.why(%s)", run.run)
        (again,) = await work.claim(worker)
        record = {**waiting(again, "v", kind="event", topic="own 3"), "tenant": "t"}
        await db.call_one(
            work.conn,
            "exchange_work",
            worker=worker,
            want=5,
            steps=[record],
            outcomes=[parked(again, "v")],
        )
        await work.verb("cancel_run", tenant="t", run=run.run)
    _, run = await stands(work, "callback", timeout=0.1)
    await asyncio.sleep(0.11)
    (late,) = await work.claim(worker)
    assert (await seen(work, late))["state"] == "expired"
    await work.settle(worker, said(late))
    await work.run()
    (plain,) = await work.claim(worker)
    await work.settle(worker, said(plain))
    await work.verb("cancel_orphans")


async def test_what_is_parked_costs_the_others_nothing(
    connect: Connect, request: pytest.FixtureRequest
) -> None:
    old, fresh = [Work(await connect(timeout=120)) for _ in range(2)]
    worker = await old.worker()
    for _ in range(8):
        await talk(old, worker)
    await fill(fresh, 100_000 if request.config.getoption("--soak") else 20_000)
    for analyzed in (False, True):
        for work in (old, fresh):
            plans = Reads(work)
            await plans.start()
            await talk(work, await work.worker())
            plans.check()
            await work.do("reset client_min_messages; set auto_explain.log_min_duration = -1")
        if not analyzed:
            await fresh.do(
                "vacuum analyze orchestrator.due_work, orchestrator.wait, orchestrator.event"
            )
    await fresh.verb("emit_event", tenant="t", topic="many")
    woken = 0
    while more := await fresh.verb("meet_events"):
        assert more <= 1000
        woken += more
    assert woken == await fresh.one("select count(*) from orchestrator.wait where topic = 'many'")
    await fresh.do("truncate orchestrator.due_work, orchestrator.wait")
