"""A pipeline as the engine takes it: normalised, with everything compiled, and immutable."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from .expressions import Condition, Template
from .problems import Problem, Problems, nearest, pointer
from .shapes import Shape

Steps = tuple["Step", ...]

ERRORS = (
    "validation", "expression", "configuration", "authentication", "authorization", "timeout",
    "communication", "conflict", "rate_limited", "runtime", "unknown", "canceled",
)  # fmt: skip
"""The words for what can go wrong."""


# Bodies


class Use(msgspec.Struct, frozen=True, kw_only=True):
    """A tool and its arguments, which render to an object."""

    uses: str
    arguments: Template


class Block(msgspec.Struct, frozen=True, kw_only=True):
    steps: Steps


class Parallel(msgspec.Struct, frozen=True, kw_only=True):
    branches: dict[str, Steps]
    mode: Literal["all", "race"] = "all"


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """`when` is None for else."""

    when: Condition | None
    steps: Steps


class Switch(msgspec.Struct, frozen=True, kw_only=True):
    cases: tuple[Case, ...]


class Sleep(msgspec.Struct, frozen=True, kw_only=True):
    """For seconds; a template renders to a duration."""

    delay: float | Template


class Until(msgspec.Struct, frozen=True, kw_only=True):
    """Renders to an instant with its zone, as text."""

    instant: Template


class Event(msgspec.Struct, frozen=True, kw_only=True):
    topic: Template
    match: Condition | None = None


class Callback(msgspec.Struct, frozen=True, kw_only=True):
    pass


class Approval(msgspec.Struct, frozen=True, kw_only=True):
    """`by` renders to who may approve, a text or a list of them; None is anyone who may."""

    by: Template | None = None
    count: int = 1
    form: Shape | None = None


class Wait(msgspec.Struct, frozen=True, kw_only=True):
    what: Sleep | Until | Event | Callback | Approval
    timeout: float | None = None
    on_timeout: Literal["fail", "continue", "reject"] = "fail"


Body = Use | Block | Parallel | Switch | Wait


# Modifiers


class Each(msgspec.Struct, frozen=True, kw_only=True):
    items: Template
    max_parallel: int = 1
    max_failures: int = 0


class Loop(msgspec.Struct, frozen=True, kw_only=True):
    """Exactly one of the conditions: `proceed` is asked before, `until` after each time."""

    proceed: Condition | None = None
    until: Condition | None = None
    max_iterations: int


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """`attempts` counts total runs."""

    attempts: int = 1
    delay: float = 1.0
    backoff: Literal["fixed", "linear", "exponential"] = "exponential"
    factor: float = 2.0
    max_delay: float = 300.0
    jitter: float = 0.5  # which part of a delay is left to chance
    errors: frozenset[str] | None = None
    when: Condition | None = None

    def delay_after(self, attempt: int, chance: float = 1.0) -> float:
        """Seconds to wait after that attempt, from 1; `chance` is between 0 and 1."""
        growth = {
            "fixed": 1.0,
            "linear": float(attempt),
            "exponential": self.factor ** min(attempt - 1, 64),
        }
        delay = min(self.delay * growth[self.backoff], self.max_delay)
        return delay * (1 - self.jitter * (1 - chance))


class Timeout(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of one attempt, and of all of them with the delays between."""

    attempt: float | None = None
    total: float | None = None


class Catch(msgspec.Struct, frozen=True, kw_only=True):
    """Which errors (None is every one), and the steps that then run."""

    errors: frozenset[str] | None
    steps: Steps


class Resource(msgspec.Struct, frozen=True, kw_only=True):
    pool: Template
    name: str  # below `pool.` in expressions
    select: Template | None = None
    hold: Literal["step", "run"] = "step"


class Cache(msgspec.Struct, frozen=True, kw_only=True):
    key: Template
    ttl: float


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """`retry` to `cache` are of the body; with `each` or `loop` they hold for each time it runs.

    `condition`, `needs`, `catch` and `continue_on_error` are of the step as a whole.
    """

    id: str
    path: str  # the ids from the outermost step to this one, such as `orders/pay`
    body: Body
    save_as: str | None
    needs: tuple[str, ...] = ()
    condition: Condition | None = None
    each: Each | None = None
    loop: Loop | None = None
    retry: Retry = Retry()
    timeout: Timeout = Timeout()
    catch: Catch | None = None
    continue_on_error: bool = False
    on_unknown: Literal["retry", "ask", "fail"] | None = None
    output: Template | None = None
    schema: Shape | None = None
    resources: tuple[Resource, ...] = ()
    cache: Cache | None = None

    def bodies(self) -> list[tuple[str | None, Steps]]:
        """The lists of steps below it; a branch's or a case's with its name."""
        match self.body:
            case Block(steps=steps):
                return [(None, steps)]
            case Parallel(branches=branches):
                return list(branches.items())
            case Switch(cases=cases):
                return [(str(number), case.steps) for number, case in enumerate(cases)]
        return []


# The document


class Concurrency(msgspec.Struct, frozen=True, kw_only=True):
    key: Template
    limit: int = 1
    on_conflict: Literal["queue", "skip", "replace", "cancel_running"] = "queue"


class Input(msgspec.Struct, frozen=True, kw_only=True):
    """A declared parameter."""

    shape: Shape
    required: bool = False
    secret: bool = False
    default: Any = msgspec.UNSET


class Pipeline(msgspec.Struct, frozen=True, kw_only=True):
    """`params` are the document's own values, `inputs` what it declares."""

    steps: Steps
    params: dict[str, Any] = {}
    inputs: dict[str, Input] = {}
    vars: dict[str, Any] = {}
    secrets: frozenset[str] = frozenset()
    queue: str | None = None
    priority: int | None = None
    concurrency: Concurrency | None = None
    timeout: float | None = None
    output: Template | None = None
    on_error: Steps = ()
    finally_: Steps = ()

    def bind(self, params: dict[str, Any] | None = None) -> dict[str, Any]:
        """The values that a run gets: defaults, the document's, then these. Or `Problems`."""
        given = {**self.params, **(params or {})}
        found = list(self.misfits(given))
        for name, declared in self.inputs.items():
            if name in given:
                continue
            if declared.default is not msgspec.UNSET:
                given[name] = declared.default
            elif declared.required:
                found.append(Problem(pointer(["params", name]), "missing", f"{name} is required"))
        if found:
            raise Problems(found)
        return given

    def misfits(self, given: dict[str, Any]) -> Iterator[Problem]:
        """Values that aren't declared, or not so. Without declarations everything fits."""
        for name, value in given.items() if self.inputs else ():
            place = pointer(["params", name])
            if name in self.inputs:
                yield from self.inputs[name].shape.problems(value, place)
            else:
                hint = nearest(name, self.inputs)
                yield Problem(place, "unknown_field", f"there is no input {name!r}", hint)
