"""Events and the tasks that listen to them."""

from __future__ import annotations

from conftest import Make, Serve

from orchestrator import auth, db, worker

KEY = {"Authorization": f"Bearer {auth.SYSTEM_AGENT}"}


async def test_an_event_starts_the_task_that_listens_and_its_run_sees_the_event(
    serve: Serve, conn: db.Connection, make: Make
) -> None:
    await db.call(conn, "ensure_system_agent")
    app = await serve()
    said = {
        "title": "T", "schedule_kind": "event",
        "schedule_expr": "orders.* when event.payload.total > 100",
        "payload": {"pipeline": [{"id": "a", "uses": "set",
                                  "with": {"total": "${event.payload.total}"}}]},
    }  # fmt: skip
    assert (await app.client.post("/tasks", json=said, headers=KEY)).status_code == 201
    for total, triggered in ((5, 0), (500, 1)):
        event = {"topic": "orders.created", "payload": {"total": total}}
        answer = await app.client.post("/events", json=event, headers=KEY)
        assert answer.status_code == 202, answer.text
        assert answer.json()["details"]["triggered_tasks"] == triggered
    assert await worker.once(make.config()) == 1
    cursor = await conn.execute("select output from orc.runs")
    assert [row["output"] for row in await cursor.fetchall()] == [{"a": {"total": 500}}]
