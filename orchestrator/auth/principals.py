"""Who is calling. One authenticator gives one Principal.

- `ork_…`: a key of an agent
- three parts with dots between them: a JWT
- the system agent's id: in development and on loopback only, so that the first curl works

Whoever was known half a second ago still is: a busy key costs two look-ups a second, and what is
revoked is refused within a second by every process.
"""

from __future__ import annotations

import hashlib
import ipaddress
import math
import re

from .. import db
from ..config import Config
from ..errors import NotAllowed, NotFound, Unauthorized
from ..telemetry import log
from ..wire import App, Principal
from . import keys
from .passwords import Passwords
from .recent import Recent
from .tokens import Refusal, Tokens

SYSTEM_AGENT = "00000000-0000-0000-0000-000000000001"
CHALLENGE = {"WWW-Authenticate": 'Bearer realm="orchestrator"'}
BELIEVED_SECONDS = 0.5
LONGEST = 8192


class Authenticator:
    """What a process knows of those who call it."""

    def __init__(self, config: Config, pool: db.Pool) -> None:
        self.pool = pool
        self.tokens = Tokens(config, pool)
        self.passwords = Passwords()
        self._known: Recent[bytes, Principal] = Recent(BELIEVED_SECONDS)

    async def principal(self, credential: str) -> Principal:
        """Raises `Unauthorized`, and says the same whatever was wrong."""
        if credential == SYSTEM_AGENT:
            return await self._known.get(b"system", self._system_agent)
        key = keys.id_of(credential)
        if key is None and credential.count(".") != 2:
            raise _unknown()
        look = (
            (lambda: self._of_key(str(key), credential))
            if key
            else (lambda: self._of_token(credential))
        )
        return await self._known.get(hashlib.sha256(credential.encode()).digest(), look)

    async def _system_agent(self) -> tuple[Principal, float]:
        try:
            row = await self.pool.call_one("whoami", principal=SYSTEM_AGENT)
        except NotFound as error:
            raise Unauthorized(
                "The system agent doesn't exist yet", hint="bin/up makes it", headers=CHALLENGE
            ) from error
        return Principal(**{**row, "id": str(row["id"])}), math.inf

    async def _of_key(self, id: str, key: str) -> tuple[Principal, float]:
        rows = await self.pool.call("check_key", id=id, hash=keys.hash_of(key))
        if not rows:
            raise _unknown()
        ends_at = rows[0]["expires_at"]
        return _principal(rows[0]), ends_at.timestamp() if ends_at else math.inf

    async def _of_token(self, token: str) -> tuple[Principal, float]:
        try:
            said = await self.tokens.read(token)
        except Refusal as why:
            log("token_refused", "info", why=str(why)[:200])
            raise _unknown() from None
        rows = await self.pool.call(
            "admit_subject", tenant=said.tenant, subject=said.subject, session=said.session
        )
        if not rows:
            raise _unknown()
        return _principal(rows[0], said.scopes), said.expires_at


def _principal(row: db.Row, scopes: list[str] | None = None) -> Principal:
    return Principal(
        tenant_id=row["tenant_id"],
        id=str(row["principal_id"]),
        kind=row["kind"],
        name=row["name"],
        scopes=row["scopes"] if scopes is None else scopes,
    )


def _unknown() -> Unauthorized:
    return Unauthorized("This key isn't known here", headers=CHALLENGE)


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
    scheme, _, credential = authorization.partition(" ")
    if scheme.lower() != "bearer" or len(credential) > LONGEST or not credential.isascii():
        raise _unknown()
    if credential == SYSTEM_AGENT and not _is_at_home(app, client, host):
        raise _unknown()
    found: Principal = await app.auth.principal(credential)
    return found


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


def require(principal: Principal, scope: str) -> None:
    if scope and not principal.may(scope):
        raise NotAllowed(f"This needs the scope {scope}, which {principal.name} doesn't have")
