"""The scheduler process: it fires in time, rests until then, and nothing keeps it from either."""

from __future__ import annotations

import asyncio
import json
import signal
import statistics
import urllib.request
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import Clock, Connect, Make, free_port
from crew import Crew, exit_status, until
from psycopg.types.json import Jsonb

from orchestrator import db, devpg, schema
from orchestrator.config import Config
from orchestrator.scheduler import Ticker
from orchestrator.scheduler.clock import Clock as AlarmClock

Start = Callable[[], devpg.Cluster]
SECOND = timedelta(seconds=1)
SKEWED = str(Path(__file__).parent / "skewed")
SET = {"pipeline": [{"id": "a", "uses": "set", "with": {}}]}
TASKS = """
select orc.create_task(tenant => 't', title => 'T' || n, schedule_kind => 'once',
  schedule_expr => to_char(%(at)s at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.USZ'),
  payload => %(payload)s, instants => array[%(at)s], known_to => 'infinity') ->> 'id' as id
from generate_series(1, %(count)s) as n
"""
LATE = """
select extract(epoch from started_at - nominal_at)::float8 as late from (
  select started_at, nominal_at from orchestrator.run union all
  select started_at, nominal_at from orchestrator.due_work) as r
"""
LIVES = "select exists (select from orc.schedulers where is_live) as yes"
WORKS = "select exists (select from orc.workers where state = 'live') as yes"
TICKS = (
    "select coalesce(sum(calls), 0)::int as n from pg_stat_user_functions where funcname = 'tick'"
)


@pytest.fixture
async def crew(make: Make) -> AsyncIterator[Crew]:
    crew = Crew(make.config())
    yield crew
    await crew.end()


async def ask(conn: db.Connection, text: str, *given: Any) -> Any:
    row = await (await conn.execute(text.encode(), given or None)).fetchone()
    assert row is not None
    return next(iter(row.values()))


async def once_at(conn: db.Connection, at: datetime, count: int = 1) -> list[str]:
    """Tasks of one instant."""
    ids: list[str] = []
    while len(ids) < count:
        said = {"at": at, "payload": Jsonb(SET), "count": min(100, count - len(ids))}
        ids += [row["id"] for row in await (await conn.execute(TASKS, said)).fetchall()]
    return ids


async def now(conn: db.Connection) -> datetime:
    moment = await ask(conn, "select clock_timestamp() as now")
    assert isinstance(moment, datetime)
    return moment


async def lateness(conn: db.Connection, count: int, within: float = 60) -> list[float]:
    """Seconds from the instants to the starts of the runs, when so many have started."""

    async def all_started() -> bool:
        rows = await (await conn.execute(LATE)).fetchall()
        found[:] = [row["late"] for row in rows if row["late"] is not None]
        return len(found) >= count

    found: list[float] = []
    await until(all_started, within)
    return sorted(found)


async def scheduler_and_worker(crew: Crew, conn: db.Connection, **environment: str) -> Any:
    crew.process("--slots", "1000", environment={"LOG_LEVEL": "error"})
    process = crew.process(name="scheduler", environment=environment)
    await until(lambda: ask(conn, WORKS), 60)
    await until(lambda: ask(conn, LIVES), 60)
    return process


# In time


async def test_a_thousand_tasks_of_the_same_second_start_at_once(
    crew: Crew, conn: db.Connection
) -> None:
    await scheduler_and_worker(crew, conn)
    at = (await now(conn)).replace(microsecond=0) + 3600 * SECOND
    await once_at(conn, at, 1000)
    soon = (await now(conn)).replace(microsecond=0) + 2 * SECOND
    await conn.execute(
        "update orchestrator.plan set upcoming = array[%s], next_at = %s", [soon, soon]
    )
    late = await lateness(conn, 1000)
    assert len(late) == 1000 and late[0] >= 0
    assert late[-1] < 5, f"0.3 s on a quiet machine: {late[-1]}"


@pytest.mark.parametrize("skew", [-3600, 0, 3600])
async def test_a_task_starts_at_its_instant_whatever_the_schedulers_own_clock_says(
    crew: Crew, conn: db.Connection, skew: int
) -> None:
    process = await scheduler_and_worker(
        crew, conn, TEST_SKEW=str(skew), PYTHONPATH=SKEWED, LOG_LEVEL="info"
    )
    base = await now(conn) + SECOND
    for step in range(10):
        await once_at(conn, base + step * SECOND * 0.171)
    late = await lateness(conn, 10)
    assert late[0] >= 0, "never before, by the database's clock"
    assert statistics.median(late) < 0.8, f"0.01 s on a quiet machine: {late}"
    process.terminate()
    assert await exit_status(process, within=30) == 0
    said = json.loads(process.stderr.read().splitlines()[0])
    believed = datetime.fromisoformat(said["timestamp"])
    assert abs((believed - await now(conn)).total_seconds() - skew) < 60, "it has a wrong clock"


