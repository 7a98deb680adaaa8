"""Everything behind PgBouncer in transaction mode, when it is installed."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from conftest import Make, Serve
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from orchestrator import db, scheduler, worker

PGBOUNCER = shutil.which("pgbouncer") or "/usr/sbin/pgbouncer"
pytestmark = pytest.mark.skipif(
    not Path(PGBOUNCER).exists(), reason="PgBouncer isn't installed (apt install pgbouncer)"
)

SETTINGS = """
[databases]
* = host={host} port={port} user={user} password={password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 5
max_client_conn = 100
server_tls_sslmode = disable
"""


@pytest.fixture
def pooled(database: str, free_tcp_port: int) -> Iterator[str]:
    """This test's database, through a transaction pooler."""
    place = {name: str(value) for name, value in conninfo_to_dict(database).items()}
    folder = Path(tempfile.mkdtemp(prefix="orc-pooler-"))
    folder.chmod(0o755)
    file = folder / "pgbouncer.ini"
    file.write_text(
        SETTINGS.format(
            host=place["host"],
            port=place["port"],
            user=place["user"],
            password=place["password"],
            listen=free_tcp_port,
        )
    )
    account = "nobody" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
    process = subprocess.Popen(
        [PGBOUNCER, "-q", str(file)], user=account, stderr=subprocess.DEVNULL
    )
    try:
        _until_it_listens(free_tcp_port)
        yield make_conninfo(database, host="127.0.0.1", port=free_tcp_port)
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(folder)


def _until_it_listens(port: int) -> None:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            time.sleep(0.01)
    pytest.fail("PgBouncer did not start")


async def test_a_worker_and_a_scheduler_do_their_work(pooled: str, make: Make) -> None:
    config = make.config(database_url=pooled, database_pooler=True)
    pipeline = [{"id": "a", "uses": "set", "with": {"x": 1}}]
    async with db.Pool(config, role="orc_api", application="t") as pool:
        for number in range(20):
            await pool.call("enqueue", tenant="t", pipeline=pipeline, input={"n": number})
    options = worker.Options(hints=False, slots=4)
    assert await worker.once(config, options) == 20
    async with db.Pool(config, role="orc_worker", application="t") as pool:
        await scheduler.once(pool)
    with psycopg.connect(pooled, prepare_threshold=None) as look:
        states = look.execute("select state, count(*) from orc.runs group by 1").fetchall()
    assert states == [("succeeded", 20)]


async def test_the_api_answers(pooled: str, serve: Serve) -> None:
    running = await serve(database_url=pooled, database_pooler=True)
    for _ in range(12):
        assert (await running.client.get("/health/ready")).status_code == 200


async def test_who_acts_is_told_and_forgotten(pooled: str, serve: Serve) -> None:
    """Two agents take turns on the pooler's connections; each row names who did it."""
    running = await serve(database_url=pooled, database_pooler=True, app_env="production")
    with psycopg.connect(pooled, prepare_threshold=None, autocommit=True) as look:
        made = [
            look.execute("select orc.create_agent(%s, 'a', '{tasks:write}')", [tenant]).fetchone()
            for tenant in ("one", "two")
        ]
        agents = [row[0] for row in made if row]
        payload = {"pipeline": [{"id": "a", "uses": "set", "with": {"x": 1}}]}
        rule = {"schedule_kind": "event", "schedule_expr": "a.b"}
        task = {"title": "t", **rule, "payload": payload}
        for number in range(20):
            key = agents[number % 2]["key"]
            headers = {"Authorization": f"Bearer {key}", "X-Request-ID": f"request-{number}"}
            answer = await running.client.post("/tasks", json=task, headers=headers)
            assert answer.status_code == 201, answer.text
        rows = look.execute(
            "select tenant_id, actor, request_id from orchestrator.audit"
            " where action = 'create_task' order by id"
        ).fetchall()
        left = look.execute("select current_setting('orchestrator.actor', true)").fetchone()
    assert rows == [(("one", "two")[n % 2], agents[n % 2]["id"], f"request-{n}") for n in range(20)]
    assert left is not None and not left[0]
