"""An OTLP collector: takes what is exported over HTTP, and shows the spans."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Seen(NamedTuple):
    """A span, as it arrived."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    kind: int
    facts: dict[str, Any]
    failed: bool
    began: int
    ended: int

    @property
    def traceparent(self) -> str:
        return f"00-{self.trace}-{self.id}-01"


class Collector:
    def __init__(self) -> None:
        self.spans: list[Seen] = []
        self.posts: list[str] = []
        self.status = 200
        self.url = ""

    def take(self, path: str, data: bytes) -> None:
        self.posts.append(path)
        request = ExportTraceServiceRequest.FromString(data)
        for group in request.resource_spans:
            service = values(group.resource.attributes)["service.name"]
            for scope in group.scope_spans:
                self.spans += [seen(service, span) for span in scope.spans]

    def named(self, name: str) -> list[Seen]:
        return [span for span in self.spans if span.name == name]

    def one(self, name: str) -> Seen:
        (found,) = self.named(name)
        return found

    def until(self, holds: Callable[[], Any], within: float = 20) -> None:
        deadline = time.monotonic() + within
        while not holds():
            assert time.monotonic() < deadline, "it never came true"
            time.sleep(0.01)


def seen(service: str, span: Any) -> Seen:
    return Seen(
        service, span.name, span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex(),
        span.kind, values(span.attributes), span.status.code == 2,
        span.start_time_unix_nano, span.end_time_unix_nano,
    )  # fmt: skip


def values(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["content-length"]))
            if collector.status == 200:
                collector.take(self.path, data)
            self.send_response(collector.status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
