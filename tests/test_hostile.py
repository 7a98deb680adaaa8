"""Requests that mean no good: each gets its class of answer within a second, does nothing, tells
nothing of the inside, and the next request is served."""

# ruff: noqa: E501
from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterable, Sized
from typing import Any, NamedTuple
from uuid import uuid4

import httpx2
import pytest
from conftest import Running, Serve

from orchestrator import auth, db
from orchestrator.api import ENDPOINTS
from orchestrator.wire import Endpoint

KEY = {"Authorization": f"Bearer {auth.SYSTEM_AGENT}"}
JSON = {"Content-Type": "application/json"}
SECONDS = 1.0
SET = {"id": "a", "uses": "set", "with": {"x": 1}}
GOOD: dict[str, Any] = {
    "title": "T", "schedule_kind": "cron", "schedule_expr": "30 8 * * *",
    "payload": {"pipeline": [SET]},
}  # fmt: skip

LEAKS = re.compile(
    r"traceback|psycopg|select |insert into|orchestrator\.(?!new_id)|pg_|\.py\b|/work/|/usr/|\.venv"
    r"|relation \"|column \"|syntax error at|password|postgresql://|line \d+, in ",
    re.I,
)
FACTS = """
select md5(string_agg(f.said, '|')) as facts from (
  select coalesce(string_agg(t::text, ',' order by t::text), '') as said from orchestrator.task t
  union all select coalesce(string_agg(t::text, ',' order by t::text), '') from orchestrator.run t
  union all select coalesce(string_agg(t::text, ',' order by t::text), '') from orchestrator.due_work t
  union all select coalesce(string_agg(t::text, ',' order by t::text), '') from orchestrator.event t
  union all select coalesce(string_agg(t::text, ',' order by t::text), '') from orchestrator.audit t
  union all select coalesce(string_agg(t::text, ',' order by t::text), '') from orchestrator.principal t
  union all select coalesce(string_agg(t::text, ',' order by t::text), '') from orchestrator.pipeline t
  union all select coalesce(string_agg(t::text, ',' order by t::text), '') from orchestrator.reply t) f
"""


class Row(NamedTuple):
    """A request, and the statuses that are an answer to it."""

    name: str
    statuses: tuple[int, ...]
    method: str = "POST"
    path: str = "/tasks"
    body: bytes | None = None
    headers: dict[str, str] = JSON


class Victim:
    """A service with a little in it, which must look the same after all that."""

    def __init__(self, running: Running, conn: db.Connection, task: str, run: str) -> None:
        self.running, self.conn, self.task, self.run = running, conn, task, run

    async def facts(self) -> str:
        cursor = await self.conn.execute(FACTS.encode())
        row = await cursor.fetchone()
        assert row is not None
        return str(row["facts"])

    async def send(self, row: Row) -> tuple[httpx2.Response, float]:
        started = time.monotonic()
        path = row.path.format(task=self.task, run=self.run) if "{" in row.path else row.path
        headers = {
            name.encode(): value.encode("latin-1") for name, value in {**KEY, **row.headers}.items()
        }
        answer = await self.running.client.request(
            row.method, path, content=row.body, headers=headers
        )
        return answer, time.monotonic() - started

    async def wrong(self, row: Row) -> list[str]:
        """What is wrong with the answer. A slow one gets other chances: machines are busy."""
        answer, seconds = await self.send(row)
        for _ in range(3):
            if seconds > SECONDS:
                answer, seconds = await self.send(row)
        found = [] if answer.status_code in row.statuses else [f"status {answer.status_code}"]
        found += [f"{seconds:.1f} s"] if seconds > SECONDS else []
        found += [f"leak: {leak[0]!r}"] if (leak := LEAKS.search(answer.text)) else []
        found += ["large"] if len(answer.content) > 100_000 else []
        if answer.status_code >= 400:
            found += [] if answer.json().keys() >= {"type", "status", "error"} else ["no problem"]
        canary = await self.running.client.get("/tasks?limit=1", headers=KEY)
        return found + ([] if canary.status_code == 200 else [f"canary {canary.status_code}"])

    async def survives(self, rows: Iterable[Row]) -> None:
        wrong: dict[str, list[str]] = {}
        before = await self.facts()
        for row in rows:
            found = await self.wrong(row)
            if (after := await self.facts()) != before:
                before, found = after, [*found, "an effect"]
            if found:
                wrong[row.name] = found
        assert wrong == {}


