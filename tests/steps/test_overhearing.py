"""What functions print is in the logs of their own runs, and nowhere else."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
from conftest import Make
from crew import Crew, call, ends, enqueue

from orchestrator import db
from orchestrator.steps.overhearing import LONGEST_LINE, MOST_LINES, Heard, overheard


@pytest.fixture
async def crew(make: Make) -> AsyncIterator[Crew]:
    found = Crew(make.config(python_modules=("deeds",)))
    found.worker()
    yield found
    await found.end()


async def lines(conn: db.Connection, run: str) -> list[db.Row]:
    cursor = await conn.execute(
        "select level, message, facts from orchestrator.log where run_id = %s order by id", [run]
    )
    return await cursor.fetchall()


async def test_what_a_function_prints_is_in_the_log_of_its_run(
    crew: Crew, conn: db.Connection, capfd: pytest.CaptureFixture[str]
) -> None:
    run = await enqueue(conn, call("chatter", text="blue"))
    assert (await ends(conn, run))["output"] == {"0": "done"}
    said = await lines(conn, run)
    assert [(line["level"], line["message"]) for line in said] == [
        ("info", "it is blue"),
        ("info", "blue in bytes blue"),
        ("info", "line 0"),
        ("warning", "blue"),
    ]
    assert said[-1]["facts"] == {"stream": "stderr"}
    out = capfd.readouterr().out
    assert "stranger blue" in out
    assert "it is blue" not in out


async def test_fifty_calls_at_once_print_into_their_own_runs(
    crew: Crew, conn: db.Connection
) -> None:
    runs = [await enqueue(conn, call("chatter", text=f"n{n}", lines=20)) for n in range(50)]
    for n, run in enumerate(runs):
        await ends(conn, run)
        told = {line["message"] for line in await lines(conn, run)}
        assert {f"it is n{n}", f"n{n}"} < told
        assert not any(f"n{other}" in told for other in range(50) if other != n)
    assert type(sys.stdout).__name__ != "Ear"


async def test_what_is_printed_is_bounded(crew: Crew, conn: db.Connection) -> None:
    run = await enqueue(conn, call("chatter", text="x" * 5000, lines=10_000))
    assert (await ends(conn, run))["state"] == "succeeded"
    said = await lines(conn, run)
    assert len(said) == MOST_LINES + 1
    assert max(len(line["message"]) for line in said) == LONGEST_LINE
    assert said[-1]["message"] == "it printed more"
    assert said[-1]["facts"] == {"lines": 9803}


def test_what_cannot_be_kept_is_replaced() -> None:
    heard = Heard()
    with overheard(heard):
        print("a\0b\ud800c")
        sys.stdout.buffer.write(b"\xff")
    found: list[Any] = heard.end()
    assert [line["message"] for line in found] == ["a\ufffdb?c", "\ufffd"]


def test_who_closes_what_he_prints_to_silences_nobody() -> None:
    for text in "ab":
        heard = Heard()
        with overheard(heard):
            assert not sys.stdout.closed
            assert not sys.stdout.buffer.closed
            print(text)
            sys.stdout.buffer.close()
            sys.stdout.close()
        assert [line["message"] for line in heard.end()] == [text]
    assert not sys.stdout.closed


async def test_a_thread_of_asyncio_belongs_to_the_call(crew: Crew) -> None:
    heard = Heard()
    with overheard(heard):
        await asyncio.to_thread(print, "from afar")
    assert [line["message"] for line in heard.end()] == ["from afar"]
