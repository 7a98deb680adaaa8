"""HTTP: what every route shares. Real sockets, a real server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import UUID

import httpx2
import msgspec
import pytest
from conftest import Make, Proxied, Running, Serve
from crew import own_clock
from starlette.routing import Match, Route

from orchestrator import api as http
from orchestrator import auth, db, devpg, errors, httpd, schema, wire
from orchestrator.api.routes import Found, Table, template_of
from orchestrator.api.shell import SECURITY
from orchestrator.wire import Call, Endpoint, Request

ERROR_FIELDS = {
    "type", "title", "status", "instance", "error", "message", "detail", "details",
    "request_id", "timestamp",
}  # fmt: skip


class Thing(Request):
    name: str
    payload: dict[str, Any] = {}
    size: int = 0


class Filter(Request):
    limit: int = 10


async def _broken(call: Call) -> None:
    raise RuntimeError("select secret from orchestrator.tenant")


async def _stored(call: Call) -> wire.Reply:
    return wire.Reply(status=204)


async def _listed(call: Call) -> wire.Reply:
    return wire.Reply(body={"a": "é"}, status=201, headers={"ETag": '"3"', "Location": "/x"})


async def _split(call: Call) -> wire.Reply:
    return wire.Reply(body={}, headers={"Location": "/x\r\nSet-Cookie: a=b"})


async def _much(call: Call) -> wire.Reply:
    return wire.Reply(body=b"[%s]" % (b" " * 50_000_000))


ENDPOINTS = [
    *http.ENDPOINTS,
    Endpoint("POST", "/things", "make_thing", Thing, status=201),
    Endpoint("PUT", "/named/{name}", "make_thing_again", Thing),
    Endpoint("GET", "/things", "list_things", query=Filter, returns=list[dict[str, Any]]),
    Endpoint("GET", "/things/{id}", "get_thing", returns=dict[str, Any]),
    Endpoint("DELETE", "/things/{id}", "drop_thing", handler=_stored),
    Endpoint("GET", "/broken", "broken", handler=_broken),
    Endpoint("GET", "/admin", "admin", scope="admin", handler=_stored),
    Endpoint("GET", "/other", "other", scope="things:read", handler=_stored),
]

VERBS = """
create table public.thing (name text constraint names_are_unique primary key, payload jsonb,
    size int constraint size_is_not_negative check (size >= 0));
grant all on public.thing to orc_api, orc_owner;
set role orc_owner;
create function orc.make_thing(name text, payload jsonb, size int)
    returns table (name text, payload jsonb, size int) language sql
    as $$ insert into public.thing values (name, payload, size) returning * $$;
create function orc.make_thing_again(name text, payload jsonb, size int)
    returns table (name text, payload jsonb, size int) language sql
    as $$ select name, payload, size $$;
create function orc.list_things("limit" int) returns setof public.thing language sql
    as $$ select * from public.thing limit "limit" $$;
create function orc.get_thing(id uuid) returns setof public.thing language plpgsql as
    $$ begin raise exception using errcode = 'OR404', message = 'Thing not found: ' || id,
       detail = id::text, hint = 'GET /things lists them'; end $$;
