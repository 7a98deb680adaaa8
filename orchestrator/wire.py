"""What crosses the wire: bytes to types, types to bytes, and the one error body.

Everything that arrives is bounded before it is read: bytes, depth, encoding and characters that
Postgres can't keep. A bad body is answered with all of its problems at once, each with its place.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from http import HTTPStatus
from itertools import accumulate
from typing import Annotated, Any, Protocol, TypedDict, get_args, get_origin
from urllib.parse import parse_qsl

import msgspec
import psycopg
from psycopg import errors as pg

from .config import Config
from .db import Clock, Pool
from .errors import (
    Conflict,
    Invalid,
    Malformed,
    Problem,
    Refused,
    Unavailable,
    is_lost,
    is_rolled_back,
)
from .telemetry import log

MAX_DEPTH = 32
"""The same bound as `orchestrator.json_is_bounded` in Postgres."""

STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*"', re.S)
NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
SIGNS = bytes.maketrans(b"[]{}", b"\x01\xff\x01\xff")
NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


Instant = Annotated[datetime, msgspec.Meta(tz=True)]
"""A point in time: never without its zone."""

Limit = Annotated[int, msgspec.Meta(ge=1, le=200)]
Offset = Annotated[int, msgspec.Meta(ge=0, le=10_000)]
"""Of a page. What lies further on is reached by the cursor of the page before."""


class Place(TypedDict):
    """One problem of a request: where, what, and what kind."""

    loc: list[str | int]
    msg: str
    type: str


def has_scope(own: Sequence[str], scope: str) -> bool:
    """As `orc._has_scope`: any is all but admin, admin is all."""
    return scope in own or "admin" in own or (scope != "admin" and "any" in own)


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """Who acts, for which tenant, and what they may do."""

    tenant_id: str
    id: str
    kind: str
    name: str
    scopes: list[str]

    def may(self, scope: str) -> bool:
        return has_scope(self.scopes, scope)


class Reply(msgspec.Struct, kw_only=True):
    """An answer that isn't plain JSON with the endpoint's status."""

    body: Any = None
    status: int = 200
    content_type: str = "application/json"
    headers: dict[str, str] = {}
    run: str | None = None  # that it started, for a caller who would wait
    shown_once: bool = False  # it has a secret, and isn't kept to be shown again


class Stream(msgspec.Struct):
    """An answer without an end: its frames, and what is to be done when nobody reads any more."""

    frames: AsyncIterator[bytes]
    close: Callable[[], None]


class App(Protocol):
    """The process that answers, as a vertical's handler sees it."""

    config: Config
    pool: Pool
    clock: Clock
    started_at: float
    draining: bool
    gauges: Any
    streams: Any
    waiting: Any
    auth: Any

    async def redis(self) -> Any: ...

    async def pipeline_problems(self, document: Any, loc: list[str | int]) -> list[Place]: ...

    async def condition_problems(self, source: str, roots: Sequence[str]) -> list[Place]: ...

    async def steps_before(self, document: Any, step: str) -> list[str]: ...


class Call(msgspec.Struct, kw_only=True):
    """One request, decoded and authenticated."""

    app: App
    path: dict[str, str] = {}
    headers: Mapping[str, str] = {}
    query: Any = None
    body: Any = None
    principal: Principal | None = None


Handler = Callable[[Call], Awaitable[Any]]


class Endpoint(msgspec.Struct, frozen=True):
    """A row of a vertical's table: a route and the verb that answers it."""

    method: str
    path: str
    verb: str
    body: Any = None
    returns: Any = None
    query: Any = None
    scope: str | None = None  # what the caller needs; "" is any known caller, None is everyone
    status: int = 200
    handler: Handler | None = None
    summary: str = ""
    content_type: str = "application/json"
    errors: tuple[int, ...] = ()
    form: bool = False  # whether the body may come as a form, too
    of_tenant: bool = True  # its verb takes the caller's tenant
    bodies: dict[str, Any] = {}  # what the body is when it's of another content type
    group: str = ""  # where it stands in the documentation, unless under the first word of its path
    finished: Callable[[Any, Any], Any] | None = None  # the body when its run has ended, too
    body_limit: int = 0  # in bytes, where it is more than any route takes

    @property
    def tag(self) -> str:
        words = [word for word in re.split("[/:]", self.path) if word not in {"", "v1", "api"}]
        return self.group or words[0]


