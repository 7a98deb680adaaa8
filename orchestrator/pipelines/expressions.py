"""Where the language meets `expr`: compiles, notes what's wrong, and what is mentioned."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .. import expr
from .fields import wrong
from .problems import At, Mention

Condition = expr.Condition
Template = expr.Template

ROOTS = expr.ROOTS | {"result"}
"""The names that an expression may start with; where each can be seen is `check`'s matter."""


def condition(at: At, value: Any) -> Condition | None:
    """CEL with or without braces; true and false may stand as they are."""
    source = str(value).lower() if isinstance(value, bool) else value
    if not isinstance(source, str):
        wrong(at, "an expression", value)
        return None
    try:
        compiled = expr.condition(source, ROOTS)
    except expr.ExpressionError as error:
        at.say("expression", str(error))
        return None
    at.notes.mentions.append(Mention(at, source, compiled.references))
    return compiled


def template(at: At, value: Any) -> Template:
    """Any JSON with `${…}` in its texts."""
    try:
        compiled = expr.template(value, ROOTS)
    except expr.TemplateErrors:
        return _broken(at, value)
    if compiled.references:
        at.notes.mentions.append(Mention(at, value, compiled.references))
    return compiled


def _broken(at: At, value: Any) -> Template:
    """Text by text, so that what can't be read doesn't hide what else is mentioned."""
    for place, text in _texts(at, value):
        references, errors = _read(text)
        at.notes.mentions.append(Mention(place, text, references))
        for error in errors:
            place.say("expression", str(error))
    return expr.template(None)


def _read(text: str) -> tuple[frozenset[tuple[str, ...]], list[expr.ExpressionError]]:
    """What a text refers to, and what of it can't be read."""
    try:
        return expr.template(text, ROOTS).references, []
    except expr.TemplateErrors as errors:
        return errors.references, [error for _, error in errors.problems]


def expression(at: At, value: Any) -> Template:
    """A template, whose braces may be missing when it is one expression."""
    if isinstance(value, str) and "${" not in value:
        value = "${" + value + "}"
    return template(at, value)


def places(mention: Mention, reference: tuple[str, ...]) -> list[At]:
    """Where in the value it stands. Compiles again: only for what's wrong."""
    return [
        place for place, text in _texts(mention.at, mention.value) if reference in _read(text)[0]
    ] or [mention.at]


def _texts(at: At, value: Any) -> Iterator[tuple[At, str]]:
    if isinstance(value, str):
        if "${" in value:
            yield at, value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _texts(at / name, item)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _texts(at / number, item)
