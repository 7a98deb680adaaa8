"""`orc run`: what goes in is checked, what happens is told, the exit status says how it ended."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from acts import Tool, do
from conftest import Make
from crew import Crew, look, until

from orchestrator import db
from orchestrator.cli.params import Unreadable, parsed
from orchestrator.steps import Fail

Json = dict[str, Any]


@pytest.fixture
async def crew(make: Make) -> AsyncIterator[Crew]:
    crew = Crew(make.config())
    yield crew
    await crew.end()


class Orc:
    """The command as a process, beside workers of the test."""

    def __init__(self, database: str, folder: Path) -> None:
        self.database, self.folder = database, folder
        self.processes: list[asyncio.subprocess.Process] = []

    def write(self, *steps: Json, name: str = "p.json", **more: Any) -> str:
        document = {"pipeline": list(steps), **more}
        (self.folder / name).write_bytes(msgspec.json.encode(document))
        return str(self.folder / name)

    async def start(self, *words: str) -> asyncio.subprocess.Process:
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "orchestrator.cli", "run", *words, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, env={**kept, "DATABASE_URL": self.database},
        )  # fmt: skip
        self.processes.append(process)
        return process

    async def end(self) -> None:
        for process in self.processes:
            if process.returncode is None:
                process.kill()
                await process.communicate()

    async def __call__(self, *words: str) -> tuple[int, str, str]:
        return await ended(await self.start(*words))


async def ended(process: asyncio.subprocess.Process) -> tuple[int, str, str]:
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    assert b"Traceback" not in err, err.decode()
    return process.returncode, out.decode(), err.decode()


@pytest.fixture
async def orc(database: str, tmp_path: Path) -> AsyncIterator[Orc]:
    made = Orc(database, tmp_path)
    yield made
    await made.end()


ECHO = {"id": "a", "uses": "set", "with": {"v": "${params}"}}


async def runs(conn: db.Connection) -> int:
    cursor = await conn.execute("select count(*) as n from orc.runs")
    row = await cursor.fetchone()
    assert row is not None
    return int(row["n"])


# What goes in


@pytest.mark.parametrize(
    ("words", "declared", "found"),
    [
        (["a=text", "b=5", "c=true", "d=[1]", "e="], {},
         {"a": "text", "b": 5, "c": True, "d": [1], "e": ""}),
        (["a=5", "b=5"], {"a": {"type": "string"}}, {"a": "5", "b": 5}),
        (["a=5"], {"a": {"type": ["string", "integer"]}}, {"a": 5}),
        (["a=5"], {"a": {"type": ["string", "number"]}}, {"a": 5}),
        (["a=null"], {"a": {"type": ["string", "null"]}}, {"a": None}),
        (["a=true"], {"a": {"type": ["string", "number"]}}, {"a": "true"}),
        (["a=2"], {"a": {"enum": ["1", "2"]}}, {"a": "2"}),
        (["a=2"], {"a": {"enum": [1, 2, "x"]}}, {"a": 2}),
        (["a=x"], {"a": {"type": "integer"}}, {"a": "x"}),
        (['a:="5"', "b:=5"], {"b": {"type": "string"}}, {"a": "5", "b": 5}),
        (["a=b=c", "d=two\nlines"], {}, {"a": "b=c", "d": "two\nlines"}),
    ],
)  # fmt: skip
def test_a_parameter_is_what_its_input_says_else_json_else_text(
    words: list[str], declared: Json, found: Json
) -> None:
    assert parsed(words, declared) == found


def test_a_parameter_may_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "v").write_text('{"x": 1}')
    declared = {"text": {"type": "string"}}
    words = [f"a=@{tmp_path}/v", f"text=@{tmp_path}/v", 'b:="@v"']
    assert parsed(words, declared) == {"a": {"x": 1}, "text": '{"x": 1}', "b": "@v"}


def test_every_word_that_is_no_parameter_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unreadable) as caught:
        parsed(["x", "a:={", f"b=@{tmp_path}/no", "c=1", "c=2", "ok=1"], {})
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "'x' isn't NAME=VALUE, NAME", "a", "b", "c is given twice"]  # fmt: skip


async def test_the_runs_id_is_printed_and_nothing_is_awaited(orc: Orc, conn: db.Connection) -> None:
    file = orc.write(ECHO, inputs={"n": {"type": "integer"}}, defaults={"queue": "q"})
    status, out, err = await orc(file, "--param", "n=5", "--tenant", "t")
    assert (status, err) == (0, "")
    row = await look(conn, out.strip())
    assert (row["input"], row["queue"], row["tenant_id"], row["state"]) == (
        {"n": 5}, "q", "t", "ready")  # fmt: skip
    status, out, _ = await orc(file, "-p", "n=6", "-o", "json", "--queue", "z", "--priority", "1")
    made = msgspec.json.decode(out)
    assert made["decision"] == "created"
    row = await look(conn, made["run_id"])
    assert (row["queue"], row["priority"]) == ("z", 1)


async def test_a_full_key_is_said_beside_the_id_of_the_run_that_has_it(orc: Orc) -> None:
    file = orc.write(ECHO, concurrency={"key": "k", "on_conflict": "skip"})
    _, first, _ = await orc(file)
    status, out, err = await orc(file)
    assert (status, out) == (0, first)
    assert f"run {first.strip()} skipped (concurrency key k is full: run" in err


async def test_every_parameter_that_does_not_fit_is_said_and_no_run_is_made(
    orc: Orc, conn: db.Connection
) -> None:
    file = orc.write(ECHO, inputs={"n": {"type": "integer"}, "m": {"required": True}})
    status, out, err = await orc(file, "-p", "n=x", "-p", "k=1")
    assert (status, out) == (2, "")
    assert [line.split(":")[0] for line in err.splitlines()] == ["n", "k", "m"]
    assert "m is required" in err
    assert (await orc(file, "-p", "n"))[0] == 2
    assert await runs(conn) == 0


async def test_a_document_that_is_wrong_is_told_with_its_lines(
    orc: Orc, conn: db.Connection
) -> None:
    file = orc.folder / "p.yaml"
    file.write_text("pipeline:\n  - id: a\n    uses: set\n    timeout: soon\n    tiemout: 1\n")
    status, _, err = await orc(str(file))
    assert status == 2
    assert f"{file}:4: /pipeline/0/timeout: 'soon' is no duration" in err
    assert f"{file}:5: /pipeline/0/tiemout:" in err
    assert (await orc(str(orc.folder / "none.yaml")))[0] == 2
    assert await runs(conn) == 0


# What comes out


async def test_following_tells_each_step_and_prints_the_output(orc: Orc, crew: Crew) -> None:
    tool = Tool()
    file = orc.write(do("a", 1), do("b", 2), output="${steps.b}")
    crew.worker(tool.kind)
    status, out, err = await orc(file, "--follow", "--tenant", "t")
    assert (status, out) == (0, "2\n")
    lines = [line.split(" ", 1)[1] for line in err.splitlines()]
    assert lines[0].endswith(" created")
    told = [line.split(" after")[0] for line in lines]
    assert [line for line in told if line.startswith(("a succ", "b succ"))] == [
        "a succeeded", "b succeeded"]  # fmt: skip
    assert len(told) == len(set(told))
    assert told[-1] == "run succeeded"


async def test_waiting_tells_nothing_but_the_id(orc: Orc, crew: Crew) -> None:
    crew.worker()
    status, out, err = await orc(orc.write(ECHO), "--wait", "-p", "x=1")
    assert (status, msgspec.json.decode(out)) == (0, {"a": {"v": {"x": 1}}})
    assert len(err.splitlines()) == 1


async def test_the_exit_status_says_how_the_run_ended(
    orc: Orc, crew: Crew, conn: db.Connection
) -> None:
    tool = Tool(outside=True)
    tool.answer("a", Fail("runtime", "no such thing"), Fail("timeout", "too slow"))
    tool.hold("held")
    crew.worker(tool.kind)
    status, out, err = await orc(orc.write(do("a")), "--wait", "-o", "json")
    ended_as = msgspec.json.decode(out)
    assert (status, ended_as["state"], ended_as["error"]["type"]) == (1, "failed", "runtime")
    assert "failed: " in err and "no such thing" in err
    assert (await orc(orc.write(do("a")), "--wait"))[0] == 4
    process = await orc.start(orc.write(do("held")), "--follow")
    await until(lambda: "held" in tool.calls)
    cursor = await conn.execute("select id from orc.runs where state = 'running'")
    (row,) = await cursor.fetchall()
    await db.call(conn, "cancel_run", tenant="default", run=row["id"])
    status, _, err = await ended(process)
    assert status == 3
    assert "held started" in err and "canceled" in err


async def test_ctrl_c_says_that_the_run_goes_on_and_how_to_cancel_it(
    orc: Orc, crew: Crew, conn: db.Connection
) -> None:
    tool = Tool(outside=True)
    tool.hold("held")
    crew.worker(tool.kind)
    process = await orc.start(orc.write(do("held")), "--follow", "--tenant", "o'hara")
    assert process.stderr is not None
    while b"held started" not in await asyncio.wait_for(process.stderr.readline(), 30):
        pass
    process.send_signal(signal.SIGINT)
    status, out, err = await ended(process)
    assert (status, out) == (130, "")
    cursor = await conn.execute("select id, state from orc.runs")
    (row,) = await cursor.fetchall()
    assert row["state"] == "running"
    assert f"run {row['id']} goes on. Cancel it: orc db psql -c" in err
    cursor = await conn.execute(err.split('"')[1].encode())
    assert (await cursor.fetchall())[0]["cancel_run"] == ("running", "t")


async def test_why_nothing_happens_is_said(orc: Orc, crew: Crew, conn: db.Connection) -> None:
    document = orc.write(ECHO, concurrency={"key": "k"})
    _, first, _ = await orc(document)
    process = await orc.start(document, "--follow")
    assert process.stderr is not None
    line = b""
    while b"blocked" not in line:
        line = await asyncio.wait_for(process.stderr.readline(), 30)
    assert b"run blocked (key free, not given yet: when one of them ends" in line
    assert b"no live worker: when a worker is started: bin/worker --queues default" in line
    crew.worker()
    assert (await ended(process))[0] == 0
    assert (await look(conn, first.strip()))["state"] == "succeeded"


async def test_a_lost_connection_is_made_again(orc: Orc, crew: Crew, conn: db.Connection) -> None:
    tool = Tool()
    tool.hold("held")
    crew.worker(tool.kind)
    process = await orc.start(orc.write(do("held", 7)), "--wait")
    await until(lambda: "held" in tool.calls)

    async def cut() -> int:
        cursor = await conn.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where application_name = 'orc run' and datname = current_database()"
        )
        return len(await cursor.fetchall())

    await until(cut)
    tool.free()
    assert (await ended(process))[:2] == (0, '{"held":7}\n')


async def test_a_server_that_is_away_is_said_before_anything_is_made(tmp_path: Path) -> None:
    away = Orc("postgresql://x@127.0.0.1:1/x", tmp_path)
    status, _, err = await away(away.write(ECHO))
    assert status == 69
    assert len(err.splitlines()) == 1


async def test_follow_run_sees_only_its_tenant(conn: db.Connection) -> None:
    row = await db.call_one(conn, "enqueue", tenant="t", pipeline={"pipeline": [ECHO]})
    seen = await db.call_one(conn, "follow_run", tenant="t", run=row["run_id"])
    assert (seen["state"], seen["steps"]) == ("ready", [])
    with pytest.raises(psycopg.DatabaseError, match="Run not found"):
        await db.call_one(conn, "follow_run", tenant="other", run=row["run_id"])
