"""Agents and their keys, users and their sessions."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from argon2 import PasswordHasher
from conftest import Connect, Make, Running, Serve
from test_auth_tokens import SECRET, refused_soon

from orchestrator import db
from orchestrator.auth import SYSTEM_AGENT, keys
from orchestrator.auth.passwords import MOST_WAITING, Passwords
from orchestrator.errors import Problem

CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
PASSWORD = "correct horse"
TASK = {"title": "t", "schedule_kind": "event", "schedule_expr": "a.b",
        "payload": {"pipeline": [{"id": "a", "uses": "set", "with": {"x": 1}}]}}  # fmt: skip


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


SYSTEM = bearer(SYSTEM_AGENT)


@pytest.fixture
async def running(serve: Serve, conn: db.Connection) -> Running:
    await db.call(conn, "ensure_system_agent")
    running = await serve(jwt_secret=SECRET)
    running.api.auth.passwords = Passwords(CHEAP)
    return running


async def agent(running: Running, name: str = "a", **said: Any) -> dict[str, Any]:
    answer = await running.client.post("/agents", json={"name": name, **said}, headers=SYSTEM)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def me(running: Running, key: str) -> Any:
    return await running.client.get("/auth/me", headers=bearer(key))


# Agents


async def test_a_key_is_answered_once_and_only_its_hash_stays(
    running: Running, conn: db.Connection
) -> None:
    made = await agent(running, scopes=["tasks:read"], webhook_url="https://example.com/x")
    known = (await me(running, made["key"])).json()
    assert (known["id"], known["scopes"]) == (made["id"], ["tasks:read"])
    again = await running.client.get(f"/agents/{made['id']}", headers=SYSTEM)
    assert "key" not in again.json()
    assert [key["id"] for key in again.json()["keys"]] == [keys.id_of(made["key"])]
    secret = made["key"].split("_")[2]
    for table in ("agent_key", "principal", "audit"):
        cursor = await conn.execute(f"select t::text as row from orchestrator.{table} t".encode())
        assert not any(secret[:20] in row["row"] for row in await cursor.fetchall())
    cursor = await conn.execute("select hash from orchestrator.agent_key")
    assert await cursor.fetchall() == [{"hash": keys.hash_of(made["key"])}]


async def test_a_typo_is_told_without_the_database(running: Running) -> None:
    key = (await agent(running))["key"]
    await running.api.pool.close()
    assert keys.id_of(key)
    for at in range(4, len(key)):
        typo = key[:at] + ("0" if key[at] != "0" else "1") + key[at + 1 :]
        assert keys.id_of(typo) is None
        if at % 16 == 0:
            assert (await me(running, typo)).status_code == 401
    assert (await me(running, key)).status_code != 401, "this one asks"


async def test_a_name_is_taken_once(running: Running) -> None:
    made = await agent(running, "mail")
    again = await running.client.post("/agents", json={"name": "mail"}, headers=SYSTEM)
    assert (again.status_code, again.json()["error"]) == (409, "conflict")
    assert "mail" in again.json()["message"]
    other = await agent(running, "post")
    place = f"/agents/{other['id']}"
    assert (
        await running.client.put(place, json={"name": "mail"}, headers=SYSTEM)
    ).status_code == 409
    assert (
        await running.client.put(place, json={"name": "post"}, headers=SYSTEM)
    ).status_code == 200
    deleted = await running.client.delete(f"/agents/{made['id']}", headers=SYSTEM)
    assert deleted.status_code == 204
    await agent(running, "mail")


@pytest.mark.parametrize(
    "body",
    [{}, {"name": ""}, {"name": "x" * 101}, {"name": "x", "scopes": ["Bad Scope"]},
     {"name": "x", "webhook_url": "ftp://x"}, {"name": "x", "id": SYSTEM_AGENT},
     {"name": "x", "tenant_id": "other"}, {"name": "x", "key": "ork_mine"},
     {"name": "token:ann"}, {"name": "x", "expires_at": "2001-01-01T00:00:00Z"}],
)  # fmt: skip
async def test_a_body_that_makes_no_sense_makes_no_agent(running: Running, body: Any) -> None:
    assert (await running.client.post("/agents", json=body, headers=SYSTEM)).status_code == 422
    listed = (await running.client.get("/agents", headers=SYSTEM)).json()
    assert [one["name"] for one in listed["items"]] == ["system"]


async def test_only_what_is_named_changes(running: Running) -> None:
    made = await agent(running, scopes=["a"], webhook_url="https://example.com")
    place = f"/agents/{made['id']}"
    changed = await running.client.put(place, json={"scopes": ["b", "c"]}, headers=SYSTEM)
    assert changed.json()["scopes"] == ["b", "c"]
    assert changed.json()["webhook_url"] == "https://example.com"
    cleared = await running.client.put(place, json={"webhook_url": None}, headers=SYSTEM)
    assert cleared.json()["webhook_url"] is None
    assert cleared.json()["name"] == "a"


async def test_agents_come_in_pages(running: Running) -> None:
    for number in range(5):
        await agent(running, f"n{number}")
    found, cursor = [], ""
    for _ in range(3):
        page = (await running.client.get(f"/agents?limit=2{cursor}", headers=SYSTEM)).json()
        found += [one["name"] for one in page["items"]]
        cursor = f"&cursor={page['next_cursor']}"
    assert found == ["system", "n0", "n1", "n2", "n3", "n4"]
    assert page["next_cursor"] is None


async def test_a_rotated_key_has_its_grace(running: Running) -> None:
    made = await agent(running)
    place = f"/agents/{made['id']}/rotate_key"
    second = (await running.client.post(place, json={"grace_seconds": 600}, headers=SYSTEM)).json()
    assert {(await me(running, k)).status_code for k in (made["key"], second["key"])} == {200}
    third = (await running.client.post(place, json={}, headers=SYSTEM)).json()
    await refused_soon(lambda: me(running, made["key"]))
    await refused_soon(lambda: me(running, second["key"]))
    assert (await me(running, third["key"])).status_code == 200


async def test_revoked_keys_are_refused_within_a_second_by_every_process(
    running: Running, serve: Serve
) -> None:
    made, other = await agent(running), await serve(jwt_secret=SECRET)
    for process in (running, other):
        assert (await me(process, made["key"])).status_code == 200
    await running.client.post(f"/agents/{made['id']}/revoke_keys", headers=SYSTEM)
    for process in (running, other):
        await refused_soon(lambda process=process: me(process, made["key"]))  # type: ignore[misc]


async def test_an_expired_key_is_refused(running: Running, conn: db.Connection) -> None:
    made = await agent(running, expires_at="2999-01-01T00:00:00Z")
    assert (await me(running, made["key"])).status_code == 200
    await conn.execute("update orchestrator.agent_key set expires_at = now()")
    await refused_soon(lambda: me(running, made["key"]))


async def test_a_busy_key_costs_few_look_ups_and_is_noted_once(
    running: Running, conn: db.Connection
) -> None:
    key, asked = (await agent(running))["key"], 0
    call = running.api.pool.call

    async def counted(verb: str, /, **arguments: Any) -> Any:
        nonlocal asked
        asked += verb == "check_key"
        return await call(verb, **arguments)

    running.api.pool.call = counted  # type: ignore[method-assign]
    started = time.monotonic()
    await asyncio.gather(*(me(running, key) for _ in range(100)))
    assert asked <= 1 + (time.monotonic() - started) / 0.5
    cursor = await conn.execute("select last_used_at, xmin from orchestrator.agent_key")
    first = await cursor.fetchall()
    assert first[0]["last_used_at"]
    await db.call(conn, "check_key", id=keys.id_of(key), hash=keys.hash_of(key))
    cursor = await conn.execute("select last_used_at, xmin from orchestrator.agent_key")
    assert await cursor.fetchall() == first, "within a minute it isn't written again"


async def test_neither_the_system_agent_nor_the_caller_is_deleted(running: Running) -> None:
    admin = await agent(running, scopes=["admin"])
    for id, key in ((SYSTEM_AGENT, admin["key"]), (admin["id"], admin["key"])):
        answer = await running.client.delete(f"/agents/{id}", headers=bearer(key))
        assert answer.status_code == 400, answer.text


async def test_an_agent_with_active_tasks_is_deleted_by_force_and_its_runs_stay(
    running: Running, conn: db.Connection
) -> None:
    made = await agent(running)
    task = await running.client.post("/tasks", json=TASK, headers=bearer(made["key"]))
    assert task.status_code == 201, task.text
    assert task.json()["created_by"] == made["id"]
    run = await running.client.post(f"/tasks/{task.json()['id']}/run_now", headers=SYSTEM)
    place = f"/agents/{made['id']}"
    refused = await running.client.delete(place, headers=SYSTEM)
    assert refused.status_code == 409
    assert "force=true" in refused.json()["details"]["hint"]
    assert (await running.client.delete(f"{place}?force=true", headers=SYSTEM)).status_code == 204
    assert (await running.client.get(place, headers=SYSTEM)).status_code == 404
    await refused_soon(lambda: me(running, made["key"]))
    (row,) = await db.call(
        conn, "follow_run", tenant="default", run=run.json()["details"]["run_id"]
    )
    assert row["state"] == "canceled"
    seen = await running.client.get(f"/tasks/{task.json()['id']}", headers=SYSTEM)
    assert (seen.json()["status"], seen.json()["created_by"]) == ("canceled", made["id"])


async def test_the_owner_issues_the_first_key(running: Running, conn: db.Connection) -> None:
    key = (await db.call_one(conn, "issue_key", tenant="default", agent="system"))["issue_key"]
    production = running.api.config
    assert (await me(running, key)).json()["id"] == SYSTEM_AGENT, production


# Users


async def user(running: Running, name: str = "ann", **said: Any) -> dict[str, Any]:
    body = {"name": name, "password": PASSWORD, **said}
    answer = await running.client.post("/auth/users", json=body, headers=SYSTEM)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def log_in(running: Running, password: str = PASSWORD, name: str = "ann") -> Any:
    body = {"username": name, "password": password}
    return await running.client.post("/auth/token", json=body)


async def refresh(running: Running, token: str) -> Any:
    return await running.client.post("/auth/refresh", json={"refresh_token": token})


async def test_a_user_logs_in_by_json_or_by_form(running: Running) -> None:
    made = await user(running, scopes=["tasks:read"])
    form = {"username": "ann", "password": PASSWORD, "grant_type": "password", "scope": ""}
    for answer in (await log_in(running), await running.client.post("/auth/token", data=form)):
        assert answer.status_code == 200, answer.text
        assert answer.headers["cache-control"] == "no-store"
        pair = answer.json()
        assert (pair["token_type"], pair["expires_in"]) == ("bearer", 1800)
        known = (await me(running, pair["access_token"])).json()
        assert (known["id"], known["scopes"]) == (made["id"], ["tasks:read"])
        assert (await me(running, pair["refresh_token"])).status_code == 401


@pytest.mark.parametrize(
    "form", [b"username=ann&username=bob&password=x", b"username=%ff&password=x", b"username=ann",
             b"username=ann&password=x&is_admin=1"],
)  # fmt: skip
async def test_a_bad_form_is_422(running: Running, form: bytes) -> None:
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = await running.client.post("/auth/token", content=form, headers=kind)
    assert answer.status_code == 422


async def test_a_wrong_password_and_an_unknown_name_are_told_alike(
    running: Running, conn: db.Connection
) -> None:
    await user(running)
    wrong, unknown = await log_in(running, "nonsense"), await log_in(running, name="bob")
    assert wrong.status_code == unknown.status_code == 401
    assert wrong.json()["message"] == unknown.json()["message"]
    cursor = await conn.execute("select hash from orchestrator.password")
    (row,) = await cursor.fetchall()
    assert row["hash"].startswith("$argon2id$")
    assert PASSWORD not in row["hash"]


async def test_an_unknown_name_costs_a_hash_too() -> None:
    passwords, compared = Passwords(CHEAP), []
    verify = passwords.hasher.verify

    class Watched:
        def verify(self, hash: str, password: str) -> bool:
            compared.append(hash)
            return verify(hash, password)

        hash = staticmethod(CHEAP.hash)

    passwords.hasher = Watched()  # type: ignore[assignment]
    assert not await passwords.fits(None, "x")
    assert len(compared) == 1 and compared[0].startswith("$argon2id$")


async def test_too_many_passwords_at_once_are_told_to_come_later() -> None:
    passwords = Passwords(CHEAP)
    hash = await passwords.hash("x" * 8)
    asked = [passwords.fits(hash, "x" * 8) for _ in range(MOST_WAITING + 10)]
    done = await asyncio.gather(*asked, return_exceptions=True)
    refused = [one for one in done if isinstance(one, Problem)]
    assert done.count(True) == MOST_WAITING
    assert {one.status for one in refused} == {429}


async def test_newer_parameters_take_over_at_the_next_login(
    running: Running, conn: db.Connection
) -> None:
    await user(running)
    running.api.auth.passwords = Passwords(
        PasswordHasher(time_cost=2, memory_cost=16, parallelism=1)
    )
    assert (await log_in(running)).status_code == 200
    cursor = await conn.execute("select hash from orchestrator.password")
    (row,) = await cursor.fetchall()
    assert "m=16,t=2" in row["hash"]
    assert (await log_in(running)).status_code == 200


async def test_fifty_redemptions_at_once_at_two_processes_give_one_successor(
    running: Running, serve: Serve, conn: db.Connection
) -> None:
    await user(running)
    spent = (await log_in(running)).json()["refresh_token"]
    places = [running, await serve(jwt_secret=SECRET)]
    answers = await asyncio.gather(*(refresh(places[n % 2], spent) for n in range(50)))
    assert {answer.status_code for answer in answers} == {200}
    (successor,) = {answer.json()["refresh_token"] for answer in answers}
    cursor = await conn.execute("select generation from orchestrator.session")
    assert await cursor.fetchall() == [{"generation": 2}]
    assert (await refresh(running, successor)).status_code == 200


async def test_a_spent_token_revokes_its_family(running: Running) -> None:
    await user(running)
    first = (await log_in(running)).json()
    second = (await refresh(running, first["refresh_token"])).json()
    third = (await refresh(running, second["refresh_token"])).json()
    assert (await me(running, third["access_token"])).status_code == 200
    bystander = (await log_in(running)).json()
    assert (await refresh(running, first["refresh_token"])).status_code == 401
    assert (await refresh(running, third["refresh_token"])).status_code == 401
    await refused_soon(lambda: me(running, third["access_token"]))
    assert (await refresh(running, bystander["refresh_token"])).status_code == 200
    audit = (await running.client.get("/audit?action=end_session", headers=SYSTEM)).json()
    assert audit["items"][0]["details"]["why"] == "a spent token was used again"
    assert audit["items"][0]["actor_name"] == "ann"


async def test_a_redemption_waits_for_another_and_sees_what_it_did(
    conn: db.Connection, connect: Connect
) -> None:
    hash = CHEAP.hash(PASSWORD)
    made = await db.call_one(conn, "create_user", tenant="t", name="ann", password_hash=hash)
    place = {"tenant": "t", "principal": made["create_user"]["id"]}
    session = (await db.call_one(conn, "begin_session", **place))["begin_session"]
    first, late = await connect(), await connect()
    async with first.transaction():
        for generation in (1, 2):
            await db.call_one(first, "renew_session", session=session, generation=generation)
        redeemed = asyncio.create_task(
            db.call(late, "renew_session", session=session, generation=1)
        )
        await is_blocked(conn, late)
    assert await redeemed == [], "by now its generation is long spent"
    cursor = await conn.execute("select generation, ended_how from orchestrator.session")
    assert await cursor.fetchall() == [
        {"generation": 3, "ended_how": "a spent token was used again"}
    ]


async def is_blocked(conn: db.Connection, other: db.Connection) -> None:
    look = "select cardinality(pg_blocking_pids(%s)) as n"
    while True:
        row = await (await conn.execute(look, [other.info.backend_pid])).fetchone()
        if row is not None and row["n"]:
            return
        await asyncio.sleep(0.01)


async def test_after_ten_seconds_the_predecessor_is_spent(
    running: Running, conn: db.Connection
) -> None:
    await user(running)
    first = (await log_in(running)).json()
    second = (await refresh(running, first["refresh_token"])).json()
    await conn.execute("update orchestrator.session set rotated_at = now() - interval '11 seconds'")
    assert (await refresh(running, first["refresh_token"])).status_code == 401
    assert (await refresh(running, second["refresh_token"])).status_code == 401


async def test_a_forged_refresh_token_ends_nothing(running: Running) -> None:
    await user(running)
    token = (await log_in(running)).json()["refresh_token"]
    head, session, generation, mac = token.split("_")
    forged = [f"{head}_{session}_{n}_{mac}" for n in ("0", "2", "01", "9" * 9)]
    forged += [f"{head}_{session}_{generation}_{'0' * 64}", token + "0", token.upper(), "x"]
    for one in forged:
        assert (await refresh(running, one)).status_code == 401
    assert (await refresh(running, token)).status_code == 200


async def test_logging_out_ends_access_too(running: Running) -> None:
    await user(running)
    pair = (await log_in(running)).json()
    assert (await me(running, pair["access_token"])).status_code == 200
    body = {"refresh_token": pair["refresh_token"]}
    assert (await running.client.post("/auth/logout", json=body)).status_code == 204
    assert (await refresh(running, pair["refresh_token"])).status_code == 401
    await refused_soon(lambda: me(running, pair["access_token"]))
    assert (await running.client.post("/auth/logout", json=body)).status_code == 204, "again"


@pytest.mark.parametrize("changes", [{"disabled": True}, {"password": "another one"}])
async def test_a_changed_user_is_logged_out(running: Running, changes: dict[str, Any]) -> None:
    made = await user(running)
    pair = (await log_in(running)).json()
    assert (await me(running, pair["access_token"])).status_code == 200
    place = f"/auth/users/{made['id']}"
    assert (await running.client.patch(place, json=changes, headers=SYSTEM)).status_code == 200
    assert (await log_in(running)).status_code == 401
    assert (await refresh(running, pair["refresh_token"])).status_code == 401
    await refused_soon(lambda: me(running, pair["access_token"]))


async def test_users_are_listed_without_their_passwords(running: Running) -> None:
    await user(running)
    answer = await running.client.get("/auth/users", headers=SYSTEM)
    (known,) = answer.json()["items"]
    assert (known["name"], known["disabled"], known["is_external"]) == ("ann", False, False)
    assert "argon2" not in answer.text


async def test_tokens_of_another_secret_or_key_are_refused(
    running: Running, serve: Serve, conn: db.Connection, make: Make
) -> None:
    await user(running)
    pair = (await log_in(running)).json()
    other = await serve(jwt_secret=SECRET[::-1])
    assert (await me(other, pair["access_token"])).status_code == 401
    assert (await refresh(other, pair["refresh_token"])).status_code == 401
    await db.call(conn, "add_token_key", kid="next")
    await asyncio.sleep(0.5)  # how long keys are believed
    newer = (await refresh(running, pair["refresh_token"])).json()
    assert (await me(running, newer["access_token"])).status_code == 200
    await db.call(conn, "retire_token_key", kid="next")
    await refused_soon(lambda: me(running, newer["access_token"]))
    assert (await me(running, pair["access_token"])).status_code == 200
