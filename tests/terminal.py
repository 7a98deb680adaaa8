"""The command line in this process, beside an API of the test: what it prints, and its status.

What runs beside it in the process is quiet meanwhile.
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import structlog

from orchestrator import cli, telemetry


class Done(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.status == 0, self
        return json.loads(self.out)

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


class Terminal:
    """Types commands. Nobody sits at it: no question can be answered."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home, self.patch = home, monkeypatch
        self.set(HOME=str(home), XDG_CONFIG_HOME=str(home), COLUMNS="200", ORC_DATA=str(home))
        for name in ("ORCHESTRATOR_URL", "ORCHESTRATOR_KEY", "DATABASE_URL", "PORT"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(telemetry, "setup", lambda *_: None)
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))

    def leave(self) -> None:
        structlog.reset_defaults()

    def set(self, **environment: str) -> None:
        for name, value in environment.items():
            self.patch.setenv(name, value)

    def unset(self, name: str) -> None:
        self.patch.delenv(name, raising=False)

    async def __call__(self, *words: str, typed: str = "") -> Done:
        """In a thread: a command has a loop of its own."""
        return await asyncio.to_thread(self.type, *words, typed=typed)

    def type(self, *words: str, typed: str = "") -> Done:
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err), _argv(words, typed):
            try:
                cli.main()
                status = 0
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else 1
        return Done(status, out.getvalue(), err.getvalue())


@contextmanager
def _argv(words: tuple[str, ...], typed: str) -> Iterator[None]:
    before, line = sys.argv, sys.stdin
    sys.argv, sys.stdin = ["orc", *words], io.StringIO(typed)
    try:
        yield
    finally:
        sys.argv, sys.stdin = before, line


def environment(home: Path, **more: str) -> dict[str, str]:
    """Of a command that is a process."""
    return {"PATH": os.environ["PATH"], "HOME": str(home), "XDG_CONFIG_HOME": str(home), **more}
