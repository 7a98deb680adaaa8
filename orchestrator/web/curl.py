"""The curl line that sends a request."""

from __future__ import annotations

import json
import shlex
from typing import Any


def pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def curl(method: str, path: str, operation: dict[str, Any]) -> str:
    """A line that works in a shell where `URL`, `KEY` and the path's names are set."""
    method = method.upper()
    verb = "curl" if method == "GET" else f"curl -X {method}"
    words = [f'{verb} "{_target(path, operation)}"']
    if operation.get("security"):
        words.append('-H "Authorization: Bearer $KEY"')
    for kind, content in [*operation.get("requestBody", {}).get("content", {}).items()][:1]:
        words.append(f'-H "Content-Type: {kind}"')
        words.append(f"-d {shlex.quote(_body(content['example']))}")
    return " \\\n  ".join(words)


def _target(path: str, operation: dict[str, Any]) -> str:
    query = [
        f"{parameter['name']}=${parameter['name']}"
        for parameter in operation.get("parameters", [])
        if parameter["in"] == "query" and parameter.get("required")
    ]
    return "$URL" + path.replace("{", "${") + ("?" + "&".join(query) if query else "")


def _body(value: Any) -> str:
    short = json.dumps(value, ensure_ascii=False)
    return short if len(short) <= 60 else pretty(value)
