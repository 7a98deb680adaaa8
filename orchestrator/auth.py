"""Who is calling. One authenticator gives one Principal.

Today there's one kind of credential: the system agent's id as a bearer key, in development and on
loopback only, so that the first curl works as printed.
"""

from __future__ import annotations

import ipaddress
import re

from .errors import NotAllowed, NotFound, Unauthorized
from .wire import App, Call, Endpoint, Principal

SYSTEM_AGENT = "00000000-0000-0000-0000-000000000001"
CHALLENGE = {"WWW-Authenticate": 'Bearer realm="orchestrator"'}


async def authenticate(
    app: App, authorization: str | None, client: str | None, host: str = ""
) -> Principal:
    """The principal behind an `Authorization` header, or `Unauthorized` with what to do."""
    if not authorization:
        raise Unauthorized(
            "A key is required",
            hint="send it as `Authorization: Bearer <key>`; bin/up prints one for development",
            headers=CHALLENGE,
        )
    scheme, _, key = authorization.partition(" ")
    if scheme.lower() == "bearer" and key == SYSTEM_AGENT and _is_at_home(app, client, host):
        return await _principal(app, key)
    raise Unauthorized("This key isn't known here", headers=CHALLENGE)


def _is_at_home(app: App, client: str | None, host: str) -> bool:
    """Whether a development process is called from its own machine, and by one of its own names.

    A web page can make a browser call here under a name that resolves to loopback.
    """
    name = re.sub(r":\d+$", "", host).strip("[]").lower()
    return (
        app.config.development
        and _is_loopback(client)
        and (name == "localhost" or _is_loopback(name))
    )


def _is_loopback(text: str | None) -> bool:
    try:
        return ipaddress.ip_address(text or "").is_loopback
    except ValueError:
        return False


async def _principal(app: App, id: str) -> Principal:
    try:
        row = await app.pool.call_one("whoami", principal=id)
    except NotFound as error:
        raise Unauthorized(
            "The system agent doesn't exist yet", hint="bin/up makes it", headers=CHALLENGE
        ) from error
    return Principal(**{**row, "id": str(row["id"])})


def require(principal: Principal, scope: str) -> None:
    if scope and not principal.may(scope):
        raise NotAllowed(f"This needs the scope {scope}, which {principal.name} doesn't have")


async def _me(call: Call) -> Principal:
    assert call.principal is not None
    return call.principal


ENDPOINTS = [
    Endpoint(
        "GET", "/auth/me", "whoami",
        returns=Principal, scope="", handler=_me, summary="Who this key belongs to",
    ),
]  # fmt: skip
