"""Around every route: headers, request ids, time, one line per request; what goes wrong becomes the
one error body."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from functools import cache

from prometheus_client import Counter, Histogram
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .. import telemetry, traces
from ..errors import MethodNotAllowed, Problem, RouteNotFound
from ..telemetry import log
from ..wire import Reply, Stream, as_problem, encode, problem

SECURITY = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Strict-Transport-Security": "max-age=31536000; includeSubDomains",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "X-XSS-Protection": "1; mode=block",
    "Referrer-Policy": "strict-origin-when-cross-origin",
}
REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
QUIET = {"/health", "/health/live", "/health/ready", "/metrics", "/ping"}
SLOW_READER_SECONDS = 30.0


class Streaming(StreamingResponse):
    """Frames as they come. A client that reads nothing for long is given up."""

    def __init__(self, stream: Stream, content_type: str) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(stream.frames, headers=headers, media_type=content_type)
        self.stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except TimeoutError:
            raise ClientDisconnect from None
        finally:
            self.stream.close()


def response(reply: Reply) -> Response:
    if isinstance(reply.body, Stream):
        return Streaming(reply.body, reply.content_type)
    body = reply.body if isinstance(reply.body, bytes) else encode(reply.body)
    return Response(
        b"" if reply.status == 204 else body,
        reply.status,
        reply.headers,
        media_type=reply.content_type,
    )


def routing_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == 405:
        refusal: Problem = MethodNotAllowed(
            f"{request.method} isn't answered at {path}", headers=dict(error.headers or {})
        )
    else:
        refusal = RouteNotFound(f"There is nothing at {path}", hint="/docs lists every route")
    return _problem_response(refusal, request.scope)


def _problem_response(error: Problem, scope: Scope) -> Response:
    body = problem(error, scope["path"], scope.get("request_id", ""))
    return Response(encode(body), error.status, error.headers, "application/problem+json")


class Errors:
    """Innermost: an exception becomes the one error body. Nothing of ours leaks into a 500."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watch(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, watch)
        except ClientDisconnect:
            log("client_went_away", "debug", path=scope["path"])
        except Exception as error:
            if started:
                raise
            await _problem_response(as_problem(error), scope)(scope, receive, send)


class Shell:
    """Outermost: request id, both slash forms, headers, time, one line per request."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started = time.perf_counter()
        request_id = _request_id(scope)
        scope["request_id"] = request_id
        if (path := scope["path"]) != "/" and path.endswith("/"):
            scope["path"] = path.rstrip("/") or "/"
        span = _span(scope)
        telemetry.carry(request_id, span.traceparent)
        status = 500

        async def finish(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                seconds = time.perf_counter() - started
                _add_headers(message, request_id, seconds, scope.get("limits", {}))
            async with asyncio.timeout(SLOW_READER_SECONDS):
                await send(message)

        with telemetry.IN_FLIGHT.track_inprogress():
            try:
                await self.app(scope, receive, finish)
            finally:
                _account(scope, status, time.perf_counter() - started)
                _end(span, scope, status)


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        text: str = value.decode("latin-1")
        if name == b"x-request-id" and REQUEST_ID.fullmatch(text):
            return text
    return str(uuid.uuid4())


def _span(scope: Scope) -> traces.Span:
    sent = [value.decode("latin-1") for name, value in scope["headers"] if name == b"traceparent"]
    parent = traces.received(sent) if sent else None
    if not traces.is_on() or scope["path"] in QUIET:
        return traces.Span(parent)
    return traces.begin(scope["method"], parent, "server", {"http.request.method": scope["method"]})


def _end(span: traces.Span, scope: Scope, status: int) -> None:
    if (route := scope.get("route_path")) is not None:
        span.rename(f"{scope['method']} {route}")
        span.note({"http.route": route})
    span.note({"http.response.status_code": status, "request.id": scope["request_id"]})
    if status >= 500:
        span.fail(str(status))
    span.end()


def _add_headers(message: Message, request_id: str, seconds: float, limits: dict[str, str]) -> None:
    headers: list[tuple[bytes, bytes]] = message.setdefault("headers", [])
    present = {name.lower() for name, _ in headers}
    ours = {
        **SECURITY,
        **limits,
        "X-Request-ID": request_id,
        "X-Process-Time": f"{seconds * 1000:.2f}",
    }
    for name, value in ours.items():
        if (raw := name.lower().encode()) not in present:
            headers.append((raw, value.encode()))


@cache
def _meters(method: str, route: str, status: int) -> tuple[Histogram, Counter]:
    return (
        telemetry.REQUESTS.labels(method, route, f"{status // 100}xx"),
        telemetry.ANSWERS.labels(method, route, str(status)),
    )


def _account(scope: Scope, status: int, seconds: float) -> None:
    route = scope.get("route_path", "(none)")
    method = scope["method"] if "route_path" in scope else "(any)"
    times, answers = _meters(method, route, status)
    times.observe(seconds)
    answers.inc()
    path = route if "{token}" in route else scope["path"]  # whoever has a token may use it
    level = "warning" if status >= 500 else "debug" if scope["path"] in QUIET else "info"
    log(
        "request_answered",
        level,
        method=scope["method"],
        path=path,
        status=status,
        ms=round(seconds * 1000, 2),
    )
