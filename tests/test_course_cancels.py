"""A cancel reaches whatever step is under way, of each kind of tool, at whatever moment."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from acts import Tool, do, put, start, steps_of
from conftest import Make
from crew import Crew, call, ends, until
from test_course_durable import is_in

from orchestrator import db
from orchestrator.steps import Retry
from orchestrator.worker import Worker

DEAF = "trap '' TERM; sleep 1000 & echo $$ $! > {}; wait; wait; sleep 1000"
WILD = Path(__file__).parent / "steps" / "servers" / "wild.py"


@pytest.fixture
async def crew(make: Make, tmp_path: Path) -> AsyncIterator[Crew]:
    servers = {"wild": {"command": sys.executable, "args": ["-I", "-S", str(WILD)]}}
    (tmp_path / "mcp.json").write_text(json.dumps({"mcpServers": servers}))
    crew = Crew(
        make.config(
            python_modules=("deeds",),
            shell_commands=("sh",),
            allow_targets=("127.0.0.1",),
            mcp_servers_path=tmp_path / "mcp.json",
        )
    )
    yield crew
    await crew.end()


def lives(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


async def cancel(conn: db.Connection, run: str) -> None:
    await db.call(conn, "cancel_run", tenant="t", run=run)
    assert (await ends(conn, run))["state"] == "canceled"


async def test_a_canceled_function_runs_on_in_its_slot_and_nobody_hears_it(
    crew: Crew, conn: db.Connection, tmp_path: Path
) -> None:
    """A thread can't be stopped: its run ends at once, its slot is free when it returns."""
    ledger = tmp_path / "ledger"
    end = tmp_path / "end"
    held = call("note_until", path=str(ledger), end=str(end))
    run = await start(conn, held, call("note", path="/x"))
    worker = crew.worker(slots=1, lease=4.0)
    await until(ledger.exists)
    await cancel(conn, run)
    assert (len(worker.hands.given_up), worker.hands.taken) == (1, 1)
    end.touch()
    await until(lambda: not worker.hands.taken)
    assert await steps_of(conn, run) == {}


