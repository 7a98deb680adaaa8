"""What becomes of each instant of a task: catch-up, overlap, snooze, pause, and what the ledger says."""

# ruff: noqa: E501
from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from conftest import Clock
from timekeeper import HOURLY, SET, Timekeeper, at, shown

from orchestrator import db
from orchestrator.errors import Conflict, Invalid, NotFound


@pytest.fixture
async def keeper(conn: db.Connection, clock: Clock) -> AsyncIterator[Timekeeper]:
    """At half past midnight. At the end the rows of its time have partitions."""
    keeper = Timekeeper(conn, clock)
    await keeper.go("00:30")
    yield keeper
    await conn.execute("select orc.keep_partitions()")


async def test_a_briefing_fires_on_weekdays_at_half_past_eight_where_its_reader_is(
    keeper: Timekeeper,
) -> None:
    """Its first day is a Monday; between the fourth and the fifth weekend summer begins."""
    task = await keeper.task(schedule_expr="30 8 * * mon-fri", timezone="Europe/Chisinau")
    fired = []
    for day in range(35):
        for time in ("05:29:59", "05:30", "06:29:59", "06:30", "12:00"):
            await keeper.tick(f"{day} {time}")
            is_due = day % 7 < 5 and time == ("06:30" if day < 27 else "05:30")
            fired += [f"{day} {time}".removeprefix("0 ")] if is_due else []
            assert await keeper.fired(task) == fired


# Catch-up: each cause by which instants are missed, and each rule


async def downtime(k: Timekeeper, task: str) -> str:
    return "05:30"


async def pause(k: Timekeeper, task: str) -> str:
    await k.say("pause", task)
    for time in ("02:00", "03:00", "04:00", "05:00"):
        await k.tick(time)
    await k.go("05:30")
    await k.say("resume", task)
    return "05:30"


async def edit(k: Timekeeper, task: str) -> str:
    await k.go("05:30")
    await k.change(task, schedule_expr="15 * * * *")
    return "05:30"


async def enabled_again(k: Timekeeper, task: str) -> str:
    """Its rule ended while it was paused; a new one came, and then it was resumed."""
    await k.change(task, ends_at=at("03:10").isoformat())
    await k.say("pause", task)
    await k.go("03:30")
    await k.change(task, ends_at=None)
    await k.go("05:30")
    await k.say("resume", task)
    return "05:30"


async def zone_change(k: Timekeeper, task: str) -> str:
    """Where an hour begins at half past."""
    await k.go("03:30")
    await k.change(task, timezone="Asia/Kolkata")
    return "05:40"


Cause = Callable[[Timekeeper, str], Coroutine[Any, Any, str]]
MISSED: dict[Cause, list[str]] = {
    downtime: ["02:00", "03:00", "04:00", "05:00"],
    pause: ["02:00", "03:00", "04:00", "05:00"],
    edit: ["02:00", "03:00", "04:00", "05:00"],
    enabled_again: ["02:00", "03:00", "04:00", "05:00"],
    zone_change: ["02:00", "03:00", "04:30", "05:30"],
}
NEXT: dict[Cause, str] = {edit: "06:15", zone_change: "06:30"}
COALESCED = "coalesced: a later instant that was due, too, stands for it"


@pytest.mark.parametrize("cause", MISSED, ids=lambda cause: cause.__name__)
@pytest.mark.parametrize("catch_up", ["none", "latest", "all"])
async def test_what_was_missed_is_caught_up_by_the_rule(
    keeper: Timekeeper, cause: Cause, catch_up: str
) -> None:
    task = await keeper.task(catch_up=catch_up, catch_up_limit=3)
    await keeper.tick()
    await keeper.tick("01:00")
    await keeper.go("01:30")
    end = await cause(keeper, task)
    await keeper.tick(end)
    word = "paused" if cause in (pause, enabled_again) else "missed"
    expected = {
        "none": [f"skipped: {word}: catch_up is none"] * 4,
        "latest": [COALESCED] * 3 + ["fired"],
        "all": [f"skipped: {word}: catch_up_limit is 3"] + ["fired"] * 3,
    }[catch_up]
    ledger = {"01:00": "fired", **dict(zip(MISSED[cause], expected, strict=True))}
    assert await keeper.ledger(task) == ledger
    assert await keeper.fired(task) == [i for i, became in ledger.items() if became == "fired"]
    after = NEXT.get(cause, "06:00")
    assert (await keeper.look(task))["next_run_at"] == at(after).isoformat()
    await keeper.tick(after)
    assert await keeper.ledger(task) == {**ledger, after: "fired"}


