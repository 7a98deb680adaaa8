"""The life of a run, verb by verb: what each promises, and what it refuses."""

# ruff: noqa: E501
from __future__ import annotations

import itertools
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import psycopg
import pytest
from conftest import Clock, Connect
from psycopg.types.json import Jsonb

from orchestrator import db
from orchestrator.errors import Conflict, Gone, Invalid, NotFound

NOOP = [{"id": "a", "uses": "set", "with": {}}]
SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)


class Claimed(NamedTuple):
    """A run as a claim hands it out."""

    tenant: str
    run: str
    epoch: int
    attempt: int
    max_attempts: int
    pipeline: str
    timeout: float | None
    input: Any
    due_at: str
    event: Any = None
    origin: Any = None


def said(run: Claimed, outcome: str = "succeeded", **more: Any) -> dict[str, Any]:
    return {
        "tenant": run.tenant,
        "run": run.run,
        "epoch": run.epoch,
        "outcome": outcome,
        **more,
    }


class Work:
    """One session and what it says."""

    def __init__(self, conn: db.Connection, tenant: str = "t") -> None:
        self.conn = conn
        self.tenant = tenant

    async def ask(self, text: str, *values: Any) -> list[db.Row]:
        return await (await self.conn.execute(text.encode(), values or None)).fetchall()

    async def one(self, text: str, *values: Any) -> Any:
        """The only value of the only row."""
        (row,) = await self.ask(text, *values)
        (value,) = row.values()
        return value

    async def do(self, text: str, *values: Any) -> int:
        return (await self.conn.execute(text.encode(), values or None)).rowcount

    async def enqueue(self, **given: Any) -> db.Row:
        return await db.call_one(
            self.conn, "enqueue", **{"tenant": self.tenant, "pipeline": NOOP, **given}
        )

    async def run(self, **given: Any) -> str:
        return str((await self.enqueue(**given))["run_id"])

    async def runs(self, count: int, tenant: str | None = None, **each: Any) -> list[str]:
        items = [dict(each) for _ in range(count)]
        rows = await db.call(
            self.conn, "enqueue_many", tenant=tenant or self.tenant, items=items, pipeline=NOOP
        )
        return [str(row["run_id"]) for row in rows]

    async def worker(self, *queues: str, lease: str = "30 seconds") -> UUID:
        row = await db.call_one(
            self.conn, "register_worker", queues=list(queues or ["default"]), slots=100, lease=lease
        )
        worker: UUID = row["worker"]
        return worker

    async def exchange(
        self,
        worker: UUID,
        outcomes: list[dict[str, Any]] | None = None,
        want: int = 1,
        after: Any = None,
    ) -> db.Row:
        row = await db.call_one(
            self.conn,
            "exchange_work",
            worker=worker,
            outcomes=outcomes or None,
            want=want,
            after_tenant=after,
        )
        return {**row, "runs": [Claimed(*run) for run in row["runs"] or ()]}

    async def claim(self, worker: UUID, want: int = 1, after: Any = None) -> list[Claimed]:
        runs: list[Claimed] = (await self.exchange(worker, None, want, after))["runs"]
        return runs

    async def settle(self, worker: UUID, *outcomes: dict[str, Any]) -> list[str]:
        rows = await db.call(self.conn, "settle_work", worker=worker, outcomes=list(outcomes))
        return [str(row["stale"]) for row in rows]

    async def state(self, run: str) -> str:
        return str((await self.row(run))["state"])

    async def row(self, run: str) -> db.Row:
        (row,) = await self.ask("select * from orc.runs where id = %s", run)
        return row

    async def verb(self, name: str, **given: Any) -> Any:
        (row,) = await db.call(self.conn, name, **given)
        return next(iter(row.values())) if len(row) == 1 else row

    async def everything(self) -> dict[str, Any]:
        """All facts, so that two looks can be compared."""
        names = await self.ask(
            "select c.oid::regclass::text as name from pg_class c where c.relkind in ('r', 'p')"
            " and c.relnamespace = 'orchestrator'::regnamespace and not c.relispartition"
        )
        return {
            n["name"]: await self.one(
                f"select md5(coalesce(string_agg(t::text, '|' order by t::text), '')) from {n['name']} t"
            )
            for n in names
        }


@pytest.fixture
def work(conn: db.Connection) -> Work:
    return Work(conn)


async def now(work: Work) -> datetime:
    instant: datetime = await work.one("select orchestrator.now()")
    return instant


# Enqueue


async def test_an_enqueued_run_is_ready_and_has_what_was_said(work: Work) -> None:
    made = await work.enqueue(
        input={"x": 1}, queue="q", priority=7, max_attempts=3, labels={"a": 1}
    )
    assert made["decision"] == "created"
    row = await work.row(str(made["run_id"]))
    assert (row["state"], row["queue"], row["priority"], row["max_attempts"]) == (
        "ready",
        "q",
        7,
        3,
    )
    assert (row["input"], row["labels"], row["attempt"]) == ({"x": 1}, {"a": 1}, 0)


async def test_equal_pipelines_are_stored_once_and_can_be_named_by_id(work: Work) -> None:
    a, b = await work.run(), await work.run(pipeline={"pipeline": NOOP})
    id = await work.one("select id::text from orchestrator.pipeline")
    c = await work.one("select run_id from orc.enqueue('t', to_jsonb(%s::text))", id)
    assert {str((await work.row(str(run)))["pipeline_id"]) for run in (a, b, c)} == {id}
    with pytest.raises(NotFound, match="no such pipeline"):
        await work.ask("select orc.enqueue('other', to_jsonb(%s::text))", id)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"tenant": None}, "needs a tenant"),
    ({"tenant": ""}, "needs a tenant"),
    ({"pipeline": {"steps": []}}, "needs a tenant and a pipeline"),
    ({"pipeline": {"pipeline": []}}, "needs a tenant and a pipeline"),
    ({"pipeline": None}, "needs a tenant and a pipeline"),
    ({"queue": ""}, "queue has a name"),
    ({"queue": "q" * 101}, "queue has a name"),
    ({"priority": 101}, "priority is 0"),
    ({"priority": -1}, "priority is 0"),
    ({"max_attempts": 0}, "1 to 1000 attempts"),
    ({"concurrency_key": "k", "concurrency_limit": 0}, "at least 1 slot"),
    ({"concurrency_key": "k" * 401}, "1 to 400"),
    ({"dedupe_key": ""}, "1 to 400"),
    ({"dedupe_key": "k", "dedupe_window": "-1 second"}, "window"),
    ({"dedupe_key": "k", "dedupe_window": None}, "window"),
    ({"on_duplicate": "explode"}, "on_duplicate is"),
    ({"backoff": "sometimes"}, "backoff is"),
    ({"backoff_seconds": -1.0}, "Seconds"),
    ({"backoff_limit_seconds": "NaN"}, "Seconds"),
    ({"timeout_seconds": "Infinity"}, "Seconds"),
    ({"input": {"x": "y" * 1_100_000}}, "too large"),
    ({"input": {"x": 10**309}}, "too large"),
    ({"labels": {"x": "y" * 11_000}}, "too large"),
]


async def test_arguments_that_make_no_sense_are_refused_in_words(work: Work) -> None:
    before = await work.everything()
    for given, words in REFUSED:
        with pytest.raises(Invalid, match=words):
            await work.enqueue(**given)
    assert await work.everything() == before


async def test_an_unknown_argument_is_an_error_of_postgres(work: Work) -> None:
    with pytest.raises(psycopg.errors.UndefinedFunction):
        await work.enqueue(prioritty=3)


async def test_a_run_of_the_future_is_scheduled_and_one_of_the_past_is_ready(work: Work) -> None:
    instant = await now(work)
    assert await work.state(await work.run(due_at=instant + MINUTE)) == "scheduled"
    assert await work.state(await work.run(due_at=instant - MINUTE)) == "ready"
    assert await work.claim(await work.worker(), 5)


