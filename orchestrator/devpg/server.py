"""The server's process: launched, recognised, furnished with a database and a password, stopped."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Literal
from urllib.parse import quote

import psycopg
from psycopg import sql

from .places import Memory, Site, Unusable, digest, environment, run

NAME = "orchestrator"  # of the superuser and of the database
LONGEST_SOCKET = 100  # bytes; the system's own limit is 103 or 107
START_TIMEOUT = 60.0  # seconds; recovery after a crash is part of a start
LOG_LIMIT = 4_000_000  # bytes; a longer log is put aside at the next start

Mode = Literal["fast", "immediate"]
STOP_SIGNALS: dict[Mode, list[tuple[signal.Signals, float]]] = {
    "fast": [(signal.SIGINT, 15.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0)],
    "immediate": [(signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0)],
}


@dataclass(frozen=True)
class Cluster:
    """A running server."""

    data: Path  # the cluster's folder
    bindir: Path
    version: int
    port: int
    socket_dir: Path
    pid: int
    password: str = field(repr=False)

    @property
    def url(self) -> str:
        """Over the socket, for our own processes."""
        return self.url_of(NAME)

    @property
    def tcp_url(self) -> str:
        """With the password, for other tools."""
        return f"postgresql://{NAME}:{quote(self.password)}@127.0.0.1:{self.port}/{NAME}"

    def url_of(self, database: str) -> str:
        host = quote(str(self.socket_dir), safe="")
        return f"postgresql://{NAME}@/{quote(database)}?host={host}&port={self.port}"


# Launch


def launch(site: Site, binaries: Path, port: int, settings: Mapping[str, str]) -> Cluster:
    """Starts the server in a session of its own, so that it outlives us."""
    listen = {"port": str(port), "unix_socket_directories": f'"{_socket_folder(site)}"'}
    options = [f"-c{name}={value}" for name, value in {**settings, **listen}.items()]
    with _open_log(site) as log:
        begin = log.tell()
        server = subprocess.Popen(
            [str(binaries / "postgres"), "-D", str(site.cluster), *options],
            cwd="/",
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            **site.account.identity,
        )
    try:
        return _furnished(site, _until_ready(site, lambda: server.poll() is not None, begin))
    finally:
        server.returncode = 0  # nobody waits for it: Popen must not warn that it still runs


def adopt(site: Site) -> Cluster | None:
    """The server that runs already. None when it ends just now."""
    if postmaster(site.cluster) is None:
        return None
    try:
        ready = _until_ready(site, lambda: postmaster(site.cluster) is None)
        return _furnished(site, ready)
    except Unusable:
        if postmaster(site.cluster) is None:
            return None
        raise


def _open_log(site: Site) -> IO[bytes]:
    if site.log.exists() and site.log.stat().st_size > LOG_LIMIT:
        site.log.rename(site.older_log)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
    log = open(os.open(site.log, flags, 0o600), "wb")  # noqa: SIM115
    log.seek(0, os.SEEK_END)
    return log


def _socket_folder(site: Site) -> Path:
    folder = site.home / "socket"
    if len(os.fsencode(folder / ".s.PGSQL.65535")) > LONGEST_SOCKET:
        temporary = "/tmp" if os.geteuid() == 0 else tempfile.gettempdir()  # noqa: S108
        folder = Path(temporary) / f"orchestrator-{site.account.uid}-{digest(site.cluster)}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
        os.chown(folder, site.account.uid, site.account.gid)
    facts = folder.lstat()
    if folder.is_symlink() or facts.st_uid != site.account.uid or facts.st_mode & 0o077:
        raise Unusable(f"{folder} isn't private to {site.account.name}: remove it")
    for stale in folder.glob(".s.PGSQL.*"):
        stale.unlink()
    return folder


def _until_ready(site: Site, is_over: Callable[[], bool], log_begin: int = 0) -> Cluster:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if pid_file(site.cluster)[-1:] == ["ready"] and (cluster := running(site)):
            return cluster
        if is_over():
            said = site.log.read_bytes()[log_begin:].decode(errors="replace")
            raise Unusable(f"PostgreSQL doesn't start, see {site.log}: {last_lines(said)}")
        time.sleep(0.01)
    raise Unusable(
        f"PostgreSQL isn't ready after {START_TIMEOUT:.0f} s: see {site.log}, and try again"
    )


def _furnished(site: Site, cluster: Cluster) -> Cluster:
    """Our database and a password are there; a start that was cut off may have left them out."""
    memory = Memory.of(site.data)
    try:
        with psycopg.connect(cluster.url_of("postgres"), autocommit=True) as connection:
            _make_database(connection)
            if not memory.password:
                memory.password = _set_password(connection)
                memory.keep()
    except psycopg.Error as error:
        said = last_lines(str(error))
        raise Unusable(f"PostgreSQL refuses us, see {site.log}: {said}") from error
    return replace(cluster, password=memory.password)


def _make_database(connection: psycopg.Connection[Any]) -> None:
    names = connection.execute("select 1 from pg_database where datname = %s", [NAME])
    if names.fetchone() is None:
        connection.execute(sql.SQL("create database {}").format(sql.Identifier(NAME)))


def _set_password(connection: psycopg.Connection[Any]) -> str:
    password = secrets.token_urlsafe(24)
    change = sql.SQL("alter role {} password {}").format(sql.Identifier(NAME), password)
    connection.execute(change)
    return password


def last_lines(text: str, count: int = 3) -> str:
    return " | ".join([line.strip() for line in text.splitlines() if line.strip()][-count:])


# The running server


def running(site: Site) -> Cluster | None:
    """The server as its pid file has it. None until it listens: the file grows meanwhile."""
    lines = pid_file(site.cluster)
    pid = postmaster(site.cluster)
    options = site.cluster / "postmaster.opts"
    if pid is None or len(lines) < 6 or not lines[4] or not options.exists():
        return None
    program = options.read_text().partition(' "')[0]
    return Cluster(
        data=site.cluster,
        bindir=Path(program).parent,
        version=int((site.cluster / "PG_VERSION").read_text()),
        port=int(lines[3]),
        socket_dir=Path(lines[4]),
        pid=pid,
        password=Memory.of(site.data).password,
    )


def pid_file(cluster: Path) -> list[str]:
    """What the server writes: pid, folder, start, port, socket folder, address, memory, state."""
    try:
        return [line.strip() for line in (cluster / "postmaster.pid").read_text().splitlines()]
    except FileNotFoundError:
        return []


def postmaster(cluster: Path) -> int | None:
    """The server's pid when it runs, on this folder: a pid file alone may be left from a crash."""
    lines = pid_file(cluster)
    if not lines or not lines[0].isdigit():
        return None
    return int(lines[0]) if _is_server(int(lines[0]), cluster) else None


