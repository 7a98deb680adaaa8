"""The worker: what it claims it runs, what it ran it says once, and it knows when to stop."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import deeds
import httpx2
import msgspec
import psycopg
import pytest
import structlog
from conftest import Connect, Make, Proxied, free_port
from crew import (
    Crew,
    call,
    count,
    ends,
    enqueue,
    enqueue_many,
    exit_status,
    logs,
    look,
    own_clock,
    queued,
    until,
)  # fmt: skip

from orchestrator import db, scheduler
from orchestrator.steps import Context, Done, Kind, Outcome
from orchestrator.worker import Options, Worker, line, once
from orchestrator.worker.engine import Run, compile
from orchestrator.worker.hands import Hands

LISTENERS = "select count(*) = 1 from pg_stat_activity where query ~* '^listen \"orc_cancel'"
SET = {"uses": "set", "with": {"a": 1}}
GATED = {"uses": "gate"}


class Nothing(msgspec.Struct):
    pass


class Gate:
    """A kind that runs until it is opened, and remembers who is inside."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.inside: list[str] = []
        self.entered: list[tuple[str, int]] = []
        self.most = 0
        self.kind = Kind("gate", Nothing, self.run)

    async def run(self, _: Any, context: Context) -> Outcome:
        self.inside.append(context.run)
        self.entered.append((context.run, context.epoch))
        self.most = max(self.most, len(self.inside))
        try:
            await self.open.wait()
        finally:
            self.inside.remove(context.run)
        return Done("passed")


@pytest.fixture
async def gate() -> Gate:
    return Gate()


@pytest.fixture
async def crew(make: Make, conn: db.Connection) -> AsyncIterator[Crew]:
    crew = Crew(make.config(python_modules=("deeds",)))
    yield crew
    await crew.end()


async def sole(conn: db.Connection, text: str, *values: Any) -> Any:
    row = await (await conn.execute(text.encode(), values)).fetchone()
    assert row is not None
    return next(iter(row.values()))


# What it runs


async def test_a_pipeline_of_builtins_runs_and_its_output_is_recorded(
    crew: Crew, conn: db.Connection
) -> None:
    run = await enqueue(
        conn,
        {"id": "a", "uses": "set", "with": {"x": [1, {"y": None}]}},
        {"id": "b", "uses": "assert", "with": {"that": True}},
        {"id": "c", **call("add", a=2, b=3), "save_as": "sum"},
    )
    worker = await crew.once()
    row = await look(conn, run)
    assert (row["state"], row["attempt"]) == ("succeeded", 1)
    assert row["output"] == {"a": {"x": [1, {"y": None}]}, "b": True, "sum": 5}
    assert (worker.counters.claimed, worker.counters.settled) == (1, 1)


@pytest.mark.parametrize(
    ("function", "type", "attempts"),
    [
        ("deeds:shout", "runtime", 2),
        ("deeds:leave", "runtime", 2),
        ("deeds:add", "validation", 1),
        ("deeds:confuse", "validation", 1),
        ("deeds:nul", "validation", 1),
        ("deeds:missing", "configuration", 1),
        ("deeds:_private", "configuration", 1),
        ("deeds", "configuration", 1),
        ("os:getpid", "authorization", 1),
    ],
)
async def test_only_what_may_get_better_is_tried_again(
    crew: Crew, conn: db.Connection, function: str, type: str, attempts: int
) -> None:
    step = {"uses": "python.call", "with": {"function": function}}
    run = await enqueue(conn, step, max_attempts=2, backoff="fixed", backoff_seconds=0)
    await crew.once()
    row = await look(conn, run)
    assert (row["state"], row["error"]["type"]) == ("failed", type)
    assert row["attempt"] == attempts


async def test_python_is_called_in_as_many_threads_as_there_are_slots(
    crew: Crew, conn: db.Connection
) -> None:
    runs = await enqueue_many(conn, deeds.meeting.parties, call("meet"))
    await crew.once(slots=40)
    assert await count(conn, "succeeded") == len(runs)


