"""The one HTTP client that calls out.

Resolves a name once a hop, checks every address of it, and dials a checked one: a name that
answers differently the next time gains nothing. What the operator configured is trusted
(`ORC_ALLOW_TARGETS`, `trusted=True`), what a caller wrote is not. No proxies, no netrc, no cookies.
Time, sizes, redirects and unpacking are bounded; what goes wrong is a `Failed`.

    answer = await guard.of(config).request("GET", "https://example.com/")
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from weakref import WeakKeyDictionary

import httpcore2
import httpx2

from ..config import Config
from .addresses import Lookups, Resolve, Targets, is_address, refusal
from .message import (
    Answer,
    Body,
    Broken,
    Failed,
    Hop,
    Malformed,
    Refused,
    TimedOut,
    Unusable,
    hop,
    place,
    port,
    redirected,
)
from .pool import MOST_OPEN, Connection, Place, Pool
from .transport import Transport

__all__ = ["Answer", "Broken", "Failed", "Guard", "Malformed", "Refused", "TimedOut", "Transport",
           "Unusable", "close", "of"]  # fmt: skip

MOST_BYTES = 1_048_576
MOST_REDIRECTS = 5
CONNECT_SECONDS = 10.0
REDIRECTS = {301, 302, 303, 307, 308}
REPEATABLE = {"GET", "HEAD", "OPTIONS", "PUT", "DELETE"}
LOST = (httpcore2.ReadError, httpcore2.WriteError, httpcore2.RemoteProtocolError)


class Guard:
    """Belongs to one event loop."""

    def __init__(
        self, config: Config, *, resolve: Resolve | None = None, pool: Pool | None = None
    ) -> None:
        self.targets = Targets(config.allow_targets)
        self.resolve = resolve or Lookups()
        self.pool = pool or Pool()
        self.free = asyncio.Semaphore(MOST_OPEN)

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str | Sequence[str]] | None = None,
        body: bytes = b"",
        timeout: float = 30.0,
        follow_redirects: bool = False,
        most_bytes: int = MOST_BYTES,
        trusted: bool = False,
    ) -> Answer:
        """The answer, whatever its status, or `Failed`. `trusted`: the operator named the place."""
        first = hop(method, url, headers, query, body)
        most_redirects = MOST_REDIRECTS if follow_redirects else 0
        try:
            async with asyncio.timeout(timeout), self.free:
                return await self._follow(first, most_redirects, most_bytes, trusted)
        except TimeoutError:
            raise TimedOut(f"{place(first.url)} took longer than {timeout:g} s") from None

    async def aclose(self) -> None:
        await self.pool.aclose()

    async def _follow(self, first: Hop, most: int, most_bytes: int, trusted: bool) -> Answer:
        at = first
        for number in range(most + 1):
            is_named = trusted and place(at.url) == place(first.url)
            answer = await self._answer(at, most_bytes, is_named)
            location = answer.headers.get("location")
            if not most or answer.status not in REDIRECTS or location is None:
                return answer
            if number < most:
                at = redirected(at, answer.status, location)
        raise Unusable(f"{place(first.url)} redirects more than {most} times")

    async def _answer(self, at: Hop, most_bytes: int, trusted: bool) -> Answer:
        connection, response = await self.open(at, trusted)
        try:
            with _told(at):
                return await _read(at, response, most_bytes)
        finally:
            await self.end(connection, response)

    async def open(self, at: Hop, trusted: bool = True) -> tuple[Connection, httpcore2.Response]:
        """An answer whose body hasn't been read. Whoever opens it ends it."""
        places = await self._places(at.url, trusted)
        self.pool.busy += 1
        try:
            with _told(at):
                return await self._send(at, places)
        except BaseException:
            self.pool.busy -= 1
            raise

    async def end(self, connection: Connection, response: httpcore2.Response) -> None:
        self.pool.busy -= 1
        await response.aclose()
        await self.pool.give_back(connection)

    async def _places(self, url: httpx2.URL, trusted: bool) -> list[Place]:
        """Every address of the host, all of them checked."""
        host, number = url.raw_host.decode(), port(url)
        try:
            addresses = [host] if is_address(host) else await self.resolve(host)
        except OSError:
            raise Broken(f"{place(url)}: the name can't be resolved") from None
        if not (trusted or self.targets.have_name(host, number)):
            for address in addresses:
                if (why := refusal(address)) and not self.targets.have_address(address, number):
                    raise Refused(f"{place(url)} isn't allowed: its address is {why}")
        return [Place(url.scheme, host, address, number) for address in addresses]

    async def _send(self, at: Hop, places: list[Place]) -> tuple[Connection, httpcore2.Response]:
        for where in places:
            if idle := await self.pool.take(where):
                try:
                    return idle, await idle.handle_async_request(_request(at, where))
                except LOST:  # it hung up while we wrote: that it didn't hear us is only likely
                    if at.method not in REPEATABLE:
                        raise
        error: Exception = httpcore2.ConnectError()
        for where in places:
            connection = await self.pool.dial(where)
            try:
                return connection, await connection.handle_async_request(_request(at, where))
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as refused:
                error = refused
        raise error


@contextmanager
def _told(at: Hop) -> Iterator[None]:
    """What goes wrong between us and a place, without what was asked there."""
    try:
        yield
    except httpcore2.ConnectTimeout:
        raise TimedOut(f"{place(at.url)} can't be reached in time") from None
    except httpcore2.ConnectError:
        raise Broken(f"{place(at.url)} can't be reached") from None
    except (httpcore2.ProtocolError, httpcore2.NetworkError) as error:
        what = "hung up" if isinstance(error, httpcore2.NetworkError) else "answered no HTTP"
        raise Broken(f"{place(at.url)} {what}") from None


def _request(at: Hop, where: Place) -> httpcore2.Request:
    url = httpcore2.URL(
        scheme=where.scheme, host=where.address, port=where.port, target=at.url.raw_path
    )
    extensions = {
        "timeout": {"connect": CONNECT_SECONDS},
        "sni_hostname": where.host.rstrip("."),
    }
    return httpcore2.Request(
        at.method, url, headers=at.raw_headers(), content=at.body, extensions=extensions
    )


async def _read(at: Hop, response: httpcore2.Response, most_bytes: int) -> Answer:
    if response.status < 200:
        raise Broken(f"{place(at.url)} wants to speak another protocol")
    headers: dict[str, str] = {}
    for raw, value in response.headers:
        name, text = raw.decode("latin-1").lower(), value.decode("latin-1")
        headers[name] = f"{headers[name]}, {text}" if name in headers else text
    body = Body(headers, most_bytes, place(at.url))
    async with aclosing(response.aiter_stream()) as chunks:
        number = 0
        async for chunk in chunks:
            body.feed(chunk)
            number += 1
            if number % 64 == 0:  # chunks of one byte: others want the loop, too
                await asyncio.sleep(0)
    return Answer(response.status, headers, body.end(), str(at.url))


_guards: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Config, Guard]] = WeakKeyDictionary()


def of(config: Config) -> Guard:
    """The guard of the running loop, made when it is first asked for."""
    guards = _guards.setdefault(asyncio.get_running_loop(), {})
    if config not in guards:
        guards[config] = Guard(config)
    return guards[config]


async def close() -> None:
    """Closes what the running loop has."""
    for guard in _guards.pop(asyncio.get_running_loop(), {}).values():
        await guard.aclose()
