"""`slack.post`: both ways into Slack, and what it says when it doesn't want to."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from peers import peer, says

from orchestrator.config import Config
from orchestrator.steps import Context, Done, Fail, Outcome, Retry
from orchestrator.steps.slack_post import Post, run

TOKEN = {"token": "xoxb-hunter2", "channel": "C1", "text": "hi"}


async def posted(url: str, **given: Any) -> Outcome:
    its = Context(Config(allow_targets=("127.0.0.1",)), "t", "r", 1, 1, None, {}, key="k")
    return await run(msgspec.convert({"url": url, **given}, Post), its)


async def test_a_webhook_gets_the_message_and_nothing_else() -> None:
    async with peer(says(body="ok")) as here:
        assert await posted(here.url, text="hi") == Done({"channel": None, "ts": None})
        assert here.heard[0].json == {"text": "hi"}
        assert "authorization" not in here.heard[0].headers


async def test_a_token_posts_to_a_channel() -> None:
    said = '{"ok": true, "channel": "C1", "ts": "1.2", "message": {}}'
    async with peer(says(body=said, kind="application/json")) as here:
        outcome = await posted(here.url, **TOKEN, blocks=[{"type": "divider"}], thread_ts="1.1")
        heard = here.heard[0]
    assert outcome == Done({"channel": "C1", "ts": "1.2"})
    assert heard.headers["authorization"] == "Bearer xoxb-hunter2"
    assert heard.json == {
        "channel": "C1", "text": "hi", "blocks": [{"type": "divider"}], "thread_ts": "1.1"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ('{"ok": false, "error": "invalid_auth"}', Fail("authentication", "")),
        ('{"ok": false, "error": "missing_scope"}', Fail("authorization", "")),
        ('{"ok": false, "error": "channel_not_found"}', Fail("validation", "")),
        ('{"ok": false, "error": "something_new"}', Fail("runtime", "")),
        ('{"ok": false, "error": "ratelimited"}', Retry("rate_limited", "")),
        ('{"ok": false, "error": "internal_error"}', Retry("communication", "")),
        ('{"ok": false, "error": "xoxb hunter2"}', Fail("runtime", "")),
        ('{"ok": false}', Fail("runtime", "")),
        ('{"ok": "no"}', Fail("validation", "")),
        ("[]", Fail("validation", "")),
        ("1e5000", Fail("validation", "")),
        ("<html>", Fail("validation", "")),
    ],
)
async def test_an_error_in_a_200_is_an_error(said: str, expected: Retry | Fail) -> None:
    async with peer(says(body=said)) as here:
        outcome = await posted(here.url, **TOKEN)
    assert isinstance(outcome, type(expected))
    assert outcome.type == expected.type
    assert "hunter2" not in outcome.message


@pytest.mark.parametrize(
    ("status", "word", "expected"),
    [
        (404, "channel_not_found", Fail("validation", "Slack answered channel_not_found")),
        (403, "action_prohibited", Fail("authorization", "Slack answered action_prohibited")),
        (500, "rollup_error", Retry("communication", "Slack answered rollup_error")),
        (404, "hunter2", Fail("runtime", "Slack answered 404 Not Found")),
        (302, "", Fail("runtime", "Slack answered 302 Found")),
    ],
)
async def test_a_webhooks_word_is_its_error(status: int, word: str, expected: Outcome) -> None:
    async with peer(says(status, word)) as here:
        assert await posted(here.url, text="hi") == expected


@pytest.mark.parametrize("given", [{"text": "hi"}, TOKEN])
async def test_slack_says_when_it_wants_the_next(given: Any) -> None:
    async with peer(says(429, "x", retry_after="30")) as here:
        outcome = await posted(here.url, **given)
    assert outcome == Retry("rate_limited", "Slack answered 429 Too Many Requests", 30)


@pytest.mark.parametrize(
    "given",
    [{}, {"text": "hi"}, {"token": "t", "text": "hi"}, {"url": "http://h/"},
     {"url": "http://h/", "text": "hi", "colour": "red"}],
)  # fmt: skip
def test_wrong_arguments_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(given, Post)
