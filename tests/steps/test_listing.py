"""GET /tools, and the workers who look at MCP servers for it."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import mcp_types
import pytest
from conftest import Make, Serve
from crew import Crew, until
from openapi_spec_validator.validation.validators import OpenAPIV31SpecValidator

from orchestrator import db, openapi, steps
from orchestrator.auth import SYSTEM_AGENT
from orchestrator.steps import builtins, listing, survey
from orchestrator.steps.mcp.session import Tool
from orchestrator.steps.survey import Survey

BEARER = {"Authorization": f"Bearer {SYSTEM_AGENT}"}
WILD = [sys.executable, "-I", "-S", str(Path(__file__).parent / "servers" / "wild.py")]

TOLD = {name for name, kind in builtins().items() if not kind.inner}


class Files:
    def __init__(self, folder: Path) -> None:
        self.servers, self.catalog = folder / "mcp.json", folder / "tools.json"
        self.has(wild={"command": WILD[0], "args": WILD[1:]})
        self.catalog.write_text("[]")

    def has(self, **servers: Any) -> None:
        self.servers.write_text(json.dumps({"mcpServers": servers}))


@pytest.fixture
async def files(tmp_path: Path) -> AsyncIterator[Files]:
    yield Files(tmp_path)
    await steps.close()


async def told(serve: Serve, conn: db.Connection, path: str = "/tools", **config: Any) -> Any:
    await db.call(conn, "ensure_system_agent")
    running = await serve(**config)
    answer = await running.client.get(path, headers=BEARER)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_every_kind_is_listed_with_its_schema_and_what_it_needs(
    serve: Serve, conn: db.Connection
) -> None:
    page = await told(serve, conn, python_modules=("shop",))
    listed = {tool["name"]: tool for tool in page["items"]}
    assert listed.keys() == TOLD
    assert all(tool["description"] and tool["input_schema"] for tool in listed.values())
    assert {name: tool["needs"] for name, tool in listed.items() if tool["needs"]} == {
        "shell.run": "ORC_SHELL_COMMANDS",
        "sql.query": "ORC_SQL_URL",
        "email.send": "ORC_SMTP_URL",
    }
    assert listed["http.request"]["keyed"]
    assert not listed["set"]["recorded"]
    assert not listed["set"]["outside"]
    assert "follow_redirects" in json.dumps(listed["http.request"]["input_schema"])


async def test_a_caller_sees_the_tools_of_the_catalogue_whose_scopes_it_has(
    serve: Serve, conn: db.Connection, files: Files
) -> None:
    shop = {"transport": "http", "endpoint": "http://x/"}
    entries: list[dict[str, Any]] = [
        {"address": "shop.open", "description": "for all", "input_schema": {"type": "object"}},
        {"address": "shop.price", "scopes": ["shop:read"]},
        {"address": "shop.sell", "scopes": ["shop:read", "shop:write"]},
    ]
    files.catalog.write_text(json.dumps([{**shop, **entry} for entry in entries]))
    path = "/tools?source=catalog"
    page = await told(serve, conn, path, tool_catalog_path=files.catalog)
    assert [tool["name"] for tool in page["items"]] == ["shop.open", "shop.price", "shop.sell"]
    await conn.execute("update orchestrator.principal set scopes = '{tools:read,shop:read}'")
    page = await told(serve, conn, path, tool_catalog_path=files.catalog)
    assert [tool["name"] for tool in page["items"]] == ["shop.open", "shop.price"]
    assert page["items"][0]["input_schema"] == {"type": "object"}
    await conn.execute("update orchestrator.principal set scopes = '{shop:read}'")
    running = await serve()
    assert (await running.client.get("/tools", headers=BEARER)).status_code == 403
    assert (await running.client.get("/tools")).status_code == 401


async def test_pages_follow_each_other(serve: Serve, conn: db.Connection) -> None:
    found: list[str] = []
    page: Any = {"next_cursor": ""}
    while page["next_cursor"] is not None:
        page = await told(serve, conn, f"/tools?limit=4&cursor={page['next_cursor']}")
        found += [tool["name"] for tool in page["items"]]
    assert found == sorted(TOLD)
    page = await told(serve, conn, "/tools?q=SEND")
    assert [tool["name"] for tool in page["items"]] == ["email.send", "webhook.send"]
    running = await serve()
    wrong = await running.client.get("/tools?limit=201", headers=BEARER)
    assert wrong.status_code == 422


async def test_a_worker_asks_the_servers_and_the_api_lists_what_it_saw(
    serve: Serve, conn: db.Connection, make: Make, files: Files
) -> None:
    broken = {"command": sys.executable, "args": ["-c", "raise SystemExit('no key')"]}
    files.has(wild={"command": WILD[0], "args": WILD[1:]}, broken=broken)
    crew = Crew(make.config(mcp_servers_path=files.servers))
    crew.worker()

    async def reported() -> bool:
        rows = await db.call(conn, "list_tools")
        return len({row["server"] for row in rows if row["seen_at"] or row["problem"]}) == 2

    await until(reported)
    await crew.end()
    page = await told(serve, conn, "/tools?source=mcp", mcp_servers_path=files.servers)
    listed = {tool["name"]: tool for tool in page["items"]}
    assert listed["wild.strict"]["input_schema"]["required"] == ["n"]
    assert listed["wild.strict"]["output_schema"]["type"] == "object"
    assert listed["wild.strict"]["provider"] == "wild"
    assert listed["wild.strict"]["seen_at"]
    states = {server["name"]: server for server in page["servers"]}
    assert "no key" in states["broken"]["problem"]
    assert states["broken"]["seen_at"] is None
    assert states["wild"]["problem"] is None
    files.has()
    page = await told(serve, conn, "/tools?source=mcp", mcp_servers_path=files.servers)
    assert page["items"] == page["servers"] == []


async def later(conn: db.Connection, seconds: int) -> None:
    await conn.execute(
        "update orchestrator.tool_server set"
        " asked_at = asked_at - %(s)s * interval '1 s', seen_at = seen_at - %(s)s * interval '1 s'",
        {"s": seconds},
    )


async def test_each_server_is_asked_by_one_worker_and_again_when_it_is_time(
    conn: db.Connection, make: Make, files: Files
) -> None:
    config = make.config(mcp_servers_path=files.servers)
    first, second = Survey(config), Survey(config)
    assert (await first.once(), await second.once(), await first.once()) == (1, 0, 0)
    files.has(wild={"command": WILD[0], "args": [*WILD[1:], "deaf"]})
    assert (await first.once(), await first.once()) == (1, 0)
    await later(conn, 3500)
    assert await first.once() == 0
    await later(conn, 110)
    assert await first.once() == 1


async def test_what_a_server_said_stays_while_it_has_a_problem(
    conn: db.Connection, make: Make, files: Files
) -> None:
    asking = Survey(make.config(mcp_servers_path=files.servers))
    await asking.once()
    files.has(wild={"command": "/does/not/exist"})
    assert await asking.once() == 1
    rows = await db.call(conn, "list_tools")
    assert len(rows) > 5
    assert {"can't be started" in row["problem"] for row in rows} == {True}
    assert await asking.once() == 0
    await later(conn, 61)
    assert await asking.once() == 1  # it may be well again


def offered(name: str, description: str = "", **schema: Any) -> Tool:
    return Tool(mcp_types.Tool(name=name, description=description, input_schema=schema))


def test_a_server_that_offers_too_much_is_listed_as_far_as_there_is_room() -> None:
    deep: Any = {}
    for _ in range(40):
        deep = {"items": deep}
    kept = survey._kept("s", [
        offered("fine", type="object"),
        offered("vast", default="x" * 1_100_000),
        offered("deep", **deep),
        offered("nul", "a\0b"),
    ])  # fmt: skip
    assert [tool["name"] for tool in kept] == ["fine", "vast", "deep"]
    assert [tool["input_schema"] for tool in kept] == [{"type": "object"}, None, None]


async def test_without_servers_nothing_is_asked(make: Make) -> None:
    config = make.config(database_url="postgresql://nobody@127.0.0.1:1/none")
    assert await Survey(config).once() == 0


async def test_a_catalogue_that_can_not_be_read_is_said_and_hides_nothing_else(
    serve: Serve, conn: db.Connection, files: Files
) -> None:
    files.catalog.write_text("[")
    page = await told(serve, conn, tool_catalog_path=files.catalog)
    assert page["problems"] == ["TOOL_CATALOG_PATH names a file that can't be used"]
    assert len(page["items"]) == len(TOLD)


def test_the_documentation_has_the_route() -> None:
    document = openapi.document("x", "1", "y", listing.ENDPOINTS)
    OpenAPIV31SpecValidator(document).validate()
    route = document["paths"]["/tools"]["get"]
    assert route["security"] == [{"bearer": ["tools:read"]}]
    assert "seen_at" in document["components"]["schemas"]["Tool"]["properties"]
