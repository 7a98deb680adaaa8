"""Log lines: one per transition, readable by machines, with nothing secret in them."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
from conftest import Serve

from orchestrator import telemetry

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def lines(own_logs: None) -> Lines:
    stream = io.StringIO()
    telemetry.setup("test", "info", "json", stream)
    return lambda: [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_has_its_action_its_facts_and_the_correlation_id(lines: Lines) -> None:
    telemetry.correlation_id.set("c-1")
    telemetry.log("run_claimed", run_id="r1")
    telemetry.correlation_id.set(None)
    (line,) = lines()
    assert line.pop("timestamp")
    assert line == {
        "action": "run_claimed",
        "message": "run claimed",
        "run_id": "r1",
        "level": "info",
        "process": "test",
        "correlation_id": "c-1",
        "trace_id": None,
    }


def test_secrets_are_hidden_by_name_by_form_and_in_tracebacks(lines: Lines) -> None:
    try:
        raise ValueError("postgresql://me:hunter2@host/db refused Bearer abc.def.ghi")
    except ValueError as error:
        telemetry.log(
            "failed", "error", exc_info=error,
            api_key="hunter2", nested={"Password": "hunter2", "url": "redis://:hunter2@h"},
            words=["ork_1_hunter2", "password=hunter2 host=x"],
            tries=["orr_1_hunter2", "eyJhbGciOiJIUzI1NiJ9.hunter2.x"],
        )  # fmt: skip
    (line,) = lines()
    text = json.dumps(line)
    assert "hunter2" not in text and "abc.def" not in text
    assert "ValueError" in str(line["exception"]) and "host=x" in text


def test_libraries_log_in_the_same_form(lines: Lines) -> None:
    logging.getLogger("some.library").warning("token %s", "postgresql://u:hunter2@h/d")
    (line,) = lines()
    assert line["level"] == "warning" and "hunter2" not in str(line) and line["message"]


def test_what_every_line_has_comes_first(lines: Lines) -> None:
    telemetry.log("a", run_id="r")
    (line,) = lines()
    assert list(line)[:5] == ["timestamp", "level", "message", "correlation_id", "trace_id"]


async def test_a_request_has_one_line_without_its_query_or_token(
    serve: Serve, lines: Lines
) -> None:
    client = (await serve()).client
    headers = {"X-Request-ID": "r-1", "traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
    await client.get("/runs?q=s3cret", headers=headers)
    await client.post("/callbacks/s3cret", json={})
    await client.post("/callbacks/s3cret/", json={})
    await client.get("/ping?q=s3cret")
    await client.get("/health/live/")
    said = [line for line in lines() if line.get("action") == "request_answered"]
    token = ("POST", "/callbacks/{token}")
    assert [(line["method"], line["path"]) for line in said] == [("GET", "/runs"), token, token]
    first = said[0]
    assert (first["level"], first["status"]) == ("info", 401)
    assert (first["correlation_id"], first["trace_id"]) == ("r-1", "a" * 32)
    assert isinstance(first["ms"], float)
    assert said[1]["correlation_id"] != "r-1" and said[1]["trace_id"] is None
    assert "s3cret" not in str(said)


def test_the_level_is_obeyed(lines: Lines) -> None:
    telemetry.log("quiet", "debug")
    assert lines() == []
