"""What an expression may cost, at most: known before it runs, because CEL can't be interrupted.

`cel-expr-python` 0.1.3 takes neither a deadline nor a budget and holds Python's lock all the while.
Its own bounds are 32 levels of syntax and 10,000 rounds of loops, but a round may do anything:
`filter` and `map` copy their result each time (9,000 elements: 3.0 s), `[0].map(a, [a, a])…` makes
2^n elements in n rounds. So sizes and steps are estimated, from the tree and the data.

A step is about 50 ns, what comparing two small values costs at most. Estimates are forms
`c + Σ cᵥ·|v|` over the elements v of the loops around, so that a loop in a loop over orders and
their lines costs the sum of all lines, not orders times lines.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from .problems import ExpressionError
from .tree import Call, Const, Ident, Items, Loop, Node, Path, Record, Select, children, path, walk

BUDGET = 1_000_000
"""Steps, at most: 10 to 50 ms of a processor for what comes near to it (2026-11-21)."""

IN, OUT, OUT_BESIDE_NULL, COPY = 15, 8, 60, 0.75
"""Steps for a value that goes into CEL, for one that comes out, for one that comes out and may be
null, and for an element copied: 0.5 µs, 0.3 µs, 2.4 µs and 17 to 35 ns (2026-11-21)."""

ROUNDS = 10_000.0
"""CEL's own bound, for all loops of an evaluation together."""

FREE = {"_&&_", "_||_", "!_", "_?_:_", "_[_]", "size", "@not_strictly_false", "type", "dyn"}
SMALL = {
    "_==_", "_!=_", "_<_", "_<=_", "_>_", "_>=_", "@in", "_&&_", "_||_", "!_", "size", "matches",
    "contains", "startsWith", "endsWith", "@not_strictly_false", "int", "double", "uint", "type",
    "timestamp", "duration", "_-_", "_*_", "_/_", "_%_", "-_",
}  # fmt: skip
"""Functions whose result has the size of a number."""

Form = dict[str, float]
"""A number for each loop variable, and one for "": what doesn't depend on any."""


@dataclass(frozen=True, slots=True)
class Extent:
    """How large a value is: with all that it holds, its own elements, and the largest of them."""

    size: float = 1.0
    count: float = 1.0
    largest: float = 1.0


@dataclass(frozen=True, slots=True)
class Bound:
    """The same of what an expression gives, and the steps to get there."""

    size: Form
    count: Form
    largest: float = 1.0
    work: Form = field(default_factory=dict)


def steps(root: Node, data: Mapping[Path, Extent], may_hold_null: bool) -> float:
    """Steps that it takes at most: to take the data in, to make the value, and to take it out."""
    bound = _Estimate(data, {}, {}).of(root)
    taken = sum(extent.size for extent in data.values())
    out = _times(bound.size, OUT_BESIDE_NULL if may_hold_null else OUT)
    return _peak(_sum(bound.work, out), {}) + taken * IN


def _sum(*forms: Form) -> Form:
    total: Form = {}
    for form in forms:
        for name, value in form.items():
            total[name] = total.get(name, 0.0) + value
    return total


def _times(form: Form, factor: float) -> Form:
    return {name: value * factor for name, value in form.items()}


def _most(*forms: Form) -> Form:
    names = {name for form in forms for name in form}
    return {name: max(form.get(name, 0.0) for form in forms) for name in names}


def _peak(form: Form, peaks: Mapping[str, float]) -> float:
    return sum(value * peaks.get(name, 1.0) for name, value in form.items())


