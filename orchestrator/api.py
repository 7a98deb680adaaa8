"""The HTTP process: tables of endpoints become routes.

decode → authenticate → one call, which is one transaction → encode; what goes wrong becomes the one
error body. No route has code here: a vertical's table says what it needs.
"""

from __future__ import annotations

import asyncio
import copy
import re
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import (
    __version__,
    auth,
    db,
    events,
    expr,
    httpd,
    openapi,
    ops,
    outbox,
    pipelines,
    repeats,
    schedules,
    streams,
    telemetry,
    waiting,
    web,
    wire,
    work,
)
from .config import Config
from .db import Pool
from .errors import (
    Malformed,
    MethodNotAllowed,
    NotFound,
    Problem,
    RouteNotFound,
    Slow,
    TooLarge,
    WrongContentType,
)
from .limiter import Limiter
from .sinks import redis
from .steps import listing
from .steps.allowed import refuse_foreign_tools
from .telemetry import log
from .wire import (
    Call,
    Endpoint,
    Place,
    Principal,
    Reply,
    Stream,
    as_problem,
    convert,
    decode,
    encode,
    has_scope,
    problem,
    read_form,
)

ENDPOINTS: list[Endpoint] = [
    *ops.ENDPOINTS,
    *auth.ENDPOINTS,
    *schedules.ENDPOINTS,
    *work.ENDPOINTS,
    *events.ENDPOINTS,
    *streams.ENDPOINTS,
    *outbox.ENDPOINTS,
    *pipelines.ENDPOINTS,
    *listing.ENDPOINTS,
]

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


class Api:
    """What the routes of one process share."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.pool = Pool(config, role="orc_api", application="orchestrator api")
        self.started_at = time.monotonic()
        self.draining = False
        self.gauges = ops.Gauges()
        self.waiting = waiting.Waiting(self.pool)
        self.auth = auth.Authenticator(config, self.pool)
        self.limiter = Limiter(config)
        self.streams = streams.Hub(self.pool, config.stream_limit)

    async def redis(self) -> ops.Component:
        if not self.config.redis_url:
            return ops.Component("not configured")
        return ops.Component("up" if await redis.is_alive(self.config.redis_url) else "down")

    async def pipeline_problems(self, document: Any, loc: list[str | int]) -> list[Place]:
        """What is wrong with a pipeline. Expressions are compiled, so not on the event loop.
        Raises NotAllowed when it uses tools that need a scope which the caller doesn't have."""
        if (actor := db.acting.get()) is not None:
            scopes = actor.scopes.split()
            refuse_foreign_tools(document, self.config, lambda scope: has_scope(scopes, scope))
        report = await asyncio.to_thread(pipelines.check, document)
        return [
            {"loc": [*loc, *p.pointer.split("/")[1:]], "msg": p.message, "type": p.type}
            for p in report.errors
        ]

    async def condition_problems(self, source: str, roots: Sequence[str]) -> list[Place]:
        try:
            await asyncio.to_thread(expr.condition, source, roots)
        except expr.ExpressionError as error:
            return [{"loc": ["body", "schedule_expr"], "msg": str(error), "type": "expression"}]
        return []

    async def steps_before(self, document: Any, step: str) -> list[str]:
        """The outermost steps of a pipeline that don't come after one of them."""
        report = await asyncio.to_thread(pipelines.check, document)
        listed = [one.id for one in report.pipeline.steps] if report.pipeline else []
        if report.pipeline is None or step not in listed:
            text = f"The run's pipeline has no outermost step {step!r}"
            raise Problem(text, kind=NotFound, hint=f"it has {', '.join(listed)}")
        return pipelines.steps_before(report.pipeline, step)

    def drain(self) -> None:
        if not self.draining:
            log("draining")
        self.draining = True
        self.streams.close()
        self.waiting.close()


