"""Parameters on the command line: NAME=VALUE, NAME:=JSON, NAME=@FILE."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

WORD = re.compile(r"([A-Za-z_][A-Za-z0-9_-]{0,63})(:?=)(.*)", re.S)


class Unreadable(Exception):
    """Every word that is none."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def parsed(words: Iterable[str], declared: Mapping[str, Any]) -> dict[str, Any]:
    """Values by name. `declared` are the JSON Schemas of inputs: text stays where they want it."""
    found: dict[str, Any] = {}
    problems: list[str] = []
    for word in words:
        try:
            name, value = _pair(word, declared)
            if name in found:
                raise ValueError(f"{name} is given twice")
            found[name] = value
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise Unreadable(problems)
    return found


def _pair(word: str, declared: Mapping[str, Any]) -> tuple[str, Any]:
    match = WORD.fullmatch(word)
    if match is None:
        raise ValueError(f"{word[:60]!r} isn't NAME=VALUE, NAME:=JSON or NAME=@FILE")
    name, sign, text = match.groups()
    if sign == ":=":
        return name, _json(name, text)
    if text.startswith("@"):
        text = _content(name, Path(text[1:]))
    return name, _value(text, declared.get(name))


def _json(name: str, text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise ValueError(f"{name}: {error}: after := comes JSON") from None


def _content(name: str, file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except OSError as error:
        raise ValueError(f"{name}: {file} can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{name}: {file} isn't UTF-8") from None


def _value(text: str, schema: Any) -> Any:
    """JSON when it is JSON, unless text is what's wanted; what doesn't fit is said by the check."""
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text
    return text if _wants_text(schema, value) else value


def _wants_text(schema: Any, value: Any) -> bool:
    """Whether text is allowed, and what the text means as JSON isn't."""
    if not isinstance(schema, dict):
        return False
    types = schema.get("type")
    types = [types] if isinstance(types, str) else types
    if isinstance(types, list):
        return "string" in types and KINDS.get(type(value)) not in _also(types)
    choices = schema.get("enum", [schema["const"]] if "const" in schema else [])
    return any(isinstance(one, str) for one in choices) and value not in choices


KINDS = {bool: "boolean", int: "integer", float: "number", list: "array", dict: "object",
         type(None): "null"}  # fmt: skip


def _also(types: list[Any]) -> list[Any]:
    return [*types, "integer"] if "number" in types else types
