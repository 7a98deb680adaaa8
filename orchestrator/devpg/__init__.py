"""The embedded PostgreSQL: finds a server's binaries, makes a cluster, starts and stops it.

    data/               the data folder
      postgres/         the cluster
      postgres.json     its port and password, and where it is when it isn't here (0600)
      postgres.log      what the server said
      postgres.lock     held while the cluster is made, started, stopped or removed
      socket/           0700: whoever gets in is trusted
      binaries/         a copy, when the server's account can't reach the installed ones

PostgreSQL refuses to run as root, so root starts it as an ordinary account. What that account can't
reach, because the checkout is in a private home, goes to a folder of its own in `places.ELSEWHERE`.
A cluster is made under another name and renamed, and renamed before it is removed: what is called
`postgres` is whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from . import cluster as clusters
from . import server
from .binaries import exec_tool, find_binaries, find_tool
from .places import (
    CHECKOUT,
    Taken,
    Unusable,
    alone_in,
    home,
    in_plain_words,
    site_of,
    take_lock,
)
from .server import Cluster, Mode

__all__ = [
    "CHECKOUT",
    "Cluster",
    "Mode",
    "Taken",
    "Unusable",
    "exec_tool",
    "find_binaries",
    "find_tool",
    "has_crashed",
    "home",
    "reset",
    "start",
    "status",
    "stop",
    "take_lock",
]

SETTINGS: dict[str, str] = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "200",
    "shared_buffers": "256MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "password_encryption": "scram-sha-256",
    # Verbs refuse with an error all day, and their callers know; crashes are what this log is for.
    "log_min_messages": "log",
    "log_checkpoints": "off",
}


def start(
    folder: Path,
    port: int | None = None,
    bindir: Path | None = None,
    settings: Mapping[str, str] | None = None,
) -> Cluster:
    """The running server of this data folder; makes the cluster and starts it as far as needed."""
    data = home(folder)
    with alone_in(data) as lock:
        site = site_of(data)
        if running := server.adopt(site):
            return running
        chosen, binaries = clusters.prepare(site, port, bindir, lock)
        return server.launch(site, binaries, chosen, {**SETTINGS, **(settings or {})})


def stop(folder: Path, mode: Mode = "fast") -> bool:
    """Whether there was a server to stop. Open transactions are rolled back."""
    data = home(folder)
    if not data.is_dir():
        return False
    with alone_in(data):
        return server.stop(site_of(data).cluster, mode)


def status(folder: Path) -> Cluster | None:
    """The server of this data folder, when one runs."""
    data = home(folder)
    with in_plain_words(data):
        used = (data / "postgres.json").exists() or (data / "postgres").exists()
        return server.running(site_of(data)) if used else None


def reset(folder: Path) -> None:
    """Stops the server and removes the cluster with all that is in it."""
    data = home(folder)
    if not data.is_dir():
        return
    with alone_in(data):
        site = site_of(data)
        server.stop(site.cluster, "fast")
        clusters.remove(site)


def has_crashed(folder: Path) -> bool:
    """Whether the server ended without being stopped: its pid file is there, its process is not."""
    cluster = site_of(home(folder)).cluster
    return (cluster / "postmaster.pid").exists() and server.postmaster(cluster) is None
