"""Step kinds: one file each, with a config Struct and `run(config, context) -> Outcome`.

A pure kind is a plain function that neither waits nor touches anything outside: a run of pure steps
is executed where it arrives, without a task and without a round trip.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, Protocol

import msgspec

from ..config import Config
from ..secrets import Masks, Vault


class Done(msgspec.Struct):
    value: Any = None


class Retry(msgspec.Struct):
    """It may work another time: a timeout, a refused connection, a 503."""

    type: str
    message: str
    delay: float | None = None


class Fail(msgspec.Struct):
    """Trying again can't help: bad arguments, an assertion, a refusal."""

    type: str
    message: str


class Park(msgspec.Struct):
    """Holds no worker until it is woken, or until a time; or until the wait is met."""

    waiting_for: str
    until: str | None = None
    wait: dict[str, Any] | None = None  # as orc._register_wait takes it


Outcome = Done | Retry | Fail | Park


class Call(Protocol):
    """Something that can't be stopped, and takes a slot until it ends."""

    def is_alive(self) -> bool: ...


NO_MASKS = Masks()


class Context(msgspec.Struct):
    """What a step may know of its run, and what it leaves: lines, calls that outlive it."""

    config: Config
    tenant: str
    run: str
    epoch: int
    attempt: int
    input: Any
    steps: dict[str, Any]
    lines: list[dict[str, Any]] = []
    calls: list[Call] = []
    vault: Vault | None = None  # the secrets that its pipeline names
    worker: str = ""  # who holds the run
    record: dict[str, Any] | None = None  # what is recorded when the step has succeeded
    seconds: float | None = None  # how long its attempt may take
    events: list[dict[str, Any]] = []  # published with the record of the step
    key: str = ""  # sent with what the step asks of others, the same on every attempt
    traceparent: str | None = None

    @property
    def masks(self) -> Masks:
        """What must not be seen of it."""
        return NO_MASKS if self.vault is None else self.vault.masks


current: ContextVar[Context] = ContextVar("current")
"""The run that a function was called for, for functions that want to know."""


class Kind(msgspec.Struct, frozen=True):
    """`outside`: it can't be taken back, so its intent is written down before. `keyed`: it sends
    the step's key, so doing it twice does no harm. `recorded`: its answer is kept, and it isn't
    done again when the run is taken up; what isn't recorded must give the same answer again.
    `records_itself`: it records its answer in the transaction of what it does, so what it did is
    never unknown; `output` and `schema` are then applied to what was recorded. `fixed`: arguments
    that aren't templates, because text that is put into them would become a part of a program.
    `caches`: what its arguments ask to be cached by, and for how many seconds, or None.
    `stores`: what it's given becomes a fact of ours (the input of a run, an event), so it takes no
    secrets; pure kinds take none, either. `needs`: the setting without which it does nothing.
    `inner`: the core writes the pipelines that use it, and nobody is told of it."""

    name: str
    arguments: Any  # a Struct, or a dict of anything
    run: Callable[[Any, Context], Outcome | Awaitable[Outcome]]
    pure: bool = False
    recorded: bool = True
    outside: bool = False
    keyed: bool = False
    records_itself: bool = False
    fixed: tuple[str, ...] = ()
    stores: bool = False
    caches: Callable[[Any], tuple[Any, float] | None] | None = None
    needs: str = ""
    inner: bool = False

    @property
    def keeps_arguments(self) -> bool:
        return self.pure or self.stores


def words(error: BaseException) -> str:
    """An exception as text, even when it can't say what it is."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return type(error).__name__


def kinds() -> dict[str, Kind]:
    """The built-in ones, and those of installed distributions."""
    from .plugins import plugins

    return {**{name: plugin.kind for name, plugin in plugins().items()}, **builtins()}


def builtins() -> dict[str, Kind]:
    from . import (
        assertion,
        condition,
        email_send,
        event_emit,
        flow_run,
        http_request,
        llm_complete,
        log_write,
        python_call,
        setting,
        shell_run,
        slack_post,
        sql_query,
        webhook_send,
    )

    files = [
        setting,
        assertion,
        log_write,
        python_call,
        shell_run,
        event_emit,
        condition,
        flow_run,
        http_request,
        webhook_send,
        slack_post,
        llm_complete,
        email_send,
        sql_query,
    ]
    return {file.KIND.name: file.KIND for file in files}


def find(uses: str, config: Config) -> Kind | None:
    """The kind of an operator's tool, whose address has a dot or may be in the catalogue."""
    from . import tool

    return tool.kind(uses) if "." in uses or config.tool_catalog_path else None


async def close() -> None:
    """Ends what the kinds keep warm on this loop, within a few seconds."""
    from .. import guard, secrets
    from . import mcp, sql_session

    await mcp.close()
    await guard.close()
    await sql_session.close()
    await secrets.close()
