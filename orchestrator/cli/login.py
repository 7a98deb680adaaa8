"""orc login: a key, or the tokens of a user, kept for the commands that ask the API."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from . import core, place
from .place import Place
from .remote import remote, with_tokens

app = typer.Typer()


@app.command()
def login(
    url: Annotated[str, typer.Argument(help="Of the API; as before, or this machine.")] = "",
    user: Annotated[
        str, typer.Option("--user", "-u", help="Log this user in with a password, not a key.")
    ] = "",
    tenant: Annotated[str, typer.Option(help="Of the user.")] = "default",
    issue: Annotated[
        str, typer.Option(metavar="AGENT", help="Have the database issue a key of this agent.")
    ] = "",
) -> None:
    """Keep a key, or a user's tokens, for the commands that ask the API.

    Key or password come from standard input, or are asked for: they stand in no list of processes
    and in no history of a shell.

    The first key of an installation: orc login --issue system, where the database is.
    """
    where = Place(url=place.tidy(url) if url else _usual())
    if user:
        known = core.run(_with_password(where, tenant, user, _hidden(f"Password of {user}")))
    elif issue:
        (row,) = core.call("issue_key", tenant=tenant, agent=issue)
        known = Place(url=where.url, key=row["issue_key"])
    else:
        known = Place(url=where.url, key=_hidden(f"Key for {where.url}"))
    me = core.run(_me(known))
    place.keep(known)
    print(f"{_who(me)} at {known.url}, kept in {place.file()}")
    if not known.is_here and known.url.startswith("http:"):
        core.note("the connection isn't encrypted: whoever is on the way can read the key")


@app.command()
def logout() -> None:
    """End the session, if there is one, and forget what was kept."""
    known = place.kept()
    place.forget()
    if known and known.refresh_token:
        core.run(_end(known))
    print(f"{known.url} is forgotten" if known else "nothing was kept")


@app.command()
def whoami(output: core.Output = "table") -> None:
    """Say where commands ask, and as whom."""
    where = place.present()
    me = core.run(_me(where))
    if output == "table":
        print(f"{_who(me)} at {where.url}; scopes {' '.join(me['scopes'])}")
    else:
        core.show_one({**me, "url": where.url}, output)


def _usual() -> str:
    """As it is set, or was; else this machine."""
    settings, known = core.configured(), place.kept()
    usual = settings.api_url or (known.url if known else f"http://127.0.0.1:{settings.port}")
    return place.tidy(usual)


def _hidden(words: str) -> str:
    if sys.stdin.isatty():
        text: str = typer.prompt(words, hide_input=True)
    else:
        text = sys.stdin.readline()
    if not text.strip():
        raise core.Failure(f"{words}: nothing came from standard input", core.Exit.USAGE)
    return text.rstrip("\r\n")


def _who(me: dict[str, Any]) -> str:
    return core.cell(f"{me['name']} ({me['kind']} of {me['tenant_id']})")


async def _me(where: Place) -> dict[str, Any]:
    async with remote(where) as api:
        me: dict[str, Any] = await api.ask("GET", "/auth/me")
        return me


async def _with_password(where: Place, tenant: str, user: str, password: str) -> Place:
    body = {"username": user, "password": password, "tenant_id": tenant}
    async with remote(where) as api:
        return with_tokens(where, await api.ask("POST", "/auth/token", body=body))


async def _end(known: Place) -> None:
    async with remote(known) as api:
        await api.ask("POST", "/auth/logout", body={"refresh_token": known.refresh_token})
