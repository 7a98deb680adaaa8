"""`webhook.send`: a delivery that is signed as Standard Webhooks says.

Arguments: `url`; `payload` (any JSON value); `secret`, `whsec_…` (base64 of 24 to 64 bytes), or a
list of them while one is replaced; `headers`; `timeout` in seconds (20).

Sends the payload as JSON by POST with `webhook-id`, `webhook-timestamp` and `webhook-signature`:
`v1,` and HMAC-SHA256 over `id.timestamp.body` for each secret. The id is the step's key, so it is
the same on every attempt; the timestamp is the attempt's. Redirects aren't followed.

Result: `{id, status}`. Any 2xx is a delivery; what isn't one is as for `http.request`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import time
import uuid
from typing import Annotated, Any

import msgspec

from ..guard import Answer
from . import Context, Done, Fail, Kind, Outcome
from .answers import ask, verdict


class Delivery(msgspec.Struct, forbid_unknown_fields=True):
    url: str
    payload: Any
    secret: str | list[str]
    headers: dict[str, str] = {}
    timeout: Annotated[float, msgspec.Meta(gt=0, le=600)] = 20.0

    def __post_init__(self) -> None:
        if not self.secret:
            raise ValueError("a delivery needs a secret to be signed with")


async def run(delivery: Delivery, context: Context) -> Outcome:
    secrets = [delivery.secret] if isinstance(delivery.secret, str) else delivery.secret
    try:
        keys = [_key(secret) for secret in secrets]
    except ValueError as error:
        return Fail("validation", str(error))
    body = msgspec.json.encode(delivery.payload)
    signed = sign(keys, id_of(context.key), int(time.time()), body)
    answer = await ask(
        context,
        "POST",
        delivery.url,
        headers={name.lower(): value for name, value in delivery.headers.items()}
        | {"content-type": "application/json"}
        | signed,
        body=body,
        timeout=delivery.timeout,
    )
    if not isinstance(answer, Answer):
        return answer
    if not 200 <= answer.status < 300:
        return verdict(answer, "the receiver")
    return Done({"id": signed["webhook-id"], "status": answer.status})


def id_of(key: str) -> str:
    """The key as it is, unless a dot or a blank in it would blur what is signed."""
    if re.fullmatch(r"[\w:=-]{1,128}", key, re.ASCII):
        return key
    return f"msg_{hashlib.sha256(key.encode()).hexdigest()[:32] if key else uuid.uuid4().hex}"


def sign(keys: list[bytes], id: str, timestamp: int, body: bytes) -> dict[str, str]:
    content = f"{id}.{timestamp}.".encode() + body
    macs = [hmac.new(key, content, hashlib.sha256).digest() for key in keys]
    signature = " ".join(f"v1,{base64.b64encode(mac).decode()}" for mac in macs)
    return {
        "webhook-id": id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": signature,
    }


def _key(secret: str) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not 24 <= len(key) <= 64:
        raise ValueError("a webhook's secret is whsec_ and the base64 of 24 to 64 bytes")
    return key


KIND = Kind("webhook.send", Delivery, run, outside=True, keyed=True)
