"""Tokens: which are accepted, and the many that are not."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import jwt
import pytest
from conftest import Make, Running, Serve
from crew import own_clock
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from psycopg.types.json import Jsonb

from orchestrator import auth, db
from orchestrator.auth.tokens import own_key, weakness
from orchestrator.errors import Misconfigured

SECRET = "kX9vQ2mT7wR4zB8nL5jH1cF6gD3sA0pY-eU_iO"
RSA = rsa.generate_private_key(65537, 2048).public_key()
RSA_PEM = RSA.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
ED = Ed25519PrivateKey.generate()
OTHER_ED = Ed25519PrivateKey.generate()
PUBLIC_FORMS = {
    "bytes": ED.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw),
    "PEM": ED.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
    "DER": ED.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
    "base64": base64.b64encode(ED.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)),
}
CLAIMS: dict[str, Any] = {"sub": "ann", "tenant_id": "acme", "exp": 4_000_000_000}


def token(claims: Any = None, key: Any = SECRET, alg: str = "HS256", **headers: Any) -> str:
    return jwt.encode(CLAIMS if claims is None else claims, key, alg, headers=headers or None)


def parts(header: Any, claims: Any = None, signature: bytes = b"x" * 32) -> str:
    """A token by hand, as no library would make it."""
    said = [json.dumps(one).encode() for one in (header, CLAIMS if claims is None else claims)]
    return ".".join(base64.urlsafe_b64encode(p).rstrip(b"=").decode() for p in (*said, signature))


def raw(header: bytes, claims: bytes, key: bytes = SECRET.encode()) -> str:
    """Signed rightly, whatever the bytes of its parts are."""
    import hashlib
    import hmac

    one, two = (base64.urlsafe_b64encode(p).rstrip(b"=") for p in (header, claims))
    signature = hmac.digest(key, one + b"." + two, hashlib.sha256)
    return b".".join([one, two, base64.urlsafe_b64encode(signature).rstrip(b"=")]).decode()


PLAIN = b'{"alg":"HS256","typ":"JWT"}'
HOSTILE: dict[str, str] = {
    "another secret": token(key="another-secret-that-is-long-enough-for-it"),
    "alg none": parts({"alg": "none"}, signature=b""),
    "alg None, with a signature": parts({"alg": "None"}),
    "alg empty": parts({"alg": ""}),
    "alg missing": parts({"typ": "JWT"}),
    "alg a list": parts({"alg": ["HS256"]}),
    "alg a number": parts({"alg": 256}),
    "HS512 by the right secret": token(key=SECRET * 2, alg="HS512"),
    "HS384 by the right secret": token(alg="HS384", key=SECRET + "0123456789"),
    "RS256 by a key of its own": token(
        key=rsa.generate_private_key(65537, 2048), alg="RS256"
    ),
    "EdDSA by a key of its own": token(key=ED, alg="EdDSA"),
    "kid that isn't known": token(kid="nobody"),
    "kid a path": token(kid="../../../../dev/null"),
    "kid SQL": token(kid="x' union select 'kX9v' --"),
    "kid empty": token(kid=""),
    "kid a URL": token(kid="http://127.0.0.1:1/key"),
    "kid NUL": parts({"alg": "HS256", "kid": "a\0b"}),
    "kid a list": parts({"alg": "HS256", "kid": ["a"]}),
    "kid an object": parts({"alg": "HS256", "kid": {"$ne": 1}}),
    "kid huge": token(kid="k" * 3000),
    "kid of an EdDSA key, alg HS256": token(kid="issuer"),
    **{
        f"kid of an EdDSA key, signed HS256 by its public key as {name}": raw(
            b'{"alg":"HS256","kid":"issuer"}', json.dumps(CLAIMS).encode(), key
        )
        for name, key in PUBLIC_FORMS.items()
    },
    "RS256 in the header, signed HS256 by a public key": raw(
        b'{"alg":"RS256"}', json.dumps(CLAIMS).encode(), RSA_PEM
    ),
    "kid of an EdDSA key, signed by another": token(key=OTHER_ED, alg="EdDSA", kid="issuer"),
    "kid of another tenant's issuer": token(key=ED, alg="EdDSA", kid="only-zeta"),
    "kid of a retired key": token(key=ED, alg="EdDSA", kid="retired"),
    "kid of an HS256 key, signed by the bare secret": token(kid="rotated"),
    "jwk in the header": token(
        key="mine-mine-mine-mine-mine-mine-mine-mine", jwk={"kty": "oct", "k": "bWluZQ"}
    ),
    "jku in the header": token(key="mine" * 10, jku="http://127.0.0.1/keys"),
    "x5u in the header": token(key="mine" * 10, x5u="http://127.0.0.1/cert"),
    "crit": raw(b'{"alg":"HS256","crit":["exp"]}', json.dumps(CLAIMS).encode()),
    "zip": raw(b'{"alg":"HS256","zip":"DEF"}', json.dumps(CLAIMS).encode()),
    "b64 false": raw(b'{"alg":"HS256","b64":false,"crit":["b64"]}', json.dumps(CLAIMS).encode()),
    "no exp": token({"sub": "ann", "tenant_id": "acme"}),
    "exp null": token({**CLAIMS, "exp": None}),
    "exp past": token({**CLAIMS, "exp": int(time.time()) - 1}),
    "exp zero": token({**CLAIMS, "exp": 0}),
    "exp negative": token({**CLAIMS, "exp": -1}),
    "exp 1e308": raw(PLAIN, b'{"sub":"ann","tenant_id":"acme","exp":1e308}'),
    "exp 1e400": raw(PLAIN, b'{"sub":"ann","tenant_id":"acme","exp":1e400}'),
    "exp NaN": raw(PLAIN, b'{"sub":"ann","tenant_id":"acme","exp":NaN}'),
    "exp Infinity": raw(PLAIN, b'{"sub":"ann","tenant_id":"acme","exp":Infinity}'),
    "exp of a thousand digits": raw(
        PLAIN, b'{"sub":"ann","tenant_id":"acme","exp":' + b"9" * 1000 + b"}"
    ),
    "exp of five thousand digits": raw(
        PLAIN, b'{"sub":"ann","tenant_id":"acme","exp":' + b"9" * 5000 + b"}"
    ),
    "exp a text": raw(PLAIN, b'{"sub":"ann","tenant_id":"acme","exp":"4000000000"}'),
    "exp true": raw(PLAIN, b'{"sub":"ann","tenant_id":"acme","exp":true}'),
    "exp a list": raw(PLAIN, b'{"sub":"ann","tenant_id":"acme","exp":[4000000000]}'),
    "exp twice": raw(PLAIN, b'{"sub":"ann","tenant_id":"acme","exp":4000000000,"exp":1}'),
    "nbf in an hour": token({**CLAIMS, "nbf": int(time.time()) + 3600}),
    "nbf a text": raw(PLAIN, b'{"sub":"ann","tenant_id":"acme","exp":4000000000,"nbf":"0"}'),
    "iat in an hour": token({**CLAIMS, "iat": int(time.time()) + 3600}),
    "iat 1e308": raw(PLAIN, b'{"sub":"ann","tenant_id":"acme","exp":4000000000,"iat":1e308}'),
    "no sub": token({"tenant_id": "acme", "exp": 4_000_000_000}),
    "sub empty": token({**CLAIMS, "sub": ""}),
    "sub a number": raw(PLAIN, b'{"sub":1,"tenant_id":"acme","exp":4000000000}'),
    "sub null": raw(PLAIN, b'{"sub":null,"tenant_id":"acme","exp":4000000000}'),
    "sub NUL": token({**CLAIMS, "sub": "a\0b"}),
    "sub a line break": token({**CLAIMS, "sub": "a\nb"}),
    "sub a lone surrogate": raw(
        PLAIN, b'{"sub":"\\ud800","tenant_id":"acme","exp":4000000000}'
    ),
    "sub huge": token({**CLAIMS, "sub": "a" * 201}),
    "no tenant": token({"sub": "ann", "exp": 4_000_000_000}),
    "tenant empty": token({**CLAIMS, "tenant_id": ""}),
    "tenant null": token({**CLAIMS, "tenant_id": None}),
    "tenant a list": token({**CLAIMS, "tenant_id": ["acme", "other"]}),
    "tenant huge": token({**CLAIMS, "tenant_id": "t" * 201}),
    "tenant NUL": token({**CLAIMS, "tenant_id": "a\0b"}),
    "refresh as access, by type": token({**CLAIMS, "type": "refresh"}),
    "refresh as access, by token_type": token({**CLAIMS, "token_type": "refresh"}),
    "refresh as access, by token_use": token({**CLAIMS, "token_use": "id"}),
    "refresh as access, of ours": "orr_" + "0" * 32 + "_1_" + "0" * 64,
    "a session that never was": token(
        {**CLAIMS, "sid": "00000000-0000-0000-0000-000000000009"}
    ),
    "a session that is none": token({**CLAIMS, "sid": "x"}),
    "a session that is a list": token({**CLAIMS, "sid": []}),
    "scopes a number": token({**CLAIMS, "scope": 1}),
    "scopes an object": token({**CLAIMS, "scopes": {"admin": True}}),
    "scopes of SQL": token({**CLAIMS, "scopes": ["admin'; drop table tenant; --"]}),
    "claims a list": raw(PLAIN, b"[1]"),
    "claims no JSON": raw(PLAIN, b"{sub: ann}"),
    "claims not UTF-8": raw(PLAIN, b'{"sub":"\xff","tenant_id":"acme","exp":4000000000}'),
    "claims deep": raw(PLAIN, b'{"a":' + b"[" * 2500 + b"]" * 2500 + b"}"),
    "header a list": raw(b"[]", json.dumps(CLAIMS).encode()),
    "header no JSON": raw(b"alg", json.dumps(CLAIMS).encode()),
    "header deep": raw(b'{"alg":"HS256","a":' + b"[" * 2000 + b"]" * 2000 + b"}", b"{}"),
    "no signature": token().rpartition(".")[0] + ".",
    "two parts": token().rpartition(".")[0],
    "four parts": token() + ".x",
    "five parts": token() + ".x.y",
    "dots": "..",
    "not base64": "!!!.???.***",
    "signature cut": token()[:-2],
    "a letter changed": token().replace("e", "f", 1),
    "claims of another token": ".".join(
        [*token().split(".")[:1], token({**CLAIMS, "sub": "bob"}).split(".")[1],
         token().split(".")[2]]
    ),
    "huge": token({**CLAIMS, "x": "y" * 8000}),
    "a key's beginning": "ork_",
    "a key that was never given out": "ork_0123456789abcdef_" + "0" * 48,
    "a key with a wrong checksum": "ork_" + "0" * 16 + "_" + "1" * 48,
    "a key and more": "ork_" + "0" * 16 + "_" + "1" * 48 + "x",
    "the system agent's id in capitals": "00000000-0000-0000-0000-00000000000A",
    "null": "null",
    "undefined": "undefined",
}  # fmt: skip


@pytest.fixture
async def running(serve: Serve, conn: db.Connection) -> Running:
    public = ED.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    for kid, tenant in (("issuer", None), ("only-zeta", "zeta"), ("retired", None)):
        await db.call(
            conn, "add_token_key", kid=kid, algorithm="EdDSA", public_key=public, for_tenant=tenant
        )
    await db.call(conn, "retire_token_key", kid="retired")
    await db.call(conn, "add_token_key", kid="rotated")
    return await serve(app_env="production", jwt_secret=SECRET, rate_limit="none")


async def me(running: Running, credential: str) -> Any:
    headers = {b"Authorization": b"Bearer " + credential.encode("utf-8", "surrogatepass")}
    return await running.client.get("/auth/me", headers=headers)


async def test_hostile_tokens_are_refused_quickly_and_alike(
    running: Running, conn: db.Connection
) -> None:
    before = await counts(conn)
    await me(running, token())  # connections are made, and acme
    wrong = {}
    for name, credential in HOSTILE.items():
        started = own_clock()
        answer = await me(running, credential)
        seconds = own_clock() - started
        said = answer.json()
        if answer.status_code != 401 or seconds > 1 or said["message"] not in SAID:
            wrong[name] = (answer.status_code, said, seconds)
        assert SECRET not in answer.text
        assert (await me(running, token())).status_code == 200, f"the canary after {name}"
    assert wrong == {}
    assert await counts(conn) == (before[0] + 1, before[1] + 1), "nobody else was made"


SAID = {"This key isn't known here", "A key is required"}


async def counts(conn: db.Connection) -> tuple[int, int]:
    cursor = await conn.execute(
        "select (select count(*) from orchestrator.tenant) as t,"
        " (select count(*) from orchestrator.principal) as p"
    )
    row = await cursor.fetchone()
    assert row is not None
    return row["t"], row["p"]


@pytest.mark.parametrize("form", PUBLIC_FORMS)
async def test_a_service_that_signs_by_eddsa_takes_no_hs256_of_its_public_key(
    serve: Serve, form: str
) -> None:
    private = ED.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    running = await serve(jwt_secret=private, jwt_algorithm="EdDSA")
    assert (await me(running, token(key=ED, alg="EdDSA"))).status_code == 200
    forged = raw(PLAIN, json.dumps(CLAIMS).encode(), PUBLIC_FORMS[form])
    assert (await me(running, forged)).status_code == 401


async def test_a_valid_token_makes_its_tenant_once(running: Running, conn: db.Connection) -> None:
    answers = await asyncio.gather(*(me(running, token({**CLAIMS, "n": n})) for n in range(20)))
    assert {answer.status_code for answer in answers} == {200}
    (said,) = {answer.text for answer in answers}
    body = json.loads(said)
    assert (body["tenant_id"], body["name"], body["scopes"]) == ("acme", "token:ann", ["any"])
    other = (await me(running, token({**CLAIMS, "tenant_id": "o'neil & co/ж"}))).json()
    assert other["tenant_id"] == "o'neil & co/ж"
    assert other["id"] != body["id"]


@pytest.mark.parametrize(
    ("scopes", "expected"),
    [("tasks:read runs:read", ["tasks:read", "runs:read"]), (["admin"], ["admin"]), ("", [])],
)
async def test_a_token_may_be_limited_to_scopes(
    running: Running, scopes: Any, expected: list[str]
) -> None:
    assert (await me(running, token({**CLAIMS, "scope": scopes}))).json()["scopes"] == expected


async def test_a_token_cannot_speak_for_an_agent_or_a_user(
    running: Running, conn: db.Connection
) -> None:
    await db.call(conn, "ensure_system_agent")
    said = (
        await me(running, token({**CLAIMS, "tenant_id": "default", "sub": auth.SYSTEM_AGENT}))
    ).json()
    assert said["id"] != auth.SYSTEM_AGENT
    assert said["scopes"] == ["any"]


async def test_keys_are_rotated_by_kid(running: Running, conn: db.Connection) -> None:
    assert (await me(running, token(key=ED, alg="EdDSA", kid="issuer"))).status_code == 200
    zeta = token({**CLAIMS, "tenant_id": "zeta"}, key=ED, alg="EdDSA", kid="only-zeta")
    assert (await me(running, zeta)).status_code == 200
    await db.call(conn, "retire_token_key", kid="issuer")
    await refused_soon(lambda: me(running, token(key=ED, alg="EdDSA", kid="issuer")))
    assert (await me(running, zeta)).status_code == 200


async def refused_soon(ask: Callable[[], Awaitable[Any]]) -> None:
    """Who asks more than a second later is refused, however long a loaded machine takes for it."""
    told = time.monotonic()
    while True:
        asked = time.monotonic()
        if (await ask()).status_code == 401:
            return
        assert asked - told < 1
        await asyncio.sleep(0.02)


async def test_a_disabled_subject_is_refused_within_a_second(
    running: Running, conn: db.Connection
) -> None:
    id = (await me(running, token())).json()["id"]
    changes = Jsonb({"disabled": True})
    await db.call(conn, "update_user", tenant="acme", user=id, changes=changes)
    await refused_soon(lambda: me(running, token()))


async def test_a_token_ends_at_its_time_although_it_is_remembered(running: Running) -> None:
    ends_at = time.time() + 1.5
    short = token({**CLAIMS, "exp": ends_at})
    said = {}
    while (asked := time.time()) < ends_at + 0.1:
        status = (await me(running, short)).status_code
        if asked >= ends_at or time.time() < ends_at:  # else it ended meanwhile
            said[asked >= ends_at] = status
            assert status == (401 if asked >= ends_at else 200)
        await asyncio.sleep(0.02)
    assert said == {False: 200, True: 401}


async def test_without_a_secret_no_token_is_accepted(serve: Serve) -> None:
    running = await serve(app_env="production")
    assert (await me(running, token())).status_code == 401
    body = {"username": "ann", "password": "long enough"}
    answer = await running.client.post("/auth/token", json=body)
    assert answer.status_code == 503
    assert "JWT_SECRET" in answer.json()["details"]["hint"]


@pytest.mark.parametrize(
    "secret",
    ["secret", "s" * 64, "change-me-change-me-change-me-change-me", "abcabcabc" * 8, "x" * 31,
     "your-secret-key-here-please-0123456789", "my-super-example-key-for-all-1234567890"],
)  # fmt: skip
def test_a_weak_secret_keeps_production_from_starting(make: Make, secret: str) -> None:
    assert weakness(secret, "HS256")
    with pytest.raises(Misconfigured, match="JWT_SECRET") as refusal:
        own_key(make.config(app_env="production", jwt_secret=secret))
    assert secret not in str(refusal.value)
    assert own_key(make.config(jwt_secret=secret)), "development may"


def test_a_strong_secret_does_not(make: Make) -> None:
    assert own_key(make.config(app_env="production", jwt_secret=SECRET))


def test_eddsa_needs_a_private_key(make: Make) -> None:
    with pytest.raises(Misconfigured, match="Ed25519"):
        own_key(make.config(jwt_secret=SECRET, jwt_algorithm="EdDSA"))


async def test_missing_is_a_secret_only_when_tokens_are_in_use(
    make: Make, conn: db.Connection
) -> None:
    config = make.config(app_env="production")
    await auth.refuse_missing_secret(config)
    hash = "$argon2id$v=19$m=65536,t=3,p=4$c2FsdA$aGFzaA"
    await db.call(conn, "create_user", tenant="t", name="ann", password_hash=hash)
    with pytest.raises(Misconfigured, match="JWT_SECRET is missing"):
        await auth.refuse_missing_secret(config)
    await auth.refuse_missing_secret(make.config())
    await auth.refuse_missing_secret(make.config(app_env="production", jwt_secret=SECRET))