@pytest.fixture
async def victim(serve: Serve, conn: db.Connection) -> Victim:
    await db.call(conn, "ensure_system_agent")
    running = await serve(body_timeout=0.5)
    made = await running.client.post("/tasks", json=GOOD, headers=KEY)
    task = made.json()["id"]
    ran = await running.client.post(f"/tasks/{task}/run_now", headers=KEY)
    return Victim(running, conn, task, ran.json()["details"]["run_id"])


def of(**said: Any) -> bytes:
    return json.dumps({**GOOD, **said}).encode()


def raw(field: str, text: str) -> bytes:
    """A good task but for one field, as text that no encoder would write."""
    return of(**{field: 987654321}).replace(b"987654321", text.encode())


GOOD_TEXT = json.dumps(GOOD)
SYNTAX: dict[str, bytes] = {
    "nothing": b"",
    "spaces": b"   \n\t ",
    "half": GOOD_TEXT[:-5].encode(),
    "a comma too many": GOOD_TEXT[:-1].encode() + b",}",
    "no comma": b'{"title": "T" "schedule_kind": "cron"}',
    "single quotes": GOOD_TEXT.replace('"', "'").encode(),
    "bare words": b"{title: T}",
    "a comment": b"/* x */" + GOOD_TEXT.encode(),
    "two documents": GOOD_TEXT.encode() * 2,
    "rubbish behind": GOOD_TEXT.encode() + b"x",
    "a closing bracket": b"]",
    "a lone quote": b'"',
    "an open escape": b'{"title": "\\',
    "a bad escape": raw("title", '"\\x41"'),
    "half an escape": raw("title", '"\\u12"'),
    "null": b"null",
    "true": b"true",
    "a number": b"17",
    "a text": b'"task"',
    "a list": b"[]",
    "a list of tasks": b"[" + GOOD_TEXT.encode() + b"]",
    "a thousand brackets": b"[" * 1000,
    "a hundred thousand brackets": b"[" * 100_000,
    "closed brackets": b"[" * 50_000 + b"]" * 50_000,
    "objects in each other": b'{"a":' * 20_000 + b"1" + b"}" * 20_000,
    "33 levels in the payload": raw("payload", "[" * 33 + "]" * 33),
    "a tab in a text": raw("title", '"a\tb"'),
    "a line break in a text": raw("title", '"a\nb"'),
    "not a number": raw("priority", "NaN"),
    "infinity": raw("dedupe_window_seconds", "Infinity"),
    "minus infinity": raw("dedupe_window_seconds", "-Infinity"),
    "octal": raw("priority", "05"),
    "hexadecimal": raw("priority", "0x5"),
    "a plus": raw("priority", "+5"),
    "a bare point": raw("grace_seconds", ".5"),
    "an open exponent": raw("grace_seconds", "1e"),
}
ENCODING: dict[str, bytes] = {
    "a byte order mark": b"\xef\xbb\xbf" + GOOD_TEXT.encode(),
    "UTF-16": GOOD_TEXT.encode("utf-16"),
    "UTF-16 without a mark": GOOD_TEXT.encode("utf-16-le"),
    "UTF-32": GOOD_TEXT.encode("utf-32"),
    "Latin-1": of(title="x").replace(b'"x"', b'"\xe9"'),
    "an overlong slash": of(title="x").replace(b'"x"', b'"\xc0\xaf"'),
    "a surrogate in UTF-8": of(title="x").replace(b'"x"', b'"\xed\xa0\x80"'),
    "a byte that never is": of(title="x").replace(b'"x"', b'"\xff"'),
    "beyond Unicode": of(title="x").replace(b'"x"', b'"\xf5\x80\x80\x80"'),
    "an open sequence": of(title="x").replace(b'"x"', b'"\xe2\x82"'),
    "an escaped NUL": raw("title", '"a\\u0000b"'),
    "a NUL": of(title="x").replace(b'"x"', b'"\x00"'),
    "a NUL in a name": GOOD_TEXT[:-1].encode() + b', "a\\u0000": 1}',
    "a NUL in the payload": raw("payload", '{"pipeline": [], "x": "\\u0000"}'),
    "half a surrogate": raw("title", '"\\ud800"'),
    "surrogates the wrong way round": raw("title", '"\\udc00\\ud800"'),
    "gzip": b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03" + b"\x00" * 30,
}


