"""`webhook.send`: signed as Standard Webhooks says, with one id for all attempts."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from typing import Any

import msgspec
import pytest
from peers import peer, says

from orchestrator.config import Config
from orchestrator.steps import Context, Done, Fail, Retry, webhook_send
from orchestrator.steps.webhook_send import Delivery, id_of, run, sign

KEY = b"0123456789abcdef01234567"
SECRET = "whsec_" + base64.b64encode(KEY).decode()


def context(key: str = "run-1:step:0") -> Context:
    return Context(Config(allow_targets=("127.0.0.1",)), "t", "r", 1, 1, None, {}, key=key)


def test_the_signature_is_the_one_of_the_specification() -> None:
    """The example of the reference libraries."""
    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signed = sign([key], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signed["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


async def test_a_receiver_can_verify_what_it_gets() -> None:
    async with peer(says(202)) as here:
        delivery = Delivery(here.url, {"type": "a.b", "data": [1]}, SECRET, {"X-A": "b"})
        outcome = await run(delivery, context())
        heard = here.heard[0]
    assert outcome == Done({"id": "run-1:step:0", "status": 202})
    assert heard.json == {"type": "a.b", "data": [1]}
    assert heard.headers["x-a"] == "b"
    assert abs(int(heard.headers["webhook-timestamp"]) - time.time()) < 5
    content = f"{heard.headers['webhook-id']}.{heard.headers['webhook-timestamp']}.".encode()
    mac = base64.b64encode(hmac.new(KEY, content + heard.body, hashlib.sha256).digest()).decode()
    assert heard.headers["webhook-signature"] == f"v1,{mac}"


async def test_every_secret_signs_while_one_is_replaced() -> None:
    other = "whsec_" + base64.b64encode(b"x" * 32).decode()
    async with peer() as here:
        await run(Delivery(here.url, 1, [SECRET, other]), context())
        signatures = here.heard[0].headers["webhook-signature"].split(" ")
    assert len({signature.removeprefix("v1,") for signature in signatures}) == 2


def test_the_id_is_the_key_and_never_has_a_dot() -> None:
    assert id_of("a:b-1") == "a:b-1"
    assert id_of("a.b") == id_of("a.b") != id_of("a.c")
    assert "." not in id_of("a.b")
    assert id_of("") != id_of("")


async def test_the_callers_headers_can_not_forge_a_signature() -> None:
    async with peer() as here:
        await run(Delivery(here.url, 1, SECRET, {"Webhook-ID": "forged"}), context())
        assert here.heard[0].headers["webhook-id"] == "run-1:step:0"


@pytest.mark.parametrize("secret", ["whsec_", "whsec_~~~", "whsec_YWJj", "é", "x" * 400])
async def test_a_secret_that_is_none_is_refused_and_not_told(secret: str) -> None:
    outcome = await run(Delivery("http://127.0.0.1/", 1, secret), context())
    assert isinstance(outcome, Fail)
    assert outcome.type == "validation"
    assert secret == "whsec_" or secret not in outcome.message


@pytest.mark.parametrize(
    ("status", "kind", "type"),
    [(301, Fail, "runtime"), (400, Fail, "validation"), (410, Fail, "runtime"),
     (429, Retry, "rate_limited"), (503, Retry, "communication")],
)  # fmt: skip
async def test_only_2xx_is_a_delivery(status: int, kind: Any, type: str) -> None:
    async with peer(says(status, location="/elsewhere")) as here:
        outcome = await run(Delivery(here.url, 1, SECRET), context())
        assert len(here.heard) == 1
    assert isinstance(outcome, kind)
    assert outcome.type == type


@pytest.mark.parametrize("wrong", [{}, {"secret": []}, {"secret": ""}, {"secret": SECRET, "a": 1}])
def test_wrong_arguments_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"url": "http://h/", "payload": 1, **wrong}, webhook_send.Delivery)
