"""Who is calling."""

from __future__ import annotations

import pytest
from conftest import Serve

from orchestrator import auth, db
from orchestrator.auth import SYSTEM_AGENT
from orchestrator.errors import Unauthorized

BEARER = {"Authorization": f"Bearer {SYSTEM_AGENT}"}


async def test_in_development_the_system_agents_id_is_a_key(
    serve: Serve, conn: db.Connection
) -> None:
    await db.call(conn, "ensure_system_agent")
    running = await serve()
    answer = await running.client.get("/auth/me", headers=BEARER)
    assert answer.status_code == 200
    assert answer.json() == {
        "tenant_id": "default",
        "id": SYSTEM_AGENT,
        "kind": "agent",
        "name": "system",
        "scopes": ["admin"],
    }


async def test_in_production_it_is_not(serve: Serve, conn: db.Connection) -> None:
    await db.call(conn, "ensure_system_agent")
    running = await serve(app_env="production")
    assert (await running.client.get("/auth/me", headers=BEARER)).status_code == 401


@pytest.mark.parametrize(
    "client", ["10.0.0.7", "203.0.113.9", "::ffff:10.0.0.7", "", "nonsense", None]
)
async def test_from_elsewhere_it_is_not(serve: Serve, conn: db.Connection, client: str) -> None:
    await db.call(conn, "ensure_system_agent")
    running = await serve()
    with pytest.raises(Unauthorized):
        await auth.authenticate(running.api, f"Bearer {SYSTEM_AGENT}", client, "localhost")


@pytest.mark.parametrize(
    "header",
    [
        "Bearer",
        "Basic YTpi",
        "Bearer nonsense",
        f"Bearer {SYSTEM_AGENT}x",
        f"Token {SYSTEM_AGENT}",
        "\xff",
    ],
)
async def test_any_other_key_is_unknown(serve: Serve, header: str) -> None:
    running = await serve()
    answer = await running.client.get(
        "/auth/me", headers={b"Authorization": header.encode("latin-1")}
    )
    assert answer.status_code == 401


async def test_before_the_first_start_the_agent_is_missing_and_says_so(serve: Serve) -> None:
    running = await serve()
    answer = await running.client.get("/auth/me", headers=BEARER)
    assert answer.status_code == 401
    assert "bin/up" in answer.json()["details"]["hint"]


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1", "[::1]:8080", "LOCALHOST"])
async def test_under_its_own_names_it_is_a_key(
    serve: Serve, conn: db.Connection, host: str
) -> None:
    await db.call(conn, "ensure_system_agent")
    running = await serve()
    answer = await running.client.get("/auth/me", headers={**BEARER, "Host": host})
    assert answer.status_code == 200


@pytest.mark.parametrize("host", ["evil.example:8080", "127.0.0.1.evil.example", "localhost.evil"])
async def test_under_a_foreign_name_that_resolves_to_loopback_it_is_not(
    serve: Serve, conn: db.Connection, host: str
) -> None:
    await db.call(conn, "ensure_system_agent")
    running = await serve()
    answer = await running.client.get("/auth/me", headers={**BEARER, "Host": host})
    assert answer.status_code == 401
