"""Where the API is, and the key that is shown there.

ORCHESTRATOR_URL and ORCHESTRATOR_KEY come first, then what `orc login` keeps, then this machine.
What was kept for one place is never shown to another.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import typer

from .. import config
from . import core

DEVELOPER = "00000000-0000-0000-0000-000000000001"
"""The system agent. Its bare id is a key in development, on loopback: nothing to be kept secret."""

LOOPBACK = {"127.0.0.1", "localhost", "::1"}


class Place(msgspec.Struct, kw_only=True, omit_defaults=True):
    """An API, and how one is known there: by a key, or by the tokens of a session."""

    url: str
    key: str = ""
    access_token: str = ""
    refresh_token: str = ""

    @property
    def bearer(self) -> str:
        return self.key or self.access_token

    @property
    def is_here(self) -> bool:
        return urlsplit(self.url).hostname in LOOPBACK


def file() -> Path:
    return Path(typer.get_app_dir("orchestrator")) / "login.json"


def kept() -> Place | None:
    """What `orc login` has kept."""
    try:
        return msgspec.json.decode(file().read_bytes(), type=Place)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise core.Failure(
            f"{file()} can't be read ({error}): delete it, and log in again", core.Exit.CONFIG
        ) from None


def keep(place: Place) -> None:
    """For its owner's eyes only, and whole at any moment."""
    path = file()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        out.write(msgspec.json.encode(place))
    new.replace(path)


def forget() -> None:
    file().unlink(missing_ok=True)


def present() -> Place:
    """Where to ask now, and as whom."""
    settings = config.load()
    known = kept()
    local = f"http://127.0.0.1:{settings.port}"
    url = tidy(settings.api_url or (known.url if known else local))
    if settings.api_key:
        return Place(url=url, key=settings.api_key)
    if known and known.url == url:
        return known
    place = Place(url=url)
    if not place.is_here:
        raise core.Failure(f"there is no key for {url}: {WAYS}", core.Exit.DENIED)
    return Place(url=url, key=DEVELOPER)


WAYS = "run `orc login`, or set ORCHESTRATOR_KEY"


def tidy(url: str) -> str:
    """One place has one spelling."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
        raise core.Failure(f"{url!r} isn't a URL such as https://host:port", core.Exit.USAGE)
    if parts.username or parts.password:
        raise core.Failure("the URL must not hold a password", core.Exit.USAGE)
    return url.rstrip("/")
