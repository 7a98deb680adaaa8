"""orc doctor: what is wrong with this place, and what to do about it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
import psycopg
import typer

from .. import config, db
from ..errors import Misconfigured, Problem, Unfit
from . import core, place

app = typer.Typer()

OLDEST = 60.0
"""Seconds that a ready run may wait before it is worth a word."""
SKEW = 5.0
LONGEST_TRANSACTION = 600.0


class Finding(msgspec.Struct):
    """What was looked at, how it is, and what to do about it."""

    status: Literal["ok", "warning", "wrong"]
    check: str
    found: str
    next: str = ""


@app.command()
def doctor(output: core.Output = "table") -> None:
    """Say what is wrong with this place, and what to do next.

    It looks at settings, database, schema, invariants, workers, schedulers, queues, sinks and API.
    Exit status 1 when something is wrong; a warning is no such thing."""
    found = core.run(_examined())
    rows = [msgspec.structs.asdict(finding) for finding in found]
    core.show(rows, output, ("status", "check", "found", "next"), key="check")
    if any(finding.status == "wrong" for finding in found):
        raise typer.Exit(core.Exit.WRONG)


async def _examined() -> list[Finding]:
    try:
        settings = config.load()
    except Misconfigured as error:
        return [Finding("wrong", "settings", str(error), "correct the environment")]
    found = [Finding("ok", "settings", f"{settings.app_env}; every name is known")]
    found += [one async for one in _database(settings)]
    found += [one async for one in _outside(settings)]
    return found


# The database, and what it knows


async def _database(settings: config.Config) -> AsyncIterator[Finding]:
    try:
        url = core.url(settings)
        connection = await core.connect(url)
    except (Misconfigured, Problem, psycopg.Error) as error:
        yield Finding("wrong", "database", str(error), "bin/db up, or set DATABASE_URL")
        return
    settings = msgspec.structs.replace(settings, database_url=url)
    async with connection:
        yield Finding("ok", "database", "answers")
        try:
            yield await _schema(url)
            async for finding in _facts(connection, settings):
                yield finding
        except (psycopg.Error, Problem, Unfit) as error:
            yield Finding("wrong", "database", str(error).splitlines()[0], "orc db status")


async def _schema(url: str) -> Finding:
    from .. import schema

    state = await schema.status(url)
    said = f"{state.schema}, on PostgreSQL {state.server_version}"
    if state.schema != "current" or state.verbs != "current":
        return Finding("wrong", "schema", f"{said}; verbs {state.verbs}", "bin/db install")
    return Finding("ok", "schema", said)


async def _facts(connection: db.Connection, settings: config.Config) -> AsyncIterator[Finding]:
    names = ("overview", "check", "list_workers", "list_queues", "list_sinks", "gauges")
    answers = await db.call_together(connection, *((name, {}) for name in names))
    rows = dict(zip(names, answers, strict=True))
    yield _clock(rows["overview"][0]["at"])
    yield _invariants(rows["check"])
    yield _workers(rows["list_workers"])
    yield _schedulers(rows["overview"][0]["schedulers"])
    for finding in (*_queues(rows["list_queues"]), *_sinks(rows["list_sinks"])):
        yield finding
    yield _transactions(rows["gauges"])
    yield await _tokens(settings)


def _clock(there: datetime) -> Finding:
    skew = abs((datetime.now(UTC) - there).total_seconds())
    if skew > SKEW:
        way_out = "set the clock of one of them; leases go by the database's"
        return Finding("warning", "clock", f"{skew:.0f} s from the database's", way_out)
    return Finding("ok", "clock", "agrees with the database's")


def _invariants(broken: list[db.Row]) -> Finding:
    if not broken:
        return Finding("ok", "invariants", "all hold")
    first = broken[0]
    said = f"{len(broken)} broken: {first['invariant']}: {first['subject']}"
    return Finding("wrong", "invariants", said, f"bin/check lists them; {first['detail']}")


def _workers(rows: list[db.Row]) -> Finding:
    live = [row for row in rows if row["state"] == "live"]
    silent = [row for row in rows if row["state"] == "silent"]
    if not live:
        return Finding("wrong", "workers", "none lives", "bin/worker")
    if silent:
        names = ", ".join(str(row["name"] or row["id"]) for row in silent[:3])
        said = f"{len(live)} live, {len(silent)} silent: {names}"
        return Finding("warning", "workers", said, "their runs are taken back by a scheduler")
    return Finding("ok", "workers", f"{len(live)} live, {sum(r['slots'] for r in live)} slots")


def _schedulers(live: int) -> Finding:
    if not live:
        return Finding("wrong", "schedulers", "none lives: nothing fires", "bin/scheduler")
    return Finding("ok", "schedulers", f"{live} live")


def _queues(rows: list[db.Row]) -> Iterator[Finding]:
    for row in rows:
        name, place = f"{row['tenant_id']}/{row['queue']}", f"queue {row['queue']}"
        waits = row["oldest_ready_seconds"] or 0
        resume = f"orc queue resume {row['queue']} --tenant {row['tenant_id']}"
        if row["paused_at"]:
            yield Finding("warning", place, f"{name} is paused by {row['paused_by']}", resume)
        elif row["ready"] and not row["has_worker"]:
            said = f"{name} has {row['ready']} ready runs, and no live worker takes from it"
            yield Finding("wrong", place, said, f"bin/worker --queues {row['queue']}")
        elif waits > OLDEST:
            said = f"in {name} a ready run waits since {waits:.0f} s"
            yield Finding("warning", place, said, "more workers or slots; orc explain RUN says why")
    if not rows or max((row["oldest_ready_seconds"] or 0) for row in rows) <= OLDEST:
        yield Finding("ok", "queues", "no ready run waits for long")


def _sinks(rows: list[db.Row]) -> Iterator[Finding]:
    for row in rows:
        said = f"{row['name']} is {row['state']}, {row['backlog']} queued, {row['aside']} aside"
        if row["aside"]:
            way_out = f"POST /ops/sinks/{row['name']}/retry, once what it refused is put right"
            yield Finding("wrong", "sinks", f"{said}: {row['problem']}", way_out)
        elif row["state"] != "up":
            yield Finding("warning", "sinks", f"{said} {row['problem'] or ''}", "bin/relay, Redis")
        else:
            yield Finding("ok", "sinks", said)


def _transactions(gauges: list[db.Row]) -> Finding:
    figures = {row["name"]: row["value"] for row in gauges}
    oldest = figures["oldest_transaction_seconds"]
    if oldest > LONGEST_TRANSACTION:
        said = f"one is open since {oldest:.0f} s, and keeps dead rows alive"
        return Finding("warning", "transactions", said, "look at pg_stat_activity, end its session")
    return Finding("ok", "transactions", "none is open for long")


# What is around it


async def _tokens(settings: config.Config) -> Finding:
    from .. import auth

    try:
        await auth.refuse_missing_secret(settings)
    except Misconfigured as error:
        return Finding("wrong", "JWT_SECRET", str(error), "the API doesn't start without")
    return Finding("ok", "JWT_SECRET", "is set" if settings.jwt_secret else "isn't needed")


async def _outside(settings: config.Config) -> AsyncIterator[Finding]:
    if settings.redis_url:
        from ..sinks import redis

        is_alive = await redis.is_alive(settings.redis_url)
        yield (
            Finding("ok", "Redis", "answers")
            if is_alive
            else Finding("warning", "Redis", "doesn't answer", "start it, or unset REDIS_URL")
        )
    yield await _api()


async def _api() -> Finding:
    from .remote import remote

    try:
        where = place.present()
        async with remote(where) as api:
            await api.ask("GET", "/health/ready")
            me: dict[str, Any] = await api.ask("GET", "/auth/me")
    except core.Failure as error:
        first, *rest = str(error).splitlines()
        return Finding("warning", "API", first, " ".join(rest).strip() or "bin/api, orc login URL")
    return Finding("ok", "API", f"{where.url} answers, and knows this key as {me['name']}")