grant execute on all functions in schema orc to orc_api;
reset role;
"""


@pytest.fixture
async def running(serve: Serve, conn: db.Connection) -> Running:
    await conn.execute(VERBS.encode())
    return await serve(endpoints=ENDPOINTS, body_timeout=1.0, body_limit=100_000)


def assert_problem(answer: httpx2.Response, status: int, error: str) -> dict[str, Any]:
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert set(body) == ERROR_FIELDS
    assert (answer.status_code, body["status"], body["error"]) == (status, status, error)
    assert body["request_id"] == answer.headers["x-request-id"]
    return body


# The service surface


async def test_the_root_says_what_this_is(running: Running) -> None:
    body = (await running.client.get("/")).json()
    assert body["status"] == "operational"
    assert {"service", "name", "version", "description", "docs", "endpoints", "timestamp"} < set(
        body
    )
    for path in body["endpoints"].values():
        answer = await running.client.get(path)
        assert answer.status_code in {200, 401}, path


async def test_health_tells_each_part(running: Running) -> None:
    answer = await running.client.get("/health")
    body = answer.json()
    assert answer.status_code == 200
    assert (body["status"], body["database"], body["redis"]) == ("healthy", True, False)
    assert body["components"]["redis"]["status"] == "not configured"
    assert body["components"]["database"]["detail"].startswith("PostgreSQL ")


async def test_a_configured_redis_that_is_down_degrades(serve: Serve) -> None:
    running = await serve(redis_url="redis://127.0.0.1:1")
    answer = await running.client.get("/health")
    assert answer.status_code == 200
    assert (answer.json()["status"], answer.json()["redis"]) == ("degraded", False)


async def test_without_postgres_health_is_503_and_live_is_not(serve: Serve) -> None:
    running = await serve(database_url="postgresql://x@127.0.0.1:1/x")
    assert (await running.client.get("/health/live")).json()["status"] == "alive"
    answer = await running.client.get("/health")
    assert (answer.status_code, answer.json()["status"]) == (503, "unhealthy")
    assert (await running.client.get("/health/ready")).status_code == 503
    assert_problem(await running.client.get("/auth/me", headers=BEARER), 503, "unavailable")


async def test_ready_wants_the_database_and_no_drain(serve: Serve) -> None:
    running = await serve()
    assert (await running.client.get("/health/ready")).json()["status"] == "ready"

    running.api.drain()
    answer = await running.client.get("/health/ready")
    assert (answer.status_code, answer.json()["status"]) == (503, "draining")


async def test_ping(running: Running) -> None:
    assert (await running.client.get("/ping")).json() == {"ping": "pong"}


async def test_metrics_have_requests_the_pool_and_the_database(running: Running) -> None:
    await running.client.get("/ping")
    answer = await running.client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    text = answer.text
    assert (
        'orchestrator_http_request_seconds_count{method="GET",route="/ping",status="2xx"}' in text
    )
    assert "orchestrator_database_up 1.0" in text
    assert 'orchestrator_pool_connections{state="idle"}' in text
    assert "orchestrator_database_bytes" in text


async def test_metrics_ask_the_database_once_for_many_scrapes(running: Running) -> None:
    asked = 0
    call = running.api.pool.call

    async def count(verb: str, /, **arguments: Any) -> list[db.Row]:
        nonlocal asked
        asked += verb == "gauges"
        return await call(verb, **arguments)

    running.api.pool.call = count  # type: ignore[method-assign]
    await asyncio.gather(*(running.client.get("/metrics") for _ in range(8)))
    assert asked == 1


async def test_unknown_paths_do_not_grow_the_metrics(running: Running) -> None:
    for n in range(5):
        await running.client.get(f"/nothing/{n}")
        await running.client.request("BREW", f"/nothing/{n}")  # no HTTP: it comes to no route
    text = (await running.client.get("/metrics")).text
    assert 'route="(none)"' in text
    assert "/nothing" not in text
    assert "BREW" not in text


# Both forms, headers, ids


async def test_both_slash_forms_are_served_without_redirect(running: Running) -> None:
    for path in ("/ping/", "/health/", "/health/live/", "/things/", "/docs/", "/openapi.json/"):
        assert (await running.client.get(path)).status_code == 200, path


async def test_every_answer_has_the_headers(running: Running) -> None:
    for path in ("/ping", "/nothing", "/broken", "/docs"):
        headers = (await running.client.get(path)).headers
        assert float(headers["x-process-time"]) >= 0
        assert UUID(headers["x-request-id"])
        for name in SECURITY:
            assert name in headers, f"{path}: {name}"
        assert "server" not in headers


async def test_an_answer_in_one_piece_is_the_one_through_all_layers(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request of another origin goes through all of them."""
    in_one_piece: list[int] = []
    answer = httpd.Bounded.answer

    def noted(self: httpd.Bounded, status: int, head: bytes, body: bytes) -> bool:
        in_one_piece.append(status)
        return answer(self, status, head, body)

    monkeypatch.setattr(httpd.Bounded, "answer", noted)
    listed = Endpoint("POST", "/listed", "listed", status=201, handler=_listed)
    running = await serve(endpoints=[*ENDPOINTS, listed], rate_limit="100/minute")
    for origin in ({}, {"Origin": "http://localhost:3000"}):
        answers = [
            await running.client.get("/ping", headers=origin),
            await running.client.post("/listed", headers=origin),
            await running.client.head("/ping", headers=origin),
        ]
        told = [{name: value for name, value in one.headers.items() if name not in OWN}
                for one in answers]  # fmt: skip
        bodies = [one.content for one in answers]
        if not origin:
            first, first_bodies = told, bodies
            assert in_one_piece == [200, 201]
    assert in_one_piece == [200, 201]
    assert told == first and bodies == first_bodies
    assert first[1]["etag"] == '"3"' and first[2]["content-length"] != "0" and bodies[2] == b""


