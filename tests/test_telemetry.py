"""Log lines: one per transition, readable by machines, with nothing secret in them."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from orchestrator import telemetry

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def lines() -> Iterator[Lines]:
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    stream = io.StringIO()
    telemetry.setup("test", "info", "json", stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    structlog.reset_defaults()
    root.handlers[:], root.level = before


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


def test_the_level_is_obeyed(lines: Lines) -> None:
    telemetry.log("quiet", "debug")
    assert lines() == []
