"""The HTTP process: tables of endpoints become routes.

decode → authenticate → one call, which is one transaction → encode; what goes wrong becomes the one
error body. No route has code here: a vertical's table says what it needs.
"""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from .. import (
    __version__,
    auth,
    db,
    events,
    expr,
    httpd,
    metrics,
    openapi,
    ops,
    outbox,
    pipelines,
    repeats,
    schedules,
    streams,
    traces,
    waiting,
    web,
    wire,
    work,
)
from ..config import Config
from ..errors import (
    Malformed,
    NotFound,
    Problem,
)
from ..limiter import Limiter
from ..steps import listing
from ..steps.allowed import refuse_foreign_tools
from ..telemetry import log
from ..wire import (
    Call,
    Endpoint,
    Place,
    Principal,
    Reply,
    Stream,
    convert,
    has_scope,
)
from . import together
from .request import (
    NOTHING,
    body_of,
    content_type,
    decoded,
    query_of,
    refuse_disagreement,
)
from .routes import Table, refuse_nul, template_of
from .shell import QUIET, Cors, Errors, Shell, response, routing_error

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


SMALL_BYTES, MOST_REPORTS = 10_000, 500
"""Reports on documents of up to so many bytes are kept, and so many of them."""


class Api:
    """What the routes of one process share."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.pool: db.Pool = together.Pool(config, role="orc_api", application="orchestrator api")
        self.started_at = time.monotonic()
        self.draining = False
        self.clock = db.Clock()
        self.gauges = metrics.Gauges()
        self.waiting = waiting.Waiting(self.pool)
        self.auth = auth.Authenticator(config, self.pool)
        self.limiter = Limiter(config)
        self.streams = streams.Hub(self.pool, config.stream_limit)
        self.reports: dict[bytes, pipelines.Report] = {}

    async def redis(self) -> ops.Component:
        if not self.config.redis_url:
            return ops.Component("not configured")
        from ..sinks import redis  # 0.2 s of imports

        return ops.Component("up" if await redis.is_alive(self.config.redis_url) else "down")

    async def pipeline_problems(self, document: Any, loc: list[str | int]) -> list[Place]:
        """What is wrong with a pipeline. Expressions are compiled, so not on the event loop.
        Raises NotAllowed when it uses tools that need a scope which the caller doesn't have."""
        if (actor := db.acting.get()) is not None:
            scopes = actor.scopes.split()
            refuse_foreign_tools(document, self.config, lambda scope: has_scope(scopes, scope))
        report = await self._report(document)
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
        report = await self._report(document)
        listed = [one.id for one in report.pipeline.steps] if report.pipeline else []
        if report.pipeline is None or step not in listed:
            text = f"The run's pipeline has no outermost step {step!r}"
            raise Problem(text, kind=NotFound, hint=f"it has {', '.join(listed)}")
        return pipelines.steps_before(report.pipeline, step)

    async def _report(self, document: Any) -> pipelines.Report:
        """Small documents are looked at once: most tasks are made by programs, and are alike."""
        key = wire.encode(document)
        if (known := self.reports.get(key)) is not None:
            return known
        report = await asyncio.to_thread(pipelines.check, document)
        if len(key) <= SMALL_BYTES:
            if len(self.reports) >= MOST_REPORTS:
                self.reports.clear()
            self.reports[key] = report
        return report

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
                Cors,
                allow_origins=api.config.cors_origins,
                allow_credentials="*" not in api.config.cors_origins,
                allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
                allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "If-Match",
                               "Last-Event-ID", "Prefer", "X-Request-ID"],
                expose_headers=["ETag", "Idempotency-Replayed", "Location", "Retry-After",
                                "X-Process-Time", "X-Request-ID"],
            ),
            Middleware(Errors),
            Middleware(Endpoints, api=api, endpoints=endpoints),
        ],
        exception_handlers={HTTPException: routing_error},
    )  # fmt: skip
    app.router.redirect_slashes = False
    return app


def _route(api: Api, endpoint: Endpoint) -> Route:
    """For who asks in another way: HEAD, or a method that isn't answered."""

    async def answer(request: Request) -> Any:
        path = {name: str(value) for name, value in request.path_params.items()}
        return response(await _answer(api, endpoint, path, request.scope, request.receive))

    return Route(endpoint.path, answer, methods=[endpoint.method], name=endpoint.verb)


