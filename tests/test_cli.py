"""The command line: what is wrong is one clear line, and the exit status says of which kind."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys

import psycopg
import pytest
from typer.testing import CliRunner

from orchestrator import cli, db, guide
from orchestrator.cli import processes
from orchestrator.errors import Unfit


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", *words],
        capture_output=True,
        text=True,
        timeout=30,
        env=kept | environment,
    )


def refused(status: int, words: str, *command: str, **environment: str) -> None:
    done = run(*command, **environment)
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.returncode == status


PROCESSES = ["api", "worker", "scheduler", "relay"]


@pytest.mark.parametrize("process", PROCESSES)
def test_an_unknown_setting_stops_a_process(process: str) -> None:
    refused(78, "ORC_POOL_SISE is not a setting: did you mean", process, ORC_POOL_SISE="1")


@pytest.mark.parametrize("process", PROCESSES)
def test_an_unreachable_server_stops_a_process(process: str) -> None:
    refused(69, "127.0.0.1:1 can't be used: Connection refused", process,
            DATABASE_URL="postgresql://x@127.0.0.1:1/x")  # fmt: skip


def test_a_database_without_the_schema_says_what_to_run(empty_database: str) -> None:
    refused(78, "run `bin/db install`", "api", DATABASE_URL=empty_database)


def test_a_taken_port_names_the_port_and_the_way_out(database: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = run("api", DATABASE_URL=database, PORT=port)
    assert f"port {port} on 127.0.0.1 can't be used" in done.stderr
    assert "--port" in done.stderr
    assert done.returncode == 78


def test_a_wrong_password_is_one_line_without_it(database: str) -> None:
    wrong = psycopg.conninfo.make_conninfo(database, password="hunter2")
    done = run("api", DATABASE_URL=wrong)
    assert done.returncode == 69
    assert "password authentication failed" in done.stderr
    assert "hunter2" not in done.stderr


def test_check_is_quiet_and_verbs_are_listed(database: str) -> None:
    assert run("check", DATABASE_URL=database).stdout == "every invariant holds\n"
    assert "whoami" in run("verbs", DATABASE_URL=database).stdout


def test_the_guide_lists_its_pages_and_prints_one_as_it_stands() -> None:
    listed = run("guide").stdout
    assert all(topic in listed for topic in guide.topics())
    assert run("guide", "durability").stdout == guide.page("durability")
    done = run("guide", "tool")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "did you mean tools?" in done.stderr


def test_in_a_terminal_a_page_is_set_by_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    said = CliRunner().invoke(cli.app, ["guide", "tools"]).output
    assert "# Tools" in said
    monkeypatch.setattr(guide, "_in_terminal", lambda: True)
    said = CliRunner().invoke(cli.app, ["guide", "tools"]).output
    assert "Tools" in said
    assert "# Tools" not in said
    assert "```" not in said


def test_status_names_server_and_schema(database: str) -> None:
    said = run("db", "status", DATABASE_URL=database).stdout
    assert "PostgreSQL" in said
    assert "schema: current" in said


def test_reset_asks_first(database: str) -> None:
    done = run("db", "reset", DATABASE_URL=database)
    assert done.returncode != 0
    assert run("check", DATABASE_URL=database).returncode == 0


async def test_a_deploy_that_breaks_older_programs_ends_them_with_what_to_do(
    database: str, conn: db.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(processes, "SCHEMA_SECONDS", 0.02)
    monkeypatch.setattr(os, "kill", lambda _, number: ended.append(number))
    watch = asyncio.create_task(processes._watch_schema(database))
    await asyncio.sleep(0.1)
    assert not watch.done()
    await conn.execute(
        "insert into orchestrator.migration (name, digest, breaking, program_version)"
        " values ('9999_all_is_new', repeat('a', 64), true, '9.0.0')"
    )
    with pytest.raises(Unfit, match=r"deploy version >= 9\.0\.0 and restart"):
        await asyncio.wait_for(watch, 5)
    assert ended == [signal.SIGTERM]