async def test_a_dedupe_key_stands_for_its_live_run_and_with_a_window_for_an_ended_one(
    work: Work, clock: Clock
) -> None:
    await clock.set(datetime.now(UTC))
    worker = await work.worker(lease="1 hour")
    first = await work.enqueue(dedupe_key="k")
    again = await work.enqueue(dedupe_key="k")
    assert (again["run_id"], again["decision"]) == (first["run_id"], "skipped")
    assert "ready" in again["reason"]
    await work.settle(worker, *map(said, await work.claim(worker)))
    second = await work.enqueue(dedupe_key="k", dedupe_window="1 minute")
    assert second["decision"] == "created"
    await work.settle(worker, *map(said, await work.claim(worker)))
    await clock.advance(59 * SECOND)
    again = await work.enqueue(dedupe_key="k")
    assert (again["decision"], again["reason"]) == ("skipped", "a run of this key has ended")
    await clock.advance(2 * SECOND)
    assert (await work.enqueue(dedupe_key="k"))["decision"] == "created"


async def test_reject_refuses_a_second_run_of_a_key(work: Work) -> None:
    first = await work.run(dedupe_key="k")
    before = await work.everything()
    with pytest.raises(Conflict) as refusal:
        await work.enqueue(dedupe_key="k", on_duplicate="reject")
    assert first in str(refusal.value.diag.message_detail)
    assert await work.everything() == before


@pytest.mark.parametrize(
    ("policy", "decision"), [("replace", "replaced"), ("one-behind", "merged")]
)
async def test_a_run_that_has_not_begun_gets_the_new_input(
    work: Work, policy: str, decision: str
) -> None:
    first = await work.run(dedupe_key="k", input={"n": 1})
    made = await work.enqueue(dedupe_key="k", input={"n": 2}, on_duplicate=policy)
    assert (str(made["run_id"]), made["decision"]) == (first, decision)
    assert (await work.row(first))["input"] == {"n": 2}


async def test_one_behind_merges_into_the_run_behind_the_running_one(work: Work) -> None:
    worker = await work.worker()
    first = await work.run(dedupe_key="k")
    await work.claim(worker)
    behind = await work.enqueue(dedupe_key="k", on_duplicate="one-behind", input={"n": 1})
    assert behind["decision"] == "created" and str(behind["run_id"]) != first
    for n in (2, 3):
        again = await work.enqueue(dedupe_key="k", on_duplicate="one-behind", input={"n": n})
        assert (again["decision"], again["run_id"]) == ("merged", behind["run_id"])
    assert (await work.row(str(behind["run_id"])))["input"] == {"n": 3}


@pytest.mark.parametrize("policy", ["replace", "one-behind"])
async def test_the_input_of_a_run_that_has_begun_is_never_replaced(work: Work, policy: str) -> None:
    """Released, parked and retried runs have recorded steps of their old input."""
    worker = await work.worker()
    for n, outcome in enumerate(["released", "failed", "parked"]):
        key = f"{policy}-{outcome}"
        run = await work.run(dedupe_key=key, input={"n": 1}, max_attempts=2, queue=f"q{n}")
        other = await work.worker(f"q{n}")
        (held,) = await work.claim(other)
        await work.settle(other, said(held, outcome, waiting_for="you", delay=0))
        if outcome == "parked":
            await work.verb("wake_run", tenant="t", run=run)
        made = await work.enqueue(dedupe_key=key, input={"n": 2}, on_duplicate=policy)
        assert made["decision"] == "created" and str(made["run_id"]) != run
        assert (await work.row(run))["input"] == {"n": 1}
    assert worker


async def test_a_new_window_begins_with_the_run_that_took_the_key_over(
    work: Work, clock: Clock
) -> None:
    await clock.set(datetime.now(UTC))
    worker = await work.worker(lease="1 hour")
    await work.run(dedupe_key="k", dedupe_window="1 minute")
    await work.claim(worker)
    await clock.advance(50 * SECOND)
    taken = await work.enqueue(dedupe_key="k", dedupe_window="1 minute", on_duplicate="replace")
    await work.settle(worker, *map(said, await work.claim(worker)))
    await clock.advance(50 * SECOND)
    again = await work.enqueue(dedupe_key="k", dedupe_window="1 minute")
    assert (again["run_id"], again["decision"]) == (taken["run_id"], "skipped")


async def test_tenants_share_no_keys(work: Work) -> None:
    other = Work(work.conn, "other")
    given = {"dedupe_key": "k", "concurrency_key": "c"}
    a, b = await work.enqueue(**given), await other.enqueue(**given)
    assert (a["decision"], b["decision"]) == ("created", "created")
    assert {run.tenant for run in await work.claim(await work.worker(), 10)} == {"t", "other"}


async def test_a_trigger_in_somebodys_transaction_enqueues_and_a_rollback_leaves_nothing(
    work: Work,
) -> None:
    await work.do("drop role if exists somebody; create role somebody in role orc_api")
    await work.do(
        "create schema shop authorization somebody; set role somebody; create table shop.sale (id int);"
        " create function shop.sold() returns trigger language plpgsql as $$ begin"
        ' perform orc.enqueue(\'t\', \'[{"id": "a", "uses": "set"}]\', input => to_jsonb(new),'
        " dedupe_key => 'sale', on_duplicate => 'reject', concurrency_key => 'c'); return new; end $$;"
        " create trigger sold after insert on shop.sale for each row execute function shop.sold();"
        " reset role"
    )
    before = await work.everything()
    await work.do("begin; set local role somebody; insert into shop.sale values (1); rollback")
    assert await work.everything() == before
    await work.do("begin; set local role somebody; insert into shop.sale values (2); commit")
    (run,) = await work.claim(await work.worker(), 5)
    assert run.input == {"id": 2}
    with pytest.raises(Conflict):
        await work.do("insert into shop.sale values (3)")
    await work.do("drop schema shop cascade; drop role somebody")


# Enqueue many


async def test_many_answers_come_in_the_order_of_their_items(work: Work) -> None:
    other = [{"id": "b", "uses": "set", "with": {}}]
    items: list[dict[str, Any]] = [
        {
            "input": n,
            "priority": n % 7,
            "queue": f"q{n % 3}",
            **({"pipeline": other} if n % 2 else {}),
        }
        for n in range(500)
    ]
    rows = await db.call(work.conn, "enqueue_many", tenant="t", items=items, pipeline=NOOP)
    inputs = {r["run_id"]: r for r in await work.ask("select * from orchestrator.due_work")}
    assert [inputs[row["run_id"]]["input"] for row in rows] == list(range(500))
    assert [row["run_id"] for row in rows] == sorted(row["run_id"] for row in rows)
    assert {inputs[row["run_id"]]["queue"] for row in rows} == {"q0", "q1", "q2"}
    assert len({inputs[row["run_id"]]["pipeline_id"] for row in rows}) == 2


async def test_ids_of_many_are_new_and_of_their_time_and_sort_after_earlier_ones(
    work: Work,
) -> None:
    before = datetime.now(UTC) - timedelta(seconds=1)
    ids = [id for _ in range(5) for id in await work.runs(300)]
    assert len(set(ids)) == 1500
    assert ids == sorted(ids)
    assert {id[14] for id in ids} == {"7"} and {id[19] for id in ids} <= set("89ab")
    late = await work.run()
    assert late > ids[-1]
    (row,) = await work.ask("select orchestrator.id_time(%s) as at", ids[-1])
    assert before < row["at"] < datetime.now(UTC) + timedelta(seconds=1)


async def test_many_meet_each_other_by_their_keys(work: Work) -> None:
    items = [
        {"dedupe_key": "d", "input": 1},
        {"dedupe_key": "d", "input": 2, "on_duplicate": "replace"},
        {"concurrency_key": "c"},
        {"concurrency_key": "c"},
        {"input": 3, "due_at": "2100-01-01"},
    ]
    rows = await db.call(work.conn, "enqueue_many", tenant="t", items=items, pipeline=NOOP)
    assert [row["decision"] for row in rows] == [
        "created",
        "replaced",
        "created",
        "created",
        "created",
    ]
    states = [await work.state(str(row["run_id"])) for row in rows]
    assert states == ["ready", "ready", "scheduled", "blocked", "scheduled"]
    assert rows[0]["run_id"] == rows[1]["run_id"]