async def test_bodies_that_are_no_json(victim: Victim) -> None:
    await victim.survives(
        Row(name, (422,), body=body) for name, body in {**SYNTAX, **ENCODING}.items()
    )


PIPE = {"pipeline": [SET]}
WRONG_FIELDS: dict[str, dict[str, Any]] = {
    "no title": {"title": ""},
    "a long title": {"title": "x" * 201},
    "a title that is an object": {"title": {"$ne": None}},
    "a long description": {"description": "x" * 2001},
    "an unknown kind": {"schedule_kind": "eval"},
    "a number as the kind": {"schedule_kind": 1},
    "no expression": {"schedule_expr": ""},
    "a long expression": {"schedule_expr": "* " * 3000},
    "six fields": {"schedule_expr": "* * * * * *"},
    "minute 61": {"schedule_expr": "61 * * * *"},
    "the 30th of February": {"schedule_expr": "0 0 30 2 *"},
    "a step of 0": {"schedule_expr": "*/0 * * * *"},
    "a million minutes": {"schedule_expr": ",".join(["1"] * 1900) + " * * * *"},
    "SQL for a rule": {"schedule_expr": "'; drop table task; --"},
    "a rule each second": {"schedule_kind": "rrule", "schedule_expr": "FREQ=SECONDLY"},
    "a rule that never is": {
        "schedule_kind": "rrule", "schedule_expr": "FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30",
    },
    "a rule with a huge interval": {
        "schedule_kind": "rrule", "schedule_expr": "FREQ=DAILY;INTERVAL=99999999999999999999",
    },
    "no rule at all": {"schedule_kind": "rrule", "schedule_expr": "FREQ=NEVER"},
    "a time that is past": {"schedule_kind": "once", "schedule_expr": "2001-01-01T00:00:00Z"},
    "the year 10000": {"schedule_kind": "once", "schedule_expr": "10000-01-01T00:00:00Z"},
    "the 32nd": {"schedule_kind": "once", "schedule_expr": "2030-01-32T00:00:00Z"},
    "a zone on the disk": {"timezone": "../../../etc/passwd"},
    "an absolute zone": {"timezone": "/etc/passwd"},
    "a zone on Mars": {"timezone": "Mars/Base"},
    "a long zone": {"timezone": "x" * 10_000},
    "a start without a zone": {"starts_at": "2030-01-01T00:00:00"},
    "a start in the year 0": {"starts_at": "0000-01-01T00:00:00Z"},
    "an end before the start": {
        "starts_at": "2031-01-01T00:00:00Z", "ends_at": "2030-01-01T00:00:00Z",
    },
    "a start that is a number": {"starts_at": 1e308},
    "priority 0": {"priority": 0},
    "priority 10": {"priority": 10},
    "priority 2^64": {"priority": 2**64},
    "priority 10^400": {"priority": 10**400},
    "priority 5.5": {"priority": 5.5},
    "priority as text": {"priority": "5"},
    "priority true": {"priority": True},
    "priority null": {"priority": None},
    "retries below 0": {"max_retries": -1},
    "eleven retries": {"max_retries": 11},
    "an unknown backoff": {"backoff_strategy": "quadratic"},
    "no time at all": {"timeout_seconds": 0},
    "less than no time": {"timeout_seconds": -1},
    "time for ever": {"timeout_seconds": 1e300},
    "a window below 0": {"dedupe_window_seconds": -1},
    "a window for ever": {"dedupe_window_seconds": 1e300},
    "a key without a letter": {"dedupe_key": ""},
    "a long key": {"concurrency_key": "x" * 401},
    "no slot": {"concurrency_limit": 0},
    "labels as a list": {"labels": ["a"]},
    "large labels": {"labels": {"a": "x" * 20_000}},
    "a queue without a name": {"queue": ""},
    "no payload": {"payload": {}},
    "an empty pipeline": {"payload": {"pipeline": []}},
    "a pipeline that is text": {"payload": {"pipeline": "rm -rf /"}},
    "an unknown field of a step": {"payload": {"pipeline": [{**SET, "exec": "id"}]}},
    "a step with a path as its id": {"payload": {"pipeline": [{**SET, "id": "../a"}]}},
    "two steps with an id": {"payload": {"pipeline": [SET, SET]}},
    "steps in a circle": {
        "payload": {"pipeline": [{**SET, "needs": ["b"]}, {**SET, "id": "b", "needs": ["a"]}]},
    },
    "an open expression": {"payload": {"pipeline": [{**SET, "with": {"x": "${"}}]}},
    "an expression of Python": {
        "payload": {"pipeline": [{**SET, "with": {"x": "${__import__('os').system('id')}"}}]},
    },
    "a large expression": {
        "payload": {"pipeline": [{**SET, "with": {"x": "${" + "1+" * 5000 + "1}"}}]},
    },
    "a hungry expression": {
        "payload": {"pipeline": [{**SET, "if": "[1,2].map(a,[1,2].map(b," * 40 + "1" + "))" * 40}]},
    },
    "a probe without a condition": {"payload": {**PIPE, "probe": SET}},
    "a condition without a probe": {
        "schedule_kind": "condition", "schedule_expr": "every 5m when result.x",
    },
    "a condition without a time": {"schedule_kind": "condition", "schedule_expr": "when true"},
    "half a star in a topic": {"schedule_kind": "event", "schedule_expr": "orders.cr*"},
    "an event with a bad condition": {
        "schedule_kind": "event", "schedule_expr": "a when event.payload. >",
    },
    "the id": {"id": str(uuid4())},
    "the tenant": {"tenant_id": "other"},
    "the tenant, as the verb says it": {"tenant": "other"},
    "the status": {"status": "completed"},
    "the version": {"version": 7},
    "the time of making": {"created_at": "2001-01-01T00:00:00Z"},
    "the next run": {"next_run_at": "2001-01-01T00:00:00Z"},
    "the plan": {"instants": ["2030-01-01T00:00:00Z"]},
    "the clock": {"made_at": "2001-01-01T00:00:00Z"},
    "scopes": {"scopes": ["admin"]},
    "a prototype": {"__proto__": {"admin": True}},
    "a class": {"__class__": "Config"},
    "somebody who isn't one": {"created_by": "me"},
    "four thousand unknown fields": {f"f{n}": n for n in range(4000)},
}  # fmt: skip


