"""A document as a person keeps it: a file of JSON or YAML, read so that nothing changes unseen.

YAML 1.1 takes `no` for false, `10:30` for 630, `010` for 8 and `1.10` for 1.1. Here such a word is
a problem that names its line and the quoting that says what's meant.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from .check import Tools, check
from .problems import MOST_PROBLEMS, Problem, Severity, pointer

MOST_NODES = 100_000
"""Aliases count each time, so a few lines can't become gigabytes."""

LARGEST = 1 << 20
DEEPEST = 100

Place = tuple[str | int, ...]


class Found(msgspec.Struct, frozen=True, omit_defaults=True):
    """A problem in a file, by line where that is known."""

    file: str
    pointer: str
    type: str
    message: str
    line: int | None = None
    hint: str | None = None
    severity: Severity = "error"

    def __str__(self) -> str:
        where = ":".join(str(part) for part in (self.file, self.line) if part is not None)
        pointer = f" {self.pointer}:" if self.pointer else ""
        warning = "warning: " if self.severity == "warning" else ""
        return f"{where}:{pointer} {warning}{self.message}" + (f" ({self.hint})" * bool(self.hint))


class Source(msgspec.Struct):
    """What a file holds, the lines of its values, and what's wrong with how it's written."""

    document: Any = None
    lines: dict[str, int] = {}
    problems: list[tuple[int | None, Problem]] = []
    is_read: bool = True

    def say(self, line: int | None, path: Place, *said: Any) -> None:
        if len(self.problems) < MOST_PROBLEMS:
            self.problems.append((line, Problem(pointer(path), *said)))

    def line_of(self, pointer: str) -> int | None:
        """The line of a value, or of the nearest value around it."""
        while pointer not in self.lines and pointer:
            pointer = pointer.rpartition("/")[0]
        return self.lines.get(pointer)


def lint(file: Path, tools: Tools | None = None, strict: bool = False) -> list[Found]:
    """Everything that is wrong with a file, in its order."""
    source = load(file)
    found = list(source.problems)
    if source.is_read:
        report = check(source.document, tools, strict)
        found += [(source.line_of(problem.pointer), problem) for problem in report.problems]
    told = [_found(str(file), line, problem) for line, problem in dict.fromkeys(found)]
    return sorted(told, key=lambda one: one.line or 0)


def _found(file: str, line: int | None, problem: Problem) -> Found:
    said = (problem.pointer, problem.type, problem.message)
    return Found(file, *said, line, problem.hint, problem.severity)


def load(file: Path) -> Source:
    source = Source()
    try:
        data = file.read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        return _unread(source, None, f"can't be read: {error.strerror}")
    except UnicodeDecodeError:
        return _unread(source, None, "isn't UTF-8")
    if len(data) > LARGEST:
        return _unread(source, None, f"is larger than {LARGEST // 1024} KiB")
    read = _json if file.suffix == ".json" else _yaml
    return read(source, text)


def _unread(source: Source, line: int | None, message: str, hint: str | None = None) -> Source:
    source.is_read = False
    source.say(line, (), "syntax", message, hint)
    return source


# JSON