@pytest.mark.parametrize("catch_up", ["none", "latest", "all"])
async def test_a_week_of_minutes_is_caught_up_in_pieces(keeper: Timekeeper, catch_up: str) -> None:
    task = await keeper.task(schedule_expr="* * * * *", catch_up=catch_up, catch_up_limit=1000)
    await keeper.tick()
    keeper.ticks = 0
    await keeper.tick("7 00:30")
    ledger = await keeper.ledger(task)
    first = at("00:31")
    assert list(ledger) == [shown(first + timedelta(minutes=n)) for n in range(7 * 1440)]
    states = Counter(became.partition(":")[0] for became in ledger.values())
    fired = {"none": 2, "latest": 1, "all": 1000}[catch_up]  # a minute is within the grace
    other = "coalesced" if catch_up == "latest" else "skipped"
    assert states == {"fired": fired, other: 7 * 1440 - fired}
    assert await keeper.fired(task) == list(ledger)[-fired:]
    assert keeper.ticks <= 30
    assert await keeper.one("select cardinality(upcoming) <= 1100 from orchestrator.plan")


async def test_the_grace_says_what_is_late(keeper: Timekeeper) -> None:
    task = await keeper.task(catch_up="none", grace_seconds=600)
    await keeper.tick()
    await keeper.tick("01:10")
    await keeper.tick("02:10:01")
    assert await keeper.ledger(task) == {
        "01:00": "fired", "02:00": "skipped: missed: catch_up is none"}  # fmt: skip


async def test_several_edits_while_no_scheduler_runs_count_each_for_its_time(
    keeper: Timekeeper,
) -> None:
    task = await keeper.task(catch_up="all")
    await keeper.go("02:10")
    await keeper.change(task, schedule_expr="30 * * * *")
    await keeper.go("04:10")
    await keeper.change(task, schedule_kind="event", schedule_expr="a.b")
    await keeper.go("06:10")
    await keeper.change(task, schedule_kind="cron", schedule_expr="45 * * * *")
    await keeper.tick("07:50")
    assert list(await keeper.ledger(task)) == ["01:00", "02:00", "02:30", "03:30", "06:45", "07:45"]
    assert len(await keeper.fired(task)) == 6


async def test_a_rule_that_can_not_be_computed_says_so_and_the_next_one_goes_on(
    keeper: Timekeeper,
) -> None:
    task = await keeper.task(timezone="Mars/Olympus")
    await keeper.tick("02:10")
    assert "Mars/Olympus" in (await keeper.look(task))["problem"]
    await keeper.change(task, timezone="UTC")
    assert (await keeper.look(task))["problem"] is None
    await keeper.tick("03:00")
    assert await keeper.ledger(task) == {"03:00": "fired"}
    await keeper.change(task, timezone="Mars/Olympus")
    await keeper.change(task, timezone="UTC")
    await keeper.tick("04:00")
    assert await keeper.ledger(task) == {"03:00": "fired", "04:00": "fired"}


async def test_what_was_known_of_a_rule_fires_though_no_more_can_be_computed(
    keeper: Timekeeper,
) -> None:
    task = await keeper.task()
    await keeper.tick()
    await keeper.go("2 00:00")
    await keeper.do("update orchestrator.rule set zone = 'Mars/Olympus'")
    await keeper.tick()
    assert (await keeper.look(task))["problem"]
    assert len(await keeper.fired(task)) == 1
    await keeper.do("update orchestrator.rule set zone = 'UTC'")
    assert await keeper.verb("replan_tasks") == 1
    await keeper.tick()
    assert len(await keeper.ledger(task)) == 48
    assert (await keeper.look(task))["problem"] is None


async def test_new_zone_data_changes_nothing_that_was_snoozed_or_fired(keeper: Timekeeper) -> None:
    task = await keeper.task()
    await keeper.tick("01:00")
    await keeper.say("snooze", task, delay_seconds=1800)
    assert await keeper.verb("replan_tasks", tenant="t") == 1
    await keeper.tick("03:00")
    assert await keeper.ledger(task) == {
        "01:00": "fired", "02:00": "fired: snoozed by 00:30:00", "03:00": "fired"}  # fmt: skip
    assert await keeper.fired(task) == ["01:00", "02:00", "03:00"]


# Overlap


async def live(k: Timekeeper, how: str, **given: Any) -> str:
    task = await k.task(**given)
    await k.tick("01:00")
    if how == "parked":
        (run,) = await k.work()
        await k.settle(
            k.here,
            {
                "tenant": "t",
                "run": run.run,
                "epoch": run.epoch,
                "outcome": "parked",
                "error": {"message": "an approval"},
            },
        )
        assert (await k.runs_of(task))[0][1] == "waiting"
    elif how == "running":
        assert len(await k.work()) == 1
    elif how == "retrying":
        await k.finish("failed", delay=86400)
        assert (await k.runs_of(task))[0][1] == "scheduled"
    elif how == "ended":
        await k.finish()
    return task


LIVE = ["queued", "running", "parked", "retrying"]


@pytest.mark.parametrize("how", [*LIVE, "ended"])
async def test_overlap_allow_lets_it_run_beside(keeper: Timekeeper, how: str) -> None:
    task = await live(keeper, how, overlap="allow")
    await keeper.tick("02:00")
    assert await keeper.fired(task) == ["01:00", "02:00"]


