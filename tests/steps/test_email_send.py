"""`email.send` through a real SMTP server."""

from __future__ import annotations

import asyncio
import email
import email.policy
import resource
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from email.message import EmailMessage
from typing import Any

import msgspec
import pytest
import trustme
from aiosmtpd.smtp import SMTP, AuthResult, Envelope
from crew import own_clock
from peers import loop_unblocked

from orchestrator.config import Config
from orchestrator.steps import Context, Done, Fail, Outcome, Retry, email_send
from orchestrator.steps.email_send import Mail, enclose

MAIL: dict[str, Any] = {"from": "a@h.example", "to": "b@h.example", "subject": "s", "text": "t"}


class Office:
    """Takes mail, unless the recipient's name says otherwise: `550@…`, `451@…`."""

    def __init__(self) -> None:
        self.mails: list[Envelope] = []
        self.port = 0
        self.data = "250 taken"
        self.opened = asyncio.Event()
        self.opened.set()
        self.is_clingy = False

    async def handle_RCPT(self, _: Any, __: Any, envelope: Envelope, to: str, ___: Any) -> str:
        name = to.partition("@")[0]
        if name.isdigit():
            return f"{name} no"
        envelope.rcpt_tos.append(to)
        return "250 ok"

    async def handle_DATA(self, _: Any, __: Any, envelope: Envelope) -> str:
        self.mails.append(envelope)
        await self.opened.wait()
        return self.data

    async def handle_QUIT(self, server: SMTP, *_: Any) -> str:
        await server.push("250 still here" if self.is_clingy else "221 bye")
        return "221 bye"

    def message(self, number: int = -1) -> EmailMessage:
        content = self.mails[number].content
        assert isinstance(content, bytes)
        return email.message_from_bytes(content, policy=email.policy.default)


@asynccontextmanager
async def office(smtps: ssl.SSLContext | None = None, **options: Any) -> AsyncIterator[Office]:
    its = Office()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: SMTP(its, hostname="h.example", loop=loop, **options), "127.0.0.1", 0, ssl=smtps
    )
    its.port = server.sockets[0].getsockname()[1]
    try:
        yield its
    finally:
        server.close()
        await asyncio.sleep(0.01)


async def sent(url: str, its_key: str = "k", **given: Any) -> Outcome:
    its = Context(Config(smtp_url=url), "t", "r", 1, 1, None, {}, key=its_key)
    return await email_send.run(msgspec.convert({**MAIL, **given}, Mail), its)


async def test_a_mail_arrives_with_its_parts() -> None:
    async with office() as post:
        outcome = await sent(
            f"smtp://127.0.0.1:{post.port}",
            to=["Jörg <b@h.example>", "c@bücher.example"],
            cc="d@h.example",
            bcc="hidden@h.example",
            subject="Grüße " + "x" * 200,
            text="Töxt",
            html="<p>Töxt</p>",
            headers={"Reply-To": "f@h.example", "X-A": "ü"},
        )
    assert isinstance(outcome, Done)
    recipients = ["b@h.example", "c@xn--bcher-kva.example", "d@h.example", "hidden@h.example"]
    assert outcome.value["accepted"] == post.mails[0].rcpt_tos == recipients
    assert outcome.value["refused"] == {}
    message = post.message()
    assert message["From"] == "a@h.example"
    assert message["To"] == "Jörg <b@h.example>, c@xn--bcher-kva.example"
    assert (message["Cc"], message["Bcc"]) == ("d@h.example", None)
    assert message["Subject"] == "Grüße " + "x" * 200
    assert (message["Reply-To"], message["X-A"]) == ("f@h.example", "ü")
    assert message["Message-ID"] == outcome.value["message_id"]
    plain, html = message.get_body(("plain",)), message.get_body(("html",))
    assert plain and plain.get_content().strip() == "Töxt"
    assert html and html.get_content().strip() == "<p>Töxt</p>"
    assert b"hidden" not in (post.mails[0].original_content or b"")
    assert (post.mails[0].original_content or b"").isascii()


