"""Users over HTTP, for admins."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

import msgspec
from psycopg.types.json import Jsonb

from ..wire import Call, Endpoint, Instant, Request
from .agents import UNSET, Name, Page, Scopes, Unset

Password = Annotated[str, msgspec.Meta(min_length=8, max_length=1000)]


class CreateUser(Request):
    """A user to make. Scope `any` is all of them but `admin`."""

    name: Name
    password: Password
    scopes: Scopes = msgspec.field(default_factory=lambda: ["any"])


class UpdateUser(Request):
    """What is named changes. A new password, or `disabled`, ends the user's sessions."""

    password: Password | Unset = UNSET
    scopes: Scopes | Unset = UNSET
    disabled: bool | Unset = UNSET


class User(msgspec.Struct):
    """A user. An external one is known by the tokens of another issuer, and has no password."""

    id: UUID
    name: str
    scopes: list[str]
    disabled: bool
    created_at: Instant
    is_external: bool


class Users(msgspec.Struct):
    """A page of users; the next one is after `next_cursor`."""

    items: list[User]
    next_cursor: UUID | None


async def _create(call: Call) -> Any:
    assert call.principal is not None
    said = call.body
    row = await call.app.pool.call_one(
        "create_user", tenant=call.principal.tenant_id, name=said.name, scopes=said.scopes,
        password_hash=await call.app.auth.passwords.hash(said.password),
    )  # fmt: skip
    return row["create_user"]


async def _update(call: Call) -> Any:
    assert call.principal is not None
    changes = {k: v for k, v in msgspec.structs.asdict(call.body).items() if v is not UNSET}
    place = {"tenant": call.principal.tenant_id, **call.path}
    if "password" in changes:
        await call.app.pool.call_one("user", **place)  # a 404 costs no hash
        changes["password_hash"] = await call.app.auth.passwords.hash(changes.pop("password"))
    return (await call.app.pool.call_one("update_user", **place, changes=Jsonb(changes)))[
        "update_user"
    ]


ENDPOINTS = [
    Endpoint("POST", "/auth/users", "create_user", CreateUser, User, scope="admin", status=201,
             handler=_create, errors=(409, 429), summary="Makes a user with a password"),
    Endpoint("GET", "/auth/users", "list_users", query=Page, returns=Users, scope="admin",
             summary="The users of the tenant"),
    Endpoint("PATCH", "/auth/users/{user:uuid}", "update_user", UpdateUser, User, scope="admin",
             handler=_update, errors=(409, 429), summary="Changes the named fields of a user"),
]  # fmt: skip
