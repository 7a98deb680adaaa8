"""`Idempotency-Key`: a POST that is said again is answered as it was, and does nothing more.

The answer is written down in the transaction of what was done. So a first try that failed left
nothing, and the same request is new again; one that was cut off is there whole or not at all.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from psycopg.types.json import Jsonb

from . import db
from .errors import Conflict, Malformed, Problem
from .wire import Call, Endpoint, Reply, encode

KEY = re.compile(r"[\x21-\x7e]{1,255}")
KEPT_BYTES = 8_388_608
"""Of an answer. A larger one would be too long in coming from the database, too."""

SOON = {"Retry-After": "1"}
SECONDS = 60.0
"""How long all calls of a request may take together; each has its own deadline besides."""


class Asked(msgspec.Struct, frozen=True):
    """Whose key it is, and the digest of all that was asked with it."""

    tenant: str
    principal: str
    route: str
    key: str
    fingerprint: bytes


def asked(
    keys: list[str], endpoint: Endpoint, call: Call, target: str, body: bytes
) -> Asked | None:
    """The request as it is recognised; None without a key. Strangers share no keys: without a
    principal, the path says whose it is."""
    if not keys or endpoint.method != "POST":
        return None
    key = keys[0].strip()
    if len(keys) > 1 or not KEY.fullmatch(key):
        text = "the Idempotency-Key has 1 to 255 printable ASCII characters, and stands once"
        raise Malformed(text, detail=[{"loc": ["header", "Idempotency-Key"], "msg": text,
                                       "type": "value"}])  # fmt: skip
    who = call.principal
    route = endpoint.verb if who else f"{endpoint.verb} {digest(target.encode()).hex()}"
    return Asked(
        tenant=who.tenant_id if who else "",
        principal=who.id if who else "",
        route=route,
        key=key,
        fingerprint=digest(f"{endpoint.method} {target}\n".encode() + body),
    )


def digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


class Held:
    """One connection in its transaction, as handlers see a pool."""

    def __init__(self, connection: db.Connection) -> None:
        self.connection = connection

    async def call(self, verb: str, /, **arguments: Any) -> list[db.Row]:
        return await db.call(self.connection, verb, **arguments)

    async def call_one(self, verb: str, /, **arguments: Any) -> db.Row:
        return await db.call_one(self.connection, verb, **arguments)

    async def together(
        self, work: Callable[[db.Connection], Awaitable[Any]], seconds: float | None = None
    ) -> Any:
        return await work(self.connection)


async def once(pool: db.Pool, said: Asked, act: Callable[[Held], Awaitable[Reply]]) -> Reply:
    """What `act` answers, or answered the first time."""
    key = msgspec.structs.asdict(said)
    fingerprint = key.pop("fingerprint")

    async def work(connection: db.Connection) -> Reply:
        row = await db.call_one(connection, "recall_reply", **key, fingerprint=fingerprint)
        if row["state"] != "new":
            return _again(row)
        reply = await act(Held(connection))
        kept = {"status": reply.status, "headers": Jsonb(reply.headers), "run": reply.run,
                "content_type": reply.content_type, "body": _bytes(reply)}  # fmt: skip
        await db.call(connection, "keep_reply", **key, fingerprint=fingerprint, **kept)
        return reply

    return await pool.together(work, SECONDS)


def _bytes(reply: Reply) -> bytes | None:
    """The answer as it is sent; None for one that is shown only once."""
    is_secret = reply.shown_once or "no-store" in reply.headers.get("Cache-Control", "")
    data = reply.body if isinstance(reply.body, bytes) else encode(reply.body)
    return None if is_secret or len(data) > KEPT_BYTES else data


def _again(row: db.Row) -> Reply:
    if row["state"] == "in flight":
        text = "A request with this Idempotency-Key is being answered"
        raise Problem(text, kind=Conflict, hint="ask again in a moment", headers=SOON)
    if row["state"] == "other":
        text = "this Idempotency-Key was used for another request"
        place = {"loc": ["header", "Idempotency-Key"], "msg": text, "type": "value"}
        raise Malformed(f"{text[0].upper()}{text[1:]}", detail=[place], hint="use a new key")
    if row["body"] is None:
        text = "This was done before, and its answer is shown only once"
        raise Problem(text, kind=Conflict, hint="look at what there is, or use a new key")
    return Reply(
        body=row["body"],
        status=row["status"],
        content_type=row["content_type"],
        headers={**row["headers"], "Idempotency-Replayed": "true"},
        run=row["run"] and str(row["run"]),
    )
