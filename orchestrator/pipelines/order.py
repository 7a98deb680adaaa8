"""Who runs before whom: needs, circles, and which steps an expression can see."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import reduce
from graphlib import CycleError, TopologicalSorter
from operator import or_

from .document import Pipeline, Step, Steps
from .problems import Complaint, Notes, Scope, nearest

MOST_CIRCLES = 10
"""Steps that all need each other have more of them than anybody can read."""


class Order:
    """Sets of steps are bits of an int, so a thousand steps in a row stay cheap."""

    def __init__(self, pipeline: Pipeline, notes: Notes) -> None:
        self.notes = notes
        self.bits: dict[str, int] = {}
        self.named: dict[str, int] = defaultdict(int)  # by id and by save_as
        self.within: dict[str, int] = {}  # the steps anywhere below a step
        self.left: dict[str, int] = {}  # itself, and those below it that can be read after it
        self.before: dict[str, int] = {}
        self.loners: dict[str, str] = {}  # steps below a for_each, with its id
        self.silent: set[str] = set()
        for listed in (pipeline.steps, pipeline.on_error, pipeline.finally_):
            self._number(listed)
            self.silent |= {step.id for step in every_step(listed) if step.save_as is None}
        self.main = self._list(pipeline.steps, 0)
        rest = self.main | self._list(pipeline.on_error, self.main)
        self._list(pipeline.finally_, rest)

    def _number(self, listed: Steps) -> int:
        """Gives every step below its bit; answers them all."""
        found = 0
        for step in listed:
            bit = self.bits.setdefault(step.id, 1 << len(self.bits))
            self.named[step.id] |= bit
            if step.save_as:
                self.named[step.save_as] |= bit
            below = reduce(or_, (self._number(inner) for inner in _below(step)), 0)
            self.within[step.id] = below
            self.left[step.id] = bit | (0 if step.each else below)
            if step.each:
                inner = (one for steps in _below(step) for one in every_step(steps))
                self.loners |= {one.id: step.id for one in inner}
            found |= bit | below
        return found

    def _list(self, listed: Steps, base: int) -> int:
        """What each step of a list can see, and each below it. Answers what is left by all."""
        self._names_are_apart(listed)
        known = {step.id: step for step in listed}
        passed: dict[str, int] = {}
        for id in self._sorted(known):
            step = known[id]
            seen = reduce(or_, (passed.get(need, 0) for need in step.needs), 0)
            passed[id] = seen | self.left[id]
            self.before[id] = base | seen
            again = self.within[id] if step.loop else 0
            for _, steps in step.bodies():
                self._list(steps, base | seen | again)
            if step.catch:
                self._list(step.catch.steps, base | seen | self.within[id])
        return reduce(or_, passed.values(), 0)

    def _names_are_apart(self, listed: Steps) -> None:
        saved: set[str] = set()
        for step in listed:
            name, place = step.save_as, self.notes.places[step.id] / "save_as"
            if name is None or name == step.id:
                continue
            if name in self.bits:
                place.say("duplicate", f"{name!r} is the id of another step")
            elif name in saved:
                place.say("duplicate", f"another step beside this one is saved as {name!r}")
            saved.add(name)

    def _sorted(self, known: dict[str, Step]) -> list[str]:
        """In an order in which they can run, after the circles are named and cut."""
        needs = {id: self._known_needs(step, known) for id, step in known.items()}
        for _ in range(MOST_CIRCLES):
            try:
                return list(TopologicalSorter(needs).static_order())
            except CycleError as error:
                circle: list[str] = error.args[1][::-1]  # each needs the one after it
                start = circle.index(min(circle[:-1], key=list(known).index))
                circle = [*circle[start:-1], *circle[: start + 1]]
                place = self.notes.needs.get((circle[0], circle[1]), self.notes.places[circle[0]])
                place.say("cycle", f"steps wait for each other: {' → '.join(circle)}")
                needs[circle[0]].discard(circle[1])
        return list(known)

    def _known_needs(self, step: Step, known: dict[str, Step]) -> set[str]:
        for need in step.needs:
            if need in known:
                continue
            place = self.notes.needs[step.id, need]
            if need in self.bits:
                place.say("reference", f"{need!r} isn't in the same list of steps")
            else:
                place.say("reference", f"there is no step {need!r}", nearest(need, known))
        return {need for need in step.needs if need in known}

    def complaint(self, scope: Scope, name: str) -> Complaint | None:
        """Why `steps.<name>` can't be read there."""
        bits = self.named.get(name, 0)
        if not bits:
            return f"there is no step {name!r}", nearest(name, self.named)
        if name in self.silent:
            return f"the step {name!r} keeps nothing", "its save_as is null"
        if not bits & self.visible(scope):
            return f"{name!r} hasn't run when this is evaluated", self._way(scope, name)
        return None

    def visible(self, scope: Scope) -> int:
        if scope.step is None:
            return self.main if scope.is_last else 0
        seen = self.before.get(scope.step, 0)
        if scope.is_after:
            seen |= self.within[scope.step]
        return seen

    def _way(self, scope: Scope, name: str) -> str:
        if scope.step is None:
            return "no step has run yet"
        if name == scope.step:
            return "it's the step itself"
        if name in self.loners:
            around = self.loners[name]
            return f"it runs for each item: read steps.{around}, a list"
        return f"let this step need it: needs: [{name}]"


def _below(step: Step) -> Iterator[Steps]:
    for _, steps in step.bodies():
        yield steps
    if step.catch:
        yield step.catch.steps


def every_step(listed: Steps) -> Iterator[Step]:
    for step in listed:
        yield step
        for steps in _below(step):
            yield from every_step(steps)


def steps_before(pipeline: Pipeline, step: str) -> list[str]:
    """The outermost steps that don't come after a step of that list, without itself."""
    after = {step}
    while more := {s.id for s in pipeline.steps if s.id not in after and after & set(s.needs)}:
        after |= more
    return [one.id for one in pipeline.steps if one.id not in after]