@pytest.mark.parametrize("how", [*LIVE, "ended"])
async def test_overlap_skip_waits_for_the_next_instant(keeper: Timekeeper, how: str) -> None:
    task = await live(keeper, how, overlap="skip")
    (run,) = await keeper.ask("select id from orc.runs")
    await keeper.tick("02:00")
    if how == "ended":
        assert await keeper.fired(task) == ["01:00", "02:00"]
        return
    assert await keeper.ledger(task) == {
        "01:00": "fired", "02:00": f"skipped: overlap: run {run['id']} has not ended"}  # fmt: skip
    assert (await keeper.look(task))["last_run_at"] == at("01:00").isoformat()
    await keeper.verb("cancel_run", tenant="t", run=run["id"])


async def test_overlap_skip_lets_only_the_first_of_many_begin(keeper: Timekeeper) -> None:
    task = await keeper.task(overlap="skip", catch_up="all")
    await keeper.tick("03:30")
    begun = "skipped: overlap: the one before it has just begun"
    assert await keeper.ledger(task) == {"01:00": "fired", "02:00": begun, "03:00": begun}


async def test_overlap_queue_lets_one_run_after_the_other_and_loses_none(
    keeper: Timekeeper,
) -> None:
    task = await keeper.task(overlap="queue", catch_up="all")
    await keeper.tick("03:30")
    for done in range(3):
        assert len(await keeper.work()) == 1
        assert len(await keeper.work()) == 0
        assert [s for _, s in await keeper.runs_of(task)].count("succeeded") == done
        rows = await keeper.ask("select id, leased_until from orc.runs where state = 'running'")
        run = {"tenant": "t", "run": str(rows[0]["id"]), "epoch": 1, "outcome": "succeeded"}
        assert await keeper.settle(keeper.here, run) == []
    assert await keeper.runs_of(task) == [(i, "succeeded") for i in ("01:00", "02:00", "03:00")]


@pytest.mark.parametrize("how", LIVE)
async def test_overlap_replace_ends_the_run_before_it(keeper: Timekeeper, how: str) -> None:
    task = await live(keeper, how, overlap="replace")
    await keeper.tick("02:00")
    if how == "running":
        assert (
            await keeper.one(
                "select count(*) from orchestrator.due_work where cancel_requested_at is not null"
            )
            == 1
        )
        row = await keeper.ask("select id from orc.runs where state = 'running'")
        await keeper.settle(
            keeper.here,
            {"tenant": "t", "run": str(row[0]["id"]), "epoch": 1, "outcome": "canceled"},
        )
    assert [s for _, s in await keeper.runs_of(task)] == ["canceled", "ready"]
    assert await keeper.ledger(task) == {"01:00": "fired", "02:00": "fired"}


async def test_overlap_replace_starts_only_the_last_of_many(keeper: Timekeeper) -> None:
    task = await keeper.task(overlap="replace", catch_up="all")
    await keeper.tick("02:30")
    assert await keeper.ledger(task) == {
        "01:00": "skipped: overlap: the one after it replaces it",
        "02:00": "fired",
    }


@pytest.mark.parametrize("overlap", ["skip", "replace"])
async def test_a_run_that_is_snoozed_is_met_by_none_before_its_time(
    keeper: Timekeeper, overlap: str
) -> None:
    task = await keeper.task(overlap=overlap)
    await keeper.tick()
    await keeper.say("snooze", task, delay_seconds=3 * 3600)
    await keeper.tick("02:00")
    await keeper.finish()
    assert await keeper.runs_of(task) == [("01:00", "scheduled"), ("02:00", "succeeded")]
    await keeper.tick("03:00")
    await keeper.finish()
    await keeper.tick("04:00")
    assert await keeper.finish() == 1
    states = dict(await keeper.runs_of(task))
    assert states["03:00"] == "succeeded"
    became = (await keeper.ledger(task))["04:00"]
    if overlap == "skip":
        assert "has not ended" in became and states["01:00"] == "succeeded"
    else:
        assert (
            became == "fired" and states["01:00"] == "canceled" and states["04:00"] == "succeeded"
        )


# Snooze


async def test_a_snooze_moves_the_next_run_and_no_other(keeper: Timekeeper) -> None:
    task = await keeper.task()
    await keeper.tick()
    said = await keeper.say("snooze", task, delay_seconds=3 * 3600, reason="the database moves")
    assert said["next_run_at"] == at("02:00").isoformat()
    for time in ("01:00", "02:00", "03:00"):
        await keeper.tick(time)
        await keeper.finish()
    assert await keeper.runs_of(task) == [
        ("01:00", "scheduled"),
        ("02:00", "succeeded"),
        ("03:00", "succeeded"),
    ]
    await keeper.tick("04:00")
    assert await keeper.finish() == 2
    assert (await keeper.ledger(task))["01:00"] == "fired: snoozed by 03:00:00: the database moves"
    assert len(await keeper.fired(task)) == 4