class Endpoints:
    """Answers what is in the table; the application behind has pages, and says what isn't there."""

    def __init__(self, app: ASGIApp, api: Api, endpoints: Sequence[Endpoint]) -> None:
        self.app = app
        self.api = api
        self.table = Table(endpoints)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_request = scope["type"] == "http"
        found = self.table.find(scope["method"], scope["path"]) if is_request else None
        if found is None:
            await self.app(scope, receive, send)
        else:
            reply = await _answer(self.api, *found, scope, receive)
            await response(reply)(scope, receive, send)


async def _answer(
    api: Api, endpoint: Endpoint, path: dict[str, str], scope: Scope, receive: Receive
) -> Reply:
    scope["route_path"] = template_of(endpoint.path)
    refuse_nul(scope["path"], path)
    request_id, headers = scope["request_id"], scope["said"]
    db.acting.set(db.Actor(None, "", "", request_id))
    principal = await _caller(api, endpoint, scope, headers)
    if principal is not None:
        scopes = " ".join(principal.scopes)
        db.acting.set(db.Actor(principal.tenant_id, principal.id, scopes, request_id))
    call = Call(app=api, path=path, headers=headers, principal=principal)
    if endpoint.query is not None or scope["query_string"]:
        call.query = convert(query_of(scope), endpoint.query or NoQuery, "query")
    raw = await body_of(headers, receive, endpoint, api.config)
    if endpoint.body is not None:
        call.body = decoded(raw, content_type(headers), endpoint)
        refuse_disagreement(call)
    elif raw and raw.strip() not in NOTHING:
        raise Malformed(f"{endpoint.method} {scope['path']} takes no body")
    if said := _said_again(scope, headers, endpoint, call, raw):
        reply = await repeats.once(api.pool, said, lambda held: _within(held, endpoint, call))
    else:
        reply = await _act(endpoint, call)
    return await api.waiting.answer(endpoint, call, reply) if "prefer" in headers else reply


def _said_again(
    scope: Scope, headers: dict[str, str], endpoint: Endpoint, call: Call, raw: bytes
) -> repeats.Asked | None:
    if "idempotency-key" not in headers:
        return None
    keys = [v.decode("latin-1") for name, v in scope["headers"] if name == b"idempotency-key"]
    target = f"{scope['path']}?{scope['query_string'].decode('latin-1')}"
    return repeats.asked(keys, endpoint, call, target, raw)


class NoQuery(wire.Request):
    """A route that takes no query."""


async def _within(held: repeats.Held, endpoint: Endpoint, call: Call) -> Reply:
    """The same with all calls of the handler in one transaction."""
    app = copy.copy(call.app)
    app.pool = cast(db.Pool, held)
    return await _act(endpoint, msgspec.structs.replace(call, app=app))


async def _act(endpoint: Endpoint, call: Call) -> Reply:
    answer = endpoint.handler(call) if endpoint.handler else _verb(endpoint, call)
    result = await answer
    if isinstance(result, Reply):
        return result
    kind = endpoint.content_type if isinstance(result, Stream) else "application/json"
    return Reply(body=result, status=endpoint.status, content_type=kind)


async def _caller(
    api: Api, endpoint: Endpoint, scope: Scope, headers: dict[str, str]
) -> Principal | None:
    """Who asks, if that matters. Who has no key is counted, too, by address."""
    address = scope["client"][0] if scope.get("client") else ""
    who, principal = address, None
    try:
        if endpoint.scope is not None:
            principal = await auth.authenticate(
                api, headers.get("authorization"), address, headers.get("host", "")
            )
            who = f"{principal.tenant_id}:{principal.id}"
    finally:
        if api.limiter.limit is not None and endpoint.path not in QUIET:
            scope["limits"] = await api.limiter.take(who, endpoint.method)
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


async def main(config: Config) -> None:
    await auth.refuse_missing_secret(config)
    traces.setup(config, "api")
    listener = httpd.bind(config.api_host, config.port)
    api = Api(config)
    log("started", url=f"http://{config.api_host}:{listener.getsockname()[1]}", version=__version__)
    await httpd.server(build(api), config, api.drain).serve(sockets=[listener])
    await traces.close()
    log("stopped")
