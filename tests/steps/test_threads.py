"""Threads for what blocks: few for what is quick, and enough for what isn't."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from crew import own_clock

from orchestrator.steps.threads import FEW, Threads


async def test_quick_calls_share_few_threads() -> None:
    threads = Threads()
    jobs = [threads.call(threading.get_ident) for _ in range(500)]
    found = {await job.answer for job in jobs}
    assert len(found) <= threads.alive <= FEW


async def test_calls_that_wait_for_each_other_all_get_a_thread() -> None:
    threads, meeting = Threads(), threading.Barrier(60)
    jobs = [threads.call(lambda: meeting.wait(10)) for _ in range(60)]
    assert {await job.answer for job in jobs} == set(range(60))
    assert 60 <= threads.alive <= 64 + FEW


async def test_a_call_behind_others_that_hang_is_made() -> None:
    threads, end = Threads(), threading.Event()
    hanging = [threads.call(lambda: end.wait(10)) for _ in range(FEW)]
    began = own_clock()
    assert await asyncio.wait_for(threads.call(lambda: 1).answer, 8) == 1
    assert own_clock() - began < 2
    end.set()
    assert all([await job.answer for job in hanging])


async def test_a_call_that_is_given_up_before_it_began_is_never_made() -> None:
    threads, end, made = Threads(), threading.Event(), []
    hanging = [threads.call(lambda: end.wait(10)) for _ in range(FEW)]
    job = threads.call(lambda: made.append(1))
    job.answer.cancel()
    end.set()
    await asyncio.gather(*(one.answer for one in hanging), threads.call(lambda: None).answer)
    assert made == []
    assert not job.is_alive()


async def test_a_call_that_is_given_up_is_alive_until_it_ends() -> None:
    threads, end = Threads(), threading.Event()
    begun = threading.Event()

    def hang() -> Any:
        begun.set()
        return end.wait(10)

    job = threads.call(hang)
    assert await asyncio.to_thread(begun.wait, 5)
    job.answer.cancel()
    assert job.is_alive()
    end.set()
    while job.is_alive():
        await asyncio.sleep(0.001)