async def test_tasks_that_make_no_sense(victim: Victim) -> None:
    rows = [Row(name, (422,), body=of(**said)) for name, said in WRONG_FIELDS.items()]
    nobody = of(created_by=str(uuid4()))
    rows += [
        Row("made by nobody", (409, 422), body=nobody),
        Row("two megabytes", (413,), body=of(title="x" * 2_000_000)),
        Row("a rule that is a task", (422,), path="/tasks/preview", body=of()),
    ]
    await victim.survives(rows)


def types() -> Iterable[Row]:
    for kind in ("text/plain", "application/xml", "application/x-www-form-urlencoded",
                 "multipart/form-data; boundary=x", "application/jsonp", "text/json", "*/*",
                 "application/json, text/plain", "json", ";", "application/", ""):  # fmt: skip
        yield Row(f"type {kind!r}", (415,), body=of(), headers={"Content-Type": kind})


async def test_bodies_of_other_types(victim: Victim) -> None:
    await victim.survives(types())


PATHS = [
    "not-a-uuid", "0", "-1", "null", "undefined", "%00", "%2e%2e%2f", "a" * 3000, "'%20or%201=1--",
    "01900000000070008000000000000000", "01900000-0000-7000-8000-00000000000g", "{{task}}", "%ff",
    "01900000-0000-7000-8000-000000000000%00", "01900000-0000-7000-8000-000000000000;x=1", "*",
    "%D9%A0%D9%A1900000-0000-7000-8000-000000000000", "${{task}}", "[task]", "task,task", "%252e",
]  # fmt: skip


