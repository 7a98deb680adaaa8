"""`http.request`: a call through the guarded client.

Arguments: `url`; `method` (GET); `headers`; `query` (names to a value or a list of values);
`json` (any value) or `body` (text, or `{"base64": …}`); `expect`, a status, a class such as "2xx",
or a list of them (2xx); `timeout` in seconds for the whole call, redirects included (30);
`follow_redirects` (true: at most 5; to another host only harmless headers go along).

Result: `{status, headers, body}`. Headers have lower-case names, repeated ones are joined by ", ".
`body` is parsed when the answer says that it's JSON, text when it's text, else `{"base64": …}`.
An answer larger than 1 MiB, deeper than 32 levels, or with numbers beyond 1e308 fails the step;
NUL characters become U+FFFD.

`Idempotency-Key` and `traceparent` are sent unless `headers` has its own. A status that isn't
expected: 408, 425, 429 and 5xx are tried again, after `Retry-After` when the answer names it; 401
is `authentication`, 403 `authorization`, 409 `conflict`, a malformed request `validation`, any
other `runtime`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

import msgspec

from ..guard import Answer
from . import Context, Done, Fail, Kind, Outcome
from .answers import Binary, Unreadable, ask, content, verdict

Scalar = str | int | float | bool | None


class Call(msgspec.Struct, forbid_unknown_fields=True):
    url: str
    method: str = "GET"
    headers: dict[str, str] = {}
    query: dict[str, Scalar | list[Scalar]] = {}
    json: Any = msgspec.UNSET
    body: str | Binary | None = None
    expect: int | str | list[int | str] = "2xx"
    timeout: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 30.0
    follow_redirects: bool = True

    def __post_init__(self) -> None:
        if self.json is not msgspec.UNSET and self.body is not None:
            raise ValueError("a call has json or body, not both")
        for status in self.statuses:
            if not re.fullmatch(r"[1-5](xx|\d\d)", status):
                raise ValueError(f"{status!r} is neither a status nor a class such as 2xx")

    @property
    def statuses(self) -> list[str]:
        given = self.expect if isinstance(self.expect, list) else [self.expect]
        return [str(status).lower() for status in given]

    def expects(self, status: int) -> bool:
        return bool({str(status), f"{status // 100}xx"} & set(self.statuses))


async def run(call: Call, context: Context) -> Outcome:
    body, headers = _body(call)
    answer = await ask(
        context,
        call.method.upper(),
        call.url,
        headers=headers | {name.lower(): value for name, value in call.headers.items()},
        query={name: _texts(value) for name, value in call.query.items()},
        body=body,
        timeout=call.timeout,
        follow_redirects=call.follow_redirects,
    )
    if not isinstance(answer, Answer):
        return answer
    if not call.expects(answer.status):
        return verdict(answer, "the server")
    try:
        value = await content(answer)
    except Unreadable as error:
        return Fail("validation", str(error))
    return Done({"status": answer.status, "headers": answer.headers, "body": value})


def _body(call: Call) -> tuple[bytes, dict[str, str]]:
    if call.json is not msgspec.UNSET:
        return msgspec.json.encode(call.json), {"content-type": "application/json"}
    if isinstance(call.body, Binary):
        return call.body.base64, {"content-type": "application/octet-stream"}
    if call.body is not None:
        text = call.body.encode(errors="replace")  # half a character has no bytes
        return text, {"content-type": "text/plain; charset=utf-8"}
    return b"", {}


def _texts(value: Scalar | list[Scalar]) -> list[str]:
    """As in JSON: true, not True. Null is left out."""
    values = value if isinstance(value, list) else [value]
    return [_text(one) for one in values if one is not None]


def _text(value: Scalar) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


KIND = Kind("http.request", Call, run, outside=True, keyed=True)
