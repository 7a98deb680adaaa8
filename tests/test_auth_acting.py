"""Who acts is in the transaction: scopes, ownership, other tenants, row-level security, audit."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from itertools import product
from typing import Any, get_args
from uuid import UUID, uuid4

import msgspec
import psycopg
import pytest
from conftest import Connect, Make, Running, Serve
from psycopg import sql
from psycopg.types.json import Jsonb

from orchestrator import api as http
from orchestrator import db, openapi
from orchestrator.errors import Forbidden, NotFound
from orchestrator.wire import Endpoint

PIPELINE = [{"id": "a", "uses": "set", "with": {"x": 1}}]
TASK = {"title": "t", "schedule_kind": "cron", "schedule_expr": "0 0 * * *",
        "payload": {"pipeline": PIPELINE}}  # fmt: skip
DOCUMENT = openapi.document("t", "0", "t", http.ENDPOINTS)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
async def running(serve: Serve) -> Running:
    return await serve(app_env="production", rate_limit="none")


async def an_agent(conn: db.Connection, tenant: str, name: str, *scopes: str) -> dict[str, Any]:
    row = await db.call_one(
        conn, "create_agent", tenant=tenant, name=name, scopes=list(scopes) or ["any"]
    )
    made: dict[str, Any] = row["create_agent"]
    return made


# Every route with an id


QUERIES = {"why_not": {"instant": "2026-01-01T00:00:00Z"}}
GUARDED = [e for e in http.ENDPOINTS if e.scope is not None]
WITH_IDS = [e for e in GUARDED if "{" in e.path]


def sample(endpoint: Endpoint) -> Any:
    """The body that the document shows."""
    path = openapi.PARAMETER.sub(r"{\1}", endpoint.path)
    said = DOCUMENT["paths"][path][endpoint.method.lower()].get("requestBody")
    return said and said["content"]["application/json"]["example"]


async def ask(running: Running, endpoint: Endpoint, ids: dict[str, str], key: str) -> Any:
    path = re.sub(r"\{(\w+)(?::\w+)?\}", lambda found: ids[found[1]], endpoint.path)
    return await running.client.request(
        endpoint.method, path, headers=bearer(key), json=sample(endpoint),
        params=QUERIES.get(endpoint.verb),
    )  # fmt: skip


async def things(running: Running, conn: db.Connection, tenant: str) -> dict[str, str]:
    """One of each kind that a path may name, of a tenant. A kind that comes later is added here."""
    agent = await an_agent(conn, tenant, "owner", "any")
    made = await running.client.post("/tasks", json=TASK, headers=bearer(agent["key"]))
    assert made.status_code == 201, made.text
    task = made.json()["id"]
    run = await running.client.post(f"/tasks/{task}/run_now", headers=bearer(agent["key"]))
    hash = "$argon2id$v=19$m=65536,t=3,p=4$c2FsdA$aGFzaA"
    user = await db.call_one(conn, "create_user", tenant=tenant, name="u", password_hash=hash)
    return {
        "task": task, "run": run.json()["details"]["run_id"], "agent": agent["id"],
        "user": user["create_user"]["id"], "step": "a", "sink": "events",
    }  # fmt: skip


async def everything_of(conn: db.Connection, tenant: str) -> dict[str, str]:
    """A tenant's rows, table by table."""
    cursor = await conn.execute(
        b"select c.relname from pg_class c join pg_attribute a on a.attrelid = c.oid"
        b" where c.relnamespace = 'orchestrator'::regnamespace and a.attname = 'tenant_id'"
        b" and c.relkind in ('r', 'p') and not c.relispartition and c.relname <> 'lane'"
    )
    rows_of = {}
    for row in await cursor.fetchall():
        name = sql.Identifier("orchestrator", row["relname"])
        look = sql.SQL(
            "select string_agg(one, ',' order by one) as rows from (select"
            " (to_jsonb(t) - 'last_used_at')::text as one from {} t where tenant_id = %s) as all_of"
        )
        found = await (await conn.execute(look.format(name), [tenant])).fetchone()
        assert found is not None
        rows_of[row["relname"]] = found["rows"]
    return rows_of


