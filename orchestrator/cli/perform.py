"""Performs a row: asks the API and shows the answer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from . import core
from .commands import MOST, Command, holes, value, words
from .remote import remote


def perform(row: Command, given: dict[str, Any]) -> None:
    form: core.Form = given["output"]
    places = {name: quote(given[name], safe="") for name in holes(row)}
    said = {w.field: value(w, given[w.name]) for w in words(row) if given[w.name] is not None}
    if row.file and given["file"] is not None:
        said = _with_file(row, given["file"], said)
    if row.asks:
        core.sure(row.asks.format(**given), given["yes"])
    path = _filled(row.path, places)
    if row.pages:
        core.run(_list(row, path, said, given["limit"], form))
    else:
        core.run(_do(row, path, said, given.get("wait"), form))


def _filled(path: str, places: dict[str, str]) -> str:
    for name, text in places.items():
        path = path.replace(f"{{{name}}}", text)
    return path


def _with_file(row: Command, file: Path, said: dict[str, Any]) -> dict[str, Any]:
    """Options say more than the file. A bare pipeline is a task's payload."""
    document = _document(file)
    if not isinstance(document, dict):
        raise core.Failure(f"{file} holds no object", core.Exit.USAGE)
    if row.file != "body" and "pipeline" in document and row.file not in document:
        document = {row.file: document}
    return {**document, **said}


def _document(file: Path) -> Any:
    from ..pipelines import source

    loaded = source.load(Path("/dev/stdin") if str(file) == "-" else file)
    if loaded.problems:
        lines = [f"{file}:{line or 1}: {problem.message}" for line, problem in loaded.problems]
        raise core.Failure("\n".join(lines), core.Exit.USAGE)
    return loaded.document


async def _list(row: Command, path: str, query: dict[str, Any], most: int, form: core.Form) -> None:
    async with remote() as api:
        found, last = await api.rows(path, _texts(query), min(most, MOST))
    core.show(found, form, row.columns.split(), row.key, empty="there are none")
    if form == "table" and (last.get("has_more") or last.get("next_cursor") or last.get("cursor")):
        core.note(f"there are more: --limit {min(most * 4, MOST)}")


def _texts(query: dict[str, Any]) -> dict[str, str]:
    return {name: core.raw(value) for name, value in query.items()}


async def _do(
    row: Command, path: str, said: dict[str, Any], wait: int | None, form: core.Form
) -> None:
    is_query = row.method in ("GET", "DELETE")
    has_body = not is_query and bool(row.words or row.file)
    headers = {"Prefer": f"wait={wait}"} if wait else {}
    async with remote() as api:
        answer = await api.ask(
            row.method, path, _texts(said) if is_query else None,
            said if has_body else msgspec.UNSET, headers, wait or 0,
        )  # fmt: skip
    _show(row, answer, form)


def _show(row: Command, answer: Any, form: core.Form) -> None:
    if row.is_list:
        rows = answer if isinstance(answer, list) else answer["items"]
        core.show(rows, form, row.columns.split(), row.key, empty="there are none")
        if form == "table" and isinstance(answer, dict) and "text" in answer:
            core.note(answer["text"])
    elif answer is None:
        sys.stderr.write("done\n" if form == "table" else "")
    elif not isinstance(answer, dict) or row.key == "":
        core.say(answer)
    elif form == "table" and "message" in answer and "details" in answer:
        print(core.cell(answer["message"]))
        core.show_one(answer["details"], form)
    else:
        core.show_one(answer, form, row.key)