ITEMS: list[tuple[Any, str]] = [
    ({"a": 1}, "list of objects"),
    ([{"prioritty": 1, "input": 2}], "prioritty"),
    ([{"input": 1}, 3], "item 1 is not an object"),
    ([{"input": "x" * 1_200_000}], "item 0 is too large"),
    ([{"input": {"x": 10**309}}], "numbers"),
]


async def test_items_that_make_no_sense_are_refused_in_words(work: Work) -> None:
    for items, words in ITEMS:
        with pytest.raises(Invalid) as refusal:
            await db.call(work.conn, "enqueue_many", tenant="t", items=Jsonb(items), pipeline=NOOP)
        assert words in f"{refusal.value} {refusal.value.diag.message_detail}"


async def test_items_need_a_pipeline_of_their_own_or_one_for_all(work: Work) -> None:
    with pytest.raises(Invalid) as refusal:
        await db.call(work.conn, "enqueue_many", tenant="t", items=[{"input": 1}])
    assert "item 0 has no pipeline" in str(refusal.value.diag.message_detail)


VIOLATIONS: list[tuple[dict[str, Any], str]] = [
    ({"priority": 101}, "priority_is_0_to_100"),
    ({"max_attempts": 0}, "attempts_are_bounded"),
    ({"backoff": "sometimes"}, "backoff_is_known"),
    ({"backoff_seconds": -1}, "seconds_are_finite"),
    ({"queue": ""}, "queue_has_a_name"),
]


async def test_one_bad_item_refuses_all_by_the_name_of_a_constraint(work: Work) -> None:
    for item, constraint in VIOLATIONS:
        items = [{"input": 1}, item]
        with pytest.raises(psycopg.errors.CheckViolation) as refusal:
            await db.call(work.conn, "enqueue_many", tenant="t", items=items, pipeline=NOOP)
        assert refusal.value.diag.constraint_name == constraint
    assert await work.one("select count(*) from orchestrator.due_work") == 0


async def test_no_items_make_no_runs(work: Work) -> None:
    assert await work.ask("select * from orc.enqueue_many('t', '[]')") == []


# Claim


async def test_a_claim_goes_by_priority_and_then_by_due_time(work: Work) -> None:
    instant = await now(work)
    expected = []
    for priority, age in itertools.product([50, 0, 99], [1, 3, 2]):
        run = await work.run(priority=priority, due_at=instant - age * SECOND)
        expected.append((priority, -age, run))
    worker = await work.worker()
    order = [run for *_, run in sorted(expected)]
    assert [run.run for run in await work.claim(worker, 4)] == order[:4]
    rows = await db.call(work.conn, "claim_work", worker=worker, want=9)
    assert [str(row["run_id"]) for row in rows] == order[4:]
    assert {(row["state"], row["epoch"], row["attempt"]) for row in rows} == {("running", 1, 1)}


async def test_a_claim_takes_only_from_its_workers_queues(work: Work) -> None:
    await work.run(queue="a")
    b = await work.run(queue="b")
    assert [run.run for run in await work.claim(await work.worker("b", "c"), 9)] == [b]


async def test_a_claim_never_takes_more_than_it_wants(work: Work) -> None:
    for tenant in "abc":
        await work.runs(10, tenant)
    worker = await work.worker()
    for want in (1, 2, 7, 0):
        assert len(await work.claim(worker, want)) == want
    assert len(await work.claim(worker, 100)) == 20


async def test_tenants_are_served_by_weight(work: Work) -> None:
    await work.runs(4000, "light")
    await work.runs(4000, "heavy")
    await work.verb("weigh_tenant", tenant="heavy", weight=3)
    worker = await work.worker()
    for want, rounds in ((1, 400), (7, 200), (50, 40)):
        served = Counter(
            [run.tenant for _ in range(rounds) for run in await work.claim(worker, want)]
        )
        share = served["heavy"] / served.total()
        bound = 0.05 * 0.75 if want > 1 else 0.1  # a single one is a weighted draw
        assert abs(share - 0.75) <= bound, (want, served)


async def test_an_idle_share_goes_to_whoever_has_work(work: Work) -> None:
    await work.runs(3, "few")
    await work.runs(97, "many")
    await work.verb("weigh_tenant", tenant="few", weight=1000)
    await work.runs(1, "none")
    worker = await work.worker()
    assert len(await work.claim(worker, 100)) == 100
    assert len(await work.claim(worker, 100)) == 1


async def test_one_run_is_found_beside_many_idle_lanes(work: Work) -> None:
    for tenant in "abcdefgh":
        await work.runs(1, tenant)
    worker = await work.worker()
    await work.claim(worker, 100)
    for tenant in "hda":
        await work.runs(1, tenant)
        assert [run.tenant for run in await work.claim(worker, 1)] == [tenant]


async def test_ten_runs_beside_a_hundred_thousand_are_in_the_first_claims(work: Work) -> None:
    await work.runs(1, "elephant")
    await work.do(
        "insert into orchestrator.due_work (tenant_id, run_id, pipeline_id, due_at, state)"
        " select tenant_id, orchestrator.new_id(), pipeline_id, due_at - interval '1 second', 'ready'"
        " from orchestrator.due_work, generate_series(1, 100000)"
    )
    await work.runs(10, "mouse")
    worker = await work.worker()
    served = Counter([run.tenant for _ in range(2) for run in await work.claim(worker, 20)])
    assert served == {"mouse": 10, "elephant": 30}
    await work.do("truncate orchestrator.due_work")


async def test_every_tenant_of_many_gets_its_turn_even_when_some_are_paused(work: Work) -> None:
    for n in range(150):
        await work.runs(3, f"t{n:03}")
    for n in range(0, 150, 7):
        await work.verb("pause_queue", tenant=f"t{n:03}", queue="default")
    worker, after, served = await work.worker(), None, Counter[str]()
    for _ in range(12):
        reply = await work.exchange(worker, None, 64, after)
        after = reply["next_tenant"]
        served.update(run.tenant for run in reply["runs"])
    assert set(served) == {f"t{n:03}" for n in range(150) if n % 7}


async def test_a_paused_queue_gives_nothing_until_it_is_resumed(work: Work) -> None:
    run = await work.run(queue="q")
    other = await work.run(queue="r")
    await work.verb("pause_queue", tenant="t", queue="q")
    worker = await work.worker("q", "r")
    assert [r.run for r in await work.claim(worker, 9)] == [other]
    (row,) = await work.ask("select * from orc.queues where queue = 'q'")
    assert row["ready"] == 1 and row["paused_at"] and row["paused_by"]
    await work.verb("resume_queue", tenant="t", queue="q")
    assert [r.run for r in await work.claim(worker, 9)] == [run]


async def test_a_limited_queue_never_runs_more_than_its_limit(work: Work) -> None:
    await work.runs(20, queue="q", priority=1)
    await work.runs(20, queue="q", priority=2)
    await work.runs(5, queue="free")
    await work.verb("limit_queue", tenant="t", queue="q", max_running=3)
    worker = await work.worker("q", "free")
    runs = await work.claim(worker, 100)
    assert len(runs) == 8
    assert await work.claim(worker, 100) == []
    limited = [run for run in runs if (await work.row(run.run))["queue"] == "q"]
    assert len((await work.exchange(worker, [said(limited[0])], 10))["runs"]) == 1
    await work.verb("limit_queue", tenant="t", queue="q", max_running=2)  # what runs goes on
    assert await work.claim(worker, 10) == []
    await work.verb("limit_queue", tenant="t", queue="q", max_running=0)
    await work.settle(worker, *[said(run) for run in limited[1:]])
    assert await work.claim(worker, 10) == []
    await work.verb("limit_queue", tenant="t", queue="q", max_running=None)
    assert len(await work.claim(worker, 100)) == 36


# Low-water marks