OWN = {"x-request-id", "x-process-time", "date", "vary", "ratelimit", "access-control-allow-origin",
       "access-control-expose-headers", "access-control-allow-credentials"}  # fmt: skip


async def test_a_connection_that_is_to_close_is_closed(running: Running) -> None:
    for version, said in (("1.1", "Connection: close\r\n"), ("1.0", "")):
        async with raw(running) as (reader, writer), asyncio.timeout(5):
            writer.write(f"GET /ping HTTP/{version}\r\nHost: x\r\n{said}\r\n".encode())
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ") and b"connection: close" in head
            assert json.loads(body)


async def test_no_value_of_a_header_begins_another(serve: Serve) -> None:
    split = Endpoint("GET", "/split", "split", handler=_split)
    running = await serve(endpoints=[*ENDPOINTS, split])
    with pytest.raises(httpx2.RemoteProtocolError):  # nothing of it was said
        await running.client.get("/split")


async def test_a_well_formed_request_id_is_kept_and_another_replaced(running: Running) -> None:
    kept = await running.client.get("/ping", headers={"X-Request-ID": "abc-1.2:3_4"})
    assert kept.headers["x-request-id"] == "abc-1.2:3_4"
    for bad in ("a b", "x" * 129, "<script>"):
        answer = await running.client.get("/ping", headers={"X-Request-ID": bad})
        assert UUID(answer.headers["x-request-id"])


async def test_cors_names_the_origin_and_only_known_ones(running: Running) -> None:
    good, bad = "http://localhost:3000", "http://evil.example"
    answer = await running.client.get("/ping", headers={"Origin": good})
    assert answer.headers["access-control-allow-origin"] == good
    assert answer.headers["access-control-allow-credentials"] == "true"
    answer = await running.client.get("/ping", headers={"Origin": bad})
    assert "access-control-allow-origin" not in answer.headers
    preflight = await running.client.options(
        "/things", headers={"Origin": good, "Access-Control-Request-Method": "POST"}
    )
    assert preflight.status_code == 200
    assert "POST" in preflight.headers["access-control-allow-methods"]
    broken = await running.client.get("/broken", headers={"Origin": good})
    assert broken.headers["access-control-allow-origin"] == good


async def test_a_star_never_goes_with_credentials(serve: Serve) -> None:
    running = await serve(cors_origins=("*",))
    answer = await running.client.get("/ping", headers={"Origin": "http://any.example"})
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in answer.headers


# The one error body


async def test_an_unknown_route_and_method(running: Running) -> None:
    assert_problem(await running.client.get("/nothing"), 404, "not_found")
    answer = await running.client.delete("/ping")
    assert_problem(answer, 405, "method_not_allowed")
    assert "GET" in answer.headers["allow"]


async def test_what_breaks_on_our_side_leaks_nothing(running: Running) -> None:
    answer = await running.client.get("/broken")
    assert_problem(answer, 500, "internal")
    assert "secret" not in answer.text
    assert "RuntimeError" not in answer.text


async def test_a_refusal_of_a_verb_keeps_its_words(running: Running) -> None:
    id = "0190a5a0-0000-7000-8000-000000000000"
    body = assert_problem(await running.client.get(f"/things/{id}"), 404, "not_found")
    assert body["detail"] == f"Thing not found: {id}"
    assert body["details"] == {"hint": "GET /things lists them", "which": id}


