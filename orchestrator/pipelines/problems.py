"""What is wrong with a document: all of it at once, each problem with its place."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import msgspec

from ..errors import Malformed
from ..wire import Place

Severity = Literal["error", "warning"]
MOST_PROBLEMS = 200
LONGEST_MESSAGE = 500

Path = tuple[str | int, ...]
Complaint = tuple[str, str | None]
"""What is wrong, and the way out."""


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """`pointer` is a JSON pointer (RFC 6901); the empty one is the whole document."""

    pointer: str
    type: str
    message: str
    hint: str | None = None
    severity: Severity = "error"


class Problems(Malformed):
    """Refuses a document. Over HTTP it is a 422 with a place for each problem."""

    def __init__(self, problems: Sequence[Problem], under: Path = ("body",)) -> None:
        self.problems = list(problems)
        count = len(self.problems)
        first = f"{self.problems[0].pointer or '/'}: {self.problems[0].message}"
        super().__init__(
            first if count == 1 else f"The pipeline has {count} problems, the first at {first}",
            detail=[_place(problem, under) for problem in self.problems],
        )


def _place(problem: Problem, under: Path) -> Place:
    hint = f" ({problem.hint})" if problem.hint else ""
    return {
        "loc": [*under, *segments(problem.pointer)],
        "msg": problem.message + hint,
        "type": problem.type,
    }


def pointer(path: Iterable[str | int]) -> str:
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def segments(pointer: str) -> list[str | int]:
    parts = [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]]
    return [int(part) if part.isdecimal() and part.isascii() else part for part in parts]


def nearest(name: str, known: Iterable[str]) -> str | None:
    """A hint for a name that isn't known."""
    close = difflib.get_close_matches(name[:100], list(known), n=1)
    return f"did you mean {close[0]}?" if close else None


class Enough(Exception):
    """Nobody reads more than `MOST_PROBLEMS`."""


class Scope(msgspec.Struct, frozen=True):
    """Where an expression stands, which decides what it can see."""

    step: str | None = None
    names: frozenset[str] = frozenset()  # besides the scopes that are there everywhere
    is_after: bool = False  # the step's own body has run
    is_last: bool = False  # any step may have run: on_error, finally, the run's output


class Mention(msgspec.Struct, frozen=True):
    """What the expressions of a value refer to, and from where."""

    at: At
    value: Any
    references: frozenset[tuple[str, ...]]


class Notes:
    """What is found on the way through a document."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.mentions: list[Mention] = []
        self.uses: list[tuple[At, str, Any]] = []
        self.ids: dict[str, str] = {}  # with the pointer of the first that's called so
        self.places: dict[str, At] = {}  # of steps
        self.needs: dict[tuple[str, str], At] = {}  # of a step, for a step
        self.steps = 0

    @property
    def is_broken(self) -> bool:
        return any(problem.severity == "error" for problem in self.problems)


class At:
    """A place in a document, with the notes that everyone writes to."""

    __slots__ = ("notes", "path", "scope")

    def __init__(self, notes: Notes, path: Path = (), scope: Scope = Scope()) -> None:  # noqa: B008
        self.notes, self.path, self.scope = notes, path, scope

    def __truediv__(self, part: str | int) -> At:
        return At(self.notes, (*self.path, part), self.scope)

    @property
    def pointer(self) -> str:
        return pointer(self.path)

    def seeing(self, *names: str, is_after: bool = False) -> At:
        """The same place, whose expressions see these names, too."""
        scope = self.scope
        scope = msgspec.structs.replace(
            scope, names=scope.names | set(names), is_after=scope.is_after or is_after
        )
        return At(self.notes, self.path, scope)

    def of_step(self, id: str) -> At:
        scope = msgspec.structs.replace(self.scope, step=id, is_after=False)
        return At(self.notes, self.path, scope)

    def say(
        self, type: str, message: str, hint: str | None = None, severity: Severity = "error"
    ) -> None:
        if len(self.notes.problems) >= MOST_PROBLEMS:
            raise Enough
        words = message[:LONGEST_MESSAGE]
        self.notes.problems.append(Problem(self.pointer, type, words, hint, severity))

    def warn(self, type: str, message: str, hint: str | None = None) -> None:
        self.say(type, message, hint, "warning")
