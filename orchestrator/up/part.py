"""One line of the Procfile: started, heard, started again, stopped."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from .output import Output
from .plan import Over
from .record import group_lives, signal_group

GRACE = 35.0
FIRST_DELAY, LONGEST_DELAY = 0.2, 5.0  # seconds before a part that died is started again
MOST_DEATHS, DEATHS_WITHIN = 5, 30.0
MISCONFIGURED = 78  # a part's exit status that no restart mends (EX_CONFIG)
LINE_LIMIT = 65_536  # bytes


class Unrunnable(Over):
    """A part says that it can't work as it is configured."""

    status = MISCONFIGURED


class Part:
    def __init__(self, name: str, command: str, root: Path, output: Output) -> None:
        self.name = name
        self.process: subprocess.Popen[bytes] | None = None
        self._command = command
        self._root = root
        self._output = output
        self._rest = b""
        self._ended = asyncio.Event()

    async def keep(self, environment: dict[str, str], on_start: Callable[[Part], None]) -> None:
        """Starts it again each time it dies, later and later; gives up when that doesn't help."""
        deaths: deque[float] = deque(maxlen=MOST_DEATHS)
        delay = FIRST_DELAY
        while True:
            born = time.monotonic()
            self._start(environment)
            on_start(self)
            status = await self._until_ended()
            deaths.append(time.monotonic())
            self._judge(status, deaths)
            delay = FIRST_DELAY if deaths[-1] - born > DEATHS_WITHIN else delay
            self._output.say(f"{self.name} ended with {_described(status)}, starting it again")
            await asyncio.sleep(delay)
            delay = min(2 * delay, LONGEST_DELAY)

    def _judge(self, status: int, deaths: deque[float]) -> None:
        if status == MISCONFIGURED:
            raise Unrunnable(f"{self.name} can't run as it is configured: its last lines say why")
        if len(deaths) == MOST_DEATHS and deaths[-1] - deaths[0] <= DEATHS_WITHIN:
            raise Over(
                f"{self.name} died {MOST_DEATHS} times within {DEATHS_WITHIN:.0f} s, at last with"
                f" {_described(status)}: its last lines say why"
            )

    def _start(self, environment: dict[str, str]) -> None:
        self._ended.clear()
        self.process = subprocess.Popen(
            ["/bin/sh", "-c", f"exec {self._command}"],
            cwd=self._root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,
            preexec_fn=_tie_to(os.getpid()),
        )
        assert self.process.stdout
        os.set_blocking(self.process.stdout.fileno(), False)
        asyncio.get_running_loop().add_reader(self.process.stdout, self._read)

    async def _until_ended(self) -> int:
        await self._ended.wait()
        assert self.process
        signal_group(self.process.pid, signal.SIGKILL)
        self._hang_up()
        return self.process.returncode

    def look(self) -> None:
        """Notices that the process ended. Called when a child of ours did."""
        if self.process and self.process.poll() is not None:
            self._ended.set()

    def _read(self) -> bool:
        """Whether there was something to read."""
        assert self.process and self.process.stdout
        try:
            chunk = os.read(self.process.stdout.fileno(), LINE_LIMIT)
        except BlockingIOError:
            return False
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            self._output.line(self.name, line)
        if len(self._rest) > LINE_LIMIT:
            self._flush()
        if not chunk:
            asyncio.get_running_loop().remove_reader(self.process.stdout)
        return bool(chunk)

    def _flush(self) -> None:
        if self._rest:
            self._output.line(self.name, self._rest)
            self._rest = b""

    def _hang_up(self) -> None:
        assert self.process and self.process.stdout
        while self._read():
            pass
        self._flush()
        asyncio.get_running_loop().remove_reader(self.process.stdout)
        self.process.stdout.close()

    async def stop(self, hurry: asyncio.Event) -> None:
        """Asks the whole group to stop, and kills it when its grace is over or there's hurry."""
        if not self.process or not self.process.stdout or self.process.stdout.closed:
            return
        group = self.process.pid
        signal_group(group, signal.SIGTERM)
        deadline = time.monotonic() + GRACE
        while self.process.poll() is None or group_lives(group):
            if hurry.is_set() or time.monotonic() > deadline:
                self._output.say(f"{self.name} didn't stop, it is killed")
                signal_group(group, signal.SIGKILL)
                self.process.wait()
                break
            await asyncio.sleep(0.01)
        self._hang_up()


def _tie_to(parent: int) -> Callable[[], None] | None:
    """Makes the kernel ask a child to stop when its parent dies, where the kernel can."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl

    def tie() -> None:
        prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)

    return tie


def _described(status: int) -> str:
    return f"status {status}" if status >= 0 else f"signal {signal.Signals(-status).name}"
