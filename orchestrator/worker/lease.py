"""A worker's lease, renewed by a thread of its own: a blocked event loop doesn't lose it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from .. import db
from ..config import Config
from ..errors import Gone
from ..telemetry import log


class Lease:
    """Renews until it is told to stop, or the lease is lost.

    `lost` is called when the database says so, and also when it has been silent for as long as the
    lease lasts: by then others may have the work. A thread that hangs on a frozen server can't say
    that; so whoever holds the lease looks at `is_over`, too.
    """

    def __init__(
        self,
        config: Config,
        worker: str,
        seconds: float,
        *,
        since: float,
        cancel: Callable[[list[str]], object],
        lost: Callable[[], object],
    ) -> None:
        self.config = config
        self.worker = worker
        self.seconds = seconds
        self.renewed_at = since
        self.cancel = cancel
        self.lost = lost
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    @property
    def is_over(self) -> bool:
        return time.monotonic() - self.renewed_at > self.seconds

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        self.ended.set()

    def _keep(self) -> None:
        connection: psycopg.Connection[Any] | None = None
        pause = self.seconds / 4
        while not self.ended.wait(pause):
            asked_at = time.monotonic()
            try:
                connection = connection or self._connect()
                self._renew(connection)
                self.renewed_at, pause = asked_at, self.seconds / 4
            except Gone:
                self._give_up("the database says that it ended")
                break
            except psycopg.Error as error:
                log("lease_not_renewed", "warning", worker_id=self.worker, error=str(error))
                _close(connection)
                connection, pause = None, min(0.5, self.seconds / 8)
            if self.is_over:
                self._give_up("the database is silent")
                break
        _close(connection)

    def _connect(self) -> psycopg.Connection[Any]:
        """Its statements end within a third of the lease, whatever the network does."""
        bound = max(1.0, self.seconds / 3)
        info = db.conninfo(
            self.config.database_url,
            role="orc_worker",
            timeout=bound,
            application="orchestrator lease",
            pooler=self.config.database_pooler,
        )
        info = make_conninfo(info, tcp_user_timeout=min(6000, round(bound * 1000)))
        threshold = None if self.config.database_pooler else 5
        return psycopg.connect(info, autocommit=True, prepare_threshold=threshold)

    def _renew(self, connection: psycopg.Connection[Any]) -> None:
        canceled = db.call_now(connection, "renew_worker", worker=self.worker)[0]["canceled"]
        if canceled:
            with suppress(RuntimeError):  # the loop is closed
                self.cancel([str(run) for run in canceled])

    def _give_up(self, why: str) -> None:
        if not self.ended.is_set():
            log("lease_lost", "error", worker_id=self.worker, why=why)
            with suppress(RuntimeError):
                self.lost()


def _close(connection: psycopg.Connection[Any] | None) -> None:
    if connection is not None:
        connection.close()
