"""A cluster's files: made, checked, cleared of what a crash left, removed."""

from __future__ import annotations

import locale
import os
import shutil
import socket
from contextlib import suppress
from pathlib import Path

from . import server
from .binaries import binaries_for
from .places import Memory, Site, Unusable, run

HBA = """\
local all all trust
host  all all 127.0.0.1/32 scram-sha-256
"""


def prepare(site: Site, port: int | None, bindir: Path | None, lock: int) -> tuple[int, Path]:
    """A whole cluster that nothing writes to, the port it shall have and the programs for it."""
    memory = Memory.of(site.data)
    _make_home(site)
    _sweep(site)
    memory.elsewhere = "" if site.home == site.data else str(site.home)
    memory.port = _choose_port(port, memory.port)
    memory.keep()
    binaries, major = binaries_for(site, bindir)
    if site.cluster.is_dir():
        _require_version(site.cluster, major)
        _clear_crash(site.cluster)
    else:
        _make(site, binaries, major, lock)
        memory.port = _choose_port(port, memory.port)  # it took a while: somebody may have it now
        memory.keep()
    return memory.port, binaries


def remove(site: Site) -> None:
    if site.cluster.exists():
        site.cluster.rename(site.removed)
    _sweep(site)
    for path in (Memory.path(site.data), site.log, site.older_log):
        path.unlink(missing_ok=True)


def _make_home(site: Site) -> None:
    if site.home != site.data:
        site.home.mkdir(parents=True, exist_ok=True)
        for folder in (site.home, site.home.parent):
            folder.chmod(0o755)


def _sweep(site: Site) -> None:
    """Removes what a start or a reset that was cut off left behind."""
    for folder in (site.half_made, site.removed):
        if folder.exists():
            shutil.rmtree(folder)
    if site.cluster.is_dir() and not (site.cluster / "global/pg_control").exists():
        shutil.rmtree(site.cluster)


def _choose_port(wanted: int | None, last: int) -> int:
    if wanted:
        if not _is_free(wanted):
            raise Unusable(f"port {wanted} is in use: stop what uses it, or choose another")
        return wanted
    return last if last and _is_free(last) else _free_port()


def _is_free(port: int) -> bool:
    with suppress(OSError), socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        trial.bind(("127.0.0.1", port))
        return True
    return False


def _free_port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return int(trial.getsockname()[1])


def _require_version(cluster: Path, major: int) -> None:
    made_by = int((cluster / "PG_VERSION").read_text().split(".")[0])
    if made_by != major:
        raise Unusable(
            f"the data in {cluster} are PostgreSQL {made_by}'s, the programs are {major}'s: install"
            f" {made_by}, or dump the data with it and start empty with bin/up --reset"
        )


def _make(site: Site, binaries: Path, major: int, lock: int) -> None:
    """Runs initdb. It holds the lock, too: when we are killed, it goes on writing."""
    site.half_made.mkdir(mode=0o700)
    os.chown(site.half_made, site.account.uid, site.account.gid)
    auth = ["--auth-local=trust", "--auth-host=scram-sha-256"]
    names = [f"--pgdata={site.half_made}", f"--username={server.NAME}", "--encoding=UTF8"]
    initdb = run([str(binaries / "initdb"), *names, *auth, *_locale(major)], site.account, [lock])
    if initdb.returncode != 0:
        said = server.last_lines(initdb.stdout + initdb.stderr)
        raise Unusable(f"PostgreSQL can't make a cluster in {site.home}: {said}")
    (site.half_made / "pg_hba.conf").write_text(HBA)
    site.half_made.rename(site.cluster)


def _locale(major: int) -> list[str]:
    """C.UTF-8, the same on every machine: the server's own where it has one, or the system's."""
    before = locale.setlocale(locale.LC_CTYPE)
    try:
        name = locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
    except locale.Error:
        name = "C"
    finally:
        locale.setlocale(locale.LC_CTYPE, before)
    own = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"] if major >= 17 else []
    return [f"--locale={name}", *own]


def _clear_crash(cluster: Path) -> None:
    """Clears what a crash left, and keeps the server's own check for sessions that still write.

    A stale pid may be another process's by now, and the server would take that for a server.
    It knows that its parent isn't one: our pid in the file says "stale" and nothing else. The last
    line, its state, goes too.
    """
    server.end_orphans(cluster)
    path = cluster / "postmaster.pid"
    lines = server.pid_file(cluster)
    if not lines:
        path.unlink(missing_ok=True)
        return
    with open(os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW), "w") as file:
        file.write("\n".join([str(os.getpid()), *lines[1:7]]) + "\n")
