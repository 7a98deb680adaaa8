"""Traces: one from a request to what the steps of its run ask of others, at a real collector."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from uuid import UUID

import psycopg
import pytest
from collector import Collector, collecting
from conftest import Make, Running, Serve
from crew import Crew, enqueue, enqueue_many, exit_status, look, own_clock
from peers import peer, says
from test_telemetry import Lines, lines  # noqa: F401

from orchestrator import auth, db, traces
from orchestrator.config import Config
from orchestrator.steps import Context, Fail, Retry, http_request

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
THEIRS = f"00-{TRACE}-00f067aa0ba902b7-01"
KEY = {"Authorization": f"Bearer {auth.SYSTEM_AGENT}"}
SERVER, CLIENT, PRODUCER, CONSUMER = 2, 3, 4, 5


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture
async def traced(collector: Collector) -> AsyncIterator[Collector]:
    """This process exports to the collector; `await traces.close()` exports what is left."""
    traces.setup(Config(otlp_endpoint=collector.url), "test")
    yield collector
    await traces.close()


@pytest.fixture
async def crew(make: Make, conn: db.Connection) -> AsyncIterator[Crew]:
    await db.call(conn, "ensure_system_agent")
    crew = Crew(make.config(python_modules=("deeds",), allow_targets=("127.0.0.1",)))
    yield crew
    await crew.end()


def asks(url: str, **more: Any) -> dict[str, Any]:
    return {"id": "ask", "uses": "http.request", "with": {"url": url, **more}}


async def started(running: Running, pipeline: list[dict[str, Any]], **headers: str) -> str:
    """The run of a task, by a request with these headers."""
    said = {"title": "T", "schedule_kind": "cron", "schedule_expr": "30 8 * * *",
            "payload": {"pipeline": pipeline}, "max_retries": 0}  # fmt: skip
    task = (await running.client.post("/tasks", json=said, headers=KEY)).json()["id"]
    answer = await running.client.post(f"/tasks/{task}/run_now", headers={**KEY, **headers})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["details"]["run_id"])


async def kept(conn: db.Connection, run: str) -> tuple[str | None, str | None]:
    row = await look(conn, run)
    return row["traceparent"], row["correlation_id"]


async def test_one_trace_goes_from_the_request_to_the_call_of_a_step(
    serve: Serve, crew: Crew, conn: db.Connection, traced: Collector
) -> None:
    async with peer(says(204)) as there:
        url = f"{there.url}/hook/s3cret?key=s3cret"
        pipeline = [{"id": "hi", "uses": "set", "with": {"x": 1}}, asks(url)]
        run = await started(await serve(), pipeline, traceparent=THEIRS)
        await crew.once()
        (heard,) = there.heard
    await traces.close()
    request = traced.one("POST /tasks/{task}/run_now")
    due, attempt = traced.one("due work"), traced.one("run")
    step, call = traced.one("step http.request"), traced.one("HTTP GET")
    chain = [request, due, attempt, step, call]
    assert {span.trace for span in chain} == {TRACE}
    assert [span.parent for span in chain] == [THEIRS[36:52], *(span.id for span in chain[:-1])]
    assert [span.kind for span in chain] == [SERVER, PRODUCER, CONSUMER, 1, CLIENT]
    assert heard.headers["traceparent"] == call.traceparent
    assert (await kept(conn, run))[0] == request.traceparent
    assert traced.one("step set").parent == attempt.id
    assert request.facts["http.response.status_code"] == 200
    assert attempt.facts["orchestrator.run.id"] == run
    assert attempt.facts["orchestrator.outcome"] == "succeeded"
    assert (step.facts["orchestrator.step"], call.facts["http.response.status_code"]) == (
        "ask",
        204,
    )
    assert due.began <= due.ended <= attempt.ended and call.began >= step.began
    assert set(traced.posts) == {"/v1/traces"} and "s3cret" not in str(traced.spans)


async def test_processes_export_under_their_names(
    crew: Crew, conn: db.Connection, collector: Collector
) -> None:
    run = await enqueue(conn, {"uses": "set", "with": {"x": 1}})
    settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url + "/"}
    assert await exit_status(crew.process("--once", environment=settings), 60) == 0
    attempt = collector.one("run")
    assert (attempt.service, attempt.facts["orchestrator.run.id"]) == ("orchestrator-worker", run)


async def test_the_attempts_of_a_run_that_no_request_made_are_one_trace(
    crew: Crew, conn: db.Connection, traced: Collector
) -> None:
    async with peer(says(503)) as there:
        often = {"max_attempts": 2, "backoff": "fixed", "backoff_seconds": "0"}
        run = await enqueue(conn, asks(there.url), **often)
        await crew.once()
    await traces.close()
    attempts = traced.named("run")
    assert [span.trace for span in attempts] == [UUID(run).hex] * 2
    assert [span.facts["orchestrator.attempt"] for span in attempts] == [1, 2]
    assert all(span.failed for span in attempts)


async def test_a_child_run_is_below_the_step_that_made_it(
    crew: Crew, conn: db.Connection, traced: Collector
) -> None:
    child = [{"id": "inner", "uses": "set", "with": {"x": 1}}]
    await enqueue(conn, {"id": "do", "uses": "flow.run", "with": {"pipeline": child}})
    await crew.once()
    await traces.close()
    steps = {span.id: span for span in traced.named("step flow.run")}
    (inner,) = traced.named("step set")
    (run,) = [span for span in traced.named("run") if span.id == inner.parent]
    (due,) = [span for span in traced.named("due work") if span.id == run.parent]
    assert due.parent in steps and steps[due.parent].trace == inner.trace


async def test_what_fails_is_marked_by_its_kind_and_not_by_its_words(traced: Collector) -> None:
    config = Config(allow_targets=("127.0.0.1",))
    context = Context(config, "t", "r", 1, 1, None, {}, traceparent=THEIRS)
    async with peer(says(503)) as there:
        asked = http_request.Call(url=there.url + "/s3cret")
        assert isinstance(await http_request.run(asked, context), Retry)
    refused = http_request.Call(url="http://10.0.0.1/s3cret")
    assert isinstance(await http_request.run(refused, context), Fail)
    await traces.close()
    answered, forbidden = traced.named("HTTP GET")
    assert (answered.failed, answered.facts["error.type"]) == (True, "503")
    assert (forbidden.failed, forbidden.facts["error.type"]) == (True, "authorization")
    assert "s3cret" not in str(traced.spans)


INVALID = [
    "", "00", THEIRS[:-1], THEIRS + "0", THEIRS.upper(), THEIRS + "-more", "ff" + THEIRS[2:],
    f"00-{'0' * 32}-00f067aa0ba902b7-01", f"00-{TRACE}-{'0' * 16}-01", "00-a-b-01", "x" * 5000,
    THEIRS.replace("-", "_"),
]  # fmt: skip


@pytest.mark.parametrize("header", INVALID)
def test_a_traceparent_that_is_none_is_ignored(header: str) -> None:
    assert traces.received([header]) is None


def test_one_that_comes_twice_is_none_and_a_later_version_is_one() -> None:
    assert traces.received([THEIRS, THEIRS]) is None
    assert traces.received([]) is None
    assert traces.received([THEIRS]) == THEIRS
    assert traces.received(["cc" + THEIRS[2:] + "-what-comes-later"]) == THEIRS


async def test_an_invalid_one_reaches_no_run_and_begins_a_trace_of_its_own(
    serve: Serve, crew: Crew, conn: db.Connection, traced: Collector
) -> None:
    run = await started(await serve(), [{"uses": "set", "with": {}}], traceparent="00-a-b-01")
    await traces.close()
    request = traced.one("POST /tasks/{task}/run_now")
    assert request.parent == ""
    assert (await kept(conn, run))[0] == request.traceparent


async def test_what_a_caller_does_not_sample_is_not_recorded_and_goes_on(
    serve: Serve, crew: Crew, conn: db.Connection, traced: Collector
) -> None:
    run = await started(await serve(), [{"uses": "set", "with": {}}], traceparent=THEIRS[:-1] + "0")
    await traces.close()
    assert traced.named("POST /tasks/{task}/run_now") == []
    trace, _ = await kept(conn, run)
    assert trace is not None and trace[3:35] == TRACE and trace.endswith("-00")


async def test_probes_and_scrapes_are_not_traced(serve: Serve, traced: Collector) -> None:
    running = await serve()
    for path in ("/ping", "/health", "/health/live", "/health/ready", "/metrics"):
        await running.client.get(path)
    await traces.close()
    assert traced.spans == []


# Without a collector


async def test_without_a_collector_a_trace_goes_through_to_what_a_step_asks(
    serve: Serve, crew: Crew, conn: db.Connection
) -> None:
    assert not traces.is_on()
    async with peer(says(204)) as there:
        run = await started(
            await serve(), [asks(there.url)], traceparent=THEIRS, **{"X-Request-ID": "r-1"}
        )
        assert await kept(conn, run) == (THEIRS, "r-1")
        await crew.once()
        assert there.heard[0].headers["traceparent"] == THEIRS
    assert await kept(conn, run) == (THEIRS, "r-1")


def test_without_a_collector_the_sdk_is_not_imported() -> None:
    look = (
        "import sys, orchestrator.cli, orchestrator.api, orchestrator.relay, orchestrator.worker;"
        "orchestrator.worker.traces.setup(orchestrator.config.Config(), 'worker');"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    ended = subprocess.run([sys.executable, "-c", look], capture_output=True, check=True)
    assert ended.stdout.strip() == b"[]"


async def test_a_trace_ends_with_its_transaction(
    serve: Serve, crew: Crew, conn: db.Connection
) -> None:
    running = await serve(pool_size=1)
    first = await started(running, [{"uses": "set", "with": {}}], traceparent=THEIRS)
    second = await started(running, [{"uses": "set", "with": {}}])
    assert (await kept(conn, first))[0] == THEIRS
    assert (await kept(conn, second))[0] is None


@pytest.mark.parametrize("when", ["", " when event.payload > 1"])
async def test_runs_that_an_event_starts_are_in_the_trace_of_who_published_it(
    serve: Serve, crew: Crew, conn: db.Connection, when: str
) -> None:
    running = await serve()
    said = {"title": "T", "schedule_kind": "event", "schedule_expr": f"paid{when}",
            "payload": {"pipeline": [{"uses": "set", "with": {}}]}}  # fmt: skip
    await running.client.post("/tasks", json=said, headers=KEY)
    event, headers = {"topic": "paid", "payload": 2}, {**KEY, "traceparent": THEIRS}
    answer = await running.client.post("/events", json=event, headers=headers)
    assert answer.json()["details"]["triggered_tasks"] == 1
    rows = await (await conn.execute("select id from orc.runs")).fetchall()
    request = answer.headers["x-request-id"]
    assert [await kept(conn, str(row["id"])) for row in rows] == [(THEIRS, request)]


async def test_whoever_enqueues_by_sql_may_say_the_trace(crew: Crew, conn: db.Connection) -> None:
    await conn.execute(f"set orchestrator.traceparent = '{THEIRS}'")
    one = await enqueue(conn, {"uses": "set", "with": {}})
    (other,) = await enqueue_many(conn, 1, {"uses": "set", "with": {}})
    await conn.execute("reset orchestrator.traceparent")
    for run in (one, other):
        assert (await kept(conn, run))[0] == THEIRS
    await conn.execute("set orchestrator.traceparent = 'nonsense'")
    with pytest.raises(psycopg.errors.CheckViolation):
        await enqueue(conn, {"uses": "set", "with": {}})


# Collectors that are sick


def spend(count: int) -> float:
    """Seconds that so many spans cost whoever makes them."""
    began = own_clock()
    for _ in range(count):
        traces.begin("s", None, facts={"a": 1}).end()
    return own_clock() - began


def quiet(hears: bool = True) -> socket.socket:
    """Takes connections, if it hears, and says nothing."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    if hears:
        listener.listen(100)
    return listener


