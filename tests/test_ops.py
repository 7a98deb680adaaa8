"""The service about itself: processes, gauges, invariants."""

from __future__ import annotations

from conftest import Connect, Make

from orchestrator import db, relay, scheduler


async def test_the_scheduler_keeps_partitions_and_then_rests(make: Make) -> None:
    async with db.Pool(make.config(), role="orc_worker", application="t") as pool:
        await scheduler.once(pool)
        assert await scheduler.once(pool) == 0


async def test_a_relay_without_sinks_has_nothing_to_do(make: Make) -> None:
    async with db.Pool(make.config(), role="orc_worker", application="t") as pool:
        assert await relay.once(pool, []) == 0


async def test_gauges_are_numbers_with_text_labels(conn: db.Connection, connect: Connect) -> None:
    await connect()  # what is counted are the others
    rows = await db.call(conn, "gauges")
    assert {"database_bytes", "connections", "oldest_transaction_seconds"} <= {
        r["name"] for r in rows
    }
    assert all(isinstance(row["value"], float) for row in rows)
    assert all(isinstance(v, str) for row in rows for v in row["labels"].values())
