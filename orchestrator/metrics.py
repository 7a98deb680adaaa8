"""What Prometheus is told: what the process counts, and at the API what the database knows.

Figures of the database are the same whichever API says them. Labels are words of a fixed list, or
names that the operator gave: routes, sinks, tables.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import psycopg
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder

from .db import Pool, Row
from .errors import Unavailable
from .telemetry import METRICS

Samples = Iterable[tuple[Mapping[str, str], float]]

MEANING = {
    "connections": "Sessions of the database, by state.",
    "database_bytes": "Size of the database.",
    "default_partition_rows": "Rows outside of the partitions of their table: 0 when all is well.",
    "live_runs": "Runs that have not ended, by state; counted up to 10000 (running: 100000).",
    "occurrences": "Instants of tasks of which something is still to be decided; up to 1000.",
    "oldest_snapshot_transactions": "How many transactions the oldest snapshot is behind.",
    "oldest_transaction_seconds": "Age of the oldest open transaction.",
    "outbox_aside": "Messages that were moved aside, by sink.",
    "outbox_backlog": "Messages that wait to be sent, by sink.",
    "outbox_oldest_age_seconds": "How long the oldest message has waited, by sink.",
    "partitions": "Partitions, by table.",
    "plans_wanting_instants": "Tasks whose next instants are to be computed; up to 1000.",
    "queue_oldest_age_seconds": "How long the oldest run that is due has waited for a worker.",
    "runs_finished_total": "Runs that ended, by outcome.",
    "schedule_lateness_seconds": "How long ago the next instant of a task should have been fired.",
    "schedulers": "Schedulers that are alive.",
    "sink_up": "Whether a sink can be reached.",
    "worker_slots": "Slots of living workers, busy or free.",
    "workers": "Workers that are alive, and those that went silent.",
}
"""Of each figure of `orc.gauges`: a name that ends in _total counts up."""


def family(name: str, meaning: str, samples: Samples) -> Metric:
    """All samples have the same labels."""
    listed = list(samples)
    labels = sorted(listed[0][0]) if listed else []
    kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
    made = kind(f"orchestrator_{name}", meaning, labels=labels)
    for said, value in listed:
        made.add_metric([said[label] for label in labels], value)
    return made


def told(accept: str, *families: Metric) -> tuple[bytes, str]:
    """The exposition and its type: OpenMetrics for whoever asks for it."""
    encode, kind = choose_encoder(accept)
    return encode(_Everything(families)), kind


class _Everything:
    def __init__(self, families: Iterable[Metric]) -> None:
        self.families = families

    def collect(self) -> Iterator[Metric]:
        yield from METRICS.collect()
        yield from self.families


class Gauges:
    """The database's figures, asked for at most once in `KEEP_SECONDS` however many scrape."""

    KEEP_SECONDS = 5.0

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.asked_at = -self.KEEP_SECONDS
        self.lock = asyncio.Lock()

    async def fresh(self, pool: Pool) -> list[Row]:
        async with self.lock:
            if time.monotonic() - self.asked_at >= self.KEEP_SECONDS:
                try:
                    await pool.call("tally_runs")
                    self.rows = await pool.call("gauges")
                except (psycopg.Error, Unavailable):
                    self.rows = []
                self.asked_at = time.monotonic()
        return self.rows


def of_database(rows: list[Row]) -> list[Metric]:
    by_name: dict[str, list[tuple[dict[str, str], float]]] = {}
    for row in rows:
        by_name.setdefault(row["name"], []).append((row["labels"], row["value"]))
    up = family("database_up", "Whether the database answered.", [({}, float(bool(rows)))])
    return [
        up,
        *(family(name, MEANING.get(name, name), samples) for name, samples in by_name.items()),
    ]


def of_pool(stats: Mapping[str, int]) -> list[Metric]:
    size, idle = stats.get("pool_size", 0), stats.get("pool_available", 0)
    waited = stats.get("requests_wait_ms", 0) / 1000
    return [
        family("pool_connections", "Connections of this process to the database, by state.",
               [({"state": "idle"}, idle), ({"state": "busy"}, size - idle)]),
        family("pool_connections_limit", "How many there may be.",
               [({}, stats.get("pool_max", 0))]),
        family("pool_waiting", "Calls that wait for a connection.",
               [({}, stats.get("requests_waiting", 0))]),
        family("pool_calls_total", "Calls that asked for a connection.",
               [({}, stats.get("requests_num", 0))]),
        family("pool_calls_failed_total", "Calls that got none.",
               [({}, stats.get("requests_errors", 0))]),
        family("pool_wait_seconds_total", "Time that calls have waited for a connection.",
               [({}, waited)]),
    ]  # fmt: skip


def of_streams(open_streams: Mapping[str, int], waiting: int) -> list[Metric]:
    kinds = ("events", "run", "task")
    return [
        family("streams", "Clients of server-sent streams, by what they watch.",
               [({"of": kind}, open_streams.get(kind, 0)) for kind in kinds]),
        family("http_requests_waiting", "Requests that wait for the end of a run.",
               [({}, waiting)]),
    ]  # fmt: skip


def of_worker(slots: int, taken: int, counts: Mapping[str, Any]) -> list[Metric]:
    states = (("busy", taken), ("free", max(0, slots - taken)))
    return [
        family("worker_process_slots", "Slots of this worker, busy or free.",
               [({"state": state}, number) for state, number in states]),
        family("worker_process_runs_total", "Runs of this worker, by what became of its claims.",
               [({"event": event}, number) for event, number in counts.items()]),
    ]  # fmt: skip