async def test_a_canceled_program_is_killed_with_its_children(
    crew: Crew, conn: db.Connection, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    command = ["sh", "-c", DEAF.format(pids)]
    run = await start(conn, {"id": "s", "uses": "shell.run", "with": {"command": command}})
    crew.worker(lease=4.0)
    await until(lambda: pids.exists() and pids.read_text().count(" "))
    await cancel(conn, run)
    await until(lambda: not any(lives(int(pid)) for pid in pids.read_text().split()))


async def test_a_canceled_request_is_hung_up(crew: Crew, conn: db.Connection) -> None:
    asked, hung_up = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        await reader.read()
        hung_up.set()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    run = await start(conn, {"id": "h", "uses": "http.request", "with": {"url": url}})
    crew.worker(lease=4.0)
    await asyncio.wait_for(asked.wait(), 60)
    await cancel(conn, run)
    await asyncio.wait_for(hung_up.wait(), 60)
    server.close()


async def test_a_canceled_mcp_call_is_canceled_at_its_server(
    crew: Crew, conn: db.Connection, tmp_path: Path
) -> None:
    warm = await start(conn, {"id": "m", "uses": "wild.echo", "with": {}})
    crew.worker(lease=4.0)
    await ends(conn, warm)
    note = tmp_path / "asked"
    run = await start(conn, {"id": "m", "uses": "wild.hang", "with": {"note": str(note)}})
    await until(note.exists)
    await cancel(conn, run)
    after = await start(conn, {"id": "m", "uses": "wild.was_canceled", "with": {}})
    assert len((await ends(conn, after))["output"]["m"]["ids"]) == 1


# Between two lines of the worker


@pytest.fixture
async def tool() -> Tool:
    return Tool()


def cancel_after(
    turns: int, worker: Worker, epoch: int, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """Cancels a run so many turns of the loop after it was begun under this claim, and before any
    other task has a say. The answer gets its id then."""
    begin, loop, told = worker.hands.begin, asyncio.get_running_loop(), list[str]()

    def cancel(run: str, turns: int) -> None:
        if turns:
            loop.call_soon(cancel, run, turns - 1)
            return
        with psycopg.connect(worker.config.database_url) as conn:
            conn.execute("select orc.cancel_run('t', %s)", [run])
        worker.hands.cancel([run])
        told.append(run)

    def begin_and_cancel(runs: Any, *known: Any) -> None:
        begin(runs, *known)
        for run in runs:
            if run.epoch == epoch:
                cancel(run.id, turns)

    monkeypatch.setattr(worker.hands, "begin", begin_and_cancel)
    return told


@pytest.mark.parametrize("turns", range(12))
async def test_a_run_that_is_taken_up_and_canceled_at_any_moment_runs_its_finally_once(
    crew: Crew, conn: db.Connection, tool: Tool, monkeypatch: pytest.MonkeyPatch, turns: int
) -> None:
    """Before its first line, before it has come to where it was, or when it parks again."""
    both = {"id": "p", "parallel": {"branches": {"x": [do("a", 5)], "y": [put("c", x=1)]}}}
    nap = {"id": "n", "wait": {"for": "7d"}}
    steps = [both, put("s", x="${steps.p.x}"), nap, do("b")]
    id = await start(conn, *steps, finally_=[do("f", "${[steps.s.x, error.type]}")])
    worker = crew.worker(tool.kind, lease=4.0)
    await until(lambda: is_in(conn, id, "waiting"))
    told = cancel_after(turns, worker, 2, monkeypatch)
    await db.call(conn, "wake_run", tenant="t", run=id)
    assert (await ends(conn, id))["state"] == "canceled"
    assert (told, tool.calls, tool.given[-1]) == ([id], ["a", "f"], [5, "canceled"])


async def test_a_run_that_is_canceled_before_its_first_line_has_no_finally(
    crew: Crew, conn: db.Connection, tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = await start(conn, do("a"), finally_=[do("f")])
    told = cancel_after(0, crew.worker(tool.kind, lease=4.0), 1, monkeypatch)
    assert (await ends(conn, id))["state"] == "canceled"
    assert (told, tool.calls) == ([id], [])


@pytest.mark.parametrize("how", ["parks", "is to be tried again"])
async def test_a_cancel_that_comes_while_a_run_goes_to_rest_leaves_its_finally(
    crew: Crew, conn: db.Connection, tool: Tool, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The worker has said so, and the database hasn't heard it yet."""
    tool.answer("a", Retry("communication", "not now"))
    rest = {"id": "n", "wait": {"event": {"topic": "x"}}} if how == "parks" else do("a")
    options = {"max_attempts": 2, "backoff_seconds": 3600.0, "concurrency_key": "k"}
    id = await start(conn, rest, finally_=[do("f", "${error.type}")], run=options)
    worker = crew.worker(tool.kind, lease=4.0)
    settle, told = worker.hands._settle, list[str]()

    def settle_and_cancel(said: Any, *more: Any, **how: Any) -> None:
        settle(said, *more, **how)
        if not told:
            told.append(said.outcome)
            with psycopg.connect(worker.config.database_url) as conn:
                conn.execute("select orc.cancel_run('t', %s)", [id])

    monkeypatch.setattr(worker.hands, "_settle", settle_and_cancel)
    row = await ends(conn, id)
    assert (row["state"], row["attempt"]) == ("canceled", 1 if how == "parks" else 2)
    assert told == ["parked" if how == "parks" else "failed"]
    assert (tool.calls[-1], tool.calls.count("f"), tool.given[-1]) == ("f", 1, "canceled")
    assert await db.call(conn, "emit_event", tenant="t", topic="x")
