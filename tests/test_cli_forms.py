"""What commands print: tables that fit, ids that are whole, no colour where nobody sees it; and how
fast they start, and what they complete."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from terminal import environment

from orchestrator.cli import core

ID = "01a1fe85-b214-7c38-bf9c-8640f8b3fc77"
ROWS = [{"id": ID, "state": "failed", "title": "A very long title " * 20, "n": None}]
SHOW = f"""
from orchestrator.cli import core
core.show({ROWS!r}, "table", ("id", "state", "title"))
"""


def test_a_program_gets_whole_lines(capsys: pytest.CaptureFixture[str]) -> None:
    core.show(ROWS, "table", ("id", "state", "title"))
    head, line = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{ID}  failed  A very")
    assert line.endswith("A very long title")
    assert head.split() == ["id", "state", "title"]


def on_a_terminal(tmp_path: Path, columns: int, **more: str) -> str:
    """What is shown there."""
    ours, theirs = pty.openpty()
    env = environment(tmp_path, TERM="xterm-256color", COLUMNS=str(columns), **more)
    process = subprocess.Popen([sys.executable, "-c", SHOW], stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    seen = b""
    try:
        while data := os.read(ours, 65536):
            seen += data
    except OSError:  # how the end of a terminal looks
        pass
    assert process.wait(30) == 0, seen
    os.close(ours)
    return seen.decode()


def test_a_table_fits_its_terminal_and_its_ids_are_whole(tmp_path: Path) -> None:
    shown = re.sub(r"\x1b\[\dm", "", on_a_terminal(tmp_path, 70, NO_COLOR="1")).splitlines()
    assert len(shown) == 2
    assert ID in shown[1]
    assert all(len(line) <= 70 for line in shown)
    assert shown[1].rstrip().endswith("…")


def test_there_is_colour_on_a_terminal_only_and_not_when_nobody_wants_it(tmp_path: Path) -> None:
    assert "\x1b[31mfailed" in on_a_terminal(tmp_path, 120)
    plain = on_a_terminal(tmp_path, 120, NO_COLOR="1")
    assert "\x1b[3" not in plain
    done = subprocess.run([sys.executable, "-c", SHOW], capture_output=True, text=True,
                          env=environment(tmp_path, TERM="xterm-256color"), check=True)  # fmt: skip
    assert "\x1b" not in done.stdout


def test_what_others_wrote_does_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b]0;owned\x07 \x1b[2J [bold]x[/bold] \r\n\x9b31m"
    core.show([{"id": evil}], "table", ("id",))
    core.show_one({"id": evil, "inner": [{"a": evil}]}, "table")
    core.note(evil)
    said = "".join(capsys.readouterr())
    assert not set(said) & {"\x1b", "\x07", "\r", "\x9b"}
    assert "\\x1b]0;owned\\x07" in said
    assert "[bold]x[/bold]" in said


@pytest.mark.parametrize(
    ("form", "printed"),
    [("json", '[{"id":1,"a":{"b":2}}]\n'), ("jsonl", '{"id":1,"a":{"b":2}}\n'), ("id", "1\n")],
)
def test_a_program_gets_all_that_a_row_holds(
    form: Any, printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    core.show([{"id": 1, "a": {"b": 2}}], form, ("id",))
    assert capsys.readouterr().out == printed


def test_times_are_said_as_people_read_them() -> None:
    assert core.cell("2026-11-21T08:30:00.123Z") == "2026-11-21 08:30:00"
    assert core.cell("2026-11-21T08:30:00+02:00") == "2026-11-21T08:30:00+02:00"
    assert core.cell({"a": [1]}) == '{"a":[1]}'


# Names


def run(tmp_path: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "orchestrator.cli", *words], capture_output=True, text=True,
        timeout=60, env=environment(tmp_path, **more),
    )  # fmt: skip


NOUNS = [
    "task",
    "run",
    "event",
    "agent",
    "queue",
    "worker",
    "explain",
    "failures",
    "retry",
    "top",
    "tail",
    "doctor",
    "login",
]


def test_every_noun_and_every_exit_status_is_in_the_help(tmp_path: Path) -> None:
    said = run(tmp_path, "--help", COLUMNS="300").stdout
    assert [noun for noun in NOUNS if f" {noun} " not in said] == []
    assert [status for status in core.Exit if f"{int(status)} " not in said] == []


def test_a_word_that_is_no_command_is_no_file_either(tmp_path: Path) -> None:
    done = run(tmp_path, "run", "lst")
    assert (done.returncode, "No such command 'lst'" in done.stderr) == (2, True)
    done = run(tmp_path, "run", "nowhere.yaml")
    assert (done.returncode, "nowhere.yaml: can't be read" in done.stderr) == (2, True)


COMPLETE: dict[str, Callable[[str], dict[str, str]]] = {
    "bash": lambda line: {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))},
    "zsh": lambda line: {"_TYPER_COMPLETE_ARGS": line},
    "fish": lambda line: {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
}


@pytest.mark.parametrize("shell", COMPLETE)
@pytest.mark.parametrize(
    ("line", "word"),
    [("orc ta", "task"), ("orc task ca", "cancel"), ("orc run list --sta", "--state"),
     ("orc run list --state fa", "failed"), ("orc worker li", "list")],
)  # fmt: skip
def test_shells_complete_nouns_verbs_options_and_their_values(
    tmp_path: Path, shell: str, line: str, word: str
) -> None:
    program = "import sys; sys.argv = ['orc']; from orchestrator import cli; cli.main()"
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, timeout=60,
        env=environment(tmp_path, _ORC_COMPLETE=f"complete_{shell}", **COMPLETE[shell](line)),
    )  # fmt: skip
    assert word in done.stdout, done


def test_whoever_asks_nothing_waits_for_nothing(tmp_path: Path) -> None:
    """What is slow to load is loaded by the command that needs it."""
    heavy = ["httpx2", "starlette", "uvicorn", "apscheduler", "mcp", "redis", "argon2", "jinja2",
             "yaml", "rich.live", "rich.markdown", "orchestrator.api", "orchestrator.worker",
             "orchestrator.schema", "orchestrator.pipelines", "orchestrator.schedules",
             "orchestrator.devpg", "cel_expr_python", "pydantic"]  # fmt: skip
    look = f"import sys, orchestrator.cli; print(*({heavy!r} & sys.modules.keys()))"
    look = look.replace(f"{heavy!r}", f"set({heavy!r})")
    done = subprocess.run([sys.executable, "-P", "-c", look], capture_output=True, text=True,
                          env=environment(tmp_path), check=True)  # fmt: skip
    assert done.stdout.strip() == ""