async def test_ids_that_are_none(victim: Victim) -> None:
    rows = [
        Row(f"{method} {place} {bad[:40]}", (404, 405), method, place.replace("ID", bad), headers={})
        for bad in PATHS
        for method, place in (("GET", "/tasks/ID"), ("GET", "/runs/ID"), ("POST", "/runs/ID/retry"),
                              ("POST", "/tasks/ID/cancel"))
    ]  # fmt: skip
    await victim.survives(rows)


QUERIES = [
    "limit=0", "limit=-1", "limit=201", "limit=1000000", "limit=abc", "limit=1.5", "limit=", "limit=NaN",
    "limit=0x10", "limit=99999999999999999999999", "limit=1&limit=2", "limit[]=1", "LIMIT=1",
    "offset=-1", "offset=10001", "offset=1e18", "offset=abc", "offset=9223372036854775808", "offset=",
    "cursor=x", "cursor=", "cursor=MDE5MDAwMDA%3D", "cursor=-1", "cursor=%27", "cursor=%7B%7D",
    "cursor=01900000-0000-7000-8000-00000000000g", "cursor=01900000-0000-7000-8000-000000000000%00",
    "cursor=%00", "nope=1", "order=id%3Bdrop%20table%20task", "tenant=other", "tenant_id=other", "owner=x",
    "filter=%7B%7D", "%00=1", "limit=%00", "%ff=1", "label=", "label=" + "x" * 500, "__proto__=1",
]  # fmt: skip
OF_TASKS = ["status=dead", "status=", "created_by=me", "created_by=", "schedule_kind=eval", "q=",
            "q=" + "x" * 201, "q=%00"]  # fmt: skip
OF_RUNS = [
    "kind=secret", "kind=", "state=exploded", "state=Running", "success=maybe", "success=", "task_id=x",
    "task_id=", "start_time=now()", "start_time=yesterday", "start_time=2026-01-01", "end_time=",
    "start_time=2026-01-01T00:00:00", "start_time=99999-01-01T00:00:00Z", "start_time=infinity",
    "end_time=2026-02-30T00:00:00Z", "end_time=2026-01-01T25:00:00Z", "start_time=-1", "queue=",
]  # fmt: skip


async def test_lists_that_nobody_has(victim: Victim) -> None:
    asked = [*(("/tasks", query) for query in (*QUERIES, *OF_TASKS)),
             *(("/runs", query) for query in (*QUERIES, *OF_RUNS))]  # fmt: skip
    await victim.survives(
        Row(f"{path}?{query[:60]}", (422,), "GET", f"{path}?{query}", headers={})
        for path, query in asked
    )


ANSWERED = [
    "/tasks?q=%27%20or%201%3D1%20--", "/tasks?q=%25", "/tasks?q=_", "/tasks?q=%5C", "/tasks?label=a:b:c",
    "/tasks?label=%27", "/tasks?label=:", "/tasks?cursor=ffffffff-ffff-ffff-ffff-ffffffffffff",
    "/tasks?cursor=00000000-0000-0000-0000-000000000000", "/runs?offset=10000", "/runs?label=%25:%25",
    "/runs?start_time=0001-01-01T00:00:00Z", "/runs?end_time=9999-12-31T23:59:59Z", "/runs?queue=%27",
    "/runs?start_time=2030-01-01T00:00:00Z&end_time=2020-01-01T00:00:00Z", "/runs?fingerprint=%27%3B",
    "/runs?state=ready&success=true", "/runs?flow_id=%F0%9F%92%A3", "/runs?error_type=%24%7Bx%7D",
]  # fmt: skip


