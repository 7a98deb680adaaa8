"""What a worker has to say: ends of runs, lines of their logs, records of their steps."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from .engine import Settled

Record = dict[str, Any]
Line = dict[str, Any]
Durable = asyncio.Future[None]

LARGE = 65_536
MOST_BYTES = 4_194_304
"""Of large values in one exchange, unless one has more: it has to end within its timeout."""


def packed(value: Any) -> Any:
    """A large value as the bytes that travel, so that they're counted, and made once."""
    if not isinstance(value, dict | list | str):
        return value
    try:
        data = msgspec.json.encode(value)
    except Exception:  # whoever sends it will say what is wrong
        return value
    return msgspec.Raw(data) if len(data) > LARGE else value


def weight(output: Any) -> int:
    return memoryview(output).nbytes if isinstance(output, msgspec.Raw) else 0


class Said(msgspec.Struct):
    outcomes: list[Settled] = []
    lines: list[Line] = []
    records: list[Record] = []
    commits: list[tuple[Record, Durable]] = []  # whose runs wait until they are durable
    weight: int = 0  # bytes of large values

    def of(self, run: str) -> Said:
        return Said(
            [said for said in self.outcomes if said.run == run],
            [line for line in self.lines if line["run"] == run],
            [record for record in self.records if record["run"] == run],
        )

    @property
    def runs(self) -> list[str]:
        named = [said.run for said in self.outcomes]
        named += [said["run"] for said in (*self.records, *self.lines)]
        return list(dict.fromkeys(named))


class News:
    """Gathers it while the lines are busy. What is said of a run is said in its order: while
    records of it are under way, the rest of it waits for their answer."""

    def __init__(self, changed: asyncio.Event) -> None:
        self.changed = changed
        self.next = Said()
        self.under_way: set[str] = set()
        self.held: dict[str, list[Callable[[], None]]] = {}
        self.ends_held = 0

    def __bool__(self) -> bool:
        return bool(self.next.outcomes or self.next.records)

    @property
    def ends(self) -> int:
        return len(self.next.outcomes) + self.ends_held

    @property
    def runs(self) -> set[str]:
        return {said.run for said in self.next.outcomes} | self.held.keys()

    def end(self, said: Settled, lines: list[Line]) -> None:
        if said.run in self.under_way:
            self.ends_held += 1
            self.held.setdefault(said.run, []).append(partial(self._free_end, said, lines))
            return
        self.next.outcomes.append(said)
        self.next.lines += lines
        self.next.weight += weight(said.output)
        self.changed.set()

    def _free_end(self, said: Settled, lines: list[Line]) -> None:
        self.ends_held -= 1
        self.end(said, lines)

    def record(self, record: Record, durable: Durable | None = None) -> None:
        if record["run"] in self.under_way:
            self.held.setdefault(record["run"], []).append(partial(self.record, record, durable))
            return
        self.next.records.append(record)
        self.next.weight += weight(record.get("output"))
        if durable is not None:
            self.next.commits.append((record, durable))
        if durable is not None or "wait" in record:
            self.changed.set()

    def is_silent(self, run: str) -> bool:
        """Whether all that was said of it is durable."""
        return run not in self.under_way and all(said["run"] != run for said in self.next.records)

    def take(self) -> Said:
        said, self.next = self.next, Said()
        if said.weight > MOST_BYTES:
            said = self._part(said)
        for record in said.records:
            if "reached" in record.get("wait", ()):  # events since then count
                record["wait"]["age"] = time.monotonic() - record["wait"].pop("reached")
        self.under_way.update(record["run"] for record in said.records)
        return said

    def _part(self, said: Said) -> Said:
        """As much as one exchange carries. The rest is said next: of each run in its order."""
        part, late = Said(), set[str]()
        durables = {id(record): durable for record, durable in said.commits}
        rest: list[Callable[[], None]] = []
        for record in said.records:
            if self._fits(part, record["run"], record.get("output"), late):
                part.records.append(record)
                if id(record) in durables:
                    part.commits.append((record, durables[id(record)]))
            else:
                rest.append(partial(self.record, record, durables.get(id(record))))
        for end in said.outcomes:
            lines = [line for line in said.lines if line["run"] == end.run]
            if self._fits(part, end.run, end.output, late):
                part.outcomes.append(end)
                part.lines += lines
            else:
                rest.append(partial(self.end, end, lines))
        self.under_way.update(record["run"] for record in part.records)
        for again in rest:
            again()
        return part

    def _fits(self, part: Said, run: str, output: Any, late: set[str]) -> bool:
        if run in late or (part.weight and part.weight + weight(output) > MOST_BYTES):
            late.add(run)
            return False
        part.weight += weight(output)
        return True

    def heard(self, said: Said, lost: set[str]) -> None:
        """It is durable, but for what was said of lost runs: these don't go on."""
        for record, durable in said.commits:
            if record["run"] not in lost and not durable.done():
                durable.set_result(None)
        for run in {record["run"] for record in said.records}:
            self.under_way.discard(run)
            for free in self.held.pop(run, ()):
                free()

    def clear(self) -> None:
        self.next = Said()
        self.under_way.clear()
        self.held.clear()
        self.ends_held = 0
