"""Asks the API: one request, its answer, and what went wrong in words and an exit status."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from .. import __version__
from . import core, place
from .place import Place

if TYPE_CHECKING:
    import httpx2  # whoever asks nothing needn't wait for it

SECONDS = 30.0
"""Without a byte. Who waits for a run says how long."""

Page = dict[str, Any]


class Remote:
    """One place, over one client."""

    def __init__(self, where: Place, client: httpx2.AsyncClient) -> None:
        self.place, self.client = where, client

    async def ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None = None,
        body: Any = msgspec.UNSET,
        headers: Mapping[str, str] | None = None,
        wait: float = 0,
    ) -> Any:
        """The decoded answer; None where there is none."""
        with reached(self.place):
            answer = await self._send(method, path, query, body, headers or {}, wait)
            if answer.status_code == 401 and await self._renewed():
                answer = await self._send(method, path, query, body, headers or {}, wait)
        refuse(self.place, answer)
        try:
            return msgspec.json.decode(answer.content) if answer.content else None
        except msgspec.DecodeError:
            raise core.Failure(_foreign(self.place, answer)) from None

    async def _send(
        self, method: str, path: str, query: Any, body: Any, headers: Mapping[str, str], wait: float
    ) -> httpx2.Response:
        content = None if body is msgspec.UNSET else msgspec.json.encode(body)
        kind = {} if content is None else {"Content-Type": "application/json"}
        return await self.client.request(
            method, self.place.url + path, params=query, content=content,
            headers={**headers, **kind, **self._key()}, timeout=SECONDS + wait,
        )  # fmt: skip

    def _key(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.place.bearer}"} if self.place.bearer else {}

    async def _renewed(self) -> bool:
        """Whether the session gave new tokens: an access token lives for minutes. Another command
        may have renewed it meanwhile, and a refresh token is redeemed once."""
        known = place.kept()
        if known and known.url == self.place.url and known.refresh_token:
            self.place = known
        if not self.place.refresh_token:
            return False
        body = {"refresh_token": self.place.refresh_token}
        answer = await self._send("POST", "/auth/refresh", None, body, {}, 0)
        if answer.status_code != 200:
            return False
        self.place = with_tokens(self.place, msgspec.json.decode(answer.content))
        place.keep(self.place)
        return True

    async def rows(self, path: str, query: dict[str, Any], most: int) -> tuple[list[Page], Page]:
        """The rows of a list, page after page, and the last page."""
        found: list[Page] = []
        while True:
            asked = {**query, "limit": min(most - len(found), 200)}
            page = await self.ask("GET", path, asked)
            found += page["items"]
            cursor = page.get("next_cursor", page.get("cursor"))
            if cursor is None or len(found) >= most:
                return found, page
            query = {**query, "cursor": cursor}

    async def events(
        self, path: str, query: dict[str, Any], last: str
    ) -> AsyncIterator[tuple[str, str, Any]]:
        """Server-sent events until the stream ends: id, kind, data."""
        await self.ask("GET", "/auth/me")  # renews what has expired
        headers = {**self._key(), **({"Last-Event-ID": last} if last else {})}
        asked = self.client.stream(
            "GET", self.place.url + path, params=query, headers=headers, timeout=SECONDS
        )
        with reached(self.place):
            async with asked as answer:
                if answer.status_code == 204:
                    return
                if answer.status_code != 200:
                    await answer.aread()
                refuse(self.place, answer)
                async for event in _events(answer.aiter_lines()):
                    yield event


async def _events(lines: AsyncIterator[str]) -> AsyncIterator[tuple[str, str, Any]]:
    told: dict[str, str] = {}
    async for line in lines:
        name, _, value = line.partition(":")
        if line and name:
            told[name] = told.get(name, "") + value.removeprefix(" ")
        elif not line and "data" in told:
            kind = told.get("event", "message")
            yield told.get("id", ""), kind, msgspec.json.decode(told["data"])
            told = {}
        elif not line:
            told = {}


def with_tokens(where: Place, pair: dict[str, Any]) -> Place:
    return msgspec.structs.replace(
        where, access_token=pair["access_token"], refresh_token=pair["refresh_token"]
    )


@asynccontextmanager
async def remote(where: Place | None = None) -> AsyncIterator[Remote]:
    """The place of now, unless another one is named. Proxies aren't asked for this machine."""
    import httpx2

    where = where or place.present()
    agent = {"User-Agent": f"orc/{__version__}", "Accept": "application/json, text/event-stream"}
    async with httpx2.AsyncClient(headers=agent, trust_env=not where.is_here) as client:
        yield Remote(where, client)


# What is wrong


@contextmanager
def reached(where: Place) -> Iterator[None]:
    """A place that can't be reached is said in one line."""
    import httpx2

    try:
        yield
    except httpx2.TimeoutException:
        raise core.Failure(
            f"the API at {where.url} is silent: whether it did what was asked isn't known",
            core.Exit.UNAVAILABLE,
        ) from None
    except httpx2.HTTPError as error:
        way_out = "start it with bin/api or bin/up" if where.is_here else "check the URL"
        raise core.Failure(
            f"the API at {where.url} can't be reached ({error or type(error).__name__}):"
            f" {way_out}, or name another one by ORCHESTRATOR_URL or `orc login URL`",
            core.Exit.UNAVAILABLE,
        ) from None


STATUSES = {
    400: core.Exit.USAGE, 413: core.Exit.USAGE, 415: core.Exit.USAGE, 422: core.Exit.USAGE,
    401: core.Exit.DENIED, 403: core.Exit.DENIED,
    408: core.Exit.UNAVAILABLE, 429: core.Exit.UNAVAILABLE,
}  # fmt: skip


def refuse(where: Place, answer: httpx2.Response) -> None:
    """Raises what an answer that isn't a success says."""
    code = answer.status_code
    if code < 300:
        return
    kind = core.Exit.UNAVAILABLE if code >= 500 else STATUSES.get(code, core.Exit.WRONG)
    raise core.Failure(_words(where, answer), kind)


def _words(where: Place, answer: httpx2.Response) -> str:
    try:
        said = msgspec.json.decode(answer.content, type=Said)
    except msgspec.MsgspecError:
        return _foreign(where, answer)
    lines = [said.message]
    if isinstance(said.detail, list):
        lines += [f"  {_path(one)}: {one['msg']}" for one in said.detail]
    lines += [f"  {said.details[name]}" for name in ("hint",) if name in said.details]
    if after := answer.headers.get("retry-after"):
        lines.append(f"  try again in {after} s")
    if answer.status_code == 401 and where.bearer != place.DEVELOPER:
        lines.append(f"  the key for {where.url} is not accepted (any more): {place.WAYS}")
    elif answer.status_code == 401:
        lines.append(f"  there is no key for {where.url}: {place.WAYS}")
    return "\n".join(lines)


def _foreign(where: Place, answer: httpx2.Response) -> str:
    return f"{where.url} answered {answer.status_code}, but not as this API does: check the URL"


class Said(msgspec.Struct):
    """The part of a problem body that people read."""

    message: str
    detail: Any = None
    details: dict[str, Any] = {}


def _path(one: dict[str, Any]) -> str:
    return ".".join(str(part) for part in one["loc"][1:]) or str(one["loc"][0])