async def test_a_coroutine_function_is_awaited_and_knows_its_run(
    crew: Crew, conn: db.Connection
) -> None:
    run = await enqueue(conn, {"id": "a", **call("later")})
    await crew.once()
    assert (await look(conn, run))["output"] == {"a": run}


async def test_a_call_that_was_given_up_keeps_its_slot_until_it_ends(
    crew: Crew, conn: db.Connection
) -> None:
    await enqueue(conn, call("rest", seconds=0.5), timeout_seconds=0.05)
    started = time.monotonic()
    worker = crew.worker(slots=1)
    await until(lambda: worker.hands.given_up)
    run = await enqueue(conn, SET)
    await ends(conn, run)
    assert time.monotonic() - started > 0.5


async def test_lines_of_the_log_arrive_with_the_outcome(crew: Crew, conn: db.Connection) -> None:
    run = await enqueue(
        conn,
        {"uses": "log.write", "with": {"message": "one", "facts": {"n": 1}}},
        {"uses": "log.write", "with": {"message": "two", "level": "warning"}},
        {"uses": "assert", "with": {"that": False, "message": "wrong"}},
    )
    await crew.once()
    cursor = await conn.execute(
        "select run_id, level, message, facts from orchestrator.log order by message"
    )
    rows = [tuple(row.values()) for row in await cursor.fetchall()]
    assert [(str(r), *rest) for r, *rest in rows] == [
        (run, "info", "one", {"n": 1}),
        (run, "warning", "two", None),
    ]
    assert (await look(conn, run))["error"] == {"type": "validation", "message": "wrong"}


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"uses": "nonsense"}, "step 0: there is no tool 'nonsense'; known: assert, "),
        ({"uses": "assert", "with": {}}, "step 0: Object missing required field `that`"),
        ({"uses": "log.write", "with": {"message": "a", "b": 1}}, "unknown field `b`"),
        ({}, "/pipeline/0: "),
    ],
)
async def test_a_step_that_makes_no_sense_fails_with_a_clear_message(
    crew: Crew, conn: db.Connection, step: dict[str, Any], message: str
) -> None:
    run = await enqueue(conn, step, max_attempts=3)
    await crew.once()
    row = await look(conn, run)
    assert (row["state"], row["attempt"], row["error"]["type"]) == ("failed", 1, "validation")
    assert message in row["error"]["message"]


async def test_what_takes_too_long_is_tried_again_and_then_fails(
    crew: Crew, conn: db.Connection, gate: Gate
) -> None:
    options = {"timeout_seconds": 0.05, "max_attempts": 2, "backoff_seconds": 0}
    run = await enqueue(conn, GATED, **options)
    worker = crew.worker(gate.kind)
    row = await ends(conn, run)
    assert row["error"] == {"type": "timeout", "message": "longer than 0.05 s"}
    assert row["attempt"] == 2
    assert worker.hands.running == {}


async def test_a_retry_waits_for_its_backoff(crew: Crew, conn: db.Connection) -> None:
    run = await enqueue(conn, call("shout"), max_attempts=3, backoff="fixed", backoff_seconds=50)
    await crew.once()
    row = await look(conn, run)
    assert (row["state"], row["attempt"]) == ("scheduled", 1)
    assert row["error"]["message"] == "RuntimeError: no luck"
    due_in = row["due_at"] - await sole(conn, "select now()")
    assert timedelta(seconds=45) < due_in < timedelta(seconds=50)


class Breaks:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def now(self, *_: Any) -> Outcome:
        raise self.error

    async def later(self, *_: Any) -> Outcome:
        raise self.error


