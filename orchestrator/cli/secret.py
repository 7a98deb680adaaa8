"""orc secret …"""

from __future__ import annotations

import sys

import typer

from .. import config
from ..errors import Misconfigured
from . import core

app = core.group("Secrets of tenants, encrypted in the database.")


@app.command("set")
def secret_set(name: str, tenant: core.Tenant = "default") -> None:
    """Set a secret. Its value comes from standard input, or is asked for."""
    from .. import secrets

    if sys.stdin.isatty():
        value = typer.prompt(f"Value of {name}", hide_input=True, confirmation_prompt=True)
    else:
        value = sys.stdin.read().removesuffix("\n").removesuffix("\r")
    try:
        row = secrets.sealed(config.load(), tenant, name, value)
    except secrets.Missing as error:
        raise Misconfigured(f"secret {name} {error}") from None
    (put,) = core.call("put_secret", **row)
    print("set" if put["created"] else "replaced")


@app.command("list")
def secret_list(tenant: core.Tenant = "default", output: core.Output = "table") -> None:
    """List the secrets of a tenant: their names, not what they are."""
    rows = core.call("list_secrets", tenant=tenant)
    core.show(rows, output, ("name", "key_id", "created_at", "by"), key="name")


@app.command("delete")
def secret_delete(name: str, tenant: core.Tenant = "default", yes: core.Yes = False) -> None:
    """Delete a secret."""
    core.sure(f"The secret {name} of {tenant} goes. Sure?", yes)
    core.call("delete_secret", tenant=tenant, name=name)
    print("deleted")
