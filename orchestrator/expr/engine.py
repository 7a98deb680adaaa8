"""Expressions: a bare path in Python, everything else in CEL."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

from cel_expr_python import cel

from . import cost, tree
from .problems import ExpressionError, nearest, of_compiling, of_evaluating, unknown_name
from .tokens import MAX_SOURCE, Key, alternatives, bare_path, to_cel, tokens
from .tree import Path
from .values import Intake, Times, names_of, outside, text_of_time

ROOTS = frozenset({
    "params", "input", "vars", "steps", "state", "item", "index", "run", "event", "error", "pool",
    "secrets", "now",
})  # fmt: skip
DYN = cel.Type.DYN
SIMPLE = (str, int, float, bool, dict, list, type(None))


class Expression:
    """`references` are the paths into the scope that it names, as far as they are static."""

    source: str
    references: frozenset[Path]

    def evaluate(self, scope: Mapping[str, Any]) -> Any:
        raise NotImplementedError


def compile(source: str, roots: Iterable[str] = ROOTS) -> Expression:
    """The expression, or `ExpressionError`. Takes 3 µs for a path, 0.1 to 4 ms for CEL."""
    known = frozenset(roots)
    _refuse_unreadable(source)
    if keys := bare_path(source):
        return BarePath(source, _rooted(keys, source, known))
    if "??" in source and (found := alternatives(source)):
        paths, last = found
        return Fallback(source, [_rooted(keys, source, known) for keys in paths], last)
    return Cel(source, known)


def _refuse_unreadable(source: str) -> None:
    if len(source) > MAX_SOURCE or len(source.encode(errors="replace")) > MAX_SOURCE:
        raise ExpressionError(f"longer than {MAX_SOURCE} bytes: do it in steps", source[:60] + "…")
    if not source.strip():
        raise ExpressionError("there is no expression", source, 0)
    try:
        source.encode()
    except UnicodeEncodeError as error:
        raise ExpressionError("not valid Unicode", ascii(source), error.start) from None


def _rooted(keys: tuple[Key, ...], source: str, roots: frozenset[str]) -> tuple[Key, ...]:
    if keys[0] not in roots:
        raise ExpressionError(unknown_name(str(keys[0]), roots), source, 0)
    return keys


# Paths: 0.2 µs for three names (2026-11-21)


def find(scope: Mapping[str, Any], keys: tuple[Key, ...]) -> Any:
    """The value itself, not a copy; LookupError when there is none."""
    value: Any = scope
    try:
        for key in keys:
            if key.__class__ is int and not isinstance(value, list | tuple):
                raise LookupError(key)
            value = value[key]
    except TypeError:
        raise LookupError(key) from None
    if isinstance(value, SIMPLE) or not isinstance(value, datetime | timedelta):
        return value
    return text_of_time(value)


def missing(scope: Mapping[str, Any], keys: tuple[Key, ...], source: str) -> ExpressionError | None:
    """Says where the path ends, and what is there instead; None when it leads to a value."""
    value: Any = scope
    for at, key in enumerate(keys):
        try:
            value = find({"": value}, ("", key))
        except LookupError:
            return ExpressionError(_absence(value, keys[:at], key), source)
    return None


def _absence(value: Any, before: tuple[Key, ...], key: Key) -> str:
    where = _text(before)
    if not before:
        return f"'{key}' has no value here"
    if isinstance(value, Mapping):
        near = nearest(str(key), [name for name in value if isinstance(name, str)])
        return f"'{where}' has no '{key}'" + (near or ": give another value with `??`")
    if isinstance(value, list) and isinstance(key, int):
        return f"'{where}' has no element {key}: the list has {len(value)}"
    kind = "null" if value is None else f"no {'list' if isinstance(key, int) else 'object'}"
    return f"'{where}' is {kind}, so it has no '{key}': give another value with `??`"


def _text(keys: tuple[Key, ...]) -> str:
    text = str(keys[0]) if keys else ""
    for key in keys[1:]:
        text += f"[{key}]" if isinstance(key, int) else f".{key}"
    return text


def _names(keys: tuple[Key, ...]) -> Path:
    """The path up to its first number."""
    end = next((at for at, key in enumerate(keys) if isinstance(key, int)), len(keys))
    return tuple(str(key) for key in keys[:end])


class BarePath(Expression):
    __slots__ = ("keys", "references", "source")

    def __init__(self, source: str, keys: tuple[Key, ...]) -> None:
        self.source = source
        self.keys = keys
        self.references = frozenset([_names(keys)])

    def evaluate(self, scope: Mapping[str, Any]) -> Any:
        try:
            return find(scope, self.keys)
        except LookupError:
            raise missing(scope, self.keys, self.source) or ExpressionError(
                "it changed while it was read", self.source
            ) from None


class Fallback(Expression):
    """`a.b ?? c.d ?? "x"`: the first that is neither missing nor null."""

    __slots__ = ("last", "paths", "references", "source")

    def __init__(self, source: str, paths: list[tuple[Key, ...]], last: list[Any]) -> None:
        self.source = source
        self.paths = paths
        self.last = last
        self.references = frozenset(_names(keys) for keys in paths)

    def evaluate(self, scope: Mapping[str, Any]) -> Any:
        paths = self.paths if self.last else self.paths[:-1]
        for keys in paths:
            try:
                value = find(scope, keys)
            except LookupError:
                continue
            if value is not None:
                return value
        if self.last:
            return self.last[0]
        return BarePath(self.source, self.paths[-1]).evaluate(scope)


# CEL: 6 µs for a condition of one comparison, 7 µs for two; 13 when busy (2026-11-21)


@lru_cache(maxsize=64)
def _environment(roots: frozenset[str], extra: tuple[tuple[str, bool], ...] = ()) -> cel.Env:
    """Made in 0.3 ms. `extra` variables are timestamps or, if false, durations."""
    both = cel.Overload(tree.OR, return_type=DYN, parameters=[DYN, DYN])
    variables = dict.fromkeys(sorted(roots), DYN)
    if "now" in roots:
        variables["now"] = cel.Type.TIMESTAMP
    for name, is_instant in extra:
        variables[name] = cel.Type.TIMESTAMP if is_instant else cel.Type.DURATION
    env = cel.NewEnv(variables=variables, functions=[cel.FunctionDecl(tree.OR, [both])])
    env.compile("true")  # only now does it know the types of its variables
    return env


class Cel(Expression):
    def __init__(self, source: str, roots: frozenset[str]) -> None:
        self.source = source
        self.roots = roots
        text = to_cel(source)
        self._compiled = self._checked(text)
        serialized = self._compiled.serialize()
        root = tree.read(serialized)
        cost.refuse_unbounded(root, source)
        self._null = any(node == tree.null(node.id) for node in tree.walk(root))
        self.references = frozenset(tree.references(root))
        if text != source and tree.OR in text:
            root = tree.with_fallbacks(root)
            serialized = tree.write(serialized, root)
            self._compiled = _environment(roots).deserialize(serialized)
        self._names = names_of(self.references)
        self._root, self._serialized = root, serialized
        self._variant: tuple[Any, Any] = ((), None)
        self._loops = any(isinstance(node, tree.Loop) for node in tree.walk(root))
        self._slope = self._afford(cost.steps(root, {}, True))

    def _checked(self, text: str) -> cel.Expression:
        try:
            return _environment(self.roots).compile(text)
        except Exception as error:
            bare = (" " if t.kind == "text" else t.text for t in tokens(self.source))
            problem = of_compiling(str(error), self.source, " ".join(bare), self.roots)
            if text != self.source:  # CEL saw another text: its place isn't ours
                problem.position = None
            raise problem from None

    def _afford(self, steps: float) -> float:
        if steps > cost.BUDGET:
            much = f"{steps:,.0f}" if steps < 1e12 else "endless"
            most = f"{cost.BUDGET:,} are allowed: go through fewer elements, or nest less"
            raise ExpressionError(f"it may take {much} steps, and {most}", self.source)
        return steps

    def evaluate(self, scope: Mapping[str, Any]) -> Any:
        intake = Intake()
        try:
            data = intake.take(scope, self._names)
            may_hold_null = self._null or intake.has_null
            if self._loops or self._slope * intake.size > cost.BUDGET:
                self._afford(cost.steps(self._root, intake.extents, may_hold_null))
            result = self._run(data, intake)
            if result.type().name() == "ERROR":
                raise self._failure(result.value(), scope)
            return outside(result, may_hold_null)
        except ExpressionError as error:
            error.source = error.source or self.source
            raise

    def _run(self, data: dict[str, Any], intake: Intake) -> cel.Value:
        try:
            compiled = self._timed(data, intake.times) if intake.times else self._compiled
            return compiled.eval(data=data)
        except Exception as error:
            if "construction from null" in str(error):
                raise ExpressionError("a text in it isn't valid Unicode") from None
            raise of_evaluating(str(error)) from None

    def _timed(self, data: dict[str, Any], times: Times) -> cel.Expression:
        """Times can't stand inside data, so each becomes a variable of its own."""
        kinds = tuple((path, isinstance(time, datetime)) for path, time in times.items())
        data |= {f"__time{at}": time for at, time in enumerate(times.values())}
        known, compiled = self._variant
        if known != kinds:
            names = {path: f"__time{at}" for at, path in enumerate(times)}
            env = _environment(self.roots, tuple((names[path], kind) for path, kind in kinds))
            root = tree.with_names(self._root, names)
            compiled = env.deserialize(tree.write(self._serialized, root))
            self._variant = kinds, compiled  # only the last: data rarely change their shape
        return compiled

    def _failure(self, text: str, scope: Mapping[str, Any]) -> ExpressionError:
        """CEL names the key that is missing; if it ends a path that is known, this says where."""
        problem = of_evaluating(text)
        key = re.match(r"'(.*?)' (is missing|has no value)", problem.message)
        for path in sorted(self.references) if key else ():
            found = missing(scope, path, self.source)
            if key and found and f"'{key[1]}'" in found.message:
                return found
        return problem
