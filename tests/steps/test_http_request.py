"""`http.request` against a real server: what it sends, and what becomes of every kind of answer."""

from __future__ import annotations

import base64
import gzip
from email.utils import formatdate
from time import time
from typing import Any

import msgspec
import pytest
from peers import loop_unblocked, peer, says, writes

from orchestrator.config import Config
from orchestrator.steps import Context, Done, Fail, Outcome, Retry, http_request

BOMB = gzip.compress(bytes(20_000_000))


def context(**more: Any) -> Context:
    its = Config(allow_targets=("127.0.0.1",))
    return Context(its, "t", "r", 1, 1, None, {}, **{"key": "key-1", **more})


async def called(url: str, its: Context | None = None, **given: Any) -> Outcome:
    call = msgspec.convert({"url": url, **given}, http_request.Call)
    return await http_request.run(call, its or context())


def value(outcome: Outcome) -> Any:
    assert isinstance(outcome, Done), outcome
    msgspec.json.encode(outcome.value)
    return outcome.value


async def test_the_answer_is_its_status_headers_and_parsed_body() -> None:
    async with peer(says(201, '{"a": [1, null]}', "application/json; charset=utf-8")) as here:
        said = value(await called(here.url))
    assert (said["status"], said["body"]) == (201, {"a": [1, None]})
    assert said["headers"]["content-type"] == "application/json; charset=utf-8"


async def test_json_query_and_headers_are_sent() -> None:
    async with peer() as here:
        await called(
            here.url,
            method="post",
            json={"a": None},
            query={"q": [1, True, None, "x y"], "f": 0.5},
            headers={"X-A": "b"},
        )
        heard = here.heard[0]
    assert (heard.method, heard.json) == ("POST", {"a": None})
    assert heard.target == "/?q=1&q=true&q=x+y&f=0.5"
    assert heard.headers["content-type"] == "application/json"
    assert heard.headers["x-a"] == "b"


async def test_text_and_bytes_are_sent_as_they_are() -> None:
    async with peer() as here:
        await called(here.url, method="PUT", body="é")
        await called(here.url, method="PUT", body={"base64": base64.b64encode(b"\0\xff").decode()})
        await called(here.url, method="PUT", json=None)
        await called(here.url)
        assert [heard.body for heard in here.heard] == ["é".encode(), b"\0\xff", b"null", b""]
        assert "content-length" not in here.heard[3].headers


async def test_the_key_and_the_trace_are_sent_unless_the_step_has_its_own() -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with peer() as here:
        await called(here.url, context(traceparent=trace))
        await called(here.url, headers={"Idempotency-KEY": "mine"})
        await called(here.url, context(key=""))
        keys = [heard.headers.get("idempotency-key") for heard in here.heard]
        traces = [heard.headers.get("traceparent") for heard in here.heard]
    assert keys == ["key-1", "mine", None]
    assert traces == [trace, None, None]


@pytest.mark.parametrize(
    ("kind", "data", "expected"),
    [
        ("application/problem+json", b'{"a":1}', {"a": 1}),
        ("application/json", b"", None),
        ("application/json", b'{"a\\u0000":"b\\u0000"}', {"a\ufffd": "b\ufffd"}),
        ("application/json", b'"\\\\u0000"', "\\u0000"),
        ("text/plain", b"a\0\xff", "a\ufffd\ufffd"),
        ("text/html; charset=ISO-8859-1", b"\xe9", "é"),
        ("text/plain; charset=punycode", b"a-b", "a-b"),
        ("application/xml", b"<a/>", "<a/>"),
        ("image/svg+xml", b"<a/>", "<a/>"),
        ("image/png", b"\x89PNG\0", {"base64": "iVBORwA="}),
        ("", b"text", "text"),
        ("", b"\xff", {"base64": "/w=="}),
        ("", b"\0", {"base64": "AA=="}),
    ],
)
async def test_a_body_is_what_its_type_says(kind: str, data: bytes, expected: Any) -> None:
    async with peer(says(body=data, kind=kind)) as here:
        assert value(await called(here.url))["body"] == expected


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"[" * 5000 + b"]" * 5000, "nested deeper than 32 levels"),
        (b"[" * 33 + b"]" * 33, "nested deeper than 32 levels"),
        (b"1e5000", "Number out of range"),
        (b'{"a": [1' + b"0" * 400 + b"]}", "a number beyond 1e308"),
        (b"1" + b"0" * 9000, "out of range"),
        (b"NaN", "isn't JSON"),
        (b"Infinity", "isn't JSON"),
        (b'{"a": 1', "isn't JSON"),
        (b'"\xff"', "isn't UTF-8"),
        (b'"\\ud800"', "isn't JSON"),
        (b"<html>", "isn't JSON"),
    ],
)
async def test_hostile_json_fails_the_step(data: bytes, why: str) -> None:
    async with peer(says(body=data, kind="application/json")) as here:
        outcome = await called(here.url)
    assert isinstance(outcome, Fail)
    assert outcome.type == "validation"
    assert why in outcome.message
    assert len(outcome.message) < 200


