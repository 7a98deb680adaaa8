"""Where a data folder's cluster is, who runs it, and what is remembered of it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import pwd
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ..errors import Misconfigured

ELSEWHERE = Path("/var/lib/orchestrator")
CHECKOUT = Path(__file__).resolve().parents[2]


class Unusable(Misconfigured):
    """No server can be had here. One line, with the way out."""


class Taken(Exception):
    """Another process holds the lock."""


@dataclass(frozen=True)
class Account:
    """Whom the server runs as."""

    uid: int
    gid: int

    @property
    def name(self) -> str:
        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return f"user {self.uid}"

    @property
    def identity(self) -> dict[str, Any]:
        """What Popen needs to become this account."""
        if os.geteuid() != 0:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}


@dataclass(frozen=True)
class Site:
    """The places of one data folder."""

    data: Path
    home: Path  # of the cluster: the data folder, or a folder in ELSEWHERE
    account: Account

    @property
    def cluster(self) -> Path:
        return self.home / "postgres"

    @property
    def half_made(self) -> Path:
        return self.home / "postgres.new"

    @property
    def removed(self) -> Path:
        return self.home / "postgres.old"

    @property
    def log(self) -> Path:
        return self.data / "postgres.log"

    @property
    def older_log(self) -> Path:
        return self.data / "postgres.log.1"


class Memory(msgspec.Struct):
    """What is kept from one start to the next."""

    data: str  # whose memory this is: a copied folder must not adopt the original's cluster
    elsewhere: str = ""  # a folder in ELSEWHERE
    port: int = 0
    password: str = ""

    @staticmethod
    def path(data: Path) -> Path:
        return data / "postgres.json"

    @staticmethod
    def of(data: Path) -> Memory:
        try:
            memory = msgspec.json.decode(Memory.path(data).read_bytes(), type=Memory)
        except (FileNotFoundError, msgspec.MsgspecError):
            return Memory(str(data))
        if memory.data != str(data) and Path(memory.data).exists():
            memory.elsewhere = ""
        memory.data = str(data)
        return memory

    def keep(self) -> None:
        path = self.path(Path(self.data))
        new = path.with_suffix(".new")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        with open(os.open(new, flags, 0o600), "wb") as file:
            file.write(msgspec.json.encode(self))
        if os.geteuid() == 0:
            owner = path.parent.stat()
            os.chown(new, owner.st_uid, owner.st_gid)
        new.rename(path)


def home(folder: Path) -> Path:
    """The data folder's full path. A relative one is in the checkout, wherever one stands."""
    if not folder.is_absolute() and (CHECKOUT / "setup.cfg").is_file():
        folder = CHECKOUT / folder
    return folder.resolve()


def site_of(data: Path) -> Site:
    """Where the cluster is, or would be."""
    known = Path(Memory.of(data).elsewhere).name
    elsewhere = ELSEWHERE / (known or f"{data.parent.name or 'root'}-{digest(data)}")
    here = Site(data, data, _account_of(data / "postgres"))
    there = Site(data, elsewhere, _account_of(elsewhere / "postgres"))
    if known and there.cluster.is_dir():
        return there
    if here.cluster.is_dir() or os.geteuid() != 0 or not data.is_dir():
        return here
    return here if _can_live_in(data, here.account) else there


def digest(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:10]


def _account_of(cluster: Path) -> Account:
    if os.geteuid() != 0:
        return Account(os.geteuid(), os.getegid())
    if cluster.is_dir() and (owner := cluster.stat()).st_uid != 0:
        return Account(owner.st_uid, owner.st_gid)
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            return Account(pwd.getpwnam(name).pw_uid, pwd.getpwnam(name).pw_gid)
    raise Unusable("PostgreSQL doesn't run as root: make an account for it, named postgres")


def _can_live_in(folder: Path, account: Account) -> bool:
    """Whether the account can use what it owns in there. Tried, because mode bits don't tell."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="probe-") as probe:
        os.chown(probe, account.uid, account.gid)
        return run(["/bin/sh", "-c", ': >"$0/written"', probe], account).returncode == 0


def run(
    argv: Sequence[str], account: Account | None = None, keep: Sequence[int] = ()
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv,
        cwd="/",
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        pass_fds=keep,
        **(account.identity if account else {}),
    )


def environment() -> dict[str, str]:
    """Neither our secrets nor anybody's locale and PG* settings."""
    kept = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
    return {"LC_ALL": "C"} | {name: os.environ[name] for name in kept if name in os.environ}


def take_lock(data: Path, name: str, wait: bool = True) -> int:
    """An open lock file, the caller's to close. Makes the data folder when it isn't there."""
    with in_plain_words(data):
        if not data.is_dir():
            data.mkdir(parents=True)
            data.chmod(0o755)  # the server's account has to get through
        lock = os.open(data / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(lock)
            raise Taken(f"another process holds {data / name}") from None
        return lock


@contextmanager
def alone_in(data: Path) -> Iterator[int]:
    """Nobody else makes, starts, stops or removes this folder's cluster meanwhile."""
    lock = take_lock(data, "postgres.lock")
    try:
        with in_plain_words(data):
            yield lock
    finally:
        os.close(lock)


@contextmanager
def in_plain_words(data: Path) -> Iterator[None]:
    """What the system refuses, in one line."""
    try:
        yield
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or error
        raise Unusable(
            f"the data folder {data} can't be used ({what}): mend that, or set ORC_DATA to another"
        ) from error