async def test_questions_that_only_look_hostile_are_answered(victim: Victim) -> None:
    await victim.survives(Row(path, (200,), "GET", path, headers={}) for path in ANSWERED)


def said(body: Any) -> bytes:
    return json.dumps(body).encode()


def acts() -> Iterable[Row]:
    snooze, retry, bulk = "/tasks/{task}/snooze", "/runs/retry", "/tasks/bulk"
    for name, body in {
        "no time": {}, "0 s": {"seconds": 0}, "8 days": {"seconds": 604_801}, "both": {"seconds": 1, "delay_seconds": 1},
        "half a second": {"seconds": 0.5}, "text": {"seconds": "60"}, "another task": {"seconds": 60, "task": str(uuid4())},
        "a long reason": {"seconds": 60, "reason": "x" * 1001},
    }.items():  # fmt: skip
        yield Row(f"snooze: {name}", (422,), path=snooze, body=said(body))
    for name, body in {
        "an unknown field": {"were": {}}, "a filter that is text": {"where": "1=1"}, "an unknown filter": {"where": {"x": 1}},
        "no most": {"most": 0}, "a vast most": {"most": 10**9}, "no speed": {"per_second": 0}, "a tenant": {"tenant": "x"},
        "a bad time": {"where": {"start_time": "now"}}, "an owner": {"owner": None},
        "a state that isn't one": {"where": {"state": "x"}}, "no object": [],
    }.items():  # fmt: skip
        yield Row(f"retry: {name}", (422,), path=retry, body=said(body))
    for name, body in {
        "no items": {}, "empty": {"items": []}, "an object": {"items": {}}, "10,001": {"items": [0] * 10_001},
        "beside": {"items": [GOOD], "tenant": "x"},
    }.items():  # fmt: skip
        yield Row(f"bulk: {name}", (422,), path=bulk, body=said(body))
    for name, body in {
        "nothing": {}, "no topic": {"topic": ""}, "a long topic": {"topic": "x" * 101}, "ours": {"topic": "$run.failed"},
        "a NUL": {"topic": "a\0"}, "an id that isn't one": {"topic": "a", "id": "x"}, "a future id":
        {"topic": "a", "id": "7fffffff-0000-7000-8000-000000000000"}, "a tenant": {"topic": "a", "tenant": "x"},
        "an id that isn't of our kind": {"topic": "a", "id": str(uuid4())},
    }.items():  # fmt: skip
        yield Row(f"event: {name}", (422,), path="/events", body=said(body))
    for action in ("run_now", "pause", "resume", "cancel"):
        yield Row(f"{action} with a body", (422,), path="/tasks/{task}/" + action, body=b'{"a": 1}')
    yield Row("retry of a live run", (409,), path="/runs/{run}/retry", headers={})
    yield Row(
        "retry from a step of a live run",
        (404, 409),
        path="/runs/{run}/retry_from/..%2f",
        headers={},
    )
    yield Row("retry from its step", (409,), path="/runs/{run}/retry_from/a", headers={})
    yield Row("output of a live run", (409,), "GET", "/runs/{run}/output", headers={})
    yield Row("a step that isn't there", (404,), "GET", "/runs/{run}/output?step=%27", headers={})
    yield Row(
        "an approval of nothing", (404, 409, 410, 422), path="/runs/{run}/approve", body=b"{}"
    )
    yield Row("a callback of nobody", (404,), path="/callbacks/x", body=b"{}")


async def test_acts_that_make_no_sense(victim: Victim) -> None:
    await victim.survives(acts())


