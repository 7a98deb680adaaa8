"""The client that calls out: where it goes, what it sends, and how much it takes."""

from __future__ import annotations

import asyncio
import gzip
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import httpx2
import msgspec
import pytest
import trustme
from crew import own_clock
from peers import Heard, loop_unblocked, peer, says, writes

from orchestrator import config, guard
from orchestrator.config import Config
from orchestrator.errors import Misconfigured
from orchestrator.guard import Answer, Broken, Guard, Malformed, Refused, TimedOut, Unusable
from orchestrator.guard.addresses import Targets, refusal
from orchestrator.guard.message import Body
from orchestrator.guard.pool import Pool

HERE = Config(allow_targets=("127.0.0.1",))


def knows(**names: str | list[str]) -> Callable[[str], Awaitable[list[str]]]:
    """A resolver that knows these names; a list is what it answers one time after the other."""

    async def resolve(host: str) -> list[str]:
        known = names.get(host.replace(".", "_"))
        if known is None:
            raise OSError
        return [known if isinstance(known, str) else known.pop(0)]

    return resolve


async def get(url: str, its: Config = HERE, **options: Any) -> Answer:
    return await guard.of(its).request("GET", url, **options)


# Addresses


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.100.100.200",
        "127.0.0.1", "127.255.255.254", "168.63.129.16", "169.254.169.254", "169.254.0.1",
        "172.16.0.1", "172.31.255.255", "192.0.0.192", "192.0.2.1", "192.88.99.1",
        "192.168.1.1", "198.18.0.1", "198.19.255.255", "198.51.100.7", "203.0.113.9",
        "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255",
        "::", "::1", "::7f00:1", "::8.8.8.8", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
        "::ffff:169.254.169.254", "::ffff:0:127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::1", "64:ff9b:1::808:808", "100::1", "2001::1", "2001:0:a00:1::f5ff:fffe",
        "2001:2::1", "2001:10::1", "2001:db8::1", "2002:7f00:1::", "2002:a9fe:a9fe::1",
        "2002:c0a8:101::", "2606:4700::5efe:10.0.0.1", "2606:4700::200:5efe:127.0.0.1",
        "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%eth0",
        "febf::1", "fec0::1", "ff02::1", "ff0e::1",
    ],
)  # fmt: skip
def test_an_address_that_is_not_public_is_refused(address: str) -> None:
    assert refusal(address)


@pytest.mark.parametrize(
    "address",
    [
        "1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0",
        "172.15.255.255", "172.32.0.0", "192.0.1.1", "198.17.255.255", "198.20.0.0",
        "223.255.255.255", "2606:4700::1111", "2a00:1450:4001::200e", "::ffff:8.8.8.8",
        "64:ff9b::808:808", "2002:808:808::1", "2606:4700::5efe:8.8.8.8", "2001:200::1",
    ],
)  # fmt: skip
def test_a_public_address_is_allowed(address: str) -> None:
    assert refusal(address) is None


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/", "http://2130706433/", "http://0x7f.1/", "http://0x7f000001/",
        "http://017700000001/", "http://127.1/", "http://0/",
        "http://localhost/", "http://LOCALHOST/", "https://127.0.0.1:8443/",
        "http://127。0.0.1/", "http://[::1]/", "http://[::ffff:127.0.0.1]/",
        "http://[0:0:0:0:0:ffff:7f00:1]/", "http://[64:ff9b::a9fe:a9fe]/",
        "http://169.254.169.254/latest/meta-data/", "http://[::]/", "http://[fd00:ec2::254]/",
        "http://10.0.0.1:6379/",
    ],
)  # fmt: skip
async def test_every_spelling_of_a_private_place_is_refused(url: str) -> None:
    with pytest.raises(Refused, match="isn't allowed"):
        await get(url, Config(), timeout=5)
    await guard.close()


@pytest.mark.parametrize(
    "url",
    [
        "", "x", "//h/", "/x", "http:x", "http:///x", "ftp://h/", "file:///etc/passwd",
        "gopher://h/", "unix:///x", "data:text/plain,x", "javascript:1", "http://u:p@h/",
        "http://u@h/", "http://h:0/", "http://h:99999/", "http://h:x/", "http://[::1/",
        "http://[fe80::1%25eth0]/", "http://a..b/", "http://h%00/", "http://h%2f/",
        "http://h\0/", "http://h/\r\nX: y", "http://h/ x", "http://h\\@i/", "http://-h/",
        "http://" + "a" * 64 + ".com/", "http://h/" + "x" * 9000, "http://h\t/", "http://１２７.０.０.１/",
        "http://h*/", "http://0177.0.0.1/",
    ],
)  # fmt: skip
async def test_a_url_that_is_none_is_malformed(url: str) -> None:
    with pytest.raises(Malformed) as error:
        await get(url, Config())
    assert "passwd" not in str(error.value)