async def test_without_hints_a_new_task_is_found_within_a_second(
    crew: Crew, conn: db.Connection
) -> None:
    crew.process(environment={"LOG_LEVEL": "error"})
    crew.process(name="scheduler", environment={"DATABASE_POOLER": "true"})
    await until(lambda: ask(conn, LIVES), 60)
    await until(lambda: ask(conn, WORKS), 60)
    await once_at(conn, await now(conn))
    await lateness(conn, 1)
    await once_at(conn, await now(conn) + 1.5 * SECOND)
    assert (await lateness(conn, 2))[0] < 0.8


# Rest


async def test_it_rests_until_the_next_instant(crew: Crew, conn: db.Connection) -> None:
    name = await ask(conn, "select current_database() as name")
    await conn.execute(f'alter database "{name}" set track_functions = "all"'.encode())
    await scheduler_and_worker(crew, conn)
    await once_at(conn, await now(conn) + 3 * SECOND)
    await lateness(conn, 1)
    assert 3 <= await ask(conn, TICKS) < 25


async def test_what_somebody_else_holds_is_not_asked_for_all_the_time(
    crew: Crew, conn: db.Connection, connect: Connect
) -> None:
    name = await ask(conn, "select current_database() as name")
    await conn.execute(f'alter database "{name}" set track_functions = "all"'.encode())
    holder = await connect()
    await once_at(conn, await now(conn))
    async with holder.transaction():
        await holder.execute("select from orchestrator.plan for update")
        await scheduler_and_worker(crew, conn)
        await asyncio.sleep(2)
    await lateness(conn, 1)
    assert 3 <= await ask(conn, TICKS) < 80


async def test_chores_go_on_when_somebody_sets_the_machines_clock_back() -> None:
    did = asyncio.Event()

    async def chores() -> int:
        did.set()
        return 0

    wall = AlarmClock(asyncio.Event(), chores)
    try:
        await asyncio.wait_for(did.wait(), 10)
        hour = timedelta(hours=1)
        wall.jobs.modify_job("chores", next_run_time=datetime.now(UTC) + hour)  # so it would be
        wall.keep()
        assert wall.jobs.get_job("chores").next_run_time > datetime.now(UTC) + hour / 2
        wall.offset += hour.total_seconds()
        did.clear()
        wall.keep()
        await asyncio.wait_for(did.wait(), 10)
    finally:
        await wall.stop()


# What goes wrong


async def test_chores_that_hang_or_fail_do_not_keep_tasks_from_firing(
    crew: Crew, conn: db.Connection, connect: Connect
) -> None:
    await scheduler_and_worker(crew, conn)
    await conn.execute("alter function orc.fill_keys() rename to gone")
    holder = await connect()
    async with holder.transaction():
        await holder.execute("lock table orchestrator.wait in access exclusive mode")
        hangs = (
            "select exists (select from pg_locks where not granted"
            " and relation = 'orchestrator.wait'::regclass) as yes"
        )
        await until(lambda: ask(conn, hangs), 60)
        await once_at(conn, await now(conn) + SECOND / 2, 5)
        assert (await lateness(conn, 5))[-1] < 2
        assert await ask(conn, hangs)
    await conn.execute("alter function orc.gone() rename to fill_keys")


async def test_a_task_that_cannot_be_fired_does_not_hold_the_others_up(
    make: Make, conn: db.Connection, clock: Clock
) -> None:
    at = datetime(2027, 3, 1, tzinfo=UTC)
    await clock.set(at - SECOND)
    ids = await once_at(conn, at, 20)
    await conn.execute(
        f"""
        create function public.refuse() returns trigger language plpgsql as $$
        begin
          if new.task_id = '{ids[7]}' then raise 'no room'; end if;
          return new;
        end $$;
        create trigger refuses before insert on orchestrator.due_work
        for each row execute function public.refuse()""".encode()
    )
    await clock.set(at)
    first = await db.call_one(conn, "tick", scheduler="a")
    assert (first["fired"], first["decided"]) == (19, 20)
    assert first["failed"] == [{"part": "firing", "task": ids[7], "error": "no room"}]
    problem = await ask(conn, "select problem from orc.tasks where problem is not null")
    assert problem == "it can't be fired: no room"
    assert (await db.call_one(conn, "tick", scheduler="a"))["decided"] == 0, "not before a minute"
    await conn.execute("drop trigger refuses on orchestrator.due_work")
    await clock.set(at + 60 * SECOND)
    assert (await db.call_one(conn, "tick", scheduler="a"))["fired"] == 1
    assert await ask(conn, "select count(*) from orc.tasks where problem is not null") == 0
    await db.call(conn, "keep_partitions")
    await conn.execute("reset orchestrator.now")
    await db.call(conn, "keep_partitions")


async def test_events_that_cannot_be_decided_do_not_keep_time_from_passing(
    conn: db.Connection,
) -> None:
    await once_at(conn, await now(conn), 3)
    await conn.execute(
        "create or replace function orc._decide_events(most integer, out occurrences integer,"
        " out runs integer) language plpgsql as $$ begin raise 'no way'; end $$"
    )
    row = await db.call_one(conn, "tick", scheduler="a")
    assert row["fired"] == 3
    assert row["failed"] == [{"part": "events", "error": "no way"}]