class Request(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The base of every body and query: an unknown field is an error, never ignored."""


def encode(value: Any) -> bytes:
    return msgspec.json.encode(value)


@cache
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


def decode(data: bytes, kind: Any = Any) -> Any:
    """The value, or `Malformed` with every problem of it."""
    _refuse_hostile(data)
    try:
        return _decoder(kind).decode(data)
    except msgspec.ValidationError as error:
        raise _malformed(_problems_of_json(data, kind, error), "body") from None
    except UnicodeDecodeError:
        raise _malformed([_place([], "the body isn't UTF-8", "encoding")], "body") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise _malformed([_place([], f"not JSON: {error}", "syntax")], "body") from None


def convert(values: Mapping[str, Any], kind: Any, where: str) -> Any:
    """Texts of a query or a path into their types."""
    if any("\0" in name or "\0" in str(value) for name, value in values.items()):
        raise _malformed([_place([], "a NUL character can't be kept", "character")], where)
    if values and (lax := [*_too_lax(values, kind)]):
        raise _malformed(lax, where)
    try:
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        found = list(_problems(values, kind, [], strict=False)) or [_whole(error)]
        raise _malformed(found, where) from None


def _too_lax(values: Mapping[str, Any], kind: Any) -> Iterator[Place]:
    """msgspec would take `null` for nothing, and numbers for seconds since 1970, or yes and no."""
    for field in msgspec.structs.fields(kind):
        text, bare = str(values.get(field.encode_name, "")), _bare(field.type, 1)[0]
        if text.lower() == "null" and bare is not str:
            yield _place([field.encode_name], "null is nothing: leave it out", "value")
        elif text and bare is datetime and "T" not in text.upper():
            text = "expected a time such as 2026-03-01T08:30:00Z"
            yield _place([field.encode_name], text, "value")
        elif text and bare is bool and text not in {"true", "false"}:
            yield _place([field.encode_name], "expected true or false", "value")


def typed(value: Any, kind: Any, where: str = "body") -> Any:
    """A value that came with others, as a type of its own."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise _malformed(list(_problems(value, kind, [])) or [_whole(error)], where) from None


def read_form(data: bytes) -> dict[str, str]:
    """The fields of a form, each once."""
    try:
        pairs = parse_qsl(
            data.decode(), keep_blank_values=True, errors="strict", max_num_fields=100
        )
    except ValueError:
        raise _malformed([_place([], "not a form in UTF-8", "syntax")], "body") from None
    if len(fields := dict(pairs)) != len(pairs):
        raise _malformed([_place([], "a field is given more than once", "syntax")], "body")
    return fields


def _refuse_hostile(data: bytes) -> None:
    if is_too_deep(data):
        text = f"nested deeper than {MAX_DEPTH} levels"
        raise _malformed([_place([], text, "depth")], "body")
    if b"\\u0000" in data and NUL.search(data):
        raise _malformed([_place([], "a NUL character can't be kept", "character")], "body")


LARGEST = 1 << 20
"""Bytes of a value that is kept as it is."""

VAST = re.compile(rb"[0-9]{309}")


def unkeepable(
    value: Any, limit: int = LARGEST, hook: Callable[[Any], Any] | None = None
) -> str | None:
    """Why Postgres, or whoever reads it there, can't take a value; None when they can."""
    try:
        data = msgspec.json.encode(value, enc_hook=hook)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        return f"it isn't JSON: {error}"
    if len(data) > limit:
        return f"it has {len(data):,} bytes, and the limit is {limit:,}"
    if len(data) > 300 and VAST.search(data) and VAST.search(STRINGS.sub(b"", data)):
        return "it has a number over 1e308"
    if b"\\u0000" in data and NUL.search(data):
        return "it has a NUL character"
    return f"it is nested deeper than {MAX_DEPTH} levels" if is_too_deep(data) else None


def is_too_deep(data: bytes, limit: int = MAX_DEPTH) -> bool:
    if data.count(b"[") + data.count(b"{") <= limit:
        return False
    steps = STRINGS.sub(b"", data).translate(SIGNS, NOT_BRACKETS)
    return max(accumulate(memoryview(steps).cast("b")), default=0) > limit


MOST_PROBLEMS = 100
"""More aren't told at once."""


def _malformed(places: list[Place], where: str) -> Malformed:
    count = f"{len(places)} problems" if len(places) > 1 else places[0]["msg"]
    told = places[:MOST_PROBLEMS]
    for place in told:
        place["loc"].insert(0, where)
    return Malformed(f"The {where} can't be used: {count}", detail=told)


def _place(loc: Sequence[str | int], msg: str, kind: str) -> Place:
    return {"loc": list(loc), "msg": msg, "type": kind}


def _problems_of_json(data: bytes, kind: Any, error: msgspec.ValidationError) -> list[Place]:
    try:
        value = msgspec.json.decode(data)
    except msgspec.ValidationError as number:  # out of range for Python
        return [_whole(number)]
    except UnicodeDecodeError:  # behind what was wrong first
        return [_place([], "the body isn't UTF-8", "encoding")]
    except (msgspec.DecodeError, RecursionError) as syntax:  # it comes behind what was wrong first
        return [_place([], f"not JSON: {syntax}", "syntax")]
    return list(_problems(value, kind, [])) or [_whole(error)]


def _problems(value: Any, kind: Any, loc: list[str | int], strict: bool = True) -> Iterator[Place]:
    """Walks value and type side by side, so that one bad field doesn't hide the next."""
    bare, extra = _bare(kind, value)
    if isinstance(bare, type) and issubclass(bare, msgspec.Struct) and isinstance(value, Mapping):
        yield from _problems_of_struct(value, bare, loc, strict)
    elif get_origin(bare) is list and isinstance(value, list) and not extra:
        for index, item in enumerate(value):
            yield from _problems(item, get_args(bare)[0], [*loc, index], strict)
    else:
        try:
            msgspec.convert(value, kind, strict=strict)
        except msgspec.ValidationError as error:
            yield _whole(error, loc)


def _problems_of_struct(
    value: Mapping[str, Any], kind: type[msgspec.Struct], loc: list[str | int], strict: bool
) -> Iterator[Place]:
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    for name, field in fields.items():
        if name in value:
            yield from _problems(value[name], field.type, [*loc, name], strict)
        elif field.required:
            yield _place([*loc, name], "this field is required", "missing")
    if kind.__struct_config__.forbid_unknown_fields:
        for name in value.keys() - fields.keys():
            yield _place([*loc, name], "there is no such field", "unknown_field")


def _bare(kind: Any, value: Any) -> tuple[Any, bool]:
    """The type without `Annotated` and `| None`, and whether it carried constraints."""
    extra = False
    while True:
        origin = get_origin(kind)
        if origin is Annotated:
            kind, extra = get_args(kind)[0], True
        elif origin in (typing.Union, types.UnionType) and value is not None:
            members = [m for m in get_args(kind) if m not in (type(None), msgspec.UnsetType)]
            if len(members) != 1:
                return kind, extra
            kind = members[0]
        else:
            return kind, extra


INNER_PATH = re.compile(r" - at `([^`]*)`$")
STEPS = re.compile(r"\.(\w+)|\[(\d+)\]")


def _whole(error: msgspec.ValidationError, loc: Sequence[str | int] = ()) -> Place:
    """msgspec's own sentence, with the path that it names moved to where it belongs."""
    text = str(error)
    path: list[str | int] = list(loc)
    if found := INNER_PATH.search(text):
        text = text[: found.start()]
        path += [name or int(index) for name, index in STEPS.findall(found[1])]
    kind = "type" if text.startswith("Expected") and ", got" in text else "value"
    return _place(path, text[:1].lower() + text[1:], kind)


class ProblemBody(msgspec.Struct):
    """The one error body: RFC 9457 and the names that our users rely on."""

    type: str
    title: str
    status: int
    instance: str
    error: str
    message: str
    detail: str | list[Place]
    details: dict[str, Any]
    request_id: str
    timestamp: Instant


def problem(error: Problem, instance: str, request_id: str) -> ProblemBody:
    return ProblemBody(
        type=f"/redoc#error-{error.error}",
        title=HTTPStatus(error.status).phrase,
        status=error.status,
        instance=instance,
        error=error.error,
        message=error.message,
        detail=error.detail,
        details=error.details,
        request_id=request_id,
        timestamp=datetime.now(UTC),
    )


def as_problem(error: Exception) -> Problem:
    """What the caller may know about an exception."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, Refused):
        return _said_by_verb(error, type(error), error.diag.message_primary)
    if isinstance(error, psycopg.Error):
        return _said_by_postgres(error)
    log("request_failed", "error", exc_info=error)
    return Problem("Something broke on our side", hint="the request id finds it in the log")


def _said_by_postgres(error: psycopg.Error) -> Problem:
    constraint = (error.diag.constraint_name or "").replace("_", " ")
    if is_lost(error):
        return Unavailable("The database can't be reached")
    if is_rolled_back(error):
        return Unavailable("The database is busy with the same rows")
    if isinstance(error, pg.UniqueViolation | pg.ForeignKeyViolation | pg.ExclusionViolation):
        return _said_by_verb(error, Conflict, f"This would break: {constraint}")
    if isinstance(error, pg.IntegrityError):
        return _said_by_verb(error, Invalid, f"This would break: {constraint or 'a rule'}")
    if isinstance(error, pg.DataError):
        return _said_by_verb(error, Invalid, "A value can't be kept by the database")
    log("request_failed", "error", exc_info=error)
    return Problem("Something broke on our side", hint="the request id finds it in the log")


def _said_by_verb(error: psycopg.Error, kind: type[Refused], message: str | None) -> Problem:
    """With the status of a SQLSTATE. Postgres' own details stay: they may hold foreign rows."""
    said = error.diag if isinstance(error, Refused) else None
    message = message or kind.error
    which = said.message_detail if said else None
    place = {"loc": ["body"], "msg": which or message, "type": "value"}
    return Problem(
        message,
        detail=[place] if kind is Invalid else None,
        hint=said.message_hint if said else None,
        which=which,
        kind=kind,
    )
