"""An MCP server by hand, without the SDK: it starts in 20 ms and misbehaves as it is told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

waiting: list[Any] = []
canceled: list[Any] = []
ANYTHING = {"type": "object"}
tools: dict[str, dict[str, Any]] = {
    "strict": {
        "inputSchema": {
            "type": "object",
            "properties": {"n": {"type": "integer"}, "answer": {}},
            "required": ["n"],
            "additionalProperties": False,
        },
        "outputSchema": {"type": "object", "properties": {"n": {"type": "integer"}}},
    },
    "beside": {"inputSchema": ANYTHING},
}


def say(line: str) -> None:
    """`<ff>` is a byte that isn't UTF-8."""
    sys.stdout.buffer.write(line.encode().replace(b"<ff>", b"\xff") + b"\n")
    sys.stdout.buffer.flush()


def answer(id: Any, **result: Any) -> None:
    say(json.dumps({"jsonrpc": "2.0", "id": id, "result": result}))


def give(id: Any, **values: Any) -> None:
    answer(id, content=[], structuredContent=values)


def tool(function: Callable[..., None]) -> Callable[..., None]:
    tools.setdefault(function.__name__, {"inputSchema": ANYTHING})
    return function


@tool
def echo(id: Any, **values: Any) -> None:
    give(id, **values)


@tool
def strict(id: Any, n: int, answer: Any = None) -> None:
    give(id, n=n if answer is None else answer)


@tool
def contents(id: Any, content: list[Any]) -> None:
    answer(id, content=content)


@tool
def fail(id: Any, text: str) -> None:
    answer(id, content=[{"type": "text", "text": text}], isError=True)


@tool
def refuse(id: Any, code: int) -> None:
    error = {"code": code, "message": "no"}
    say(json.dumps({"jsonrpc": "2.0", "id": id, "error": error}))


@tool
def raw(id: Any, line: str, times: int = 1, wrap: bool = True) -> None:
    """Any bytes as a result, or as a line."""
    head = '{"jsonrpc":"2.0","id":' + str(id) + ',"result":{"content":[],"structuredContent":{"a":'
    say(head + line * times + "}}}" if wrap else line * times)


@tool
def noise(id: Any, lines: list[str]) -> None:
    for line in lines:
        say(line)
    give(id, fine=True)


@tool
def many(id: Any, count: int) -> None:
    answer(id, content=[{}] * count)


@tool
def flood(id: Any, where: str, megabytes: int, line: str = "x") -> None:
    block = (line * (65536 // len(line))).encode()
    stream = sys.stdout.buffer if where == "stdout" else sys.stderr.buffer
    for _ in range(megabytes * 16):
        stream.write(block)
    stream.flush()
    give(id, done=True)


@tool
def together(id: Any, n: int, count: int) -> None:
    """Answers when all have asked, the last one first."""
    waiting.append((id, n))
    if len(waiting) == count:
        for one, number in reversed(waiting):
            give(one, n=number, pid=os.getpid())
        waiting.clear()


@tool
def hang(id: Any, note: str = "") -> None:
    """Leaves a note that it was asked."""
    if note:
        open(note, "w").close()


@tool
def was_canceled(id: Any) -> None:
    give(id, ids=canceled)


@tool
def die(id: Any, status: int = 3, words: str = "it hurts") -> None:
    print(words, file=sys.stderr, flush=True)
    os._exit(status)


@tool
def who(id: Any) -> None:
    give(id, pid=os.getpid(), group=os.getpgid(0), environment=dict(os.environ), cwd=os.getcwd())


@tool
def breed(id: Any) -> None:
    give(id, pid=os.getpid(), child=subprocess.Popen(["/bin/sleep", "1000"]).pid)


@tool
def learn(id: Any, name: str) -> None:
    tools[name] = {"inputSchema": ANYTHING}
    say('{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}')
    give(id, fine=True)


@tool
def pester(id: Any, count: int) -> None:
    for number in range(count):
        say(json.dumps({"jsonrpc": "2.0", "id": f"p{number}", "method": "ping"}))
    give(id, fine=True)


def handle(message: dict[str, Any]) -> None:
    id, params = message.get("id"), message.get("params") or {}
    match message.get("method"):
        case "initialize":
            answer(
                id,
                protocolVersion=params["protocolVersion"],
                capabilities={"tools": {"listChanged": True}},
                serverInfo={"name": "wild", "version": "1"},
            )
        case "tools/list":
            answer(id, tools=[{"name": name, **about} for name, about in tools.items()])
        case "tools/call" if params["name"] == "beside":
            give(id, **params.get("_meta", {}))
        case "tools/call" if params["name"] in globals():
            globals()[params["name"]](id, **params.get("arguments") or {})
        case "tools/call":
            give(id, called=params["name"])
        case "notifications/cancelled":
            canceled.append(params["requestId"])


def main() -> None:
    flags = sys.argv[1:]
    if "stillborn" in flags:
        sys.exit(f"no configuration {os.environ.get('TOKEN', '')}".rstrip())
    if "deaf" in flags:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for line in sys.stdin:
        if "mute" not in flags:
            handle(json.loads(line))
    while "deaf" in flags:
        time.sleep(1)


main()
