"""A session whose time is steered, and what a scheduler and a worker do in it."""

# ruff: noqa: E501
from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from conftest import Clock
from test_work import Claimed, Work, said

from orchestrator import db
from orchestrator.scheduler.planner import Answers, answer

START = datetime(2026, 3, 2, tzinfo=UTC)
SET = {"pipeline": [{"id": "a", "uses": "set", "with": {"x": 1}}]}
HOURLY = {"schedule_kind": "cron", "schedule_expr": "0 * * * *", "timezone": "UTC"}


def at(text: str) -> datetime:
    """A time of the first day, or of one so many days later: `1 09:30`."""
    day, _, time = text.rpartition(" ")
    hour, minute, *second = (int(part) for part in time.split(":"))
    return START + timedelta(days=int(day or 0), hours=hour, minutes=minute,
                             seconds=second[0] if second else 0)  # fmt: skip


class Timekeeper(Work):
    """Tasks of one tenant."""

    def __init__(self, conn: db.Connection, clock: Clock) -> None:
        super().__init__(conn)
        self.clock = clock
        self.ticks = 0
        self.here: Any = None

    async def go(self, text: str) -> None:
        await self.clock.set(at(text))

    async def task(self, **given: Any) -> str:
        fields = {"tenant": self.tenant, "title": "T", "payload": SET, **HOURLY, **given}
        return str((await self.verb("create_task", **fields))["id"])

    async def look(self, task: str) -> db.Row:
        found: db.Row = await self.verb("task", tenant=self.tenant, task=task)
        return found

    async def say(self, verb: str, task: str, **more: Any) -> Any:
        return await self.verb(f"{verb}_task", tenant=self.tenant, task=task, **more)

    async def change(self, task: str, **changes: Any) -> db.Row:
        found: db.Row = await self.say("update", task, changes=changes)
        return found

    async def tick(self, text: str | None = None, most: int = 1000) -> None:
        """As often as a scheduler does until nothing is left."""
        if text:
            await self.go(text)
        answers, more = Answers(), True
        while more:
            row = await db.call_one(
                self.conn, "tick", scheduler="here", most=most,
                plans=answers.plans or None, verdicts=answers.verdicts or None,
            )  # fmt: skip
            self.ticks += 1
            answers = answer(row["short"], row["undecided"])
            more = row["is_more"] or answers.any

    async def ledger(self, task: str) -> dict[str, str]:
        """What became of each instant: its state and the reason."""
        rows = await self.ask(
            "select nominal_at, state, reason from orc.occurrences where task_id = %s order by 1", task
        )  # fmt: skip
        return {
            shown(row["nominal_at"]): ": ".join(t for t in (row["state"], row["reason"]) if t)
            for row in rows
        }

    async def runs_of(self, task: str) -> list[tuple[str, str]]:
        """Instants and states of its runs, in the order of their making."""
        rows = await self.ask(
            "select id, state, (select nominal_at from orc.occurrences o where o.run_id = r.id) as nominal"
            " from orc.runs r where task_id = %s order by id", task,
        )  # fmt: skip
        return [(shown(row["nominal"]) if row["nominal"] else "", row["state"]) for row in rows]

    async def fired(self, task: str) -> list[str]:
        return [instant for instant, _ in await self.runs_of(task)]

    async def work(self, want: int = 10) -> list[Claimed]:
        """Claims, as a worker whose lease never ends."""
        if self.here is None:
            self.here = await self.worker("default")
            await self.do("update orchestrator.worker set expires_at = '2100-01-01'")
        return await self.claim(self.here, want)

    async def finish(self, outcome: str = "succeeded", want: int = 10, **more: Any) -> int:
        runs = await self.work(want)
        if runs:
            await self.settle(self.here, *(said(run, outcome, **more) for run in runs))
        return len(runs)

    async def why(self, task: str, text: str) -> list[tuple[str, str]]:
        rows = await self.ask("select * from orc.why_not(%s, %s, %s)", self.tenant, task, at(text))
        return [(row["cause"], row["clears"]) for row in rows]


def shown(instant: datetime) -> str:
    days, rest = divmod(instant.astimezone(UTC) - START, timedelta(days=1))
    minutes, seconds = divmod(int(rest.total_seconds()), 60)
    text = f"{minutes // 60:02}:{minutes % 60:02}" + (f":{seconds:02}" if seconds else "")
    return f"{days} {text}" if days else text