async def test_ids_of_another_tenant_are_404_on_every_route_and_no_row_is_touched(
    running: Running, conn: db.Connection
) -> None:
    ids = await things(running, conn, "theirs")
    key = (await an_agent(conn, "ours", "boss", "admin"))["key"]
    before, wrong = await everything_of(conn, "theirs"), {}
    for endpoint in WITH_IDS:
        answer = await ask(running, endpoint, ids, key)
        if answer.status_code != 404 or answer.json()["error"] != "not_found":
            wrong[f"{endpoint.method} {endpoint.path}"] = (answer.status_code, answer.text[:200])
        nobody = {name: str(uuid4()) for name in ids}
        unknown = await ask(running, endpoint, nobody, key)
        said = [re.sub("[0-9a-f-]{36}", "", one.json()["message"]) for one in (answer, unknown)]
        if said[0] != said[1]:
            wrong[f"{endpoint.method} {endpoint.path} tells them apart"] = (200, str(said))
    assert wrong == {}
    assert await everything_of(conn, "theirs") == before


def ids_in(kind: Any, *path: str) -> Iterator[tuple[str, ...]]:
    """Where a query or a body takes ids."""
    if kind is UUID:
        yield path
    elif isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        for field in msgspec.structs.fields(kind):
            is_id = field.type is UUID or field.name in IDS_AS_TEXT
            inside = ids_in(UUID if is_id else field.type, *path, field.encode_name)
            yield from inside
    else:
        for part in get_args(kind):
            yield from ids_in(part, *path)


KINDS = ("task", "run", "agent", "user", "event")
IDS_AS_TEXT = {"actor", "subject"}
ID_OR_TIME = re.compile(r"[0-9a-f-]{36}|20\d\d-[0-9T:.+-]+Z?")


def put(said: Any, path: tuple[str, ...], id: str) -> Any:
    name, *rest = path
    return {**said, name: put(said.get(name, {}), tuple(rest), id) if rest else id}


async def test_ids_of_another_tenant_in_queries_and_bodies_are_as_good_as_unknown_ones(
    running: Running, conn: db.Connection
) -> None:
    theirs = await things(running, conn, "theirs")
    theirs["event"] = str((await db.call_one(
        conn, "emit_event", tenant="theirs", topic="t", payload=None))["emit_event"])  # fmt: skip
    await things(running, conn, "ours")
    key = bearer((await an_agent(conn, "ours", "boss", "admin"))["key"])
    before, asked, wrong = await everything_of(conn, "theirs"), 0, {}
    rows = [e for e in GUARDED if "{" not in e.path and e.verb != "stream_events"]
    for endpoint in sorted(rows, key=lambda row: row.method):  # asked first, and then changed
        body = sample(endpoint)
        places = [("query", path) for path in ids_in(endpoint.query)]
        places += [("body", path) for path in ids_in(endpoint.body)]
        for (place, path), kind in product([("", ()), *places], KINDS):
            said = []
            for id in (theirs[kind], neighbour(theirs[kind])):
                answer = await running.client.request(
                    endpoint.method, endpoint.path, headers=key,
                    params={path[0]: id} if place == "query" else {},
                    json=put(body, path, id) if place == "body" else body,
                )  # fmt: skip
                said.append((answer.status_code, ID_OR_TIME.sub("", answer.text)))
                told = [kind for kind in KINDS if theirs[kind] in answer.text.replace(id, "")]
                if told or answer.status_code in {401, 403, 429, 500, 503}:
                    wrong[f"{endpoint.method} {endpoint.path} {path} tells {told}"] = said
            asked += 1
            if place and said[0] != said[1]:
                wrong[f"{endpoint.method} {endpoint.path} {path} {kind}"] = said
    assert wrong == {} and asked >= 100
    assert await everything_of(conn, "theirs") == before


def neighbour(id: str) -> str:
    """An id that nothing has, of the same instant: cursors go by it."""
    return id[:-1] + ("f" if id[-1] != "f" else "e")