@pytest.mark.parametrize("pure", [True, False])
@pytest.mark.parametrize("error", [ValueError("x"), TimeoutError("x"), asyncio.CancelledError("x")])
async def test_a_kind_that_raises_fails_its_run_and_nobody_elses(
    crew: Crew, conn: db.Connection, error: BaseException, pure: bool
) -> None:
    if pure and not isinstance(error, Exception):
        pytest.skip("a plain function isn't canceled")
    kind = Kind("odd", Nothing, Breaks(error).now if pure else Breaks(error).later, pure=pure)
    bad = await enqueue(conn, {"uses": "odd"})
    good = await enqueue(conn, SET)
    await crew.once(kind)
    assert (await look(conn, bad))["error"]["type"] == "runtime"
    assert (await look(conn, good))["state"] == "succeeded"


@pytest.mark.parametrize("value", ["a\0b", "\ud800", {1: "x", (1, 2): "y"}, 10**400])
async def test_an_output_that_cannot_be_stored_fails_its_run_and_nobody_elses(
    crew: Crew, conn: db.Connection, value: Any
) -> None:
    kind = Kind("odd", Nothing, lambda *_: Done(value), pure=True)
    bad = await enqueue(conn, {"uses": "odd"})
    good = await enqueue_many(conn, 5, SET)
    worker = await crew.once(kind)
    assert await count(conn, "succeeded") >= len(good)
    row = await look(conn, bad)
    if row["state"] == "failed":
        assert row["error"]["message"].startswith("what it said can't be stored: ")
    else:
        assert value == 10**400  # numeric holds it
    assert (worker.counters.claimed, worker.counters.settled) == (6, 6)


async def test_a_line_that_cannot_be_stored_does_not_stop_the_worker(
    crew: Crew, conn: db.Connection
) -> None:
    def run(_: Any, context: Context) -> Outcome:
        context.lines.append({"message": "a\0b"})
        return Done()

    bad = await enqueue(conn, {"uses": "odd"})
    good = await enqueue(conn, SET)
    await crew.once(Kind("odd", Nothing, run, pure=True))
    assert (await look(conn, bad))["state"] == "failed"
    assert (await look(conn, good))["state"] == "succeeded"


async def test_a_failed_attempt_is_one_line_of_the_log(crew: Crew, conn: db.Connection) -> None:
    run = await enqueue(conn, call("shout"), max_attempts=2, backoff_seconds=0)
    with structlog.testing.capture_logs() as lines:
        await crew.once()
    failed = [line for line in lines if line["action"] == "attempt_failed"]
    assert [(line["run_id"], line["attempt"]) for line in failed] == [(run, 1), (run, 2)]
    assert [line["action"] for line in lines if line not in failed] == ["registered", "stopped"]


# Cancel


@pytest.mark.parametrize("hints", [True, False])
async def test_a_cancel_reaches_the_running_step(
    crew: Crew, conn: db.Connection, gate: Gate, hints: bool
) -> None:
    run = await enqueue(conn, GATED, max_attempts=3)
    worker = crew.worker(gate.kind, hints=hints, lease=30.0 if hints else 1.0)
    await until(lambda: gate.inside)
    if hints:
        await until(
            lambda: sole(conn, "select count(*) from pg_stat_activity where query ~ '^listen'")
        )
    started = own_clock()
    assert (await db.call_one(conn, "cancel_run", tenant="t", run=run))["canceled"]
    row = await ends(conn, run, within=6)  # it renews its lease, and so hears it, after 7.5 s
    assert own_clock() - started < 2
    assert (row["state"], row["attempt"], gate.inside) == ("canceled", 1, [])
    await until(lambda: worker.counters.settled == 1)


async def test_a_run_that_is_canceled_before_its_first_line_is_said_to_be_canceled(
    make: Make, gate: Gate
) -> None:
    kinds = {"gate": gate.kind}
    hands = Hands(make.config(), kinds)
    hands.plans["t", "p"] = compile({"pipeline": [GATED]}, kinds)
    hands.begin([Run("t", "r", 1, 1, 1, "p", None, None, "2026-11-21T00:00:00+00:00")], [], [])
    hands.cancel(["r"])
    await until(lambda: hands.news)
    assert (hands.news.take().outcomes[0].outcome, hands.running) == ("canceled", {})


