"""Where commands ask, and as whom: what is kept is for one place, and for its owner's eyes."""

from __future__ import annotations

import asyncio
import json
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from conftest import Running, Serve
from peers import Heard, peer, says
from terminal import Done, Terminal

from orchestrator import db
from orchestrator.cli import place, remote

PASSWORD = "correct horse battery"
SYSTEM = "00000000-0000-0000-0000-000000000001"


@pytest.fixture
async def there(serve: Serve, conn: db.Connection) -> Running:
    await db.call(conn, "ensure_system_agent")
    return await serve(
        app_env="production", rate_limit="none", jwt_secret=secrets.token_urlsafe(48)
    )


@pytest.fixture
def orc(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path, monkeypatch)
    terminal.set(DATABASE_URL=database)
    yield terminal
    terminal.leave()


async def test_the_database_gives_the_first_key_and_it_is_kept_for_its_owner_only(
    there: Running, orc: Terminal
) -> None:
    done = await orc("login", there.url, "--issue", "system")
    assert done.status == 0, done
    assert done.out.startswith(f"system (agent of default) at {there.url}, kept in ")
    assert stat.S_IMODE(place.file().stat().st_mode) == 0o600
    assert stat.S_IMODE(place.file().parent.stat().st_mode) == 0o700
    key = msgspec.json.decode(place.file().read_bytes())["key"]
    assert key.startswith("ork_")
    assert key not in done.out + done.err
    assert (await orc("task", "list")).out == "there are none\n"
    assert "scopes admin" in (await orc("whoami")).out
    assert (await orc("logout")).out == f"{there.url} is forgotten\n"
    assert not place.file().exists()
    assert (await orc("logout")).out == "nothing was kept\n"


async def test_a_key_comes_from_standard_input_and_is_tried_before_it_is_kept(
    there: Running, orc: Terminal, conn: db.Connection
) -> None:
    key = (await db.call_one(conn, "issue_key", tenant="default", agent="system"))["issue_key"]
    wrong = await orc("login", there.url, typed="ork_nonsense\n")
    assert wrong.status == 77
    assert not place.file().exists()
    assert (await orc("login", there.url, typed="")).status == 2
    assert (await orc("login", there.url, typed=f"{key}\n")).status == 0
    assert (await orc("whoami", "-o", "json")).json["name"] == "system"


async def test_a_user_logs_in_by_a_password_and_tokens_are_renewed(
    there: Running, orc: Terminal
) -> None:
    assert (await orc("login", there.url, "--issue", "system")).status == 0
    async with remote.remote() as api:
        await api.ask("POST", "/auth/users", body={"name": "ann", "password": PASSWORD})
    wrong = await orc("login", "--user", "ann", typed="guess\n")
    assert (wrong.status, "the password is wrong" in wrong.err) == (77, True)
    done = await orc("login", "--user", "ann", typed=f"{PASSWORD}\n")
    assert "ann (user of default)" in done.out
    first = place.kept()
    assert first is not None
    place.keep(msgspec.structs.replace(first, access_token=first.access_token[:-6] + "000000"))
    assert "ann" in (await orc("whoami")).out
    second = place.kept()
    assert second is not None
    assert second.refresh_token != first.refresh_token
    assert (await orc("logout")).status == 0
    place.keep(msgspec.structs.replace(second, access_token="spent"))
    ended = await orc("whoami")
    assert (ended.status, "run `orc login`" in ended.err) == (77, True)


async def test_commands_at_once_renew_one_session_without_ending_it(
    there: Running, orc: Terminal
) -> None:
    assert (await orc("login", there.url, "--issue", "system")).status == 0
    async with remote.remote() as api:
        await api.ask("POST", "/auth/users", body={"name": "bob", "password": PASSWORD})
    assert (await orc("login", "--user", "bob", typed=f"{PASSWORD}\n")).status == 0
    kept = place.kept()
    assert kept is not None
    place.keep(msgspec.structs.replace(kept, access_token="expired"))

    async def me() -> str:
        async with remote.remote() as api:
            return str((await api.ask("GET", "/auth/me"))["name"])

    assert await asyncio.gather(*(me() for _ in range(5))) == ["bob"] * 5
    assert "bob" in (await orc("whoami")).out


