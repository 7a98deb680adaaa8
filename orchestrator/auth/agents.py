"""Agents over HTTP, for admins."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

import msgspec
from psycopg.types.json import Jsonb

from ..errors import BadRequest
from ..wire import Call, Endpoint, Instant, Reply, Request
from .principals import SYSTEM_AGENT

UNSET = msgspec.UNSET
Unset = msgspec.UnsetType
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]*$")]
Scope = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_.:*-]{0,99}$")]
Scopes = Annotated[list[Scope], msgspec.Meta(max_length=100)]
Url = Annotated[str, msgspec.Meta(pattern=r"^https?://[^\s\x00-\x20]+$", max_length=2000)]


class CreateAgent(Request):
    """An agent to make. Scope `any` is all of them but `admin`."""

    name: Name
    scopes: Scopes = msgspec.field(default_factory=lambda: ["any"])
    webhook_url: Url | None = None
    expires_at: Instant | None = None  # of its key


class UpdateAgent(Request):
    """What is named changes."""

    name: Name | Unset = UNSET
    scopes: Scopes | Unset = UNSET
    webhook_url: Url | Unset | None = UNSET


class Rotate(Request):
    """The other keys are accepted for `grace_seconds`; `expires_at` is of the new one."""

    expires_at: Instant | None = None
    grace_seconds: Annotated[float, msgspec.Meta(ge=0, le=604_800)] = 0


class DeleteAgent(Request):
    force: bool = False


class Page(Request):
    """The ids of a page are larger than its cursor."""

    cursor: UUID | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=200)] = 50


class LiveKey(msgspec.Struct):
    id: str
    created_at: Instant
    expires_at: Instant | None
    last_used_at: Instant | None


class Listed(msgspec.Struct, kw_only=True):
    """An agent. `last_used_at` is to the minute."""

    id: UUID
    name: str
    scopes: list[str]
    webhook_url: str | None
    disabled: bool
    created_at: Instant
    updated_at: Instant | None
    last_used_at: Instant | None


class Agent(Listed, kw_only=True):
    """An agent with its live keys."""

    keys: list[LiveKey]


class NewAgent(Agent, kw_only=True):
    """An agent and its key, which is shown this once."""

    key: str


class Agents(msgspec.Struct):
    """A page of agents; the next one is after `next_cursor`."""

    items: list[Listed]
    next_cursor: UUID | None


SECRET = {"Cache-Control": "no-store"}


def answer(verb: str, status: int = 200) -> Any:
    """A handler for a verb that answers an object: path, and body as arguments."""

    async def handler(call: Call) -> Reply:
        assert call.principal is not None
        said = msgspec.structs.asdict(call.body) if call.body is not None else {}
        row = await call.app.pool.call_one(
            verb, tenant=call.principal.tenant_id, **call.path, **said
        )
        return Reply(body=row[verb], status=status, headers=SECRET)

    return handler


async def _update(call: Call) -> Any:
    assert call.principal is not None
    changes = {k: v for k, v in msgspec.structs.asdict(call.body).items() if v is not UNSET}
    row = await call.app.pool.call_one(
        "update_agent", tenant=call.principal.tenant_id, **call.path, changes=Jsonb(changes)
    )
    return row["update_agent"]


async def _delete(call: Call) -> None:
    """Its runs and what they did stay. With `force` its active tasks are canceled."""
    principal, agent = call.principal, call.path["agent"]
    assert principal is not None
    if agent == principal.id:
        raise BadRequest("Nobody deletes themselves", hint="let another admin do it")
    if agent == SYSTEM_AGENT and principal.tenant_id == "default":
        raise BadRequest("The system agent can't be deleted", hint="revoke its keys instead")
    await call.app.pool.call(
        "delete_agent", tenant=principal.tenant_id, agent=agent, force=call.query.force
    )


AGENT = "/agents/{agent:uuid}"

ENDPOINTS = [
    Endpoint("POST", "/agents", "create_agent", CreateAgent, NewAgent, scope="admin", status=201,
             handler=answer("create_agent", 201), errors=(409,),
             summary="Makes an agent, and answers its key once"),
    Endpoint("GET", "/agents", "list_agents", query=Page, returns=Agents, scope="admin",
             summary="The agents of the tenant"),
    Endpoint("GET", AGENT, "agent", returns=Agent, scope="admin", handler=answer("agent"),
             summary="An agent and its live keys, without their secrets"),
    Endpoint("PUT", AGENT, "update_agent", UpdateAgent, Agent, scope="admin", handler=_update,
             errors=(409,), summary="Changes the named fields"),
    Endpoint("DELETE", AGENT, "delete_agent", query=DeleteAgent, scope="admin", status=204,
             handler=_delete, errors=(400, 409), summary="Deletes an agent"),
    Endpoint("POST", f"{AGENT}/rotate_key", "rotate_key", Rotate, NewAgent, scope="admin",
             handler=answer("rotate_key"), summary="A new key, answered once"),
    Endpoint("POST", f"{AGENT}/revoke_keys", "revoke_keys", returns=Agent, scope="admin",
             handler=answer("revoke_keys"), summary="Accepts none of its keys any more"),
]  # fmt: skip