# Slots and round trips


async def test_slots_are_never_exceeded(crew: Crew, conn: db.Connection) -> None:
    inside = most = 0

    async def run(*_: Any) -> Outcome:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0.002)
        inside -= 1
        return Done()

    for number in range(10):  # each pipeline must be learned: an await between claim and start
        await enqueue_many(conn, 20, {"id": f"a{number}", "uses": "odd"})
    worker = await crew.once(Kind("odd", Nothing, run), slots=7)
    assert most == 7
    assert (worker.counters.claimed, await count(conn, "succeeded")) == (200, 200)


async def test_pure_runs_do_not_occupy_slots(crew: Crew, conn: db.Connection, gate: Gate) -> None:
    await enqueue(conn, GATED)
    worker = crew.worker(gate.kind, slots=2)
    await until(lambda: gate.inside)
    await enqueue_many(conn, 100, SET)
    await until(lambda: worker.counters.settled == 100)
    assert len(worker.hands.running) == 1


async def test_outcomes_and_claims_share_a_round_trip(
    crew: Crew, conn: db.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    verbs: Counter[str] = Counter()
    real = db.call

    async def counting(connection: db.Connection, verb: str, **arguments: Any) -> list[db.Row]:
        verbs[verb] += 1
        return await real(connection, verb, **arguments)

    await enqueue_many(conn, 1000, SET)
    monkeypatch.setattr(db, "call", counting)
    worker = await crew.once(slots=200)
    assert worker.counters.settled == 1000
    assert verbs.pop("exchange_work") < 2 * 1000 / 100
    assert verbs == {"register_worker": 1, "pipelines": 1, "end_worker": 1}


async def test_once_leaves_nothing_behind_however_its_lines_overlap(
    crew: Crew, conn: db.Connection
) -> None:
    for number in range(1, 6):
        await enqueue_many(conn, 2000, SET)
        worker = await crew.once(slots=100)
        assert worker.counters.claimed == worker.counters.settled == 2000
        assert await count(conn, "succeeded") == 2000 * number


async def test_once_ends_when_nothing_is_due(crew: Crew, conn: db.Connection) -> None:
    later = await sole(conn, "select now() + interval '1 hour'")
    run = await enqueue(conn, SET, due_at=later)
    assert await once(crew.config) == 0
    assert (await look(conn, run))["state"] == "scheduled"


async def test_many_tenants_with_nothing_to_do_let_the_worker_rest(
    crew: Crew, conn: db.Connection
) -> None:
    for number in range(70):
        await db.call(conn, "enqueue", tenant=f"t{number}", pipeline=[SET])
    worker = crew.worker()
    await until(lambda: worker.counters.settled == 70)
    await until(lambda: worker.told_idle)


# Picking up


async def test_an_idle_worker_starts_work_at_a_hint(crew: Crew, conn: db.Connection) -> None:
    worker = crew.worker(poll=30.0)
    await until(lambda: worker.told_idle)
    await until(lambda: sole(conn, LISTENERS))
    await asyncio.sleep(0.05)
    times: list[float] = []
    while len(times) < 5 or (min(times) >= 0.05 and len(times) < 100):  # others use this machine
        started = own_clock()
        await ends(conn, await enqueue(conn, SET))
        times.append(own_clock() - started)
    assert min(times) < 0.05
    assert max(times) < 1, "it would look by itself after 21 s"


async def test_a_worker_with_a_long_run_hears_hints_for_its_free_slots(
    crew: Crew, conn: db.Connection, gate: Gate
) -> None:
    await enqueue(conn, GATED)
    worker = crew.worker(gate.kind, poll=30.0)
    await until(lambda: gate.inside and worker.told_idle)
    started = own_clock()
    await ends(conn, await enqueue(conn, SET), within=10)  # it would look after 21 s
    assert own_clock() - started < 2


async def test_without_hints_work_starts_within_the_poll_interval(
    crew: Crew, conn: db.Connection
) -> None:
    worker = crew.worker(poll=0.3, hints=False)
    await until(lambda: time.monotonic() - worker.worked_at > 0.2)
    times = []
    for _ in range(5):
        started = time.monotonic()
        await ends(conn, await enqueue(conn, SET))
        times.append(time.monotonic() - started)
        await until(lambda: time.monotonic() - worker.worked_at > 0.2)
    assert sorted(times)[1] < 0.45
    assert not worker.told_idle


async def test_only_the_named_queues_are_worked(crew: Crew, conn: db.Connection) -> None:
    runs = [await enqueue(conn, SET, queue=queue) for queue in ("a", "b", "c")]
    process = crew.process("--queues", "a, b", "--once")
    assert await exit_status(process) == 0
    states = [(await look(conn, run))["state"] for run in runs]
    assert states == ["succeeded", "succeeded", "ready"]


# The lease


async def test_a_blocked_event_loop_does_not_lose_the_lease(
    crew: Crew, conn: db.Connection
) -> None:
    def block(*_: Any) -> Outcome:
        time.sleep(2.5)
        return Done()

    run = await enqueue(conn, {"uses": "odd"}, max_attempts=2)
    worker = Worker(
        crew.config, Options(lease=1.0, once=True), {"odd": Kind("odd", Nothing, block)}
    )
    work = asyncio.create_task(asyncio.to_thread(asyncio.run, worker.run()))
    while not work.done():
        assert (await db.call_one(conn, "release_expired_work"))["release_expired_work"] == 0
        await asyncio.sleep(0.1)
    row = await look(conn, run)
    assert (row["state"], row["attempt"]) == ("succeeded", 1)
    assert worker.counters.settled == 1


@pytest.mark.parametrize(
    "how",
    [
        "ended_at = orchestrator.now(), ended_how = 'expired'",
        "expires_at = orchestrator.now() - interval '1 second'",
    ],
)
async def test_work_is_dropped_with_the_lease_and_the_worker_registers_anew(
    crew: Crew, conn: db.Connection, gate: Gate, how: str
) -> None:
    run = await enqueue(conn, GATED, max_attempts=2, backoff_seconds=0)
    worker = crew.worker(gate.kind, lease=2.0)
    await until(lambda: gate.inside)
    first = worker.id
    await conn.execute(f"update orchestrator.worker set {how}".encode())
    await until(lambda: worker.counters.dropped == 1)
    assert (await look(conn, run))["state"] == "running"
    await until(lambda: worker.id not in ("", first))
    await db.call(conn, "release_expired_work")
    await until(lambda: len(gate.entered) == 2)
    gate.open.set()
    row = await ends(conn, run)
    assert (row["state"], row["attempt"], str(row["worker_id"])) == ("succeeded", 2, worker.id)
    await until(lambda: worker.counters.settled == 1)
    assert msgspec.structs.asdict(worker.counters) == {
        "claimed": 2, "settled": 1, "stale": 0, "dropped": 1,
    }  # fmt: skip


async def test_an_outcome_of_a_lost_lease_changes_nothing(
    crew: Crew, conn: db.Connection, gate: Gate
) -> None:
    run = await enqueue(conn, GATED, max_attempts=5, backoff_seconds=0)
    worker = crew.worker(gate.kind, lease=30.0)
    await until(lambda: gate.inside)
    await conn.execute("update orchestrator.due_work set epoch = epoch + 1")
    gate.open.set()
    await until(lambda: worker.counters.stale == 1)
    assert (await look(conn, run))["state"] == "running"
    assert worker.counters.settled == 0


async def test_a_silent_database_ends_the_lease(
    crew: Crew, conn: db.Connection, proxied: Proxied, gate: Gate
) -> None:
    crew.config = msgspec.structs.replace(crew.config, database_url=proxied.url)
    await enqueue(conn, GATED, max_attempts=3)
    worker = crew.worker(gate.kind, lease=1.0)
    await until(lambda: gate.inside)
    proxied.proxy.cut()
    started = own_clock()
    await until(lambda: worker.counters.dropped == 1, within=10)
    assert own_clock() - started < 4
    assert gate.inside == []
    worker.drain()  # and nobody hears a farewell
    await asyncio.wait_for(crew.task(worker), 10)


# Lost connections


async def cut(conn: db.Connection) -> None:
    await conn.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where application_name = 'orchestrator worker' and datname = current_database()"
    )


