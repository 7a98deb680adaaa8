"""`assert`: fails with a message when a value isn't true."""

from __future__ import annotations

import msgspec

from . import Context, Done, Fail, Kind


class Claim(msgspec.Struct, forbid_unknown_fields=True):
    that: bool
    message: str = "the assertion does not hold"


def run(claim: Claim, context: Context) -> Done | Fail:
    return Done(True) if claim.that else Fail("validation", claim.message)


KIND = Kind("assert", Claim, run, pure=True, recorded=False)
