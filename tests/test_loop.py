"""The life of a process: turns, rests, wake-ups, drain."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import psycopg
import pytest

from orchestrator import loop as loops
from orchestrator.loop import Loop


async def finished(loop: Loop, within: float = 50.0) -> None:
    async with asyncio.timeout(within):
        await loop.run()


async def test_while_there_is_work_there_is_no_rest() -> None:
    left = 100

    async def once() -> int:
        nonlocal left
        left -= 1
        if left == 0:
            loop.stop()
        return 1

    loop = Loop(once, interval=3600)
    await finished(loop)
    assert left == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_the_loop_after_the_running_turn(number: signal.Signals) -> None:
    ended = []

    async def once() -> int:
        os.kill(os.getpid(), number)
        await asyncio.sleep(0.05)
        ended.append(1)
        return 1

    await finished(Loop(once))
    assert ended == [1]


async def test_a_second_signal_ends_the_running_turn() -> None:
    ended = []

    async def once() -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(60)
        ended.append(1)
        return 1

    await finished(Loop(once, drain=60))
    assert ended == []


async def test_a_turn_that_outlives_its_grace_is_ended() -> None:
    async def once() -> int:
        loop.stop()
        await asyncio.sleep(60)
        return 1

    loop = Loop(once, drain=0.05)
    await finished(loop)


async def test_a_failing_turn_does_not_end_the_loop(capsys: pytest.CaptureFixture[str]) -> None:
    turns: list[int] = []
    errors: list[Exception] = [psycopg.OperationalError("gone"), ValueError("a bug")]

    async def once() -> int:
        turns.append(1)
        if errors:
            raise errors.pop()
        loop.stop()
        return 1

    loop = Loop(once, interval=0.01)
    await finished(loop)
    assert len(turns) == 3
    assert loop.failures == 0


async def test_pauses_grow_with_failures_and_are_bounded() -> None:
    loop = Loop(asyncio.Event().wait, interval=1)
    loop.failures = 1
    assert loop._pause() <= 0.4
    loop.failures = 50
    assert 0.5 * loops.LONGEST_PAUSE <= loop._pause() <= loops.LONGEST_PAUSE


async def test_a_wake_up_ends_the_rest_at_once() -> None:
    turns = asyncio.Semaphore(0)
    bell = asyncio.Event()

    async def once() -> int:
        turns.release()
        return 0

    async def wakes() -> AsyncIterator[None]:
        await bell.wait()
        yield

    loop = Loop(once, interval=3600, wakes=wakes)
    task = asyncio.create_task(loop.run())
    async with asyncio.timeout(50):
        await turns.acquire()
        bell.set()
        await turns.acquire()
        loop.stop()
        await task


async def ask(port: int, path: str) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    line = await reader.readline()
    await reader.read()
    writer.close()
    return line.decode().split(" ", 1)[1].strip()


async def test_the_health_port_tells_live_from_ready(free_tcp_port: int) -> None:
    hang = asyncio.Event()

    async def once() -> int:
        await hang.wait()
        return 0

    loop = Loop(once, health_port=free_tcp_port)
    task = asyncio.create_task(loop.run())
    async with asyncio.timeout(50):
        await listening(free_tcp_port)
        assert await ask(free_tcp_port, "/health/live") == "200 OK"
        assert await ask(free_tcp_port, "/health/ready") == "200 OK"
        assert await ask(free_tcp_port, "/nothing") == "404 Not Found"
        loop.turned_at -= loops.STUCK_SECONDS * 2
        assert await ask(free_tcp_port, "/health/live") == "503 Service Unavailable"
        loop.turned_at += loops.STUCK_SECONDS * 2
        loop.stop()
        assert await ask(free_tcp_port, "/health/ready") == "503 Service Unavailable"
        assert await ask(free_tcp_port, "/health/live") == "200 OK"
        hang.set()
        await task


async def listening(port: int) -> None:
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionError:
            await asyncio.sleep(0.001)
        else:
            writer.close()
            return


async def test_a_stuck_client_of_the_health_port_harms_nobody(free_tcp_port: int) -> None:
    async def once() -> int:
        return 0

    loop = Loop(once, health_port=free_tcp_port)
    task = asyncio.create_task(loop.run())
    async with asyncio.timeout(50):
        await listening(free_tcp_port)
        reader, writer = await asyncio.open_connection("127.0.0.1", free_tcp_port)
        assert await ask(free_tcp_port, "/health/live") == "200 OK"
        assert await reader.read() == b"", "it hangs up on who says nothing"
        writer.close()
        loop.stop()
        await task