async def test_every_route_without_its_scope_is_403_and_no_row_is_touched(
    running: Running, conn: db.Connection
) -> None:
    ids = await things(running, conn, "ours")
    key = (await an_agent(conn, "ours", "nobody", "other:scope"))["key"]
    before, wrong = await everything_of(conn, "ours"), {}
    for endpoint in GUARDED:
        answer = await ask(running, endpoint, ids, key)
        if answer.status_code != (403 if endpoint.scope else 200):
            wrong[f"{endpoint.method} {endpoint.path}"] = (answer.status_code, answer.text[:200])
    assert wrong == {}
    assert await everything_of(conn, "ours") == before


NOT_SO = {
    "log_in": 401, "renew_session": 401, "end_session": 401, "answer_callback": 404,  # made up
    "create_agent": 409,  # a user has the name by then
    "run_output": 409, "retry_run": 409, "retry_from": 409, "approve_run": 404,  # it lives
    "retry_messages": 404,
}  # fmt: skip
LAST = ["cancel_run", "cancel_task", "delete_agent"]
UNCHANGING = {"preview_rule", "backfill_task", "retry_where"}
"""As they are shown: two of them say first what they would do."""


async def test_what_the_document_shows_is_taken_by_every_route_and_each_change_is_audited(
    serve: Serve, conn: db.Connection
) -> None:
    running = await serve(jwt_secret="Zm9yIHRlc3RzIG9mIGxvZ2lucyBvbmx5LCBhbmQgbG9uZw")
    ids = {**await things(running, conn, "ours"), "token": "x"}
    key = (await an_agent(conn, "ours", "boss", "admin"))["key"]
    ids["agent"] = (await an_agent(conn, "ours", "another", "any"))["id"]
    wrong = {}
    rows = [row for row in http.ENDPOINTS if row.content_type != "text/event-stream"]
    for endpoint in sorted(rows, key=lambda row: row.verb in LAST and LAST.index(row.verb) + 1):
        before = await audited(conn)
        answer = await ask(running, endpoint, ids, key)
        if answer.status_code != NOT_SO.get(endpoint.verb, endpoint.status):
            wrong[endpoint.verb] = (answer.status_code, answer.text[:300])
        is_change = endpoint.method != "GET" and endpoint.verb not in UNCHANGING | {"publish_event"}
        if (await audited(conn) > before) != (is_change and answer.is_success):
            wrong[f"audit of {endpoint.verb}"] = (answer.status_code, answer.text[:300])
    assert wrong == {}


async def audited(conn: db.Connection) -> int:
    row = await (await conn.execute(b"select count(*) as n from orchestrator.audit")).fetchone()
    assert row is not None
    return int(row["n"])


async def test_any_is_not_admin(running: Running, conn: db.Connection) -> None:
    ids = await things(running, conn, "ours")
    key = (await an_agent(conn, "ours", "most", "any"))["key"]
    for endpoint in GUARDED:
        if endpoint.scope == "admin":
            assert (await ask(running, endpoint, ids, key)).status_code == 403, endpoint.path


async def test_an_agent_sees_its_own_tasks_and_an_admin_all_of_its_tenant(
    running: Running, conn: db.Connection
) -> None:
    ids = await things(running, conn, "ours")
    peer = (await an_agent(conn, "ours", "peer", "any"))["key"]
    boss = (await an_agent(conn, "ours", "boss", "admin"))["key"]
    for endpoint in WITH_IDS:
        if "{task" in endpoint.path:
            answer = await ask(running, endpoint, ids, peer)
            assert answer.status_code == 404, (endpoint.path, answer.text)
    for path in (f"/tasks/{ids['task']}", f"/tasks/{ids['task']}/occurrences"):
        assert (await running.client.get(path, headers=bearer(boss))).status_code == 200


async def test_a_task_is_its_callers_unless_an_admin_says_otherwise(
    running: Running, conn: db.Connection
) -> None:
    one = await an_agent(conn, "ours", "one", "any")
    two = await an_agent(conn, "ours", "two", "any")
    boss = (await an_agent(conn, "ours", "boss", "admin"))["key"]
    said = TASK | {"created_by": two["id"]}
    answer = await running.client.post("/tasks", json=said, headers=bearer(one["key"]))
    assert answer.status_code == 403
    answer = await running.client.post("/tasks", json=said, headers=bearer(boss))
    assert answer.json()["created_by"] == two["id"]


# Verbs themselves


