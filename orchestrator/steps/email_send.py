"""`email.send`: a mail, over the operator's SMTP server (`ORC_SMTP_URL`).

Arguments: `to`, `cc`, `bcc`: an address or a list, each `a@b.example` or `Name <a@b.example>`;
`from`; `subject`; `text` and/or `html`; `headers` of one's own, such as `Reply-To`; `timeout` in
seconds for all of it (60). At most 100 recipients. A line break in any header is refused.

`Message-ID` is made of the step's key, so it is the same on every attempt.

Result: `{message_id, accepted, refused}`: who gets it, and whom the server didn't take, with its
code. When it takes nobody the step fails: after codes 4xx, a lost connection or a time-out it is
tried again, after 5xx it isn't.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import re
import socket
import ssl
import uuid
from contextlib import suppress
from email.errors import MessageError
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, localtime
from typing import Annotated, Any
from urllib.parse import unquote, urlsplit

import aiosmtplib
import msgspec

from ..config import Config
from . import Context, Done, Fail, Kind, Outcome, Retry

MOST_RECIPIENTS = 100
FAREWELL_SECONDS = 1.0
POLICY = SMTP.clone(cte_type="7bit")  # any server takes it

NAMED = re.compile(r"([^<>]*)<([^<>\s]+)>")
BARE = re.compile(r"[^\s@<>()\[\]\\,;:\"]{1,64}@[^\s@<>()\[\]\\,;:\"]{1,253}")
HEADER = re.compile(r"[A-Za-z0-9-]{1,64}")
BREAKS = re.compile(r"[\x00\r\n]")
OURS = {"from", "sender", "to", "cc", "bcc", "subject", "date", "message-id", "return-path",
        "received", "mime-version", "dkim-signature"}  # fmt: skip


class Mail(msgspec.Struct, forbid_unknown_fields=True, rename={"sender": "from"}):
    sender: str
    to: str | list[str]
    subject: str = ""
    text: str | None = None
    html: str | None = None
    cc: str | list[str] = []
    bcc: str | list[str] = []
    headers: dict[str, str] = {}
    timeout: Annotated[float, msgspec.Meta(gt=0, le=600)] = 60.0

    def __post_init__(self) -> None:
        if self.text is None and self.html is None:
            raise ValueError("a mail needs text or html")


class Envelope(msgspec.Struct):
    """What the server hears, and what the people read."""

    id: str
    sender: str
    recipients: list[str]
    content: bytes


async def run(mail: Mail, context: Context) -> Outcome:
    if not context.config.smtp_url:
        return Fail("configuration", "no mail server: set ORC_SMTP_URL")
    try:
        envelope = enclose(mail, context.key)
    except ValueError as error:
        return Fail("validation", str(error))
    try:
        client = aiosmtplib.SMTP(**await _options(context.config))
        refused = await _deliver(client, envelope, mail.timeout)
    except TimeoutError:
        return Retry("timeout", f"the mail server took longer than {mail.timeout:g} s")
    except (aiosmtplib.SMTPException, OSError) as error:
        return _failed(error)
    accepted = [address for address in envelope.recipients if address not in refused]
    return Done({"message_id": envelope.id, "accepted": accepted, "refused": refused})


def enclose(mail: Mail, key: str) -> Envelope:
    """The mail as bytes, or ValueError with what's wrong with it."""
    sender = _address(mail.sender)
    to, cc, bcc = (_addresses(given) for given in (mail.to, mail.cc, mail.bcc))
    recipients = list(dict.fromkeys(address.addr_spec for address in (*to, *cc, *bcc)))
    if not 1 <= len(recipients) <= MOST_RECIPIENTS:
        raise ValueError(f"a mail has 1 to {MOST_RECIPIENTS} recipients")
    id = f"<{_id(key)}@{sender.domain}>"
    message = EmailMessage(policy=POLICY)
    message["From"], message["To"] = sender, to
    if cc:
        message["Cc"] = cc
    message["Subject"] = _line(mail.subject)
    message["Date"], message["Message-ID"] = format_datetime(localtime()), id
    _add_headers(message, mail.headers)
    try:
        _add_content(message, mail)
        content = message.as_bytes()
    except (MessageError, UnicodeError, ValueError):
        raise ValueError("the mail has what can't be written as one") from None
    return Envelope(id, sender.addr_spec, recipients, content)