def others() -> Iterable[Row]:
    for method in ("DELETE", "PATCH", "PUT", "TRACE", "PROPFIND"):
        yield Row(f"{method} /runs", (400, 405), method, "/runs", headers={})
    yield Row("POST /runs", (405,), "POST", "/runs", b"{}")
    yield Row("DELETE a task", (405,), "DELETE", "/tasks/{task}", headers={})
    for tag in ('"x"', "W/", "-1", "9" * 40, '"1", "2"', "'", "٣"):
        headers = {**JSON, "If-Match": tag.encode().decode("latin-1")}
        row = Row(f"If-Match {tag}", (409, 422), "PUT", "/tasks/{task}", b'{"title": "U"}', headers)
        yield row
    for key in ("a b", "x" * 256, "\x80", ""):
        yield Row(f"key {key[:5]!r}", (422,), body=of(), headers={**JSON, "Idempotency-Key": key})
    yield Row("another tenant's host", (401,), body=of(), headers={**JSON, "Host": "evil.example"})
    for name, value in {"scheme": "Basic eDp5", "none": "Bearer", "other": f"Bearer {uuid4()}",
                        "SQL": "Bearer ' or 1=1 --", "long": "Bearer " + "x" * 8000}.items():  # fmt: skip
        yield Row(f"key {name}", (401,), body=of(), headers={**JSON, "Authorization": value})


async def test_methods_versions_and_keys_that_make_no_sense(victim: Victim) -> None:
    await victim.survives(others())


BODY = of(title="smuggled")
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
HEAD = b"POST /tasks HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n" + (
    f"Authorization: {KEY['Authorization']}\r\n".encode()
)
FRAMES: dict[str, bytes] = {
    "length and chunks": HEAD + LENGTH + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + BODY,
    "two lengths": HEAD + b"Content-Length: 0\r\n" + LENGTH + b"\r\n" + BODY,
    "two lengths in one": HEAD + b"Content-Length: 0, %d\r\n\r\n" % len(BODY) + BODY,
    "a negative length": HEAD + b"Content-Length: -1\r\n\r\n" + BODY,
    "a length with a plus": HEAD + b"Content-Length: +%d\r\n\r\n" % len(BODY) + BODY,
    "a length in hex": HEAD + b"Content-Length: 0x10\r\n\r\n" + BODY,
    "a vast length": HEAD + b"Content-Length: 99999999999999999999\r\n\r\n" + BODY,
    "a gigabyte announced": HEAD + b"Content-Length: 1073741824\r\n\r\n" + BODY,
    "less than announced": HEAD + b"Content-Length: 9000\r\n\r\n" + BODY,
    "a bad chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n" + BODY,
    "a negative chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\n-5\r\n" + BODY,
    "a vast chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n" + BODY,
    "unknown coding": HEAD + b"Transfer-Encoding: xchunked\r\n\r\n" + BODY,
    "coding twice": HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "a space before the colon": HEAD + b"Content-Length : %d\r\n\r\n" % len(BODY) + BODY,
    "a header without a colon": HEAD + b"Nonsense\r\n\r\n",
    "a folded header": HEAD + b"X: a\r\n b\r\nContent-Length: 2\r\n\r\n{}",
    "a NUL in a header": HEAD + b"X: a\x00b\r\n\r\n",
    "a line break in a header": HEAD + b"X: a\rb\r\n\r\n",
    "no version": b"GET /tasks\r\n\r\n",
    "another version": b"GET /tasks HTTP/3.0\r\n\r\n",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "a method that is none": b"G@T / HTTP/1.1\r\nHost: x\r\n\r\n",
    "a path with a space": b"GET /tasks x HTTP/1.1\r\nHost: x\r\n\r\n",
    "raw bytes in the path": b"GET /\xff\xfe\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
    "somebody else's address": b"GET http://evil.example/tasks HTTP/1.1\r\nHost: x\r\n\r\n",
    "a star": b"GET * HTTP/1.1\r\nHost: x\r\n\r\n",
    "a tunnel": b"CONNECT evil.example:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    "a long head": b"GET / HTTP/1.1\r\n" + b"X: " + b"a" * 40_000 + b"\r\n\r\n",
    "many headers": b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 500 + b"\r\n",
    "a head that stops": b"POST /tasks HTTP/1.1\r\nHost: x\r\nX",
}  # fmt: skip