async def test_a_broken_constraint_is_a_sentence_without_values(running: Running) -> None:
    for _ in range(2):
        answer = await running.client.post("/things", json={"name": "secret-name"})
    body = assert_problem(answer, 409, "conflict")
    assert "names are unique" in body["message"]
    assert "secret-name" not in answer.text
    answer = await running.client.post("/things", json={"name": "b", "size": -1})
    body = assert_problem(answer, 422, "invalid")
    assert "size is not negative" in body["message"]
    assert isinstance(body["detail"], list)


async def test_a_good_body_becomes_a_row(running: Running) -> None:
    answer = await running.client.post("/things", json={"name": "a", "payload": {"x": [1, None]}})
    assert answer.status_code == 201
    assert answer.json() == {"name": "a", "payload": {"x": [1, None]}, "size": 0}
    assert (await running.client.get("/things?limit=5")).json() == [answer.json()]


async def test_path_and_body_may_not_disagree(running: Running) -> None:
    assert (await running.client.put("/named/a", json={"name": "a"})).status_code == 200
    answer = await running.client.put("/named/a", json={"name": "b"})
    assert assert_problem(answer, 422, "malformed")["detail"][0]["loc"] == ["body", "name"]


HOSTILE: list[tuple[str, bytes, str, int]] = [
    ("1,100 deep", b"[" * 1100 + b"]" * 1100, "application/json", 422),
    ("deep in a field", b'{"name":"a","payload":' + b'{"a":' * 40 + b"1" + b"}" * 41,
     "application/json", 422),
    ("bad UTF-8", b'{"name": "\xff\xfe"}', "application/json", 422),
    ("a NUL", b'{"name": "a\\u0000b"}', "application/json", 422),
    ("a lone surrogate", b'{"name": "\\ud800"}', "application/json", 422),
    ("a huge number", b'{"name": "a", "payload": {"x": 1e5000}}', "application/json", 422),
    ("a huge integer", b'{"name": "a", "size": 99999999999}', "application/json", 422),
    ("an endless integer", b'{"name": "a", "payload": {"x": ' + b"9" * 5000 + b"}}",
     "application/json", 422),
    ("an unknown field", b'{"name": "a", "nmae": 1}', "application/json", 422),
    ("a missing field", b"{}", "application/json", 422),
    ("a list", b"[]", "application/json", 422),
    ("nothing", b"", "application/json", 422),
    ("half", b'{"name": "a"', "application/json", 422),
    ("two documents", b'{"name": "a"}{"name": "b"}', "application/json", 422),
    ("XML", b"<a/>", "application/xml", 415),
    ("no type", b'{"name": "a"}', "", 415),
    ("a form", b"name=a", "application/x-www-form-urlencoded", 415),
    ("too large", b'{"name": "' + b"a" * 200_000 + b'"}', "application/json", 413),
]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "kind", "status"), [row[1:] for row in HOSTILE], ids=[row[0] for row in HOSTILE]
)
async def test_bad_bodies_get_the_one_error_body_and_the_next_request_is_served(
    running: Running, body: bytes, kind: str, status: int
) -> None:
    headers = {"Content-Type": kind} if kind else {}
    answer = await running.client.post("/things", content=body, headers=headers)
    assert set(answer.json()) == ERROR_FIELDS
    assert answer.status_code == status
    assert (await running.client.get("/ping")).status_code == 200


async def test_a_field_that_jsonb_cannot_bound_is_refused(running: Running) -> None:
    answer = await running.client.post(
        "/things", content=b'{"name": "a", "payload": {"x": 1e308}}', headers=JSON
    )
    assert answer.status_code == 201


JSON = {"Content-Type": "application/json"}
BEARER = {"Authorization": f"Bearer {auth.SYSTEM_AGENT}"}


async def test_bad_queries_are_refused_with_their_places(running: Running) -> None:
    for query in ("limit=x", "limit=1&no=2", "limit=1&limit=2", "limit=%00"):
        answer = await running.client.get(f"/things?{query}")
        assert_problem(answer, 422, "malformed")