@pytest.mark.parametrize(
    "allowed", ["127.0.0.1", "127.0.0.0/8", "here.example", "*.example", "here.example:{port}"]
)
async def test_what_the_operator_allows_is_called(allowed: str) -> None:
    async with peer(says(body="hello")) as here:
        its = Config(allow_targets=(allowed.format(port=here.port),))
        client = Guard(its, resolve=knows(here_example="127.0.0.1"))
        answer = await client.request("GET", f"http://here.example:{here.port}/")
        assert answer.body == b"hello"
        await client.aclose()


@pytest.mark.parametrize(
    "allowed", ["127.0.0.2", "10.0.0.0/8", "example", "*.here.example", "here.example:1", "[::1]"]
)
async def test_what_the_operator_allows_allows_nothing_else(allowed: str) -> None:
    client = Guard(Config(allow_targets=(allowed,)), resolve=knows(here_example="127.0.0.1"))
    with pytest.raises(Refused):
        await client.request("GET", "http://here.example:2/")


def test_targets_know_ports_of_addresses() -> None:
    targets = Targets(["[::1]:80", "10.0.0.1:81", "::2", "Host.example:82"])
    assert targets.have_address("::1", 80)
    assert not targets.have_address("::1", 81)
    assert targets.have_address("10.0.0.1", 81)
    assert targets.have_address("::2", 9)
    assert targets.have_name("HOST.example.", 82)
    assert not targets.have_name("host.example", 83)


@pytest.mark.parametrize("text", ["10.0.0.1/8", "http://h", "a b", "*", "h:x", "*.*.x", "a/b"])
def test_a_target_that_is_none_is_refused_at_the_start(text: str) -> None:
    with pytest.raises(Misconfigured, match="ORC_ALLOW_TARGETS"):
        config.load({"ORC_ALLOW_TARGETS": text})


@pytest.mark.parametrize("name", ["ORC_SMTP_URL", "ORC_LLM_URL"])
@pytest.mark.parametrize("rest", ["u:hunter2@h", "u:hunter2/x@h", "u:hunter2@h:x", "[hunter2"])
def test_a_wrong_url_in_a_setting_is_told_without_its_password(name: str, rest: str) -> None:
    scheme = "ftp" if rest == "u:hunter2@h" else "smtp" if "SMTP" in name else "http"
    with pytest.raises(Misconfigured, match=name) as refusal:
        config.load({name: f"{scheme}://{rest}"})
    assert "hunter2" not in str(refusal.value)


async def test_one_private_address_of_many_is_enough_for_a_refusal() -> None:
    async def resolve(_: str) -> list[str]:
        return ["8.8.8.8", "10.0.0.1"]

    with pytest.raises(Refused, match="its address is private"):
        await Guard(Config(), resolve=resolve).request("GET", "http://h.example/")


async def test_a_name_that_changes_its_address_is_dialled_where_it_was_checked() -> None:
    asked: list[str] = []

    async def resolve(host: str) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["10.9.9.9"]

    async with peer() as here:
        client = Guard(HERE, resolve=resolve)
        url = f"http://rebind.example:{here.port}/"
        assert (await client.request("GET", url)).status == 200
        assert asked == ["rebind.example"]  # once, and nobody asked again to dial
        with pytest.raises(Refused):  # the open connection to the old address helps nobody
            await client.request("GET", url)
        assert here.connections == 1
        await client.aclose()


async def test_the_next_address_is_dialled_when_one_does_not_answer() -> None:
    async def resolve(_: str) -> list[str]:
        return ["127.0.0.2", "127.0.0.1"]

    async with peer() as here:
        client = Guard(Config(allow_targets=("127.0.0.0/8",)), resolve=resolve)
        assert (await client.request("GET", f"http://h.example:{here.port}/")).status == 200
        await client.aclose()


