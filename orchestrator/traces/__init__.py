"""Traces: a request, the runs that it makes, their steps, and what these ask of others.

A trace travels as `traceparent` (W3C Trace Context): it comes with a request, is kept by the runs
that the request makes, and goes along with outgoing calls. That needs nothing else. Spans are made
where OTEL_EXPORTER_OTLP_ENDPOINT is set: then the SDK is imported, and a thread of its own exports
them. Its queue is bounded, an export has seconds, and a collector that is dead costs a line.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Literal
from uuid import UUID

from ..config import Config

if TYPE_CHECKING:
    from .recorded import Tracing

Facts = Mapping[str, str | int | float]
Role = Literal["internal", "server", "client", "producer", "consumer"]

WELL_FORMED = re.compile(
    r"(?!ff)([0-9a-f]{2})-((?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2})(-.*)?"
)
FAREWELL_SECONDS = 2.0
"""How long the end of a process waits for a collector that has answered so far."""


def received(values: Sequence[str]) -> str | None:
    """What a caller sends, if it is one and well-formed; of a later version, what we know of it."""
    found = WELL_FORMED.fullmatch(values[0]) if len(values) == 1 else None
    if found is None or (found[1] == "00" and found[3]):
        return None
    return f"00-{found[2]}"


class Span:
    """Where nothing is recorded: what came in goes on."""

    __slots__ = ("traceparent",)

    def __init__(self, traceparent: str | None) -> None:
        self.traceparent = traceparent

    def __enter__(self) -> Span:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.fail(kind.__name__)
        self.end()

    def rename(self, name: str) -> None:
        pass

    def note(self, facts: Facts) -> None:
        pass

    def fail(self, type: str) -> None:
        """Only what kind of failure it is: messages may show what was asked."""

    def end(self) -> None:
        pass


_tracing: Tracing | None = None


def setup(config: Config, process: str) -> None:
    """Begins to record, if there is somewhere to send it."""
    global _tracing
    if config.otlp_endpoint and _tracing is None:
        from .recorded import Tracing

        _tracing = Tracing(config, process)


def is_on() -> bool:
    return _tracing is not None


def begin(
    name: str,
    parent: str | None,
    role: Role = "internal",
    facts: Facts | None = None,
    *,
    own: str | None = None,
    since: datetime | None = None,
) -> Span:
    """To be ended. Without a parent it begins the trace `own`, a UUID."""
    if _tracing is None:
        return Span(parent)
    trace = UUID(own).int if own and parent is None else None
    return _tracing.begin(name, parent, role, facts or {}, trace, since)


async def close() -> None:
    """Exports what is left, in a little time."""
    global _tracing
    if _tracing is None:
        return
    tracing, _tracing = _tracing, None
    last = threading.Thread(target=tracing.end, daemon=True)
    last.start()
    seconds = FAREWELL_SECONDS / 10 if tracing.is_failing else FAREWELL_SECONDS
    await asyncio.to_thread(last.join, seconds)
