"""What an expression is before CEL sees it: a bare path, `a ?? b`, `now+1h`, and where it ends."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from .problems import ExpressionError
from .tree import OR

MAX_SOURCE = 1024

Key = str | int

TOKEN = re.compile(
    r"""(?P<space>\s+|//[^\n]*)
    |(?P<text>(?:[rR][bB]?|[bB][rR])(?:'{3}(?s:.)*?'{3}|\"{3}(?s:.)*?\"{3}|'[^'\n]*'|"[^"\n]*")
        |[bB]?(?:'{3}(?s:\\.|[^\\])*?'{3}|\"{3}(?s:\\.|[^\\])*?\"{3}
        |'(?:\\.|[^'\\\n])*'|"(?:\\.|[^"\\\n])*"))
    |(?P<span>(?:\d+[smhdw])+(?![\w.]))
    |(?P<number>0[xX][0-9a-fA-F]+[uU]?|(?:\d+\.\d+|\d+|\.\d+)(?:[eE][+-]?\d+)?[uU]?)
    |(?P<name>[A-Za-z_][A-Za-z0-9_]*)
    |(?P<sign>\?\?|&&|\|\||[=!<>]=|.)""",
    re.X,
)
SIMPLE_TEXT = r"\"[^\"\\\n]*\"|'[^'\\\n]*'"
PATH = re.compile(
    rf"\s*[A-Za-z_]\w*(?:\s*\.\s*[A-Za-z_]\w*|\s*\[\s*(?:\d{{1,9}}|{SIMPLE_TEXT})\s*\])*\s*", re.A
)
PART = re.compile(rf"\[\s*(\d+)|({SIMPLE_TEXT})|([A-Za-z_]\w*)", re.A)
WORDS = {"true": True, "false": False, "null": None}
NOT_ROOTS = {*WORDS, "in"}
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
LOOSER = {",", ")", "]", "}", ":", "?", "&&", "||", "==", "!=", "<", "<=", ">", ">=", "in"}
TIGHTER = {"+", "-", "*", "/", "%", "!"}
CLOSING = {")": "(", "]": "[", "}": "{"}


class Token(NamedTuple):
    kind: str
    text: str
    at: int = -1


def tokens(source: str, start: int = 0) -> Iterator[Token]:
    """Lazily, so that who looks for an end stops there; what isn't CEL becomes single signs."""
    at = start
    while found := TOKEN.match(source, at):
        kind = str(found.lastgroup)
        if kind != "space":
            yield Token(kind, found[0], at)
        at = found.end()


def end_of(source: str, start: int) -> int | None:
    """Where the `}` stands that closes a `${` whose inside begins at `start`, unless too far."""
    depth = 0
    for token in tokens(source[: start + MAX_SOURCE + 1], start):
        if token.text == "{":
            depth += 1
        elif token.text == "}":
            if not depth:
                return token.at
            depth -= 1
    return None


# What needs no CEL


def bare_path(source: str) -> tuple[Key, ...] | None:
    """`a.b["x-y"][0]` as its keys; None when it is anything else."""
    if not PATH.fullmatch(source):
        return None
    keys = tuple(_key(*found) for found in PART.findall(source))
    return None if keys[0] in NOT_ROOTS else keys


def _key(index: str, text: str, name: str) -> Key:
    return int(index) if index else text[1:-1] if text else name


def alternatives(source: str) -> tuple[list[tuple[Key, ...]], list[Any]] | None:
    """The paths of `a ?? b ?? "x"`, and the literal at its end; None when it is a task for CEL."""
    pieces = _split(source)
    paths = [keys for piece in pieces if (keys := bare_path(piece))]
    rest = pieces[len(paths) :]
    if len(paths) == len(pieces) or (len(rest) == 1 and bare_path(pieces[-1]) is None):
        last = [_literal(piece) for piece in rest]
        return None if any(value is ... for value in last) else (paths, last)
    return None


def _split(source: str) -> list[str]:
    cuts = [token.at for token in tokens(source) if token.text == "??"]
    starts, ends = [0, *(cut + 2 for cut in cuts)], [*cuts, len(source)]
    return [source[start:end] for start, end in zip(starts, ends, strict=True)]


def _literal(piece: str) -> Any:
    """The value of a literal that is the same in CEL and in Python; `...` when it isn't one."""
    text = piece.strip()
    if text in WORDS:
        return WORDS[text]
    if re.fullmatch(SIMPLE_TEXT, text):
        return text[1:-1]
    if re.fullmatch(r"-?(0|[1-9]\d{0,17})", text, re.A):
        return int(text)
    if re.fullmatch(r"-?\d{1,17}\.\d{1,17}", text, re.A):
        return float(text)
    return ...


# What CEL's grammar lacks


def to_cel(source: str) -> str:
    """`5m` as a duration and `a ?? b` as a call; the same text when it has neither."""
    found = list(tokens(source))
    if ours := next((t for t in found if t.kind == "name" and t.text.startswith("__")), None):
        raise ExpressionError(f"'{ours.text}': names with `__` are ours", source, ours.at)
    if not any(token.kind == "span" or token.text == "??" for token in found):
        return source
    found = [_duration(token) if token.kind == "span" else token for token in found]
    for index in reversed(range(len(found))):
        if found[index].text == "??":
            found = _called(found, index, source)
    return " ".join(token.text for token in found)


def _duration(token: Token) -> Token:
    parts = re.findall(r"(\d+)([smhdw])", token.text)
    seconds = sum(int(number[:18]) * SECONDS[unit] for number, unit in parts)
    return Token("text", f'duration("{seconds}s")', token.at)


def _called(found: list[Token], index: int, source: str) -> list[Token]:
    """The tokens with the `??` at `index` as a call of what stands at both its sides."""
    at = found[index].at
    start, end = _left(found, index), _right(found, index + 1)
    if start == index:
        raise ExpressionError("`??` needs a path at its left, such as `a.b ?? 1`", source, at)
    if start and found[start - 1].text in TIGHTER:
        raise ExpressionError("put `(a ?? b)` into parentheses to calculate with it", source, at)
    if end == index + 1:
        raise ExpressionError("`??` needs a value at its right, such as `a.b ?? 1`", source, at)
    call = [Token("name", OR), Token("sign", "("), *found[start:index], Token("sign", ",")]
    return [*found[:start], *call, *found[index + 1 : end], Token("sign", ")"), *found[end:]]


def _left(found: list[Token], index: int) -> int:
    """Where the path begins that ends before `index`; `index` when there is none."""
    at = index
    while True:
        at -= 1
        while at >= 0 and found[at].text == "]":
            at = _opening(found, at) - 1
        if at < 0 or found[at].kind != "name" or found[at].text in NOT_ROOTS:
            return index
        if not at or found[at - 1].text != ".":
            return at
        at -= 1


def _opening(found: list[Token], at: int) -> int:
    depth = 0
    while at >= 0:
        depth += (found[at].text in CLOSING) - (found[at].text in CLOSING.values())
        if not depth:
            return at
        at -= 1
    return at


def _right(found: list[Token], at: int) -> int:
    """Where the value ends that begins at `at`: before a comparison, a `&&`, a closing bracket."""
    depth = 0
    while at < len(found) and (depth or found[at].text not in LOOSER):
        depth += (found[at].text in CLOSING.values()) - (found[at].text in CLOSING)
        at += 1
    return at
