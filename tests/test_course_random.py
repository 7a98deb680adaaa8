"""Random courses, without a database: each ends or parks, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

from acts import do

from orchestrator.config import Config
from orchestrator.steps import Context, Done, Fail, Kind, Outcome, Retry, builtins
from orchestrator.worker.course import Course
from orchestrator.worker.engine import Run, Settled, compile
from orchestrator.worker.memory import Memory
from orchestrator.worker.news import Record
from orchestrator.worker.watch import Group, Watch

ID = "019aa000-0000-7000-8000-000000000001"
RUNS = 300


async def test_a_task_that_is_canceled_before_it_began_is_not_awake() -> None:
    watch, group = Watch(), Group()
    watch.spawn(group, "a", watch.for_ever())
    await watch.abandon(group)
    assert watch.awake == 1


async def test_who_slept_a_moment_ago_may_be_awake() -> None:
    watch = Watch()
    sleeper = asyncio.create_task(watch.for_ever())
    await watch.quiet
    assert watch.awake == 0
    sleeper.cancel()
    await asyncio.wait((sleeper,))
    assert not watch.all_sleep
    assert not watch.quiet.done()


async def test_an_end_that_its_parent_saw_before_is_nobody_awake() -> None:
    """The parent wakes between the end of a task and its callback, and sleeps for another one."""
    watch, group, go = Watch(), Group(), asyncio.Event()

    async def child(rounds: int) -> None:
        await go.wait()
        for _ in range(rounds):
            await asyncio.sleep(0)

    async def parent() -> None:
        for rounds in (0, 1):
            watch.spawn(group, rounds, child(rounds))
        assert len(await watch.first(group)) == 2
        watch.spawn(group, "asleep", watch.for_ever())
        await watch.first(group)

    task = asyncio.create_task(parent())
    await asyncio.sleep(0.01)
    go.set()
    await asyncio.wait_for(watch.quiet, 1)
    task.cancel()
    await asyncio.wait((task,))
    await watch.abandon(group)


async def test_who_ends_its_tasks_waits_for_them_even_if_it_is_told_to_stop() -> None:
    watch, group, ended = Watch(), Group(), []

    async def slow() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.02)
            ended.append(1)

    watch.spawn(group, "a", slow())
    await asyncio.sleep(0)
    task = asyncio.create_task(watch.abandon(group))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait((task,))
    assert (task.cancelled(), ended, watch.awake) == (True, [1], 1)


class Chance:
    """Makes documents: nested, with sleeps, failures, short times and races."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.steps = 0

    def document(self) -> dict[str, Any]:
        whole: dict[str, Any] = {"pipeline": self.list(3)}
        if self.random.random() < 0.3:
            whole["on_error"] = self.list(1)
        if self.random.random() < 0.3:
            whole["finally"] = self.list(1)
        if self.random.random() < 0.2:
            whole["timeout"] = 0.005
        return whole

    def list(self, depth: int) -> list[dict[str, Any]]:
        return [self.step(depth) for _ in range(self.random.randint(1, 3))]

    def step(self, depth: int) -> dict[str, Any]:
        self.steps += 1
        id = f"s{self.steps}"
        body = self.random.choice(["do", "do", "wait", "all", "race", "each", "block"])
        if depth == 0 and body not in ("do", "wait"):
            body = "do"
        step: dict[str, Any] = {"id": id}
        match body:
            case "do":
                step = do(id)
            case "wait":
                return step | {"wait": {"for": "7d"}}
            case "all" | "race":
                branches = {name: self.list(depth - 1) for name in ("x", "y")}
                step["parallel"] = {"branches": branches, "mode": body}
            case "each":
                step |= {"for_each": [1, 2, 3], "steps": self.list(depth - 1)}
                step |= {"max_parallel": 2, "max_failures": self.random.randint(0, 2)}
            case "block":
                step["steps"] = self.list(depth - 1)
        return step | self.modifiers(depth)

    def modifiers(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self.random.random() < 0.25:
            found["timeout"] = self.random.choice([0.001, 0.003])
        if self.random.random() < 0.2:
            found["needs"] = []
        if self.random.random() < 0.25:
            found["retry"] = {"attempts": 2, "delay": 0}
        if self.random.random() < 0.2:
            found["continue_on_error"] = True
        elif depth and self.random.random() < 0.2:
            found["catch"] = self.list(0)
        return found


class Outside:
    """Counts who is called after its answer was recorded."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.records: dict[str, Record] = {}
        self.kind = Kind("do", dict, self.run)

    async def run(self, arguments: Any, context: Context) -> Outcome:
        await asyncio.sleep(self.random.choice([0, 0, 0.0005, 0.002]))
        odds = self.random.random()
        if odds < 0.1:
            return Retry("communication", "not now")
        return Fail("conflict", "boom") if odds < 0.15 else Done(context.key)

    def say(self, record: Record) -> None:
        before = self.records.get(record["step"], {})
        is_over = before.get("state") == "succeeded" or (before.get("error") or {}).get("caught")
        assert not is_over, f"{record['step']} was over"
        self.records[record["step"]] = {"output": None, "error": None, **record}

    async def commit(self, record: Record) -> None:
        self.say(record)

    async def follow(self, document: dict[str, Any]) -> Settled:
        plan = compile(document, {**builtins(), "do": self.kind})
        assert plan.broken is None, plan.broken
        run = Run("t", ID, 1, 1, 1, "p", None, None, "2026-11-21T00:00:00+00:00")
        context = Context(Config(), "t", ID, 1, 1, None, {})
        memory = Memory(run, dict(self.records), self.say)
        course = Course(plan, context, memory, self.commit)
        said = await asyncio.wait_for(course.follow(), 5)
        assert (said.outcome == "parked") == bool(said.waiting_for)
        assert course.watch.awake == 1, "somebody was counted twice, or not at all"
        return said


async def test_every_course_ends_or_parks_and_leaves_no_task_behind() -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    ends: Counter[str] = Counter()
    tasks = asyncio.all_tasks()
    for number in range(RUNS):
        document, outside = Chance(seed + number).document(), Outside(seed + number)
        said = await outside.follow(document)
        if said.outcome == "parked":
            assert said.until, f"{number}: it sleeps for ever"
            recorded = outside.records.copy()
            again = await outside.follow(document)  # it was woken too early
            over = {place for place, one in recorded.items() if one["state"] == "succeeded"}
            assert all(outside.records[place] is recorded[place] for place in over)
            ends[f"then {again.outcome}"] += 1
        ends[said.outcome] += 1
        assert asyncio.all_tasks() == tasks, number
    print(ends)
    assert {"parked", "succeeded", "failed"} <= ends.keys()