async def test_an_outcome_is_settled_over_a_new_connection(
    crew: Crew, conn: db.Connection, gate: Gate
) -> None:
    run = await enqueue(conn, GATED)
    worker = crew.worker(gate.kind)
    await until(lambda: gate.inside)
    await cut(conn)
    gate.open.set()
    row = await ends(conn, run)
    assert (row["state"], row["attempt"], len(gate.entered)) == ("succeeded", 1, 1)
    await until(lambda: worker.counters.settled == 1)


async def test_connections_that_die_at_any_moment_lose_and_double_nothing(
    crew: Crew, conn: db.Connection
) -> None:
    seen: Counter[str] = Counter()

    async def run(_: Any, context: Context) -> Outcome:
        seen[context.run] += 1
        context.lines.append({"message": "once"})
        await asyncio.sleep(0.001)
        return Done()

    runs = await enqueue_many(conn, 3000, {"uses": "odd"})
    worker = crew.worker(Kind("odd", Nothing, run), slots=40)
    for _ in range(12):
        await asyncio.sleep(0.03)
        await cut(conn)
    await until(lambda: count_is(conn, "succeeded", len(runs)))
    assert seen == Counter(runs)
    assert await sole(conn, "select count(*) from orchestrator.log") == len(runs)
    await until(lambda: worker.counters.settled == worker.counters.claimed)
    assert worker.counters.stale == 0


