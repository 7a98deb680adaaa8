"""Spans by the SDK of OpenTelemetry. Imported where there is a collector, and nowhere else."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextvars import ContextVar
from datetime import datetime

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)
from opentelemetry.trace import Span as Recording

from .. import __version__
from ..config import Config
from ..telemetry import SPANS, log
from . import Facts, Span

QUEUE = 8192
BATCH = 512
EVERY_MILLISECONDS = 1000
EXPORT_SECONDS = 3.0


class Tracing:
    def __init__(self, config: Config, process: str) -> None:
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # what matters, we say
        self.exporter = Exporter(f"{config.otlp_endpoint.rstrip('/')}/v1/traces")
        self.processor = BatchSpanProcessor(
            self.exporter,
            max_queue_size=QUEUE,
            schedule_delay_millis=EVERY_MILLISECONDS,
            max_export_batch_size=BATCH,
        )
        self.ids = Ids()
        provider = TracerProvider(
            resource=_resource(config, process), id_generator=self.ids, shutdown_on_exit=False
        )
        provider.add_span_processor(self.processor)
        self.tracer = provider.get_tracer("orchestrator", __version__)

    @property
    def is_failing(self) -> bool:
        return self.exporter.is_failing

    def begin(
        self,
        name: str,
        parent: str | None,
        role: str,
        facts: Facts,
        trace: int | None,
        since: datetime | None,
    ) -> Span:
        self.ids.wanted.set(trace)
        span = self.tracer.start_span(
            name,
            Context() if parent is None else _below(parent),
            kind=SpanKind[role.upper()],
            attributes=dict(facts),
            start_time=None if since is None else round(since.timestamp() * 1e9),
        )
        at = span.get_span_context()
        if not at.is_valid:  # the operator has turned the SDK off
            return Span(parent)
        return Recorded(span, f"00-{at.trace_id:032x}-{at.span_id:016x}-{at.trace_flags & 255:02x}")

    def end(self) -> None:
        self.processor.shutdown()  # type: ignore[no-untyped-call]


class Recorded(Span):
    __slots__ = ("span",)

    def __init__(self, span: Recording, traceparent: str) -> None:
        super().__init__(traceparent)
        self.span = span

    def rename(self, name: str) -> None:
        self.span.update_name(name)

    def note(self, facts: Facts) -> None:
        self.span.set_attributes(dict(facts))

    def fail(self, type: str) -> None:
        self.span.set_attribute("error.type", type)
        self.span.set_status(Status(StatusCode.ERROR))

    def end(self) -> None:
        self.span.end()


class Ids(RandomIdGenerator):
    """A run that no request made has its own id as its trace, whoever takes it up."""

    def __init__(self) -> None:
        self.wanted: ContextVar[int | None] = ContextVar("wanted", default=None)

    def generate_trace_id(self) -> int:
        return self.wanted.get() or super().generate_trace_id()

    def is_trace_id_random(self) -> bool:
        return False


class Exporter(SpanExporter):
    """Says once that a collector can't be reached, and once that it is back."""

    def __init__(self, url: str) -> None:
        self.inner = OTLPSpanExporter(url, timeout=EXPORT_SECONDS)
        self.url = url
        self.is_failing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            result = self.inner.export(spans)
        except Exception:  # it answers what is no HTTP, for example
            result = SpanExportResult.FAILURE
        failed = result is not SpanExportResult.SUCCESS
        SPANS.labels("lost" if failed else "exported").inc(len(spans))
        if failed and not self.is_failing:
            log("traces_are_lost", "warning", collector=self.url)
        elif self.is_failing and not failed:
            log("traces_are_exported_again", collector=self.url)
        self.is_failing = failed
        return result

    def shutdown(self) -> None:
        self.inner.shutdown()  # type: ignore[no-untyped-call]


def _below(parent: str) -> Context:
    _, trace, span, flags = parent.split("-")
    at = SpanContext(int(trace, 16), int(span, 16), True, TraceFlags(int(flags, 16)))
    return set_span_in_context(NonRecordingSpan(at), Context())


def _resource(config: Config, process: str) -> Resource:
    """What the operator says goes before what we know."""
    known = {"service.name": f"orchestrator-{process}", "service.version": __version__}
    named = {"service.name": config.otel_service_name} if config.otel_service_name else {}
    return Resource.create({**known, **config.otel_attributes, **named})