async def test_the_message_id_is_the_same_on_every_attempt() -> None:
    async with office() as post:
        for key in ("one", "one", "two"):
            await sent(f"smtp://127.0.0.1:{post.port}", key)
        ids = [post.message(number)["Message-ID"] for number in range(3)]
    assert ids[0] == ids[1] != ids[2]
    assert ids[0].endswith("@h.example>")


@pytest.mark.parametrize(
    "wrong",
    [
        {"subject": "a\r\nBcc: x@y.example"}, {"subject": "a\nb"}, {"subject": "a\0"},
        {"from": "a@h.example\r\nX: y"}, {"to": "b@h.example\nX: y"}, {"to": "b@h.example, c@h"},
        {"headers": {"X-A": "b\r\nX-B: c"}}, {"headers": {"X-A\r\n": "b"}}, {"headers": {"": "b"}},
        {"headers": {"Bcc": "x@h.example"}}, {"headers": {"from": "x@h.example"}},
        {"headers": {"Content-Type": "x"}}, {"headers": {"DKIM-Signature": "x"}},
        {"to": "Name\r\n <b@h.example>"}, {"to": "b"}, {"to": ""}, {"to": "@h"}, {"to": "a b@h"},
        {"to": "<b@h.example"}, {"to": "b@h@i"}, {"to": "bü@h.example"}, {"to": "b@h..example"},
        {"to": []}, {"to": [f"a{n}@h.example" for n in range(101)]}, {"to": "b@h.example>"},
        {"to": "b@" + "h" * 64 + ".example"}, {"headers": {"X-A": "\ud800"}}, {"text": "\ud800"},
        {"headers": {"Reply-To": "x@[\r"}}, {"to": "\ud800 <b@h.example>\n"},
    ],
)  # fmt: skip
async def test_what_is_no_mail_is_refused_before_anything_is_sent(wrong: dict[str, Any]) -> None:
    async with office() as post:
        outcome = await sent(f"smtp://127.0.0.1:{post.port}", **wrong)
        assert post.mails == []
    assert isinstance(outcome, Fail)
    assert outcome.type == "validation"


def test_no_text_becomes_a_header() -> None:
    envelope = enclose(msgspec.convert({**MAIL, "text": "\r\n.\r\nBcc: x\r\n"}, Mail), "k")
    head, _, _ = envelope.content.partition(b"\r\n\r\n")
    assert b"Bcc" not in head


async def test_whom_the_server_does_not_take_is_told() -> None:
    async with office() as post:
        outcome = await sent(f"smtp://127.0.0.1:{post.port}", to=["b@h.example", "550@h.example"])
    assert isinstance(outcome, Done)
    assert outcome.value["accepted"] == ["b@h.example"]
    assert outcome.value["refused"] == {"550@h.example": 550}


@pytest.mark.parametrize(
    ("to", "data", "expected"),
    [
        ("550@h.example", "250 ok", Fail("validation", "the mail server answered 550")),
        (["550@h.example", "451@h.example"], "250 ok",
         Retry("communication", "the mail server answered 451, 550")),
        ("b@h.example", "554 no", Fail("runtime", "the mail server answered 554")),
        ("b@h.example", "452 full", Retry("communication", "the mail server answered 452")),
    ],
)  # fmt: skip
async def test_a_refusal_is_final_or_not(to: Any, data: str, expected: Outcome) -> None:
    async with office() as post:
        post.data = data
        assert await sent(f"smtp://127.0.0.1:{post.port}", to=to) == expected


def certified() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server, client


