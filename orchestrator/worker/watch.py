"""Who of a run's tasks is awake: when all sleep in waits, the run can be parked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine
from functools import partial
from typing import Any, TypeVar

Work = Coroutine[Any, Any, Any]
Value = TypeVar("Value")


class Group:
    """Tasks beside each other, and whether their parent sleeps until one of them ends."""

    def __init__(self) -> None:
        self.tasks: dict[asyncio.Task[Any], Any] = {}
        self.sleeps = False


class Watch:
    """Counts exactly, however tasks end: a child that ends is awake in its parent's stead until
    the parent is."""

    def __init__(self) -> None:
        self.awake = 1
        self.quiet = asyncio.get_running_loop().create_future()

    def _sleep(self) -> None:
        self.awake -= 1
        if not self.awake:
            self.stir()

    def stir(self, *_: object) -> None:
        """Whoever waits for quiet looks."""
        if not self.quiet.done():
            self.quiet.set_result(None)

    @property
    def all_sleep(self) -> bool:
        """Now: what was so a moment ago may have ended, because a time was over."""
        if self.awake and self.quiet.done():
            self.quiet = asyncio.get_running_loop().create_future()
        return not self.awake

    def spawn(self, group: Group, key: Any, work: Work) -> None:
        self.awake += 1
        task = asyncio.create_task(work)
        task.add_done_callback(partial(self._ended, group))
        group.tasks[task] = key

    def _ended(self, group: Group, task: asyncio.Task[Any]) -> None:
        """A callback, because a task that is canceled before it began runs no line of its own.
        It may come late, when the parent has seen the end already, and sleeps for others."""
        if group.sleeps and task in group.tasks:
            group.sleeps = False
        else:
            self._sleep()
        if not task.cancelled():
            task.exception()  # heard, even if another one's is what counts

    async def first(self, group: Group) -> list[tuple[Any, asyncio.Task[Any]]]:
        """Sleeps until some of the tasks have ended: these, with their keys."""
        group.sleeps = True
        self._sleep()
        try:
            done, _ = await asyncio.wait(group.tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if group.sleeps:  # it was woken by something else
                group.sleeps = False
                self.awake += 1
        return sorted(((group.tasks.pop(task), task) for task in done), key=lambda one: str(one[0]))

    async def abandon(self, group: Group) -> None:
        """Ends its tasks, and returns when they have, even if it is told to stop meanwhile."""
        told: asyncio.CancelledError | None = None
        for task in group.tasks:
            task.cancel()
        while left := [task for task in group.tasks if not task.done()]:
            try:
                await asyncio.wait(left)
            except asyncio.CancelledError as error:
                told = error
        if told is not None:
            raise told

    async def asleep(self, until: Awaitable[Value]) -> Value:
        """What it gives. If all others sleep, too, the run may be parked meanwhile."""
        self._sleep()
        try:
            return await until
        finally:
            self.awake += 1

    async def for_ever(self) -> None:
        await self.asleep(asyncio.get_running_loop().create_future())