async def test_a_key_of_one_place_is_never_shown_to_another(there: Running, orc: Terminal) -> None:
    heard: list[str] = []

    async def listen(asked: Heard, writer: asyncio.StreamWriter) -> None:
        heard.append(asked.headers.get("authorization", ""))
        await says(404)(asked, writer)

    assert (await orc("login", there.url, "--issue", "system")).status == 0
    async with peer(listen) as other:
        orc.set(ORCHESTRATOR_URL=other.url)
        await orc("whoami")
        orc.set(ORCHESTRATOR_URL="https://jobs.example")
        refused = await orc("task", "list")
    assert heard == [f"Bearer {SYSTEM}"]
    assert (refused.status, "there is no key for https://jobs.example" in refused.err) == (77, True)


async def test_a_redirect_is_not_followed_with_the_key(there: Running, orc: Terminal) -> None:
    async def away(asked: Heard, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n"
                     b"Content-Length: 0\r\nConnection: close\r\n\r\n")  # fmt: skip
        await writer.drain()
        writer.close()

    async with peer(away) as other:
        orc.set(ORCHESTRATOR_URL=other.url)
        done = await orc("whoami")
    assert (done.status, "answered 302, but not as this API does" in done.err) == (1, True)


@pytest.mark.parametrize(
    ("url", "words"),
    [("ftp://x", "isn't a URL"), ("nonsense", "isn't a URL"), ("https://a:b@x", "a password")],
)
async def test_a_url_that_is_none_is_said(orc: Terminal, url: str, words: str) -> None:
    done = await orc("login", url, typed="key\n")
    assert (done.status, words in done.err) == (2, True)


async def test_a_broken_file_of_logins_says_what_to_do(orc: Terminal) -> None:
    place.keep(place.Place(url="https://x.example", key="k"))
    place.file().write_text("{")
    done = await orc("task", "list")
    assert (done.status, "delete it, and log in again" in done.err) == (78, True)


async def test_an_api_that_is_not_there_is_one_line(orc: Terminal) -> None:
    orc.set(ORCHESTRATOR_URL="http://127.0.0.1:1")
    for words in (["task", "list"], ["tail"], ["retry", "--where", "queue=x", "--dry-run"]):
        done = await orc(*words)
        assert done.status == 69
        assert done.err.count("\n") == 1
        assert "start it with bin/api or bin/up" in done.err


async def test_another_service_that_answers_well_is_no_api(orc: Terminal) -> None:
    async with peer(says(200, "<html>Welcome</html>")) as other:
        orc.set(ORCHESTRATOR_URL=other.url)
        done = await orc("task", "list")
    assert (done.status, "answered 200, but not as this API does" in done.err) == (1, True)


@pytest.mark.parametrize(("status", "exit"), [(500, 69), (503, 69), (429, 69), (422, 2), (404, 1)])
async def test_a_status_is_an_exit_status(orc: Terminal, status: int, exit: int) -> None:
    problem = {"message": "No\x1b[31m", "detail": "No", "details": {"hint": "wait"}}
    async with peer(says(status, json.dumps(problem), "application/problem+json")) as other:
        orc.set(ORCHESTRATOR_URL=other.url)
        done: Done = await orc("task", "list")
    assert done.status == exit
    assert "wait" in done.err
    assert "\x1b" not in done.err


async def test_what_is_behind_a_proxy_and_no_api_is_said(orc: Terminal) -> None:
    async with peer(says(502, "<html>Bad gateway</html>")) as other:
        orc.set(ORCHESTRATOR_URL=other.url)
        done = await orc("task", "list")
    assert (done.status, "answered 502, but not as this API does" in done.err) == (69, True)
