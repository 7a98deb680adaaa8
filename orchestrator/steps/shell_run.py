"""`shell.run`: a program that the operator allowed by name. No shell reads its words.

It gets a folder of its own that is removed afterwards, none of our environment but PATH, HOME and
LANG, and limits on time, memory and output. Whoever may run a program may run it with any
arguments: allow only what may be done with it.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import signal
import tempfile
from contextlib import suppress
from typing import IO, Annotated, Any

import msgspec

from ..config import bare_environment
from . import Context, Done, Fail, Kind, Outcome, Retry
from . import child as children

LONGEST_OUTPUT = 1_048_576
"""Bytes of stdout, and of stderr."""

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
LOADING = re.compile(
    r"(LD_|DYLD_|PYTHON|PERL|RUBY|NODE_|GIT_|BASH_|JAVA_|JDK_|_JAVA|GCONV_).*|PATH|HOME|ENV|IFS"
    r"|SHELLOPTS|PS4|ZDOTDIR|.*_PRELOAD"
)
"""Variables that make an allowed program run another."""


class Command(msgspec.Struct, forbid_unknown_fields=True):
    command: Annotated[list[str], msgspec.Meta(min_length=1)]
    stdin: str = ""
    env: dict[str, str] = {}
    timeout: Annotated[float, msgspec.Meta(gt=0, le=86_400)] = 60.0
    memory_mb: Annotated[int, msgspec.Meta(ge=16, le=1_048_576)] = 1024
    expect: tuple[int, ...] = (0,)  # exit statuses that aren't a failure


async def run(given: Command, context: Context) -> Outcome:
    if refusal := _refusal(given, context):
        return refusal
    folder = await asyncio.to_thread(tempfile.mkdtemp, prefix="orc-shell-")
    try:
        return await _run(given, folder)
    finally:
        await asyncio.shield(asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True))


def _refusal(given: Command, context: Context) -> Fail | None:
    program = given.command[0]
    if program not in context.config.shell_commands:
        return Fail("authorization", f"{program!r} isn't allowed: name it in ORC_SHELL_COMMANDS")
    for name in given.env:
        if not NAME.fullmatch(name) or LOADING.fullmatch(name):
            return Fail("authorization", f"the variable {name!r} may not be set")
    if any("\0" in text for text in [*given.command, *given.env.values()]):
        return Fail("validation", "a NUL character can't be passed to a program")
    return None


async def _run(given: Command, folder: str) -> Outcome:
    environment = {**bare_environment(), **given.env, "TMPDIR": folder}
    try:
        child = children.start(given.command, environment, folder, given.memory_mb * 1_048_576)
    except OSError as error:  # too many or too long words
        return Fail("validation", f"{given.command[0]}: {error.strerror}")
    try:
        async with asyncio.timeout(given.timeout):
            async with asyncio.TaskGroup() as group:
                group.create_task(_feed(child, given.stdin.encode()))
                out = group.create_task(_collect(child, child.process.stdout))
                err = group.create_task(_collect(child, child.process.stderr))
            await child.ended.wait()
    except TimeoutError:
        return Retry("timeout", f"{given.command[0]} took longer than {given.timeout:g} s")
    finally:
        await child.stop()
    return _outcome(given, child, out.result(), err.result())


async def _feed(child: children.Child, data: bytes) -> None:
    with suppress(BrokenPipeError, ConnectionResetError):
        await child.write(data)
    child.close_input()


async def _collect(child: children.Child, pipe: IO[bytes] | None) -> bytes:
    """All of it. A program that says too much is killed."""
    data = bytearray()
    while chunk := await child.read(pipe):
        data += chunk
        if len(data) > LONGEST_OUTPUT:
            child.signal(signal.SIGKILL)
            break
    return bytes(data)


def _outcome(given: Command, child: children.Child, out: bytes, err: bytes) -> Outcome:
    program = given.command[0]
    if child.problem:
        return Fail("configuration", f"{program} can't be started: {child.problem}")
    for name, data in (("stdout", out), ("stderr", err)):
        if len(data) > LONGEST_OUTPUT:
            return Fail("runtime", f"the {name} of {program} is longer than {LONGEST_OUTPUT} bytes")
    if child.status not in given.expect:
        tail = err.decode(errors="replace").strip()[-1000:]
        return Retry("runtime", f"{program} ended with status {child.status}: {tail}".rstrip(": "))
    result: dict[str, Any] = {"exit_status": child.status}
    for name, data in (("stdout", out), ("stderr", err)):
        try:
            result[name] = data.decode()
        except UnicodeDecodeError:
            return Fail("validation", f"the {name} of {program} isn't UTF-8")
        if b"\0" in data:
            return Fail("validation", f"the {name} of {program} has a NUL character")
    return Done(result)


KIND = Kind("shell.run", Command, run, outside=True, needs="ORC_SHELL_COMMANDS")