def acting(tenant: str, id: str, *scopes: str) -> db.Actor:
    return db.Actor(tenant, id, " ".join(scopes), "request-7")


@pytest.fixture
def nobody_acts() -> Iterator[None]:
    yield
    db.acting.set(None)


async def test_verbs_check_scopes_and_owners_themselves(
    running: Running, conn: db.Connection, connect: Connect, nobody_acts: None
) -> None:
    ids = await things(running, conn, "ours")
    api, me = await connect(role="orc_api"), str(uuid4())
    place = {"tenant": "ours", "task": ids["task"]}
    run = {"tenant": "ours", "run": ids["run"]}
    calls: list[tuple[str, dict[str, Any], str]] = [
        ("task", place, "tasks:read"),
        ("pause_task", place, "tasks:write"),
        ("update_task", place | {"changes": Jsonb({"title": "x"})}, "tasks:write"),
        ("why_not", place | {"instant": "2026-01-01T00:00:00Z"}, "tasks:read"),
        ("cancel_run", run, "runs:write"),
        ("retry_run", run, "runs:write"),
        ("why", run, "runs:read"),
        ("follow_run", run, "runs:read"),
    ]
    for verb, arguments, scope in calls:
        db.acting.set(acting("ours", me, "other:scope"))
        with pytest.raises(Forbidden):
            await db.call(api, verb, **arguments)
        db.acting.set(acting("ours", me, scope))
        with pytest.raises(NotFound):
            await db.call(api, verb, **arguments)
    for verb, more in (("create_agent", {"name": "x"}), ("list_audit", {}), ("list_users", {})):
        db.acting.set(acting("ours", me, "any"))
        with pytest.raises(Forbidden):
            await db.call(api, verb, tenant="ours", **more)


REQUIRED = """
select p.proname as verb, coalesce(array_agg(a.name order by a.nth) filter (where a.nth <= p.pronargs - p.pronargdefaults), '{}') as names,
       coalesce(array_agg(format_type(t.oid, null) order by a.nth) filter (where a.nth <= p.pronargs - p.pronargdefaults), '{}') as kinds
from pg_proc p
left join lateral unnest(p.proargnames, p.proargtypes::oid[]) with ordinality as a(name, kind, nth) on a.nth <= p.pronargs
left join pg_type t on t.oid = a.kind
where p.pronamespace = 'orc'::regnamespace group by p.oid
"""  # noqa: E501
ANY: dict[str, Any] = {
    "text": "x", "uuid": UUID(int=7), "jsonb": Jsonb({}), "timestamp with time zone": "2026-01-01Z",
    "timestamp with time zone[]": [], "text[]": [], "jsonb[]": [], "integer": 1, "boolean": True,
    "double precision": 1, "bytea": b"x",
}  # fmt: skip
OF_THE_PLACE = {"help", "check", "list_sinks", "list_tools"}
"""Told to whoever the API lets in, of no tenant."""


async def test_every_verb_behind_a_route_asks_for_the_scope_itself_before_anything_else(
    conn: db.Connection, connect: Connect, nobody_acts: None
) -> None:
    api = await connect(role="orc_api")
    rows = await (await conn.execute(REQUIRED.encode())).fetchall()
    verbs = {row["verb"]: dict(zip(row["names"], row["kinds"], strict=True)) for row in rows}
    asked = []
    for endpoint in GUARDED:
        if endpoint.scope and endpoint.verb in verbs.keys() - OF_THE_PLACE:
            given = {name: ANY[kind] for name, kind in verbs[endpoint.verb].items()}
            db.acting.set(acting("ours", str(uuid4()), "other:scope"))
            with pytest.raises(Forbidden):
                await db.call(api, endpoint.verb, **{**given, "tenant": "ours"})
            asked.append(endpoint.verb)
    assert len(asked) >= 35


