"""A command in a process group of its own, which doesn't outlive us, and its three pipes.

A small keeper stands between: it leads the group, tells how the command ended, and kills the group
when this process is gone, however that happened.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

KEEPER = Path(__file__).with_name("keeper.py")
CHUNK = 65_536
GRACE = 0.5
"""Seconds to end by itself after its input closed, and again after SIGTERM."""


class Child:
    """`status` and `problem` are known when `ended` is set."""

    def __init__(self, process: subprocess.Popen[bytes], life: socket.socket) -> None:
        self.process = process
        self.life = life
        self.ended = asyncio.Event()
        self.status: int | None = None  # none: the keeper itself was killed
        self.problem = ""  # why it couldn't begin
        self._said = b""
        for pipe in self._pipes:
            os.set_blocking(pipe.fileno(), False)
        life.setblocking(False)
        asyncio.get_running_loop().add_reader(life, self._hear)

    @property
    def _pipes(self) -> list[IO[bytes]]:
        process = self.process
        return [pipe for pipe in (process.stdin, process.stdout, process.stderr) if pipe]

    def _hear(self) -> None:
        with suppress(BlockingIOError, ConnectionError):
            if said := self.life.recv(CHUNK):
                self._said += said
                return
        asyncio.get_running_loop().remove_reader(self.life)
        problem, _, status = self._said.decode(errors="replace").partition("\n")
        self.problem = problem.removeprefix("!")
        self.status = int(status) if status else None
        self.ended.set()

    async def read(self, pipe: IO[bytes] | None) -> bytes:
        """Some bytes; none at its end. Others have their turn, however much there is."""
        assert pipe
        await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        while True:
            try:
                return os.read(pipe.fileno(), CHUNK)
            except BlockingIOError:
                await _ready(pipe.fileno(), loop.add_reader, loop.remove_reader)

    async def write(self, data: bytes) -> None:
        assert self.process.stdin
        loop, pipe = asyncio.get_running_loop(), self.process.stdin.fileno()
        left = memoryview(data)
        while left:
            try:
                left = left[os.write(pipe, left[:CHUNK]) :]
            except BlockingIOError:
                await _ready(pipe, loop.add_writer, loop.remove_writer)

    def close_input(self) -> None:
        if self.process.stdin:
            self.process.stdin.close()

    def signal(self, number: int) -> None:
        """To the whole group. Its leader isn't reaped before the end, so the number is ours."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)

    async def stop(self, grace: float = GRACE) -> None:
        """Nobody reads or writes any more. In the end nothing of the group is left."""
        try:
            self.close_input()
            if not await self._ends_within(grace):
                self.signal(signal.SIGTERM)
                await self._ends_within(grace)
        finally:
            self.kill()

    async def _ends_within(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            await asyncio.wait_for(self.ended.wait(), seconds)
        return self.ended.is_set()

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        if not self.ended.is_set():
            asyncio.get_running_loop().remove_reader(self.life)
            self.ended.set()
        self.life.close()
        for pipe in self._pipes:
            pipe.close()
        threading.Thread(target=self.process.wait, name="reaper", daemon=True).start()


def start(
    command: Sequence[str],
    environment: Mapping[str, str],
    cwd: str | None = None,
    memory: int = 0,
) -> Child:
    """`memory` bounds each process's address space, in bytes. Raises OSError and ValueError."""
    ours, theirs = socket.socketpair()
    keeper = [sys.executable, "-I", "-S", str(KEEPER), str(theirs.fileno()), str(memory)]
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(
            [*keeper, *command],
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            bufsize=0,
            env=dict(environment),
            cwd=cwd,
            process_group=0,
            pass_fds=[theirs.fileno()],
        )
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return Child(process, ours)


async def _ready(file: int, add: Callable[..., Any], remove: Callable[[int], Any]) -> None:
    is_ready = asyncio.Event()
    add(file, is_ready.set)
    try:
        await is_ready.wait()
    finally:
        remove(file)
