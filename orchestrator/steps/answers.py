"""What the tools that speak HTTP share: asking, reading the answer, and what its status means."""

from __future__ import annotations

import asyncio
import gc
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import msgspec

from .. import guard, traces
from ..wire import MAX_DEPTH, is_too_deep
from . import Context, Fail, Retry

LONGEST_DELAY = 86_400.0
PARSED_AT_ONCE = 65_536  # bytes; more is parsed beside the event loop

JSON = re.compile(r"(?:application|text)/(?:[\w.-]+\+)?json\b", re.I)
TEXT = re.compile(r"text/|[\w.-]+/(?:[\w.-]+\+)?(?:xml|yaml)\b|application/(?:x-)?"
                  r"(?:javascript|ndjson|www-form-urlencoded|graphql)\b", re.I)  # fmt: skip
CHARSET = re.compile(r"charset=[\"']?(utf-8|us-ascii|iso-8859-1|windows-1252|utf-16)\b", re.I)
VAST = re.compile(rb"\d{309}")

TYPES = {401: "authentication", 403: "authorization", 408: "timeout", 409: "conflict",
         429: "rate_limited", 451: "authorization", 500: "runtime", 504: "timeout",
         **dict.fromkeys((400, 411, 412, 413, 414, 415, 416, 422, 431), "validation"),
         **dict.fromkeys((425, 501, 502, 503), "communication")}  # fmt: skip


class Unreadable(Exception):
    """An answer that isn't what it says, or that can't be kept."""


class Binary(msgspec.Struct, forbid_unknown_fields=True):
    base64: bytes


async def ask(
    context: Context,
    method: str,
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    query: Mapping[str, str | Sequence[str]] | None = None,
    body: bytes = b"",
    timeout: float = 30.0,
    follow_redirects: bool = False,
    trusted: bool = False,
) -> guard.Answer | Retry | Fail:
    """One call with the step's key and trace, unless the headers say otherwise."""
    given = {name.lower(): value for name, value in (headers or {}).items()}
    facts = _facts(context, method, url) if traces.is_on() else None
    with traces.begin(f"HTTP {method}", context.traceparent, "client", facts) as span:
        ours = {"idempotency-key": context.key, "traceparent": span.traceparent or ""}
        try:
            answer = await guard.of(context.config).request(
                method,
                url,
                headers={name: value for name, value in ours.items() if value} | given,
                query=query,
                body=body,
                timeout=timeout,
                follow_redirects=follow_redirects,
                trusted=trusted,
            )
        except guard.Failed as error:
            span.fail(error.type)
            return Retry(error.type, str(error)) if error.again else Fail(error.type, str(error))
        span.note({"http.response.status_code": answer.status})
        if answer.status >= 400:
            span.fail(str(answer.status))
        return answer


def _facts(context: Context, method: str, url: str) -> traces.Facts:
    """What a trace may tell of a call: paths and queries have keys in them, often enough."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return {"http.request.method": method}
    said = {"http.request.method": method, "server.address": context.masks.text(host)}
    return said | ({"server.port": port} if port else {})


def verdict(answer: guard.Answer, whose: str) -> Retry | Fail:
    """What a status means that wasn't hoped for. The answer's own words may be secret."""
    status = answer.status
    message = f"{whose} answered {status}{_phrase(status)}"
    type = TYPES.get(status, "communication" if status >= 500 else "runtime")
    if status in {408, 425, 429} or status >= 500:
        return Retry(type, message, _delay(answer.headers.get("retry-after", "")))
    return Fail(type, message)


def _phrase(status: int) -> str:
    try:
        return f" {HTTPStatus(status).phrase}"
    except ValueError:
        return ""


def _delay(text: str) -> float | None:
    """Seconds from Retry-After, which are a number or a date."""
    if re.fullmatch(r"\d{1,9}", text.strip()):
        return min(float(text), LONGEST_DELAY)
    try:
        instant = parsedate_to_datetime(text)
        seconds = instant.replace(tzinfo=instant.tzinfo or UTC).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return min(max(seconds, 0.0), LONGEST_DELAY)


async def content(answer: guard.Answer) -> Any:
    """The body as a value: JSON parsed, text as text, anything else in base64. No NUL is left."""
    kind = answer.headers.get("content-type", "").strip()
    if JSON.match(kind):
        return await json_of(answer)
    if TEXT.match(kind):
        charset = CHARSET.search(kind)
        text = answer.body.decode(charset[1] if charset else "utf-8", errors="replace")
        return text.replace("\0", "\ufffd")
    try:
        text = answer.body.decode()
    except UnicodeDecodeError:
        return msgspec.to_builtins(Binary(answer.body))
    return msgspec.to_builtins(Binary(answer.body)) if kind or "\0" in text else text


async def json_of(answer: guard.Answer) -> Any:
    """The body as JSON within our bounds, whatever its type says; `Unreadable` otherwise."""
    if len(answer.body) <= PARSED_AT_ONCE:
        return _parse(answer.body)
    return await asyncio.to_thread(_parse_large, answer.body)


_parsing = threading.Lock()


@contextmanager
def _no_collection() -> Iterator[None]:
    """Nothing that a parser makes is garbage; looking for some takes 90 of 105 ms for 1 MiB."""
    with _parsing:
        was_on = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if was_on:
                gc.enable()


def _parse_large(data: bytes) -> Any:
    with _no_collection():
        return _parse(data)


def _parse(data: bytes) -> Any:
    if not data.strip():
        return None
    if is_too_deep(data):
        raise Unreadable(f"the answer is nested deeper than {MAX_DEPTH} levels")
    try:
        value = msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        why = "isn't UTF-8" if isinstance(error, UnicodeDecodeError) else f"isn't JSON: {error}"
        raise Unreadable(f"the answer {why}") from None
    return _storable(value) if b"\\u0000" in data or VAST.search(data) else value


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\0", "\ufffd")
    if isinstance(value, dict):
        return {_storable(name): _storable(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_storable(inner) for inner in value]
    if isinstance(value, int) and abs(value) > 10**308:
        raise Unreadable("the answer has a number beyond 1e308")
    return value