async def test_a_name_that_hangs_costs_its_own_call_only(monkeypatch: pytest.MonkeyPatch) -> None:
    real, answered = socket.getaddrinfo, threading.Event()

    def slow(host: Any, *rest: Any, **more: Any) -> Any:
        if host == "slow.example":
            answered.wait(60)
        return real("127.0.0.1" if host == "fast.example" else "127.0.0.2", *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    async with peer() as here, loop_unblocked():
        hanging = asyncio.create_task(get("http://slow.example/", timeout=0.2))
        began = own_clock()
        assert (await get(f"http://fast.example:{here.port}/", timeout=30)).status == 200
        assert own_clock() - began < 0.2
        with pytest.raises(TimedOut):
            await hanging
        answered.set()


async def test_a_name_that_nobody_knows_may_be_known_later() -> None:
    with pytest.raises(Broken, match="can't be resolved") as error:
        await Guard(Config(), resolve=knows()).request("GET", "http://h.example/secret?key=1")
    assert error.value.again
    assert "secret" not in str(error.value)


# What is sent


@pytest.mark.parametrize("method", ["GET\r\nX: y", "get", "", "G ET", "CONNECT", "TRACE", "G\0"])
async def test_a_method_that_is_none_is_malformed(method: str) -> None:
    with pytest.raises(Malformed):
        await guard.of(HERE).request(method, "http://127.0.0.1/")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("a", "x\r\nb: y"), ("a", "x\ny"), ("a", "x\0"), ("a\r\n", "x"), ("a b", "x"), ("", "x"),
        ("é", "x"), ("a:", "x"), ("a", "\x7f"), ("a", "\ud800"), ("Host", "x"), ("host", "x"),
        ("Content-Length", "5"), ("Transfer-Encoding", "chunked"), ("Connection", "close"),
        ("Upgrade", "h2c"), ("Proxy-Authorization", "x"), ("a", "x" * 70_000),
    ],
)  # fmt: skip
async def test_a_header_that_is_none_is_malformed(name: str, value: str) -> None:
    with pytest.raises(Malformed) as error:
        await get("http://127.0.0.1/", headers={name: value})
    assert value not in str(error.value).removeprefix(f"the header {name}") or len(value) < 8


async def test_a_request_arrives_as_it_was_meant() -> None:
    async with peer() as here:
        await guard.of(HERE).request(
            "POST",
            f"{here.url}/a?b=1#c",
            headers={"X-Y": "zé"},
            query={"d": ["2", "&"], "e": "\r\n\ud800"},
            body=b"\0body",
        )
        heard = here.heard[0]
    assert (heard.method, heard.body) == ("POST", b"\0body")
    assert heard.target == "/a?b=1&d=2&d=%26&e=%0D%0A%3F"
    assert heard.headers["host"] == f"127.0.0.1:{here.port}"
    assert heard.headers["x-y"].encode("latin-1").decode() == "zé"


async def test_nothing_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("NETRC", "/dev/null")
    async with peer() as here:
        assert (await get(here.url)).status == 200
        assert here.heard[0].headers.keys().isdisjoint({"authorization", "cookie"})


async def test_cookies_are_not_kept() -> None:
    async with peer(says(set_cookie="a=b")) as here:
        await get(here.url)
        await get(here.url)
        assert "cookie" not in here.heard[1].headers


# TLS


