"""Passwords: Argon2id takes much time and memory by design, so few are hashed at once."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from ..errors import Problem, TooMany

T = TypeVar("T")

AT_ONCE, MOST_WAITING = 2, 30


class Passwords:
    """Hashes and compares in its own threads. More than `MOST_WAITING` are told to come later."""

    def __init__(self, hasher: PasswordHasher | None = None) -> None:
        self.hasher = hasher or PasswordHasher()
        self.waiting = 0

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(AT_ONCE, thread_name_prefix="argon2")

    @cached_property
    def _nobodys(self) -> str:
        """What the password of an unknown user is compared with, so that it takes as long."""
        return self.hasher.hash(secrets.token_hex())

    async def hash(self, password: str) -> str:
        return await self._run(lambda: self.hasher.hash(password))

    async def fits(self, hash: str | None, password: str) -> bool:
        """Whether it is the password; without a hash it takes the same time, and isn't."""
        return await self._run(lambda: self._verify(hash, password))

    def is_outdated(self, hash: str) -> bool:
        return self.hasher.check_needs_rehash(hash)

    def _verify(self, hash: str | None, password: str) -> bool:
        try:
            return self.hasher.verify(hash or self._nobodys, password) and hash is not None
        except (VerificationError, InvalidHashError):
            return False

    async def _run(self, work: Callable[[], T]) -> T:
        if self.waiting >= MOST_WAITING:
            text = "Too many passwords are being checked"
            raise Problem(text, kind=TooMany, headers={"Retry-After": "1"})
        self.waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self.waiting -= 1
