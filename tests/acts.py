"""A tool of tests that does what it is told, and remembers what it was asked."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

import msgspec

from orchestrator import db
from orchestrator.steps import Context, Done, Kind, Outcome


class Act(msgspec.Struct, forbid_unknown_fields=True):
    name: str = ""
    give: Any = None


class Tool:
    """Answers what it is given, or what it was told to answer to a name, one after the other."""

    def __init__(self, name: str = "do", **flags: bool) -> None:
        self.kind = Kind(name, Act, self.run, **flags)
        self.calls: list[str] = []
        self.given: list[Any] = []
        self.keys: dict[str, list[str]] = defaultdict(list)
        self.answers: dict[str, list[Outcome | BaseException]] = {}
        self.held: dict[str, asyncio.Event] = {}
        self.inside: list[str] = []
        self.stopped: list[str] = []
        self.most = 0

    def hold(self, *names: str) -> None:
        self.held |= {name: asyncio.Event() for name in names}

    def free(self, *names: str) -> None:
        for name in names or [*self.held]:
            self.held[name].set()

    def answer(self, name: str, *outcomes: Outcome | BaseException) -> None:
        self.answers[name] = list(outcomes)

    async def run(self, act: Act, context: Context) -> Outcome:
        self.calls.append(act.name)
        self.given.append(act.give)
        self.keys[act.name].append(context.key)
        self.inside.append(act.name)
        self.most = max(self.most, len(self.inside))
        try:
            if act.name in self.held:
                await self.held[act.name].wait()
            else:
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.stopped.append(act.name)
            raise
        finally:
            self.inside.remove(act.name)
        if waiting := self.answers.get(act.name):
            outcome = waiting.pop(0)
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome
        return Done(act.give)


def do(name: str, give: Any = None, uses: str = "do", **step: Any) -> dict[str, Any]:
    return {"id": name, "uses": uses, "with": {"name": name, "give": give}, **step}


def put(id: str, /, **values: Any) -> dict[str, Any]:
    return {"id": id, "uses": "set", "with": values}


async def start(conn: db.Connection, *steps: dict[str, Any], **more: Any) -> str:
    """Enqueues a document of these steps; `run` are the options of its run."""
    options = more.pop("run", {})
    options = {name: str(v) if isinstance(v, float) else v for name, v in options.items()}
    document = {"pipeline": list(steps), **{name.rstrip("_"): v for name, v in more.items()}}
    row = await db.call_one(conn, "enqueue", tenant="t", pipeline=document, **options)
    return str(row["run_id"])


async def steps_of(conn: db.Connection, run: str) -> dict[str, db.Row]:
    """What is recorded of it, by place."""
    cursor = await conn.execute("select * from orchestrator.step where run_id = %s", [run])
    return {row["step_id"]: row for row in await cursor.fetchall()}


async def lines_of(conn: db.Connection, run: str) -> list[str]:
    cursor = await conn.execute(
        "select message from orchestrator.log where run_id = %s order by id", [run]
    )
    return [row["message"] for row in await cursor.fetchall()]