def certified(name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's context for this name, and a client's that believes it."""
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server, client


async def test_the_certificate_is_for_the_name_though_the_address_is_dialled() -> None:
    server, trust = certified("secure.example")
    names: list[str | None] = []
    server.sni_callback = lambda _, name, __: names.append(name)
    async with peer(tls=server) as here:
        resolve = knows(secure_example="127.0.0.1", other_example="127.0.0.1")
        client = Guard(HERE, resolve=resolve, pool=Pool(trust))
        answer = await client.request("GET", f"https://secure.example:{here.port}/")
        assert answer.status == 200
        assert here.heard[0].headers["host"] == f"secure.example:{here.port}"
        with pytest.raises(Broken, match="can't be reached"):
            await client.request("GET", f"https://other.example:{here.port}/")
        assert names == ["secure.example", "other.example"]
        await client.aclose()


async def test_a_certificate_that_nobody_vouches_for_is_refused() -> None:
    server, _ = certified("127.0.0.1")
    async with peer(tls=server) as here:
        async with loop_unblocked():
            with pytest.raises(Broken):
                await get(here.url)
        assert here.heard == []


async def test_a_server_that_never_shakes_hands_is_left_in_time() -> None:
    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.append((reader, writer))

    accepted: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    listening = await asyncio.start_server(wait, "127.0.0.1", 0)
    began = own_clock()
    async with asyncio.timeout(20):
        with pytest.raises(TimedOut):
            await get(f"https://127.0.0.1:{listening.sockets[0].getsockname()[1]}/", timeout=0.5)
        await accepted[0][0].read()  # it hung up
    assert own_clock() - began < 2
    await guard.close()
    listening.close()
    accepted[0][1].transport.abort()
    await asyncio.sleep(0)


# Redirects


@pytest.mark.parametrize(
    ("status", "method", "then"),
    [
        (301, "POST", "GET"), (302, "POST", "GET"), (303, "POST", "GET"), (303, "PUT", "GET"),
        (303, "HEAD", "HEAD"), (307, "POST", "POST"), (308, "PUT", "PUT"), (302, "PUT", "PUT"),
        (301, "GET", "GET"),
    ],
)  # fmt: skip
async def test_a_redirect_keeps_or_changes_the_method(status: int, method: str, then: str) -> None:
    async with peer(says(200), a=says(status, location="/b")) as here:
        headers = {"content-type": "text/x", "authorization": "s"}
        body = b"" if method in {"GET", "HEAD"} else b"x"
        client = guard.of(HERE)
        answer = await client.request(
            method, f"{here.url}/a", headers=headers, body=body, follow_redirects=True
        )
        last = here.heard[-1]
    assert (answer.url, last.method) == (f"{here.url}/b", then)
    assert last.body == (body if then == method else b"")
    assert ("content-type" in last.headers) == (then == method)
    assert last.headers["authorization"] == "s"


async def test_credentials_stay_with_the_host_that_they_are_for() -> None:
    async with peer() as there, peer(says(307, location=there.url)) as here:
        secret = {"Authorization": "s", "Cookie": "s", "X-Api-Key": "s", "Accept": "a/b"}
        await get(here.url, headers=secret, follow_redirects=True)
        assert {"authorization", "cookie", "x-api-key"} <= here.heard[0].headers.keys()
        assert not {"authorization", "cookie", "x-api-key"} & there.heard[0].headers.keys()
        assert there.heard[0].headers["accept"] == "a/b"


async def test_another_name_of_the_same_server_gets_no_credentials() -> None:
    async with peer() as here:
        here.answers["/a"] = says(307, location=f"http://b.example:{here.port}/b")
        client = Guard(HERE, resolve=knows(a_example="127.0.0.1", b_example="127.0.0.1"))
        url = f"http://a.example:{here.port}/a"
        await client.request("GET", url, headers={"Cookie": "s"}, follow_redirects=True)
        assert ["cookie" in heard.headers for heard in here.heard] == [True, False]
        await client.aclose()


async def test_credentials_are_not_sent_in_the_clear() -> None:
    server, trust = certified("h.example")
    async with peer() as plain, peer(tls=server) as here:
        here.otherwise = says(302, location=f"http://h.example:{plain.port}/")
        client = Guard(HERE, resolve=knows(h_example="127.0.0.1"), pool=Pool(trust))
        url = f"https://h.example:{here.port}/"
        await client.request("GET", url, headers={"Cookie": "s"}, follow_redirects=True)
        assert "cookie" in here.heard[0].headers
        assert "cookie" not in plain.heard[0].headers
        await client.aclose()


@pytest.mark.parametrize(
    ("location", "error"),
    [
        ("http://169.254.169.254/", Refused), ("http://[::1]/", Refused),
        ("//localhost:1/", Refused), ("file:///etc/passwd", Malformed),
        ("http://u:p@127.0.0.1/", Malformed), ("gopher://h/", Malformed),
        ("http://h\\i/", Malformed),
    ],
)  # fmt: skip
async def test_every_hop_is_checked(location: str, error: type[Exception]) -> None:
    async with peer(says(302, location=location)) as here:
        its = Config(allow_targets=(f"127.0.0.1:{here.port}",))
        with pytest.raises(error):
            await get(here.url, its, follow_redirects=True)


async def test_trust_ends_where_the_place_does() -> None:
    async with (
        peer() as there,
        peer(says(302, location=there.url), a=says(302, location="/b")) as here,
    ):
        here.answers["/b"] = says(200)
        client = guard.of(Config())
        for path, trusted in (("/a", True), ("/", True), ("/a", False)):
            call = client.request("GET", here.url + path, follow_redirects=True, trusted=trusted)
            if path == "/a" and trusted:
                assert (await call).status == 200
            else:
                with pytest.raises(Refused):
                    await call
        assert there.heard == []


async def test_redirects_end() -> None:
    async with peer(says(302, location="/")) as here:
        with pytest.raises(Unusable, match="more than 5 times"):
            await get(here.url, follow_redirects=True)
        assert len(here.heard) == 6
        assert (await get(here.url)).status == 302


# What comes back

HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"
CHUNK = b"2000\r\n" + b"x" * 8192 + b"\r\n"


def packed(data: bytes) -> Callable[..., Any]:
    return says(body=data, content_encoding="gzip")


async def test_gzip_is_unpacked_and_several_files_are_one() -> None:
    async with peer(packed(gzip.compress(b"a" * 1000) + gzip.compress(b"b"))) as here:
        assert (await get(here.url)).body == b"a" * 1000 + b"b"


HOSTILE: dict[str, tuple[Any, type[Exception]]] = {
    "endless body": (writes(HEAD + b"\r\n", b"x" * 65536, for_ever=True), Unusable),
    "endless chunks": (writes(CHUNKED, CHUNK, for_ever=True), Unusable),
    "gzip bomb": (packed(gzip.compress(bytes(50_000_000), 1)), Unusable),
    "double gzip": (says(content_encoding="gzip, gzip"), Unusable),
    "brotli": (says(content_encoding="br"), Unusable),
    "no gzip": (packed(b"plain"), Broken),
    "half gzip": (packed(gzip.compress(b"a" * 1000)[:20]), Broken),
    "endless header": (writes(HEAD, b"a: b\r\n" * 1000, for_ever=True), Broken),
    "one long header": (writes(HEAD + b"a: ", b"x" * 65536, for_ever=True), Broken),
    "no HTTP": (writes(b"\0\1\2\3\r\n\r\n"), Broken),
    "SSH": (writes(b"SSH-2.0-OpenSSH_9\r\n"), Broken),
    "NUL in a header": (writes(HEAD + b"a: \0\r\n\r\n"), Broken),
    "two lengths": (writes(HEAD + b"content-length: 1\r\ncontent-length: 2\r\n\r\nab"), Broken),
    "bad chunk": (writes(CHUNKED + b"zz\r\n"), Broken),
    "half a body": (writes(HEAD + b"content-length: 10\r\n\r\nabc"), Broken),
    "nothing": (writes(b""), Broken),
    "another protocol": (writes(b"HTTP/1.1 101 X\r\nupgrade: y\r\n\r\n"), Broken),
    "slow head": (writes(b"H", b"T", for_ever=True, every=0.05), Broken),
    "slow body": (writes(HEAD + b"\r\n", b"x", for_ever=True, every=0.01), TimedOut),
    "chunks of a byte": (writes(CHUNKED, b"1\r\nx\r\n" * 9000, for_ever=True), TimedOut),
    "endless interims": (writes(b"HTTP/1.1 100 C\r\n\r\n" * 5000, for_ever=True), TimedOut),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
async def test_a_hostile_answer_fails_with_its_type_and_the_loop_goes_on(what: str) -> None:
    """Others use this machine, too: what is to be found out at once has more time for it."""
    speak, error = HOSTILE[what]
    ends_by_time = what in {"slow head", "slow body", "chunks of a byte", "endless interims"}
    async with peer(speak) as here:
        started = own_clock()
        async with loop_unblocked():
            with pytest.raises((error, TimedOut) if what == "slow head" else error):
                await get(f"{here.url}/path?query", timeout=0.4 if ends_by_time else 20)
        assert own_clock() - started < 1
        assert guard.of(HERE).pool.count == (1 if what == "half gzip" else 0)  # it was HTTP


def test_a_bomb_is_unpacked_no_further_than_the_limit() -> None:
    body = Body({"content-encoding": "gzip"}, 100, "h")
    with pytest.raises(Unusable):
        body.feed(gzip.compress(bytes(1_000_000)))
    assert len(body.data) == 101


async def test_an_answer_that_is_many_empty_files_is_empty() -> None:
    async with peer(packed(gzip.compress(b"") * 40_000)) as here, loop_unblocked():
        assert (await get(here.url)).body == b""


async def test_an_answer_of_exactly_the_limit_is_taken() -> None:
    async with peer(says(body="x" * 100)) as here:
        assert len((await get(here.url, most_bytes=100)).body) == 100
        with pytest.raises(Unusable, match="more than 99 bytes"):
            await get(here.url, most_bytes=99)


async def test_repeated_headers_are_joined() -> None:
    async with peer(writes(HEAD + b"A: 1\r\na: 2\r\nB: \xe9\r\n\r\n")) as here:
        answer = await get(here.url)
        assert answer.headers == {"a": "1, 2", "b": "é"}


async def test_errors_name_no_path_query_or_header() -> None:
    async with peer(HOSTILE["no HTTP"][0]) as here:
        with pytest.raises(Broken) as error:
            await get(f"{here.url}/hunter2?key=hunter2", headers={"x-key": "hunter2"})
        assert str(error.value) == f"{here.url} answered no HTTP"


async def test_a_refused_connection_is_broken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(Broken, match="can't be reached"):
            await get(f"http://127.0.0.1:{taken.getsockname()[1]}/")


# Connections


async def test_a_connection_is_used_again_by_its_own_place_only() -> None:
    async with peer() as here:
        client = Guard(HERE, resolve=knows(a_example="127.0.0.1", b_example="127.0.0.1"))
        for name in ("a.example", "a.example", "b.example", "a.example"):
            await client.request("GET", f"http://{name}:{here.port}/")
        assert [heard.connection for heard in here.heard] == [1, 1, 2, 1]
        await client.aclose()
        assert client.pool.count == 0


async def test_a_server_that_hung_up_meanwhile_is_dialled_again() -> None:
    async def once(heard: Heard, writer: asyncio.StreamWriter) -> None:
        await says(body="x")(heard, writer)
        writer.close()

    async with peer(once) as here:
        for _ in range(3):
            assert (await get(here.url)).body == b"x"
            await asyncio.sleep(0.01)
        assert here.connections == 3


async def test_a_call_that_has_an_effect_is_never_sent_twice() -> None:
    async def second_hangs_up(heard: Heard, writer: asyncio.StreamWriter) -> None:
        if len(here.heard) % 2:
            await says()(heard, writer)
        else:
            writer.close()

    async with peer(second_hangs_up) as here:
        await get(here.url)
        with pytest.raises(Broken, match="answered no HTTP"):
            await guard.of(HERE).request("POST", here.url, body=b"x")
        assert [heard.method for heard in here.heard] == ["GET", "POST"]
        here.heard.clear()
        await get(here.url)
        assert (await get(here.url)).status == 200  # a GET is
        assert len(here.heard) == 3


async def test_a_connection_that_waits_too_long_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard.pool, "KEEP_SECONDS", 0.04)
    async with peer() as here:
        await get(here.url)
        pool = guard.of(HERE).pool
        assert pool.count == 1
        assert pool.sweeper
        await asyncio.wait_for(pool.sweeper, 2)
        assert pool.count == 0


async def test_a_canceled_call_leaves_no_connection() -> None:
    async with peer(writes(HEAD + b"\r\n", b"x", for_ever=True, every=0.01)) as here:
        call = asyncio.create_task(get(here.url))
        while not here.heard:
            await asyncio.sleep(0.001)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        async with asyncio.timeout(2):
            while here.writers:
                await asyncio.sleep(0.001)


async def test_a_stream_that_ends_in_a_canceled_scope_leaves_no_connection() -> None:
    """As the SDK of MCP ends its own: there every await is canceled, not only the first."""
    async with peer(writes(HEAD + b"\r\n", b"x", for_ever=True, every=0.01)) as here:
        transport = guard.Transport(guard.of(HERE), here.url)
        with anyio.CancelScope() as scope:
            answer = await transport.handle_async_request(httpx2.Request("GET", here.url))
            scope.cancel()
            await answer.aclose()
        async with asyncio.timeout(2):
            while here.writers:
                await asyncio.sleep(0.001)


async def test_a_thousand_calls_at_once_are_answered() -> None:
    async with peer(says(body="x")) as here:
        answers = await asyncio.gather(*(get(here.url) for _ in range(1000)))
        assert {answer.body for answer in answers} == {b"x"}
        assert here.connections <= guard.pool.MOST_OPEN
        assert guard.of(HERE).pool.busy == 0


async def test_a_place_that_is_not_called_any_more_makes_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(guard.pool, "MOST_OPEN", 3)
    async with peer() as here, peer() as there:
        await asyncio.gather(*(get(here.url) for _ in range(3)))
        await asyncio.gather(*(get(there.url) for _ in range(3)))
        pool = guard.of(HERE).pool
        assert pool.count == 3
        assert {place.port for place in pool.idle} == {there.port}


async def test_a_loop_has_one_guard_until_it_is_closed() -> None:
    first = guard.of(HERE)
    assert guard.of(msgspec.structs.replace(HERE)) is first
    assert guard.of(Config()) is not first
    await guard.close()
    assert guard.of(HERE) is not first
    await guard.close()
