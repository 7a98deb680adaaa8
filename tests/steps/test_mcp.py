"""MCP tools against real servers: our own demo, the SDK's over HTTP, and hostile children."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from conftest import Make
from crew import Crew, enqueue, look, own_clock, until
from mcp.server.mcpserver import MCPServer
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from orchestrator import db, steps
from orchestrator.config import Config
from orchestrator.httpd import bind
from orchestrator.secrets import hidden
from orchestrator.steps import Context, Done, Fail, Outcome, Retry, mcp, tool
from orchestrator.steps.mcp.pool import Pool
from orchestrator.steps.mcp.session import Limits

SERVERS = Path(__file__).parent / "servers"
WILD = [sys.executable, "-I", "-S", str(SERVERS / "wild.py")]


def wild(*flags: str, **more: Any) -> dict[str, Any]:
    return {"command": WILD[0], "args": [*WILD[1:], *flags], **more}


def demo(*words: str) -> dict[str, Any]:
    return {"command": sys.executable, "args": ["-m", "orchestrator.demo", *words]}


class Place:
    """A file of servers, and calls of their tools."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "mcp.json"
        self.config = Config(mcp_servers_path=self.file)
        self.servers(wild=wild())

    def servers(self, **servers: Any) -> None:
        self.file.write_text(json.dumps({"mcpServers": servers}))

    async def call(self, address: str, **arguments: Any) -> Outcome:
        context = Context(self.config, "t", "r", 1, 1, None, {})
        outcome: Outcome = await tool.kind(address).run(arguments, context)  # type: ignore[misc]
        return outcome

    async def value(self, address: str, **arguments: Any) -> Any:
        outcome = await self.call(address, **arguments)
        assert isinstance(outcome, Done), outcome
        return outcome.value

    async def hanging(self) -> asyncio.Task[Outcome]:
        """A call that the server has heard and never answers."""
        note = self.file.with_name("asked")
        note.unlink(missing_ok=True)
        call = asyncio.create_task(self.call("wild.hang", note=str(note)))
        await until(note.exists)
        return call

    async def limit(self, **limits: Any) -> Pool:
        pool = await mcp.sessions()
        pool.limits = Limits(**{"first_delay": 0.01, **limits})
        return pool


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    found = Place(tmp_path)
    await found.limit()
    yield found
    await steps.close()


