"""uvicorn with what it lacks: deadlines for slow clients, bounds on heads, and our error body.

uvicorn waits for ever for the rest of a request, or for somebody who doesn't read its answer, and
reads a head of any size. A connection here has `seconds` to send a head, and again for a body.
"""

from __future__ import annotations

import asyncio
import socket
import uuid
from collections.abc import Callable
from types import FrameType
from typing import Any, ClassVar, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from . import telemetry
from .config import Config
from .errors import BadRequest, HeadersTooLarge, Misconfigured, Problem, Slow, Unavailable
from .wire import encode, problem

HEAD_BYTES = 32_768
HEADERS = 100
WHOLE = "orchestrator.answer"
"""The extension of a scope that takes a whole answer: (status, lines of headers, body). As two
messages through the application's layers, with each header looked at, it would cost 12 of 70 µs."""
READER_SECONDS = 30.0
"""A client that reads nothing of an answer for so long is given up."""


class Bounded(HttpToolsProtocol):
    """A connection with its bounds; `bounded` fills them in.

    It has a timer only while it waits for the client: most requests come in one piece."""

    seconds: ClassVar[float]
    most: ClassVar[int]
    head_bytes = 0
    owed = "head"
    """What the client is to send: a head, a body, or nothing."""
    timed = ""
    """What the timer waits for: that, or that the client reads."""
    timer: asyncio.TimerHandle | None = None
    answered: RequestResponseCycle
    """The request that is being answered: of those in a connection one at a time."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.most:
            self.refuse(Unavailable("Too many connections"))
        else:
            self.arm("head", self.seconds)

    def connection_lost(self, error: Exception | None) -> None:
        self.disarm()
        super().connection_lost(error)

    def arm(self, what: str, seconds: float) -> None:
        self.disarm()
        self.timed, self.timer = what, self.loop.call_later(seconds, self.late)

    def disarm(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timed, self.timer = "", None

    def late(self) -> None:
        if self.timed != "answer" and self.flow.read_paused:
            self.arm(self.timed, self.seconds)  # it is we who don't read
        elif self.timed == "head" and self.head_bytes:
            self.refuse(Slow(f"The request's head took longer than {self.seconds:g} s"))
        elif self.timed == "body" and not self.cycle.response_started:
            self.refuse(Slow(f"The body took longer than {self.seconds:g} s"))
        else:
            telemetry.REFUSED.labels("idle").inc()
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self.owed == "head":
            self.head_bytes += len(data)
        super().data_received(data)
        if self.owed == "head" and self.head_bytes > HEAD_BYTES and self.parser is not None:
            self.refuse(HeadersTooLarge(f"The request's head is larger than {HEAD_BYTES} bytes"))
        elif self.owed and self.owed != self.timed and not self.transport.is_closing():
            self.arm(self.owed, self.seconds)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.owed, self.head_bytes = "head", 1

    def on_headers_complete(self) -> None:
        self.disarm()
        self.owed = "body"
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > HEAD_BYTES or len(self.headers) > HEADERS:
            self.refuse(HeadersTooLarge(f"More than {HEADERS} headers or {HEAD_BYTES} bytes"))
        elif not self.transport.is_closing():
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self.cycle is not None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self.disarm()
        self.owed = ""
        if self.cycle is not None:
            super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.arm("answer", READER_SECONDS)

    def resume_writing(self) -> None:
        super().resume_writing()
        self.disarm()
        if self.owed == "body":
            self.arm("body", self.seconds)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self.answered = cycle  # a scope that named it would be garbage for the collector
        cycle.scope["extensions"] = {WHOLE: cast(Any, self.answer)}
        super()._start_asgi_task(cycle, app)

    def answer(self, status: int, head: bytes, body: bytes) -> bool:
        """An answer of which all is known. False: it is to be sent as ASGI has it."""
        cycle = self.answered
        if self.flow.write_paused or cycle.response_started or cycle.disconnected:
            return False
        cycle.response_started = cycle.response_complete = True
        cycle.waiting_for_100_continue = False
        ours = [b"%s: %s\r\n" % header for header in cycle.default_headers]
        end = b"\r\n" if cycle.keep_alive else b"connection: close\r\n\r\n"
        self.transport.write(b"".join((STATUS_LINE[status], *ours, head, end, body)))
        cycle.message_event.set()
        if not cycle.keep_alive:
            self.transport.close()
        cycle.on_response()
        return True

    def send_400_response(self, msg: str) -> None:
        self.refuse(BadRequest("This isn't an HTTP/1.1 request"))

    def refuse(self, error: Problem) -> None:
        """Answers without a route, and hangs up."""
        self.disarm()
        telemetry.REFUSED.labels(error.error).inc()
        if not self.transport.is_closing():
            self.transport.write(_raw(error))
            self.transport.close()


def bounded(seconds: float, connections: int) -> type[Bounded]:
    return type("Bounded", (Bounded,), {"seconds": seconds, "most": connections})


def _raw(error: Problem) -> bytes:
    request_id = str(uuid.uuid4())
    body = encode(problem(error, "", request_id))
    headers = {
        "Content-Type": "application/problem+json",
        "Content-Length": str(len(body)),
        "Connection": "close",
        "X-Request-ID": request_id,
        **error.headers,
    }
    lines = [f"HTTP/1.1 {error.status} {error.error}", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


def bind(host: str, port: int) -> socket.socket:
    """The listening socket, or one clear line.

    It names TCP: asyncio turns Nagle off only where the protocol is named, and an answer's head and
    body are two writes, of which the second would wait 40 ms for the first's acknowledgement.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise Misconfigured(
            f"port {port} on {host} can't be used: {error.strerror}"
            " (stop what holds it, or choose another with PORT or --port)"
        ) from error
    return listener


class Server(uvicorn.Server):
    """Tells the application when the drain begins, so that it can say it isn't ready."""

    def __init__(self, config: uvicorn.Config, draining: Callable[[], None]) -> None:
        super().__init__(config)
        self.draining = draining

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first drains, the second ends. Neither is raised again: a drain exits with 0."""
        self.draining()
        self.force_exit = self.should_exit
        self.should_exit = True


def server(app: Any, config: Config, draining: Callable[[], None]) -> Server:
    settings = uvicorn.Config(
        app,
        http=cast(Any, bounded(config.body_timeout, config.connection_limit)),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=20,
        timeout_graceful_shutdown=15,
    )
    return Server(settings, draining)