async def test_a_row_that_commits_late_is_found_by_the_next_look(
    work: Work, connect: Connect
) -> None:
    late, worker = Work(await connect()), await work.worker()
    await work.run()
    await late.do("begin")
    run = await late.run()
    await late.do("update orchestrator.due_work set due_at = due_at - interval '1 minute'"
                  " where run_id = %s", run)  # fmt: skip
    await work.runs(3)
    await work.verb("advance_lanes")
    assert len(await work.claim(worker, 9)) == 4
    await late.do("commit")
    assert await work.claim(worker, 9) == []
    assert await work.verb("advance_lanes") == 1
    assert [r.run for r in await work.claim(worker, 9)] == [run]


async def test_rows_that_become_ready_below_the_mark_are_claimed_at_once(
    work: Work, clock: Clock
) -> None:
    await clock.set(datetime.now(UTC) - 10 * MINUTE)
    worker = await work.worker(lease="1 hour")
    keyed = await work.run(concurrency_key="k")
    blocked = await work.run(concurrency_key="k")
    retried = await work.run(max_attempts=2, backoff="fixed")
    later = await work.run(due_at=await now(work) + SECOND)
    held = {run.run: run for run in await work.claim(worker, 9)}
    assert set(held) == {keyed, retried}
    released = await work.run()
    held |= {run.run: run for run in await work.claim(worker, 9)}
    await work.settle(worker, said(held[retried], "failed"))
    await clock.advance(9 * MINUTE)
    await work.verb("advance_lanes")
    await clock.advance(5 * SECOND)
    await work.verb("advance_lanes")
    mark = await work.one("select low_water from orchestrator.lane")
    assert mark == await now(work) - 2 * SECOND
    outcomes = [said(held[keyed]), said(held[released], "released")]
    got = {run.run for run in (await work.exchange(worker, outcomes, 9))["runs"]}
    assert got == {blocked, released, retried, later}
    past = await work.run(due_at=await now(work) - 5 * MINUTE)
    (row,) = await db.call(work.conn, "enqueue_many", tenant="t", pipeline=NOOP,
                           items=[{"due_at": (await now(work) - 5 * MINUTE).isoformat()}])  # fmt: skip
    assert {run.run for run in await work.claim(worker, 9)} == {past, str(row["run_id"])}


async def test_an_idle_lane_is_retired_after_a_minute_and_listed_again_by_an_enqueue(
    work: Work, clock: Clock
) -> None:
    await clock.set(datetime.now(UTC))
    worker = await work.worker(lease="1 hour")
    await work.run()
    (held,) = await work.claim(worker)
    for _ in range(9):
        await work.verb("advance_lanes")
        await clock.advance(10 * SECOND)
    assert await work.one("select count(*) from orchestrator.lane") == 0
    await work.settle(worker, said(held, "released"))
    assert len(await work.claim(worker)) == 1
    for _ in range(9):
        await work.verb("advance_lanes")
        await clock.advance(10 * SECOND)
    await work.runs(2)
    assert len(await work.claim(worker, 2)) == 2


@pytest.mark.parametrize("how", ["deleted", "never listed"])
async def test_a_lane_that_nobody_listed_is_listed_by_housekeeping(work: Work, how: str) -> None:
    await work.run(queue=how)
    await work.do("delete from orchestrator.lane")
    assert await work.claim(await work.worker(how)) == []
    assert await work.verb("advance_lanes") == 1
    assert len(await work.claim(await work.worker(how))) == 1


# Time: scheduled, retried, parked


async def test_scheduled_runs_are_claimed_when_they_are_due(work: Work, clock: Clock) -> None:
    await clock.set(datetime.now(UTC))
    worker = await work.worker(lease="1 hour")
    run = await work.run(due_at=await now(work) + MINUTE)
    await clock.advance(59 * SECOND)
    assert await work.claim(worker) == []
    await clock.advance(SECOND)
    assert [r.run for r in await work.claim(worker)] == [run]


BACKOFFS: list[tuple[str | None, list[tuple[int, int]]]] = [
    ("fixed", [(2, 2), (2, 2), (2, 2), (2, 2)]),
    ("linear", [(2, 2), (4, 4), (6, 6), (8, 8)]),
    ("exponential", [(2, 2), (4, 4), (8, 8), (10, 10)]),
    ("exponential_jitter", [(1, 2), (2, 4), (4, 8), (8, 10)]),
    (None, [(1, 2), (2, 4), (4, 8), (8, 10)]),
]


async def test_retries_wait_by_their_backoff_and_end_with_the_attempts(
    work: Work, clock: Clock
) -> None:
    await clock.set(datetime.now(UTC))
    worker = await work.worker(lease="1 hour")
    for strategy, bounds in BACKOFFS:
        run = await work.run(
            max_attempts=5, backoff=strategy, backoff_seconds=2.0, backoff_limit_seconds=10.0
        )
        for attempt, (least, most) in enumerate(bounds, 1):
            (held,) = await work.claim(worker)
            assert (held.attempt, held.epoch) == (attempt, attempt)
            await work.settle(worker, said(held, "failed", error={"type": "x", "message": "m"}))
            row = await work.row(run)
            assert row["state"] == "scheduled"
            delay = (row["due_at"] - await now(work)).total_seconds()
            assert least - 0.001 <= delay <= most + 0.001
            await clock.set(row["due_at"])
        (held,) = await work.claim(worker)
        await work.settle(worker, said(held, "failed", error={"type": "x", "message": "m"}))
        row = await work.row(run)
        assert (row["state"], row["attempt"], row["error"]["type"]) == ("failed", 5, "x")
        outcomes = await work.ask(
            "select outcome, attempt from orc.attempts where run_id = %s order by epoch", run
        )
        assert [o["outcome"] for o in outcomes] == ["retried"] * 4 + ["failed"]


async def test_a_retry_may_say_its_delay(work: Work, clock: Clock) -> None:
    await clock.set(datetime.now(UTC))
    worker = await work.worker()
    for delay, waits in ((7.5, 7.5), (0, 0), (-3, 0), (1e300, 1e8)):
        run = await work.run(max_attempts=2, priority=0)
        (held,) = await work.claim(worker)
        await work.settle(worker, said(held, "failed", delay=delay))
        waited = (await work.row(run))["due_at"] - await now(work)
        assert waited == timedelta(seconds=waits)
        await work.verb("cancel_run", tenant="t", run=run)


async def test_a_failure_that_cannot_get_better_is_final(work: Work) -> None:
    worker, run = await work.worker(), await work.run(max_attempts=9)
    (held,) = await work.claim(worker)
    await work.settle(worker, said(held, "failed", retry=False))
    row = await work.row(run)
    assert (row["state"], row["attempt"], row["error"]) == ("failed", 1, {"type": "unknown"})


async def test_a_release_gives_the_run_back_and_counts_no_attempt(work: Work) -> None:
    worker, run = await work.worker(), await work.run(max_attempts=1)
    for epoch in (1, 2, 3):
        (held,) = await work.claim(worker)
        assert (held.epoch, held.attempt) == (epoch, 1)
        await work.settle(worker, said(held, "released"))
        assert ((await work.row(run))["state"], (await work.row(run))["attempt"]) == ("ready", 0)


async def test_a_parked_run_goes_on_when_it_is_woken(work: Work) -> None:
    worker, run = await work.worker(), await work.run()
    (held,) = await work.claim(worker)
    await work.verb("park_run", worker=worker, tenant="t", run=run, epoch=1, waiting_for="approval")
    assert await work.ask("select id::text, waiting_for from orc.waiting") == [
        {"id": run, "waiting_for": "approval"}
    ]
    assert await work.claim(worker) == []
    assert await work.settle(worker, said(held)) == []  # the parking ended that claim
    assert await work.state(run) == "waiting"
    assert await work.verb("wake_run", tenant="other", run=run) is False
    assert await work.verb("wake_run", tenant="t", run=run) is True
    assert await work.verb("wake_run", tenant="t", run=run) is False
    (again,) = await work.claim(worker)
    assert (again.epoch, again.attempt) == (2, 1)
    assert await work.settle(worker, said(again)) == []