async def test_lists_and_looks_are_of_the_actors_own_things_though_nobody_names_an_owner(
    running: Running, conn: db.Connection, connect: Connect, nobody_acts: None
) -> None:
    ids = await things(running, conn, "ours")
    api = await connect(role="orc_api")
    for id, scope, sees in ((str(uuid4()), "any", False), (ids["agent"], "any", True),
                            (str(uuid4()), "admin", True)):  # fmt: skip
        db.acting.set(acting("ours", id, scope))
        for verb in ("list_tasks", "list_runs"):
            (page,) = await db.call(api, verb, tenant="ours")
            assert bool(page["items"]) == sees, verb
        for verb in ("run", "list_logs", "see_run"):
            if sees:
                await db.call(api, verb, tenant="ours", run=ids["run"])
            else:
                with pytest.raises(NotFound):
                    await db.call(api, verb, tenant="ours", run=ids["run"])


async def test_nobody_calls_a_verb_for_a_tenant_that_they_do_not_belong_to(
    conn: db.Connection, nobody_acts: None
) -> None:
    db.acting.set(acting("ours", str(uuid4()), "admin"))
    with pytest.raises(RuntimeError, match="doesn't belong"):
        await db.call(conn, "list_audit", tenant="theirs")


async def test_who_acts_is_forgotten_with_the_transaction(
    conn: db.Connection, connect: Connect, nobody_acts: None
) -> None:
    api = await connect(role="orc_api")
    settings = [f"orchestrator.{name}" for name in ("tenant", "actor", "scopes", "request")]

    async def left() -> list[str]:
        db.acting.set(None)
        found = []
        for name in settings:
            row = await (
                await api.execute("select current_setting(%s, true) as s", [name])
            ).fetchone()
            found.append((row or {})["s"] or "")
        return found

    db.acting.set(acting("ours", str(uuid4()), "admin"))
    assert await db.call(api, "list_audit", tenant="ours")
    assert await left() == [""] * 4
    db.acting.set(acting("ours", str(uuid4()), "any"))
    with pytest.raises(Forbidden):
        await db.call(api, "list_audit", tenant="ours")
    assert await left() == [""] * 4


async def test_who_signs_in_psql_is_limited_by_nothing(
    running: Running, conn: db.Connection
) -> None:
    ids = await things(running, conn, "ours")
    await conn.execute("select set_config('orchestrator.actor', 'ann', false)")
    await db.call(conn, "pause_task", tenant="ours", task=ids["task"])
    cursor = await conn.execute("select actor from orchestrator.audit where action = 'pause_task'")
    assert await cursor.fetchall() == [{"actor": "ann"}]


async def test_audit_rows_name_the_principal_and_the_request(
    running: Running, conn: db.Connection
) -> None:
    ids = await things(running, conn, "ours")
    boss = await an_agent(conn, "ours", "boss", "admin")
    headers = bearer(boss["key"]) | {"X-Request-ID": "request-42"}
    await running.client.post(f"/tasks/{ids['task']}/pause", headers=headers)
    found = await running.client.get("/audit?action=pause_task", headers=bearer(boss["key"]))
    (line,) = found.json()["items"]
    assert (line["actor"], line["actor_name"], line["request_id"], line["subject"]) == (
        boss["id"], "boss", "request-42", ids["task"],
    )  # fmt: skip


