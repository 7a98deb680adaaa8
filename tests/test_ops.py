"""The service about itself: processes, gauges, invariants."""

from __future__ import annotations

import pytest
from conftest import Make

from orchestrator import db, relay, scheduler


async def test_the_scheduler_keeps_partitions_and_then_rests(make: Make) -> None:
    async with db.Pool(make.config(), role="orc_worker", application="t") as pool:
        await scheduler.once(pool)
        assert await scheduler.once(pool) == 0


@pytest.mark.parametrize("process", [relay])
async def test_idle_processes_notice_that_the_database_is_there(
    make: Make, process: object
) -> None:
    async with db.Pool(make.config(), role="orc_worker", application="t") as pool:
        assert await process.once(pool) == 0  # type: ignore[attr-defined]


async def test_gauges_are_numbers_with_text_labels(conn: db.Connection) -> None:
    rows = await db.call(conn, "gauges")
    assert {"database_bytes", "connections", "oldest_transaction_seconds"} <= {
        r["name"] for r in rows
    }
    assert all(isinstance(row["value"], float) for row in rows)
    assert all(isinstance(v, str) for row in rows for v in row["labels"].values())