async def test_a_snooze_of_what_is_snoozed_and_still_next_moves_it_again(
    keeper: Timekeeper,
) -> None:
    task = await keeper.task()
    await keeper.tick()
    for minutes in (10, 20):
        said = await keeper.say("snooze", task, delay_seconds=600)
        assert said["next_run_at"] == at(f"01:{minutes}").isoformat()
    await keeper.tick("01:19")
    assert await keeper.work() == []
    await keeper.go("01:20")
    assert await keeper.finish() == 1
    await keeper.tick("02:00")
    assert await keeper.fired(task) == ["01:00", "02:00"]


async def test_a_snooze_leaves_what_was_missed_to_catch_up(keeper: Timekeeper) -> None:
    task = await keeper.task()
    await keeper.tick()
    await keeper.go("03:30")
    await keeper.say("snooze", task, delay_seconds=60)
    await keeper.tick()
    assert await keeper.ledger(task) == {
        "01:00": COALESCED, "02:00": COALESCED, "03:00": "fired", "04:00": "fired: snoozed by 00:01:00"}  # fmt: skip


async def test_a_rule_may_change_after_a_snooze(keeper: Timekeeper) -> None:
    task = await keeper.task()
    await keeper.tick()
    await keeper.say("snooze", task, delay_seconds=60)
    await keeper.change(task, schedule_expr="*/30 * * * *")
    await keeper.tick("01:00")
    await keeper.tick("01:30")
    assert await keeper.fired(task) == ["01:00", "01:30"]


async def test_a_snooze_says_why_it_can_not_be(keeper: Timekeeper) -> None:
    task = await keeper.task()
    with pytest.raises(Conflict, match="no next run"):
        await keeper.say("snooze", task, delay_seconds=60)
    await keeper.tick()
    for seconds in (0, 604801, None):
        with pytest.raises(Invalid, match="1 second to 7 days"):
            await keeper.say("snooze", task, delay_seconds=seconds)
    await keeper.say("pause", task)
    with pytest.raises(Conflict, match="paused: it can't be snoozed"):
        await keeper.say("snooze", task, delay_seconds=60)
    with pytest.raises(NotFound, match="Task not found"):
        await keeper.say("snooze", str(uuid4()), delay_seconds=60)


# Jitter, start and end, once


async def test_jitter_is_never_early_bounded_and_always_the_same(keeper: Timekeeper) -> None:
    tasks = [await keeper.task(jitter_seconds=600, title=f"T{n}") for n in range(40)]
    await keeper.tick()
    spread = set()
    for task in tasks:
        due = await keeper.one(
            "select next_at - upcoming[1] from orchestrator.plan where task_id = %s", task
        )
        assert timedelta(0) <= due < timedelta(seconds=600)
        again = await keeper.one("select orc._jitter(%s, %s, '600 s')", UUID(task), at("01:00"))
        assert due == again
        spread.add(due)
    assert len(spread) > 30 and max(spread) > timedelta(seconds=300) > min(spread)
    await keeper.tick("01:05")
    fired = {task for task in tasks if await keeper.fired(task)}
    assert 0 < len(fired) < 40
    for task in tasks:
        expected = "it fired" if task in fired else "not due"
        assert (await keeper.why(task, "01:00"))[0][0] == expected
    await keeper.tick("01:10")
    assert [await keeper.fired(task) for task in tasks] == [["01:00"]] * 40


async def test_nothing_fires_before_the_start_and_after_the_end(keeper: Timekeeper) -> None:
    task = await keeper.task(starts_at=at("02:00"), ends_at=at("04:00"))
    await keeper.tick("01:00")
    assert await keeper.ledger(task) == {}
    for time in ("02:00", "03:00", "04:00", "05:00"):
        await keeper.tick(time)
    assert await keeper.fired(task) == ["02:00", "03:00", "04:00"]
    assert (await keeper.look(task))["status"] == "completed"


async def test_probes_begin_and_end_with_their_task_and_keep_their_beat(keeper: Timekeeper) -> None:
    task = await keeper.task(
        schedule_kind="condition", schedule_expr="every 25m when result.x > 0",
        payload={**SET, "probe": {"uses": "set", "with": {"x": 1}}},
        starts_at=at("01:10"), ends_at=at("02:35"))  # fmt: skip
    for hour in range(1, 4):
        for minute in range(0, 60, 5):
            await keeper.tick(f"{hour}:{minute:02}")
    assert list(await keeper.ledger(task)) == ["01:20", "01:45", "02:10", "02:35"]
    await keeper.change(task, ends_at=None)
    await keeper.tick("04:30")
    assert list(await keeper.ledger(task))[4:] == ["04:15"], "those before the change were none"


async def test_a_completed_task_goes_on_with_a_new_rule(keeper: Timekeeper) -> None:
    task = await keeper.task(schedule_kind="once", schedule_expr="2026-03-02T01:00")
    await keeper.tick("01:00")
    assert (await keeper.look(task))["status"] == "completed"
    with pytest.raises(Conflict, match="completed: its rule has no more instants"):
        await keeper.change(task, title="U")
    with pytest.raises(Conflict, match="can't be paused"):
        await keeper.say("pause", task)
    await keeper.go("03:30")
    assert (await keeper.change(task, schedule_kind="cron", schedule_expr="0 * * * *"))[
        "status"
    ] == "active"
    await keeper.tick("04:00")
    assert await keeper.fired(task) == ["01:00", "04:00"]


