"""The project's own benchmark: each figure beside a floor that is measured in the same run.

    bin/bench                               everything, in some minutes
    bin/bench --only drain_1p,pickup        these
    bin/bench --scale 0.1 --json            a tenth of the rows, one JSON object

A floor is bare SQL that does the same row work on the same server, in batches of the same size.
It starts a server of its own in a temporary folder, with the settings of the embedded one and
fsync on, and a fresh database for each repetition; nothing is left at the end.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable

import psycopg
import uvloop

from ..errors import Misconfigured, Problem
from .crowds import fairness, tenants_1000
from .drains import drain_1p, drain_2p, drain_backlog_1m, drain_held_snapshot, drain_history_1m
from .enqueues import enqueue_many, enqueue_one
from .figure import Bench, Figure
from .firing import fire_1000, fire_single
from .lists import list_runs_1m
from .many_tasks import tasks_100k
from .moments import blocked_key, pickup
from .pipelines import condition_us, http_1000, template_us, three_calls, three_sets
from .place import Place, open_place
from .report import note, show, show_json

__all__ = ["FIGURES", "Bench", "Figure", "measure", "run"]

FIGURES: dict[str, Callable[[Place], Awaitable[Figure]]] = {
    measured.__name__: measured
    for measured in (
        enqueue_one,
        enqueue_many,
        drain_1p,
        drain_2p,
        pickup,
        drain_held_snapshot,
        drain_backlog_1m,
        drain_history_1m,
        blocked_key,
        fairness,
        tenants_1000,
        list_runs_1m,
        three_sets,
        three_calls,
        http_1000,
        template_us,
        condition_us,
        fire_1000,
        fire_single,
        tasks_100k,
    )
}


def run(only: list[str], scale: float, as_json: bool) -> int:
    """Measures and prints. The exit status."""
    unknown = [name for name in only if name not in FIGURES]
    if unknown:
        raise Misconfigured(f"no figure {', '.join(unknown)}; there are {', '.join(FIGURES)}")
    if not 0 < scale <= 10:
        raise Misconfigured("--scale is more than 0 and at most 10")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            bench = runner.run(measure(only or list(FIGURES), scale))
        except asyncio.CancelledError:
            return 128 + signal.SIGTERM
    (show_json if as_json else show)(bench)
    return 1 if bench.failures else 0


async def measure(names: list[str], scale: float) -> Bench:
    """A figure that can't be measured is a failure, and the others go on."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with open_place(scale) as place:
        bench = Bench(machine=await place.machine())
        for name in names:
            try:
                with note(name):
                    bench.figures[name] = await FIGURES[name](place)
            except (RuntimeError, TimeoutError, Problem, psycopg.Error) as error:
                bench.failures[name] = f"{type(error).__name__}: {error}"
    return bench
