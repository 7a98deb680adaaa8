"""Tokens: JWT that say who acts, and refresh tokens that get the next one.

A key has one algorithm, and the token's header is only compared with it. A token without `kid` is
signed with JWT_SECRET, by JWT_ALGORITHM; one with `kid` by that key of `orchestrator.token_key`.
What isn't as it should be is `Refusal`: whoever catches it answers 401, and says no more.

A refresh token is `orr_<session>_<generation>_<MAC>`: the same whenever it is made, so that equal
redemptions get equal answers although nothing of it is stored.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import secrets
import time
import uuid
import warnings
from typing import Any

import jwt
import msgspec
import psycopg
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from jwt.warnings import InsecureKeyLengthWarning

from .. import db
from ..config import Config
from ..errors import Misconfigured, Unavailable
from .recent import Recent

LONGEST = 8192
SHORTEST_SECRET = 32
LAST = 253_402_300_800  # the year 10000
SKEW_SECONDS = 5.0
"""How far the clock of another issuer may be ahead."""

KEYS_SECONDS = 0.4
REFRESH = re.compile(r"(orr_([0-9a-f]{32})_([1-9][0-9]{0,8}))_([0-9a-f]{64})", re.ASCII)
KID = re.compile(r"[A-Za-z0-9._-]{1,100}", re.ASCII)
SCOPE = re.compile(r"[a-z][a-z0-9_.:*-]{0,99}", re.ASCII)
OBVIOUS = re.compile(r"change.?(me|this|in)|your.?(secret|jwt)|secret.?key|example|password", re.I)
ACCESS = {"access", "bearer", "at+jwt", "jwt"}

warnings.filterwarnings("ignore", category=InsecureKeyLengthWarning)  # development may be short


class Refusal(Exception):
    """Why a token isn't accepted: for the log, not for its bearer."""


class Claims(msgspec.Struct, frozen=True):
    tenant: str
    subject: str
    expires_at: float
    session: str | None = None
    scopes: list[str] | None = None  # what the token is limited to


class Key(msgspec.Struct, frozen=True):
    algorithm: str
    verifies: Any
    signs: Any = None
    kid: str | None = None
    for_tenant: str | None = None


def weakness(secret: str, algorithm: str) -> str | None:
    """Why a secret can't be used outside development."""
    if algorithm == "EdDSA":
        return None
    if len(secret.encode()) < SHORTEST_SECRET:
        return f"has {len(secret.encode())} bytes and needs {SHORTEST_SECRET}"
    if len(set(secret)) < 10 or OBVIOUS.search(secret):
        return "can be guessed"
    return None


def own_key(config: Config) -> Key | None:
    """The key of JWT_SECRET. Development without one has a key of its own, until it ends."""
    secret = config.jwt_secret
    if not secret and not config.development:
        return None
    if config.jwt_algorithm == "EdDSA" and secret:
        private = _private(secret)
        return Key("EdDSA", private.public_key(), private)
    if secret and not config.development and (why := weakness(secret, "HS256")):
        raise Misconfigured(f"JWT_SECRET {why}: make one by `openssl rand -base64 48`")
    used = secret or secrets.token_urlsafe(48)
    return Key("HS256", used, used)


