"""The tool catalogue: JSON-RPC over HTTP against a real server, and MCP through the pool."""

from __future__ import annotations

import asyncio
import gzip
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from peers import loop_unblocked

from orchestrator import steps
from orchestrator.config import Config
from orchestrator.errors import Malformed
from orchestrator.steps import (
    Context,
    Done,
    Fail,
    Kind,
    Outcome,
    Retry,
    builtins,
    catalog,
    find,
    tool,
)
from orchestrator.steps.reread import sentence
from orchestrator.worker.engine import compile

WILD = [sys.executable, "-I", "-S", str(Path(__file__).parent / "servers" / "wild.py")]
BOMB = gzip.compress(b" " * 100_000_000)
TYPED = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


class Endpoint:
    """An HTTP server that answers every request with the same bytes, and remembers them."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.head = ""
        self.status = 200
        self.body: bytes = b"null"
        self.headers = ""
        self.delay = 0.0
        self.over = asyncio.Event()
        self.tasks: set[Any] = set()

    def says(self, value: Any, status: int = 200) -> None:
        self.body, self.status = json.dumps(value).encode(), status

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.tasks.add(asyncio.current_task())
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("content-length:")[2].split()[0])
        self.head = head
        self.asked.append(json.loads(await reader.readexactly(length)))
        with suppress(TimeoutError):
            await asyncio.wait_for(self.over.wait(), self.delay)
        top = f"HTTP/1.1 {self.status} X\r\nConnection: close\r\n{self.headers}\r\n"
        writer.write(top.encode() + self.body)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    async def start(self) -> str:
        self.server = await asyncio.start_server(self.handle, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}/rpc"


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    made = Endpoint()
    yield made
    made.server.close()
    made.over.set()
    await asyncio.gather(*made.tasks)


Call = Callable[..., Awaitable[Outcome]]


class Book:
    def __init__(self, folder: Path) -> None:
        self.file = folder / "tools.json"
        servers = folder / "mcp.json"
        wild = {"command": WILD[0], "args": WILD[1:]}
        servers.write_text(json.dumps({"mcpServers": {"wild": wild}}))
        self.config = Config(tool_catalog_path=self.file, mcp_servers_path=servers)

    def has(self, *entries: Any) -> None:
        self.file.write_text(json.dumps(list(entries)))

    async def call(self, address: str, **arguments: Any) -> Outcome:
        context = Context(self.config, "t", "r", 1, 1, None, {})
        outcome: Outcome = await tool.kind(address).run(arguments, context)  # type: ignore[misc]
        return outcome


@pytest.fixture
async def book(tmp_path: Path) -> AsyncIterator[Book]:
    yield Book(tmp_path)
    await steps.close()


def over_http(url: str, **more: Any) -> dict[str, Any]:
    return {"address": "shop.price", "transport": "http", "endpoint": url, **more}


async def test_an_endpoint_is_called_by_json_rpc(book: Book, endpoint: Endpoint) -> None:
    book.has(over_http(await endpoint.start()))
    endpoint.says({"jsonrpc": "2.0", "id": 1, "result": {"n": 5}})
    assert await book.call("shop.price", item="tea") == Done({"n": 5})
    (asked,) = endpoint.asked
    assert asked["jsonrpc"] == "2.0"
    assert asked["method"] == "tools/call"
    assert asked["params"] == {"name": "shop.price", "arguments": {"item": "tea"}}


def failed(code: int) -> Any:
    return {"jsonrpc": "2.0", "error": {"code": code, "message": "m"}}


@pytest.mark.parametrize(
    ("status", "reply", "expected"),
    [
        (200, {"n": 5}, Done({"n": 5})),
        (200, [1], Done([1])),
        (200, {"result": 1, "and": "more"}, Done({"result": 1, "and": "more"})),
        (200, {"id": 1, "result": None}, Done(None)),
        (200, failed(-32602), Fail("validation", "shop.price: m")),
        (400, failed(-32601), Fail("configuration", "shop.price: m")),
        (200, failed(5), Retry("runtime", "shop.price: m")),
        (503, {}, Retry("communication", "shop.price answered with status 503")),
        (429, {}, Retry("rate_limited", "shop.price answered with status 429")),
        (401, {}, Fail("authentication", "shop.price answered with status 401")),
        (403, {}, Fail("authorization", "shop.price answered with status 403")),
        (307, {}, Fail("configuration", "shop.price answered with status 307")),
    ],
)  # fmt: skip
async def test_replies_become_outcomes(
    book: Book, endpoint: Endpoint, status: int, reply: Any, expected: Outcome
) -> None:
    book.has(over_http(await endpoint.start()))
    endpoint.says(reply, status)
    assert await book.call("shop.price") == expected


@pytest.mark.parametrize(
    ("body", "headers", "type", "words"),
    [
        (b"x", "", "validation", "isn't JSON"),
        (b"1e5000", "", "validation", "can't be kept"),
        (b"9" * 5000, "", "validation", "out of range"),
        (b"[" * 33 + b"]" * 33, "", "validation", "deeper than 32"),
        (b"[" * 5000 + b"]" * 5000, "", "validation", "deeper than 32"),
        (b'"\xff"', "", "validation", "can't be kept"),
        (b" " * 1_100_000, "", "validation", "more than 1048576 bytes"),
        (b"\x1f\x8b", "Content-Encoding: gzip\r\n", "communication", "half of it"),
        (
            gzip.compress(b" " * 100_000_000),
            "Content-Encoding: gzip\r\n",
            "validation",
            "more than",
        ),
        (b"x", "Content-Encoding: br\r\n", "validation", "wasn't asked for"),
    ],
)
async def test_hostile_replies_fail_the_call_by_their_name(
    book: Book, endpoint: Endpoint, body: bytes, headers: str, type: str, words: str
) -> None:
    book.has(over_http(await endpoint.start()))
    endpoint.body, endpoint.headers = body, headers
    async with loop_unblocked():
        outcome = await book.call("shop.price")
    assert isinstance(outcome, Fail | Retry)
    assert outcome.type == type
    assert words in outcome.message
    endpoint.body, endpoint.headers = b'"a\\u0000b"', ""
    assert await book.call("shop.price") == Done("a\ufffdb")


async def test_an_endpoint_is_reached_through_the_guard_with_key_and_trace(
    book: Book, endpoint: Endpoint
) -> None:
    book.has(over_http(await endpoint.start()))
    context = Context(book.config, "t", "r", 1, 1, None, {}, key="k-1", traceparent="00-a-b-01")
    await tool.kind("shop.price").run({}, context)  # type: ignore[misc]
    assert "idempotency-key: k-1\r\n" in endpoint.head
    assert "traceparent: 00-a-b-01\r\n" in endpoint.head
    assert "user-agent: orchestrator\r\n" in endpoint.head


async def test_an_endpoint_that_is_late_or_absent_may_be_tried_again(
    book: Book, endpoint: Endpoint
) -> None:
    url = await endpoint.start()
    book.has(over_http(url, timeout_seconds=0.1))
    endpoint.delay = 0.4
    late = await book.call("shop.price")
    assert isinstance(late, Retry)
    assert late.type == "timeout"
    assert "took longer than 0.1 s" in late.message
    endpoint.server.close()
    book.has(over_http(url, timeout_seconds=10))
    absent = await book.call("shop.price")
    assert isinstance(absent, Retry)
    assert absent.type == "communication"


async def test_arguments_and_results_are_held_to_the_schemas(
    book: Book, endpoint: Endpoint
) -> None:
    book.has(over_http(await endpoint.start(), input_schema=TYPED, output_schema=TYPED))
    endpoint.says({"n": 5})
    assert await book.call("shop.price", n=1) == Done({"n": 5})
    wrong = await book.call("shop.price", n="s3cret")
    assert isinstance(wrong, Fail)
    assert wrong.type == "validation"
    assert "the arguments of shop.price are wrong: /n: the value is not of type" in wrong.message
    assert len(endpoint.asked) == 1
    endpoint.says({"n": "s3cret"})
    wrong = await book.call("shop.price", n=1)
    assert isinstance(wrong, Fail)
    assert wrong.type == "validation"
    assert "what shop.price answered is wrong: /n" in wrong.message
    assert "s3cret" not in wrong.message


async def test_mcp_and_stdio_go_through_the_sessions(book: Book) -> None:
    book.has(
        {"address": "echo", "transport": "mcp", "server": "wild"},
        {"address": "my.echo", "transport": "stdio", "command": WILD, "output_schema": TYPED},
        {"address": "my.who", "transport": "stdio", "command": " ".join(WILD)},
        {"address": "slow.hang", "transport": "mcp", "server": "wild", "timeout_seconds": 0.2},
        {"address": "lost.echo", "transport": "mcp", "server": "widl"},
    )
    assert await book.call("echo", a=1) == Done({"a": 1})
    assert await book.call("my.echo", n=1) == Done({"n": 1})
    assert isinstance(await book.call("my.echo", n="x"), Fail)
    assert isinstance(await book.call("my.who"), Done)
    late = await book.call("slow.hang")
    assert late == Retry("timeout", "slow.hang took longer than 0.2 s")
    lost = await book.call("lost.echo")
    assert isinstance(lost, Fail)
    assert "there is no MCP server 'widl': did you mean wild?" in lost.message


async def test_an_address_of_the_catalogue_comes_before_a_server(
    book: Book, endpoint: Endpoint
) -> None:
    book.has({**over_http(await endpoint.start()), "address": "wild.echo"})
    endpoint.says("from the catalogue")
    assert await book.call("wild.echo") == Done("from the catalogue")
    assert await book.call("wild.strict", n=1) == Done({"n": 1})
    book.has()
    assert await book.call("wild.echo", a=1) == Done({"a": 1})


async def test_the_file_is_read_again_and_a_broken_one_is_not_taken(
    book: Book, endpoint: Endpoint
) -> None:
    url = await endpoint.start()
    book.file.write_text(json.dumps({"tools": [over_http(url)]}))
    endpoint.says(1)
    assert await book.call("shop.price") == Done(1)
    book.file.write_text('{"tools": [')
    assert await book.call("shop.price") == Done(1)
    book.has({**over_http(url), "address": "shop.stock"})
    assert await book.call("shop.stock") == Done(1)
    assert isinstance(await book.call("shop.price"), Fail)


def test_every_problem_of_the_catalogue_is_named() -> None:
    entries = [
        {"address": "a b", "transport": "http", "endpoint": "x"},
        {"address": "c", "transport": "smtp", "sope": 1},
        {"transport": "http", "timeout_seconds": 0},
    ]
    with pytest.raises(Malformed) as refusal:
        catalog.understand(json.dumps(entries).encode())
    said = sentence(refusal.value)
    for place in ("/0/address", "/0/endpoint", "/1/transport", "/1/sope", "/2/address", "/2/timeo"):
        assert place in said
    entries = [
        {"address": "a", "transport": "http", "server": "s"},
        {"address": "a", "transport": "mcp", "server": "s", "input_schema": {"type": "objekt"}},
        {"address": "b", "transport": "stdio", "command": ["c"],
         "output_schema": {"$ref": "http://127.0.0.1:1/schema.json"}},
    ]  # fmt: skip
    with pytest.raises(ValueError, match="a stands 2 times") as wrong:
        catalog.understand(json.dumps(entries).encode())
    for words in ("/0: http needs endpoint", "/0: http takes no server", "/1/input_schema: no",
                  "/2/output_schema: no usable JSON Schema"):  # fmt: skip
        assert words in str(wrong.value)


async def test_a_regex_cannot_explode(book: Book, endpoint: Endpoint) -> None:
    schema = {"properties": {"a": {"type": "string", "pattern": "^(a+)+$"}}}
    book.has(over_http(await endpoint.start(), input_schema=schema))
    async with loop_unblocked():
        outcome = await book.call("shop.price", a="a" * 50_000 + "b")
    assert isinstance(outcome, Fail)
    assert outcome.type == "validation"
    schema["properties"]["a"]["pattern"] = "^(?=(a+)+$)"
    entry = over_http("http://x/", input_schema=schema)
    with pytest.raises(ValueError, match="/0/input_schema: no usable JSON Schema"):
        catalog.understand(json.dumps([entry]).encode())


async def test_uses_finds_builtins_then_tools_and_nothing_else(book: Book) -> None:
    def kind(uses: str, config: Config) -> Kind | None:
        plan = compile({"pipeline": [{"uses": uses}]}, builtins(), partial(find, config=config))
        return None if plan.broken else plan.tools["0"].kind

    assert kind("set", book.config) == builtins()["set"]
    found = kind("weather.get_forecast", Config())
    assert found is not None
    assert found.name == "weather.get_forecast"
    assert found.outside
    assert kind("forecast", Config()) is None
    assert kind("forecast", book.config) is not None  # the catalogue may have it by then
