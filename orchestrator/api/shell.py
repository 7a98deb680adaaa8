"""Around every route: headers, request ids, time, one line per request; what goes wrong becomes the
one error body."""

from __future__ import annotations

import random
import re
import time

from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .. import httpd, telemetry, traces
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
SECURITY_RAW = [(name.lower().encode(), value.encode()) for name, value in SECURITY.items()]
SECURITY_LINES = b"".join(b"%b: %b\r\n" % header for header in SECURITY_RAW)
REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
QUIET = {"/health", "/health/live", "/health/ready", "/metrics", "/ping"}


class Streaming(StreamingResponse):
    """Frames as they come."""

    def __init__(self, stream: Stream, content_type: str) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(stream.frames, headers=headers, media_type=content_type)
        self.stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.stream.close()


class Json:
    """Bytes of JSON, in one piece."""

    def __init__(self, body: bytes, status: int, headers: dict[str, str]) -> None:
        self.body, self.status, self.headers = body, status, headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._is_answered(scope):
            scope["status"] = self.status
        else:
            plain = Response(self.body, self.status, self.headers, "application/json")
            await plain(scope, receive, send)

    def _is_answered(self, scope: Scope) -> bool:
        """At once, past the layers between, if these have nothing to do with it."""
        answer = scope.get("extensions", {}).get(httpd.WHOLE)
        if answer is None or scope["method"] == "HEAD" or "origin" in scope["said"]:
            return False
        said = {**self.headers, **scope.get("limits", {})}
        if not said.keys() <= PLAIN or any(map(CONTROL.search, said.values())):
            return False
        head = b"content-type: application/json\r\ncontent-length: %d\r\n%b%b" % (
            len(self.body),
            SECURITY_LINES,
            "".join(f"{name}: {value}\r\n" for name, value in said.items()).encode("latin-1"),
        )
        head += b"x-request-id: %b\r\nx-process-time: %.2f\r\nvary: Origin\r\n" % (
            scope["request_id"].encode(), (time.perf_counter() - scope["began"]) * 1000,
        )  # fmt: skip
        return bool(answer(self.status, head, self.body))


PLAIN = {"ETag", "Location", "Retry-After", "RateLimit", "RateLimit-Policy", "Preference-Applied",
         "Idempotency-Replayed"}  # fmt: skip
"""Headers that are no concern of the shell's, nor of the server's."""

CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


def response(reply: Reply) -> ASGIApp:
    if isinstance(reply.body, Stream):
        return Streaming(reply.body, reply.content_type)
    body = reply.body if isinstance(reply.body, bytes) else encode(reply.body)
    if reply.content_type == "application/json" and reply.status != 204:
        return Json(body, reply.status, reply.headers)
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
        try:
            await self.app(scope, receive, send)
        except ClientDisconnect:
            scope["status"] = GONE
        except Exception as error:
            if scope["type"] != "http" or "status" in scope:
                raise
            await _problem_response(as_problem(error), scope)(scope, receive, send)


GONE = 499
"""What the log and the counts have of a request whose client didn't wait for the answer."""


class Cors(CORSMiddleware):
    """For pages of other origins, which say so; others needn't pass here. `Vary` is the shell's."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_page = scope["type"] == "http" and "origin" in scope["said"]
        await (super().__call__ if is_page else self.app)(scope, receive, send)


class Shell:
    """Outermost: request id, both slash forms, headers, time, one line per request."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        scope["began"] = started = time.perf_counter()
        scope["said"] = headers = headers_of(scope)
        scope["request_id"] = request_id = _request_id(headers)
        if (path := scope["path"]) != "/" and path.endswith("/"):
            scope["path"] = path.rstrip("/") or "/"
        span = _span(scope)
        telemetry.carry(request_id, span.traceparent)

        async def finish(message: Message) -> None:
            if message["type"] == "http.response.start":
                scope["status"] = message["status"]
                _add_headers(message, scope, time.perf_counter() - started)
            await send(message)

        telemetry.REQUESTS.in_flight += 1
        try:
            await self.app(scope, receive, finish)
        finally:
            telemetry.REQUESTS.in_flight -= 1
            status = scope.get("status", 500)
            _account(scope, status, time.perf_counter() - started)
            if traces.is_on():
                _end(span, scope, status)


def headers_of(scope: Scope) -> dict[str, str]:
    """Each once, by its small letters; the first counts."""
    return {str(n, "latin-1"): str(v, "latin-1") for n, v in reversed(scope["headers"])}


def _request_id(headers: dict[str, str]) -> str:
    given = headers.get("x-request-id", "")
    return given if given and REQUEST_ID.fullmatch(given) else _new_id()


def _new_id() -> str:
    """A UUIDv4. It is no secret, so it needn't ask the kernel."""
    digits = f"{random.getrandbits(128):032x}"
    ends = f"4{digits[13:16]}-{'89ab'[int(digits[16], 16) & 3]}{digits[17:20]}-{digits[20:]}"
    return f"{digits[:8]}-{digits[8:12]}-{ends}"


def _span(scope: Scope) -> traces.Span:
    parent = None
    if "traceparent" in scope["said"]:
        sent = [value for name, value in scope["headers"] if name == b"traceparent"]
        parent = traces.received([value.decode("latin-1") for value in sent])
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


def _add_headers(message: Message, scope: Scope, seconds: float) -> None:
    headers: list[tuple[bytes, bytes]] = message.setdefault("headers", [])
    present = {name.lower() for name, _ in headers}
    headers += [one for one in SECURITY_RAW if one[0] not in present]
    for name, value in scope.get("limits", {}).items():
        if (raw := name.lower().encode()) not in present:
            headers.append((raw, value.encode()))
    headers.append((b"x-request-id", scope["request_id"].encode()))
    headers.append((b"x-process-time", b"%.2f" % (seconds * 1000)))
    if b"vary" not in present or not _varies_by_origin(headers):
        headers.append((b"vary", b"Origin"))


def _varies_by_origin(headers: list[tuple[bytes, bytes]]) -> bool:
    return any(name.lower() == b"vary" and b"Origin" in value for name, value in headers)


def _account(scope: Scope, status: int, seconds: float) -> None:
    route = scope.get("route_path", "(none)")
    method = scope["method"] if "route_path" in scope else "(any)"
    telemetry.REQUESTS.observe(method, route, status, seconds)
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
