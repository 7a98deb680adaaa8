"""What is sent and what comes back: checked, bounded, and never told in an error.

An error names a scheme, a host and a port. Paths, queries, userinfo and headers hold secrets.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from typing import ClassVar
from urllib.parse import urlencode

import httpx2
import msgspec

from .addresses import is_address

MOST_URL = 8192
MOST_HEADERS = 65_536

UNSAFE = re.compile(r"[\x00-\x20\x7f\\]")
METHOD = re.compile(r"[A-Z]{1,20}")
LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
HOST = re.compile(rf"(?=.{{1,254}}$){LABEL}(?:\.{LABEL})*\.?")
NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}")
NOT_A_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")

OURS = {
    "accept-encoding", "connection", "content-length", "expect", "host", "keep-alive",
    "proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
}  # fmt: skip
"""Headers that decide what is a message and where it goes: nobody else sets them."""

HARMLESS = {
    "accept", "accept-encoding", "accept-language", "content-language", "content-type",
    "idempotency-key", "traceparent", "tracestate", "user-agent",
}  # fmt: skip
"""What is sent on to another host; anything else may be a credential."""

Headers = tuple[tuple[str, str], ...]


class Failed(Exception):
    """A call without an answer: why, in the words of the language, and whether another may work."""

    type: ClassVar[str] = "runtime"
    again: ClassVar[bool] = False


class Malformed(Failed):
    """What the caller asked for can't be sent."""

    type = "validation"


class Refused(Failed):
    """The target is not for callers."""

    type = "authorization"


class TimedOut(Failed):
    type, again = "timeout", True


class Broken(Failed):
    """No connection, no name, or no HTTP."""

    type, again = "communication", True


class Unusable(Failed):
    """The answer is larger than allowed, or of a kind that we can't take."""

    type = "validation"


class Answer(msgspec.Struct, frozen=True):
    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes
    url: str  # after redirects


class Hop(msgspec.Struct, frozen=True):
    """One request, to one place."""

    method: str
    url: httpx2.URL
    headers: Headers
    body: bytes
    coding: str = "gzip"  # what the answer may be packed in

    @property
    def port(self) -> int:
        return port(self.url)

    def raw_headers(self) -> list[tuple[bytes, bytes]]:
        raw = [(b"Host", self.url.netloc), (b"Accept-Encoding", self.coding.encode())]
        raw += [(name.encode(), value.encode()) for name, value in self.headers]
        if self.body or self.method in {"POST", "PUT", "PATCH"}:
            raw.append((b"Content-Length", str(len(self.body)).encode()))
        return raw


def port(url: httpx2.URL) -> int:
    return url.port or (443 if url.scheme == "https" else 80)


def place(url: httpx2.URL) -> str:
    """As much of a URL as an error may tell."""
    return f"{url.scheme}://{url.netloc.decode()}"


def hop(
    method: str,
    url: str,
    headers: Mapping[str, str] | None,
    query: Mapping[str, str | Sequence[str]] | None,
    body: bytes,
) -> Hop:
    """A first request, or `Malformed`."""
    if not METHOD.fullmatch(method) or method in {"CONNECT", "TRACE"}:
        raise Malformed("the method can't be used")
    if query:
        bare = url.partition("#")[0]
        url = f"{bare}{'&' if '?' in bare else '?'}{urlencode(query, doseq=True, errors='replace')}"
    given = {"user-agent": "orchestrator", "accept": "*/*"}
    given |= {name.lower(): value for name, value in _checked(headers or {})}
    return Hop(method, parse(url), tuple(given.items()), body)


