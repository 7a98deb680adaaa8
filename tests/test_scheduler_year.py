"""A year in seconds: schedulers die and stand still, and the ledger has each instant once.

The clock is steered. Five schedulers tick while it moves; their connections are ended, they are
killed in the middle of a call and replaced by others that know nothing, and now and then all of
them stand still for days. In the end, what the ledger has of each task is what its rule says.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import msgspec
import psycopg
import pytest
from conftest import Make

from orchestrator import db
from orchestrator.errors import Problem
from orchestrator.scheduler import Ticker
from orchestrator.schedules.rules import compile_rule

START = datetime(2027, 1, 1, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
ZONES = (
    "Europe/Chisinau", "America/New_York", "Australia/Lord_Howe", "Africa/Casablanca",
    "Asia/Kathmandu", "UTC", "America/Santiago", "Pacific/Chatham",
)  # fmt: skip
SAID = ("kind", "expr", "zone", "dst_gap", "dst_fold")


BUSY = "select orc._rest() <= 0 or exists (select from orchestrator.plan where wants_more)"
RUNS = """
with runs as (
  select task_id, nominal_at, due_at from orchestrator.run union all
  select task_id, nominal_at, due_at from orchestrator.due_work)
"""


class Span(msgspec.Struct):
    tasks: int
    days: int
    seconds: float


SHORT = Span(tasks=200, days=45, seconds=60)
YEAR = Span(tasks=2000, days=365, seconds=900)


class World:
    """One clock, the schedulers, and what happens to them."""

    def __init__(self, url: str, make: Make, chance: random.Random) -> None:
        self.url, self.make, self.chance = url, make, chance
        self.now = START
        self.moved = asyncio.Event()
        self.crew: list[asyncio.Task[None]] = []
        self.blows: Counter[str] = Counter()

    def start(self) -> None:
        self.crew = [task for task in self.crew if not task.done()]
        while len(self.crew) < 5:
            self.crew.append(asyncio.create_task(self._schedule()))

    async def _schedule(self) -> None:
        """A scheduler: ticks while there is anything to do, and again when time has passed."""
        config = self.make.config(pool_size=1)
        async with Steered(self, config, role="orc_worker", application="scheduler") as pool:
            ticker = Ticker(pool)
            while True:
                seen = self.now
                try:
                    if await ticker.once() or await ticker.has_answers():
                        continue
                except (psycopg.Error, Problem):
                    self.blows["a tick failed"] += 1
                    continue
                with suppress(TimeoutError):
                    if self.now == seen:
                        await asyncio.wait_for(self.moved.wait(), 0.2)

    async def blow(self, conn: db.Connection) -> None:
        """Ends a connection, kills a scheduler in whatever it does, or does nothing."""
        how = self.chance.choice(["end", "kill", "nothing", "nothing"])
        self.blows[how] += 1
        if how == "end":
            await conn.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where application_name = 'scheduler' and datname = current_database()"
                " order by random() limit 1"
            )
        elif how == "kill":
            self.chance.choice(self.crew).cancel()

    async def stop(self) -> None:
        """A task whose connection ends while it is canceled hears of that alone."""
        while alive := [task for task in self.crew if not task.done()]:
            for task in alive:
                task.cancel()
            await asyncio.wait(alive, timeout=1)

    async def pass_time(self, conn: db.Connection, step: timedelta) -> None:
        self.now += step
        await steer(conn, self.now)
        self.moved.set()
        self.moved.clear()

    async def calm(self, conn: db.Connection, deadline: float) -> None:
        """Until nothing is due, and nothing is to be computed."""
        while await ask(conn, BUSY):
            assert time.monotonic() < deadline, f"it hangs at {self.now}"
            self.start()
            await asyncio.sleep(0.005)


class Steered(db.Pool):
    """Connections on which it is as late as in the world."""

    def __init__(self, world: World, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.world = world

    async def _call(self, verb: str, arguments: dict[str, Any]) -> list[db.Row]:
        async def once() -> list[db.Row]:
            async with self.connection() as connection:
                await steer(connection, self.world.now)
                return await db.call(connection, verb, **arguments)

        return await self._reachable(once)


async def steer(conn: db.Connection, now: datetime) -> None:
    await conn.execute("select set_config('orchestrator.now', %s, false)", [now.isoformat()])


async def ask(conn: db.Connection, text: str, *given: Any) -> Any:
    row = await (await conn.execute(text.encode(), given)).fetchone()
    assert row is not None
    return next(iter(row.values()))


def rule(chance: random.Random) -> dict[str, str]:
    """Hours at which clocks jump are likely."""
    minute, hour = chance.choice((0, 0, 15, 30, 59)), chance.choice((0, 1, 2, 3, 9, 17, 23))
    day, monthday = chance.randrange(7), chance.choice((1, 13, 29, 30, 31))
    texts = [f"{minute} {hour} * * {day}"] * 8 + [f"{minute} {hour} {monthday} * *"] * 4
    texts += [f"{minute} {hour} * * *"] * 2 + [f"{minute} {hour} 29 2,3 *", f"{minute} */6 * * *"]
    text = chance.choice(texts)
    kind = "cron"
    if chance.random() < 0.3:
        kind, text = "rrule", chance.choice([
            "FREQ=WEEKLY;INTERVAL=2;BYDAY=MO,TH;BYHOUR=2;BYMINUTE=30", "FREQ=DAILY;INTERVAL=3",
            "FREQ=MONTHLY;BYDAY=-1FR", "FREQ=WEEKLY;COUNT=5", "FREQ=MONTHLY;BYMONTHDAY=-1;BYHOUR=3",
        ])  # fmt: skip
    elif chance.random() < 0.05:
        kind, text = "once", f"2027-02-{chance.randrange(1, 29):02}T02:30"
    return {
        "kind": kind, "expr": text, "zone": chance.choice(ZONES),
        "dst_gap": chance.choice(("shift", "shift", "next_valid", "skip")),
        "dst_fold": chance.choice(("second", "second", "first", "both")),
    }  # fmt: skip


async def make_tasks(conn: db.Connection, count: int, chance: random.Random) -> dict[str, Any]:
    """Their rules, by id."""
    rules = {}
    pipeline = {"pipeline": [{"id": "a", "uses": "set", "with": {}}]}
    async with conn.transaction():
        for number in range(count):
            said = rule(chance)
            row = await db.call_one(
                conn, "create_task", tenant=f"t{number % 7}", title=f"T{number}", payload=pipeline,
                schedule_kind=said["kind"], schedule_expr=said["expr"], timezone=said["zone"],
                dst_gap=said["dst_gap"], dst_fold=said["dst_fold"],
                catch_up=chance.choice(("none", "latest", "all")),
                overlap=chance.choice(("allow", "skip", "queue", "replace")),
                jitter_seconds=chance.choice((0, 0, 600)),
            )  # fmt: skip
            rules[row["create_task"]["id"]] = said
    return rules


async def work_off(conn: db.Connection) -> None:
    """Runs of now are claimed and succeed."""
    made = await db.call_one(conn, "register_worker", queues=["default"], slots=1000)
    claim = partial(db.call, conn, "claim_work", worker=made["worker"], want=1000)
    while runs := await db.again(claim):
        outcomes = [
            {"tenant": run["tenant_id"], "run": run["run_id"], "epoch": run["epoch"],
             "outcome": "succeeded"} for run in runs
        ]  # fmt: skip
        said = {"worker": made["worker"], "outcomes": outcomes}
        assert not await db.again(partial(db.call, conn, "settle_work", **said))


@asynccontextmanager
async def partitions(conn: db.Connection, world: World) -> AsyncIterator[None]:
    """Nothing is forgotten meanwhile, and nothing lies astray in the end."""
    await conn.execute(
        "update orchestrator.partitioned set retention = null, span = '31 days', ahead = 1"
    )
    yield
    while any(row["action"] != "busy" for row in await db.call(conn, "keep_partitions")):
        pass
    await conn.execute("reset orchestrator.now")
    await db.call(conn, "keep_partitions")


@pytest.mark.parametrize("span", [SHORT, pytest.param(YEAR, marks=pytest.mark.soak)])
async def test_each_instant_of_a_year_is_in_the_ledger_once_whatever_happens_to_schedulers(
    database: str, conn: db.Connection, make: Make, span: Span
) -> None:
    chance = random.Random(span.tasks)
    world, deadline = World(database, make, chance), time.monotonic() + span.seconds
    await conn.execute("set statement_timeout = '5min'")
    conn.deadline = 300
    async with partitions(conn, world):
        await steer(conn, START)
        rules = await make_tasks(conn, span.tasks, chance)
        end = START + DAY * span.days
        while world.now < end:
            if chance.random() < 0.02:
                world.blows["all stood still"] += 1
                await world.stop()
                await world.pass_time(conn, chance.uniform(0, 5) * DAY)
            world.start()
            await world.pass_time(conn, chance.uniform(1, 23) * HOUR)
            await world.blow(conn)
            if chance.random() < 0.7:
                await world.calm(conn, deadline)
            if chance.random() < 0.3:
                await work_off(conn)
            if chance.random() < 0.1:
                await db.call(conn, "keep_partitions")
        await world.calm(conn, deadline)
        await world.stop()
        await work_off(conn)
        await compare(conn, rules, world.now)
    print(dict(world.blows))


async def compare(conn: db.Connection, rules: dict[str, Any], now: datetime) -> None:
    cursor = await conn.execute(
        "select task_id::text, array_agg(nominal_at order by nominal_at) as instants,"
        " bool_or(decided_at < nominal_at) as early from orchestrator.occurrence group by 1"
    )
    ledger = {row["task_id"]: row for row in await cursor.fetchall()}
    states = await conn.execute("select state, count(*) from orchestrator.occurrence group by 1")
    print({row["state"]: row["count"] for row in await states.fetchall()})
    for task, said in rules.items():
        known = compile_rule(*(said[name] for name in SAID[:3]), anchor=START,
                             dst_gap=said["dst_gap"], dst_fold=said["dst_fold"])  # fmt: skip
        # With jitter, an instant is acted on up to ten minutes later.
        due = [moment.at for moment in known.after(START, 100_000, now).items]
        found = ledger.get(task, {"instants": [], "early": False})
        assert found["instants"] in (due, due[:-1] if due and now - due[-1] < HOUR / 6 else due), (
            said
        )
        assert not found["early"], said
    assert await ask(conn, RUNS + "select count(*) from runs where due_at <> nominal_at") == 0
    made = await ask(conn, RUNS + "select count(distinct (task_id, nominal_at)) from runs")
    assert await ask(conn, RUNS + "select count(*) from runs") == made > 0
    fired = "select count(*) from orchestrator.occurrence where state = 'fired'"
    assert await ask(conn, fired) == made