async def test_a_tick_that_takes_too_long_is_followed_by_shorter_ones(
    make: Make, conn: db.Connection
) -> None:
    await once_at(conn, await now(conn), 600)
    await conn.execute(
        "create function public.slow() returns trigger language plpgsql as"
        " $$ begin perform pg_sleep(0.002); return new; end $$;"
        "create trigger slow before insert on orchestrator.due_work"
        " for each row execute function public.slow()"
    )
    async with db.Pool(
        make.config(database_timeout=1.0), role="orc_worker", application="t"
    ) as pool:
        ticker, failures = Ticker(pool), 0
        while await ask(conn, "select count(*) from orchestrator.due_work") < 600:
            try:
                await ticker.once()
            except Exception:
                failures += 1
            assert failures < 10
    assert failures > 0


async def test_the_database_goes_away_and_comes_back(own_server: Start) -> None:
    cluster = own_server()
    await schema.install(cluster.tcp_url)
    crew = Crew(Config(database_url=cluster.tcp_url), quiet=True)
    try:
        async with await db.connect(cluster.tcp_url) as conn:
            await scheduler_and_worker(crew, conn)
        devpg.stop(cluster.data.parent, mode="immediate")
        await asyncio.sleep(0.5)
        own_server()
        async with await db.connect(cluster.tcp_url) as conn:
            await once_at(conn, await now(conn) + SECOND)
            assert (await lateness(conn, 1))[0] >= 0
            assert await ask(conn, "select count(*) from orc.check()") == 0
    finally:
        await crew.end()


async def test_it_says_that_it_lives_and_stops_when_told(crew: Crew, conn: db.Connection) -> None:
    port = str(free_port())
    process = crew.process("--health-port", port, name="scheduler")
    await until(lambda: ask(conn, LIVES), 60)

    def status(path: str) -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/{path}") as answer:
            return int(answer.status)

    assert await asyncio.to_thread(status, "live") == 200
    assert await asyncio.to_thread(status, "ready") == 200
    process.send_signal(signal.SIGTERM)
    assert await exit_status(process, within=30) == 0
    assert process.stderr is not None
    lines = [json.loads(line) for line in process.stderr.read().splitlines()]
    said = [line.get("action") for line in lines]
    assert said[0] == "started" and said[-1] == "stopped", lines


# What a tick costs, and what a monitor sees


async def test_a_tick_touches_what_is_due_and_not_what_exists(conn: db.Connection) -> None:
    at = await now(conn)
    await once_at(conn, at + 3600 * SECOND, 2000)
    await once_at(conn, at, 5)
    await db.call(conn, "tick", scheduler="a", most=1)
    async with conn.transaction():
        before = await reads(conn)
        assert (await db.call_one(conn, "tick", scheduler="a"))["fired"] == 4
        after = await reads(conn)
    for table in ("plan", "task", "rule"):
        assert after[table][0] == before[table][0], f"{table} is read as a whole"
        assert after[table][1] - before[table][1] < 100, table


async def reads(conn: db.Connection) -> dict[str, tuple[int, int]]:
    """Rows read in order and by indexes, so far."""
    cursor = await conn.execute(
        "select relname, seq_tup_read as all, coalesce(idx_tup_fetch, 0) as by_index"
        " from pg_stat_xact_user_tables where schemaname = 'orchestrator'"
    )
    return {row["relname"]: (row["all"], row["by_index"]) for row in await cursor.fetchall()}


async def test_schedulers_are_given_different_plans_to_compute(conn: db.Connection) -> None:
    for number in range(100):
        await db.call(
            conn, "create_task", tenant="t", title=f"T{number}", schedule_kind="cron",
            schedule_expr="0 9 * * *", payload=SET,
        )  # fmt: skip
    one, two = [
        {plan["task"] for plan in row["short"]}
        for row in [await db.call_one(conn, "tick", scheduler="a", most=20) for _ in range(2)]
    ]
    assert len(one) == len(two) == 20
    assert len(one & two) < 15, "4 of them, when they are drawn by lot"


async def test_gauges_say_how_late_it_is(make: Make, conn: db.Connection) -> None:
    gauges = "select name, value from orc.gauges() where name ~ 'schedule'"

    async def measured() -> dict[str, float]:
        rows = await (await conn.execute(gauges)).fetchall()
        return {row["name"]: row["value"] for row in rows}

    assert await measured() == {"schedulers": 0, "schedule_lateness_seconds": 0}
    await once_at(conn, await now(conn) - 30 * SECOND)
    assert 30 < (await measured())["schedule_lateness_seconds"] < 60
    await db.call(conn, "tick", scheduler="a")
    assert await measured() == {"schedulers": 1, "schedule_lateness_seconds": 0}
