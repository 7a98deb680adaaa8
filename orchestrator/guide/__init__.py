"""The guide: a page for each concern, beside this file. Every example on it is run by a test."""

from __future__ import annotations

import sys
from difflib import get_close_matches
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown
from rich.markup import escape
from rich.table import Table

HERE = Path(__file__).parent
ORDER = (
    "pipelines", "expressions", "tools", "durability", "waits", "schedules", "tasks",
    "events", "streams", "values", "secrets", "sql", "cli", "extending", "observability",
)  # fmt: skip
"""As one would read them; pages that aren't named here come after."""


def topics() -> dict[str, str]:
    """The pages, each with its first sentence: what one can do after reading it."""
    found = {path.stem: _promise(path.read_text("utf-8")) for path in HERE.glob("*.md")}
    known = [topic for topic in ORDER if topic in found]
    return {topic: found[topic] for topic in [*known, *sorted(found.keys() - set(known))]}


def page(topic: str) -> str:
    """Its Markdown, or LookupError with the topics that there are."""
    known = topics()
    if topic not in known:
        near = get_close_matches(topic, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise LookupError(f"there is no page {topic!r}: {hint}known: {', '.join(known)}")
    return (HERE / f"{topic}.md").read_text("utf-8")


def show(topic: str) -> None:
    """Prints a page, or the topics without one. For a file or a program it stays Markdown."""
    if not topic:
        table = Table("topic", "", box=None, pad_edge=False)
        for name, promise in topics().items():
            table.add_row(f"[bold]{name}[/]", escape(promise))
        Console().print(table)
    elif _in_terminal():
        Console().print(Markdown(page(topic)))
    else:
        print(page(topic), end="")


def _in_terminal() -> bool:
    return sys.stdout.isatty()


def _promise(text: str) -> str:
    """The first paragraph below the title, up to its first full stop."""
    paragraph = " ".join(text.split("\n\n")[1].split())
    return paragraph.partition(". ")[0].rstrip(".") + "."