async def count_is(conn: db.Connection, state: str, number: int) -> bool:
    return await count(conn, state) == number


async def test_an_answer_that_is_lost_is_asked_for_again_and_nothing_is_doubled(
    crew: Crew, conn: db.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was committed, and nobody heard: outcomes are settled, and runs are handed out."""
    losses = 0
    real = line._ask

    async def deaf(connection: db.Connection, verb: str, given: Any) -> list[db.Row]:
        nonlocal losses
        rows = await real(connection, verb, given)
        if verb == "exchange_work" and rows[0]["runs"] and losses < 6:
            losses += 1
            await connection.close()
            raise psycopg.OperationalError("the connection is lost")
        return rows

    monkeypatch.setattr(line, "_ask", deaf)
    runs = await enqueue_many(conn, 50, {"uses": "log.write", "with": {"message": "once"}})
    worker = crew.worker(slots=10, poll=0.05)
    await until(lambda: count_is(conn, "succeeded", len(runs)))
    assert losses == 6
    assert await sole(conn, "select count(*) from orchestrator.log") == len(runs)
    assert await sole(conn, "select max(attempt) from orc.runs") == 1
    await until(lambda: worker.counters.settled == worker.counters.claimed)
    assert worker.counters.stale == worker.counters.dropped == 0


# The end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_claims_at_once_gives_grace_and_releases_the_rest(
    crew: Crew, conn: db.Connection, tmp_path: Path, number: int
) -> None:
    ledger = tmp_path / "started"
    short = await enqueue(conn, call("note", path=str(ledger), seconds=0.4))
    long = await enqueue(conn, call("note", path=str(ledger), seconds=60))
    process = crew.process("--drain-timeout", "4", "--slots", "10")
    await until(lambda: lines_in(ledger) == 2)
    signaled, had_queued = time.time(), queued(process.pid)
    process.send_signal(number)
    heard = datetime.fromisoformat((await logs(process, "draining"))["timestamp"]).timestamp()
    assert heard - signaled - (queued(process.pid) - had_queued) < 0.1
    late = await enqueue(conn, SET)
    assert await exit_status(process, within=30) == 0, "the long one would take a minute"
    assert (await look(conn, short))["state"] == "succeeded"
    assert (await look(conn, late))["state"] == "ready"
    row = await look(conn, long)
    assert (row["state"], row["attempt"], row["worker_id"]) == ("ready", 0, None)
    assert await sole(conn, "select ended_how from orchestrator.worker") == "stopped"


def lines_in(ledger: Path) -> int:
    """Steps that began: a claim that is on its way when the signal comes goes back."""
    return len(ledger.read_bytes().splitlines()) if ledger.exists() else 0


async def test_a_second_signal_ends_the_grace(
    crew: Crew, conn: db.Connection, tmp_path: Path
) -> None:
    ledger = tmp_path / "started"
    run = await enqueue(conn, call("note", path=str(ledger), seconds=60))
    process = crew.process("--drain-timeout", "60")
    await until(lambda: lines_in(ledger) == 1)
    process.terminate()
    await logs(process, "draining")
    assert process.poll() is None
    process.terminate()
    assert await exit_status(process, within=30) == 0, "it would have a minute"
    row = await look(conn, run)
    assert (row["state"], row["attempt"]) == ("ready", 0)


async def test_what_arrives_after_the_signal_goes_back(
    crew: Crew, conn: db.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await enqueue(conn, GATED)
    real = line._ask

    async def late(connection: db.Connection, verb: str, given: Any) -> list[db.Row]:
        rows = await real(connection, verb, given)
        if verb == "exchange_work" and rows[0]["runs"]:
            worker.drain()
        return rows

    monkeypatch.setattr(line, "_ask", late)
    gate = Gate()
    worker = crew.worker(gate.kind)
    await asyncio.wait_for(crew.task(worker), 30)
    row = await look(conn, run)
    assert (row["state"], row["attempt"], gate.entered) == ("ready", 0, [])


async def test_a_step_that_does_not_stop_does_not_keep_the_worker(
    crew: Crew, conn: db.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.worker.LAST_WORDS_SECONDS", 0.3)
    stopped = asyncio.Event()

    async def stubborn(*_: Any) -> Outcome:
        while not stopped.is_set():
            try:
                await stopped.wait()
            except asyncio.CancelledError:
                continue
        return Done()

    await enqueue(conn, {"uses": "odd"})
    worker = crew.worker(Kind("odd", Nothing, stubborn))
    await until(lambda: worker.hands.running)
    worker.drain()
    worker.drain()
    await asyncio.wait_for(crew.task(worker), 30)
    stopped.set()
    await db.call(conn, "end_worker", worker=worker.id)


# Processes


async def test_two_processes_share_the_work(crew: Crew, conn: db.Connection) -> None:
    process = crew.process("--processes", "2", "--slots", "4")
    await until(lambda: worker_count_is(conn, 2))
    await enqueue_many(conn, 60, call("rest", seconds=0.1))
    await until(lambda: count_is(conn, "succeeded", 60))
    process.terminate()
    assert await exit_status(process) == 0
    assert await sole(conn, "select count(distinct worker_id) from orc.runs") == 2


async def worker_count_is(conn: db.Connection, number: int) -> bool:
    return bool(await sole(conn, "select count(*) from orchestrator.worker") == number)


async def test_health_is_answered_on_its_port(crew: Crew, conn: db.Connection) -> None:
    port = free_port()
    crew.process("--health-port", str(port))
    await until(lambda: sole(conn, "select count(*) from orchestrator.worker"))
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:

        async def ready() -> bool:
            """Its row is there a moment before it hears so."""
            return bool((await client.get("/health/ready")).status_code == 200)

        assert (await client.get("/health/live")).status_code == 200
        await until(ready)


async def test_a_worker_with_full_slots_is_alive(
    crew: Crew, conn: db.Connection, gate: Gate
) -> None:
    await enqueue(conn, GATED)
    worker = crew.worker(gate.kind, slots=1, lease=1.0)
    await until(lambda: gate.inside)
    worker.heard_at -= 100
    await until(lambda: worker.lease and worker.lease.renewed_at > worker.worked_at)
    assert worker.alive
    assert worker.ready


async def test_a_run_that_kills_its_worker_is_dead_after_its_attempts_and_others_finish(
    crew: Crew, conn: db.Connection
) -> None:
    poison = await enqueue(conn, call("die"), max_attempts=2, backoff_seconds=0.01)
    await enqueue_many(conn, 30, call("rest", seconds=0.01), max_attempts=9, backoff_seconds=0.01)
    starts = 0
    async with db.Pool(crew.config, role="orc_worker", application="t") as pool:
        while (await look(conn, poison))["finished_at"] is None or await live(conn):
            if not crew.processes or crew.processes[-1].poll() is not None:
                crew.process("--lease", "1", "--slots", "5")
                starts += 1
            await scheduler.Housekeeping().once(pool)
            await asyncio.sleep(0.02)
    row = await look(conn, poison)
    assert (row["state"], row["attempt"], row["error"]["type"]) == ("failed", 2, "lost")
    assert (starts, await count(conn, "succeeded")) == (3, 30)


async def live(conn: db.Connection) -> int:
    return int(await sole(conn, "select count(*) from orchestrator.due_work"))


async def test_counters_are_in_the_last_line(crew: Crew, conn: db.Connection) -> None:
    await enqueue_many(conn, 10, SET)
    process = crew.process("--once")
    _, said = await asyncio.to_thread(process.communicate)
    last = json.loads(said.splitlines()[-1])
    assert {name: last[name] for name in ("action", "claimed", "settled", "stale", "dropped")} == {
        "action": "stopped", "claimed": 10, "settled": 10, "stale": 0, "dropped": 0,
    }  # fmt: skip


# Housekeeping


async def test_housekeeping_takes_back_what_silent_workers_held(
    crew: Crew, conn: db.Connection, gate: Gate
) -> None:
    run = await enqueue(conn, GATED, max_attempts=2)
    row = await db.call_one(conn, "register_worker", queues=["default"], slots=1)
    await db.call(conn, "claim_work", worker=row["worker"])
    await conn.execute("update orchestrator.worker set expires_at = orchestrator.now()")
    async with db.Pool(crew.config, role="orc_worker", application="t") as pool:
        assert await scheduler.Housekeeping().once(pool) == 0
    found = await look(conn, run)
    assert (found["state"], found["attempt"], found["error"]["type"]) == ("scheduled", 1, "lost")


async def test_a_chore_that_fails_does_not_keep_the_others_from_being_done(
    make: Make, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []

    class Pool:
        async def call(self, verb: str) -> list[db.Row]:
            done.append(verb)
            raise psycopg.OperationalError("no partitions today")

        async def call_one(self, verb: str) -> db.Row:
            done.append(verb)
            return {verb: 1000 if verb == "release_expired_work" else 0}

    house = scheduler.Housekeeping()
    with pytest.raises(psycopg.OperationalError):
        await house.once(Pool())  # type: ignore[arg-type]
    assert done == [
        "release_expired_work",
        "meet_events",
        "fill_keys",
        "advance_lanes",
        "cancel_orphans",
        "tally_runs",
        "keep_partitions",
        "purge",
    ]
    assert await house.once(Pool()) == 1, "a full sweep means that there's more"  # type: ignore[arg-type]