def build(api: Api, endpoints: Sequence[Endpoint] = ENDPOINTS) -> Starlette:
    """The application. Every route is behind the same shell, the pages too."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await api.pool.open()
        yield
        await api.streams.stop()
        await api.pool.close()

    document = openapi.document(
        api.config.app_name, __version__, "Jobs, schedules and agents on Postgres", endpoints
    )
    routes: list[BaseRoute] = [_route(api, endpoint) for endpoint in endpoints]
    app = Starlette(
        routes=[*routes, *web.routes(document)],
        lifespan=lifespan,
        middleware=[
            Middleware(Shell),
            Middleware(
                CORSMiddleware,
                allow_origins=api.config.cors_origins,
                allow_credentials="*" not in api.config.cors_origins,
                allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
                allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "If-Match",
                               "Last-Event-ID", "Prefer", "X-Request-ID"],
                expose_headers=["ETag", "Idempotency-Replayed", "Location", "Retry-After",
                                "X-Process-Time", "X-Request-ID"],
            ),
            Middleware(Errors),
        ],
        exception_handlers={HTTPException: _routing_error},
    )  # fmt: skip
    app.router.redirect_slashes = False
    return app


def _route(api: Api, endpoint: Endpoint) -> Route:
    async def answer(request: Request) -> Response:
        request.scope["route_path"] = endpoint.path
        return _response(await _answer(api, endpoint, request))

    return Route(endpoint.path, answer, methods=[endpoint.method], name=endpoint.verb)


async def _answer(api: Api, endpoint: Endpoint, request: Request) -> Reply:
    db.acting.set(db.Actor(None, "", "", request.scope["request_id"]))
    principal = await _caller(api, endpoint, request)
    if principal is not None:
        scopes = " ".join(principal.scopes)
        request_id = request.scope["request_id"]
        db.acting.set(db.Actor(principal.tenant_id, principal.id, scopes, request_id))
    call = Call(app=api, path=_path(request), headers=request.headers, principal=principal)
    values = _query(request)
    call.query = convert(values, endpoint.query or NoQuery, "query")
    raw = await _body(request, endpoint, api.config)
    if endpoint.body is not None:
        call.body = _decoded(raw, _content_type(request), endpoint)
        _refuse_disagreement(call)
    elif raw.strip() not in NOTHING:
        raise Malformed(f"{request.method} {request.url.path} takes no body")
    target = f"{request.url.path}?{request.url.query}"
    keys = request.headers.getlist("idempotency-key")
    if said := repeats.asked(keys, endpoint, call, target, raw):
        reply = await repeats.once(api.pool, said, lambda held: _within(held, endpoint, call))
    else:
        reply = await _act(endpoint, call)
    return await api.waiting.answer(endpoint, call, reply)


class NoQuery(wire.Request):
    """A route that takes no query."""


async def _within(held: repeats.Held, endpoint: Endpoint, call: Call) -> Reply:
    """The same with all calls of the handler in one transaction."""
    app = copy.copy(call.app)
    app.pool = cast(Pool, held)
    return await _act(endpoint, msgspec.structs.replace(call, app=app))


async def _act(endpoint: Endpoint, call: Call) -> Reply:
    answer = endpoint.handler(call) if endpoint.handler else _verb(endpoint, call)
    result = await answer
    if isinstance(result, Reply):
        return result
    kind = endpoint.content_type if isinstance(result, Stream) else "application/json"
    return Reply(body=result, status=endpoint.status, content_type=kind)


async def _caller(api: Api, endpoint: Endpoint, request: Request) -> Principal | None:
    """Who asks, if that matters. Who has no key is counted, too, by address."""
    address = request.client.host if request.client else ""
    who, principal, headers = address, None, request.headers
    try:
        if endpoint.scope is not None:
            principal = await auth.authenticate(
                api, headers.get("authorization"), address, headers.get("host", "")
            )
            who = f"{principal.tenant_id}:{principal.id}"
    finally:
        if endpoint.path not in QUIET:
            request.scope["limits"] = await api.limiter.take(who, endpoint.method)
    if principal is not None and endpoint.scope is not None:
        auth.require(principal, endpoint.scope)
    return principal


async def _verb(endpoint: Endpoint, call: Call) -> Any:
    """The endpoint's verb with every field of path, query and body as an argument."""
    arguments: dict[str, Any] = dict(call.path)
    if call.principal is not None and endpoint.of_tenant:
        arguments["tenant"] = call.principal.tenant_id
    for part in (call.query, call.body):
        if part is not None:
            arguments |= {name: getattr(part, name) for name in part.__struct_fields__}
    if getattr(endpoint.returns, "__origin__", None) is list:
        return await call.app.pool.call(endpoint.verb, **arguments)
    return await call.app.pool.call_one(endpoint.verb, **arguments)


