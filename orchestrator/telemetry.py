"""Logs: JSON for machines, colours for people, one line per transition, nothing secret. And what
this process counts."""

from __future__ import annotations

import logging
import re
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from itertools import accumulate
from operator import add
from typing import Any, TextIO

import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString
from structlog.types import EventDict, Processor, WrappedLogger

correlation_id: ContextVar[str | None] = ContextVar("correlation_id", default=None)
traceparent: ContextVar[str | None] = ContextVar("traceparent", default=None)
"""What lines of a request or a run belong to. Verbs with a tenant are told the trace (db.py)."""


def carry(correlation: str | None, trace: str | None) -> None:
    correlation_id.set(correlation)
    traceparent.set(trace)


def trace_id(trace: str | None) -> str | None:
    return None if trace is None else trace[3:35]


disable_created_metrics()  # type: ignore[no-untyped-call]
METRICS = CollectorRegistry()
"""What this process counts. What the database knows is a view there, and joins at the scrape."""

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Requests(Collector):
    """Requests of this process. The event loop alone counts them, so that needs no locks: three
    metrics of the client's would cost 7 of a request's 80 µs."""

    def __init__(self) -> None:
        self.in_flight = 0
        self._counted: dict[tuple[str, str, int], list[float]] = {}

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        key = (method, route, status)
        if (counted := self._counted.get(key)) is None:
            counted = self._counted[key] = [0.0] * (len(SECONDS) + 2)  # and the sum
        counted[bisect_left(SECONDS, seconds)] += 1
        counted[-1] += seconds

    def collect(self) -> Iterator[Metric]:
        names = ("method", "route", "status")
        answers = CounterMetricFamily(
            "orchestrator_http_answers", "Requests that were answered, by route and status.",
            labels=names,
        )  # fmt: skip
        classes: dict[tuple[str, str, str], list[float]] = {}
        for (method, route, status), counted in self._counted.items():
            answers.add_metric([method, route, str(status)], sum(counted[:-1]))
            alike = classes.setdefault((method, route, f"{status // 100}xx"), [0.0] * len(counted))
            alike[:] = map(add, alike, counted)
        times = HistogramMetricFamily(
            "orchestrator_http_request_seconds",
            "Time until a request was answered, by route and class of status.", labels=names,
        )  # fmt: skip
        bounds = [*map(floatToGoString, SECONDS), "+Inf"]
        for key, (*counts, total) in classes.items():
            times.add_metric(key, list(zip(bounds, accumulate(counts), strict=True)), total)
        yield from (times, answers)
        yield GaugeMetricFamily(
            "orchestrator_http_requests_in_flight", "Requests that are being answered.",
            self.in_flight,
        )  # fmt: skip


REQUESTS = Requests()
METRICS.register(REQUESTS)
REFUSED = Counter(
    "orchestrator_http_refused",
    "Connections that were closed before a route was reached, by reason.",
    ["why"],
    registry=METRICS,
)
STEPS = Histogram(
    "orchestrator_step_seconds",
    "Time that tools of steps took, by tool and outcome. Tools of operators are one: operator.",
    ["tool", "outcome"],
    registry=METRICS,
    buckets=SECONDS,
)
TURNS = Counter(
    "orchestrator_turns", "Turns of this process, by how they ended.", ["outcome"], registry=METRICS
)
DELIVERED = Counter(
    "orchestrator_messages_delivered",
    "Messages that this relay has sent, by sink and what became of them.",
    ["sink", "outcome"],
    registry=METRICS,
)
SPANS = Counter(
    "orchestrator_spans", "Spans of traces, exported or lost.", ["outcome"], registry=METRICS
)

SECRET_NAMES = re.compile(r"(password|passwd|secret|token|authorization|api_?key|cookie|dsn)", re.I)
SECRET_VALUES = re.compile(
    r"(?P<url>\w+://[^\s:/@]*:)[^\s/]+(?=@)|(?P<bearer>bearer\s+)\S+|(?P<key>\bor[kr]_)\w+|(?P<jwt>\beyJ)[\w.-]{20,}|(?P<kv>\bpassword=)\S+",
    re.I,
)
MASK = "***"


_also: list[Callable[[str], str]] = []


def also_mask(replace: Callable[[str], str]) -> None:
    """Lets somebody who knows what else is secret look at every line."""
    _also.append(replace)


def mask(text: str) -> str:
    """Replaces passwords in URLs, bearer tokens, our own keys, and what others know of."""
    for replace in _also:
        text = replace(text)
    return SECRET_VALUES.sub(lambda found: (found[found.lastgroup or 0] or "") + MASK, text)


def _masked(name: str, value: Any) -> Any:
    if SECRET_NAMES.search(name):
        return MASK
    return _clean(value)


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, dict):
        return {name: _masked(str(name), inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(inner) for inner in value]
    return value


def _hide_secrets(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    return {name: _masked(name, value) for name, value in event.items()}


def _correlate(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    if (current := correlation_id.get()) is not None:
        event.setdefault("correlation_id", current)
    if (trace := traceparent.get()) is not None:
        event.setdefault("trace_id", trace_id(trace))
    return event


FIRST = ("timestamp", "level", "message", "correlation_id", "trace_id")


def _in_order(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """What every line has comes first; null where it isn't known."""
    return {**{name: event.pop(name, None) for name in FIRST}, **event}


def setup(
    process: str, level: str = "info", format: str = "auto", stream: TextIO | None = None
) -> None:
    """Routes structlog and the standard logging of libraries through the same lines, to stderr."""
    stream = stream or sys.stderr
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper("iso", utc=True, key="timestamp"),
        _correlate,
        structlog.processors.StackInfoRenderer(),
    ]
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=_last(format, stream)
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("uvicorn.error", "apscheduler", "psycopg.pool", "httpcore2", "urllib3"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(root.level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    structlog.contextvars.clear_contextvars()
    global _process, _least
    _process, _least = process, root.level


_process, _least = "orchestrator", logging.NOTSET
LEVELS = logging.getLevelNamesMapping()


def _last(format: str, stream: TextIO) -> list[Processor]:
    """The end of the chain: what hides secrets comes after what renders an exception."""
    drop = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    rename = structlog.processors.EventRenamer("message")
    json = format == "json" or (format == "auto" and not stream.isatty())
    if json:
        return [
            drop,
            structlog.processors.format_exc_info,
            rename,
            _in_order,
            _hide_secrets,
            structlog.processors.JSONRenderer(),
        ]
    return [
        drop,
        structlog.processors.format_exc_info,
        _hide_secrets,
        structlog.dev.ConsoleRenderer(colors=stream.isatty()),
    ]


def log(action: str, level: str = "info", message: str | None = None, **facts: Any) -> None:
    """One transition, one line: `log("run_claimed", run_id=…)`."""
    if LEVELS[level.upper()] < _least:
        return
    logger = structlog.get_logger(_process)
    getattr(logger, level)(
        message or action.replace("_", " "), action=action, process=_process, **facts
    )