async def test_bad_paths_are_404_and_never_5xx(running: Running) -> None:
    for path in ("/%00", "/things/%00", "/%ff", "/..%2f", "/" + "x" * 5000, "//", "/auth/me/x"):
        answer = await running.client.get(path)
        assert answer.status_code in {200, 404}, path


async def test_a_malformed_id_in_a_path_is_never_5xx(running: Running) -> None:
    answer = await running.client.get("/things/not-a-uuid")
    assert answer.status_code in {404, 422}


# Every route of the product


def test_every_route_is_listed_for_the_hostile() -> None:
    assert len(ROUTES) == len(http.ENDPOINTS)


ID = "019C2F6E-5D00-7A41-8C1F-2B7DE7A90C55"
LOOKED_UP = [
    *(e.path for e in http.ENDPOINTS if "{" not in e.path),
    *(re.sub(r"{\w+(:uuid)?}", value, e.path) for e in http.ENDPOINTS if "{" in e.path
      for value in (ID, ID.lower(), "a", "", "a/b", "é", "a b", "a\0", "0", f"{ID}x", "..")),
    "", "//", "/no", "/task", "/tasksx", "/Tasks", "/tasks/", "//tasks", "/runs/failures/x",
    f"/tasks/{ID}/no", f"/x/tasks/{ID}", f"/tasks/{ID}/run_now/x", "/{run}", "/runs/{run:uuid}",
]  # fmt: skip


def by_starlette(routes: list[tuple[Route, Endpoint]], method: str, path: str) -> Found | None:
    """What Starlette's own router would answer with: the first route that fits in full."""
    for route, endpoint in routes:
        scope = {"type": "http", "method": method, "path": path}
        match, said = route.matches(scope)
        if match is Match.FULL:
            return endpoint, {name: str(value) for name, value in said["path_params"].items()}
    return None


def test_the_table_finds_what_starlettes_router_finds() -> None:
    table = Table(http.ENDPOINTS)
    fixed_first = sorted(http.ENDPOINTS, key=lambda endpoint: "{" in endpoint.path)
    routes = [(Route(e.path, print, methods=[e.method]), e) for e in fixed_first]
    found = 0
    for path in LOOKED_UP:
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
            wanted = by_starlette(routes, method, path)
            assert table.find(method, path) == wanted, (method, path)
            found += wanted is not None
    assert found >= 2 * len(http.ENDPOINTS) - 40


def test_a_route_without_values_comes_before_those_with_them_wherever_it_stands() -> None:
    one, other = Endpoint("GET", "/a/{b}", "any"), Endpoint("GET", "/a/c", "one")
    table = Table([one, other])
    assert table.find("GET", "/a/c") == (other, {})
    assert table.find("GET", "/a/d") == (one, {"b": "d"})
    assert table.find("POST", "/a/c") is None


PAGES = ("/docs", "/redoc", "/openapi.json", "/web/", "/favicon.ico")


async def test_the_document_has_every_route_that_is_answered_and_no_other(serve: Serve) -> None:
    running = await serve()
    document = (await running.client.get("/openapi.json")).json()
    said = {(m.upper(), path) for path, item in document["paths"].items() for m in item}
    served = {
        (method, template_of(route.path))
        for route in http.build(running.api).routes if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }  # fmt: skip
    assert said <= served
    for path in {path for _, path in served - said}:
        assert path.startswith(PAGES), path


ROUTES = [(e.method, e.path.replace("{", "").replace("}", "")) for e in http.ENDPOINTS]


@pytest.mark.parametrize("route", ROUTES, ids=[f"{m} {p}" for m, p in ROUTES])
async def test_no_route_answers_5xx_to_a_bad_request(
    running: Running, conn: db.Connection, route: tuple[str, str]
) -> None:
    await db.call(conn, "ensure_system_agent")

    async def ask(query: str = "", **request: Any) -> int:
        """Only the head: a stream has no end."""
        async with running.client.stream(method, path + query, **request) as answer:
            return int(answer.status_code)

    method, path = route
    for name, body, kind, _status in HOSTILE:
        headers = {"Content-Type": kind, **BEARER}
        assert await ask(content=body, headers=headers) < 500, name
    for query in ("?x=%00", "?limit=1&limit=2", "?" + "a" * 9000, "?%ff=%ff"):
        assert await ask(query, headers=BEARER) < 500, query
    for name, value in (
        ("Authorization", "Bearer " + "x" * 5000),
        ("Content-Type", "\xff"),
        ("Authorization", ""),
    ):
        assert await ask(headers={name.encode(): value.encode("latin-1")}) < 500, name
    assert (await running.client.get("/ping")).status_code == 200


