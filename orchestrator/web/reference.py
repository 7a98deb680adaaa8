"""The document as its reader wants it: operations by tag, fields as rows, links between them."""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import msgspec

from .. import openapi
from .curl import curl, pretty
from .shapes import Row, Shape, Shapes, Word


class Content(msgspec.Struct, kw_only=True):
    """What a request or an answer carries."""

    media: str
    kind: list[Word]
    notes: list[str]
    shapes: list[Shape]


class Answer(msgspec.Struct, kw_only=True):
    status: str
    text: str
    contents: list[Content]


class Refusal(msgspec.Struct, kw_only=True):
    status: str
    phrase: str
    codes: list[str]


class Sample(msgspec.Struct, kw_only=True):
    title: str
    text: str


class Operation(msgspec.Struct, kw_only=True):
    id: str
    method: str
    path: str
    summary: str
    text: str
    access: str
    parameters: dict[str, list[Row]]
    body: list[Content]
    answers: list[Answer]
    refusals: list[Refusal]
    samples: list[Sample]


class Section(msgspec.Struct, kw_only=True):
    """The operations of one tag."""

    name: str
    text: str
    operations: list[Operation]


def read(document: dict[str, Any]) -> dict[str, Any]:
    """What the template needs."""
    reader = _Reader(document)
    return {
        "info": document["info"],
        "sections": list(reader.sections()),
        "schemas": [reader.shapes.named(name) for name in reader.schemas],
        "errors": openapi.catalogue(),
        "problem": reader.problem(),
    }


class _Reader:
    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self.schemas = document["components"]["schemas"]
        self.shapes = Shapes(self.schemas)
        self.codes: dict[str, list[str]] = {}
        for kind in openapi.catalogue():
            for status in kind.statuses:
                self.codes.setdefault(str(status), []).append(kind.code)

    def sections(self) -> Iterator[Section]:
        found: dict[str, list[Operation]] = {tag["name"]: [] for tag in self.document["tags"]}
        for path, item in self.document["paths"].items():
            for method in item:
                operation = self._operation(method, path, item[method])
                found.setdefault(item[method]["tags"][0], []).append(operation)
        texts = {tag["name"]: tag.get("description", "") for tag in self.document["tags"]}
        for name, operations in found.items():
            yield Section(name=name, text=texts.get(name, ""), operations=operations)

    def problem(self) -> dict[str, Any]:
        """What every refusal carries, by the example of one."""
        responses = self.document["components"]["responses"]
        carrier = responses.get("Error422") or responses.get("Error500") or {}
        kinds = [content.kind for content in self._contents(carrier)]
        samples = list(self._samples("A malformed request", carrier))
        return {"kind": kinds[0] if kinds else [], "samples": samples}

    def _operation(self, method: str, path: str, operation: dict[str, Any]) -> Operation:
        answers = {status: self._found(it) for status, it in operation["responses"].items()}
        good = {status: answer for status, answer in answers.items() if status < "400"}
        return Operation(
            id=operation["operationId"],
            method=method,
            path=path,
            summary=operation["summary"],
            text=operation.get("description", ""),
            access=_access(operation),
            parameters=self._parameters(operation.get("parameters", [])),
            body=self._contents(operation.get("requestBody", {})),
            answers=[self._answer(status, answer) for status, answer in good.items()],
            refusals=[self._refusal(status) for status in answers if status >= "400"],
            samples=[
                Sample(title="Call", text=curl(method, path, operation)),
                *self._samples("Body", operation.get("requestBody", {})),
                *(s for status, it in good.items() for s in self._samples(f"Answer {status}", it)),
            ],
        )

    def _found(self, thing: dict[str, Any]) -> dict[str, Any]:
        """What a reference leads to, or the thing itself."""
        place: Any = self.document if "$ref" in thing else thing
        for step in thing.get("$ref", "").split("/")[1:]:
            place = place[step]
        return dict(place)

    def _parameters(self, parameters: list[dict[str, Any]]) -> dict[str, list[Row]]:
        """By the place where they travel."""
        found: dict[str, list[Row]] = {}
        for one in parameters:
            schema = {"description": one.get("description", "")} | one["schema"]
            row = self.shapes.row(one["name"], schema, one.get("required", False))
            found.setdefault(one["in"].capitalize(), []).append(row)
        return found

    def _contents(self, carrier: dict[str, Any]) -> list[Content]:
        return [
            Content(
                media=media,
                kind=self.shapes.kind(content["schema"]),
                notes=self.shapes.notes(content["schema"]),
                shapes=list(self.shapes.inside(content["schema"])),
            )
            for media, content in carrier.get("content", {}).items()
        ]

    def _answer(self, status: str, answer: dict[str, Any]) -> Answer:
        contents = self._contents(answer)
        said = [shape.text for content in contents for shape in content.shapes]
        bare = answer["description"] == HTTPStatus(int(status)).phrase and contents
        text = "" if any(said) or bare else answer["description"]
        return Answer(status=status, text=text, contents=contents)

    def _refusal(self, status: str) -> Refusal:
        phrase = HTTPStatus(int(status)).phrase
        return Refusal(status=status, phrase=phrase, codes=self.codes.get(status, []))

    def _samples(self, title: str, carrier: dict[str, Any]) -> Iterator[Sample]:
        for media, content in carrier.get("content", {}).items():
            if media.endswith("json"):
                yield Sample(title=title, text=pretty(content["example"]))


def _access(operation: dict[str, Any]) -> str:
    """Who may call it, in a phrase."""
    security = operation.get("security", [])
    scopes = [scope for one in security for names in one.values() for scope in names]
    if scopes:
        return "Needs a key with " + " and ".join(f"`{scope}`" for scope in scopes)
    return "Needs any valid key" if security else "Open to everyone"
