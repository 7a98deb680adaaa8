"""What an operator sees of the place: queues, workers, top, and a doctor who says what to do."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from acts import Tool
from conftest import Make, Serve
from crew import Crew, enqueue, until
from terminal import Terminal, environment

from orchestrator import db

HASH = "$argon2id$v=19$m=65536,t=3,p=4$c29tZXNhbHRzb21lc2FsdA$" + "A" * 43
HELD = {"id": "a", "uses": "do", "with": {"name": "a"}}


@pytest.fixture
def orc(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path, monkeypatch)
    terminal.set(DATABASE_URL=database)
    yield terminal
    terminal.leave()


@pytest.fixture
async def tool(make: Make, orc: Terminal) -> AsyncIterator[Tool]:
    """Held by a worker with two slots."""
    tool, crew = Tool(), Crew(make.config())
    tool.hold("a")
    crew.worker(tool.kind, poll=0.05, slots=2)
    yield tool
    tool.free()
    await crew.end()


async def busy(conn: db.Connection, tool: Tool, count: int = 3) -> None:
    for _ in range(count):
        await enqueue(conn, HELD)
    await until(lambda: len(tool.inside) == 2)


# Queues and workers


async def test_queues_are_listed_with_what_is_in_them(
    orc: Terminal, conn: db.Connection, tool: Tool
) -> None:
    await busy(conn, tool)
    (queue,) = (await orc("queue", "list", "-o", "json")).json
    assert (queue["tenant_id"], queue["queue"], queue["has_worker"]) == ("t", "default", True)
    assert (queue["ready"], queue["running"]) == (1, 2)
    assert (await orc("queue", "list", "-o", "id")).out == "default\n"
    assert (await orc("queue", "list", "--tenant", "u")).out == "there are none\n"
    (worker,) = (await orc("worker", "list", "-o", "json")).json
    assert (worker["state"], worker["slots"], worker["running"]) == ("live", 2, 2)
    assert (await orc("worker", "list")).lines[1].startswith(worker["id"])


async def test_a_queue_is_paused_limited_and_resumed(
    orc: Terminal, conn: db.Connection, tool: Tool
) -> None:
    await busy(conn, tool)
    assert (await orc("queue", "pause", "default", "--tenant", "t")).out == "default is paused\n"
    assert (await orc("queue", "list", "-o", "json")).json[0]["paused_at"]
    assert (await orc("queue", "resume", "default", "--tenant", "t")).status == 0
    limited = await orc("queue", "limit", "default", "1", "--tenant", "t")
    assert limited.out == "default runs at most 1 at once\n"
    (queue,) = (await orc("queue", "list", "-o", "json")).json
    assert (queue["paused_at"], queue["max_running"]) == (None, 1)
    assert "any number" in (await orc("queue", "limit", "default", "--tenant", "t")).out
    unknown = await orc("queue", "pause", "default", "--tenant", "nobody")
    assert (unknown.status, "There is no such tenant" in unknown.err) == (1, True)


async def test_a_worker_that_ended_long_ago_is_not_listed(
    orc: Terminal, conn: db.Connection
) -> None:
    for _ in range(2):
        row = await db.call_one(conn, "register_worker", queues=["default"], slots=1)
        await db.call(conn, "end_worker", worker=next(iter(row.values())))
    assert len((await orc("worker", "list", "-o", "id")).lines) == 2
    await conn.execute(
        "update orchestrator.worker set ended_at = orchestrator.now() - interval '2 hours'"
        " where id = (select id from orchestrator.worker limit 1)"
    )
    assert len((await orc("worker", "list", "-o", "id")).lines) == 1


async def test_the_api_may_not_look_at_all_tenants(
    connect: Any, database: str, conn: db.Connection
) -> None:
    api = await connect(role="orc_api")
    for verb in ("overview", "list_queues", "list_workers"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await db.call(api, verb)
    reader = await connect(role="orc_reader")
    for verb in ("overview", "list_queues", "list_workers"):
        await db.call(reader, verb)


# Top


async def test_top_looks_once_where_nobody_watches(
    orc: Terminal, conn: db.Connection, tool: Tool
) -> None:
    await busy(conn, tool)
    seen = await orc("top")
    assert "1 workers, 2 of 2 slots busy · 0 schedulers" in seen.lines[0]
    assert re.search(r"^t +default +1 +2 ", seen.out, re.M)
    page = (await orc("top", "-o", "json")).json
    assert page["queues"][0]["running"] == 2
    assert page["finished_per_second"] is None
    assert (await orc("top", "-o", "id")).status == 2


async def test_top_says_the_rate_between_two_looks(
    conn: db.Connection, tool: Tool, tmp_path: Path, database: str
) -> None:
    tool.free()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "orchestrator.cli", "top", "-o", "jsonl", "--interval", "0.2",
        stdout=subprocess.PIPE, env=environment(tmp_path, DATABASE_URL=database),
    )  # fmt: skip
    assert process.stdout is not None
    pages = []

    async def counted() -> bool:
        await enqueue(conn, HELD)
        assert process.stdout is not None
        pages.append(json.loads(await process.stdout.readline()))
        return (pages[-1]["finished_per_second"] or 0) > 0

    await until(counted, within=30)
    process.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(process.wait(), 20) == 130
    assert pages[0]["finished_per_second"] is None


async def test_on_a_terminal_top_is_drawn_again_until_it_is_ended(
    conn: db.Connection, tool: Tool, tmp_path: Path, database: str
) -> None:
    await busy(conn, tool)
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "orchestrator.cli", "top", "--interval", "0.2", stdout=theirs,
        env=environment(tmp_path, DATABASE_URL=database, TERM="xterm", COLUMNS="100"),
    )  # fmt: skip
    os.close(theirs)
    os.set_blocking(ours, False)
    seen = b""

    def drawn() -> bool:
        nonlocal seen
        with suppress(BlockingIOError):
            seen += os.read(ours, 65536)
        return seen.count(b"slots busy") >= 2

    await until(drawn, within=30)
    process.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(process.wait(), 20) == 130
    os.close(ours)


# The doctor


async def found(orc: Terminal) -> dict[str, dict[str, str]]:
    done = await orc("doctor", "-o", "json")
    listed: list[dict[str, str]] = msgspec.json.decode(done.out)
    is_wrong = any(one["status"] == "wrong" for one in listed)
    assert done.status == (1 if is_wrong else 0)
    assert all(one["next"] for one in listed if one["status"] != "ok"), listed
    return {one["check"]: one for one in listed}


async def test_a_place_where_all_is_well_is_found_so(
    orc: Terminal, conn: db.Connection, tool: Tool, serve: Serve
) -> None:
    await db.call(conn, "ensure_system_agent")
    orc.set(ORCHESTRATOR_URL=(await serve()).url, APP_ENV="development")
    await db.call(conn, "tick", scheduler="s")
    checks = await found(orc)
    assert {one["status"] for one in checks.values()} == {"ok"}, checks
    assert checks.keys() >= {
        "settings", "database", "schema", "clock", "invariants", "workers", "schedulers", "queues",
        "transactions", "JWT_SECRET", "API",
    }  # fmt: skip
    assert "wrong" not in (await orc("doctor")).out


async def test_what_is_missing_is_named_with_what_to_do(orc: Terminal, conn: db.Connection) -> None:
    orc.set(REDIS_URL="redis://127.0.0.1:1/0", ORCHESTRATOR_URL="http://127.0.0.1:1")
    await enqueue(conn, HELD, queue="mail")
    checks = await found(orc)
    said = {name: (one["status"], one["next"]) for name, one in checks.items()}
    assert said["workers"] == ("wrong", "bin/worker")
    assert said["schedulers"] == ("wrong", "bin/scheduler")
    assert said["queue mail"] == ("wrong", "bin/worker --queues mail")
    assert said["Redis"] == ("warning", "start it, or unset REDIS_URL")
    assert checks["API"]["status"] == "warning"
    assert "bin/up" in checks["API"]["found"]


async def test_a_paused_queue_and_a_silent_worker_are_told(
    orc: Terminal, conn: db.Connection
) -> None:
    await enqueue(conn, HELD)
    await db.call(conn, "pause_queue", tenant="t", queue="default")
    await db.call(conn, "register_worker", queues=["default"], slots=1)
    await db.call(conn, "register_worker", queues=["default"], slots=1, name="old")
    await conn.execute(
        "update orchestrator.worker set expires_at = orchestrator.now() - interval '1 minute'"
        " where name = 'old'"
    )
    checks = await found(orc)
    assert checks["queue default"]["next"] == "orc queue resume default --tenant t"
    assert "1 live, 1 silent: old" in checks["workers"]["found"]


async def test_a_queue_whose_workers_are_all_silent_is_told(
    orc: Terminal, conn: db.Connection
) -> None:
    await enqueue(conn, HELD)
    await db.call(conn, "register_worker", queues=["default"], slots=1)
    await conn.execute(
        "update orchestrator.worker set expires_at = orchestrator.now() - interval '1 minute'"
    )
    checks = await found(orc)
    assert checks["queue default"]["next"] == "bin/worker --queues default"
    assert checks["workers"]["status"] == "wrong"


async def test_a_run_that_waits_too_long_is_told(orc: Terminal, conn: db.Connection) -> None:
    await enqueue(conn, HELD)
    await db.call(conn, "register_worker", queues=["default"], slots=1)
    await conn.execute("update orchestrator.due_work set due_at = due_at - interval '5 minutes'")
    checks = await found(orc)
    assert checks["queue default"]["status"] == "warning"
    assert "queues" not in checks


@pytest.mark.breaks
async def test_a_broken_invariant_is_told(orc: Terminal, conn: db.Connection) -> None:
    await conn.execute("grant execute on function orc.overview() to public")
    checks = await found(orc)
    assert checks["invariants"]["status"] == "wrong"
    assert "functions_are_closed_to_public" in checks["invariants"]["found"]
    await conn.execute("revoke execute on function orc.overview() from public")


async def test_a_database_without_a_schema_or_none_at_all_is_told(
    orc: Terminal, empty_database: str
) -> None:
    orc.set(DATABASE_URL=empty_database)
    assert (await found(orc))["schema"]["next"] == "bin/db install"
    orc.set(DATABASE_URL="postgresql://x@127.0.0.1:1/x")
    assert (await found(orc))["database"]["status"] == "wrong"
    orc.unset("DATABASE_URL")
    assert "bin/db up" in (await found(orc))["database"]["next"]
    orc.set(ORC_POOL_SISE="1")
    checks = await found(orc)
    assert [*checks] == ["settings"]
    assert "did you mean ORC_POOL_SIZE" in checks["settings"]["found"]


async def test_a_weak_or_missing_secret_is_told(orc: Terminal, conn: db.Connection) -> None:
    orc.set(JWT_SECRET="short")
    assert (await found(orc))["JWT_SECRET"]["status"] == "wrong"
    orc.unset("JWT_SECRET")
    assert (await found(orc))["JWT_SECRET"]["status"] == "ok"
    await db.call(conn, "create_user", tenant="default", name="ann", password_hash=HASH)
    assert "there are users" in (await found(orc))["JWT_SECRET"]["found"]