async def test_a_wait_that_is_over_goes_on(work: Work, clock: Clock) -> None:
    await clock.set(datetime.now(UTC))
    worker = await work.worker(lease="1 hour")
    await work.run(concurrency_key="k")
    other = await work.run(concurrency_key="k")
    (held,) = await work.claim(worker, 9)
    until = (await now(work) + MINUTE).isoformat()
    parked = said(held, "parked", waiting_for="event x", until=until)
    (next_one,) = (await work.exchange(worker, [parked], 9))["runs"]
    assert next_one.run == other  # a parked run holds no slot
    await clock.advance(MINUTE)
    assert (await work.exchange(worker, None, 9))["runs"] == []
    assert await work.state(held.run) == "blocked"
    (again,) = (await work.exchange(worker, [said(next_one)], 9))["runs"]
    assert again.run == held.run


# Concurrency keys


async def test_a_key_lets_as_many_run_as_its_limit_in_claim_order(work: Work) -> None:
    worker = await work.worker()
    given = {"concurrency_key": "k", "concurrency_limit": 2}
    runs = [await work.run(priority=p, **given) for p in (50, 50, 50, 10)]
    assert [await work.state(run) for run in runs] == [
        "scheduled",
        "scheduled",
        "blocked",
        "blocked",
    ]
    first = await work.claim(worker, 9)
    assert {run.run for run in first} == {runs[3], runs[0]}
    second = (await work.exchange(worker, [said(first[0])], 9))["runs"]
    assert [run.run for run in second] == [runs[1]]
    await work.run(**given | {"concurrency_limit": 1})  # lower: who has a slot keeps it
    assert (await work.exchange(worker, [said(first[1])], 9))["runs"] == []
    third = (await work.exchange(worker, [said(second[0])], 9))["runs"]
    assert [run.run for run in third] == [runs[2]]


async def test_a_free_slot_that_nobody_noticed_is_given_by_the_sweep(work: Work) -> None:
    worker, run = await work.worker(), await work.run(concurrency_key="k")
    other = await work.run(concurrency_key="k")
    await work.do("delete from orchestrator.due_work where run_id = %s", run)
    assert await work.claim(worker) == []
    assert await work.verb("fill_keys") == 1
    assert [r.run for r in await work.claim(worker)] == [other]
    assert await work.verb("fill_keys") == 0


# Cancel


@pytest.mark.parametrize("state", ["ready", "scheduled", "blocked", "waiting", "retrying"])
async def test_a_run_that_is_not_running_is_canceled_at_once(work: Work, state: str) -> None:
    worker = await work.worker()
    if state == "blocked":
        await work.run(concurrency_key="k")
    run = await work.run(
        concurrency_key="k" if state == "blocked" else None,
        due_at=await now(work) + MINUTE if state == "scheduled" else None,
        max_attempts=2,
    )
    if state in ("waiting", "retrying"):
        (held,) = await work.claim(worker)
        await work.settle(worker, said(held, "parked" if state == "waiting" else "failed"))
    answer = await work.verb("cancel_run", tenant="t", run=run, why="changed my mind")
    assert answer == {"state": "canceled", "canceled": True}
    row = await work.row(run)
    assert (row["state"], row["finished_at"] is not None) == ("canceled", True)
    assert run not in {r.run for r in await work.claim(worker, 9)}
    assert await work.verb("cancel_run", tenant="t", run=run) == {
        "state": "canceled",
        "canceled": False,
    }
    outcomes = [
        r["outcome"]
        for r in await work.ask("select outcome from orc.attempts where run_id = %s", run)
    ]
    assert outcomes == {"waiting": ["parked"], "retrying": ["retried"]}.get(state, [])
    (line,) = await work.ask("select * from orchestrator.audit where action = 'cancel_run'")
    assert line["subject"] == run and line["details"]["why"] == "changed my mind"


async def test_a_running_run_that_was_canceled_ends_as_canceled_whatever_it_says(
    work: Work,
) -> None:
    worker = await work.worker()
    for outcome in ("succeeded", "failed", "released", "parked", "canceled"):
        run = await work.run(max_attempts=5)
        (held,) = await work.claim(worker)
        answer = await work.verb("cancel_run", tenant="t", run=run)
        assert answer == {"state": "running", "canceled": True}
        told = (await db.call_one(work.conn, "renew_worker", worker=worker))["canceled"]
        assert told == [UUID(run)]
        await work.settle(worker, said(held, outcome))
        assert await work.state(run) == "canceled"
        (attempt,) = await work.ask("select * from orc.attempts where run_id = %s", run)
        assert attempt["outcome"] == "canceled"


async def test_canceling_the_holder_of_a_key_lets_the_next_one_go(work: Work) -> None:
    worker = await work.worker()
    first, second = [await work.run(concurrency_key="k") for _ in range(2)]
    (held,) = await work.claim(worker)
    await work.settle(worker, said(held, "released"))
    await work.verb("cancel_run", tenant="t", run=first)
    assert [r.run for r in await work.claim(worker, 9)] == [second]


async def test_what_is_not_there_is_not_found(work: Work) -> None:
    run = await work.run()
    nobody = str(uuid4())
    for verb in ("cancel_run", "retry_run"):
        with pytest.raises(NotFound):
            await work.verb(verb, tenant="t", run=nobody)
        with pytest.raises(NotFound):
            await work.verb(verb, tenant="other", run=run)
    for verb, given in (("pause_queue", {}), ("limit_queue", {"max_running": 1})):
        with pytest.raises(NotFound):
            await work.verb(verb, tenant="nobody", queue="q", **given)
    with pytest.raises(NotFound):
        await work.verb("weigh_tenant", tenant="nobody", weight=1)
    with pytest.raises(NotFound):
        await db.call(work.conn, "why", run=nobody)


# Retry


async def test_a_retry_is_a_new_run_with_the_settings_of_the_old_one(work: Work) -> None:
    worker = await work.worker()
    settings = {"max_attempts": 3, "backoff": "linear", "backoff_seconds": 9.0, "timeout_seconds": 5.0,
                "backoff_limit_seconds": 99.0, "priority": 3, "labels": {"a": 1}, "kind": "task",
                "concurrency_key": "k", "input": {"x": 1}}  # fmt: skip
    run = await work.run(**settings)
    with pytest.raises(Conflict, match="has not ended"):
        await work.verb("retry_run", tenant="t", run=run)
    (held,) = await work.claim(worker)
    await work.settle(worker, said(held, "failed", retry=False))
    new = await work.verb("retry_run", tenant="t", run=run)
    (row,) = await work.ask("select * from orchestrator.due_work")
    assert (row["run_id"], str(row["retry_of"]), row["attempt"]) == (new, run, 0)
    assert {name: row[name] for name in settings} == settings
    with pytest.raises(Conflict, match="being retried"):
        await work.verb("retry_run", tenant="t", run=run)
    assert await work.state(run) == "failed"
    (line,) = await work.ask("select * from orchestrator.audit")
    assert (line["action"], line["subject"], line["details"]) == (
        "retry_run",
        run,
        {"run": str(new)},
    )


async def fail(work: Work, worker: UUID, type: str, message: str, **given: Any) -> str:
    run = await work.run(**given)
    (held,) = await work.claim(worker)
    assert held.run == run
    await work.settle(
        worker, said(held, "failed", retry=False, error={"type": type, "message": message})
    )
    return run