def _json(source: Source, text: str) -> Source:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        count = Counter(name for name, _ in pairs)
        for name in count if len(count) < len(pairs) else ():
            if count[name] > 1:
                source.say(None, (), "duplicate", f"the key {name!r} stands twice in an object")
        return dict(pairs)

    try:
        source.document = json.loads(text, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        return _unread(source, error.lineno, f"not JSON: {error.msg}")
    except (RecursionError, ValueError) as error:
        return _unread(source, None, f"not JSON: {error}")
    return source


# YAML


def _yaml(source: Source, text: str) -> Source:
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        return _unread(source, *_broken(error))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        return _unread(source, None, f"not YAML: {error}")
    if node is None:
        return _unread(source, None, "is empty")
    builder = _Builder(source)
    try:
        source.document = builder.value(node, ())
    except _TooMuch as error:
        return _unread(source, builder.line, str(error))
    return source


def _broken(error: yaml.MarkedYAMLError) -> tuple[int | None, str, str | None]:
    line = error.problem_mark.line + 1 if error.problem_mark else None
    said = error.problem or str(error)
    if "'\\t'" in said:
        return line, "a tab can't indent YAML", "use spaces"
    if "but found another document" in said:
        return line, "a file holds one document", "remove what follows ---"
    return line, f"not YAML: {said}", None


class _TooMuch(Exception):
    pass


class _Builder:
    """Values from nodes, with a line for each and a word about what isn't what it looks like."""

    def __init__(self, source: Source) -> None:
        self.source, self.nodes, self.line = source, 0, 0

    def value(self, node: Node, path: Place) -> Any:
        self.nodes += 1
        self.line = node.start_mark.line + 1
        if self.nodes > MOST_NODES or len(path) > DEEPEST:
            raise _TooMuch(f"more than {MOST_NODES} values, or {DEEPEST} levels of them")
        self.source.lines.setdefault(pointer(path), self.line)
        if not self._is_plain(node):
            self.source.say(self.line, path, "yaml", f"the tag {node.tag[:60]} isn't read")
            return None
        if isinstance(node, MappingNode):
            return dict(self._entries(node, path))
        if isinstance(node, SequenceNode):
            return [self.value(item, (*path, number)) for number, item in enumerate(node.value)]
        return self._scalar(node, path) if isinstance(node, ScalarNode) else None

    def _is_plain(self, node: Node) -> bool:
        """Whether its tag is the one that it would have without one."""
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        if not isinstance(node, ScalarNode):
            return kind in ("map", "seq")
        return kind == "str" or (node.style is None and kind in KINDS)

    def _entries(self, node: MappingNode, path: Place) -> Iterator[tuple[str, Any]]:
        lines: dict[str, int] = {}
        for key, item in node.value:
            line = key.start_mark.line + 1
            name = self._key(key, path)
            if name in lines:
                hint = f"the first is in line {lines[name]}"
                self.source.say(line, (*path, name), "duplicate", f"the key {name!r} again", hint)
            lines[name] = line
            yield name, self.value(item, (*path, name))
            self.source.lines[pointer((*path, name))] = line

    def _key(self, key: Node, path: Place) -> str:
        line = key.start_mark.line + 1
        if not isinstance(key, ScalarNode):
            self.source.say(line, path, "type", "a key must be text")
            return "?"
        text: str = key.value
        if key.style is None and text == "<<":
            self.source.say(line, path, "yaml", "<< isn't read: write the fields out")
        elif key.style is None and not key.tag.endswith(":str"):
            said = f"the key {text} isn't text in YAML"
            self.source.say(line, (*path, text), "yaml", said, f'write "{text}"')
        return text

    def _scalar(self, node: ScalarNode, path: Place) -> Any:
        text = str(node.value)
        if node.style is not None:
            return text
        try:
            if trap := _trap(text, node.tag):
                self.source.say(self.line, path, "yaml", *trap)
                return text
            return _plain(text, node.tag)
        except ValueError:
            self.source.say(self.line, path, "yaml", f"{text[:60]} isn't what its tag says")
            return None


KINDS = ("bool", "float", "int", "merge", "null", "str", "timestamp", "value")
TIME = re.compile(r"[0-9]{1,3}(:[0-9]{2}){1,2}(\.[0-9]*)?")


def _trap(text: str, tag: str) -> tuple[str, str, Severity] | None:
    """What is wrong with a word without quotes, the quoting that helps, and how bad it is."""
    kind, quoted = tag.rpartition(":")[2], f'write "{text}"'
    if kind == "bool" and text.lower() not in ("true", "false"):
        meant = "true" if text.lower() in ("yes", "on") else "false"
        return f"{text} is {meant} in YAML", f"{quoted} for the text, or {meant}", "error"
    if TIME.fullmatch(text):
        return f"{text} may be read as a number of base 60", quoted, "error"
    if kind == "int" and re.fullmatch(r"[-+]?0[0-9_]+", text):
        return (
            f"{text} is the octal number {int(text.replace('_', ''), 8)} in YAML",
            quoted,
            "error",
        )
    if kind in ("int", "float") and ("_" in text or text[:2].lower() in ("0x", "0b")):
        return f"{text} is a number in YAML", f"{quoted} for the text, or plain digits", "error"
    if kind == "float" and text.strip("+-").lower() in (".inf", ".nan"):
        return f"{text} is no number in JSON", quoted, "error"
    if kind == "float" and "e" not in text.lower() and str(float(text)) != text:
        hint = f"{quoted} for the text, or {float(text)}"
        return f"{text} is the number {float(text)} in YAML", hint, "warning"
    if kind == "str" and re.fullmatch(r"[-+]?[0-9]+[eE][-+]?[0-9]+", text):
        return f"{text} is text in YAML", f"{quoted}, or {float(text)} for the number", "warning"
    if kind == "timestamp":
        return f"{text} is a date in YAML; here it's taken as text", quoted, "warning"
    return None


def _plain(text: str, tag: str) -> Any:
    kind = tag.rpartition(":")[2]
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        return int(text) if len(text) < 400 else text
    if kind == "float":
        return float(text)
    return None if kind == "null" else text
