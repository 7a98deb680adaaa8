"""A messenger whose messages end in a local file, one JSON object a line."""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TypedDict

from mcp.server.mcpserver import MCPServer

OUTBOX = "telegram-outbox.jsonl"


class Sent(TypedDict):
    ok: bool
    message_id: int
    chat_id: int


def server(outbox: Path) -> MCPServer:
    made = MCPServer("telegram", log_level="WARNING")

    @made.tool()
    def send_message(chat_id: int, text: str) -> Sent:
        """Sends a text to a chat. This demo only writes it down."""
        return send(outbox, chat_id, text)

    return made


def send(outbox: Path, chat_id: int, text: str) -> Sent:
    """The message's number is its line."""
    at = datetime.now(UTC).isoformat(timespec="seconds")
    with open(outbox, "a+", encoding="utf-8", opener=_privately) as file:
        file.seek(0)
        number = sum(1 for _ in file) + 1
        message = {"message_id": number, "chat_id": chat_id, "text": text, "at": at}
        file.write(json.dumps(message, ensure_ascii=False) + "\n")
    return {"ok": True, "message_id": number, "chat_id": chat_id}


def _privately(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def main() -> None:
    server(Path(sys.argv[1] if len(sys.argv) > 1 else OUTBOX)).run()