@dataclass(frozen=True, slots=True)
class _Estimate:
    data: Mapping[Path, Extent]
    bound: Mapping[str, Bound]  # variables of the loops around
    peaks: Mapping[str, float]  # the largest that an element may be

    def of(self, node: Node) -> Bound:
        found = path(node)
        if found and found[0] not in self.bound:
            return self.named(found)
        match node:
            case Const():
                size = {"": 1.0 + len(node.raw) / 16}
                return Bound(size, {"": 1.0}, 1.0, {"": 1.0})
            case Ident():
                return self.bound.get(node.name) or self.named((node.name,))
            case Loop():
                return self.loop(node)
            case Call():
                return self.call(node)
            case Select():
                return self.inside(self.of(node.operand))
            case _:
                return self.literal(node)

    def named(self, found: Path) -> Bound:
        extent = self.data.get(found)
        if extent is None:  # a part of what another path names whole
            known = [size for path, size in self.data.items() if path == found[: len(path)]]
            extent = Extent(*[max((e.size for e in known), default=1.0)] * 3)
        size, count = {"": extent.size}, {"": extent.count}
        return Bound(size, count, extent.largest, {"": 1.0 + len(found)})

    def inside(self, outer: Bound) -> Bound:
        """A part of a value: as large as the whole, or as its largest element."""
        if set(outer.size) <= {""}:
            whole = {"": min(outer.largest, outer.size.get("", 1.0))}
        else:
            whole = outer.size
        return Bound(whole, whole, _peak(whole, self.peaks), _sum(outer.work, {"": 1.0}))

    def literal(self, node: Node) -> Bound:
        parts = [self.of(child) for child in children(node)]
        size = _sum({"": 1.0}, *(part.size for part in parts))
        largest = max((_peak(part.size, self.peaks) for part in parts), default=1.0)
        work = _sum({"": 1.0 + len(parts)}, *(part.work for part in parts))
        return Bound(size, {"": 1.0 + len(parts)}, largest, work)

    def call(self, node: Call) -> Bound:
        parts = [self.of(child) for child in children(node)]
        work = _sum({"": 1.0}, *(part.work for part in parts))
        if node.function == "_[_]":
            inner = self.inside(parts[0])
            return Bound(inner.size, inner.count, inner.largest, work)
        if node.function == "matches":
            work = _sum(work, _matching(node, parts))
        elif node.function not in FREE:
            work = _sum(work, *(part.size for part in parts))
        return self.result(node.function, parts, work)

    def result(self, function: str, parts: list[Bound], work: Form) -> Bound:
        if function in SMALL:
            return Bound({"": 1.0}, {"": 1.0}, 1.0, work)
        join = _most if function == "_?_:_" else _sum
        size = join(*(part.size for part in parts), {"": 1.0})
        count = join(*(part.count for part in parts), {})
        return Bound(size, count, max(part.largest for part in parts), work)

    def loop(self, node: Loop) -> Bound:
        over = self.of(node.over)
        each = f"{node.each} {node.id}"
        element = Bound({each: 1.0}, {each: 1.0}, over.largest)
        nothing = Bound({}, {})
        inner = _Estimate(
            self.data,
            {**self.bound, node.each: element, node.result_name: nothing},
            {**self.peaks, each: over.largest},
        )
        test, step = inner.of(node.condition), inner.of(node.step)
        size = self.total(step.size, each, over)
        work = self.total(_sum(test.work, step.work, {"": 3.0}), each, over)
        work = _sum(over.work, work, over.count)
        if not isinstance(node.start, Items):
            return Bound({"": 1.0}, {"": 1.0}, 1.0, work)
        copies = _times(over.count, min(_peak(over.count, self.peaks), ROUNDS) / 2 * COPY)
        largest = _peak(step.size, inner.peaks)
        return Bound(_sum(size, {"": 1.0}), over.count, largest, _sum(work, copies))

    def total(self, form: Form, each: str, over: Bound) -> Form:
        """The sum over all elements of what one of them gives."""
        form = dict(form)
        own = _times(over.size, form.pop(each, 0.0))
        if set(form) <= {""}:
            return _sum(own, _times(over.count, form.get("", 0.0)))
        return _sum(own, _times(form, _peak(over.count, self.peaks)))


# Patterns


def _matching(node: Call, parts: list[Bound]) -> Form:
    """A pattern is compiled each time, and may take a step per state of it and character."""
    pattern = node.args[-1]
    weight = pattern_weight(pattern.value or "") if isinstance(pattern, Const) else float("inf")
    text = parts[-1 if node.target else 0]
    return _sum(_times(text.size, weight * 2), {"": weight * 8})


REPEAT = re.compile(r"\{(\d+)(?:,(\d*))?\}")
PIECE = re.compile(r"\\[pP]\{[^}]*\}|\\.|\[\^?\]?(?:\\.|\[:\w+:\]|[^\]\\])*\]|(?s:.)")


def pattern_weight(pattern: str) -> float:
    """States of a regular expression, about: what is repeated n times counts n times."""
    sums, last, at = [0.0], 0.0, 0
    while at < len(pattern):
        if found := REPEAT.match(pattern, at):
            times = max(int(number or 0) for number in found.groups("0"))
            sums[-1] += last * max(times - 1, 0)
            last *= max(times, 1)
        else:
            found = PIECE.match(pattern, at)
            assert found
            if found[0] == "(":
                sums.append(0.0)
            elif found[0] == ")" and len(sums) > 1:
                last = sums.pop() + 1.0
                sums[-1] += last
            elif found[0] not in "?*+|":
                last = _piece_weight(found[0])
                sums[-1] += last
        at = found.end()
    return sum(sums) + 1.0


def _piece_weight(piece: str) -> float:
    if piece[:2] in {"\\p", "\\P"} or "[:" in piece or "\\p" in piece or "\\P" in piece:
        return 600.0
    return 8.0 if piece == "." or piece.startswith("[^") or not piece.isascii() else 1.0


# Refused whatever the data are


ZONE = re.compile(r"[A-Za-z]+(?:/[A-Za-z0-9_+-]+){0,2}|[+-]?\d\d:\d\d")


def refuse_unbounded(root: Node, source: str) -> None:
    """What could read files, make messages, or take a pattern that nobody has seen."""
    for node in walk(root):
        if isinstance(node, Record) and node.name:
            raise ExpressionError(f"there is no type '{node.name}' to make here", source)
        if not isinstance(node, Call):
            continue
        literal = node.args[-1].value if node.args and isinstance(node.args[-1], Const) else None
        if node.function == "matches" and literal is None:
            raise ExpressionError("`matches` needs its pattern as a literal text", source)
        zoned = node.function.startswith("get") and node.args
        if zoned and not ZONE.fullmatch(literal or ""):
            raise ExpressionError(f"`{node.function}` needs the name of a time zone", source)