async def test_failed_runs_are_retried_by_filter_spread_over_time_and_once(
    work: Work, clock: Clock
) -> None:
    await clock.set(datetime.now(UTC))
    worker = await work.worker("default", "q", lease="1 hour")
    failed = [await fail(work, worker, "timeout", f"host {n} is gone") for n in range(4)]
    await fail(work, worker, "bug", "no", queue="q")
    await Work(work.conn, "other").run()
    before = await work.everything()
    rows = await db.call(work.conn, "retry_where", tenant="t", error_type="timeout")
    assert [str(r["run"]) for r in rows] == failed and {r["retried_as"] for r in rows} == {None}
    assert await work.everything() == before
    for given, count in (
        ({"queue": "q"}, 1), ({"error_type": "bug"}, 1), ({"most": 3}, 3),
        ({"since": await now(work) + MINUTE}, 0), ({"until": await now(work) - MINUTE}, 0),
        ({"fingerprint": await work.one("select fingerprint from orc.failures where runs = 4")}, 4),
    ):  # fmt: skip
        assert len(await db.call(work.conn, "retry_where", tenant="t", **given)) == count, given
    args = {"tenant": "t", "error_type": "timeout", "per_second": 2, "dry_run": False}
    rows = await db.call(work.conn, "retry_where", **args)
    due = [(await work.row(str(r["retried_as"])))["due_at"] - await now(work) for r in rows]
    assert due == [timedelta(seconds=s) for s in (0, 0.5, 1, 1.5)]
    assert await db.call(work.conn, "retry_where", **args) == []
    await clock.advance(MINUTE)
    again = [r for r in await work.claim(worker, 99) if r.tenant == "t"]
    await work.settle(worker, *[said(r, "failed", error={"type": "timeout"}) for r in again])
    rows = await db.call(work.conn, "retry_where", **args)
    assert {str(r["run"]) for r in rows} == {
        r.run for r in again
    }  # the retries, not the first ones
    assert (
        await work.one("select count(*) from orchestrator.audit where action = 'retry_where'") == 3
    )


async def test_a_retry_without_bounds_is_refused(work: Work) -> None:
    refused: list[dict[str, Any]] = [{"per_second": 0}, {"most": 0}, {"most": None}]
    for given in refused:
        with pytest.raises(Invalid):
            await db.call(work.conn, "retry_where", tenant="t", **given)


# Queues and tenants


async def test_what_people_do_to_queues_is_written_down_with_who_did_it(work: Work) -> None:
    await work.run()
    await work.do("set orchestrator.actor = 'ada'; set orchestrator.request = 'r1'")
    await work.verb("pause_queue", tenant="t", queue="q")
    await work.verb("pause_queue", tenant="t", queue="q")
    await work.verb("resume_queue", tenant="t", queue="q")
    await work.verb("limit_queue", tenant="t", queue="q", max_running=2)
    await work.verb("weigh_tenant", tenant="t", weight=2.5)
    lines = await work.ask("select * from orchestrator.audit order by id")
    assert [line["action"] for line in lines] == [
        "pause_queue", "pause_queue", "resume_queue", "limit_queue", "weigh_tenant",
    ]  # fmt: skip
    assert {(line["actor"], line["request_id"]) for line in lines} == {("ada", "r1")}


async def test_limits_and_weights_that_make_no_sense_are_refused(work: Work) -> None:
    await work.run()
    for weight in (0, -1, 1001, None):
        with pytest.raises(Invalid):
            await work.verb("weigh_tenant", tenant="t", weight=weight)
    with pytest.raises(Invalid):
        await work.verb("limit_queue", tenant="t", queue="q", max_running=-1)
    with pytest.raises(Invalid):
        await work.verb("pause_queue", tenant="t", queue="")


# Workers


async def test_a_worker_that_makes_no_sense_is_refused(work: Work) -> None:
    refused: list[dict[str, Any]] = [
        {"queues": None}, {"queues": ["a", None]}, {"slots": 0}, {"slots": None},
        {"lease": "1 millisecond"}, {"lease": "2 hours"},
    ]  # fmt: skip
    for given in refused:
        with pytest.raises(Invalid):
            await db.call(work.conn, "register_worker", **{"queues": ["q"], "slots": 1, **given})


async def test_a_lease_is_kept_by_renewing_it(work: Work, clock: Clock) -> None:
    await clock.set(datetime.now(UTC))
    worker = await work.worker(lease="10 seconds")
    await work.run()
    await work.claim(worker)
    for _ in range(5):
        await clock.advance(9 * SECOND)
        row = await db.call_one(work.conn, "renew_worker", worker=worker)
        assert row["expires_at"] == await now(work) + 10 * SECOND and row["canceled"] == []
        assert await work.verb("release_expired_work") == 0
    (row,) = await work.ask("select * from orc.workers")
    assert (row["state"], row["running"]) == ("live", 1)


@pytest.mark.parametrize("end", ["silent", "given up", "stopped"])
async def test_an_ended_worker_is_fenced_in_every_verb(work: Work, clock: Clock, end: str) -> None:
    await clock.set(datetime.now(UTC))
    worker, run = await work.worker(lease="10 seconds"), await work.run(max_attempts=3)
    (held,) = await work.claim(worker)
    if end == "stopped":
        await work.verb("end_worker", worker=worker)  # within its lease
    else:
        await clock.advance(11 * SECOND)
    if end == "given up":
        assert await work.verb("release_expired_work") == 1
    before = await work.everything()
    step = {"tenant": "t", "run": run, "epoch": held.epoch, "step": "a", "state": "succeeded"}
    line = {"tenant": "t", "run": run, "epoch": held.epoch, "message": "hi"}
    calls: list[tuple[str, dict[str, Any]]] = [
        ("exchange_work", {"outcomes": [said(held)], "want": 1}), ("exchange_work", {"outcomes": None, "want": 1}),
        ("settle_work", {"outcomes": [said(held)]}), ("record_steps", {"steps": [step]}),
        ("write_log", {"lines": [line]}), ("renew_worker", {}), ("claim_work", {"want": 1}),
        ("park_run", {"tenant": "t", "run": run, "epoch": held.epoch, "waiting_for": "x"}),
    ]  # fmt: skip
    for verb, given in calls:
        with pytest.raises(Gone):
            await db.call(work.conn, verb, worker=worker, **given)
    assert await work.everything() == before


async def test_what_an_ended_worker_held_is_retried_with_the_attempt_counted(
    work: Work, clock: Clock
) -> None:
    await clock.set(datetime.now(UTC))
    run = await work.run(max_attempts=2, backoff="fixed")
    for attempt in (1, 2):
        worker = await work.worker(lease="10 seconds")
        (held,) = await work.claim(worker)
        assert (held.run, held.attempt, held.epoch) == (run, attempt, attempt)
        await clock.advance(11 * SECOND)
        assert await work.verb("release_expired_work") == 1
        await clock.advance(2 * SECOND)
        assert await work.verb("release_expired_work") == 0
    row = await work.row(run)
    assert (row["state"], row["attempt"], row["error"]["type"]) == ("failed", 2, "lost")
    outcomes = await work.ask(
        "select outcome from orc.attempts where run_id = %s order by epoch", run
    )
    assert [o["outcome"] for o in outcomes] == ["lost", "failed"]


async def test_a_poisoned_run_dies_while_others_flow(work: Work, clock: Clock) -> None:
    """It kills every worker that takes it. Good ones are released with it and end all the same."""
    await clock.set(datetime.now(UTC))
    poison = await work.run(max_attempts=3, backoff="fixed", priority=0)
    good = await work.runs(30, max_attempts=20, backoff="fixed")
    for _ in range(20):
        worker = await work.worker(lease="10 seconds")
        held = await work.claim(worker, 5)
        if held and poison not in {run.run for run in held}:
            await work.settle(worker, *map(said, held))
        await clock.advance(11 * SECOND)
        await work.verb("release_expired_work")
    assert await work.state(poison) == "failed"
    assert {await work.state(run) for run in good} == {"succeeded"}


async def test_a_canceled_run_of_a_lost_worker_ends_as_canceled(work: Work, clock: Clock) -> None:
    await clock.set(datetime.now(UTC))
    worker = await work.worker(lease="10 seconds")
    run = await work.run(max_attempts=9, concurrency_key="k")
    behind = await work.run(concurrency_key="k")
    await work.claim(worker)
    await work.verb("cancel_run", tenant="t", run=run)
    await clock.advance(11 * SECOND)
    assert await work.verb("release_expired_work") == 1
    assert (await work.state(run), await work.state(behind)) == ("canceled", "ready")


