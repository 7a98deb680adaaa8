"""The syntax tree of a compiled expression: read from, and written back to, what CEL serializes.

CEL keeps its tree to itself, except as protobuf. These few messages are all that it takes to know
which paths an expression names, what it may cost, and to put into it what CEL's grammar lacks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from itertools import count
from typing import Any

Path = tuple[str, ...]

OR = "__or"
"""The function that stands for `??` until `with_fallbacks` has put the real thing there."""


@dataclass(frozen=True, slots=True)
class Const:
    id: int
    raw: bytes
    value: str | None = None  # of a string, the only constants that matter here


@dataclass(frozen=True, slots=True)
class Ident:
    id: int
    name: str


@dataclass(frozen=True, slots=True)
class Select:
    id: int
    operand: Node
    field: str
    test: bool = False  # has(operand.field)


@dataclass(frozen=True, slots=True)
class Call:
    id: int
    function: str
    args: tuple[Node, ...]
    target: Node | None = None


@dataclass(frozen=True, slots=True)
class Items:
    id: int
    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    id: int
    key: Node
    value: Node


@dataclass(frozen=True, slots=True)
class Record:
    id: int
    name: str  # of a protobuf message; "" for a map
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Loop:
    """What `all`, `exists`, `exists_one`, `filter` and `map` become."""

    id: int
    each: str
    over: Node
    result_name: str
    start: Node
    condition: Node
    step: Node
    result: Node


Node = Const | Ident | Select | Call | Items | Entry | Record | Loop


# Reading


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value: Any
            value, at = _varint(data, at)
        else:
            size, at = (8, at) if kind == 1 else _varint(data, at)
            value, at = data[at : at + size], at + size
        yield key >> 3, value


def read(serialized: bytes) -> Node:
    """The tree of `cel.Expression.serialize()`: an Any with a CheckedExpr."""
    checked = dict(_fields(serialized))[2]
    return _node(dict(_fields(checked))[4])


def _node(data: bytes) -> Node:
    found = dict(_fields(data))
    id = found.pop(2, 0)
    kind, body = found.popitem()
    return READERS[kind](id, body)


def _nodes(all_fields: list[tuple[int, Any]], number: int) -> tuple[Node, ...]:
    return tuple(_node(value) for key, value in all_fields if key == number)


def _const(id: int, body: bytes) -> Node:
    text = dict(_fields(body)).get(6)
    return Const(id, body, None if text is None else text.decode())


def _ident(id: int, body: bytes) -> Node:
    return Ident(id, dict(_fields(body))[1].decode())


def _select(id: int, body: bytes) -> Node:
    found = dict(_fields(body))
    return Select(id, _node(found[1]), found.get(2, b"").decode(), bool(found.get(3)))


def _call(id: int, body: bytes) -> Node:
    found = list(_fields(body))
    target = _nodes(found, 1)
    return Call(id, dict(found)[2].decode(), _nodes(found, 3), target[0] if target else None)


def _items(id: int, body: bytes) -> Node:
    return Items(id, _nodes(list(_fields(body)), 1))


def _record(id: int, body: bytes) -> Node:
    found = list(_fields(body))
    entries = [dict(_fields(value)) for number, value in found if number == 2]
    name = dict(found).get(1, b"").decode()
    if name:  # its entries have names, not keys; nobody may make one
        return Record(id, name, ())
    pairs = (Entry(e.get(1, 0), _node(e[3]), _node(e[4])) for e in entries)
    return Record(id, name, tuple(pairs))


def _loop(id: int, body: bytes) -> Node:
    found = dict(_fields(body))
    names = [found[1].decode(), found[3].decode()]
    over, start, condition, step, result = (_node(found[n]) for n in (2, 4, 5, 6, 7))
    return Loop(id, names[0], over, names[1], start, condition, step, result)


READERS: dict[int, Callable[[int, bytes], Node]] = {
    3: _const, 4: _ident, 5: _select, 6: _call, 7: _items, 8: _record, 9: _loop,
}  # fmt: skip


# Writing


def _number(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, value: bytes | str | int | Node) -> bytes:
    if isinstance(value, int):
        return _number(number << 3) + _number(value)
    body = value.encode() if isinstance(value, str) else value
    body = body if isinstance(body, bytes) else _bytes(body)
    return _number(number << 3 | 2) + _number(len(body)) + body


def _bytes(node: Node) -> bytes:
    match node:
        case Const():
            kind, body = 3, node.raw
        case Ident():
            kind, body = 4, _field(1, node.name)
        case Select():
            kind, body = 5, _field(1, node.operand) + _field(2, node.field)
            body += _field(3, 1) if node.test else b""
        case Call():
            kind, body = 6, _field(1, node.target) if node.target else b""
            body += _field(2, node.function) + b"".join(_field(3, arg) for arg in node.args)
        case Items():
            kind, body = 7, b"".join(_field(1, item) for item in node.items)
        case Entry():
            return _field(1, node.id) + _field(3, node.key) + _field(4, node.value)
        case Record():
            kind, body = 8, b"".join(_field(2, entry) for entry in node.entries)
        case Loop():
            parts = [node.each, node.over, node.result_name, node.start]
            parts += [node.condition, node.step, node.result]
            kind, body = 9, b"".join(_field(n, part) for n, part in enumerate(parts, 1))
    return _field(2, node.id) + _field(kind, body)


def write(serialized: bytes, root: Node) -> bytes:
    """The serialized expression with another tree; its references and types stay."""
    found = dict(_fields(serialized))
    rest = b"".join(_field(n, value) for n, value in _fields(found[2]) if n != 4)
    return _field(1, found[1]) + _field(2, rest + _field(4, root))


# Walking


def children(node: Node) -> Iterator[Node]:
    for field in fields(node):
        value = getattr(node, field.name)
        if isinstance(value, Node):
            yield value
        elif isinstance(value, tuple):
            yield from value


def walk(node: Node) -> Iterator[Node]:
    yield node
    for child in children(node):
        yield from walk(child)


def mapped(node: Node, change: Callable[[Node], Node]) -> Node:
    """The node with `change` done to each of its children."""
    parts: dict[str, Any] = {}
    for field in fields(node):
        value = getattr(node, field.name)
        if isinstance(value, Node):
            parts[field.name] = change(value)
        elif isinstance(value, tuple):
            parts[field.name] = tuple(change(item) for item in value)
    return replace(node, **parts) if parts else node


def path(node: Node) -> Path | None:
    """`a.b["c"]` as its names; None when any part of it isn't known before it runs."""
    if isinstance(node, Ident):
        return (node.name,)
    if isinstance(node, Select):
        inner = path(node.operand)
        return inner and (*inner, node.field)
    if isinstance(node, Call) and node.function == "_[_]" and isinstance(node.args[1], Const):
        inner, key = path(node.args[0]), node.args[1].value
        return (*inner, key) if inner and key is not None else None
    return None