def _id(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:32] if key else uuid.uuid4().hex


def _add_headers(message: EmailMessage, headers: dict[str, str]) -> None:
    for name, value in headers.items():
        if not HEADER.fullmatch(name):
            raise ValueError("a header's name has a character that can't be sent")
        if name.lower() in OURS or name.lower().startswith("content-"):
            raise ValueError(f"the header {name} can't be set")
        try:
            message[name] = _line(value)
        except (MessageError, ValueError, IndexError):
            raise ValueError(f"the header {name} can't be sent as it is") from None


def _add_content(message: EmailMessage, mail: Mail) -> None:
    if mail.text is not None:
        message.set_content(mail.text.replace("\0", "\ufffd"))
    if mail.html is not None:
        add = message.set_content if mail.text is None else message.add_alternative
        add(mail.html.replace("\0", "\ufffd"), subtype="html")


def _line(text: str) -> str:
    if BREAKS.search(text):
        raise ValueError("a header has a line break or a NUL in it")
    return text


def _addresses(given: str | list[str]) -> list[Address]:
    return [_address(text) for text in ([given] if isinstance(given, str) else given)]


def _address(text: str) -> Address:
    """The domain as DNS has it; before the @, ASCII only: most servers take no more."""
    found = NAMED.fullmatch(_line(text).strip())
    name, spec = (found[1].strip().strip('"'), found[2]) if found else ("", text.strip())
    local, _, domain = spec.partition("@")
    try:
        ascii = f"{local.encode('ascii').decode()}@{domain.encode('idna').decode()}"
        if not BARE.fullmatch(ascii):
            raise ValueError
        return Address(display_name=name.encode(errors="replace").decode(), addr_spec=ascii)
    except (MessageError, ValueError, IndexError):
        raise ValueError("an address isn't one: write a@b.example or Name <a@b.example>") from None


@functools.cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


async def _deliver(client: aiosmtplib.SMTP, envelope: Envelope, timeout: float) -> dict[str, int]:
    """Whom the server didn't take, and its code. What it says to a farewell changes nothing.

    `async with client` would say farewell when canceled, too, and wait for an answer.
    """
    try:
        async with asyncio.timeout(timeout):
            await client.connect()
            refused, _ = await client.sendmail(
                envelope.sender, envelope.recipients, envelope.content
            )
        with suppress(aiosmtplib.SMTPException, OSError):
            await client.quit(timeout=FAREWELL_SECONDS)
    finally:
        client.close()
    return {address: answer.code for address, answer in refused.items()}


async def _options(config: Config) -> dict[str, Any]:
    server = urlsplit(config.smtp_url)
    options: dict[str, Any] = {
        "hostname": server.hostname,
        "local_hostname": socket.gethostname(),
        "timeout": None,  # ours is for all of it
        "port": server.port,
        "use_tls": server.scheme == "smtps",
        "start_tls": server.scheme == "smtp" and "starttls" in server.query,
    }
    if server.username is not None:
        options["username"] = unquote(server.username)
        options["password"] = unquote(server.password or "")
    if options["use_tls"] or options["start_tls"]:  # 0.1 s of reading certificates
        options["tls_context"] = await asyncio.to_thread(_tls)
    return options


def _failed(error: Exception) -> Retry | Fail:
    match error:
        case aiosmtplib.SMTPAuthenticationError():
            codes, type = [error.code], "authentication"
        case aiosmtplib.SMTPRecipientsRefused():
            codes, type = [refused.code for refused in error.recipients], "validation"
        case aiosmtplib.SMTPResponseException(code=aiosmtplib.SMTPStatus.invalid_response):
            return Retry("communication", "the mail server answered no SMTP")
        case aiosmtplib.SMTPResponseException():
            codes, type = [error.code], "runtime"
        case OSError():
            return Retry("communication", "the mail server can't be reached, or hung up")
        case _:  # no STARTTLS, no AUTH
            return Fail("configuration", "the mail server can't do what ORC_SMTP_URL asks for")
    message = f"the mail server answered {', '.join(str(code) for code in sorted(set(codes)))}"
    if any(400 <= code < 500 for code in codes):
        return Retry("communication", message)
    return Fail(type, message)


KIND = Kind("email.send", Mail, run, outside=True, needs="ORC_SMTP_URL")
