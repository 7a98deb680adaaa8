"""Values that are too large for the row of their step: they stay in the database until some
expression names them. And what tools answered before, for steps that cache.

What a step reads is known before it runs: the paths of its expressions. So whoever is about to
evaluate them brings these values first, and all others are only known by their digest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from .. import db
from ..config import Config
from ..expr import Condition, Template
from ..pipelines.document import Step, Use
from .line import Line
from .news import Record

Names = frozenset[str] | None
"""Steps whose values are read; None is all of them."""


class Large:
    """A value that is in the database. No JSON: it can't be taken for one, or stored as one."""

    __slots__ = ("digest", "run")

    def __init__(self, run: str, digest: str) -> None:
        self.run = run
        self.digest = digest


def passing(value: Any) -> Any:
    """For an encoder that only looks: a large value was looked at when it was made."""
    if isinstance(value, Large):
        return None
    raise TypeError(f"Encoding objects of type {type(value).__name__} is unsupported")


class Desk:
    """Asks for what runs need, between the exchanges, over a line of its own."""

    def __init__(self, config: Config) -> None:
        self.line = Line(config)
        self.turn = asyncio.Lock()

    async def ask(self, verb: str, **arguments: Any) -> list[db.Row]:
        """Who asked may be told to stop meanwhile: the line goes on to the end of the answer."""
        return await asyncio.shield(asyncio.ensure_future(self._ask(verb, arguments)))

    async def _ask(self, verb: str, arguments: dict[str, Any]) -> list[db.Row]:
        async with self.turn:
            return await self.line.call(verb, **arguments)

    async def close(self) -> None:
        self.line.hang_up()
        await self.line.close()


class Values:
    """The large values of one run."""

    def __init__(
        self, tenant: str, run: str, records: dict[str, Record], desk: Desk | None
    ) -> None:
        self.tenant = tenant
        self.desk = desk
        self.read: dict[tuple[str, str], Any] = {}
        self.any = False
        for record in records.values():
            if record.get("digest"):
                record["output"] = Large(run, record["digest"])
                self.any = True

    async def whole(self, value: Any) -> Any:
        """The value, with what of it is in the database still."""
        if isinstance(value, Large):
            return await self._read(value)
        if isinstance(value, list):
            return [await self.whole(item) for item in value]
        if isinstance(value, dict):
            return {name: await self.whole(item) for name, item in value.items()}
        return value

    async def bring(self, steps: dict[str, Any], names: Names) -> None:
        for name in steps.keys() if names is None else names & steps.keys():
            steps[name] = await self.whole(steps[name])

    async def _read(self, large: Large) -> Any:
        key = large.run, large.digest
        if key not in self.read:
            (row,) = await self._ask("value", digest=bytes.fromhex(large.digest), run=large.run)
            self.read[key] = row["value"]
        return self.read[key]

    async def child(self, answer: Any) -> Any:
        """What a child run answered, with its output."""
        if isinstance(answer, dict) and "digest" in answer:
            output = await self._read(Large(answer["run_id"], answer["digest"]))
            return {"run_id": answer["run_id"], "state": answer["state"], "output": output,
                    "error": answer["error"]}  # fmt: skip
        return answer

    async def cached(self, tool: str, key: Any) -> list[Any]:
        """The value that a tool answered for a key before, if it serves still."""
        asked = {"tool": tool, "key": msgspec.json.encode(key).decode()}
        return [row["value"] for row in await self._ask("cached", **asked)]

    async def _ask(self, verb: str, **arguments: Any) -> list[db.Row]:
        assert self.desk is not None, "nobody to ask"
        return await self.desk.ask(verb, tenant=self.tenant, **arguments)


# What steps read


def beside(step: Step) -> Names:
    """What the expressions around its tool read: conditions, items, waits, projections."""
    return named(path for part in _parts(step) for path in part.references)


def within(step: Step) -> Names:
    """What the arguments of its tool read, and its key in the cache."""
    assert isinstance(step.body, Use)
    parts = [step.body.arguments, *([step.cache.key] if step.cache else [])]
    return named(path for part in parts for path in part.references)


def named(paths: Iterable[tuple[str, ...]]) -> Names:
    found = [path[1:2] for path in paths if path[0] == "steps"]
    return frozenset(name[0] for name in found) if all(found) else None


def _parts(part: Any) -> Iterator[Template | Condition]:
    if isinstance(part, Template | Condition):
        yield part
    elif isinstance(part, msgspec.Struct) and not isinstance(part, Use):
        for name in part.__struct_fields__:
            yield from _parts(getattr(part, name))
    elif isinstance(part, tuple | list) and not any(isinstance(item, Step) for item in part):
        for item in part:
            yield from _parts(item)
    elif isinstance(part, Mapping):
        for item in part.values():
            yield from _parts(item)
