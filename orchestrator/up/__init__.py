"""`bin/up`: starts everything, watches over it, and leaves nothing running.

    data/up.lock   held by the supervisor as long as it lives
    data/up.json   who it is and which parts it started: what a successor has to clear away
    data/up.log    what everybody said, when detached

A part is a line of the Procfile, in a process group of its own. When the supervisor is killed, the
kernel asks its parts to stop; whatever is left then, the next `bin/up` or `bin/up --stop` ends.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg

from .. import devpg
from ..config import Config
from ..errors import Misconfigured, Problem, Unfit
from .output import Output
from .part import GRACE
from .plan import Over, Plan, require_port
from .record import Record, birth
from .supervisor import ENDING, Supervisor

__all__ = ["run", "stop"]

Announce = Callable[[int, str], None]


def run(
    config: Config,
    *,
    port: int | None = None,
    detach: bool = False,
    reset: bool = False,
    root: Path | None = None,
) -> int:
    """Runs everything until a signal, or (detached) until it is healthy. The exit status."""
    try:
        plan = Plan.make(config, port, reset, detach, root or devpg.CHECKOUT)
        return _in_background(plan) if detach else _in_foreground(plan)
    except (Over, Misconfigured) as problem:
        return _failed(problem)


def stop(config: Config) -> int:
    """Stops the supervisor, or what a killed one left, and the embedded server. The exit status."""
    data = devpg.home(config.data)
    try:
        found = data.is_dir() and _stop(data)
    except (Over, Misconfigured, OSError) as problem:
        return _failed(problem)
    print("everything is stopped" if found else "nothing is running")
    return 0


def _failed(problem: Exception) -> int:
    print(problem, file=sys.stderr)
    return problem.status if isinstance(problem, Over) else 1


def _print(status: int, text: str) -> None:
    print(text, file=sys.stderr if status else sys.stdout, flush=True)


# The whole life, around the event loop


def _in_foreground(plan: Plan) -> int:
    output = Output(list(plan.parts))

    def announce(status: int, text: str) -> None:
        if status:
            _print(status, text)
        else:
            output.show(text)

    return _serve(plan, output, announce)


def _serve(plan: Plan, output: Output, announce: Announce) -> int:
    """Announces the panel, or why there is none. The exit status."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with _only_supervisor(plan):
            require_port(plan)
            _run_parts(plan, output, announce)
    except KeyboardInterrupt:
        announce(0, "stopped")
    except (Over, Misconfigured, Unfit, Problem, OSError, psycopg.Error) as problem:
        status = problem.status if isinstance(problem, Over) else 1
        announce(status, " ".join(str(problem).split()))
        return status
    return 0


def _run_parts(plan: Plan, output: Output, announce: Announce) -> None:
    try:
        url = _prepare_database(plan)
        plan.keep_demo_servers()
        asyncio.run(Supervisor(plan, plan.environment(url), output, announce).run())
    finally:
        # From here on nothing is left to hurry; a signal would only leave something running.
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        if not plan.config.database_url:
            devpg.stop(plan.data)


def _prepare_database(plan: Plan) -> str:
    if plan.reset:
        devpg.reset(plan.data)
    url = plan.config.database_url or devpg.start(plan.data).url
    asyncio.run(_prepare_schema(url))
    return url


async def _prepare_schema(url: str) -> None:
    from .. import schema

    await schema.install(url)
    await schema.ensure_first_agent(url)


@contextmanager
def _only_supervisor(plan: Plan) -> Iterator[None]:
    """Holds the lock, with what a killed predecessor left cleared away."""
    try:
        lock = devpg.take_lock(plan.data, "up.lock", wait=False)
    except devpg.Taken:
        raise Over(_already(Record.of(plan.data), plan.command("up"))) from None
    try:
        Record.of(plan.data).end_children(GRACE)
        Record(os.getpid(), birth(os.getpid()), plan.url).keep(plan.data)
        yield
    finally:
        Record.forget(plan.data)
        os.close(lock)


def _already(record: Record, command: str) -> str:
    return f"already running, pid {record.pid}, {record.url}: stop it with {command} --stop"


# In the background


def _in_background(plan: Plan) -> int:
    """Starts the supervisor in a session of its own and waits for what it announces."""
    if _is_supervised(plan.data):
        raise Over(_already(Record.of(plan.data), plan.command("up")))
    log = plan.data / "up.log"
    begin = log.stat().st_size if log.exists() else 0
    sys.stdout.flush()
    hear, tell = os.pipe()
    if not (child := os.fork()):
        os.close(hear)
        os._exit(_as_daemon(plan, log, tell))
    os.close(tell)
    status, text = _listen(hear, child)
    said = [line for line in _tail(log, begin) if line not in text] if status else []
    _print(status, "\n".join([text, *(f"  {line}" for line in said)]))
    return status


def _as_daemon(plan: Plan, log: Path, tell: int) -> int:
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        return _serve(plan, Output(list(plan.parts), log), lambda *news: _tell(tell, *news))
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1


def _tell(pipe: int, status: int, text: str) -> None:
    """The first news goes to the command that waits, all of it to the log."""
    print(text, file=sys.stderr, flush=True)
    with suppress(OSError):
        os.write(pipe, f"{status}\n{text}".encode())
        os.close(pipe)


def _listen(pipe: int, child: int) -> tuple[int, str]:
    with open(pipe) as news:
        try:
            status, _, text = news.read().partition("\n")
        except KeyboardInterrupt:
            os.kill(child, signal.SIGTERM)
            status, _, text = news.read().partition("\n")
    return (int(status), text) if status else (1, "the supervisor ended without a word")


def _tail(log: Path, begin: int, lines: int = 20) -> list[str]:
    said = log.read_bytes()[begin:] if log.exists() else b""
    return said.decode(errors="replace").splitlines()[-lines:]


def _stop(data: Path) -> bool:
    """Whether anything ran."""
    found = _end_supervisor(data)
    lock = devpg.take_lock(data, "up.lock")
    try:
        found |= Record.of(data).end_children(GRACE)
        Record.forget(data)
        return devpg.stop(data) or found
    finally:
        os.close(lock)


def _end_supervisor(data: Path) -> bool:
    if not _is_supervised(data):
        return False
    record = Record.of(data)
    if record.pid and birth(record.pid) == record.birth:
        os.kill(record.pid, signal.SIGTERM)
    deadline = time.monotonic() + 6 * GRACE
    while _is_supervised(data):
        if time.monotonic() > deadline:
            raise Over(f"pid {record.pid} doesn't stop: kill -9 {record.pid}, then do this again")
        time.sleep(0.01)
    return True


def _is_supervised(data: Path) -> bool:
    try:
        os.close(devpg.take_lock(data, "up.lock", wait=False))
    except devpg.Taken:
        return True
    return False