# Keys


async def test_without_a_key_401_says_how(running: Running) -> None:
    answer = await running.client.get("/auth/me")
    body = assert_problem(answer, 401, "unauthorized")
    assert "Bearer" in body["details"]["hint"]
    assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_a_scope_that_is_missing_is_403(running: Running, conn: db.Connection) -> None:
    await db.call(conn, "ensure_system_agent")
    assert (await running.client.get("/admin", headers=BEARER)).status_code == 204
    await conn.execute("update orchestrator.principal set scopes = '{things:write}'")
    while (await running.client.get("/admin", headers=BEARER)).status_code == 204:
        await asyncio.sleep(0.05)  # half a second, while it is believed
    assert_problem(await running.client.get("/admin", headers=BEARER), 403, "forbidden")
    assert_problem(await running.client.get("/other", headers=BEARER), 403, "forbidden")


async def test_the_verbs_are_listed_for_an_admin(running: Running, conn: db.Connection) -> None:
    await db.call(conn, "ensure_system_agent")
    rows = (await running.client.get("/ops/verbs", headers=BEARER)).json()
    assert "check" in {row["verb"] for row in rows}
    some = (await running.client.get("/ops/verbs?pattern=whoami", headers=BEARER)).json()
    assert [row["verb"] for row in some] == ["whoami"]
    assert (await running.client.get("/ops/check", headers=BEARER)).json() == []


async def test_an_admin_of_a_tenant_hears_that_an_invariant_is_broken_but_not_whose_row_it_is(
    running: Running, conn: db.Connection
) -> None:
    await db.call(conn, "ensure_system_agent")
    await conn.execute("insert into orchestrator.sink (name, takes_events) values ('acme', false)")
    assert [row["subject"] for row in await db.call(conn, "check")] == ["acme"]
    answer = await running.client.get("/ops/check", headers=BEARER)
    assert [row["invariant"] for row in answer.json()] == ["a_sink_has_its_delivery"]
    assert "acme" not in answer.text
    await conn.execute("delete from orchestrator.sink")


# Clients that are slow, large or broken


@contextlib.asynccontextmanager
async def raw(running: Running) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def answer_of(reader: asyncio.StreamReader) -> tuple[int, dict[str, Any]]:
    async with asyncio.timeout(10):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next(
            int(x.split(":")[1])
            for x in head.split("\r\n")
            if x.lower().startswith("content-length")
        )
        return int(head.split()[1]), json.loads(await reader.readexactly(length))


