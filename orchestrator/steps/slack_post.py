"""`slack.post`: a message, by an incoming webhook or by `chat.postMessage`.

Arguments: `url` of an incoming webhook; or `token` and `channel` (then `url` may name another API
than https://slack.com/api/chat.postMessage). The message is `text` and/or `blocks`; `attachments`,
`thread_ts` and `timeout` in seconds (20) may go with it.

Result: `{channel, ts}`; a webhook names neither, they are null.

Slack answers 200 with `ok: false` for most failures; its word for the error stands in the message,
and decides the type and whether it is tried again. Redirects aren't followed.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

import msgspec

from ..guard import Answer
from . import Context, Done, Fail, Kind, Outcome, Retry
from .answers import Unreadable, ask, json_of, verdict

API = "https://slack.com/api/chat.postMessage"

WORDS = {
    "authentication": "invalid_auth not_authed token_revoked token_expired account_inactive"
    " not_allowed_token_type invalid_token",
    "authorization": "missing_scope no_permission access_denied restricted_action not_in_channel"
    " action_prohibited ekm_access_denied team_access_not_granted posting_to_general_channel_denied"
    " restricted_action_read_only_channel restricted_action_thread_only_channel"
    " cannot_reply_to_message",
    "validation": "channel_not_found is_archived channel_is_archived msg_too_long no_text"
    " invalid_blocks invalid_blocks_format invalid_attachments too_many_attachments"
    " invalid_arguments invalid_payload user_not_found no_channel no_service invalid_json",
}
TYPES = {word: type for type, words in WORDS.items() for word in words.split()}
AGAIN = {
    "ratelimited": "rate_limited",
    "rate_limited": "rate_limited",
    "message_limit_exceeded": "rate_limited",
    "internal_error": "communication",
    "fatal_error": "communication",
    "rollup_error": "communication",
    "service_unavailable": "communication",
    "request_timeout": "timeout",
}


class Post(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    url: str | None = None
    token: str | None = None
    channel: str | None = None
    text: str | None = None
    blocks: list[dict[str, Any]] | None = None
    attachments: list[dict[str, Any]] | None = None
    thread_ts: str | None = None
    timeout: Annotated[float, msgspec.Meta(gt=0, le=600)] = 20.0

    def __post_init__(self) -> None:
        if self.token is None and self.url is None:
            raise ValueError("a post needs the url of a webhook, or a token and a channel")
        if self.token is not None and self.channel is None:
            raise ValueError("a post with a token needs a channel")
        if not (self.text or self.blocks or self.attachments):
            raise ValueError("a post needs text, blocks or attachments")


async def run(post: Post, context: Context) -> Outcome:
    headers = {"content-type": "application/json; charset=utf-8"}
    if post.token is not None:
        headers["authorization"] = f"Bearer {post.token}"
    kept = msgspec.to_builtins(post)
    message = {name: kept[name] for name in kept.keys() - {"url", "token", "timeout"}}
    answer = await ask(
        context,
        "POST",
        post.url or API,
        headers=headers,
        body=msgspec.json.encode(message),
        timeout=post.timeout,
    )
    if not isinstance(answer, Answer):
        return answer
    return await _said(answer) if post.token is not None else _heard(answer)


def _heard(answer: Answer) -> Outcome:
    """What a webhook says: `ok`, or one word with a status."""
    if answer.status == 200:
        return Done({"channel": None, "ts": None})
    word = answer.body[:100].decode(errors="replace").strip()
    return _failed(word) if word in TYPES or word in AGAIN else verdict(answer, "Slack")


async def _said(answer: Answer) -> Outcome:
    if answer.status != 200:
        return verdict(answer, "Slack")
    try:
        said = await json_of(answer)
    except Unreadable as error:
        return Fail("validation", f"Slack: {error}")
    if not isinstance(said, dict) or not isinstance(said.get("ok"), bool):
        return Fail("validation", "Slack's answer doesn't say whether it's ok")
    if not said["ok"]:
        return _failed(str(said.get("error")))
    return Done({"channel": said.get("channel"), "ts": said.get("ts")})


def _failed(word: str) -> Retry | Fail:
    message = f"Slack answered {word if re.fullmatch(r'[a-z_]{1,60}', word) else 'an error'}"
    if word in AGAIN:
        return Retry(AGAIN[word], message)
    return Fail(TYPES.get(word, "runtime"), message)


KIND = Kind("slack.post", Post, run, outside=True)
