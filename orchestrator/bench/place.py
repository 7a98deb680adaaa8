"""Where it is measured: a server of its own, a fresh database for each repetition."""

from __future__ import annotations

import itertools
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from psycopg import sql as syntax

from .. import __version__, db, devpg, schema
from . import sql

TEMPLATE = "bench_template"
PATIENCE = 600.0
"""Seconds that a statement of the bench may take."""


@dataclass
class Place:
    cluster: devpg.Cluster
    admin: db.Connection
    scale: float
    numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def repetitions(self) -> int:
        """Three, and the median counts; one when the whole is to be short."""
        return 3 if self.scale >= 0.1 else 1

    def scaled(self, count: int, least: int = 1) -> int:
        return max(least, round(count * self.scale))

    @asynccontextmanager
    async def database(self) -> AsyncIterator[str]:
        """The URL of a fresh database with the schema and the floor's tables."""
        name = f"bench_{next(self.numbers)}"
        made, gone = "create database {} template {}", "drop database {} with (force)"
        words = [syntax.Identifier(name), syntax.Identifier(TEMPLATE)]
        await self.admin.execute(syntax.SQL(made).format(*words))
        await self.admin.execute("checkpoint")
        try:
            yield self.cluster.url_of(name)
        finally:
            await self.admin.execute(syntax.SQL(gone).format(words[0]))

    async def machine(self) -> dict[str, Any]:
        """What the figures depend on."""
        server = await rows(self.admin, sql.VERSION)
        settings = {row["name"]: row["value"] for row in await rows(self.admin, sql.SETTINGS)}
        return {
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
            "cpus": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
            "load": round(os.getloadavg()[0], 2),
            "server": server[0]["version"],
            "python": platform.python_version(),
            "orchestrator": __version__,
            "settings": settings,
            "scale": self.scale,
            "repetitions": self.repetitions,
        }


@contextmanager
def _server() -> Iterator[devpg.Cluster]:
    folder = Path(tempfile.mkdtemp(prefix=f"orc-bench-{os.getpid()}-"))
    folder.chmod(0o755)
    try:
        yield devpg.start(folder)
    finally:
        devpg.stop(folder, mode="immediate")
        shutil.rmtree(folder, ignore_errors=True)


@asynccontextmanager
async def open_place(scale: float) -> AsyncIterator[Place]:
    """Starts the server and prepares the template; at the end nothing is left."""
    with _server() as cluster:
        async with await connect(cluster.url) as admin:
            name = syntax.Identifier(TEMPLATE)
            await admin.execute(syntax.SQL("create database {}").format(name))
            url = cluster.url_of(TEMPLATE)
            await schema.install(url)
            async with await connect(url) as conn:
                await db.call(conn, "keep_partitions")
                modern = (await rows(conn, sql.HAS_UUIDV7))[0]["yes"]
                new_id = "uuidv7()" if modern else "gen_random_uuid()"
                await conn.execute(sql.FLOOR.format(new_id=new_id).encode())
            yield Place(cluster, admin, scale)


async def connect(url: str, **options: Any) -> db.Connection:
    return await db.connect(url, application="bench", **{"timeout": PATIENCE, **options})


async def rows(connection: db.Connection, text: str, *given: Any) -> list[db.Row]:
    cursor = await connection.execute(text.encode(), given or None, prepare=True)
    return await cursor.fetchall() if cursor.description else []
