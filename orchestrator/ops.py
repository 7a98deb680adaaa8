"""The service about itself: what it is, whether it's well, its figures, verbs and invariants."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Any

import msgspec
import psycopg
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from . import __version__, telemetry
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


class Gauges:
    """The database's gauges, asked for at most once in `KEEP_SECONDS` however many scrape."""

    KEEP_SECONDS = 5.0

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.asked_at = -self.KEEP_SECONDS
        self.lock = asyncio.Lock()

    async def fresh(self, app: App) -> list[dict[str, Any]]:
        async with self.lock:
            if time.monotonic() - self.asked_at >= self.KEEP_SECONDS:
                try:
                    self.rows = await app.pool.call("gauges")
                except (psycopg.Error, Unavailable):
                    self.rows = []
                self.asked_at = time.monotonic()
        return self.rows


class _Snapshot:
    """What one scrape sees of the database and the pool."""

    def __init__(self, rows: list[dict[str, Any]], pool: dict[str, int]) -> None:
        self.rows = rows
        self.pool = pool

    def collect(self) -> list[Metric]:
        up = GaugeMetricFamily("orchestrator_database_up", "Whether the database answered")
        up.add_metric([], float(bool(self.rows)))
        families: dict[str, GaugeMetricFamily] = {}
        for row in self.rows:
            labels = sorted(row["labels"])
            name = f"orchestrator_{row['name']}"
            family = families.setdefault(
                name, GaugeMetricFamily(name, row["name"].replace("_", " "), labels=labels)
            )
            family.add_metric([row["labels"][label] for label in labels], row["value"])
        connections = GaugeMetricFamily(
            "orchestrator_pool_connections", "Connections of this process", labels=["state"]
        )
        size, idle = self.pool.get("pool_size", 0), self.pool.get("pool_available", 0)
        connections.add_metric(["idle"], idle)
        connections.add_metric(["busy"], size - idle)
        waiting = GaugeMetricFamily("orchestrator_pool_waiting", "Calls that wait for a connection")
        waiting.add_metric([], self.pool.get("requests_waiting", 0))
        return [up, *families.values(), connections, waiting]


async def _metrics(call: Call) -> Reply:
    rows = await call.app.gauges.fresh(call.app)
    registry = CollectorRegistry()
    registry.register(_Snapshot(rows, call.app.pool.get_stats()))
    body = generate_latest(telemetry.METRICS) + generate_latest(registry)
    return Reply(body=body, content_type=CONTENT_TYPE_LATEST)


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
    Endpoint("GET", "/ops/check", "check", returns=list[Broken], scope="admin", of_tenant=False,
             summary="The invariants that are broken: none, when all is well"),
]  # fmt: skip
