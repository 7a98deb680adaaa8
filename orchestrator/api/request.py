"""A request read into values: path, query and body, bounded before they are looked at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.datastructures import QueryParams
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from ..config import Config
from ..errors import Malformed, TooLarge, WrongContentType
from ..wire import Call, Endpoint, convert, decode, read_form


def query_of(scope: Scope) -> dict[str, Any]:
    """Each name once; the same name again would silently win over the first."""
    if not scope["query_string"]:
        return {}
    pairs = QueryParams(scope["query_string"]).multi_items()
    values = dict(pairs)
    if len(values) != len(pairs):
        raise Malformed("A query parameter is given more than once")
    return values


FORM = "application/x-www-form-urlencoded"


def decoded(raw: bytes, kind: str, endpoint: Endpoint) -> Any:
    if endpoint.form and kind == FORM:
        return convert(read_form(raw), endpoint.body, "body")
    return decode(raw, endpoint.bodies.get(kind, endpoint.body))


def content_type(headers: Mapping[str, str]) -> str:
    said = headers.get("content-type", "")
    return said if said == "application/json" else said.partition(";")[0].strip().lower()


NOTHING = (b"", b"{}", b"null")


async def body_of(
    headers: Mapping[str, str], receive: Receive, endpoint: Endpoint, config: Config
) -> bytes:
    if endpoint.method == "GET":
        return b""  # nobody asks for it
    kind = content_type(headers)
    is_json = kind == "application/json" or kind.endswith("+json")
    if endpoint.body is not None and not is_json and not (endpoint.form and kind == FORM):
        raise WrongContentType(
            f"The body is {kind or 'of no stated type'}", hint="send application/json"
        )
    said, limit = headers.get("content-length", "0"), max(endpoint.body_limit, config.body_limit)
    if said.isdigit() and int(said) > limit:
        raise TooLarge(f"The body is larger than {limit} bytes")
    return await _read(receive, limit)


async def _read(receive: Receive, limit: int) -> bytes:
    """The server has an eye on how long that takes (httpd.py)."""
    body, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > limit:
            raise TooLarge(f"The body is larger than {limit} bytes")
    return bytes(body)


def refuse_disagreement(call: Call) -> None:
    for name, value in call.path.items():
        told = getattr(call.body, name, value)
        if told is not msgspec.UNSET and str(told) != value:
            raise Malformed(
                f"The path says {name} {value!r}, the body {str(told)!r}",
                detail=[{"loc": ["body", name], "msg": "disagrees with the path", "type": "value"}],
            )
