"""The service does what its document says: schemathesis asks it all sorts of things."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Running, Serve

from orchestrator import auth, db

CHECKS = ",".join([
    "not_a_server_error", "status_code_conformance", "content_type_conformance",
    "response_headers_conformance", "response_schema_conformance", "negative_data_rejection",
    "unsupported_method", "use_after_free", "ignored_auth",
])  # fmt: skip

APART = r"^/(metrics|health.*|events/stream|(runs|tasks)/[^/]+/events)$"
"""No JSON, or a stream that has no end: test_api, test_streams and test_hostile ask those."""


def examine(running: Running, folder: Path, *options: str) -> str:
    """The report of a run, or a failure with it. Its own process: it isn't asynchronous."""
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", f"{running.url}/openapi.json",
        "--header", f"Authorization: Bearer {auth.SYSTEM_AGENT}", "--checks", CHECKS,
        "--exclude-path-regex", APART, "--request-timeout", "20", "--no-color",
        "--generation-database", "none", "--suppress-health-check", "all", *options,
    ]  # fmt: skip
    mine = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    done = subprocess.run(
        command, cwd=folder, env=mine, capture_output=True, text=True, timeout=1500, check=False
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5_000:]
    return done.stdout


GOOD = {
    "title": "T", "schedule_kind": "cron", "schedule_expr": "30 8 * * *",
    "payload": {"pipeline": [{"id": "a", "uses": "set", "with": {"x": 1}}]},
}  # fmt: skip


async def served(serve: Serve, conn: db.Connection, folder: Path) -> Running:
    """With a task and a run, whose ids stand in paths, so that not all is 404."""
    await db.call(conn, "ensure_system_agent")
    running = await serve()
    headers = {"Authorization": f"Bearer {auth.SYSTEM_AGENT}"}
    made = await running.client.post("/tasks", json=GOOD, headers=headers)
    task = made.json()["id"]
    ran = await running.client.post(f"/tasks/{task}/run_now", headers=headers)
    run = ran.json()["details"]["run_id"]
    config = f'[parameters]\n"path.task" = "{task}"\n"path.run" = "{run}"\n'
    (folder / "schemathesis.toml").write_text(config)
    return running


async def test_the_service_answers_as_its_document_says(
    serve: Serve, conn: db.Connection, tmp_path: Path
) -> None:
    running = await served(serve, conn, tmp_path)
    options = ["--phases", "examples,coverage", "--mode", "all", "--seed", "1", "--max-time", "20"]
    await asyncio.to_thread(examine, running, tmp_path, *options)


@pytest.mark.soak
async def test_the_service_answers_as_its_document_says_for_long(
    serve: Serve, conn: db.Connection, tmp_path: Path
) -> None:
    running = await served(serve, conn, tmp_path)
    options = ["--phases", "examples,coverage,fuzzing,stateful", "--mode", "all",
               "--max-examples", "60", "--workers", "2"]  # fmt: skip
    said = await asyncio.to_thread(examine, running, tmp_path, *options)
    print(said[said.rfind("SUMMARY") :])
