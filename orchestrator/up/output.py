"""What the parts say, in whole lines: to the terminal, or to a log that stays small."""

from __future__ import annotations

import os
import sys
from pathlib import Path

LOG_LIMIT = 10_000_000  # bytes
COLOURS = (36, 32, 33, 35, 34, 31)


class Output:
    def __init__(self, names: list[str], log: Path | None = None) -> None:
        self._log = log
        self._width = max(map(len, [*names, "up"]))
        self._colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
        self._colourful = log is None and sys.stdout.isatty()
        if log:
            self._open(log)

    def show(self, text: str) -> None:
        self._write(text.encode() + b"\n")

    def say(self, text: str) -> None:
        self.line("up", text.encode())

    def line(self, name: str, text: bytes) -> None:
        label = f"{name:<{self._width}} |"
        if self._colourful:
            label = f"\x1b[{self._colours.get(name, 1)}m{label}\x1b[0m"
        self._write(label.encode() + b" " + text.rstrip(b"\r") + b"\n")

    def _write(self, text: bytes) -> None:
        if self._log and os.fstat(1).st_size > LOG_LIMIT:
            self._log.rename(self._log.with_suffix(".log.1"))
            self._open(self._log)
        try:
            while text:
                text = text[os.write(1, text) :]
        except BrokenPipeError:  # whoever read us is gone; the parts go on
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def _open(self, path: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        log = os.open(path, flags, 0o600)
        for number in (1, 2):
            os.dup2(log, number)
        os.close(log)
