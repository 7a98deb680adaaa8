"""What a rule may cost, and how a bad one is refused.

Cost is counted in steps of about a microsecond, not in time: what is refused here is refused on
every machine, however busy it is, and what is accepted stays accepted.
"""

from __future__ import annotations

from datetime import datetime

from ..errors import Malformed
from ..wire import Place

FIRST, LAST = datetime(1900, 1, 1), datetime(3000, 1, 1)
"""Nothing happens before or after, in any zone."""

AT_CREATION, AT_WORK, PER_MOMENT = 40_000, 80_000, 10
"""Steps. The others are what one look ahead may cost later, when other years cost more."""


class BadRule(Malformed):
    """Refuses a schedule. `field` is the argument that is wrong."""

    def __init__(self, field: str, message: str, hint: str | None = None) -> None:
        said = f"{message} ({hint})" if hint else message
        place: Place = {"loc": ["body", field], "msg": said, "type": "schedule"}
        super().__init__(f"{field}: {message}", hint=hint, which=field)
        self.detail: list[Place] = [place]
        self.field = field


def bad_expression(message: str, hint: str | None = None) -> BadRule:
    return BadRule("schedule_expr", message, hint)


class TooCostly(BadRule):
    def __init__(self) -> None:
        super().__init__(
            "schedule_expr",
            "this rule never fires, or so rarely that looking for its next time costs too much",
            "make it say more plainly when it fires, for example with a larger FREQ",
        )


class Budget:
    """The steps that are left. Whoever walks over time spends them."""

    __slots__ = ("left",)

    def __init__(self, steps: int) -> None:
        self.left = steps

    def spend(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0:
            raise TooCostly


class Step(int):
    """A number that spends when it is added to another, or taken times another.

    dateutil looks for an occurrence in a loop that ends only with year 9999, and adds the
    interval in each turn. This is how such a loop is stopped: a thread can't be.
    """

    budget: Budget
    cost: int

    @classmethod
    def of(cls, number: int, budget: Budget, cost: int) -> Step:
        step = cls(number)
        step.budget, step.cost = budget, cost
        return step

    def __radd__(self, other: int) -> int:
        self.budget.spend(self.cost)
        return other + int(self)

    def __mul__(self, other: int) -> int:
        self.budget.spend(self.cost)
        return int(self) * other
