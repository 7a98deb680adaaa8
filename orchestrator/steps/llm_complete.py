"""`llm.complete`: a completion by an OpenAI-compatible server, awaited.

Arguments: `model`; `prompt` (text) or `messages` (`[{role, content}, …]`); `temperature`;
`max_tokens`; `response_format`, as the server takes it; `timeout` in seconds (120). `url` and `key`
name another server than `ORC_LLM_URL` with `ORC_LLM_KEY`; the operator's key goes to the operator's
server only, and only that one may be in a private network.

The URL is one of `…/v1/chat/completions`, `…/v1`, or what stands before `/v1`.

Result: `{text, model, usage, finish_reason}`. `text` is "" when the model said nothing in words.
There is no completion by callback here.

`cache_seconds` lets an answer serve again, for the same tenant, model, server and question. Its
key in the cache is `{model, question}`, the latter a SHA-256 as `question_digest` makes it. A
`cache` beside the step counts instead, if there is one.

429 is tried again after `Retry-After`, unless the account's quota is spent; 400 is `validation`.
"""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit, urlunsplit

import msgspec

from ..guard import Answer
from . import Context, Done, Fail, Kind, Outcome
from .answers import Unreadable, ask, json_of, verdict

OURS = frozenset({"prompt", "url", "key", "timeout", "cache_seconds"})
"""Fields that the server isn't sent as they are."""


class Message(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


class Prompt(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    model: str
    prompt: str | None = None
    messages: list[Message] | None = None
    temperature: float | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    response_format: dict[str, Any] | None = None
    url: str | None = None
    key: str | None = None
    timeout: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 120.0
    cache_seconds: Annotated[float, msgspec.Meta(gt=0, le=31_536_000)] | None = None

    def __post_init__(self) -> None:
        if (self.prompt is None) == (not self.messages):
            raise ValueError("a completion needs a prompt or messages, and not both")
        if self.key is not None and self.url is None:
            raise ValueError("a key needs the url that it is for")


class Said(msgspec.Struct):
    content: str | None = None


class Choice(msgspec.Struct):
    message: Said
    finish_reason: str | None = None


class Completion(msgspec.Struct):
    choices: Annotated[list[Choice], msgspec.Meta(min_length=1)]
    model: str | None = None
    usage: dict[str, Any] | None = None


async def run(prompt: Prompt, context: Context) -> Outcome:
    config = context.config
    if not (prompt.url or config.llm_url):
        return Fail("configuration", "no server: set ORC_LLM_URL, or give the step a url")
    key = prompt.key if prompt.url else config.llm_key
    answer = await ask(
        context,
        "POST",
        endpoint(prompt.url or config.llm_url),
        headers={
            "content-type": "application/json",
            **({"authorization": f"Bearer {key}"} if key else {}),
        },
        body=msgspec.json.encode(_question(prompt)),
        timeout=prompt.timeout,
        trusted=prompt.url is None,
    )
    if not isinstance(answer, Answer):
        return answer
    return await _completed(answer)


def endpoint(url: str) -> str:
    """Where completions are, from any of the ways in which people write a base URL."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url  # the guard says what's wrong with it
    path = parts.path.rstrip("/")
    if not path.endswith("/chat/completions"):
        path += "/chat/completions" if re.search(r"/v\d+\w*$", path) else "/v1/chat/completions"
    return urlunsplit(parts._replace(path=path))


def _question(prompt: Prompt) -> dict[str, Any]:
    given = msgspec.to_builtins(prompt)
    question = {name: given[name] for name in given.keys() - OURS}
    if prompt.prompt is not None:
        question["messages"] = [{"role": "user", "content": prompt.prompt}]
    return question


def question_digest(prompt: Prompt) -> str:
    """Of what is asked and of whom; the order of names doesn't matter."""
    asked = [prompt.url and endpoint(prompt.url), _question(prompt)]
    return hashlib.sha256(msgspec.json.encode(asked, order="sorted")).hexdigest()


def _caches(prompt: Prompt) -> tuple[dict[str, str], float] | None:
    if prompt.cache_seconds is None:
        return None
    return {"model": prompt.model, "question": question_digest(prompt)}, prompt.cache_seconds


async def _completed(answer: Answer) -> Outcome:
    try:
        said = await json_of(answer)
        if answer.status != 200:
            return _refused(answer, said)
        completion = msgspec.convert(said, Completion)
    except (Unreadable, msgspec.ValidationError) as error:
        if answer.status != 200:
            return verdict(answer, "the model's server")
        return Fail("validation", f"the model's server: {error}")
    choice = completion.choices[0]
    return Done(
        {
            "text": choice.message.content or "",
            "model": completion.model,
            "usage": completion.usage,
            "finish_reason": choice.finish_reason,
        }
    )


def _refused(answer: Answer, said: Any) -> Outcome:
    problem = said.get("error") if isinstance(said, dict) else None
    code = str(problem.get("code")) if isinstance(problem, dict) else ""
    if code == "insufficient_quota":
        return Fail("rate_limited", "the model's server answered insufficient_quota")
    outcome = verdict(answer, "the model's server")
    if re.fullmatch(r"[a-z_]{1,60}", code):
        outcome.message += f" ({code})"
    return outcome


KIND = Kind("llm.complete", Prompt, run, outside=True, keyed=True, caches=_caches)