def lives(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


async def gone(pid: int) -> None:
    await until(lambda: not lives(pid))


@asynccontextmanager
async def responsive(seconds: float = 0.1) -> AsyncIterator[None]:
    """The loop's thread never computes longer than this at a stretch, whatever else runs here.

    What the tests before left on the heap isn't ours to look through.
    """
    gc.collect()
    gc.freeze()
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            before = time.thread_time()
            await asyncio.sleep(0.002)
            longest = max(longest, time.thread_time() - before)

    task = asyncio.create_task(watch())
    yield
    await asyncio.sleep(0.01)  # the last stretch counts
    task.cancel()
    gc.unfreeze()
    assert longest < seconds, f"the loop was blocked for {longest:.3f} s"


# What a call answers


async def test_the_demo_servers_make_a_first_pipeline(place: Place, tmp_path: Path) -> None:
    outbox = tmp_path / "outbox"
    place.servers(weather=demo("weather"), telegram=demo("telegram", str(outbox)))
    weather = await place.value("weather.get_forecast", city="london", date="2026-07-15")
    assert weather["summary"] == "London, 15 July: usually 14 to 24 °C, some rain"
    assert weather["source"] == "demo"
    sent = await place.value("telegram.send_message", chat_id=7, text=weather["summary"])
    assert sent == {"ok": True, "message_id": 1, "chat_id": 7}
    assert json.loads(outbox.read_text())["text"] == weather["summary"]
    assert outbox.stat().st_mode & 0o077 == 0
    wrong = await place.call("weather.get_forecast", city="Lodon")
    assert isinstance(wrong, Retry)
    assert wrong.type == "runtime"
    assert "there is no forecast for 'Lodon': did you mean London?" in wrong.message


@pytest.mark.parametrize(
    ("content", "value"),
    [
        ([], None),
        ([{"type": "text", "text": '{"a": [1, 2.5, null]}'}], {"a": [1, 2.5, None]}),
        ([{"type": "text", "text": "it rains"}], "it rains"),
        ([{"type": "text", "text": "[" * 40 + "]" * 40}], "[" * 40 + "]" * 40),
        ([{"type": "text", "text": "1e5000"}], "1e5000"),
        ([{"type": "text", "text": '["\\u0000"]'}], '["\\u0000"]'),
        ([{"type": "text", "text": "1"}, {"type": "text", "text": "b"}], [1, "b"]),
        (
            [{"type": "image", "data": "aGk=", "mimeType": "image/png"}],
            {"type": "image", "mimeType": "image/png", "data": "aGk="},
        ),
        (
            [{"type": "resource", "resource": {"uri": "a:b", "text": "t"}}],
            {"type": "resource", "resource": {"uri": "a:b", "text": "t"}},
        ),
    ],
)
async def test_contents_become_the_value(place: Place, content: list[Any], value: Any) -> None:
    assert await place.value("wild.contents", content=content) == value


async def test_structured_content_is_the_value(place: Place) -> None:
    assert await place.value("wild.echo", chat_id=5, deep={"a": [1]}) == {
        "chat_id": 5,
        "deep": {"a": [1]},
    }


async def test_errors_of_a_tool_are_typed(place: Place) -> None:
    assert await place.call("wild.fail", text="no luck") == Retry("runtime", "wild.fail: no luck")
    assert await place.call("wild.refuse", code=-32050) == Retry("runtime", "wild.refuse: no")
    assert await place.call("wild.refuse", code=-32602) == Fail("validation", "wild.refuse: no")
    assert await place.call("wild.refuse", code=-32601) == Fail("configuration", "wild.refuse: no")


async def test_arguments_and_results_are_held_to_the_schemas_of_the_tool(place: Place) -> None:
    assert await place.value("wild.strict", n=1) == {"n": 1}
    wrong = await place.call("wild.strict", n="s3cret")
    assert wrong == Fail(
        "validation",
        'the arguments of wild.strict are wrong: /n: the value is not of type "integer"',
    )
    wrong = await place.call("wild.strict", m=1)
    assert isinstance(wrong, Fail)
    assert wrong.type == "validation"
    assert '"n" is a required property' in wrong.message
    wrong = await place.call("wild.strict", n=1, answer="s3cret")
    assert isinstance(wrong, Fail)
    assert wrong.message.startswith("what wild.strict answered isn't what it promised: /n")
    assert "s3cret" not in wrong.message


async def test_unknown_names_are_answered_with_a_way_out(place: Place) -> None:
    wrong = await place.call("wlid.echo")
    assert isinstance(wrong, Fail)
    assert wrong.type == "configuration"
    assert "there is no MCP server 'wlid': did you mean wild?" in wrong.message
    wrong = await place.call("wild.ehco")
    assert isinstance(wrong, Fail)
    assert wrong.type == "configuration"
    assert "did you mean echo?" in wrong.message
    assert "known: beside, breed, contents, die" in wrong.message
    nowhere = Context(Config(), "t", "r", 1, 1, None, {})
    wrong = await tool.kind("a.b").run({}, nowhere)  # type: ignore[misc]
    assert wrong == Fail(
        "configuration", "a.b: there is no MCP server 'a': MCP_SERVERS_PATH names no file"
    )


# Sessions


async def test_fifty_calls_at_once_share_one_process(place: Place) -> None:
    calls = [place.value("wild.together", n=n, count=50) for n in range(50)]
    answers = await asyncio.gather(*calls)
    assert [answer["n"] for answer in answers] == list(range(50))
    assert len({answer["pid"] for answer in answers}) == 1


async def test_a_child_has_its_own_group_and_nothing_of_our_settings(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DATABASE_URL", "ORC_PORT", "SECRET", "PYTHONPATH"):
        monkeypatch.setenv(name, "s3cret")
    place.servers(wild=wild(env={"TOKEN": "t"}, cwd="/"))
    who = await place.value("wild.who")
    assert who["group"] not in {os.getpgid(0), who["pid"]}  # its keeper leads the group
    names = who["environment"].keys() - {"LC_CTYPE"}  # which Python adds to itself
    assert {"PATH", "TOKEN"} <= names <= {"PATH", "HOME", "LANG", "TOKEN"}
    assert who["cwd"] == "/"


async def test_an_idle_session_is_closed_and_the_next_call_opens_another(place: Place) -> None:
    pool = await place.limit(idle=0.05)
    first = (await place.value("wild.who"))["pid"]
    await until(lambda: not pool.sessions)
    await gone(first)
    assert (await place.value("wild.who"))["pid"] != first


async def test_a_call_under_way_keeps_its_session_however_long_it_takes(place: Place) -> None:
    await place.limit(idle=0.05)
    slow = asyncio.create_task(place.value("wild.together", n=1, count=2))
    await asyncio.sleep(0.3)
    assert (await place.value("wild.together", n=2, count=2))["n"] == 2
    assert (await slow)["n"] == 1


async def test_a_server_over_the_cap_takes_the_place_of_an_idle_one(place: Place) -> None:
    await place.limit(sessions=1)
    place.servers(a=wild(), b=wild())
    first = (await place.value("a.who"))["pid"]
    busy = asyncio.create_task(place.value("b.together", n=1, count=2))
    await gone(first)
    waits = asyncio.create_task(place.value("a.who"))
    await asyncio.sleep(0.2)
    assert not waits.done()
    await place.value("b.together", n=2, count=2)
    assert (await waits)["pid"] != first
    assert (await busy)["n"] == 1


async def test_a_server_that_dies_in_a_call_fails_it_and_is_started_again(place: Place) -> None:
    first = (await place.value("wild.who"))["pid"]
    other = await place.hanging()
    lost = await place.call("wild.die", status=3)
    assert lost == Retry("communication", "wild.die: MCP server 'wild' ended with status 3")
    also_lost = await other
    assert isinstance(also_lost, Retry)
    assert also_lost.type == "communication"
    assert (await place.value("wild.who"))["pid"] != first


async def test_a_server_that_keeps_breaking_is_started_less_and_less_often(place: Place) -> None:
    await place.limit(first_delay=0.3, patience=0.45)
    place.servers(wild=wild("stillborn"))
    began = time.monotonic()
    lost = await place.call("wild.echo")
    assert isinstance(lost, Retry)
    assert lost.type == "communication"
    assert lost.message.endswith("ended with status 1: no configuration")
    assert isinstance(await place.call("wild.echo"), Retry)  # after 0.3 s
    assert time.monotonic() - began > 0.3
    rested = await place.call("wild.echo")  # 0.6 s are left: the run waits, not the call
    assert isinstance(rested, Retry)
    assert rested.delay is not None
    assert 0.45 < rested.delay <= 0.6
    place.servers(wild=wild())
    await asyncio.sleep(rested.delay)
    assert await place.value("wild.echo", a=1) == {"a": 1}


async def test_what_the_file_keeps_secret_is_not_in_errors(place: Place) -> None:
    place.servers(wild=wild("stillborn", env={"TOKEN": "s3cret-token"}))
    lost = await place.call("wild.echo")
    assert isinstance(lost, Retry)
    assert lost.message.endswith("no configuration ***")


async def test_the_last_words_of_a_server_are_in_the_log_and_in_nobody_elses_error(
    place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    hidden.add("K", "canary-of-another-run")
    other = await place.hanging()
    lost = await place.call("wild.die", words="it hurts canary-of-another-run")
    for outcome in (lost, await other):
        assert isinstance(outcome, Retry)
        assert outcome.message.endswith("MCP server 'wild' ended with status 3")
    said = capfd.readouterr().out
    assert "it hurts [secret K]" in said
    assert "canary-of" not in said


async def test_a_server_that_says_nothing_is_given_up(place: Place) -> None:
    await place.limit(start=0.2)
    place.servers(wild=wild("mute"))
    lost = await place.call("wild.echo")
    assert isinstance(lost, Retry)
    assert "didn't answer within 0.2 s of its start" in lost.message


async def test_a_command_that_does_not_exist_is_a_configuration(place: Place) -> None:
    place.servers(wild={"command": "/no/such/program"}, there={"command": "sh", "cwd": "/no"})
    for name in ("wild", "there"):
        wrong = await place.call(f"{name}.echo")
        assert isinstance(wrong, Fail)
        assert wrong.type == "configuration"
        assert "No such file" in wrong.message


async def test_a_call_that_is_too_late_is_canceled_at_the_server(place: Place) -> None:
    await place.value("wild.echo")
    await place.limit(call=0.5)
    assert await place.call("wild.hang") == Retry("timeout", "wild.hang took longer than 0.5 s")
    await place.limit()
    canceled = await place.value("wild.was_canceled")
    assert len(canceled["ids"]) == 1


async def test_a_step_that_is_canceled_is_canceled_at_the_server(place: Place) -> None:
    await place.value("wild.echo")
    call = await place.hanging()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert len((await place.value("wild.was_canceled"))["ids"]) == 1


async def test_a_tool_that_appears_later_is_found(place: Place) -> None:
    assert isinstance(await place.call("wild.newcomer"), Fail)
    await place.value("wild.learn", name="newcomer")
    assert await place.value("wild.newcomer") == {"called": "newcomer"}


# The file


async def test_the_file_is_read_again_when_it_changes(place: Place) -> None:
    first = await place.value("wild.who")
    place.servers(wild=wild(env={"NEW": "1"}), other=wild())
    second = await place.value("wild.who")
    assert second["environment"]["NEW"] == "1"
    assert second["pid"] != first["pid"]
    await gone(first["pid"])
    assert await place.value("other.echo", a=1) == {"a": 1}
    place.file.write_text("{ half a fi")
    assert (await place.value("wild.who"))["pid"] == second["pid"]
    place.servers(other=wild())
    assert isinstance(await place.call("wild.who"), Fail)


async def test_every_problem_of_the_file_is_named(place: Place) -> None:
    place.servers(
        a={}, b={"command": "x", "url": "http://y"}, c={"url": "ftp://z"}, d={"command": 5},
        e={"type": "sse", "url": "http://y"},
    )  # fmt: skip
    wrong = await place.call("a.b")
    assert isinstance(wrong, Fail)
    assert wrong.type == "configuration"
    for name in ("a: ", "b: ", "c: ", "/command: ", "/type: "):
        assert name in wrong.message
    await asyncio.to_thread(place.file.unlink)
    missing = await place.call("a.b")
    assert isinstance(missing, Fail)
    assert "No such file" in missing.message


def test_what_clients_keep_beside_is_ignored() -> None:
    text = b'{"mcpServers": {"a": {"command": "x", "autoApprove": []}, "b": {"command": "y",'
    text += b' "disabled": true}}, "theme": "dark"}'
    from orchestrator.steps.mcp.servers import understand

    assert list(understand(text)) == ["a"]


# Hostile servers


@pytest.mark.parametrize(
    ("line", "times", "words"),
    [
        ("[" * 5000 + "]" * 5000, 1, "nested deeper than 32 levels"),
        ("[" * 33 + "]" * 33, 1, "nested deeper than 32 levels"),
        ("1e5000", 1, "out of range"),
        ("NaN", 1, "can't be read"),
        ('"\\u0000"', 1, "a NUL character can't be kept"),
        ('"\\ud800"', 1, "can't be read"),
        ('"<ff>"', 1, "can't be read"),
        ("x", 1, "can't be read"),
        ("9" * 5000, 1, ""),
        ("[" + "[]," * 48_000 + "[]]", 1, ""),
        ("[" + "[]," * 300_000 + "[]]", 1, "more than 50000 arrays and objects"),
        ("[1]", 600_000, "is longer than 1048576 bytes"),
    ],
)
async def test_a_hostile_answer_fails_its_call_by_its_name(
    place: Place, line: str, times: int, words: str
) -> None:
    await place.value("wild.echo")
    async with responsive():
        outcome = await place.call("wild.raw", line=line, times=times)
    if words:
        assert isinstance(outcome, Fail)
        assert outcome.type == "validation"
        assert words in outcome.message
    assert await place.value("wild.echo", a=1) == {"a": 1}


async def test_too_many_contents_fail_the_call_without_being_looked_at(place: Place) -> None:
    await place.value("wild.echo")
    async with responsive():
        outcome = await place.call("wild.many", count=48_000)
    assert isinstance(outcome, Fail)
    assert "has 48000 content items; 256 are taken" in outcome.message


async def test_garbage_between_messages_is_borne(place: Place) -> None:
    lines = ["Starting up...", "", "{", "[]", "null", "\x1b[31m<ff>",
             '{"jsonrpc":"2.0","id":99,"result":{}}',
             '{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info"}}',
             '{"jsonrpc":"2.0","id":null,"error":{"code":1,"message":"m"}}']  # fmt: skip
    assert await place.value("wild.noise", lines=lines) == {"fine": True}


@pytest.mark.parametrize(
    ("line", "words"),
    [("x", "wrote a line longer than"), ("xy\n", "bytes that are no message")],
)
async def test_a_gigabyte_on_stdout_ends_the_session_and_nothing_else(
    place: Place, line: str, words: str
) -> None:
    await place.value("wild.echo")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with responsive():
        lost = await place.call("wild.flood", where="stdout", megabytes=1024, line=line)
    assert isinstance(lost, Retry)
    assert lost.type == "communication"
    assert words in lost.message
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64_000
    assert await place.value("wild.echo", a=1) == {"a": 1}


async def test_a_gigabyte_on_stderr_is_swallowed(place: Place) -> None:
    await place.value("wild.echo")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with responsive():
        call = place.value("wild.flood", where="stderr", megabytes=1024)
        assert await call == {"done": True}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64_000


async def test_a_server_that_only_asks_is_ended(place: Place) -> None:
    assert await place.value("wild.pester", count=20) == {"fine": True}
    lost = await place.call("wild.pester", count=100_000)
    assert isinstance(lost, Retry)
    assert "without waiting for an answer" in lost.message


# The end


async def test_at_the_end_nothing_is_left_not_even_what_ignores_sigterm(place: Place) -> None:
    place.servers(deaf=wild("deaf"), wild=wild())
    bred = await place.value("deaf.breed")
    pids = [bred["pid"], bred["child"], (await place.value("wild.who"))["pid"]]
    assert all(map(lives, pids))
    began = own_clock()
    await steps.close()
    assert own_clock() - began < 2
    for pid in pids:
        await gone(pid)


async def test_what_a_dead_server_started_is_killed_with_it(place: Place) -> None:
    bred = await place.value("wild.breed")
    os.kill(bred["pid"], signal.SIGKILL)
    await gone(bred["child"])
    pool = await mcp.sessions()
    await until(lambda: not pool.sessions)  # it has been heard
    assert await place.value("wild.echo", a=1) == {"a": 1}


HOLD = """
import asyncio, sys
from pathlib import Path
from orchestrator.config import Config
from orchestrator.steps import Context, tool

async def main():
    context = Context(Config(mcp_servers_path=Path(sys.argv[1])), "t", "r", 1, 1, None, {})
    bred = (await tool.kind("deaf.breed").run({}, context)).value
    print("pids", bred["pid"], bred["child"], flush=True)
    await asyncio.sleep(100)

asyncio.run(main())
"""


async def test_a_worker_that_is_killed_leaves_no_orphans(place: Place) -> None:
    place.servers(deaf=wild("deaf"))
    worker = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", HOLD, str(place.file)], stdout=subprocess.PIPE, stderr=2
    )
    assert worker.stdout
    while not (line := await asyncio.to_thread(worker.stdout.readline)).startswith(b"pids"):
        assert line
    pids = [int(pid) for pid in line.split()[1:]]
    assert all(map(lives, pids))
    worker.kill()
    await asyncio.to_thread(worker.wait)
    worker.stdout.close()
    for pid in pids:
        await gone(pid)


async def test_a_worker_calls_tools_and_closes_them_when_it_ends(
    place: Place, make: Make, conn: db.Connection
) -> None:
    crew = Crew(make.config(mcp_servers_path=place.file))
    given = {"uses": "wild.who", "id": "who", "with": {}}
    run = await enqueue(conn, given, {"uses": "wild.strict", "id": "b", "with": {"n": 4}})
    missing = await enqueue(conn, {"uses": "nobody.home"})
    try:
        await crew.once()
    finally:
        await crew.end()
    row = await look(conn, run)
    assert row["state"] == "succeeded"
    assert row["output"]["b"] == {"n": 4}
    await gone(row["output"]["who"]["pid"])
    failed = await look(conn, missing)
    assert failed["error"]["type"] == "configuration"
    assert "there is no MCP server 'nobody'" in failed["error"]["message"]


# Over HTTP


@asynccontextmanager
async def served(app: Any) -> AsyncIterator[str]:
    config = uvicorn.Config(app, log_level="error", ws="none", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    listener = bind("127.0.0.1", 0)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    await until(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"
    finally:
        await steps.close()
        server.should_exit = True
        await task


async def test_a_remote_server_is_called_over_streamable_http(place: Place) -> None:
    remote = MCPServer("remote", log_level="ERROR")

    @remote.tool()
    async def double(n: int) -> dict[str, int]:
        await asyncio.sleep(0.05)
        return {"n": 2 * n}

    async with served(remote.streamable_http_app()) as url:
        place.servers(remote={"type": "http", "url": url, "headers": {"X-Key": "k"}})
        answers = await asyncio.gather(*(place.value("remote.double", n=n) for n in range(20)))
        assert answers == [{"n": 2 * n} for n in range(20)]
        wrong = await place.call("remote.double", n="x")
        assert isinstance(wrong, Fail)
        assert wrong.type == "validation"
    lost = await place.call("remote.double", n=1)
    assert isinstance(lost, Retry)
    assert lost.type == "communication"


async def test_a_call_over_http_has_its_own_trace_as_a_header(place: Place) -> None:
    remote = MCPServer("remote", log_level="ERROR")
    seen: list[bytes] = []

    @remote.tool()
    async def double(n: int) -> dict[str, int]:
        return {"n": 2 * n}

    app = remote.streamable_http_app()

    async def noting(scope: Any, receive: Any, send: Any) -> None:
        seen.extend(value for name, value in scope.get("headers", ()) if name == b"traceparent")
        await app(scope, receive, send)

    async with served(noting) as url:
        place.servers(remote={"type": "http", "url": url})
        for trace in ("00-a-b-01", None, "00-c-d-01"):
            context = Context(place.config, "t", "r", 1, 1, None, {}, traceparent=trace)
            asked = {"n": 1}
            outcome: Any = await tool.kind("remote.double").run(asked, context)  # type: ignore[misc]
            assert outcome == Done({"n": 2})
        await place.value("remote.double", n=1)
    assert seen == [b"00-a-b-01", b"00-c-d-01"]


Answering = Callable[[Any], Awaitable[Response]]


def hostile(answer: Answering) -> Starlette:
    """A server over HTTP whose tool answers as it is told."""

    async def handle(request: Request) -> Response:
        if request.method != "POST":
            return Response(status_code=405)
        message = await request.json()
        id, params = message.get("id"), message.get("params", {})
        match message["method"]:
            case "initialize":
                result: Any = {
                    "protocolVersion": params["protocolVersion"],
                    "capabilities": {"tools": {}},
                    "serverInfo": {"name": "h", "version": "1"},
                }
            case "tools/list":
                result = {"tools": [{"name": "call", "inputSchema": {"type": "object"}}]}
            case "tools/call":
                return await answer(id)
            case _:
                return Response(status_code=202)
        return JSONResponse({"jsonrpc": "2.0", "id": id, "result": result})

    return Starlette(routes=[Route("/mcp", handle, methods=["GET", "POST", "DELETE"])])


async def endless(_: Any) -> Response:
    async def body() -> AsyncIterator[bytes]:
        for _ in range(10_000):
            yield b"x" * 65536
            await asyncio.sleep(0)

    return StreamingResponse(body(), media_type="application/json")


async def compressed(_: Any) -> Response:
    return Response(
        b"\x1f\x8b", headers={"content-encoding": "gzip"}, media_type="application/json"
    )


def answered(id: Any, result: str) -> Response:
    body = '{"jsonrpc":"2.0","id":' + str(id) + ',"result":' + result + "}"
    return Response(body, media_type="application/json")


async def empty_contents(id: Any) -> Response:
    return answered(id, '{"content":[' + "{}," * 99_000 + "{}]}")


def structured(value: str) -> Answering:
    async def answer(id: Any) -> Response:
        return answered(id, '{"content":[],"structuredContent":{"a":' + value + "}}")

    return answer


def event(value: str) -> Answering:
    async def answer(id: Any) -> Response:
        head = 'data: {"jsonrpc":"2.0","id":' + str(id) + ',"result":{"content":[],'
        body = head + '"structuredContent":{"a":' + value + "}}}\r\n\r\n"
        return Response(": hello\r\n\r\n" + body, media_type="text/event-stream")

    return answer


async def comments(_: Any) -> Response:
    async def body() -> AsyncIterator[bytes]:
        while True:
            yield b":\n\n" * 20_000
            await asyncio.sleep(0)

    return StreamingResponse(body(), media_type="text/event-stream")


async def not_text(id: Any) -> Response:
    body = b'{"jsonrpc":"2.0","id":' + str(id).encode() + b',"result":{"content":"\xff"}}'
    return Response(body, media_type="application/json")


async def infinite(id: Any) -> Response:
    return answered(id, '{"content":[],"structuredContent":{"a":1e5000}}')


@pytest.mark.parametrize(
    ("answer", "type", "words"),
    [
        (endless, "validation", "longer than 1048576 bytes"),
        (compressed, "communication", "its answer is compressed"),
        (empty_contents, "validation", "more than 50000 arrays and objects"),
        (infinite, "validation", "can't be kept"),
        (not_text, "validation", "invalid unicode"),
        (structured('"\\u0000"'), "validation", "NUL"),
        (structured("[" * 5000 + "1" + "]" * 5000), "validation", ""),
        (structured("[" * 50_000 + "1" + "]" * 50_000), "validation", "deeper than 32"),
        (structured("[" + "[]" * 30_000), "validation", "can't be read: JSON"),
        (structured("[1]" * 600_000), "validation", "longer than 1048576 bytes"),
        (event("[" * 50_000 + "1" + "]" * 50_000), "validation", "deeper than 32"),
        (event("[1]" * 600_000), "communication", "longer than 1048576 bytes"),
        (event("1e5000"), "validation", "can't be kept"),
        (comments, "timeout", "took longer than 0.5 s"),
    ],
)
async def test_a_hostile_answer_over_http_fails_its_call(
    place: Place, answer: Answering, type: str, words: str
) -> None:
    await place.limit(call=0.5 if answer is comments else 10.0)
    async with served(hostile(answer)) as url:
        place.servers(remote={"url": url})
        await place.call("remote.nothing")  # it is warm
        async with responsive():
            outcome = await place.call("remote.call")
    assert isinstance(outcome, Fail | Retry)
    assert outcome.type == type
    assert words in outcome.message


@pytest.mark.parametrize(
    ("answer", "size"),
    [
        (structured("[" + "1," * 500_000 + "1]"), 500_001),
        (structured("[" + "[]," * 49_000 + "[]]"), 49_001),
        (event("[" + "1," * 500_000 + "1]"), 500_001),
        (event('{"a":[' + '"x",' * 100_000 + "1]}"), 1),
    ],
)
async def test_a_large_answer_over_http_is_the_value_and_the_loop_goes_on(
    place: Place, answer: Answering, size: int
) -> None:
    async with served(hostile(answer)) as url:
        place.servers(remote={"url": url})
        await place.call("remote.nothing")
        async with responsive():
            value = await place.value("remote.call")
    assert len(value["a"]) == size


async def test_the_key_and_the_trace_go_beside_the_arguments(place: Place) -> None:
    context = Context(place.config, "t", "r", 1, 1, None, {}, key="k-1", traceparent="00-a-b-01")
    outcome: Any = await tool.kind("wild.beside").run({}, context)  # type: ignore[misc]
    assert outcome.value == {"orchestrator/idempotency-key": "k-1", "traceparent": "00-a-b-01"}
    assert await place.value("wild.beside") == {}