async def test_workers_without_leases_and_old_keys_are_purged(work: Work, clock: Clock) -> None:
    await clock.set(datetime.now(UTC))
    gone, holding = await work.worker(), await work.worker()
    live = await work.run(dedupe_key="live")
    await work.run(dedupe_key="old", queue="other")
    await work.claim(holding)
    old = await work.worker("other")
    await work.settle(old, *map(said, await work.claim(old)))
    for worker in (gone, holding, old):
        await work.verb("end_worker", worker=worker)
    await clock.advance(timedelta(hours=2))
    assert await work.verb("purge") == 1
    await clock.advance(timedelta(days=8))
    assert await work.verb("purge") == 2
    assert [r["key"] for r in await work.ask("select key from orchestrator.dedupe")] == ["live"]
    assert (await work.row(live))["worker_id"] == holding
    await work.verb("release_expired_work")


# Settle


async def test_settling_twice_is_not_stale_and_changes_nothing(work: Work) -> None:
    worker = await work.worker()
    await work.runs(5, max_attempts=2)
    held = await work.claim(worker, 5)
    names = ["succeeded", "failed", "released", "parked", "failed"]
    outcomes = [
        said(r, o, retry=n < 4, delay=60, waiting_for="x")
        for n, (r, o) in enumerate(zip(held, names, strict=True))
    ]
    assert await work.settle(worker, *outcomes) == []
    before = await work.everything()
    assert await work.settle(worker, *outcomes) == []
    assert await work.settle(worker, *outcomes, *outcomes) == []
    assert await work.everything() == before


async def test_a_run_that_is_named_twice_in_a_batch_is_settled_once(work: Work) -> None:
    worker = await work.worker()
    await work.runs(2, max_attempts=3)
    a, b = await work.claim(worker, 2)
    assert (
        await work.settle(worker, said(a, "failed"), said(a, "failed"), said(b), said(b, "parked"))
        == []
    )
    assert (await work.state(a.run), await work.state(b.run)) == ("scheduled", "succeeded")


async def test_settle_with_a_stale_lease_is_named_and_changes_nothing(work: Work) -> None:
    worker, other = await work.worker(), await work.worker()
    await work.run(max_attempts=3, concurrency_key="k")
    (held,) = await work.claim(worker)
    before = await work.everything()
    for outcome in ("succeeded", "failed", "released", "parked", "canceled"):
        for wrong in ({"epoch": 2}, {"tenant": "other"}, {"run": str(uuid4())}):
            stale = held._replace(**wrong)
            assert await work.settle(worker, said(stale, outcome)) == [stale.run]
        assert await work.settle(other, said(held, outcome)) == [held.run]
    assert await work.everything() == before


async def test_fresh_outcomes_beside_stale_ones_are_settled(work: Work) -> None:
    worker = await work.worker()
    await work.runs(3)
    a, b, c = await work.claim(worker, 3)
    assert await work.settle(worker, said(a), said(b._replace(epoch=9)), said(c, "released")) == [
        b.run
    ]
    assert [await work.state(r.run) for r in (a, b, c)] == ["succeeded", "running", "ready"]


@pytest.mark.parametrize("outcomes", [{"a": 1}, [{"outcome": "skipped"}]])
async def test_an_outcome_that_makes_no_sense_is_refused(work: Work, outcomes: Any) -> None:
    worker, run = await work.worker(), await work.run()
    (held,) = await work.claim(worker)
    given = [{**said(held), **outcomes[0]}] if isinstance(outcomes, list) else outcomes
    with pytest.raises(Invalid):
        await db.call(work.conn, "settle_work", worker=worker, outcomes=given)
    assert await work.state(run) == "running"


async def test_a_succeeded_run_has_its_output_in_history_and_is_live_no_more(work: Work) -> None:
    worker, run = await work.worker(), await work.run(input={"a": 1}, labels={"l": 1})
    (held,) = await work.claim(worker)
    assert (await work.row(run))["leased_until"] is not None
    await work.settle(worker, said(held, output={"b": 2}))
    row = await work.row(run)
    assert (row["state"], row["input"], row["output"], row["labels"]) == (
        "succeeded",
        {"a": 1},
        {"b": 2},
        {"l": 1},
    )
    assert row["created_at"] <= row["started_at"] <= row["finished_at"]
    assert (row["worker_id"], row["attempt"], row["leased_until"]) == (worker, 1, None)
    assert await work.one("select count(*) from orchestrator.due_work") == 0


# Steps and logs


async def test_a_recorded_step_stays_as_it_is(work: Work) -> None:
    worker, run = await work.worker(), await work.run(max_attempts=2)
    (held,) = await work.claim(worker)
    step = {"tenant": "t", "run": run, "epoch": 1, "step": "a", "state": "succeeded", "output": 1}
    for output in (1, 2):
        assert (
            await db.call(
                work.conn, "record_steps", worker=worker, steps=[step | {"output": output}]
            )
            == []
        )
    await db.call(
        work.conn, "record_steps", worker=worker, steps=[step | {"step": "a[1]", "output": 3}]
    )
    before = await work.everything()
    for stale in ({"epoch": 2}, {"tenant": "x"}):
        rows = await db.call(
            work.conn, "record_steps", worker=worker, steps=[step | {"step": "b"} | stale]
        )
        assert [str(row["stale"]) for row in rows] == [run]
    assert await work.everything() == before
    outputs = await work.ask("select step_id, output, epoch from orc.steps order by step_id")
    assert outputs == [
        {"step_id": "a", "output": 1, "epoch": 1},
        {"step_id": "a[1]", "output": 3, "epoch": 1},
    ]
    assert held.run == run


async def test_only_the_holder_of_a_run_writes_its_log(work: Work) -> None:
    worker, other, run = await work.worker(), await work.worker(), await work.run()
    await work.claim(worker)
    line = {"tenant": "t", "run": run, "epoch": 1, "message": "hello", "facts": {"n": 1}}
    for who, changed in (
        (worker, {}),
        (other, {}),
        (worker, {"epoch": 2}),
        (worker, {"tenant": "x"}),
    ):
        await db.call(work.conn, "write_log", worker=who, lines=[line | changed])
    await db.call(
        work.conn, "write_log", worker=worker, lines=[line | {"message": None, "level": "loud"}]
    )
    lines = await work.ask("select level, message, facts from orchestrator.log order by id")
    assert [(x["level"], x["message"]) for x in lines] == [("info", "hello"), ("info", "")]


async def test_a_lease_on_a_run_that_the_same_worker_had_before_writes_nothing(work: Work) -> None:
    worker, run = await work.worker(), await work.run()
    (before,) = await work.claim(worker)
    await work.settle(worker, said(before, "released"))
    (now_held,) = await work.claim(worker)
    assert now_held.epoch == 2
    everything = await work.everything()
    place = {"tenant": "t", "run": run, "epoch": 1}
    step = {**place, "step": "a", "state": "succeeded"}
    (row,) = await db.call(work.conn, "record_steps", worker=worker, steps=[step])
    assert str(row["stale"]) == run
    await db.call(work.conn, "write_log", worker=worker, lines=[{**place, "message": "late"}])
    with pytest.raises(Gone):
        await db.call(work.conn, "park_run", worker=worker, **place, waiting_for="x")
    assert await work.everything() == everything


async def test_a_worker_asks_for_the_pipelines_that_it_sees(work: Work) -> None:
    await work.run()
    (held,) = await work.claim(await work.worker())
    wanted = [{"tenant": "t", "id": held.pipeline}, {"tenant": "x", "id": held.pipeline}]
    (row,) = await db.call(work.conn, "pipelines", wanted=wanted)
    assert row["document"] == {"pipeline": NOOP}


# Hints


