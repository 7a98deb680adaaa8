"""The API is killed in the middle of requests: what it said is so, what it refused is not."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator
from functools import partial

import msgspec
import pytest
from conftest import Make, free_port
from crew import Crew, until
from lines import Line

from orchestrator import db

CLIENTS = 40
RATE = 200
TASK = {"schedule_kind": "cron", "schedule_expr": "30 8 * * 1", "timezone": "UTC",
        "payload": {"pipeline": [{"uses": "set", "with": {"x": 1}}]}}  # fmt: skip
NONSENSE = {**TASK, "schedule_expr": "99 99 * * *"}


@pytest.fixture
async def crew(make: Make) -> AsyncIterator[Crew]:
    crew = Crew(make.config(), quiet=True)
    yield crew
    await crew.end()


class Clients:
    """Each makes a task with a title of its own, and remembers what it was told."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.titles = itertools.count()
        self.told: dict[str, int | None] = {}
        self.is_over = False

    def heard_of_both(self, since: int) -> bool:
        return {201, 422} <= set([*self.told.values()][since:])

    async def live(self) -> None:
        line = Line(self.port)
        try:
            while not self.is_over:
                await asyncio.sleep(random.expovariate(RATE / CLIENTS))
                await self.ask(line)
        finally:
            await line.close()

    async def ask(self, line: Line) -> None:
        title = f"task {next(self.titles)}"
        body = TASK if random.random() < 0.8 else NONSENSE
        try:
            status = await line.post("/tasks", msgspec.json.encode({"title": title, **body}))
        except ConnectionRefusedError:
            return
        except EOFError:
            self.told[title] = None
        else:
            self.told[title] = status


async def killed_again_and_again(crew: Crew, clients: Clients, times: int) -> None:
    """Each time in the middle of requests: it has answered some of them, good and bad."""
    port = clients.port
    for _ in range(times):
        place = {"API_HOST": "127.0.0.1", "PORT": str(port), "APP_ENV": "development"}
        api = crew.process(name="api", environment={**place, "LOG_LEVEL": "error"})
        had = len(clients.told)
        await until(partial(clients.heard_of_both, had))
        await asyncio.sleep(random.uniform(0, 0.6))
        os.kill(api.pid, signal.SIGKILL)
        await asyncio.to_thread(api.wait)


@pytest.mark.parametrize("times", [3, pytest.param(20, marks=pytest.mark.soak)])
async def test_what_a_killed_api_had_said_is_so_and_what_it_refused_left_no_row(
    crew: Crew, conn: db.Connection, times: int
) -> None:
    await db.call(conn, "ensure_system_agent")
    clients = Clients(free_port())
    async with asyncio.TaskGroup() as lives:
        for _ in range(CLIENTS):
            lives.create_task(clients.live())
        await killed_again_and_again(crew, clients, times)
        clients.is_over = True
    rows = await (await conn.execute("select title from orchestrator.task")).fetchall()
    made = Counter(row["title"] for row in rows)
    said = clients.told
    assert set(made.values()) == {1}
    assert {title for title, status in said.items() if status == 201} <= made.keys()
    print(f"{len(said)} requests, {len([s for s in said.values() if s == 201])} made")
    refused = {title for title, status in said.items() if status not in (201, None)}
    assert set(said.values()) == {201, 422, None}
    assert not refused & made.keys()
    assert made.keys() <= said.keys()