async def test_an_end_that_is_moved_lets_a_completed_task_go_on(keeper: Timekeeper) -> None:
    task = await keeper.task(ends_at=at("01:00"))
    await keeper.tick("01:00")
    assert (await keeper.look(task))["status"] == "completed"
    await keeper.change(task, ends_at=at("02:00").isoformat())
    await keeper.tick("02:00")
    assert await keeper.fired(task) == ["01:00", "02:00"]
    assert (await keeper.look(task))["status"] == "completed"


async def test_a_single_time_that_is_past_runs_at_once_within_the_grace_only(
    keeper: Timekeeper,
) -> None:
    said = {"schedule_kind": "once", "schedule_expr": "2026-03-02T00:20"}
    early = await keeper.task(**said, grace_seconds=3600)
    late = await keeper.task(**said)
    await keeper.tick()
    assert await keeper.ledger(early) == {"00:20": "fired"}
    assert await keeper.ledger(late) == {}
    assert "never fires" in (await keeper.look(late))["problem"]


async def test_a_task_that_is_changed_to_a_single_time_takes_one_within_the_grace(
    keeper: Timekeeper,
) -> None:
    """What its old rule owes is owed still, and nothing of the ledger is done again."""

    async def turn(text: str) -> db.Row:
        said = {"schedule_kind": "once", "schedule_expr": f"2026-03-02T{text}"}
        found: db.Row = await keeper.say(
            "update", task, changes=said, instants=[at(text)], known_to="infinity")  # fmt: skip
        return found

    task = await keeper.task(catch_up="all", grace_seconds=3600)
    await keeper.tick("01:00")
    await keeper.go("02:10")
    await turn("01:30")
    await keeper.tick()
    assert await keeper.fired(task) == ["01:00", "01:30", "02:00"]
    assert await keeper.ledger(task) == dict.fromkeys(("01:00", "01:30", "02:00"), "fired")
    assert (await keeper.look(task))["status"] == "completed"
    with pytest.raises(Invalid, match="past: the task has gone on since"):
        await turn("01:45")
    assert (await turn("02:00"))["status"] == "completed"
    await keeper.tick("03:00")
    assert len(await keeper.ledger(task)) == 3


async def test_kinds_may_change(keeper: Timekeeper) -> None:
    task = await keeper.task()
    await keeper.tick("01:00")
    await keeper.change(task, schedule_kind="event", schedule_expr="a.b")
    await keeper.tick("02:00")
    await keeper.verb("publish_event", tenant="t", topic="a.b")
    await keeper.change(
        task,
        schedule_kind="condition",
        schedule_expr="every 1h when result.x > 0",
        payload={**SET, "probe": {"uses": "set", "with": {"x": 1}}},
    )
    await keeper.tick("03:00")
    await keeper.change(
        task, schedule_kind="condition", schedule_expr="count(a.b) >= 1 within 5m", payload=SET
    )
    await keeper.verb("publish_event", tenant="t", topic="a.b")
    await keeper.go("03:30")
    said = await keeper.change(task, schedule_kind="once", schedule_expr="2026-03-02T04:00")
    assert said["payload"] == SET
    await keeper.tick("04:00")
    kinds = await keeper.ask("select kind, count(*) from orc.runs group by 1 order by 1")
    assert [(row["kind"], row["count"]) for row in kinds] == [("probe", 1), ("task", 4)]
    assert (await keeper.look(task))["status"] == "completed"


async def test_a_probe_goes_with_the_condition_that_needed_it(keeper: Timekeeper) -> None:
    task = await keeper.task(
        schedule_kind="condition",
        schedule_expr="every 1h when result.x > 0",
        payload={**SET, "probe": {"uses": "set", "with": {"x": 1}}},
    )
    said = await keeper.change(task, schedule_kind="cron", schedule_expr="0 * * * *")
    assert said["payload"] == SET


# Keys


async def test_one_creator_has_one_live_task_of_a_dedupe_key(keeper: Timekeeper) -> None:
    first = await keeper.task(dedupe_key="k")
    with pytest.raises(Conflict, match="dedupe key 'k' lives already") as refused:
        await keeper.task(dedupe_key="k")
    assert refused.value.diag.message_detail == first
    other = await keeper.task(dedupe_key="l")
    with pytest.raises(Conflict, match="lives already"):
        await keeper.change(other, dedupe_key="k")
    await keeper.change(first, title="it may keep its own")
    await keeper.say("pause", first)
    with pytest.raises(Conflict, match="lives already"):
        await keeper.task(dedupe_key="k")
    await keeper.say("cancel", first)
    await keeper.task(dedupe_key="k")
    keeper.tenant = "u"
    await keeper.task(dedupe_key="k")