async def test_the_audit_comes_in_pages_and_is_of_one_tenant(
    running: Running, conn: db.Connection
) -> None:
    await things(running, conn, "theirs")
    key = bearer((await an_agent(conn, "ours", "boss", "admin"))["key"])
    for number in range(6):
        await an_agent(conn, "ours", f"n{number}")
    found, cursor = [], ""
    while True:
        page = (await running.client.get(f"/audit?limit=3{cursor}", headers=key)).json()
        found += [line["details"]["name"] for line in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert found == ["n5", "n4", "n3", "n2", "n1", "n0", "boss"]


# Row-level security


async def test_every_table_of_tenants_has_row_level_security(conn: db.Connection) -> None:
    cursor = await conn.execute(
        b"select c.relname from pg_class c join pg_attribute a on a.attrelid = c.oid"
        b" where c.relnamespace = 'orchestrator'::regnamespace and a.attname = 'tenant_id'"
        b" and c.relkind in ('r', 'p') and not c.relispartition and not c.relrowsecurity"
    )
    assert await cursor.fetchall() == []


async def test_the_apis_role_has_no_rights_on_tables_and_views(conn: db.Connection) -> None:
    cursor = await conn.execute(
        b"select relname from pg_class where relkind in ('r', 'p', 'v')"
        b" and relnamespace in ('orchestrator'::regnamespace, 'orc'::regnamespace)"
        b" and has_any_column_privilege('orc_api', oid, 'select, insert, update')"
    )
    assert [row["relname"] for row in await cursor.fetchall()] == ["migration"]


async def test_one_connection_with_failures_never_shows_a_foreign_row(
    running: Running, conn: db.Connection, make: Make
) -> None:
    """Were the API's role granted everything: what it reads is still the caller's alone."""
    tenants = ["a", "b", "c"]
    for tenant in tenants:
        await things(running, conn, tenant)
    await conn.execute("grant select on all tables in schema orchestrator, orc to orc_api")
    looks = [b"select tenant_id from orc.tasks", b"select tenant_id from orchestrator.task",
             b"select tenant_id from orchestrator.audit", b"select tenant_id from orc.runs",
             b"select tenant_id from orchestrator.principal", b"select id from orchestrator.tenant",
             b"select tenant_id from orchestrator.due_work"]  # fmt: skip
    try:
        async with db.Pool(make.config(pool_size=1), role="orc_api", application="t") as pool:

            async def visit(number: int) -> None:
                tenant = tenants[number % 3]
                db.acting.set(acting(tenant, str(uuid4()), "admin"))

                async def look(connection: db.Connection) -> set[str]:
                    if number % 7 != 3:  # else nobody says who acts
                        await db.call(connection, "list_audit", tenant=tenant)
                    if number % 5 == 1:
                        raise ZeroDivisionError
                    if number % 5 == 2:
                        await connection.execute(b"select 1 / 0")
                    rows = await (await connection.execute(looks[number % 7])).fetchall()
                    return {next(iter(row.values())) for row in rows}

                try:
                    seen = await pool.together(look)
                except (ZeroDivisionError, psycopg.errors.DivisionByZero):
                    return
                assert seen == (set() if number % 7 == 3 else {tenant})

            for first in range(0, 210, 15):  # as many as may wait
                tasks = [asyncio.create_task(visit(n)) for n in range(first, first + 15)]
                await asyncio.gather(*tasks)
    finally:
        await conn.execute("revoke select on all tables in schema orchestrator, orc from orc_api")
        await conn.execute("grant select on orchestrator.migration to orc_api")


async def test_readers_see_every_tenant_and_no_hash(
    running: Running, conn: db.Connection, connect: Connect
) -> None:
    for tenant in ("a", "b"):
        await things(running, conn, tenant)
    reader = await connect(role="orc_reader")
    cursor = await reader.execute("select distinct tenant_id from orc.tasks order by 1")
    assert [row["tenant_id"] for row in await cursor.fetchall()] == ["a", "b"]
    for look in (
        b"select hash from orchestrator.agent_key",
        b"select * from orchestrator.password",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await reader.execute(look)


async def test_why_needs_a_tenant_from_all_but_readers(
    running: Running, conn: db.Connection, connect: Connect, nobody_acts: None
) -> None:
    ids = await things(running, conn, "ours")
    reader, api = await connect(role="orc_reader"), await connect(role="orc_api")
    assert await db.call(reader, "why", run=ids["run"])
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        await db.call(api, "why", run=ids["run"])
    db.acting.set(acting("theirs", str(uuid4()), "admin"))
    with pytest.raises(NotFound):
        await db.call(api, "why", run=ids["run"], tenant="theirs")


async def test_a_tenant_is_never_told_the_id_of_a_worker(
    running: Running, conn: db.Connection, connect: Connect, nobody_acts: None
) -> None:
    ids = await things(running, conn, "ours")
    worker = await connect(role="orc_worker")
    made = await db.call_one(worker, "register_worker", queues=["default"], slots=1)
    id = str(next(iter(made.values())))
    assert await db.call(worker, "claim_work", worker=id, want=1)
    (told,) = await db.call(conn, "why", run=ids["run"])
    assert id in str(told)
    db.acting.set(acting("ours", str(uuid4()), "admin"))
    (said,) = await db.call(await connect(role="orc_api"), "why", run=ids["run"], tenant="ours")
    assert said["cause"] == "running"
    assert id not in str(said)