async def test_a_hint_is_sent_only_when_a_worker_of_the_queue_is_idle(
    work: Work, connect: Connect
) -> None:
    listener = await connect()
    await listener.execute("listen orc_work")
    worker = await work.worker("q")
    await work.run(queue="q")
    await work.verb("set_idle", worker=worker, is_idle=True)
    await work.run(queue="other")
    await work.run(queue="q")
    await work.runs(2, queue="q")
    await work.do("notify orc_work, 'end'")
    heard = []
    async for note in listener.notifies(timeout=5):
        heard.append(note.payload)
        if note.payload == "end":
            break
    assert heard == ["q", "q", "end"]


# Views


async def test_the_views_show_each_run_where_it_is(work: Work) -> None:
    worker = await work.worker()
    running = await work.run(concurrency_key="k", queue="default")
    await work.claim(worker)
    blocked = await work.run(concurrency_key="k")
    ready = await work.run()
    scheduled = await work.run(due_at=await now(work) + MINUTE)
    ids = {name: {str(r["id"]) for r in await work.ask(f"select id from orc.{name}")}
           for name in ("runs", "ready", "running", "waiting")}  # fmt: skip
    assert ids == {"runs": {running, blocked, ready, scheduled}, "ready": {ready}, "running": {running},
                   "waiting": {blocked, scheduled}}  # fmt: skip
    (row,) = await work.ask("select * from orc.queues")
    assert [row[name] for name in ("ready", "running", "scheduled", "blocked", "waiting")] == [
        1,
        1,
        1,
        1,
        0,
    ]


async def test_failures_of_one_cause_are_one_line(work: Work) -> None:
    worker = await work.worker()
    for n in range(3):
        await fail(work, worker, "http", f"order {n} of '{n}a' at 0x{n}f: {uuid4()}")
    last = await fail(work, worker, "http", "the host is gone")
    rows = await work.ask("select runs, type, latest_run::text from orc.failures order by runs")
    assert rows[0] == {"runs": 1, "type": "http", "latest_run": last} and rows[1]["runs"] == 3
    letters = await work.ask("select * from orc.dead_letters")
    assert len(letters) == 4 and len({letter["fingerprint"] for letter in letters}) == 2


async def test_history_has_partitions(work: Work) -> None:
    rows = await work.ask('select "table", count(*) from orc.partitions group by 1')
    assert {"run", "attempt", "step", "log", "audit"} <= {
        r["table"] for r in rows if r["count"] >= 8
    }
    worker, run = await work.worker(), await work.run()
    await work.settle(worker, *map(said, await work.claim(worker)))
    assert (
        await work.one("select tableoid::regclass::text from orchestrator.run")
        != "orchestrator.run_default"
    )
    await work.do("select orc.set_retention('run', '2 days')")
    await work.do("set orchestrator.now = '2100-01-01'; select * from orc.keep_partitions('run')")
    assert await work.ask("select * from orc.runs where id = %s", run) == []
    await work.do("reset orchestrator.now; select * from orc.keep_partitions()")


# Why


async def causes(work: Work, run: str) -> list[str]:
    rows = await db.call(work.conn, "why", run=run)
    assert all(row["evidence"] is not None and row["clears"] for row in rows)
    return [row["cause"] for row in rows]


async def test_why_names_each_cause(work: Work, clock: Clock) -> None:
    await clock.set(datetime.now(UTC))
    instant = await now(work)
    ready = await work.run(queue="q")
    assert await causes(work, ready) == ["no live worker"]
    worker = await work.worker("q", lease="10 seconds")
    assert await causes(work, ready) == ["next in line"]
    await work.verb("pause_queue", tenant="t", queue="q")
    assert await causes(work, ready) == ["queue paused", "next in line"]
    await work.verb("resume_queue", tenant="t", queue="q")
    await work.verb("limit_queue", tenant="t", queue="q", max_running=0)
    assert await causes(work, ready) == ["queue full", "next in line"]
    await work.verb("limit_queue", tenant="t", queue="q", max_running=None)
    assert await causes(work, await work.run(queue="q", due_at=instant + MINUTE)) == ["not due"]
    (held,) = await work.claim(worker)
    assert await causes(work, ready) == ["running"]
    await work.verb("cancel_run", tenant="t", run=ready)
    assert await causes(work, ready) == ["told to cancel", "running"]
    await work.settle(worker, said(held))
    assert await causes(work, ready) == ["canceled"]
    with pytest.raises(NotFound):
        await db.call(work.conn, "why", run=ready, tenant="other")


async def test_why_names_the_causes_of_runs_that_had_begun(work: Work, clock: Clock) -> None:
    await clock.set(datetime.now(UTC))
    worker = await work.worker("q", lease="10 seconds")
    retried = await work.run(queue="q", max_attempts=2, backoff="fixed", backoff_seconds=60.0)
    (held,) = await work.claim(worker)
    await work.settle(worker, said(held, "failed", error={"type": "x"}))
    (row,) = await db.call(work.conn, "why", run=retried)
    assert row["cause"] == "retry delay" and row["evidence"]["error"] == {"type": "x"}
    parked = await work.run(queue="q")
    (held,) = await work.claim(worker)
    await work.settle(worker, said(held, "parked", waiting_for="approval"))
    assert await causes(work, parked) == ["waiting for approval"]
    keyed = await work.run(queue="q", concurrency_key="k")
    blocked = await work.run(queue="q", concurrency_key="k")
    (held,) = await work.claim(worker)
    (row,) = await db.call(work.conn, "why", run=blocked)
    assert (row["cause"], row["evidence"]["held_by"]) == ("key full", [keyed])
    await clock.advance(11 * SECOND)
    (row,) = await db.call(work.conn, "why", run=keyed)
    assert row["cause"] == "running" and "release_expired_work" in row["clears"]
    await work.do("delete from orchestrator.due_work where run_id = %s", keyed)
    assert (await causes(work, blocked))[0] == "key free, not given yet"
    await work.verb("cancel_run", tenant="t", run=parked)
    assert held.run == keyed
    worker = await work.worker("q")
    await work.verb("fill_keys")
    run = await fail_first(work, worker)
    assert await causes(work, run) == ["ended"]


async def fail_first(work: Work, worker: UUID) -> str:
    (held,) = await work.claim(worker)
    await work.settle(worker, said(held, "failed", retry=False))
    return held.run


# Check


@pytest.mark.breaks
@pytest.mark.parametrize(
    ("broken", "invariant"),
    [
        ("insert into orchestrator.run (tenant_id, id, pipeline_id, due_at, finished_at, epoch, attempt, max_attempts,"
         " priority, state, queue, kind) select tenant_id, run_id, pipeline_id, due_at, due_at, 1, 1, 1, 1, 'canceled',"
         " 'q', 'run' from orchestrator.due_work", "a_run_is_live_or_finished"),
        ("update orchestrator.due_work set worker_id = gen_random_uuid(), state = 'running'"
         " where concurrency_key is null",
         "a_running_run_has_a_worker_that_exists"),
        ("update orchestrator.due_work set state = 'ready' where concurrency_key = 'k'", "a_key_is_not_exceeded"),
        ("delete from orchestrator.concurrency", "a_key_has_a_limit"),
        ("insert into orchestrator.queue values ('t', 'default', 0); update orchestrator.due_work set state = 'running',"
         " worker_id = (select id from orchestrator.worker) where concurrency_key is null", "a_queue_is_not_exceeded"),
        ("update orchestrator.due_work set pipeline_id = gen_random_uuid()", "a_run_has_a_pipeline"),
        ("delete from orchestrator.lane", "a_ready_lane_is_listed"),
        ("insert into orchestrator.attempt select tenant_id, id, epoch, attempt, 'lost', worker_id, started_at, finished_at"
         " from orchestrator.run", "an_attempt_ends_once"),
    ],
)  # fmt: skip
async def test_check_finds_each_corruption(work: Work, broken: str, invariant: str) -> None:
    worker = await work.worker()
    await work.run()
    await work.settle(worker, *map(said, await work.claim(worker)))
    await work.run()
    await work.run(concurrency_key="k")
    await work.run(concurrency_key="k")
    assert await work.ask("select * from orc.check()") == []
    await work.do(broken)
    assert {row["invariant"] for row in await work.ask("select * from orc.check()")} == {invariant}
