"""Files of the operator: read again when they change."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

from ..errors import Malformed, Misconfigured
from ..telemetry import log

T = TypeVar("T")

LARGEST = 4_194_304


class Reread(Generic[T]):
    """What a file says. While it can't be read, what it said last; nothing yet is an error."""

    def __init__(self, setting: str, path: Path, understand: Callable[[bytes], T]) -> None:
        self._name = f"{setting}={path}"
        self._path = path
        self._understand = understand
        self._stamp: Any = None
        self._value: T | None = None
        self._problem = ""

    def get(self) -> T:
        stamp = self._look()
        if stamp != self._stamp:
            self._stamp = stamp
            self._read()
        if self._value is None:
            raise Misconfigured(self._problem)
        return self._value

    def _look(self) -> Any:
        try:
            found = os.stat(self._path)
        except OSError as error:
            return error.strerror
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _read(self) -> None:
        try:
            with self._path.open("rb") as file:
                data = file.read(LARGEST + 1)
            if len(data) > LARGEST:
                raise ValueError(f"is larger than {LARGEST} bytes")
            self._value = self._understand(data)
        except (OSError, ValueError, Malformed) as error:
            self._problem = f"{self._name}: {sentence(error)}"
            log("file_unusable", "warning", file=self._name, error=sentence(error)[:2000])


def sentence(error: Exception) -> str:
    """Every problem, with its place in the document."""
    if isinstance(error, Malformed) and isinstance(error.detail, list):
        return "; ".join(_placed(place["loc"][1:], place["msg"]) for place in error.detail)
    return getattr(error, "strerror", None) or str(error)


def _placed(loc: list[str | int], message: str) -> str:
    return f"/{'/'.join(map(str, loc))}: {message}" if loc else message