async def test_a_dead_collector_costs_one_line_and_no_time(lines: Lines) -> None:  # noqa: F811
    with quiet(hears=False) as listener:
        port = listener.getsockname()[1]
        traces.setup(Config(otlp_endpoint=f"http://127.0.0.1:{port}"), "test")
        assert spend(20_000) < 10
        wait_for(lambda: any(line.get("action") == "traces_are_lost" for line in lines()))
        assert spend(20_000) < 10
        began = own_clock()
        await traces.close()
        assert own_clock() - began < 5
    (line,) = lines()
    assert (line["level"], line["collector"]) == ("warning", f"http://127.0.0.1:{port}/v1/traces")


async def test_a_silent_collector_holds_nobody_up(lines: Lines) -> None:  # noqa: F811
    with quiet() as listener:
        port = listener.getsockname()[1]
        traces.setup(Config(otlp_endpoint=f"http://127.0.0.1:{port}"), "test")
        assert spend(20_000) < 10
        began = own_clock()
        await traces.close()
        assert own_clock() - began < 6


async def test_a_collector_that_is_back_is_told_so(
    collector: Collector, lines: Lines  # noqa: F811
) -> None:  # fmt: skip
    collector.status = 400
    traces.setup(Config(otlp_endpoint=collector.url), "test")
    spend(1)
    wait_for(lambda: [line["action"] for line in lines()] == ["traces_are_lost"])
    collector.status = 200
    spend(1)
    wait_for(lambda: [line["action"] for line in lines()][1:] == ["traces_are_exported_again"])
    await traces.close()


def wait_for(holds: Callable[[], Any], within: float = 30) -> None:
    deadline = time.monotonic() + within
    while not holds():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


# Logs


async def test_lines_of_a_run_say_the_request_and_the_trace_that_it_came_from(
    serve: Serve, crew: Crew, lines: Lines  # noqa: F811
) -> None:  # fmt: skip
    bad = {"id": "bad", "uses": "python.call", "with": {"function": "deeds:nothing_like_this"}}
    pure = {"id": "bad", "uses": "assert", "with": {"that": False}}
    running = await serve()
    for pipeline in ([bad], [pure]):
        await started(running, pipeline, traceparent=THEIRS, **{"X-Request-ID": "r-7"})
    await crew.once()
    failed = [line for line in lines() if line.get("action") == "attempt_failed"]
    assert [(line["correlation_id"], line["trace_id"]) for line in failed] == [("r-7", TRACE)] * 2
    others = [line for line in lines() if line.get("action") == "registered"]
    assert [(line["correlation_id"], line["trace_id"]) for line in others] == [(None, None)]
