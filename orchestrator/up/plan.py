"""What to start and where, read from the Procfile and the configuration."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .. import devpg
from ..config import Config

PARTS = ("api", "worker", "scheduler", "relay")  # where there is no Procfile


class Over(Exception):
    """Everything has to end, or can't begin. One line, with the way out."""

    status = 1


@dataclass(frozen=True)
class Plan:
    config: Config
    data: Path
    root: Path  # parts run in it
    parts: dict[str, str]  # name: command
    port: int
    reset: bool
    detached: bool

    @staticmethod
    def make(config: Config, port: int | None, reset: bool, detach: bool, root: Path) -> Plan:
        if reset and config.database_url:
            raise Over(
                "--reset empties the embedded server only, and DATABASE_URL names another: unset"
                " it, or empty that database yourself"
            )
        procfile = root / "Procfile"
        return Plan(
            config=config,
            data=devpg.home(config.data),
            root=root if procfile.is_file() else Path.cwd(),
            parts=_read(procfile) if procfile.is_file() else _own_parts(),
            port=(config.port if port is None else port) or _free_port(),
            reset=reset,
            detached=detach,
        )

    @property
    def address(self) -> str:
        """Where this machine reaches the service."""
        everywhere = self.config.api_host in {"", "0.0.0.0", "::"}  # noqa: S104
        return "127.0.0.1" if everywhere else self.config.api_host

    @property
    def url(self) -> str:
        return f"http://{self.address}:{self.port}"

    @property
    def development(self) -> bool:
        return self.environment("")["APP_ENV"].lower() == "development"

    def environment(self, database_url: str) -> dict[str, str]:
        """What the parts get: everything that we got, and what we found out."""
        ours = {"DATABASE_URL": database_url, "PORT": str(self.port), "ORC_DATA": str(self.data)}
        ours["APP_ENV"] = os.environ.get("APP_ENV") or "development"
        if not self.detached and sys.stdout.isatty():
            ours["LOG_FORMAT"] = os.environ.get("LOG_FORMAT") or "console"
        if ours["APP_ENV"].lower() == "development" and not self.config.mcp_servers_path:
            ours["MCP_SERVERS_PATH"] = str(self.demo_servers)
        return {"PYTHONUNBUFFERED": "1", **os.environ, **ours}

    @property
    def demo_servers(self) -> Path:
        return self.data / "demo-servers.json"

    def keep_demo_servers(self) -> None:
        """The bundled MCP servers, for where no others are named."""
        demo = {"command": sys.executable, "args": ["-P", "-m", "orchestrator.demo"]}
        outbox = str(self.data / "telegram.jsonl")
        words = {"weather": ["weather"], "telegram": ["telegram", outbox]}
        listed = {name: {**demo, "args": [*demo["args"], *its]} for name, its in words.items()}
        self.demo_servers.write_text(json.dumps({"mcpServers": listed}, indent=2) + "\n")

    def command(self, name: str) -> str:
        """How a person types it."""
        return f"bin/{name}" if (self.root / "bin" / name).exists() else f"orc {name}"


def _read(procfile: Path) -> dict[str, str]:
    parts = {}
    for number, line in enumerate(procfile.read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        if not (found := re.fullmatch(r"([\w-]+):\s*(\S.*)", line.strip())):
            raise Over(f"{procfile}, line {number}: write it as name: command")
        parts[found[1]] = found[2]
    return parts


def _own_parts() -> dict[str, str]:
    ours = [sys.executable, "-P", "-m", "orchestrator.cli"]
    return {name: shlex.join([*ours, name]) for name in PARTS}


def _free_port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return int(trial.getsockname()[1])


def require_port(plan: Plan) -> None:
    host = "0.0.0.0" if ":" in plan.config.api_host else plan.config.api_host  # noqa: S104
    try:
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((host, plan.port))
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise Over(f"can't listen on {host}, port {plan.port}: {error.strerror}") from error
        raise Over(
            f"port {plan.port} is in use{_user_of(plan.port)}: stop that, or choose another with"
            f" {plan.command('up')} --port N"
        ) from error


def _user_of(port: int) -> str:
    """Who listens there, as far as we may know."""
    with suppress(OSError):
        listening = _listening_sockets(port)
        for link in Path("/proc").glob("[0-9]*/fd/*"):
            with suppress(OSError):
                if str(link.readlink()) in listening:
                    name = (link.parent.parent / "comm").read_text().strip()
                    return f" by pid {link.parts[2]} ({name})"
    return ""


def _listening_sockets(port: int) -> set[str]:
    tables = [Path("/proc/net", name).read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    rows = [row.split() for table in tables for row in table]
    ours = [row for row in rows if row[3] == "0A" and row[1].endswith(f":{port:04X}")]
    return {f"socket:[{row[9]}]" for row in ours}
