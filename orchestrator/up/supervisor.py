"""Runs all parts until a signal comes or one of them can't be kept."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from .. import devpg
from .output import Output
from .part import Part
from .plan import Over, Plan
from .record import Child, Record, birth

DEVELOPMENT_KEY = "00000000-0000-0000-0000-000000000001"
HEALTHY_WITHIN = 30.0  # seconds
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Supervisor:
    def __init__(
        self,
        plan: Plan,
        environment: dict[str, str],
        output: Output,
        announce: Callable[[int, str], None],
    ) -> None:
        self._plan = plan
        self._environment = environment
        self._output = output
        self._announce = announce
        self._parts = [Part(name, line, plan.root, output) for name, line in plan.parts.items()]
        self._record = Record.of(plan.data)
        self._asked = asyncio.Event()
        self._hurry = asyncio.Event()

    async def run(self) -> None:
        self._catch_signals()
        keepers = [part.keep(self._environment, self._started) for part in self._parts]
        others = [self._greet(), self._keep_server(), self._asked.wait()]
        tasks = [asyncio.ensure_future(work) for work in (*keepers, *others)]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await self._end(tasks)
        for task in done:
            task.result()

    async def _end(self, tasks: Sequence[asyncio.Task[Any]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for part in reversed(self._parts):
            await part.stop(self._hurry)
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)

    def _catch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGCHLD, self._look)
        for number in ENDING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, self._ask)

    def _look(self) -> None:
        for part in self._parts:
            part.look()

    def _ask(self) -> None:
        """The first signal asks to stop, a second one to stop waiting."""
        (self._hurry if self._asked.is_set() else self._asked).set()

    def _started(self, part: Part) -> None:
        assert part.process
        self._record.children[part.name] = Child(part.process.pid, birth(part.process.pid))
        self._record.keep(self._plan.data)

    async def _greet(self) -> None:
        deadline = time.monotonic() + HEALTHY_WITHIN
        while not await _is_ready(self._plan.address, self._plan.port):
            if time.monotonic() > deadline:
                raise Over(f"{self._plan.url}/health/ready isn't 200 after {HEALTHY_WITHIN:.0f} s")
            await asyncio.sleep(0.02)
        self._announce(0, _panel(self._plan))
        await self._asked.wait()

    async def _keep_server(self) -> None:
        """Starts the embedded server again when it crashed; one that was stopped stays stopped."""
        while not self._plan.config.database_url:
            await asyncio.sleep(1.0)
            if devpg.has_crashed(self._plan.data):
                self._output.say("PostgreSQL crashed, starting it again")
                await asyncio.to_thread(devpg.start, self._plan.data)
                self._output.say("PostgreSQL runs again")
        await self._asked.wait()


async def _is_ready(host: str, port: int) -> bool:
    with suppress(OSError):  # a timeout is one
        async with asyncio.timeout(2.0):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(f"GET /health/ready HTTP/1.0\r\nHost: {host}:{port}\r\n\r\n".encode())
                return b" 200 " in await reader.readline()
            finally:
                writer.close()
    return False


def _panel(plan: Plan) -> str:
    lines = [
        f"{plan.config.app_name} is ready: {plan.url}, its reference: {plan.url}/docs",
        *_first_steps(plan),
        f"  psql  {plan.command('db')} psql -c 'select verb, purpose from orc.help()'",  # noqa: S608
        f"  stop  {plan.command('up')} --stop" if plan.detached else "  stop  Ctrl-C",
    ]
    return "\n".join(["", *lines, ""])


def _first_steps(plan: Plan) -> list[str]:
    if not plan.development:
        return [f"  curl  curl {plan.url}/health/ready"]
    return [
        f"  key   {DEVELOPMENT_KEY} (works in development only)",
        f'  curl  curl -H "Authorization: Bearer {DEVELOPMENT_KEY}" {plan.url}/auth/me',
    ]