def _is_server(pid: int, cluster: Path) -> bool:
    """Whether the process is a server's, and works in this folder (as all of a server's do)."""
    process = Path("/proc") / str(pid)
    if not Path("/proc/self").exists():
        return str(cluster) in run(["ps", "-o", "command=", "-p", str(pid)]).stdout
    try:
        return (process / "comm").read_text().startswith("postgres") and (process / "cwd").samefile(
            cluster
        )
    except OSError:
        return False


# Stop


def stop(cluster: Path, mode: Mode) -> bool:
    """Whether there was a server. Asks more and more firmly."""
    pid = postmaster(cluster)
    for number, patience in STOP_SIGNALS[mode] if pid else []:
        with suppress(ProcessLookupError):
            os.kill(pid or 0, number)
        if _is_gone(pid or 0, cluster, patience):
            break
    end_orphans(cluster)
    return pid is not None


def _is_gone(pid: int, cluster: Path, patience: float) -> bool:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        _bury(pid, os.WNOHANG)
        if not _is_server(pid, cluster):
            _bury(pid)
            return True
        time.sleep(0.01)
    return False


def _bury(pid: int, options: int = 0) -> None:
    """It is our child when we started it, and otherwise not ours to bury."""
    with suppress(ChildProcessError):
        os.waitpid(pid, options)


def end_orphans(cluster: Path) -> None:
    """Ends sessions whose server was killed: they may outlive it by the length of a query."""
    for number in (signal.SIGQUIT, signal.SIGKILL):
        orphans = [pid for pid in _pids() if _is_server(pid, cluster)] if pid_file(cluster) else []
        for pid in orphans:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        if all(_is_gone(pid, cluster, 2.0) for pid in orphans):
            return


def _pids() -> list[int]:
    with suppress(FileNotFoundError):
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return []