async def test_a_head_that_never_ends_is_given_up(running: Running) -> None:
    async with raw(running) as (reader, writer):
        writer.write(b"GET /ping HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        status, body = await answer_of(reader)
        assert (status, body["error"]) == (408, "request_timeout")
        assert await reader.read() == b""


async def test_a_dripping_head_gains_no_time(running: Running) -> None:
    async with raw(running) as (reader, writer):
        started = time.monotonic()
        writer.write(b"GET /ping HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        task = asyncio.create_task(reader.read())
        while not task.done() and time.monotonic() - started < 8:
            writer.write(b"x")
            await asyncio.sleep(0.05)
        assert time.monotonic() - started < 4
        await task


async def test_a_dripping_body_gains_no_time(running: Running) -> None:
    async with raw(running) as (reader, writer):
        started = time.monotonic()
        writer.write(
            b"POST /things HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 5000\r\n\r\n"
        )
        task = asyncio.create_task(answer_of(reader))
        while not task.done() and time.monotonic() - started < 8:
            writer.write(b" ")
            await asyncio.sleep(0.05)
        assert time.monotonic() - started < 4
        assert (await task)[0] == 408


async def test_who_goes_away_in_the_middle_is_no_error_of_ours(running: Running) -> None:
    async with raw(running) as (_, writer):
        writer.write(
            b"PUT /named/x HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b'Content-Length: 50\r\n\r\n{"name'
        )
        await writer.drain()
        await asyncio.sleep(0.1)  # it has come to its route
    seen = 'orchestrator_http_answers_total{method="PUT",route="/named/{name}",status="499"} 1.0'
    async with asyncio.timeout(5):
        while seen not in (await running.client.get("/metrics")).text:
            await asyncio.sleep(0.02)


async def test_who_reads_nothing_is_given_up(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(httpd, "READER_SECONDS", 0.3)
    cause = b'orchestrator_http_refused_total{why="idle"} '
    running = await serve(endpoints=[*ENDPOINTS, Endpoint("GET", "/much", "much", handler=_much)])
    before = (await running.client.get("/metrics")).content.partition(cause)[2][:3]
    async with raw(running) as (_, writer), asyncio.timeout(10):
        writer.write(b"GET /much HTTP/1.1\r\nHost: x\r\n\r\n")
        while (await running.client.get("/metrics")).content.partition(cause)[2][:3] == before:
            await asyncio.sleep(0.05)


async def test_a_silent_connection_is_closed(running: Running) -> None:
    async with raw(running) as (reader, _), asyncio.timeout(30):
        assert await reader.read() == b""


async def test_a_body_that_never_ends_is_given_up(running: Running) -> None:
    async with raw(running) as (reader, writer):
        writer.write(
            b"POST /things HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b'Content-Length: 50\r\n\r\n{"name'
        )
        status, body = await answer_of(reader)
        assert (status, body["error"]) == (408, "request_timeout")


async def test_a_hundred_megabytes_in_chunks_are_refused_early(running: Running) -> None:
    async with raw(running) as (reader, writer):
        writer.write(
            b"POST /things HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        sent = 0
        answer = asyncio.create_task(answer_of(reader))
        with contextlib.suppress(ConnectionError):
            while sent < 100_000_000 and not answer.done():
                writer.write(b"10000\r\n" + b"a" * 65536 + b"\r\n")
                await writer.drain()
                sent += 65536
        status, body = await answer
        assert (status, body["error"]) == (413, "too_large")
        assert sent < 20_000_000
    assert (await running.client.get("/ping")).status_code == 200


async def test_a_hundred_megabytes_to_a_route_without_a_body_harm_nobody(running: Running) -> None:
    async def flood() -> AsyncIterator[bytes]:
        for _ in range(1600):
            yield b"a" * 65536

    with contextlib.suppress(httpx2.TransportError):
        answer = await running.client.request("GET", "/ping", content=flood())
        assert answer.status_code < 500
    assert (await running.client.get("/ping")).status_code == 200


async def test_heads_are_bounded(running: Running) -> None:
    many = [(f"X-{n}".encode(), b"v") for n in range(150)]
    answer = await running.client.get("/ping", headers=many)
    assert_problem_without_route(answer, 431)
    answer = await running.client.get("/ping", headers={"X-Large": "v" * 40_000})
    assert_problem_without_route(answer, 431)
    async with raw(running) as (reader, writer):
        writer.write(b"GET /ping HTTP/1.1\r\nHost: x\r\n")
        with contextlib.suppress(ConnectionError):
            for _ in range(200):
                writer.write(b"X-Endless: " + b"v" * 1000 + b"\r\n")
                await writer.drain()
        status, _ = await answer_of(reader)
        assert status == 431


def assert_problem_without_route(answer: httpx2.Response, status: int) -> None:
    assert answer.status_code == status
    assert set(answer.json()) == ERROR_FIELDS


@pytest.mark.parametrize(
    "junk",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /ping HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /ping HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /things HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"\r\n\r\n\r\nhello\r\n\r\n",
    ],
)
async def test_what_is_not_http_gets_an_answer_or_a_closed_line(
    running: Running, junk: bytes
) -> None:
    async with raw(running) as (reader, writer), asyncio.timeout(30):
        writer.write(junk)
        answer = await reader.read()
    if answer:
        head, _, body = answer.partition(b"\r\n\r\n")
        assert 400 <= int(head.split()[1]) < 500
        assert set(json.loads(body)) == ERROR_FIELDS
    assert (await running.client.get("/ping")).status_code == 200


async def test_connections_are_bounded(serve: Serve) -> None:
    running = await serve(connection_limit=3)
    async with raw(running), raw(running), raw(running), raw(running) as (reader, _):
        status, body = await answer_of(reader)
        assert (status, body["error"]) == (503, "unavailable")


async def test_requests_in_one_connection_are_answered_in_order(running: Running) -> None:
    async with raw(running) as (reader, writer), asyncio.timeout(30):
        for path in ("/ping", "/nothing", "/ping"):
            writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert [(await answer_of(reader))[0] for _ in range(3)] == [200, 404, 200]


async def test_answers_do_not_wait_for_acknowledgements(running: Running) -> None:
    """With Nagle on, each answer but the first in a connection takes 40 ms."""
    times = []
    for _ in range(11):
        started = own_clock()
        await running.client.get("/ping")
        times.append(own_clock() - started)
    assert sorted(times)[3] < 0.03


async def test_a_client_that_leaves_harms_nobody(running: Running) -> None:
    for _ in range(20):
        async with raw(running) as (_, writer):
            writer.write(
                b"POST /things HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Content-Length: 100\r\n\r\n{"
            )
    assert (await running.client.get("/ping")).status_code == 200


# A database that goes away


async def test_a_cut_network_is_answered_in_time_and_heals(
    serve: Serve, proxied: Proxied, make: Make
) -> None:
    running = await serve(database_url=proxied.url, database_timeout=0.5, pool_size=2)
    assert (await running.client.get("/health/ready")).status_code == 200
    proxied.proxy.cut()
    started = own_clock()
    answers = await asyncio.gather(
        *(running.client.get("/auth/me", headers=BEARER) for _ in range(8))
    )
    assert own_clock() - started < 10
    assert {answer.status_code for answer in answers} == {503}
    assert answers[0].headers.get("retry-after") == "1"
    assert (await running.client.get("/health")).status_code == 503
    proxied.proxy.mend()
    await healthy_within(running, 5)


async def healthy_within(running: Running, seconds: float) -> None:
    started = own_clock()
    while (await running.client.get("/health/ready")).status_code != 200:
        assert own_clock() - started < seconds
        await asyncio.sleep(0.05)


async def test_a_crashed_server_is_answered_again_within_seconds(
    serve: Serve, own_server: Callable[[], devpg.Cluster]
) -> None:
    cluster = own_server()
    await schema.install(cluster.url)
    running = await serve(database_url=cluster.url)
    assert (await running.client.get("/health/ready")).status_code == 200
    devpg.stop(cluster.data.parent, mode="immediate")
    started = own_clock()
    answers = await asyncio.gather(*(running.client.get("/health") for _ in range(8)))
    assert {answer.status_code for answer in answers} == {503}
    assert own_clock() - started < 10
    own_server()
    await healthy_within(running, 5)


async def test_verbs_answer_by_the_type_that_the_endpoint_says(running: Running) -> None:
    answer = await running.client.get("/things")
    assert answer.json() == []


def test_as_problem_sorts_what_postgres_says() -> None:
    import psycopg

    said = {
        psycopg.errors.UniqueViolation(): 409,
        psycopg.errors.CheckViolation(): 422,
        psycopg.errors.InvalidTextRepresentation(): 422,
        psycopg.errors.SerializationFailure(): 503,
        psycopg.OperationalError("gone"): 503,
        psycopg.errors.UndefinedTable(): 500,
        errors.Gone(): 410,
        errors.TooMany(): 429,
        ValueError("a bug"): 500,
    }
    assert {status for e, status in said.items() if wire.as_problem(e).status != status} == set()


def test_a_struct_of_the_wire_refuses_unknown_fields() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"limit": 1, "x": 1}, Filter)
