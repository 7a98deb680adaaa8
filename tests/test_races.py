"""Two sessions at once: each pair of verbs that can meet, and seeded schedules of all of them."""

# ruff: noqa: E501
from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import UUID

import pytest
from conftest import Connect
from test_work import Claimed, Work, said

from orchestrator import db
from orchestrator.errors import Conflict, Gone, NotFound


@pytest.fixture
async def pair(connect: Connect) -> tuple[Work, Work]:
    return Work(await connect()), Work(await connect())


@asynccontextmanager
async def holding(work: Work) -> AsyncIterator[None]:
    """A transaction that commits at the end of the block."""
    await work.do("begin")
    yield
    await work.do("commit")


async def meets(look: Work, waiting: Work, what: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """Starts it in the other session and returns when that waits for a lock, or is through."""
    task = asyncio.create_task(what)
    pid = waiting.conn.info.backend_pid
    while not task.done():
        if await look.one("select cardinality(pg_blocking_pids(%s::int)) > 0", pid):
            break
        await asyncio.sleep(0)
    return task


async def expire(work: Work, worker: UUID) -> None:
    await work.do(
        "update orchestrator.worker set expires_at = orchestrator.now() where id = %s", worker
    )


async def test_settle_and_release_one_of_them_has_the_run(pair: tuple[Work, Work]) -> None:
    a, b = pair
    for settles_first in (True, False):
        worker, run = await a.worker(), await a.run(max_attempts=3, backoff="fixed")
        (held,) = await a.claim(worker)
        if settles_first:
            async with holding(a):
                await a.settle(worker, said(held))
                await expire(b, worker)
                assert await b.verb("release_expired_work") == 0
            assert await a.state(run) == "succeeded"
        else:
            async with holding(b):
                await b.do("select from orchestrator.due_work where run_id = %s for update", run)
                task = await meets(b, a, a.settle(worker, said(held)))
                await expire(b, worker)
                assert await b.verb("release_expired_work") == 1
            assert await task == [run]
            assert await a.state(run) == "scheduled"
            await a.verb("cancel_run", tenant="t", run=run)


async def test_settle_and_cancel_agree(pair: tuple[Work, Work]) -> None:
    a, b = pair
    for settles_first in (True, False):
        worker, run = await a.worker(), await a.run()
        (held,) = await a.claim(worker)
        cancel = b.verb("cancel_run", tenant="t", run=run)
        if settles_first:
            async with holding(a):
                await a.settle(worker, said(held))
                task = await meets(a, b, cancel)
            assert await task == {"state": "succeeded", "canceled": False}
            assert await a.state(run) == "succeeded"
        else:
            async with holding(b):
                assert (await cancel)["canceled"]
                settle = await meets(b, a, a.settle(worker, said(held)))
            assert await settle == []
            assert await a.state(run) == "canceled"


async def test_two_claims_share_no_run_and_wait_for_nobody(pair: tuple[Work, Work]) -> None:
    a, b = pair
    await a.runs(10)
    async with holding(a):
        first = await a.claim(await a.worker(), 6)
        second = await b.claim(await b.worker(), 6)
    assert len({run.run for run in first + second}) == 10
    assert (len(first), len(second)) == (6, 4)


async def test_two_claims_never_exceed_the_limit_of_a_queue(pair: tuple[Work, Work]) -> None:
    a, b = pair
    await a.runs(10)
    await a.verb("limit_queue", tenant="t", queue="default", max_running=3)
    async with holding(a):
        assert len(await a.claim(await a.worker(), 2)) == 2
        assert await b.claim(await b.worker(), 6) == []
    assert len(await b.claim(await b.worker(), 6)) == 1


@pytest.mark.parametrize("verb", ["pause_queue", "limit_queue"])
async def test_no_claim_that_is_under_way_gets_past_a_pause_or_a_limit(
    pair: tuple[Work, Work], verb: str
) -> None:
    a, b = pair
    await a.runs(4)
    worker, other = await a.worker(), await a.worker()
    given: dict[str, Any] = {"max_running": 2} if verb == "limit_queue" else {}
    async with holding(a):
        assert len(await a.claim(worker, 2)) == 2
        task = await meets(a, b, b.verb(verb, tenant="t", queue="default", **given))
        assert not task.done()
    await task
    assert await a.claim(other, 9) == []
    await b.do("begin")
    await b.verb("resume_queue", tenant="t", queue="default")
    await b.verb("limit_queue", tenant="t", queue="default", max_running=None)
    claim = await meets(b, a, a.claim(other, 9))
    assert not claim.done()
    await b.do("commit")
    assert len(await claim) == 2


async def test_an_enqueue_in_a_long_transaction_stops_no_pause_and_no_limit(
    pair: tuple[Work, Work],
) -> None:
    a, b = pair
    await a.run()
    async with holding(a):
        await a.run()
        await b.verb("limit_queue", tenant="t", queue="default", max_running=1)
        await b.verb("pause_queue", tenant="t", queue="default")


async def test_a_first_enqueue_of_a_lane_in_a_long_transaction_stops_no_other(
    pair: tuple[Work, Work],
) -> None:
    a, b = pair
    await a.run(queue="known")
    async with holding(a):
        await a.run(queue="new")
        run = await b.run(queue="new")
        await b.verb("advance_lanes")
    assert run in {r.run for r in await b.claim(await b.worker("new"), 9)}


async def test_cancel_and_claim_agree(pair: tuple[Work, Work]) -> None:
    a, b = pair
    worker, run = await a.worker(), await a.run()
    async with holding(a):
        assert len(await a.claim(worker)) == 1
        task = await meets(a, b, b.verb("cancel_run", tenant="t", run=run))
    assert await task == {"state": "running", "canceled": True}
    other = await a.run()
    async with holding(b):
        await b.verb("cancel_run", tenant="t", run=other)
        assert await a.claim(worker) == []
    assert await a.claim(worker) == []
    await a.settle(worker, said(Claimed("t", run, 1, 1, 1, "", None, None, "")))


async def test_renew_and_release_agree(pair: tuple[Work, Work]) -> None:
    a, b = pair
    worker = await a.worker()
    async with holding(a):
        await db.call(a.conn, "renew_worker", worker=worker)
        assert await b.verb("release_expired_work") == 0
    await expire(a, worker)
    async with holding(b):
        await b.verb("release_expired_work")
        task = await meets(b, a, db.call(a.conn, "renew_worker", worker=worker))
    with pytest.raises(Gone):
        await task


async def test_no_blocked_run_is_forgotten_when_a_slot_is_freed_beside_an_enqueue(
    pair: tuple[Work, Work],
) -> None:
    a, b = pair
    worker = await a.worker()
    await a.run(concurrency_key="k")
    (held,) = await a.claim(worker)
    async with holding(b):
        run = await b.run(concurrency_key="k")
        assert await b.state(run) == "blocked"
        await a.settle(worker, said(held))
    await a.verb("fill_keys")
    assert [r.run for r in await a.claim(worker)] == [run]


async def test_two_fills_of_a_key_give_its_slot_once(pair: tuple[Work, Work]) -> None:
    a, b = pair
    worker = await a.worker()
    runs = [await a.run(concurrency_key="k") for _ in range(3)]
    await a.claim(worker)
    await a.do("update orchestrator.concurrency set max_running = 2")
    async with holding(a):
        assert await a.verb("fill_keys") == 1
        task = await meets(a, b, b.verb("fill_keys"))
    assert await task == 0
    assert [await a.state(run) for run in runs] == ["running", "ready", "blocked"]


async def test_settles_of_many_keys_do_not_deadlock(pair: tuple[Work, Work]) -> None:
    """One finishes a run of b and retries one of a, the other the other way round."""
    a, b = pair
    worker = await a.worker()
    held: dict[str, list[Claimed]] = {}
    for key in "ab":
        for _ in range(4):
            await a.run(concurrency_key=key, concurrency_limit=2, max_attempts=2)
        held[key] = await a.claim(worker, 2)
    tasks = [
        one.settle(worker, said(held[x][n]), said(held[y][n], "failed", delay=60))
        for one, x, y, n in ((a, "b", "a", 0), (b, "a", "b", 1))
    ]
    assert await asyncio.gather(*tasks) == [[], []]


async def test_of_sixteen_equal_enqueues_one_makes_a_run(connect: Connect) -> None:
    sessions = [Work(await connect()) for _ in range(16)]
    first = sessions[0]
    worker = await first.worker()
    for _ in range(5):
        made = await asyncio.gather(*(s.enqueue(dedupe_key="k") for s in sessions))
        assert sorted(m["decision"] for m in made) == ["created"] + ["skipped"] * 15
        assert len({m["run_id"] for m in made}) == 1
        await first.settle(worker, *map(said, await first.claim(worker, 99)))


async def test_the_second_of_two_enqueues_sees_the_run_of_the_first(
    pair: tuple[Work, Work],
) -> None:
    a, b = pair
    worker = await a.worker()
    await a.run(dedupe_key="k")
    await a.settle(worker, *map(said, await a.claim(worker)))
    async with holding(a):
        first = await a.run(dedupe_key="k")
        task = await meets(a, b, b.enqueue(dedupe_key="k"))
        assert not task.done()
    second = await task
    assert (str(second["run_id"]), second["decision"]) == (first, "skipped")


async def test_replacing_an_input_and_claiming_it_agree(pair: tuple[Work, Work]) -> None:
    a, b = pair
    worker = await a.worker()
    run = await a.run(dedupe_key="k", input=1)
    async with holding(a):
        (held,) = await a.claim(worker)
        task = await meets(a, b, b.enqueue(dedupe_key="k", input=2, on_duplicate="replace"))
    made = await task
    assert (made["decision"], held.input) == ("created", 1)
    assert str(made["run_id"]) != run


@pytest.mark.parametrize("verb", ["retry_run", "retry_where"])
async def test_two_retries_of_a_run_make_one(pair: tuple[Work, Work], verb: str) -> None:
    a, b = pair
    worker, run = await a.worker(), await a.run()
    (held,) = await a.claim(worker)
    await a.settle(worker, said(held, "failed", retry=False))
    given: dict[str, Any] = {"run": run} if verb == "retry_run" else {"dry_run": False}
    async with holding(a):
        assert len(await db.call(a.conn, verb, tenant="t", **given)) == 1
        task = await meets(a, b, db.call(b.conn, verb, tenant="t", **given))
    if verb == "retry_run":
        with pytest.raises(Conflict):
            await task
    else:
        assert await task == []


class Schedule:
    """Two workers, a reaper and people, in an order that a seed decides.

    The workers remember leases that they lost and go on writing under them: that must change nothing.
    """

    def __init__(self, sessions: list[Work], seed: int) -> None:
        self.random = random.Random(seed)
        self.sessions = sessions
        self.tenant = f"s{seed}"
        self.queue = f"q{seed}"
        self.workers: list[UUID] = []
        self.held: dict[tuple[str, int], tuple[UUID, Claimed]] = {}
        self.final: dict[str, str] = {}

    @property
    def work(self) -> Work:
        work = self.random.choice(self.sessions)
        work.tenant = self.tenant
        return work

    async def enqueue(self) -> None:
        r = self.random
        key = r.choice([None, None, "k", "l"])
        await self.work.enqueue(
            queue=self.queue, priority=r.choice([1, 50]), max_attempts=r.randint(1, 3),
            concurrency_key=key, concurrency_limit=2 if key == "l" else None, backoff="fixed",
            backoff_seconds=0.0, dedupe_key=r.choice([None, None, "d"]),
            on_duplicate=r.choice(["skip", "replace", "one-behind"]),
        )  # fmt: skip

    async def register(self) -> None:
        self.workers.append(await self.work.worker(self.queue, lease="1 hour"))

    async def exchange(self) -> None:
        """Settles some of what it believes to hold, and claims."""
        worker = self.random.choice(self.workers)
        mine = [(key, run) for key, (who, run) in self.held.items() if who == worker]
        chosen = self.random.sample(mine, min(len(mine), self.random.randint(0, 3)))
        outcomes = [self.outcome(run) for _, run in chosen]
        try:
            reply = await self.work.exchange(worker, outcomes, self.random.randint(0, 3))
        except Gone:
            self.workers.remove(worker)
            return
        for key, _ in chosen:
            del self.held[key]
        for run in reply["runs"]:
            assert (run.run, run.epoch) not in self.held, "one epoch was given twice"
            self.held[run.run, run.epoch] = (worker, run)

    def outcome(self, run: Claimed) -> dict[str, Any]:
        name = self.random.choice(["succeeded", "failed", "released", "parked", "canceled"])
        return said(run, name, waiting_for="x", error={"type": "x"})

    async def lose(self) -> None:
        """A worker goes silent; what it writes afterwards is stale."""
        worker = self.random.choice(self.workers)
        await expire(self.work, worker)
        if self.random.random() < 0.7:
            await self.work.verb("release_expired_work")

    async def write_late(self) -> None:
        work, worker = self.work, self.random.choice(self.workers)
        late = [run for who, run in self.held.values() if who != worker]
        if not late:
            return
        run = self.random.choice(late)
        step = {"tenant": run.tenant, "run": run.run, "epoch": run.epoch, "step": "a"}
        before = await work.everything()
        for verb, given in (
            ("settle_work", {"outcomes": [self.outcome(run)]}),
            ("record_steps", {"steps": [step | {"state": "succeeded"}]}),
            ("write_log", {"lines": [step]}),
        ):
            try:
                rows = await db.call(work.conn, verb, worker=worker, **given)
            except Gone:
                continue
            assert verb == "write_log" or [str(row["stale"]) for row in rows] == [run.run]
        assert await work.everything() == before, "a stale write changed something"

    async def person(self) -> None:
        work = self.work
        rows = await work.ask(
            "select id::text, state from orc.runs where tenant_id = %s", self.tenant
        )
        if not rows:
            return
        run = self.random.choice(rows)["id"]
        verb = self.random.choice(["cancel_run", "retry_run", "wake_run"])
        with suppress(Conflict, NotFound):
            await work.verb(verb, tenant=self.tenant, run=run)

    async def queues(self) -> None:
        work = self.work
        verb = self.random.choice(["pause_queue", "resume_queue", "limit_queue"])
        given = {"max_running": self.random.choice([None, 1, 3])} if verb == "limit_queue" else {}
        with suppress(NotFound):
            await work.verb(verb, tenant=self.tenant, queue=self.queue, **given)

    async def sweep(self) -> None:
        await self.work.verb(self.random.choice(["fill_keys", "advance_lanes", "purge"]))

    async def run(self, steps: int, together: bool) -> None:
        """`together`: two steps at a time, each in a session of its own."""
        await self.register()
        await self.register()
        weighted: list[tuple[Callable[[], Coroutine[Any, Any, None]], int]] = [
            (self.enqueue, 10), (self.exchange, 14), (self.lose, 2), (self.person, 5),
            (self.queues, 2), (self.sweep, 2), (self.register, 1), (self.write_late, 0 if together else 1),
        ]  # fmt: skip
        actions, weights = zip(*weighted, strict=True)
        for _ in range(steps // 2):
            if not self.workers:
                await self.register()
            pair = self.random.choices(actions, weights, k=2)
            if together and pair[0] != pair[1]:
                await asyncio.gather(*(action() for action in pair if self.workers))
            else:
                for action in pair:
                    if not self.workers:
                        await self.register()
                    await action()
            await self.look()
        await self.heal()

    async def look(self) -> None:
        rows = await self.sessions[0].ask(
            "select id, state from orc.runs where tenant_id = %s", self.tenant
        )
        states = {str(row["id"]): row["state"] for row in rows}
        assert len(states) == len(rows), "a run has two rows"
        for run, state in self.final.items():
            assert states[run] == state, "a final state changed"
        self.final = {
            run: s for run, s in states.items() if s in ("succeeded", "failed", "canceled")
        }

    async def heal(self) -> None:
        """Nothing is paused or lost any more: everything ends."""
        work = self.sessions[0]
        work.tenant = self.tenant
        await work.do(
            "update orchestrator.worker set expires_at = orchestrator.now() where ended_at is null"
        )
        if await work.ask("select from orchestrator.tenant where id = %s", self.tenant):
            await work.verb("resume_queue", tenant=self.tenant, queue=self.queue)
            await work.verb("limit_queue", tenant=self.tenant, queue=self.queue, max_running=None)
        await work.verb("release_expired_work")
        worker = await work.worker(self.queue)
        waiting = await work.ask(
            "select id from orc.waiting where waiting_for is not null and tenant_id = %s",
            self.tenant,
        )
        for row in waiting:
            await work.verb("wake_run", tenant=self.tenant, run=row["id"])
        runs: list[Claimed] = []
        for _ in range(200):
            reply = await work.exchange(worker, [said(run) for run in runs], 50)
            runs = reply["runs"]
            if not runs and not await work.one(
                "select count(*) from orchestrator.due_work where tenant_id = %s", self.tenant
            ):
                break
            await work.verb("fill_keys")
            await work.verb("advance_lanes")
        left = await work.ask(
            "select * from orc.runs where tenant_id = %s and finished_at is null", self.tenant
        )
        assert left == [], "not everything ended"
        assert await work.ask("select * from orc.check()") == []
        await work.do("delete from orchestrator.lane")


async def forget(work: Work) -> None:
    """What ended: else each look at all invariants takes longer than the one before."""
    await work.do(
        "truncate orchestrator.run, orchestrator.attempt, orchestrator.step, orchestrator.log,"
        " orchestrator.audit, orchestrator.dedupe, orchestrator.concurrency, orchestrator.worker"
    )


async def play(sessions: list[Work], seeds: range, steps: int) -> None:
    for seed in seeds:
        if seed % 100 == 0:
            await forget(sessions[0])
        try:
            await Schedule(sessions[:2], seed).run(steps, together=seed % 2 == 1)
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise


@pytest.mark.parametrize("part", range(2))
async def test_schedules_of_everything_keep_every_promise(connect: Connect, part: int) -> None:
    sessions = [Work(await connect()) for _ in range(2)]
    for session in sessions:
        await session.do("set plan_cache_mode = force_generic_plan")
    await play(sessions, range(part * 150, part * 150 + 150), 40)


@pytest.mark.soak
async def test_ten_thousand_schedules_keep_every_promise(connect: Connect) -> None:
    sessions = [Work(await connect()) for _ in range(2)]
    await play(sessions, range(1000, 11000), 40)
