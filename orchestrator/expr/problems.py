"""What goes wrong with expressions, said so that a person knows what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

FUNCTIONS = frozenset({
    "all", "exists", "exists_one", "filter", "map", "has", "size", "matches", "contains",
    "startsWith", "endsWith", "int", "uint", "double", "string", "bytes", "bool", "dyn", "type",
    "timestamp", "duration", "getFullYear", "getMonth", "getDate", "getDayOfMonth", "getDayOfWeek",
    "getDayOfYear", "getHours", "getMinutes", "getSeconds", "getMilliseconds",
})  # fmt: skip


class ExpressionError(Exception):
    """An expression that can't be compiled, or has no value here."""

    type = "expression"

    def __init__(self, message: str, source: str = "", position: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.source = source
        self.position = position  # in characters from the start of `source`

    def __str__(self) -> str:
        return f"{self.message} (in {self.source})" if self.source else self.message


class TemplateErrors(ExpressionError):
    """All problems of a value, each with its JSON pointer; `references` are of what can be read."""

    def __init__(
        self,
        problems: list[tuple[str, ExpressionError]],
        references: frozenset[tuple[str, ...]] = frozenset(),
    ) -> None:
        self.problems = problems
        self.references = references
        super().__init__("; ".join(f"{pointer or '/'}: {error}" for pointer, error in problems))


def nearest(name: str, known: Iterable[str]) -> str:
    """`: did you mean 'x'?`, or nothing."""
    found = get_close_matches(name, list(known), 1)
    return f": did you mean '{found[0]}'?" if found else ""


def unknown_name(name: str, roots: Iterable[str]) -> str:
    near = nearest(name, [*roots, *FUNCTIONS])
    name = name if len(name) <= 64 else f"{name[:64]}…"
    return f"there is no '{name}' here" + (near or f": known are {', '.join(sorted(roots))}")


# What CEL says while it compiles

PLACE = re.compile(r"ERROR: <input>:(-?\d+):(-?\d+): (.*)")
UNDECLARED = re.compile(r"undeclared reference to '([^']*)'")
OVERLOAD = re.compile(r"no matching overload for '([^']+)' applied to '\(?(.*?)\)?'$")
HABITS = [
    (re.compile(r"(?<![=!<>])=(?!=)"), "compare with `==`: there is no `=`"),
    (re.compile(r"==="), "compare with `==`: there is no `===`"),
    (re.compile(r"\band\b"), "write `&&` instead of `and`"),
    (re.compile(r"\bor\b"), "write `||` instead of `or`"),
    (re.compile(r"\bnot\b"), "write `!` instead of `not`"),
    (re.compile(r"(?<!&)&(?!&)"), "write `&&`: there is no `&`"),
    (re.compile(r"(?<!\|)\|(?!\|)"), "write `||`: there is no `|`"),
    (re.compile(r"\b(True|False|None)\b"), "write `true`, `false` or `null`"),
    (re.compile(r"\bif\b|\belse\b"), "write `condition ? this : that`"),
    (re.compile(r"\*\*|\+\+|--"), "there is no `**`, `++` or `--`"),
]
PYTHONIC = {"True", "False", "None"}


def of_compiling(text: str, source: str, outside: str, roots: Iterable[str]) -> ExpressionError:
    """CEL's first complaint, in our words. `outside` is the source without its strings."""
    if "recursion" in text:
        return ExpressionError("nested too deeply: split it, at most about 30 levels work", source)
    found = PLACE.search(text)
    if found is None:
        return ExpressionError(text.partition(" [")[0], source)
    line, column, said = int(found[1]), int(found[2]), found[3]
    lines = source.split("\n")
    position = sum(len(before) + 1 for before in lines[: line - 1]) + column - 1
    if (name := UNDECLARED.match(said)) and (seen := re.search(rf"\b{_first(name[1])}\b", source)):
        position = seen.start()  # CEL points at the last dot of a path
    return ExpressionError(_compiling(said, outside, roots), source, position)


def _first(name: str) -> str:
    return name.split(".")[0]


def _compiling(said: str, outside: str, roots: Iterable[str]) -> str:
    habit = next((advice for sign, advice in HABITS if sign.search(outside)), None)
    if found := UNDECLARED.match(said):
        name = _first(found[1])
        if name in roots:
            return f"there is no type '{found[1]}'"
        return habit if habit and name in PYTHONIC else unknown_name(name, roots)
    if found := OVERLOAD.search(said):
        return _overload(found[1], [kind.strip() for kind in found[2].split(",")])
    if said.startswith("Syntax error"):
        return f"not an expression: {habit or _syntax(said)}"
    if said == "invalid int literal":
        return "the number is beyond 64 bits"
    return said


def _syntax(said: str) -> str:
    if "'<EOF>'" in said:
        return "it ends too early"
    found = re.search(r"(?:input|at:?|alternative at input) '(.*?)'(?: expecting.*)?$", said)
    return f"'{found[1][:40]}' is unexpected here" if found else said.removeprefix("Syntax error: ")


# What CEL says while it evaluates

NO_OVERLOAD = re.compile(r"No matching overloads found : (?:\((\w+)\)\.)?([^(]+)(?:\((.*)\))?$")
NAMES = {"int64": "int", "uint64": "uint", "null_type": "null", "bool": "bool"}
NUMBERS = {"int", "uint", "double"}


def of_evaluating(text: str) -> ExpressionError:
    said = text.partition(": ")[2] or text
    return ExpressionError(_evaluating(said.removesuffix(" [INTERNAL]")))


def _evaluating(said: str) -> str:
    if found := re.match(r'Key not found in map : "(.*)"', said):
        return f"'{found[1]}' is missing: test it with `has()`, or give another value with `??`"
    if found := re.match(r'No value with name "(.*)" found', said):
        return f"'{found[1]}' has no value here"
    if "SELECT to non-message" in said:
        return "a field of what isn't an object: test it with `has()`, or use `??`"
    if found := re.match(r"Index error: index=(-?\d+) size=(\d+)", said):
        return f"there is no element {found[1]}: the list has {found[2]}"
    if found := NO_OVERLOAD.search(said):
        kinds = [kind for kind in [found[1], *(found[3] or "").split(", ")] if kind]
        return _overload(found[2].strip(), [NAMES.get(kind, kind) for kind in kinds])
    if said == "Iteration budget exceeded":
        return "more than 10,000 rounds of `all`, `exists`, `filter` and `map`"
    return said


def _overload(function: str, kinds: list[str]) -> str:
    sign = function.strip("_@").replace("_", " ")
    if function == "<iter_range>":
        return "only a list or an object has elements to go through"
    if function == "_?_:_" and kinds[0] in {"bool", "dyn"}:
        return f"`?:` gives {' or '.join(kinds[1:])}: say that you mean it with `dyn(x)`"
    if function in {"<jump_condition>", "_&&_", "_||_", "!_", "_?_:_"}:
        sign = "a condition" if function == "<jump_condition>" else f"`{sign}`"
        return f"{sign} needs true or false: compare with something"
    operands = " and ".join(kinds)
    if set(kinds) <= NUMBERS and len(set(kinds)) > 1:
        return f"`{sign}` can't take {operands}: make both double with `double(x)`"
    if function == "_+_" and "string" in kinds:
        return f"`+` can't take {operands}: make both text with `string(x)`"
    if "null" in kinds:
        return f"`{sign}` can't take {operands}: give another value for null with `??`"
    return f"`{sign}` can't take {operands}"