async def test_with_a_window_a_second_run_of_the_key_is_a_duplicate(keeper: Timekeeper) -> None:
    tasks = [await keeper.task(dedupe_key="k", dedupe_window_seconds=5400) for _ in range(2)]
    await keeper.tick("01:00")
    (run,) = await keeper.ask("select id from orc.runs")
    rows = await keeper.ask("select state, reason, run_id from orc.occurrences order by state")
    assert [(row["state"], row["run_id"]) for row in rows] == [
        ("fired", run["id"]),
        ("skipped", run["id"]),
    ]
    assert rows[1]["reason"] == "duplicate: a run of this key is ready"
    await keeper.finish()
    await keeper.tick("02:00")
    assert {(await keeper.ledger(task))["02:00"] for task in tasks} == {
        "skipped: duplicate: a run of this key has ended"
    }
    assert await keeper.say("run", tasks[0]) == run["id"]
    await keeper.tick("03:00")
    assert len(await keeper.ask("select id from orc.runs")) == 2


async def test_tasks_share_the_slots_of_a_concurrency_key(keeper: Timekeeper) -> None:
    for _ in range(3):
        await keeper.task(concurrency_key="k", concurrency_limit=2)
    await keeper.tick("01:00")
    assert (len(await keeper.work()), len(await keeper.work())) == (2, 0)


# Pause, resume, cancel, run now


async def test_a_pause_holds_what_is_queued_and_a_resume_gives_it_back(keeper: Timekeeper) -> None:
    task = await keeper.task()
    await keeper.tick("01:00")
    await keeper.say("snooze", task, delay_seconds=1800)
    await keeper.say("pause", task)
    assert (await keeper.look(task))["next_run_at"] is None
    runs = await keeper.ask("select id from orc.runs order by id")
    for run, due in zip(runs, ("01:00", "02:30"), strict=True):
        (why,) = await keeper.ask("select * from orc.why(%s)", run["id"])
        assert (why["cause"], why["evidence"]["due_at"]) == ("task paused", at(due).isoformat())
    await keeper.tick("02:45")
    assert await keeper.work() == []
    await keeper.verb("advance_lanes")
    await keeper.tick("02:50")
    await keeper.verb("advance_lanes")
    await keeper.say("resume", task)
    assert len(await keeper.work()) == 2
    await keeper.tick()
    assert await keeper.ledger(task) == {"01:00": "fired", "02:00": "fired: snoozed by 00:30:00"}


async def test_what_runs_finishes_and_is_retried_though_its_task_is_paused(
    keeper: Timekeeper,
) -> None:
    task = await keeper.task()
    await keeper.tick("01:00")
    (run,) = await keeper.work()
    await keeper.say("pause", task)
    await keeper.settle(
        keeper.here, {"tenant": "t", "run": run.run, "epoch": 1, "outcome": "failed", "delay": 60}
    )
    await keeper.tick("01:10")
    assert await keeper.finish() == 1
    assert await keeper.runs_of(task) == [("01:00", "succeeded")]


async def test_a_pause_frees_the_slots_of_what_it_holds(keeper: Timekeeper) -> None:
    held = await keeper.task(concurrency_key="k")
    await keeper.tick("01:00")
    await keeper.run(priority=0)
    assert len(await keeper.work(1)) == 1
    other = await keeper.run(concurrency_key="k")
    assert await keeper.state(other) == "blocked"
    await keeper.say("pause", held)
    assert [run.run for run in await keeper.work()] == [other]
    await keeper.say("cancel", held)


async def test_a_task_runs_now_though_it_is_paused(keeper: Timekeeper) -> None:
    task = await keeper.task()
    await keeper.say("pause", task)
    run = await keeper.say("run", task)
    assert [r.run for r in await keeper.work()] == [str(run)]
    assert await keeper.ledger(task) == {}
    await keeper.say("cancel", task)
    with pytest.raises(Conflict, match="canceled: it can't be run"):
        await keeper.say("run", task)


async def test_a_cancel_ends_a_task_for_good(keeper: Timekeeper) -> None:
    task = await keeper.task()
    await keeper.tick("01:00")
    assert len(await keeper.work()) == 1
    await keeper.tick("02:00")
    await keeper.say("cancel", task)
    await keeper.say("cancel", task)
    assert [s for _, s in await keeper.runs_of(task)] == ["running", "canceled"]
    assert (
        await keeper.one(
            "select count(*) from orchestrator.due_work where cancel_requested_at is not null"
        )
        == 1
    )
    for verb in ("resume", "pause"):
        with pytest.raises(Conflict, match=f"canceled: it can't be {verb}d"):
            await keeper.say(verb, task)
    with pytest.raises(Conflict, match="can't be changed"):
        await keeper.change(task, title="U")
    with pytest.raises(Conflict, match="can't be backfilled"):
        await keeper.say("backfill", task, instants=[])
    with pytest.raises(Conflict, match="can't be snoozed"):
        await keeper.say("snooze", task, delay_seconds=60)
    await keeper.tick("05:00")
    assert await keeper.ledger(task) == {"01:00": "fired", "02:00": "fired"}


