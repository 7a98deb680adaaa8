"""`flow.run`: a child run. The parent parks until it ends; with `wait: false` it goes on at once.

The pipeline is the id of one that is stored, or stands here itself; then `$${` writes what the
child is to render. A child that fails or is canceled fails the step. When the parent ends, or goes
on without it, the child is canceled.
"""

from __future__ import annotations

from typing import Any

import msgspec

from . import Context, Kind, Park


class Child(msgspec.Struct, forbid_unknown_fields=True):
    pipeline: str | list[Any] | dict[str, Any]
    input: Any = None
    wait: bool = True
    queue: str | None = None


def run(child: Child, context: Context) -> Park:
    asked = {"kind": "child", "pipeline": child.pipeline, "detached": not child.wait}
    asked |= {"input": child.input} if child.input is not None else {}
    asked |= {"queue": child.queue} if child.queue is not None else {}
    asked |= {"traceparent": context.traceparent} if context.traceparent else {}
    return Park("a child run", wait=asked)


KIND = Kind("flow.run", Child, run, stores=True)
