"""The operator's `mcpServers` file, in the format that MCP clients use."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, Literal

import msgspec

from ... import wire
from ...config import Config
from ...errors import Malformed, Misconfigured
from ..reread import Reread, sentence


class Silent(Exception):
    """A server that doesn't say what it can do."""


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """A command that speaks MCP on its pipes, or a URL. What else clients keep there is ignored."""

    command: str = ""
    args: list[str] = []
    env: dict[str, str] = {}
    cwd: str | None = None
    url: str = ""
    headers: dict[str, str] = {}
    type: Literal["", "stdio", "http", "streamable-http", "streamableHttp"] = ""
    disabled: bool = False

    def __post_init__(self) -> None:
        if bool(self.command) == bool(self.url):
            raise ValueError("needs a command or a url, and not both")
        if self.type and (self.type == "stdio") != bool(self.command):
            raise ValueError(f"{self.type} needs a {'command' if self.type == 'stdio' else 'url'}")
        if self.url and not self.url.startswith(("http://", "https://")):
            raise ValueError("its url is neither http nor https")


class _File(msgspec.Struct):
    mcp_servers: dict[str, Any] = msgspec.field(name="mcpServers")


def servers(config: Config) -> dict[str, Server]:
    """Raises Misconfigured while there's nothing that can be used."""
    path = config.mcp_servers_path
    return _file(path).get() if path else {}


def named(config: Config, name: str) -> Server:
    known = servers(config)
    if name in known:
        return known[name]
    if config.mcp_servers_path is None:
        raise Misconfigured(f"there is no MCP server {name!r}: MCP_SERVERS_PATH names no file")
    raise Misconfigured(f"there is no MCP server {name!r}{nearest(name, known)}")


def nearest(name: str, known: Iterable[str], most: int = 10) -> str:
    """The way out of a wrong name: the one that was meant, and some that there are."""
    near = difflib.get_close_matches(name, known := sorted(known), n=1)
    more = ", …" if len(known) > most else ""
    listed = f"known: {', '.join(known[:most])}{more}" if known else "there are none"
    return f": did you mean {near[0]}? {listed}" if near else f"; {listed}"


@cache
def _file(path: Path) -> Reread[dict[str, Server]]:
    return Reread("MCP_SERVERS_PATH", path, understand)


def understand(data: bytes) -> dict[str, Server]:
    """Raises Malformed or ValueError with every problem."""
    given = wire.decode(data, _File).mcp_servers
    found: dict[str, Server] = {}
    problems = []
    for name, server in given.items():
        try:
            found[name] = wire.decode(wire.encode(server), Server)
        except Malformed as problem:
            problems.append(f"{name}: {sentence(problem)}")
    if problems:
        raise ValueError("; ".join(problems))
    return {name: server for name, server in found.items() if not server.disabled}