async def test_what_was_missed_before_a_cancel_is_in_the_ledger(keeper: Timekeeper) -> None:
    task = await keeper.task(schedule_expr="*/10 * * * *", catch_up="all")
    await keeper.tick("00:40")
    await keeper.finish()
    await keeper.tick()
    await keeper.go("23:05")
    await keeper.say("cancel", task)
    await keeper.tick()
    ledger = await keeper.ledger(task)
    assert list(ledger) == [shown(at("00:40") + timedelta(minutes=10 * n)) for n in range(135)]
    assert list(ledger.values()) == ["fired"] + ["skipped: the task was canceled"] * 134
    assert len(await keeper.fired(task)) == 1


# Changes


async def test_a_change_names_its_problems(keeper: Timekeeper) -> None:
    task = await keeper.task()
    with pytest.raises(Invalid) as refused:
        await keeper.change(task, tilte="x", status="paused")
    assert refused.value.diag.message_detail == "tilte, status"
    with pytest.raises(Conflict, match="its version is 1"):
        await keeper.say("update", task, changes={"title": "U"}, version=7)
    with pytest.raises(psycopg.errors.CheckViolation, match="priority_is_1_to_9"):
        await keeper.change(task, priority=11)
    with pytest.raises(Invalid, match="labels"):
        await keeper.change(task, labels={"a": "x" * 20000})
    assert (await keeper.look(task))["version"] == 1
    assert (await keeper.change(task, title="U", priority=1))["version"] == 2


async def test_a_change_without_a_rule_leaves_the_plan(keeper: Timekeeper) -> None:
    task = await keeper.task()
    await keeper.tick()
    said = await keeper.change(task, title="U", jitter_seconds=600)
    assert at("01:00").isoformat() < said["next_run_at"] < at("01:10").isoformat()
    await keeper.tick("01:10")
    assert await keeper.fired(task) == ["01:00"]


# Backfill and retries


async def test_a_backfill_runs_what_did_not_run_once(keeper: Timekeeper) -> None:
    task = await keeper.task()
    await keeper.tick("03:30")
    before = await keeper.ledger(task)
    instants = [at(f"0{hour}:00") for hour in range(4)]
    fields = {"tenant": "t", "task": task, "instants": instants}
    dry = await db.call(keeper.conn, "backfill_task", **fields)
    would = "would be backfilled"
    assert [row["state"] for row in dry] == [would, would, would, "fired"]
    assert await keeper.ledger(task) == before
    for _ in range(2):
        rows = await db.call(keeper.conn, "backfill_task", **fields, dry_run=False)
        assert [row["state"] for row in rows] == ["backfilled"] * 3 + ["fired"]
        assert await keeper.ledger(task) == {
            "00:00": "backfilled", "01:00": "backfilled",
            "02:00": "backfilled", "03:00": "fired"}  # fmt: skip
    assert sorted(await keeper.fired(task)) == ["00:00", "01:00", "02:00", "03:00"]


async def test_a_backfill_is_bounded_and_of_the_past(keeper: Timekeeper) -> None:
    task = await keeper.task()
    with pytest.raises(Invalid, match="At most 1000"):
        await keeper.say(
            "backfill", task, instants=[at("00:00") - timedelta(hours=n) for n in range(1001)]
        )
    with pytest.raises(Invalid, match="past"):
        await keeper.say("backfill", task, instants=[at("00:31")])


async def test_what_is_caught_up_later_was_not_backfilled_before(keeper: Timekeeper) -> None:
    task = await keeper.task(catch_up="all")
    await keeper.tick()
    await keeper.go("02:30")
    await db.call(
        keeper.conn, "backfill_task", tenant="t", task=task, instants=[at("01:00")], dry_run=False
    )
    await keeper.tick()
    assert await keeper.ledger(task) == {"01:00": "backfilled", "02:00": "fired"}
    assert len(await keeper.fired(task)) == 2


async def test_a_completed_task_may_be_backfilled(keeper: Timekeeper) -> None:
    task = await keeper.task(ends_at=at("01:00"), catch_up="none")
    await keeper.tick("02:00")
    assert (await keeper.look(task))["status"] == "completed"
    await db.call(
        keeper.conn, "backfill_task", tenant="t", task=task, instants=[at("01:00")], dry_run=False
    )
    assert await keeper.fired(task) == ["01:00"]


@pytest.mark.parametrize("verb", ["retry_run", "retry_where"])
async def test_a_retry_is_of_the_same_task_event_and_instant(keeper: Timekeeper, verb: str) -> None:
    timed = await keeper.task(max_retries=0)
    listens = await keeper.task(schedule_kind="event", schedule_expr="a.b", max_retries=0)
    await keeper.tick("01:00")
    event = (await keeper.verb("publish_event", tenant="t", topic="a.b"))["event_id"]
    assert await keeper.finish("failed") == 2
    old = await keeper.ask("select id from orc.runs")
    if verb == "retry_run":
        for row in old:
            await keeper.verb("retry_run", tenant="t", run=row["id"])
    else:
        await db.call(keeper.conn, "retry_where", tenant="t", dry_run=False)
    rows = await keeper.ask("select task_id, event_id, nominal_at from orchestrator.due_work")
    found = {str(row["task_id"]): (row["event_id"], row["nominal_at"]) for row in rows}
    assert found[timed] == (None, at("01:00"))
    assert found[listens][0] == event


