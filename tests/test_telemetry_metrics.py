"""Metrics: what they promise to Prometheus, and what they cost the database."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from uuid import uuid4

import httpx2
import pytest
from conftest import Connect, Make, Running, Serve, free_port
from crew import Crew, enqueue, until
from peers import peer, says
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as strictly,
)
from prometheus_client.parser import text_string_to_metric_families as parsed
from test_plans import Plans, fill
from test_work import Work

from orchestrator import auth, db, guide, metrics, telemetry
from orchestrator.loop import answer_health

KEY = {"Authorization": f"Bearer {auth.SYSTEM_AGENT}"}
GOOD = {"uses": "set", "with": {"x": 1}}
BAD = {"uses": "assert", "with": {"that": False}}
UNITS = ("_seconds", "_bytes")


@pytest.fixture
async def crew(make: Make, conn: db.Connection) -> AsyncIterator[Crew]:
    await db.call(conn, "ensure_system_agent")
    crew = Crew(make.config(allow_targets=("127.0.0.1",)))
    yield crew
    await crew.end()


async def scraped(running: Running, accept: str = "") -> httpx2.Response:
    running.api.gauges.asked_at = -100.0
    return await running.client.get("/metrics", headers={"accept": accept})


async def figures(running: Running) -> dict[tuple[str, ...], float]:
    """By name and labels, as at the API."""
    return {
        (sample.name.removeprefix("orchestrator_"), *sample.labels.values()): sample.value
        for family in families((await scraped(running)).text)
        for sample in family.samples
    }


async def counted(conn: db.Connection) -> dict[str, int]:
    await db.call(conn, "tally_runs", whole=True)
    rows = await (await conn.execute("select * from orchestrator.tally")).fetchall()
    return {row["outcome"]: row["runs"] for row in rows if row["runs"]}


# What Prometheus expects


def families(text: str) -> list[Metric]:
    return list(parsed(text))


def check(text: str) -> None:
    """As `promtool check metrics` looks at an exposition."""
    seen: set[str] = set()
    for family in families(text):
        assert family.name not in seen, family.name
        seen.add(family.name)
        assert re.fullmatch(r"orchestrator_[a-z]+(_[a-z]+)*", family.name), family.name
        assert not re.search(r"_(ms|millis\w*|minutes|hours|kb|mb|count|sum|bucket)$", family.name)
        assert family.type in {"counter", "gauge", "histogram"}, family.name
        assert re.fullmatch(r"[A-Z].{10,}\.", family.documentation), family.name
        kinds = {(sample.name, *sorted(sample.labels.items())) for sample in family.samples}
        assert len(kinds) == len(family.samples), f"{family.name} says one thing twice"
        assert len({frozenset(sample.labels) - {"le"} for sample in family.samples}) <= 1
        if family.type == "counter":
            assert all(sample.name == f"{family.name}_total" for sample in family.samples)
        else:
            assert not family.name.endswith("_total")
        if family.type == "histogram":
            assert family.name.endswith(UNITS)
            assert not family.samples or any(
                sample.labels.get("le") == "+Inf" for sample in family.samples
            )


async def test_the_exposition_is_as_prometheus_wants_it(serve: Serve, crew: Crew) -> None:
    running = await serve()
    await running.client.get("/runs", headers=KEY)
    await running.client.get("/nothing")
    text = (await scraped(running)).text
    check(text)
    strict = await scraped(running, "application/openmetrics-text; version=1.0.0")
    assert strict.headers["content-type"].startswith("application/openmetrics-text")
    names = {family.name for family in strictly(strict.text)}  # type: ignore[no-untyped-call]
    assert {
        "orchestrator_runs_finished", "orchestrator_queue_oldest_age_seconds",
        "orchestrator_schedule_lateness_seconds", "orchestrator_worker_slots",
        "orchestrator_http_request_seconds", "orchestrator_pool_connections",
        "orchestrator_streams", "orchestrator_database_up",
    } <= names  # fmt: skip


async def test_every_figure_of_the_database_has_a_meaning(
    conn: db.Connection, connect: Connect
) -> None:
    await connect()
    await db.call(conn, "register_sinks", relay="r", sinks=[{"name": "s", "takes_events": True}])
    said = {row["name"] for row in await db.call(conn, "gauges")}
    assert said == metrics.MEANING.keys()


async def test_the_guide_names_every_metric_and_no_other(serve: Serve, conn: db.Connection) -> None:
    await db.call(conn, "register_sinks", relay="r", sinks=[{"name": "s", "takes_events": True}])
    exposed = (await scraped(await serve())).text + metrics.told(
        "", *metrics.of_worker(1, 0, {"": 0})
    )[0].decode()
    found = {f"{f.name}_total" if f.type == "counter" else f.name for f in families(exposed)}
    named = set(re.findall(r"`(orchestrator_\w+)`", guide.page("observability")))
    assert named == found


async def test_a_worker_says_its_own_on_its_port(crew: Crew, conn: db.Connection) -> None:
    await enqueue(conn, GOOD)
    worker = await crew.once()
    port = free_port()
    async with answer_health(port, lambda: True, lambda: True, worker.figures):
        async with httpx2.AsyncClient(trust_env=False) as client:
            answer = await client.get(f"http://127.0.0.1:{port}/metrics")
    check(answer.text)
    assert 'orchestrator_worker_process_runs_total{event="settled"} 1.0' in answer.text
    assert 'orchestrator_worker_process_slots{state="free"} 100.0' in answer.text


# Labels


async def test_requests_are_told_by_route_and_class_whatever_is_asked(
    serve: Serve, crew: Crew
) -> None:
    running = await serve()
    for n in range(5):
        await running.client.get(f"/runs/{uuid4()}?secret={n}", headers=KEY)
        await running.client.request(f"BREW{n}", "/runs")
    found = await figures(running)
    route = ("GET", "/runs/{run}", "4xx")
    assert found["http_request_seconds_count", *route] >= 5
    assert found["http_answers_total", "GET", "/runs/{run}", "422"] >= 5
    methods = {key[1] for key in found if key[0] == "http_answers_total"}
    assert methods <= {"GET", "POST", "PUT", "PATCH", "DELETE", "(any)"}


async def test_tools_of_operators_share_a_label(crew: Crew, conn: db.Connection) -> None:
    async with peer(says(204)) as there:
        await enqueue(conn, {"uses": "http.request", "with": {"url": there.url}})
        for n in range(3):
            await enqueue(conn, {"uses": f"server{n}.tool", "with": {}})
        await crew.once()
    labels = {
        sample.labels["tool"] for metric in telemetry.STEPS.collect() for sample in metric.samples
    }
    assert {"http.request", "operator"} <= labels
    assert not any(label.startswith("server") for label in labels)


# Figures


async def test_every_end_of_a_run_is_counted_once(
    crew: Crew, conn: db.Connection, serve: Serve
) -> None:
    running = await serve()
    assert (await figures(running))["runs_finished_total", "succeeded"] == 0
    for step in (GOOD, GOOD, BAD):
        await enqueue(conn, step)
    await crew.once()
    run = await enqueue(conn, GOOD)
    await db.call(conn, "cancel_run", tenant="t", run=run)
    found = await figures(running)
    assert [found["runs_finished_total", how] for how in ("succeeded", "failed", "canceled")] \
        == [2, 1, 1]  # fmt: skip
    assert await counted(conn) == {"succeeded": 2, "failed": 1, "canceled": 1}


async def test_a_run_whose_worker_was_lost_is_counted_as_failed(conn: db.Connection) -> None:
    work = Work(conn)
    await work.run()
    worker = await work.worker()
    assert await work.claim(worker)
    await work.do("update orchestrator.worker set expires_at = orchestrator.now()")
    await db.call(conn, "release_expired_work")
    assert await counted(conn) == {"failed": 1}


async def test_the_count_outlives_history_and_only_grows(crew: Crew, conn: db.Connection) -> None:
    await enqueue(conn, GOOD)
    await crew.once()
    await counted(conn)
    await conn.execute("delete from orchestrator.run")
    await enqueue(conn, GOOD)
    await crew.once()
    assert await counted(conn) == {"succeeded": 2}


async def test_an_exchange_that_is_rolled_back_counts_nothing(conn: db.Connection) -> None:
    work = Work(conn)
    run = await work.run()
    async with conn.transaction(force_rollback=True):
        await db.call(conn, "cancel_run", tenant="t", run=str(run))
    assert await counted(conn) == {}


async def test_what_commits_late_is_counted_by_the_whole_look(
    conn: db.Connection, connect: Connect
) -> None:
    late = await connect()
    async with late.transaction():
        await late.execute("insert into orchestrator.ending (outcome, runs) values ('failed', 7)")
        await conn.execute(
            "insert into orchestrator.ending (outcome, runs)"
            " select 'succeeded', 1 from generate_series(1, 50)"
        )
        assert (await db.call_one(conn, "tally_runs", most=10))["tally_runs"] == 10
    for _ in range(10):
        await db.call(conn, "tally_runs", most=10)
    before = await (await conn.execute("select sum(runs) as n from orchestrator.tally")).fetchone()
    assert before is not None
    assert before["n"] < 25, "it looked at what is long gone"
    assert await counted(conn) == {"succeeded": 50, "failed": 7}


async def test_two_at_once_count_nothing_twice(conn: db.Connection, connect: Connect) -> None:
    await conn.execute(
        "insert into orchestrator.ending (outcome, runs)"
        " select 'succeeded', 2 from generate_series(1, 500)"
    )
    others = [await connect() for _ in range(4)]
    await asyncio.gather(*(db.call(one, "tally_runs") for one in others))
    assert await counted(conn) == {"succeeded": 1000}


async def test_the_queue_its_workers_and_its_age(
    serve: Serve, crew: Crew, conn: db.Connection
) -> None:
    running = await serve()
    await enqueue(conn, GOOD, queue="q")
    await enqueue(conn, GOOD, due_at="2999-01-01T00:00:00Z")
    await conn.execute(
        "update orchestrator.due_work set due_at = due_at - interval '1 hour' where state = 'ready'"
    )
    await db.call(conn, "register_worker", queues=["other"], slots=7, lease="1 minute", name="n")
    found = await figures(running)
    assert 3600 <= found["queue_oldest_age_seconds",] < 3700
    assert found["live_runs", "ready"] == found["live_runs", "scheduled"] == 1
    assert found["live_runs", "running"] == found["live_runs", "blocked"] == 0
    assert found["workers", "live"] == 1
    assert (found["worker_slots", "free"], found["worker_slots", "busy"]) == (7, 0)
    await db.call(conn, "pause_queue", tenant="t", queue="q")
    assert (await figures(running))["queue_oldest_age_seconds",] == 0


async def test_what_is_due_and_was_not_promoted_is_old_as_well(
    serve: Serve, conn: db.Connection
) -> None:
    await enqueue(conn, GOOD, due_at="2999-01-01T00:00:00Z")
    await conn.execute(
        "update orchestrator.due_work set due_at = orchestrator.now() - interval '1 hour'"
    )
    assert (await figures(await serve()))["queue_oldest_age_seconds",] >= 3600


async def test_streams_and_their_end_are_seen(serve: Serve, crew: Crew) -> None:
    running = await serve()
    assert (await figures(running))["streams", "events"] == 0
    async with running.client.stream("GET", "/events/stream", headers=KEY):
        await until(lambda: running.api.streams.open["events"])
        assert (await figures(running))["streams", "events"] == 1
    await until(lambda: not running.api.streams.open["events"])


async def test_without_the_database_the_process_still_says_its_own(serve: Serve) -> None:
    running = await serve(database_url="postgresql://x@127.0.0.1:1/x")
    answer = await scraped(running)
    assert answer.status_code == 200
    check(answer.text)
    assert "orchestrator_database_up 0.0" in answer.text


async def test_a_scrape_of_a_large_backlog_reads_little(
    conn: db.Connection, connect: Connect
) -> None:
    work = Work(conn)
    await work.run()
    await fill(work, 150_000, "ready")
    await fill(work, 50_000, "waiting", waiting_for="'x'")
    await work.do("insert into orchestrator.ending (outcome, runs)"
                  " select 'succeeded', 1 from generate_series(1, 50000)")  # fmt: skip
    await db.call(conn, "advance_lanes")
    await work.do("analyze")
    fresh = Work(await connect())
    plans = Plans(fresh)
    await plans.start()
    began = time.monotonic()
    await db.call(fresh.conn, "gauges")
    assert time.monotonic() - began < 2
    reads = [
        node for node in plans.nodes() if node.get("Relation Name") in {"due_work", "run", "ending"}
    ]
    assert reads
    for node in reads:
        assert node["Node Type"] != "Seq Scan", node
        assert node["Actual Rows"] * node["Actual Loops"] <= 10_001, node