def _private(text: str) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(text.replace("\\n", "\n").encode(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        way_out = "make one by `openssl genpkey -algorithm ed25519`"
        raise Misconfigured(
            f"JWT_SECRET must be an Ed25519 private key in PEM for EdDSA: {way_out}"
        )
    return key


async def refuse_missing_secret(config: Config) -> None:
    """Raises Misconfigured when there are logins and nothing to sign their tokens with."""
    if own_key(config) is not None:
        return
    try:
        where = db.connect(config.database_url, role=None if config.database_pooler else "orc_api",
                           pooler=config.database_pooler)  # fmt: skip
        async with await where as connection:
            row = await db.call_one(connection, "uses_tokens")
    except (psycopg.Error, Unavailable):
        return  # without a secret no token is accepted anyway
    if row["uses_tokens"]:
        raise Misconfigured(
            "JWT_SECRET is missing, and there are users or token keys: set it to what signed their"
            " tokens, or make one by `openssl rand -base64 48`"
        )


class Tokens:
    """Makes tokens and reads them."""

    def __init__(self, config: Config, pool: db.Pool) -> None:
        self.own = own_key(config)
        self.seconds = config.jwt_expire_minutes * 60
        self.pool = pool
        self._kept: Recent[str, list[Key]] = Recent(KEYS_SECONDS)
        material = config.jwt_secret or (self.own.signs if self.own else secrets.token_hex())
        self._mac_key = hashlib.sha256(b"orchestrator refresh:" + material.encode()).digest()

    async def issue(self, tenant: str, subject: str, session: uuid.UUID) -> str:
        """An access token. It is good for as long as its session, too."""
        now = int(time.time())
        key = await self._signing_key()
        claims = {
            "sub": subject, "tenant_id": tenant, "sid": str(session), "iat": now,
            "exp": now + self.seconds, "jti": secrets.token_hex(8), "type": "access",
        }  # fmt: skip
        headers = {"kid": key.kid} if key.kid else None
        return jwt.encode(claims, key.signs, algorithm=key.algorithm, headers=headers)

    def require_own(self) -> Key:
        if self.own is None:
            raise Unavailable("Logins are off", hint="let the operator set JWT_SECRET")
        return self.own

    async def _signing_key(self) -> Key:
        own = self.require_own()
        if own.algorithm == "HS256":
            own = next((key for key in await self._keys() if key.signs), own)
        return own

    async def read(self, token: str) -> Claims:
        """What a token says, or `Refusal`."""
        if len(token) > LONGEST or token.count(".") != 2 or not token.isascii():
            raise Refusal("no token")
        try:
            header = jwt.get_unverified_header(token)
            key = await self._key_of(header)
            claims = jwt.decode(token, key.verifies, [key.algorithm], options=UNCHECKED)
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
            raise Refusal(str(error)) from error
        return _claims(claims, key)

    async def _key_of(self, header: dict[str, Any]) -> Key:
        kid, key = header.get("kid"), self.own
        if "crit" in header or "zip" in header or "b64" in header:
            raise Refusal("a header that isn't known")
        if kid is not None:
            if not isinstance(kid, str) or not KID.fullmatch(kid):
                raise Refusal("no kid of ours")
            key = next((one for one in await self._keys() if one.kid == kid), None)
        if key is None or header.get("alg") != key.algorithm:
            raise Refusal("no key of that algorithm")
        return key

    async def _keys(self) -> list[Key]:
        async def look() -> tuple[list[Key], float]:
            rows = await self.pool.call("token_keys")
            return [key for row in rows if (key := self._of(row))], math.inf

        return await self._kept.get("", look)

    def _of(self, row: db.Row) -> Key | None:
        material, named = (
            bytes(row["material"]),
            {"kid": row["kid"], "for_tenant": row["for_tenant"]},
        )
        if row["algorithm"] == "EdDSA":
            return Key("EdDSA", Ed25519PublicKey.from_public_bytes(material), **named)
        if self.own is None or self.own.algorithm != "HS256":
            return None
        secret = hmac.digest(self.own.signs.encode(), material, "sha256")
        return Key("HS256", secret, secret, **named)

    def refresh_token(self, session: uuid.UUID, generation: int) -> str:
        said = f"orr_{session.hex}_{generation}"
        return f"{said}_{self._mac(said)}"

    def read_refresh(self, token: str) -> tuple[uuid.UUID, int]:
        """The session and the generation of a refresh token of ours, or `Refusal`."""
        found = REFRESH.fullmatch(token)
        if found is None or not hmac.compare_digest(self._mac(found[1]), found[4]):
            raise Refusal("no refresh token of ours")
        return uuid.UUID(found[2]), int(found[3])

    def _mac(self, said: str) -> str:
        return hmac.digest(self._mac_key, said.encode(), "sha256").hex()


UNCHECKED: Any = {
    f"verify_{name}": False for name in ("exp", "nbf", "iat", "aud", "iss", "sub", "jti")
}
"""Claims are checked here: PyJWT takes an `exp` of 1e308, and a number in quotes."""


def _claims(said: dict[str, Any], key: Key) -> Claims:
    now = time.time()
    expires_at = _instant(said, "exp")
    if expires_at is None or expires_at <= now:
        raise Refusal("expired")
    for name in ("nbf", "iat"):
        if (_instant(said, name) or 0) > now + SKEW_SECONDS:
            raise Refusal(f"{name} is to come")
    if any(
        str(said.get(n, "access")).lower() not in ACCESS
        for n in ("type", "typ", "token_type", "token_use")
    ):
        raise Refusal("no access token")
    tenant, subject = _text(said, "tenant_id"), _text(said, "sub")
    if key.for_tenant not in (None, tenant):
        raise Refusal("the key of another tenant")
    session = _session(said) if key.signs else None
    return Claims(tenant, subject, expires_at, session, _scopes(said))


def _instant(said: dict[str, Any], name: str) -> float | None:
    value = said.get(name)
    if value is None and name not in said:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < LAST:
        raise Refusal(f"{name} is no time")
    return float(value)


def _text(said: dict[str, Any], name: str) -> str:
    value = said.get(name)
    if not isinstance(value, str) or not 1 <= len(value) <= 200 or not value.isprintable():
        raise Refusal(f"{name} isn't 1 to 200 characters")
    return value


def _session(said: dict[str, Any]) -> str | None:
    try:
        return str(uuid.UUID(said["sid"])) if "sid" in said else None
    except (ValueError, AttributeError, TypeError):
        raise Refusal("sid is no session") from None


def _scopes(said: dict[str, Any]) -> list[str] | None:
    given = said.get("scope", said.get("scopes"))
    words = given.split() if isinstance(given, str) else given
    if words is None:
        return None
    if not isinstance(words, list) or len(words) > 100:
        raise Refusal("no scopes")
    if not all(isinstance(word, str) and SCOPE.fullmatch(word) for word in words):
        raise Refusal("no scopes")
    return words