async def test_large_json_does_not_block_the_loop() -> None:
    data = b"[" + b"[1]," * 250_000 + b"[]]"
    async with peer(says(body=data, kind="application/json")) as here:
        async with loop_unblocked(0.05):
            assert len(value(await called(here.url))["body"]) == 250_001


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, Fail("validation", "")), (401, Fail("authentication", "")),
        (403, Fail("authorization", "")), (404, Fail("runtime", "")), (408, Retry("timeout", "")),
        (409, Fail("conflict", "")), (410, Fail("runtime", "")), (418, Fail("runtime", "")),
        (422, Fail("validation", "")), (425, Retry("communication", "")),
        (429, Retry("rate_limited", "")), (500, Retry("runtime", "")),
        (502, Retry("communication", "")), (503, Retry("communication", "")),
        (504, Retry("timeout", "")), (599, Retry("communication", "")), (304, Fail("runtime", "")),
    ],
)  # fmt: skip
async def test_a_status_has_its_type_and_may_be_tried_again(
    status: int, expected: Retry | Fail
) -> None:
    async with peer(says(status, "hunter2")) as here:
        outcome = await called(f"{here.url}/?key=hunter2")
    assert isinstance(outcome, type(expected))
    assert outcome.type == expected.type
    assert str(status) in outcome.message
    assert "hunter2" not in outcome.message


@pytest.mark.parametrize(
    ("expect", "status", "is_fine"),
    [("2xx", 204, True), (404, 404, True), (["2XX", "404"], 404, True), ([201], 200, False),
     ("4xx", 200, False), (["3xx"], 302, True)],
)  # fmt: skip
async def test_the_step_says_what_it_expects(expect: Any, status: int, is_fine: bool) -> None:
    async with peer(says(status)) as here:
        assert isinstance(await called(here.url, expect=expect), Done) == is_fine


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("7", 7, 7), ("0", 0, 0), ("999999999", 86_400, 86_400),
        (3600, 3000, 3600), (-60, 0, 0),
    ],
    ids=["7", "0", "a_long_time", "in_an_hour", "a_minute_ago"],
)  # fmt: skip
async def test_retry_after_is_honoured_within_a_day(text: str | int, least: int, most: int) -> None:
    """A number is a time from now, said as a date."""
    text = formatdate(time() + text) if isinstance(text, int) else text
    async with peer(says(429, retry_after=text)) as here:
        outcome = await called(here.url)
    assert isinstance(outcome, Retry)
    assert outcome.delay is not None
    assert least <= outcome.delay <= most


@pytest.mark.parametrize(
    "text", ["", "-1", "soon", "9" * 5000, "1e9", "Mon, 99 Foo 99999 99:99:99"]
)
async def test_retry_after_that_says_nothing_leaves_the_delay_to_the_step(text: str) -> None:
    async with peer(says(503, retry_after=text)) as here:
        outcome = await called(here.url)
    assert outcome == Retry("communication", "the server answered 503 Service Unavailable")


@pytest.mark.parametrize(
    ("speak", "expected"),
    [
        (writes(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 65536, for_ever=True), Fail("validation", "")),
        (says(body=BOMB, content_encoding="gzip"), Fail("validation", "")),
        (writes(b"\r\n\r\n"), Retry("communication", "")),
        (writes(b"H", every=0.01, for_ever=True), Retry("timeout", "")),
    ],
)  # fmt: skip
async def test_a_hostile_answer_fails_the_step_with_its_type(
    speak: Any, expected: Retry | Fail
) -> None:
    async with peer(speak) as here:
        async with loop_unblocked():
            outcome = await called(here.url, timeout=0.3 if expected.type == "timeout" else 20)
    assert isinstance(outcome, type(expected))
    assert outcome.type == expected.type


async def test_redirects_are_followed_unless_the_step_says_no() -> None:
    async with peer(says(body="there"), a=says(302, location="/b")) as here:
        assert value(await called(f"{here.url}/a"))["body"] == "there"
        outcome = await called(f"{here.url}/a", follow_redirects=False)
    assert outcome == Fail("runtime", "the server answered 302 Found")


@pytest.mark.parametrize(
    ("url", "type"),
    [("http://169.254.169.254/", "authorization"), ("http://[::1]/", "authorization"),
     ("file:///etc/passwd", "validation"), ("http://u:hunter2@h/", "validation")],
)  # fmt: skip
async def test_a_place_that_is_not_for_callers_fails_the_step(url: str, type: str) -> None:
    outcome = await called(url)
    assert isinstance(outcome, Fail)
    assert outcome.type == type
    assert "hunter2" not in outcome.message


@pytest.mark.parametrize(
    "wrong",
    [{"json": 1, "body": "x"}, {"expect": "2x"}, {"expect": 99}, {"timeout": 0}, {"timeout": 1e9},
     {"uri": "x"}, {"headers": {"a": 1}}, {"body": {"base64": "~"}}, {"expect": ["2xx", "ok"]}],
)  # fmt: skip
def test_wrong_arguments_are_refused_before_anything_is_sent(wrong: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"url": "http://h/", **wrong}, http_request.Call)


async def test_a_header_that_would_be_two_is_refused() -> None:
    outcome = await called("http://127.0.0.1/", headers={"a": "hunter2\r\nb: c"})
    assert isinstance(outcome, Fail)
    assert (outcome.type, "hunter2" in outcome.message) == ("validation", False)
