"""Spans of time as people write them: `250ms`, `1h30m`, `PT5M`, or a number of seconds."""

from __future__ import annotations

import math
import re

LONGEST = 3660 * 86_400.0
"""Ten years."""

UNITS = {"w": 604_800.0, "d": 86_400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
NUMBER = r"([0-9]{1,15}(?:\.[0-9]{1,9})?)"
WRITTEN = re.compile("".join(f"(?:{NUMBER}{unit}(?![a-z]))?" for unit in UNITS))
ISO = re.compile(
    rf"P(?:{NUMBER}W)?(?:{NUMBER}D)?(?:T(?=[0-9])(?:{NUMBER}H)?(?:{NUMBER}M)?(?:{NUMBER}S)?)?"
)


def seconds(value: object) -> float:
    """How long that is, or ValueError with what's wrong with it."""
    if isinstance(value, str):
        total = _of_text(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        total = min(value, LONGEST * 2)
    else:
        raise ValueError("expected a duration such as 30s, or a number of seconds")
    if not math.isfinite(total) or total < 0:
        raise ValueError("a duration is finite and not negative")
    if total > LONGEST:
        raise ValueError("longer than ten years")
    return float(total)


def _of_text(text: str) -> float:
    found = ISO.fullmatch(text) if text.startswith("P") else WRITTEN.fullmatch(text)
    parts = found.groups(default="") if found else ()
    if not any(parts):
        raise ValueError(f"{text[:40]!r} is no duration: write 250ms, 30s, 1h30m or PT5M")
    pairs = zip(parts, UNITS.values(), strict=False)  # ISO has no milliseconds
    return sum(float(part) * unit for part, unit in pairs if part)
