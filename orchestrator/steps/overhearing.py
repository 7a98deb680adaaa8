"""What a function prints while it is called: lines of the run's log, where secrets are masked.

While calls are under way, `sys.stdout` and `sys.stderr` are ours. A context variable tells whose
call a line belongs to, in coroutines and `asyncio.to_thread` too. What nobody's call has printed
(a thread of its own, say) goes where it always went, without what was revealed lately. What a
child process of the function writes passes by: give it pipes.
"""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TextIO

from ..secrets import LARGEST, hidden

MOST_LINES = 200
LONGEST_LINE = 2000
LOOKED_AT = LONGEST_LINE + LARGEST
"""Of a line: a secret that begins in what is kept is masked as a whole."""


class Heard:
    """The lines of one call, and how many there were besides."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.left_out = 0
        self._rest: dict[str, str] = {}  # of each stream, what has no end of line yet
        self._lock = threading.Lock()

    def write(self, stream: str, text: str) -> None:
        with self._lock:
            *lines, rest = (self._rest.get(stream, "") + text).split("\n")
            for line in lines:
                self._keep(stream, line)
            self._rest[stream] = rest[:LOOKED_AT]

    def _keep(self, stream: str, line: str) -> None:
        if line.strip() and len(self.lines) >= MOST_LINES:
            self.left_out += 1
        elif line.strip():
            level = "info" if stream == "stdout" else "warning"
            text = line[:LOOKED_AT].replace("\0", "\ufffd").encode(errors="replace").decode()
            said = hidden.text(text)[:LONGEST_LINE]
            self.lines.append({"message": said, "level": level, "facts": {"stream": stream}})

    def end(self) -> list[dict[str, Any]]:
        """All of it; what is printed from now on is nobody's."""
        with self._lock:
            for stream, rest in self._rest.items():
                self._keep(stream, rest)
            self._rest = {}
            lines, self.lines = self.lines, []
            if self.left_out:
                facts = {"lines": self.left_out}
                lines.append({"message": "it printed more", "level": "warning", "facts": facts})
            return lines


whose: ContextVar[Heard | None] = ContextVar("whose", default=None)


class _Bytes(io.RawIOBase):
    """`sys.stdout.buffer`, for those who write bytes."""

    def __init__(self, ear: Ear) -> None:
        self._ear = ear

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._ear.write(bytes(data).decode(errors="replace"))
        return len(data)


class Ear(io.TextIOBase):
    def __init__(self, name: str, stream: TextIO) -> None:
        self._name, self.stream = name, stream

    encoding = "utf-8"

    @property
    def buffer(self) -> _Bytes:
        return _Bytes(self)

    def close(self) -> None:
        """Others print to it, too."""

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.stream.fileno()

    def write(self, text: str) -> int:
        if (heard := whose.get()) is not None:
            heard.write(self._name, text)
        else:
            self.stream.write(hidden.text(text))
        return len(text)

    def flush(self) -> None:
        if whose.get() is None:
            self.stream.flush()


_lock = threading.Lock()
_calls = 0
_ears: dict[str, Ear] = {}
"""Kept between calls: making one is dearer than a call of a function that does nothing."""


@contextmanager
def overheard(heard: Heard) -> Iterator[None]:
    """What is printed inside is his."""
    global _calls
    with _lock:
        _calls += 1
        if _calls == 1:
            sys.stdout = _ear("stdout", sys.stdout)
            sys.stderr = _ear("stderr", sys.stderr)
    token = whose.set(heard)
    try:
        yield
    finally:
        whose.reset(token)
        with _lock:
            _calls -= 1
            if _calls == 0:
                _give_back()


def _ear(name: str, stream: Any) -> Any:
    """The one that hears what goes to the stream, unless that is one already."""
    if isinstance(stream, Ear):
        return stream
    if name not in _ears or _ears[name].stream is not stream:
        _ears[name] = Ear(name, stream)
    return _ears[name]


def _give_back() -> None:
    """Unless the function has put something else there."""
    if isinstance(sys.stdout, Ear):
        sys.stdout = sys.stdout.stream
    if isinstance(sys.stderr, Ear):
        sys.stderr = sys.stderr.stream
