"""`shell.run` with real programs, among them ones that don't want to end."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from crew import own_clock, until

from orchestrator.config import Config
from orchestrator.steps import Context, Done, Fail, Outcome, Retry, shell_run

PYTHON = sys.executable
CONFIG = Config(shell_commands=("cat", "sh", "env", "no-such-program", PYTHON))


async def run(*command: str, **more: Any) -> Outcome:
    given = shell_run.Command(command=list(command), **more)
    return await shell_run.run(given, Context(CONFIG, "t", "r", 1, 1, None, {}))


async def fails(*command: str, **more: Any) -> tuple[str, str]:
    outcome = await run(*command, **more)
    assert isinstance(outcome, Fail | Retry), outcome
    return outcome.type, outcome.message


def lives(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


async def test_a_program_gets_its_words_and_its_input() -> None:
    said = await run("cat", "-", stdin="héllo")
    assert said == Done({"exit_status": 0, "stdout": "héllo", "stderr": ""})
    said = await run("sh", "-c", 'printf "%s" "$1" >&2; exit 3', "sh", "$(id)", expect=(0, 3))
    assert said == Done({"exit_status": 3, "stdout": "", "stderr": "$(id)"})
    assert isinstance(await run("cat", stdin="x" * 1_000_000), Done)
    assert isinstance(await run("sh", "-c", "exit 0", stdin="x" * 1_000_000), Done)


@pytest.mark.parametrize("program", ["rm", "/bin/cat", "./cat", "ca", ""])
async def test_only_what_the_operator_wrote_may_run(program: str) -> None:
    kind, message = await fails(program)
    assert kind == "authorization"
    assert message.endswith("name it in ORC_SHELL_COMMANDS")
    assert Config().shell_commands == ()


@pytest.mark.parametrize("name", ["PATH", "LD_PRELOAD", "BASH_ENV", "PYTHONPATH", "a=b", ""])
async def test_variables_that_would_run_something_else_are_refused(name: str) -> None:
    assert (await fails("env", env={name: "x"}))[0] == "authorization"


async def test_the_environment_is_bare_and_the_folder_is_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DATABASE_URL", "s3cret")
    said = await run("env", env={"A": "b"})
    assert isinstance(said, Done)
    names = {line.partition("=")[0] for line in said.value["stdout"].splitlines()}
    assert {"A", "PATH"} <= names <= {"A", "PATH", "HOME", "LANG", "TMPDIR", "LC_CTYPE"}
    said = await run("sh", "-c", "pwd; touch left; mkdir -p a/b; ls -a | wc -l")
    assert isinstance(said, Done)
    folder = Path(said.value["stdout"].split()[0])
    assert folder.parent == Path(tempfile.gettempdir()).resolve()
    assert not folder.exists()


async def test_failures_are_typed() -> None:
    assert await run("sh", "-c", "echo broken >&2; exit 7") == Retry(
        "runtime", "sh ended with status 7: broken"
    )
    assert await run("sh", "-c", "kill -9 $$") == Retry("runtime", "sh ended with status -9")
    kind, message = await fails("no-such-program")
    assert kind == "configuration"
    assert "No such file" in message
    assert (await fails("cat", "a\0b"))[0] == "validation"
    assert (await fails("cat", "x" * 3_000_000))[0] == "validation"
    assert (await fails("sh", "-c", r"printf '\377'"))[1] == "the stdout of sh isn't UTF-8"
    assert (await fails("sh", "-c", r"printf '\0'"))[1] == "the stdout of sh has a NUL character"


@pytest.mark.parametrize("where", [1, 2])
async def test_too_much_output_is_a_failure_and_never_cut(where: int) -> None:
    began = own_clock()
    kind, message = await fails("sh", "-c", f"cat /dev/zero >&{where}")
    name = {1: "stdout", 2: "stderr"}[where]
    assert (kind, message) == ("runtime", f"the {name} of sh is longer than 1048576 bytes")
    assert own_clock() - began < 2


async def test_memory_is_bounded() -> None:
    hungry = "x = bytearray(400_000_000); print(len(x))"
    assert isinstance(await run(PYTHON, "-c", hungry), Done)
    kind, message = await fails(PYTHON, "-c", hungry, memory_mb=200)
    assert kind == "runtime"
    assert "MemoryError" in message


DEAF = "trap '' TERM; sleep 1000 & echo $$ $! > {}; wait; wait; sleep 1000"


async def test_a_program_that_ignores_sigterm_is_killed_with_its_children(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    began = own_clock()
    kind, message = await fails("sh", "-c", DEAF.format(pids), timeout=0.7)
    assert (kind, message) == ("timeout", "sh took longer than 0.7 s")
    assert own_clock() - began < 2.5
    await until(lambda: not any(lives(int(pid)) for pid in pids.read_text().split()))


async def test_a_step_that_is_canceled_leaves_nothing_running(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    task = asyncio.create_task(run("sh", "-c", DEAF.format(pids)))
    await until(lambda: pids.exists() and pids.read_text().count(" "))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: not any(lives(int(pid)) for pid in pids.read_text().split()))


async def test_what_a_program_leaves_behind_ends_with_it(tmp_path: Path) -> None:
    said = await run("sh", "-c", "sleep 1000 & echo $!")
    assert isinstance(said, Done)
    await until(lambda: not lives(int(said.value["stdout"])))


async def test_it_runs_in_a_group_of_its_own() -> None:
    said = await run(PYTHON, "-c", "import os; print(os.getpgid(0))")
    assert isinstance(said, Done)
    assert int(said.value["stdout"]) != os.getpgid(0)
