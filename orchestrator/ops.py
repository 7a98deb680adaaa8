"""The service about itself: what it is, whether it's well, its figures, verbs and invariants."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime

import msgspec
import psycopg

from . import __version__, metrics
from .errors import Unavailable
from .wire import App, Call, Endpoint, Instant, Reply, Request


class Service(msgspec.Struct):
    """What answers here, and where to go next."""

    service: str
    name: str
    version: str
    description: str
    status: str
    docs: str
    endpoints: dict[str, str]
    timestamp: Instant


class Component(msgspec.Struct):
    """One part: up, down or not configured."""

    status: str
    detail: str = ""


class Health(msgspec.Struct):
    """healthy, degraded (a part is down that can be missed) or unhealthy."""

    status: str
    timestamp: Instant
    version: str
    components: dict[str, Component]
    database: bool
    redis: bool


class Alive(msgspec.Struct):
    """The process runs."""

    status: str
    uptime_seconds: float


class Ready(msgspec.Struct):
    """ready, or what it waits for; and how far the schema is."""

    status: str
    schema: str | None


class Ping(msgspec.Struct):
    """Pong."""

    ping: str


class Verb(msgspec.Struct):
    """A function of schema orc, as `orc.help()` tells it."""

    verb: str
    arguments: str
    returns: str
    purpose: str


class VerbQuery(Request):
    pattern: str | msgspec.UnsetType = msgspec.UNSET


class Broken(msgspec.Struct):
    """An invariant that does not hold."""

    invariant: str
    subject: str
    detail: str


def _now() -> datetime:
    return datetime.now(UTC)


async def _service(call: Call) -> Service:
    config = call.app.config
    return Service(
        service="orchestrator",
        name=config.app_name,
        version=__version__,
        description="Jobs, schedules and agents on the Postgres that you already have",
        status="operational",
        docs="/docs",
        endpoints={
            "health": "/health",
            "metrics": "/metrics",
            "openapi": "/openapi.json",
            "reference": "/redoc",
            "me": "/auth/me",
        },
        timestamp=_now(),
    )


async def _health(call: Call) -> Reply:
    database, redis = await asyncio.gather(_database(call.app), call.app.redis())
    components = {"database": database, "redis": redis}
    broken = [part for part in components.values() if part.status == "down"]
    status = "unhealthy" if database.status == "down" else "degraded" if broken else "healthy"
    health = Health(
        status=status,
        timestamp=_now(),
        version=__version__,
        components=components,
        database=database.status == "up",
        redis=redis.status == "up",
    )
    return Reply(body=health, status=503 if status == "unhealthy" else 200)


async def _database(app: App) -> Component:
    try:
        row = await app.pool.call_one("health")
    except (psycopg.Error, Unavailable) as error:
        return Component("down", getattr(error, "message", "The database can't be reached"))
    return Component("up", f"PostgreSQL {row['server_version']}, schema {row['last_migration']}")


async def _live(call: Call) -> Alive:
    return Alive("alive", round(time.monotonic() - call.app.started_at, 3))


async def _ready(call: Call) -> Reply:
    if call.app.draining:
        return Reply(body=Ready("draining", None), status=503)
    try:
        row = await call.app.pool.call_one("health")
    except (psycopg.Error, Unavailable):
        return Reply(body=Ready("waiting for the database", None), status=503)
    return Reply(body=Ready("ready", row["last_migration"]))


async def _ping(call: Call) -> Ping:
    return Ping("pong")


async def _metrics(call: Call) -> Reply:
    app = call.app
    body, kind = metrics.told(
        call.headers.get("accept", ""),
        *metrics.of_database(await app.gauges.fresh(app.pool)),
        *metrics.of_pool(app.pool.get_stats()),
        *metrics.of_streams(app.streams.open, len(app.waiting.waiters)),
    )
    return Reply(body=body, content_type=kind)


ENDPOINTS = [
    Endpoint("GET", "/", "service", returns=Service, handler=_service, group="service",
             summary="What this is"),
    Endpoint("GET", "/health", "health", returns=Health, handler=_health, errors=(503,),
             group="service", summary="Whether it is well, part by part"),
    Endpoint("GET", "/health/live", "live", returns=Alive, handler=_live, group="service",
             summary="Whether the process runs; never asks the database"),
    Endpoint("GET", "/health/ready", "ready", returns=Ready, handler=_ready, errors=(503,),
             group="service", summary="Whether it can take requests"),
    Endpoint("GET", "/ping", "ping", returns=Ping, handler=_ping, group="service",
             summary="The shortest answer"),
    Endpoint("GET", "/metrics", "metrics", handler=_metrics, content_type="text/plain",
             group="service", summary="Figures for Prometheus"),
    Endpoint("GET", "/ops/verbs", "help", query=VerbQuery, returns=list[Verb], scope="admin",
             of_tenant=False, summary="Every function of orc, with its arguments and purpose"),
    Endpoint("GET", "/ops/check", "check", returns=list[Broken], scope="admin",
             summary="The invariants that are broken: none, when all is well"),
]  # fmt: skip