async def test_the_password_is_given_under_starttls(monkeypatch: pytest.MonkeyPatch) -> None:
    server, trust = certified()
    monkeypatch.setattr(email_send, "_tls", lambda: trust)
    heard: list[Any] = []

    def authenticate(_: Any, __: Any, ___: Any, ____: str, data: Any) -> AuthResult:
        heard.append(data)
        return AuthResult(success=data.password == b"p@ss", handled=False)

    async with office(tls_context=server, authenticator=authenticate) as post:
        place = f"127.0.0.1:{post.port}?starttls"
        assert isinstance(await sent(f"smtp://user:p%40ss@{place}"), Done)
        outcome = await sent(f"smtp://user:hunter2@{place}")
    assert {data.login for data in heard} == {b"user"}
    assert outcome == Fail("authentication", "the mail server answered 535")


async def test_smtps_is_encrypted_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    server, trust = certified()
    monkeypatch.setattr(email_send, "_tls", lambda: trust)
    async with office(smtps=server) as post:
        assert isinstance(await sent(f"smtps://127.0.0.1:{post.port}"), Done)


async def test_a_server_without_starttls_gets_no_mail(monkeypatch: pytest.MonkeyPatch) -> None:
    async with office() as post:
        outcome = await sent(f"smtp://u:hunter2@127.0.0.1:{post.port}?starttls")
        assert post.mails == []
    assert isinstance(outcome, Fail)
    assert outcome.type == "configuration"


async def test_a_server_that_is_away_or_silent_may_come_back() -> None:
    async def silence(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)

    writers: list[asyncio.StreamWriter] = []
    silent = await asyncio.start_server(silence, "127.0.0.1", 0)
    url = f"smtp://127.0.0.1:{silent.sockets[0].getsockname()[1]}"
    outcome = await sent(url, timeout=0.1)
    assert outcome == Retry("timeout", "the mail server took longer than 0.1 s")
    silent.close()
    for writer in writers:
        writer.transport.abort()
    await asyncio.sleep(0)
    outcome = await sent(url)
    assert isinstance(outcome, Retry)
    assert outcome.type == "communication"


@pytest.mark.parametrize(
    "says",
    [b"x" * 65_536, b"220-more\r\n" * 5000, b"\xff\0\r\n", b"220 hi\r\n" * 5000],
)
async def test_a_server_that_talks_without_end_or_sense_fails_the_step_and_nothing_else(
    says: bytes,
) -> None:
    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while True:
                writer.write(says)
                await writer.drain()
                await asyncio.sleep(0)

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with loop_unblocked():
        port = server.sockets[0].getsockname()[1]
        outcome = await sent(f"smtp://127.0.0.1:{port}", timeout=1.0)
    server.close()
    assert isinstance(outcome, Retry)
    assert outcome.type in ("communication", "timeout")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64_000


async def test_a_server_that_falls_silent_is_left() -> None:
    async with office() as post:
        post.opened.clear()
        began = own_clock()
        async with asyncio.timeout(20):
            outcome = await sent(f"smtp://127.0.0.1:{post.port}", timeout=0.1)
        assert own_clock() - began < 1
        post.opened.set()
    assert outcome == Retry("timeout", "the mail server took longer than 0.1 s")


async def test_a_canceled_mail_does_not_wait_for_a_farewell() -> None:
    async with office() as post:
        post.opened.clear()
        mailing = asyncio.create_task(sent(f"smtp://127.0.0.1:{post.port}"))
        while not post.mails:
            await asyncio.sleep(0.001)
        mailing.cancel()
        await asyncio.wait([mailing], timeout=20)
        assert mailing.cancelled()
        post.opened.set()


async def test_a_mail_that_was_taken_is_taken_whatever_comes_after() -> None:
    async with office() as post:
        post.is_clingy = True
        assert isinstance(await sent(f"smtp://127.0.0.1:{post.port}"), Done)


async def test_without_a_server_the_step_says_what_to_set() -> None:
    assert await sent("") == Fail("configuration", "no mail server: set ORC_SMTP_URL")


@pytest.mark.parametrize(
    "given",
    [{}, {"from": "a@h", "to": "b@h"}, {**MAIL, "attachments": []}, {**MAIL, "timeout": 0}],
)
def test_wrong_arguments_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(given, Mail)