def _path(request: Request) -> dict[str, str]:
    values = {name: str(value) for name, value in request.path_params.items()}
    if any("\0" in value for value in values.values()):
        raise RouteNotFound(f"There is nothing at {request.url.path!r}")
    return values


def _query(request: Request) -> dict[str, Any]:
    """Each name once; the same name again would silently win over the first."""
    pairs = request.query_params.multi_items()
    values = dict(pairs)
    if len(values) != len(pairs):
        raise Malformed("A query parameter is given more than once")
    return values


FORM = "application/x-www-form-urlencoded"


def _decoded(raw: bytes, kind: str, endpoint: Endpoint) -> Any:
    if endpoint.form and kind == FORM:
        return convert(read_form(raw), endpoint.body, "body")
    return decode(raw, endpoint.bodies.get(kind, endpoint.body))


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


NOTHING = (b"", b"{}", b"null")


async def _body(request: Request, endpoint: Endpoint, config: Config) -> bytes:
    if endpoint.method == "GET":
        return b""  # nobody asks for it
    kind = _content_type(request)
    is_json = kind == "application/json" or kind.endswith("+json")
    if endpoint.body is not None and not is_json and not (endpoint.form and kind == FORM):
        raise WrongContentType(
            f"The body is {kind or 'of no stated type'}", hint="send application/json"
        )
    try:
        async with asyncio.timeout(config.body_timeout):
            return await _read(request, max(endpoint.body_limit, config.body_limit))
    except TimeoutError:
        seconds = config.body_timeout
        raise Slow(f"The body took longer than {seconds:g} s", headers=CLOSE) from None


CLOSE = {"Connection": "close"}


async def _read(request: Request, limit: int) -> bytes:
    said = request.headers.get("content-length", "0")
    if said.isdigit() and int(said) > limit:
        raise TooLarge(f"The body is larger than {limit} bytes")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise TooLarge(f"The body is larger than {limit} bytes")
    return bytes(body)


def _refuse_disagreement(call: Call) -> None:
    for name, value in call.path.items():
        told = getattr(call.body, name, value)
        if told is not msgspec.UNSET and str(told) != value:
            raise Malformed(
                f"The path says {name} {value!r}, the body {str(told)!r}",
                detail=[{"loc": ["body", name], "msg": "disagrees with the path", "type": "value"}],
            )


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


def _response(reply: Reply) -> Response:
    if isinstance(reply.body, Stream):
        return Streaming(reply.body, reply.content_type)
    body = reply.body if isinstance(reply.body, bytes) else encode(reply.body)
    return Response(
        b"" if reply.status == 204 else body,
        reply.status,
        reply.headers,
        media_type=reply.content_type,
    )


def _routing_error(request: Request, error: Exception) -> Response:
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
        telemetry.correlation_id.set(request_id)
        if (path := scope["path"]) != "/" and path.endswith("/"):
            scope["path"] = path.rstrip("/") or "/"
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


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        text: str = value.decode("latin-1")
        if name == b"x-request-id" and REQUEST_ID.fullmatch(text):
            return text
    return str(uuid.uuid4())


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


def _account(scope: Scope, status: int, seconds: float) -> None:
    route = scope.get("route_path", "(none)")
    method = scope["method"] if "route_path" in scope else "(any)"
    telemetry.REQUESTS.labels(method, route, str(status)).observe(seconds)
    level = "warning" if status >= 500 else "debug" if scope["path"] in QUIET else "info"
    log(
        "request_answered",
        level,
        method=scope["method"],
        path=scope["path"],
        status=status,
        ms=round(seconds * 1000, 2),
    )


async def main(config: Config) -> None:
    await auth.refuse_missing_secret(config)
    listener = httpd.bind(config.api_host, config.port)
    api = Api(config)
    log("started", url=f"http://{config.api_host}:{listener.getsockname()[1]}", version=__version__)
    await httpd.server(build(api), config, api.drain).serve(sockets=[listener])
    log("stopped")
