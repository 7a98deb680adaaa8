"""Keys of agents: `ork_<id>_<secret><checksum>`, made in sql/auth/keys.sql."""

from __future__ import annotations

import hashlib
import re

KEY = re.compile(r"(ork_([0-9a-f]{16})_[0-9a-f]{40})([0-9a-f]{8})")


def id_of(key: str) -> str | None:
    """The id of a key; none when it is none of ours, or was mistyped: nobody needs to be asked."""
    found = KEY.fullmatch(key)
    if found is None or hashlib.sha256(found[1].encode()).hexdigest()[:8] != found[3]:
        return None
    return found[2]


def hash_of(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
