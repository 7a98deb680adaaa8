"""Which tools of the catalogue a document would use that its caller has no scope for.

Pipelines never change, so whoever stores one is the one to ask. The document is looked through as
it was given: whatever says `uses` counts, in the child that a `flow.run` has in its arguments, too.
A child that is only made while the run goes on could use anything, and needs all scopes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from ..config import Config
from ..errors import Misconfigured, NotAllowed, Unavailable
from . import catalog

NAMES = ("uses", "handler")
ARGUMENTS = ("with", "inputs")


def refuse_foreign_tools(document: Any, config: Config, may: Callable[[str], bool]) -> None:
    """Raises NotAllowed when the document uses what the caller may not."""
    lacking = _lacking(config, may)
    if not lacking:
        return
    for step in _objects(document):
        for name in (str(step[key]) for key in NAMES if key in step):
            if name in lacking:
                raise _refusal(f"{name} needs the scope {lacking[name]}", name)
            if name == "flow.run" and _is_made_later(step):
                scopes = ", ".join(sorted(set(lacking.values())))
                raise _refusal(f"A child that is made while the run goes on needs {scopes}", name)


def _refusal(text: str, name: str) -> NotAllowed:
    return NotAllowed(text, which=name, hint="GET /tools lists what you may use")


def _lacking(config: Config, may: Callable[[str], bool]) -> Mapping[str, str]:
    try:
        entries = catalog.entries(config)
    except Misconfigured:
        text = "The tool catalogue can't be read: which tools need scopes isn't known"
        raise Unavailable(text, hint="the operator sees why at GET /tools") from None
    missing = ((name, [s for s in entry.scopes if not may(s)]) for name, entry in entries.items())
    return {name: scopes[0] for name, scopes in missing if scopes}


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Every object in it. Documents are bounded, in depth too."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _objects(item)


def _is_made_later(step: dict[str, Any]) -> bool:
    given: Any = next((step[key] for key in ARGUMENTS if key in step), {})
    if not isinstance(given, dict):
        return True
    text = msgspec.json.encode(given.get("pipeline", "${")).replace(b"$${", b"")
    return b"${" in text
