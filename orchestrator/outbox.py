"""What is to leave, over HTTP: where it goes, how far behind that is, and another try."""

from __future__ import annotations

import msgspec

from .wire import Call, Endpoint, Instant


class SinkState(msgspec.Struct):
    """Where messages go. `backlog` and `aside` are counted up to 10,000."""

    name: str
    state: str
    backlog: int
    oldest_seconds: float | None
    aside: int
    problem: str | None
    failed_since: Instant | None


class Retried(msgspec.Struct):
    """How many messages of the tenant were brought back."""

    count: int


async def _retry(call: Call) -> Retried:
    assert call.principal is not None
    place = {"tenant": call.principal.tenant_id, "sink": call.path["sink"]}
    row = await call.app.pool.call_one("retry_messages", **place)
    return Retried(row["retry_messages"])


ENDPOINTS = [
    Endpoint("GET", "/ops/sinks", "list_sinks", returns=list[SinkState], scope="admin",
             summary="Where messages go, and how far behind each place is"),
    Endpoint("POST", "/ops/sinks/{sink}/retry", "retry_messages", returns=Retried, scope="admin",
             handler=_retry, summary="Delivers again what was moved aside"),
]  # fmt: skip