async def test_frames_that_are_none_smuggle_nothing(victim: Victim) -> None:
    wrong: dict[str, list[str]] = {}
    before = await victim.facts()
    for name, data in FRAMES.items():
        started = time.monotonic()
        answer = await exchange(victim.running.port, data)
        found = [f"status {s}" for s in statuses(answer) if not 400 <= s < 500]
        found += [f"{time.monotonic() - started:.1f} s"] if time.monotonic() - started > 3 else []
        found += ["leak"] if LEAKS.search(answer.decode("latin-1")) else []
        canary = await victim.running.client.get("/tasks?limit=1", headers=KEY)
        found += [] if canary.status_code == 200 else ["canary"]
        if (after := await victim.facts()) != before:
            before, found = after, [*found, "an effect"]
        if found:
            wrong[name] = found
    assert wrong == {}


async def exchange(port: int, data: bytes) -> bytes:
    """What comes back until the line is closed; the service gives up on half a second's silence."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        async with asyncio.timeout(1.5):
            return await reader.read()
    except (TimeoutError, ConnectionError):
        return b""
    finally:
        writer.close()


def statuses(answer: bytes) -> list[int]:
    return [int(found) for found in re.findall(rb"HTTP/1\.[01] (\d{3})", answer)]


def test_there_are_enough_of_them() -> None:
    tables: list[Sized] = [
        SYNTAX,
        ENCODING,
        WRONG_FIELDS,
        PATHS,
        QUERIES,
        OF_RUNS,
        OF_TASKS,
        ANSWERED,
        FRAMES,
    ]
    counted = sum(map(len, tables)) + len([*types(), *acts(), *others()])
    assert counted >= 250


# Every route of the product


def place(endpoint: Endpoint, id: str | None = None) -> str:
    """The route's path: with ids that nothing has, or with one that is none."""
    return re.sub(
        r"\{\w+(:uuid)?\}", lambda m: (id or str(uuid4())) if m[1] else "x", endpoint.path
    )


async def ask(victim: Victim, endpoint: Endpoint, path: str) -> httpx2.Response:
    body = b"{}" if endpoint.body is not None else None
    headers = {**KEY, **(JSON if body else {})}
    asked = victim.running.client.stream(endpoint.method, path, content=body, headers=headers)
    async with asked as answer:
        if "text/event-stream" not in answer.headers.get("content-type", ""):  # which has no end
            await answer.aread()
        return answer


async def test_both_slash_forms_are_one(victim: Victim) -> None:
    for endpoint in ENDPOINTS:
        path = place(endpoint)
        one, other = await ask(victim, endpoint, path), await ask(victim, endpoint, f"{path}/")
        assert one.status_code == other.status_code, path
        assert not one.is_redirect


async def test_an_id_that_is_none_is_404_on_every_route(victim: Victim) -> None:
    for endpoint in ENDPOINTS:
        if ":uuid}" in endpoint.path:
            path = place(endpoint, "not-a-uuid")
            assert (await ask(victim, endpoint, path)).status_code in {404, 405}, path


async def test_an_unknown_field_of_a_query_is_refused_on_every_route(victim: Victim) -> None:
    for endpoint in ENDPOINTS:
        answer = await ask(victim, endpoint, f"{place(endpoint)}?no_such_field=1")
        assert (answer.status_code, "no_such_field" in answer.text) == (422, True), endpoint.path


async def test_every_list_is_bounded_at_200(victim: Victim) -> None:
    bounded = [e for e in ENDPOINTS if e.query and "limit" in e.query.__struct_fields__]
    assert {"/tasks", "/runs", "/runs/failures"} <= {endpoint.path for endpoint in bounded}
    for endpoint in bounded:
        for limit in (0, 201):
            answer = await ask(victim, endpoint, f"{place(endpoint)}?limit={limit}")
            assert answer.status_code == 422, endpoint.path


async def test_no_route_with_a_scope_is_answered_without_a_key(victim: Victim) -> None:
    for endpoint in ENDPOINTS:
        if endpoint.scope is not None:
            answer = await victim.running.client.request(endpoint.method, place(endpoint))
            assert answer.status_code == 401, endpoint.path
