"""Logins: a password becomes a session, and a session tokens."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec

from ..errors import Unauthorized
from ..wire import Call, Endpoint, Principal, Reply, Request
from .tokens import Refusal

SECRET = {"Cache-Control": "no-store", "Pragma": "no-cache"}
Text = Annotated[str, msgspec.Meta(max_length=1000)]


class LogIn(Request):
    """Name and password, as JSON or as the form of OAuth 2; its other fields mean nothing here."""

    username: Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
    password: Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]
    tenant_id: Annotated[str, msgspec.Meta(min_length=1, max_length=200)] = "default"
    grant_type: Literal["password", ""] = "password"
    scope: Text = ""
    client_id: Text = ""
    client_secret: Text = ""


class Refresh(Request):
    """A refresh token. It is redeemed once: the answer has the next one."""

    refresh_token: Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]
    grant_type: Literal["refresh_token", ""] = "refresh_token"


class LogOut(Request):
    refresh_token: Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]


class TokenPair(msgspec.Struct):
    """Tokens of a session. The access token goes into `Authorization: Bearer`."""

    access_token: str
    refresh_token: str
    token_type: str
    expires_in: int


async def _log_in(call: Call) -> Reply:
    """An unknown name takes as long as a wrong password, and both are answered alike."""
    said, auth, pool = call.body, call.app.auth, call.app.pool
    auth.tokens.require_own()
    found = await pool.call("password_of", tenant=said.tenant_id, name=said.username)
    hash = found[0]["hash"] if found else None
    if not await auth.passwords.fits(hash, said.password):
        raise Unauthorized("The name or the password is wrong")
    place = {"tenant": said.tenant_id, "principal": found[0]["principal_id"]}
    if auth.passwords.is_outdated(hash):
        newer = await auth.passwords.hash(said.password)
        await pool.call("rehash_password", **place, old_hash=hash, new_hash=newer)
    session = (await pool.call_one("begin_session", **place))["begin_session"]
    return await _pair(call, place["tenant"], place["principal"], session, 1)


async def _pair(call: Call, tenant: str, principal: UUID, session: UUID, generation: int) -> Reply:
    tokens = call.app.auth.tokens
    pair = TokenPair(
        await tokens.issue(tenant, str(principal), session),
        tokens.refresh_token(session, generation),
        "bearer",
        tokens.seconds,
    )
    return Reply(body=pair, headers=SECRET)


async def _refresh(call: Call) -> Reply:
    """The token before the present one gets the same answer for ten seconds, for answers that were
    lost on their way. An older one has been stolen, or kept: it ends the session."""
    session, generation = _redeemed(call)
    call.app.auth.tokens.require_own()
    rows = await call.app.pool.call("renew_session", session=session, generation=generation)
    if not rows:
        raise Unauthorized("This session has ended", hint="log in again")
    (row,) = rows
    return await _pair(call, row["tenant_id"], row["principal_id"], session, row["next_generation"])


def _redeemed(call: Call) -> tuple[UUID, int]:
    try:
        session: tuple[UUID, int] = call.app.auth.tokens.read_refresh(call.body.refresh_token)
    except Refusal:
        raise Unauthorized("This isn't a refresh token of ours", hint="log in again") from None
    return session


async def _log_out(call: Call) -> None:
    """Its access tokens end within a second, too. Any refresh token of the session will do."""
    session, _ = _redeemed(call)
    await call.app.pool.call("end_session", session=session)


async def _me(call: Call) -> Any:
    assert call.principal is not None
    return call.principal


ENDPOINTS = [
    Endpoint("POST", "/auth/token", "log_in", LogIn, TokenPair, handler=_log_in, form=True,
             errors=(401, 429), summary="Logs a user in"),
    Endpoint("POST", "/auth/refresh", "renew_session", Refresh, TokenPair, handler=_refresh,
             form=True, errors=(401,), summary="The next tokens of a session"),
    Endpoint("POST", "/auth/logout", "end_session", LogOut, status=204, handler=_log_out,
             errors=(401,), summary="Ends a session"),
    Endpoint("GET", "/auth/me", "whoami", returns=Principal, scope="", handler=_me,
             summary="Who this key belongs to"),
]  # fmt: skip
