"""What a figure is: a value beside its floor."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import msgspec


class Figure(msgspec.Struct, omit_defaults=True):
    """`ratio` is value / floor: of a rate (…/s) more is better, of a time (ms) less."""

    value: float
    unit: str
    floor: float
    ratio: float
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None
    repetitions: int = 0
    extra: dict[str, Any] = {}

    def plain(self) -> dict[str, Any]:
        """As JSON says it: the extra keys stand beside the others."""
        said = msgspec.to_builtins(self)
        return {**{name: v for name, v in said.items() if name != "extra"}, **self.extra}


class Bench(msgspec.Struct):
    """What was measured, on what, and what couldn't be."""

    machine: dict[str, Any]
    figures: dict[str, Figure] = {}
    failures: dict[str, str] = {}


def rate(unit: str, values: Sequence[float], floors: Sequence[float], **extra: Any) -> Figure:
    """The medians, and the median of the ratios of neighbours."""
    ratios = [value / floor for value, floor in zip(values, floors, strict=True)]
    return Figure(
        value=round(statistics.median(values)),
        unit=unit,
        floor=round(statistics.median(floors)),
        ratio=round(statistics.median(ratios), 3),
        repetitions=len(values),
        extra=extra,
    )


def latency(samples: Sequence[float], floors: Sequence[float], **extra: Any) -> Figure:
    """Of milliseconds."""
    own, bare = spread(samples), spread(floors)
    return Figure(
        value=own["p50"],
        unit="ms",
        floor=bare["p50"],
        ratio=round(own["p50"] / bare["p50"], 3),
        **own,
        repetitions=1,
        extra={
            "samples": len(samples),
            "floor_p95": bare["p95"],
            "floor_p99": bare["p99"],
            **extra,
        },
    )


def spread(samples: Sequence[float]) -> dict[str, float]:
    """p50, p95 and p99."""
    ordered = sorted(samples)
    last = len(ordered) - 1
    return {f"p{part}": round(ordered[round(last * part / 100)], 3) for part in (50, 95, 99)}
