"""The figures as a table, or as one JSON object."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .figure import Bench, Figure

LEGEND = """\
ratio: value / floor, the floor being bare SQL for the same row work; of ms, less is better.
repeated: value, floor and ratio are medians of so many pairs, each measured side by side.
Drains count runs that orc.runs shows as succeeded, from the first start to the last end by the
database's clock, housekeeping included."""


@contextmanager
def note(name: str) -> Iterator[None]:
    """Says on a terminal what is being measured."""
    began = time.monotonic()
    yield
    if sys.stderr.isatty():
        print(f"{name}: {time.monotonic() - began:.1f} s", file=sys.stderr)


def show_json(bench: Bench) -> None:
    figures = {name: figure.plain() for name, figure in bench.figures.items()}
    failures = {name: {"error": why} for name, why in bench.failures.items()}
    said = {"machine": bench.machine, **figures, **failures}
    print(msgspec.json.format(msgspec.json.encode(said)).decode())


def show(bench: Bench) -> None:
    console = Console(width=None if sys.stdout.isatty() else 160)
    for name, value in bench.machine.items():
        console.print(f"[bold]{name:12}[/] {_words(value)}", highlight=False)
    console.print("", _table(bench.figures), "", sep="\n")
    for name, figure in bench.figures.items():
        said = ", ".join(f"{key} {_words(value)}" for key, value in figure.extra.items())
        console.print(f"[bold]{name}[/]: {said}", highlight=False)
    for name, why in bench.failures.items():
        console.print(f"[bold red]{name} failed[/]:", Text(why))
    console.print("", LEGEND, sep="\n", highlight=False)


def _table(figures: Mapping[str, Figure]) -> Table:
    columns = ("figure", "value", "", "floor", "ratio", "p50", "p95", "p99", "repeated")
    table = Table(*columns, box=None, pad_edge=False)
    for name, figure in figures.items():
        table.add_row(
            name,
            _number(figure.value),
            figure.unit,
            _number(figure.floor),
            f"{figure.ratio:.2f}",
            *(_number(part) for part in (figure.p50, figure.p95, figure.p99)),
            str(figure.repetitions),
        )
    return table


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name}={_words(part)}" for name, part in value.items())
    return _number(value) if isinstance(value, float) else str(value)
