"""A cancel reaches whatever step is under way, of each kind of tool."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
from acts import start, steps_of
from conftest import Make
from crew import Crew, call, ends, until

from orchestrator import db

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
    assert (await ends(conn, run, within=20))["state"] == "canceled"


async def has_started(conn: db.Connection, run: str) -> bool:
    return bool(await steps_of(conn, run))


async def test_a_canceled_function_runs_on_in_its_slot_and_nobody_hears_it(
    crew: Crew, conn: db.Connection, tmp_path: Path
) -> None:
    """A thread can't be stopped: its run ends at once, its slot is free when it returns."""
    ledger = tmp_path / "ledger"
    run = await start(conn, call("note", path=str(ledger), seconds=1.5), call("note", path="/x"))
    worker = crew.worker(slots=1, lease=4.0)
    await until(ledger.exists)
    await cancel(conn, run)
    assert (len(worker.hands.given_up), worker.hands.taken) == (1, 1)
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
    await asyncio.wait_for(asked.wait(), 10)
    await cancel(conn, run)
    await asyncio.wait_for(hung_up.wait(), 5)
    server.close()


async def test_a_canceled_mcp_call_is_canceled_at_its_server(
    crew: Crew, conn: db.Connection
) -> None:
    warm = await start(conn, {"id": "m", "uses": "wild.echo", "with": {}})
    crew.worker(lease=4.0)
    await ends(conn, warm)
    run = await start(conn, {"id": "m", "uses": "wild.hang", "with": {}})
    await until(lambda: has_started(conn, run))
    await asyncio.sleep(0.3)  # the call follows its record
    await cancel(conn, run)
    after = await start(conn, {"id": "m", "uses": "wild.was_canceled", "with": {}})
    assert len((await ends(conn, after))["output"]["m"]["ids"]) == 1
