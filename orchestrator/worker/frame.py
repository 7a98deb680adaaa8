"""Where in its run a list of steps is, and what these see."""

from __future__ import annotations

from typing import Any

import msgspec


class Frame(msgspec.Struct):
    """What the steps of a list see, and where in the run they are: `orders[2]/`, in the attempts
    `2.1` of the steps around them."""

    scope: dict[str, Any]
    place: str = ""
    turn: str = ""

    def inside(self, place: str) -> Frame:
        return Frame(self.scope, place + "/", self.turn)

    def attempt(self, number: int) -> Frame:
        return Frame(self.scope, self.place, f"{self.turn}.{number}" if self.turn else f"{number}")

    def round(self, place: str, **names: Any) -> Frame:
        """Another time round a loop: the steps are the same, and so is what they leave."""
        return Frame({**self.scope, **names}, f"{place}/", self.turn)

    def item(self, place: str, **names: Any) -> Frame:
        """One of many: what its steps leave is its own."""
        own = {"steps": dict(self.scope["steps"]), "state": dict(self.scope["state"])}
        return Frame({**self.scope, **own, **names}, f"{place}/", self.turn)