# Why not


async def test_every_reason_why_it_did_not_run_is_told(keeper: Timekeeper) -> None:
    """Each `cause` of orc.why_not, and of the verbs behind it."""
    seen: dict[str, str] = {}

    async def told(task: str, text: str, cause: str, **evidence: Any) -> None:
        rows = await keeper.ask("select * from orc.why_not('t', %s, %s)", task, at(text))
        assert [row["cause"] for row in rows] == [cause]
        assert {name: rows[0]["evidence"].get(name) for name in evidence} == evidence
        assert rows[0]["clears"]
        seen[cause] = rows[0]["clears"]

    task = await keeper.task(starts_at=at("00:00"), ends_at=at("5 00:00"))
    await told(task, "01:00", "no live scheduler", last_seen=None)
    await keeper.tick()
    await told(task, "00:10", "the task did not exist", created_at=at("00:30").isoformat())
    await told(task, "01:00", "not due", due_at=at("01:00").isoformat())
    await told(task, "01:05", "not an instant of the rule", next=at("01:00").isoformat())
    await told(task, "4 01:00", "not computed yet")
    await told(task, "6 01:00", "outside its start and end")
    await keeper.tick("01:00")
    await told(task, "01:00", "it fired")
    await told(task, "00:45", "not an instant of the rule", rule="0 * * * *", timezone="UTC")
    await told(task, "00:30", "not an instant of the rule")
    await keeper.go("02:00:01")
    await told(task, "02:00", "no live scheduler", last_seen=at("01:00").isoformat())
    await keeper.do("update orchestrator.scheduler set seen_at = orchestrator.now()")
    await told(task, "02:00", "due", due_at=at("02:00").isoformat())
    await keeper.tick("04:10")
    await told(task, "02:00", "coalesced", reason=COALESCED.partition(": ")[2])
    await keeper.change(task, catch_up="none")
    await keeper.tick("05:10")
    await told(task, "05:00", "skipped", reason="missed: catch_up is none")
    await keeper.say("pause", task)
    await told(task, "06:00", "paused", since=at("05:10").isoformat())
    await told(task, "06:01", "not an instant of the rule")
    await keeper.say("resume", task)
    await keeper.change(task, timezone="Mars/Olympus")
    await keeper.tick()
    await told(task, "06:00", "the rule can't be computed", rule="0 * * * *")
    await keeper.say("cancel", task)
    await told(task, "06:00", "canceled", since=at("05:10").isoformat())
    listens = await keeper.task(schedule_kind="event", schedule_expr="a.b when event.payload.x > 1")
    await told(listens, "06:00", "no event fitted then", rule="a.b when event.payload.x > 1")
    await keeper.go("05:30")
    await keeper.verb("publish_event", tenant="t", topic="a.b")
    await keeper.do(
        "update orchestrator.occurrence set nominal_at = orchestrator.now() where state = 'undecided'"
    )
    await told(listens, "05:30", "undecided")
    single = await keeper.task(schedule_kind="once", schedule_expr="2026-03-02T06:00")
    await keeper.tick("06:00")
    await told(single, "07:00", "completed")
    with pytest.raises(NotFound):
        await keeper.why(str(uuid4()), "01:00")
    assert set(seen) >= await causes(keeper)


async def causes(k: Timekeeper) -> set[str]:
    texts = await k.ask(
        "select prosrc from pg_proc where pronamespace = 'orc'::regnamespace"
        " and proname in ('why_not', '_why_not_yet', '_what_became')"
    )
    found = {
        c.replace("''", "'")
        for row in texts
        for c in re.findall(r"select '((?:[^']|'')+)',", row["prosrc"])
    }
    assert len(found) >= 10
    return found | {"it fired"}


async def test_an_old_rule_answers_for_its_time(keeper: Timekeeper) -> None:
    task = await keeper.task()
    await keeper.tick("02:00")
    await keeper.go("02:10")
    await keeper.change(task, starts_at=at("12:00").isoformat(), schedule_expr="30 * * * *")
    await keeper.tick("03:00")
    assert (await keeper.why(task, "01:30"))[0][0] == "not an instant of the rule"
    assert (await keeper.why(task, "02:40"))[0][0] == "outside its start and end"


async def test_a_change_in_sql_is_planned_by_a_scheduler(keeper: Timekeeper) -> None:
    task = await keeper.task()
    assert (await keeper.look(task))["next_run_at"] is None
    await keeper.tick()
    assert (await keeper.look(task))["next_run_at"] == at("01:00").isoformat()
    await keeper.change(task, schedule_expr="15 * * * *")
    await keeper.tick()
    assert (await keeper.look(task))["next_run_at"] == at("01:15").isoformat()
    assert HOURLY["schedule_expr"] == "0 * * * *"
