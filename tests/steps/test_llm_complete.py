"""`llm.complete` against a local server that speaks as OpenAI does."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from peers import peer, says

from orchestrator.config import Config
from orchestrator.steps import Context, Done, Fail, Outcome, Retry
from orchestrator.steps.llm_complete import Prompt, endpoint, run

USAGE = {"prompt_tokens": 1, "completion_tokens": 2}
SAID = {
    "id": "x",
    "model": "m-1",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "four"},
                 "finish_reason": "stop"}],
    "usage": USAGE,
}  # fmt: skip
PATH = "v1/chat/completions"


async def completed(config: Config, **given: Any) -> Outcome:
    its = Context(config, "t", "r", 1, 1, None, {}, key="k")
    return await run(msgspec.convert({"model": "m", **given}, Prompt), its)


def answers(body: Any, status: int = 200) -> Any:
    return says(status, msgspec.json.encode(body), "application/json")


async def test_a_prompt_is_completed_by_the_operators_server() -> None:
    async with peer(says(404), **{PATH: answers(SAID)}) as here:
        config = Config(llm_url=here.url, llm_key="sk-1")
        outcome = await completed(config, prompt="2+2?", temperature=0, max_tokens=5)
        heard = here.heard[0]
    assert outcome == Done(
        {"text": "four", "model": "m-1", "usage": USAGE, "finish_reason": "stop"}
    )
    assert heard.headers["authorization"] == "Bearer sk-1"
    assert heard.headers["idempotency-key"] == "k"
    assert heard.json == {
        "model": "m",
        "messages": [{"role": "user", "content": "2+2?"}],
        "temperature": 0,
        "max_tokens": 5,
    }


async def test_messages_and_the_format_are_passed_on() -> None:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text"}]}]
    format = {"type": "json_object"}
    async with peer(answers(SAID)) as here:
        await completed(Config(llm_url=here.url), messages=messages, response_format=format)
        assert here.heard[0].json == {
            "model": "m", "messages": messages, "response_format": format
        }  # fmt: skip
        assert "authorization" not in here.heard[0].headers


async def test_the_operators_key_goes_to_the_operators_server_only() -> None:
    async with peer(answers(SAID)) as here:
        its = Config(llm_url="http://other.example", llm_key="sk-1", allow_targets=("127.0.0.1",))
        await completed(its, prompt="x", url=here.url)
        await completed(its, prompt="x", url=here.url, key="sk-2")
        keys = [heard.headers.get("authorization") for heard in here.heard]
    assert keys == [None, "Bearer sk-2"]


async def test_a_steps_own_server_is_not_trusted() -> None:
    async with peer(answers(SAID)) as here:
        outcome = await completed(Config(llm_url=here.url), prompt="x", url=here.url)
        assert here.heard == []
    assert isinstance(outcome, Fail)
    assert outcome.type == "authorization"


async def test_without_a_server_the_step_says_what_to_set() -> None:
    outcome = await completed(Config(), prompt="x")
    assert outcome == Fail("configuration", "no server: set ORC_LLM_URL, or give the step a url")


@pytest.mark.parametrize(
    "url",
    ["http://h", "http://h/", "http://h/v1", "http://h/v1/", "http://h/v1/chat/completions"],
)
def test_a_base_url_may_be_written_in_every_usual_way(url: str) -> None:
    assert endpoint(url) == "http://h/v1/chat/completions"


def test_a_base_url_keeps_its_version_and_its_query() -> None:
    assert endpoint("http://h/a/v1beta?k=1") == "http://h/a/v1beta/chat/completions?k=1"
    assert endpoint("http://[x") == "http://[x"


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (401, {"error": {"code": "invalid_api_key", "message": "hunter2"}},
         Fail("authentication", "the model's server answered 401 Unauthorized (invalid_api_key)")),
        (400, {"error": {"code": "context_length"}},
         Fail("validation", "the model's server answered 400 Bad Request (context_length)")),
        (429, {"error": {"code": "insufficient_quota"}},
         Fail("rate_limited", "the model's server answered insufficient_quota")),
        (429, {"error": {"code": "slow_down"}},
         Retry("rate_limited", "the model's server answered 429 Too Many Requests (slow_down)")),
        (500, "broken", Retry("runtime", "the model's server answered 500 Internal Server Error")),
        (503, {"error": "hunter2"},
         Retry("communication", "the model's server answered 503 Service Unavailable")),
    ],
)  # fmt: skip
async def test_an_error_has_its_type(status: int, body: Any, expected: Outcome) -> None:
    async with peer(answers(body, status)) as here:
        assert await completed(Config(llm_url=here.url), prompt="x") == expected


async def test_an_error_page_keeps_its_status() -> None:
    async with peer(says(502, "<html>hunter2</html>")) as here:
        outcome = await completed(Config(llm_url=here.url), prompt="x")
    assert outcome == Retry("communication", "the model's server answered 502 Bad Gateway")


async def test_a_model_that_says_nothing_in_words_says_an_empty_text() -> None:
    said: Any = {"choices": [{"message": {"content": None, "tool_calls": []}}]}
    async with peer(answers(said)) as here:
        outcome = await completed(Config(llm_url=here.url), prompt="x")
    assert outcome == Done({"text": "", "model": None, "usage": None, "finish_reason": None})


@pytest.mark.parametrize(
    "body", [b"{}", b'{"choices": []}', b'{"choices": [{"message": 1}]}', b"[" * 5000, b"1e5000"]
)
async def test_an_answer_that_is_no_completion_fails_the_step(body: bytes) -> None:
    async with peer(says(body=body, kind="application/json")) as here:
        outcome = await completed(Config(llm_url=here.url), prompt="x")
    assert isinstance(outcome, Fail)
    assert outcome.type == "validation"


@pytest.mark.parametrize(
    "given",
    [{}, {"prompt": "x", "messages": [{"role": "user", "content": "x"}]}, {"messages": []},
     {"prompt": "x", "key": "k"}, {"prompt": "x", "max_tokens": 0},
     {"messages": [{"role": "king", "content": "x"}]}, {"prompt": "x", "stream": True}],
)  # fmt: skip
def test_wrong_arguments_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"model": "m", **given}, Prompt)
