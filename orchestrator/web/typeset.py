"""Plain text to markup: paragraphs, `code`, and the colours of samples."""

from __future__ import annotations

import re

from markupsafe import Markup, escape

CODE = re.compile(r"`([^`\n]+)`")
PARAGRAPHS = re.compile(r"\n\s*\n")

TOKENS = re.compile(
    r"""(?P<key>"(?:[^"\\]|\\.)*"(?=\s*:\s))
      | (?P<text>"(?:[^"\\]|\\.)*")
      | (?P<number>(?<![\w-])-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?(?!\w))
      | (?P<word>\b(?:true|false|null)\b)
      | (?P<option>(?<=\s)-{1,2}[a-zA-Z][\w-]*)
    """,
    re.VERBOSE,
)


def inline(text: str) -> Markup:
    """One run of text, where `backticks` mark code."""
    pieces = CODE.split(text)
    return Markup("").join(
        Markup("<code>{}</code>").format(piece) if index % 2 else escape(piece)
        for index, piece in enumerate(pieces)
    )


def prose(text: str) -> Markup:
    """Paragraphs, which an empty line parts."""
    parts = [part for part in PARAGRAPHS.split(text.strip()) if part]
    return Markup("\n").join(Markup("<p>{}</p>").format(inline(part)) for part in parts)


def highlight(text: str) -> Markup:
    """JSON, or a shell line around it, with a class for each kind of token."""
    pieces: list[Markup] = []
    end = 0
    for token in TOKENS.finditer(text):
        pieces += [escape(text[end : token.start()]), _coloured(token)]
        end = token.end()
    return Markup("").join([*pieces, escape(text[end:])])


def _coloured(token: re.Match[str]) -> Markup:
    return Markup('<span class="{}">{}</span>').format(token.lastgroup, token[0])
