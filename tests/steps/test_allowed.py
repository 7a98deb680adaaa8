"""A caller stores only what it may use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Serve

from orchestrator import db

CATALOG = [
    {"address": "crm.find", "transport": "http", "endpoint": "http://127.0.0.1:1/f"},
    {"address": "bank.pay", "transport": "http", "endpoint": "http://127.0.0.1:1/p",
     "scopes": ["bank:pay"]},
]  # fmt: skip


def step(uses: str, **arguments: Any) -> dict[str, Any]:
    return {"id": "a", "uses": uses, "with": arguments}


PAY = step("bank.pay", amount=1)
CHILD = {"id": "c", "uses": "set", "with": {"x": 1}}
FORBIDDEN: dict[str, Any] = {
    "a step": [PAY],
    "by its other name": {"tasks": [{"id": "a", "handler": "bank.pay", "inputs": {}}]},
    "among others": [{"id": "b", "parallel": {"one": [CHILD], "two": [PAY]}}],
    "in a branch": [{"id": "b", "steps": [PAY], "if": "false"}],
    "when another fails": [{"id": "b", "uses": "set", "catch": [PAY]}],
    "at the end": {"pipeline": [CHILD], "finally": [PAY]},
    "in a child": [step("flow.run", pipeline=[PAY])],
    "in a child of a child": [step("flow.run", pipeline=[step("flow.run", pipeline=[PAY])])],
    "in a child of the parameters": [step("flow.run", pipeline="${params.p}")],
    "in a child whose tool is a parameter": [step("flow.run", pipeline=[step("${params.p}")])],
    "in a child one of whose steps is": [step("flow.run", pipeline=["${params.p}"])],
    "in a child by arguments of the parameters": [
        {"id": "a", "uses": "flow.run", "with": "${params.all}"}
    ],
}
ALLOWED: dict[str, Any] = {
    "what needs no scope": [step("crm.find", name="x")],
    "a child of its own": [step("flow.run", pipeline=[step("set", x="$${params.x}")], input={})],
    "a child that is stored": [step("flow.run", pipeline="019c2f6e-5d00-7a41-8c1f-2b7de7a90c55")],
    "a word that is a tool": [step("set", word="bank.pay")],
}


async def store(
    serve: Serve,
    conn: db.Connection,
    folder: Path,
    document: Any,
    *scopes: str,
    name: str = "a",
    **rule: str,
) -> Any:
    file = folder / "catalog.json"
    file.write_text(json.dumps(CATALOG))
    made = await db.call_one(conn, "create_agent", tenant="t", name=name, scopes=list(scopes))
    running = await serve(app_env="production", tool_catalog_path=file)
    payload = document if isinstance(document, dict) else {"pipeline": document}
    rule = {"schedule_kind": "event", "schedule_expr": "x", **rule}
    body = {"title": "t", **rule, "payload": payload}
    headers = {"Authorization": f"Bearer {made['create_agent']['key']}"}
    return await running.client.post("/tasks", json=body, headers=headers)


@pytest.mark.parametrize("document", FORBIDDEN.values(), ids=FORBIDDEN)
async def test_a_tool_whose_scope_is_missing_isnt_stored(
    serve: Serve, conn: db.Connection, tmp_path: Path, document: Any
) -> None:
    answer = await store(serve, conn, tmp_path, document, "tasks:write")
    assert answer.status_code == 403, answer.text
    assert "bank:pay" in answer.json()["message"]
    cursor = await conn.execute("select from orchestrator.pipeline")
    assert cursor.rowcount == 0


@pytest.mark.parametrize("document", ALLOWED.values(), ids=ALLOWED)
async def test_what_needs_no_scope_is(
    serve: Serve, conn: db.Connection, tmp_path: Path, document: Any
) -> None:
    answer = await store(serve, conn, tmp_path, document, "tasks:write")
    assert answer.status_code == 201, answer.text


@pytest.mark.parametrize("scopes", [("tasks:write", "bank:pay"), ("any",), ("admin",)])
async def test_with_the_scope_it_is(
    serve: Serve, conn: db.Connection, tmp_path: Path, scopes: tuple[str, ...]
) -> None:
    assert (await store(serve, conn, tmp_path, [PAY], *scopes)).status_code == 201


async def test_a_probe_may_use_no_more(serve: Serve, conn: db.Connection, tmp_path: Path) -> None:
    for uses, status in (("crm.find", 201), ("bank.pay", 403)):
        payload = {"pipeline": [CHILD], "probe": {"uses": uses, "with": {}}}
        rule = {"schedule_kind": "condition", "schedule_expr": "every 5m when result.x > 0"}
        answer = await store(serve, conn, tmp_path, payload, "tasks:write", name=uses, **rule)
        assert answer.status_code == status, answer.text


async def test_a_catalogue_that_cannot_be_read_lets_nothing_be_stored(
    serve: Serve, conn: db.Connection, tmp_path: Path
) -> None:
    made = await db.call_one(conn, "create_agent", tenant="t", name="a", scopes=["any"])
    file = tmp_path / "catalog.json"
    file.write_text("[{")
    running = await serve(app_env="production", tool_catalog_path=file)
    body = {"title": "t", "schedule_kind": "event", "schedule_expr": "x",
            "payload": {"pipeline": [CHILD]}}  # fmt: skip
    headers = {"Authorization": f"Bearer {made['create_agent']['key']}"}
    answer = await running.client.post("/tasks", json=body, headers=headers)
    assert answer.status_code == 503