def parse(text: str, base: httpx2.URL | None = None) -> httpx2.URL:
    """The URL without what's only for browsers, or `Malformed`."""
    if len(text) > MOST_URL:
        raise Malformed(f"the URL is longer than {MOST_URL} characters")
    if UNSAFE.search(text):
        raise Malformed("the URL has a blank, a control character or a backslash")
    try:
        url = base.join(text) if base is not None else httpx2.URL(text)
        host = url.raw_host.decode("ascii")
    except (httpx2.InvalidURL, ValueError, TypeError):
        raise Malformed("the URL can't be read") from None
    if url.scheme not in {"http", "https"}:
        raise Malformed("the URL is neither http nor https")
    if url.userinfo:
        raise Malformed("the URL has a user or a password: send them in a header")
    if url.port == 0 or (url.port or 0) > 65535:
        raise Malformed("the URL's port is none")
    if not HOST.fullmatch(host) and (":" not in host or "%" in host or not is_address(host)):
        raise Malformed("the URL's host can't be used")
    return url.copy_with(fragment=None)


def _checked(headers: Mapping[str, str]) -> list[tuple[str, str]]:
    for name, value in headers.items():
        if not NAME.fullmatch(name) or NOT_A_VALUE.search(value):
            raise Malformed("a header's name or value has a character that can't be sent")
        if name.lower() in OURS:
            raise Malformed(f"the header {name} can't be set")
    if sum(len(name) + len(value) for name, value in headers.items()) > MOST_HEADERS:
        raise Malformed(f"the headers are larger than {MOST_HEADERS} bytes")
    try:
        return [(name, value.strip().encode().decode()) for name, value in headers.items()]
    except UnicodeError:
        raise Malformed("a header's value has half a character") from None


def redirected(last: Hop, status: int, location: str) -> Hop:
    """Where an answer points, with what may be taken there."""
    url = parse(location, last.url)
    method, body, headers = last.method, last.body, last.headers
    if (status == 303 and method != "HEAD") or (status in {301, 302} and method == "POST"):
        method, body = "GET", b""
        headers = tuple(pair for pair in headers if not pair[0].startswith("content-"))
    if not _is_same_place(last.url, url):
        headers = tuple(pair for pair in headers if pair[0] in HARMLESS)
    return Hop(method, url, headers, body)


def _is_same_place(old: httpx2.URL, new: httpx2.URL) -> bool:
    if old.raw_host != new.raw_host:
        return False
    before, after = (old.scheme, port(old)), (new.scheme, port(new))
    return before == after or (before, after) == (("http", 80), ("https", 443))


class Body:
    """An answer's body as it arrives; `Unusable` as soon as it is too much, unpacked or not."""

    def __init__(self, headers: Mapping[str, str], most: int, whose: str) -> None:
        self.most = most
        self.whose = whose
        self.arrived = 0
        self.data = bytearray()
        self.inflate = self._decoder(headers.get("content-encoding", "").strip().lower())

    def _decoder(self, coding: str) -> zlib._Decompress | None:
        if coding in {"", "identity"}:
            return None
        if coding in {"gzip", "x-gzip"}:
            return zlib.decompressobj(31)
        raise Unusable(f"{self.whose} answered in an encoding that it wasn't asked for")

    def feed(self, chunk: bytes) -> None:
        self.arrived += len(chunk)
        if self.inflate is None:
            self.data += chunk
        else:
            self._unpack(chunk)
        if max(self.arrived, len(self.data)) > self.most:
            raise Unusable(f"{self.whose} answered more than {self.most} bytes")

    def _unpack(self, chunk: bytes) -> None:
        assert self.inflate is not None
        try:
            while chunk and len(self.data) <= self.most:
                if self.inflate.eof:  # one file after the other is one file
                    self.inflate = zlib.decompressobj(31)
                self.data += self.inflate.decompress(chunk, self.most + 1 - len(self.data))
                chunk = self.inflate.unused_data
        except zlib.error:
            raise Broken(f"{self.whose} answered what can't be unpacked") from None

    def end(self) -> bytes:
        if self.inflate is not None and self.arrived and not self.inflate.eof:
            raise Broken(f"{self.whose} answered half of it")
        return bytes(self.data)
