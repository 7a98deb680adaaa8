"""Tasks end to end: the API makes them, schedulers fire them, workers run them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from conftest import Make, Serve

from orchestrator import auth, db, scheduler, worker

KEY = {"Authorization": f"Bearer {auth.SYSTEM_AGENT}"}
SET = {"pipeline": [{"id": "a", "uses": "set", "with": {"x": 1}}]}


def task(**said: Any) -> dict[str, Any]:
    given = {"title": "T", "schedule_kind": "cron", "schedule_expr": "30 8 * * *", "payload": SET}
    return {**given, **said}


async def test_a_task_is_made_and_says_when_it_runs_next(serve: Serve, conn: db.Connection) -> None:
    await db.call(conn, "ensure_system_agent")
    app = await serve()
    answer = await app.client.post("/tasks", json=task(), headers=KEY)
    assert answer.status_code == 201, answer.text
    made = answer.json()
    at = datetime.fromisoformat(made["next_run_at"])
    assert at > datetime.now(UTC) and at - datetime.now(UTC) <= timedelta(days=1)
    assert (made["status"], made["version"], answer.headers["etag"]) == ("active", 1, '"1"')
    again = await app.client.get(f"/tasks/{made['id']}", headers=KEY)
    assert again.json() == made


async def test_a_single_time_fires_once_and_completes_the_task(
    serve: Serve, conn: db.Connection, make: Make
) -> None:
    await db.call(conn, "ensure_system_agent")
    app = await serve()
    said = task(schedule_kind="once", schedule_expr=datetime.now(UTC).isoformat())
    made = (await app.client.post("/tasks", json=said, headers=KEY)).json()
    async with db.Pool(make.config(), role="orc_worker", application="t") as pool:
        await scheduler.once(pool)
    assert await worker.once(make.config()) == 1
    found = (await app.client.get(f"/tasks/{made['id']}", headers=KEY)).json()
    assert (found["status"], found["next_run_at"]) == ("completed", None)
    cursor = await conn.execute("select kind, state, task_id, output from orc.runs")
    row = await cursor.fetchone()
    assert row is not None
    assert (row["kind"], row["state"], str(row["task_id"])) == ("task", "succeeded", made["id"])
