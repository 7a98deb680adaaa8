"""What pipelines cost: steps of a run, expressions, and calls that wait for others."""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from ..expr import condition, template
from . import floor
from .figure import Figure, rate
from .place import Place
from .stage import NOTHING, stage

RUNS = 30_000
CALLS = 1000
"""At once, of one worker."""

LATENCY = 0.1
"""Seconds until the local server answers: that is what a worker waits with."""


def nothing() -> None:
    """What `three_calls` calls."""


async def three_sets(place: Place) -> Figure:
    """Runs of three pure built-ins (`set`), the later ones with a template; one worker process."""
    steps = [
        {"id": "a", "uses": "set", "with": {"x": 1}},
        {"id": "b", "uses": "set", "with": {"x": "${steps.a.x}"}},
        {"id": "c", "uses": "set", "with": {"x": "${steps.b.x}"}},
    ]
    return await _drained(place, steps)


async def three_calls(place: Place) -> Figure:
    """Runs of three recorded steps (`python.call` of a function that does nothing)."""
    call = {"uses": "python.call", "with": {"function": f"{__name__}:nothing"}}
    steps = [{**call, "id": id} for id in "abc"]
    return await _drained(place, steps, {"ORC_PYTHON_MODULES": __name__})


async def _drained(
    place: Place, steps: list[dict[str, Any]], settings: Mapping[str, str] = NOTHING
) -> Figure:
    count = place.scaled(RUNS, least=200)
    own, bare = [], []
    for _ in range(place.repetitions):
        async with stage(place, steps) as on:
            own.append((await on.drain(count, settings=settings)).rate)
        async with place.database() as url:
            bare.append(await floor.drain(url, count, 1))
    return rate("runs/s", own, bare, steps=3)


async def http_1000(place: Place) -> Figure:
    """Calls (`http.request`) of 1,000 runs at once to a local server that answers after 0.1 s; one
    worker. The floor: as many bare connections."""
    count = place.scaled(10 * CALLS, least=100)
    async with server() as port:
        url = f"http://127.0.0.1:{port}/"
        step = {"id": "a", "uses": "http.request", "with": {"url": url}}
        async with stage(place, [step]) as on:
            own = (await on.drain(count, settings={"ORC_ALLOW_TARGETS": f"127.0.0.1:{port}"})).rate
        bare = await _bare_calls(port, count)
    return rate("calls/s", [own], [bare], at_once=CALLS, server_seconds=LATENCY)


@asynccontextmanager
async def server() -> AsyncIterator[int]:
    """A process of its own."""
    words = ["-P", "-m", f"{__package__}.echo", str(LATENCY)]
    process = await asyncio.create_subprocess_exec(sys.executable, *words, stdout=PIPE)
    try:
        assert process.stdout is not None
        yield int(await process.stdout.readline())
    finally:
        process.kill()
        await process.wait()


async def _bare_calls(port: int, count: int) -> float:
    """Over connections that stay open, without a word more than the protocol asks for."""
    left = iter(range(count))

    async def caller() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in left:
            writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await reader.readuntil(b"{}")
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(min(CALLS, count))))
    return count / (time.perf_counter() - began)


SCOPE = {"steps": {"weather": {"summary": "mild", "temp": 21.5}}}


async def template_us(place: Place) -> Figure:
    """A bare path in a template, `${steps.weather.summary}`. The floor: two look-ups in Python."""
    made = template({"text": "${steps.weather.summary}"})
    return _microseconds(place, lambda: made.render(SCOPE))


async def condition_us(place: Place) -> Figure:
    """A condition in CEL, `steps.weather.temp > 20.0`. The floor is the same in Python."""
    made = condition("steps.weather.temp > 20.0")
    return _microseconds(place, lambda: made.holds(SCOPE))


def _microseconds(place: Place, work: Callable[[], object]) -> Figure:
    count = place.scaled(50_000, least=1000)
    own, bare = [], []
    for _ in range(max(3, place.repetitions)):
        own.append(_timed(work, count))
        bare.append(_timed(lambda: SCOPE["steps"]["weather"], count))
    value, least = statistics.median(own), statistics.median(bare)
    ratio = round(value / least, 3)
    return Figure(round(value, 3), "µs", round(least, 3), ratio, repetitions=len(own))


def _timed(work: Callable[[], object], count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        work()
    return (time.perf_counter() - began) / count * 1e6