def references(node: Node, bound: frozenset[str] = frozenset()) -> Iterator[Path]:
    """The longest static paths into the scope: those of a loop's own variables aren't."""
    if found := path(node):
        if found[0] not in bound:
            yield found
    elif isinstance(node, Loop):
        yield from references(node.over, bound)
        inner = bound | {node.each, node.result_name}
        for part in (node.start, node.condition, node.step, node.result):
            yield from references(part, inner)
    else:
        for child in children(node):
            yield from references(child, bound)


def null(id: int) -> Const:
    return Const(id, _field(1, 0))


def with_fallbacks(root: Node) -> Node:
    """`a ?? b` as `@not_strictly_false(a == null) ? b : a`: that test is true for an error, too."""
    fresh = count(1_000_000)

    def change(node: Node) -> Node:
        node = mapped(node, change)
        if not (isinstance(node, Call) and node.function == OR):
            return node
        left, right = node.args
        absent = Call(next(fresh), "_==_", (left, null(next(fresh))))
        test = Call(next(fresh), "@not_strictly_false", (absent,))
        return Call(node.id, "_?_:_", (test, right, left))

    return change(root)


def with_names(node: Node, names: dict[Path, str]) -> Node:
    """The tree in which each of these paths is a variable of its own."""
    if not (isinstance(node, Select) and node.test) and (found := path(node)) in names:
        return Ident(node.id, names[found])
    if not isinstance(node, Loop):
        return mapped(node, lambda child: with_names(child, names))
    seen = {path: name for path, name in names.items() if path[0] != node.each}
    return mapped(node, lambda child: with_names(child, names if child is node.over else seen))
