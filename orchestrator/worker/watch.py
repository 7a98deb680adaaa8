"""Who of a run's tasks is awake: when all sleep in waits, the run can be parked."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

Work = Coroutine[Any, Any, Any]


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
        self.all_sleep = asyncio.Event()

    def _sleep(self) -> None:
        self.awake -= 1
        if not self.awake:
            self.all_sleep.set()

    def spawn(self, group: Group, key: Any, work: Work) -> None:
        self.awake += 1
        group.tasks[asyncio.create_task(self._child(group, work))] = key

    async def _child(self, group: Group, work: Work) -> Any:
        try:
            return await work
        finally:
            if group.sleeps:
                group.sleeps = False
            else:
                self.awake -= 1

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
        for task in group.tasks:
            task.cancel()
        if group.tasks:
            await asyncio.wait(group.tasks)

    async def for_ever(self) -> None:
        self._sleep()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.awake += 1
