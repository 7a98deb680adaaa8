"""Everything that can be said of a document before it runs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from .document import Pipeline
from .expressions import places
from .order import Order, every_step
from .problems import At, Complaint, Enough, Notes, Problem, Problems, Scope, nearest
from .read import read
from .shapes import Shape, tool_problems

ELSEWHERE = {
    "item": "it's there inside for_each",
    "index": "it's there inside for_each, while and until",
    "error": "it's there in catch, on_error, finally and retry.when",
    "result": "it's there in output, while and until",
    "secrets": "a secret is read in the arguments of a tool only",
}

Tools = Mapping[str, Shape | None] | Collection[str]
"""The names of known tools; a mapping gives the schema of their arguments, where it's known."""


class Report(msgspec.Struct, frozen=True):
    """`pipeline` is None when a problem is an error."""

    pipeline: Pipeline | None
    problems: list[Problem]

    @property
    def errors(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.severity == "error"]

    @property
    def warnings(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.severity == "warning"]


def compile(document: Any) -> Pipeline:
    """The pipeline, ready to run, or `Problems` with every error."""
    report = check(document)
    if report.pipeline is None:
        raise Problems(report.errors)
    return report.pipeline


def check(document: Any, tools: Tools | None = None, strict: bool = False) -> Report:
    """Reads decoded JSON. An unknown tool is a warning, when `strict` an error."""
    notes = Notes()
    pipeline = None
    try:
        pipeline = read(At(notes), document)
        if pipeline is not None:
            _check_mentions(notes, pipeline)
            _check_params(notes, pipeline)
            if tools is not None:
                _check_tools(notes, tools, strict)
    except Enough:
        pipeline = None
    return Report(None if notes.is_broken else pipeline, notes.problems)


def _check_params(notes: Notes, pipeline: Pipeline) -> None:
    """The document's own values. A value that's missing may still come with the run."""
    if all(declared.shape for declared in pipeline.inputs.values()):
        notes.problems += pipeline.misfits(pipeline.params)


def _check_mentions(notes: Notes, pipeline: Pipeline) -> None:
    order = Order(pipeline, notes)
    declared: Declared = {
        "state": order.bits,
        "vars": pipeline.vars,
        "secrets": pipeline.secrets,
        "pool": _pools(pipeline),
    }
    if pipeline.inputs:
        declared |= {"params": pipeline.inputs, "input": pipeline.inputs}
    for mention in notes.mentions:
        for reference in sorted(mention.references):
            if complaint := _complaint(order, declared, mention.at.scope, reference):
                for at in places(mention, reference):
                    at.say("reference", *complaint)


Declared = dict[str, Collection[str]]
"""The names below each scope that the document itself fills."""

WHAT = {"state": "step", "vars": "constant", "secrets": "secret", "pool": "resource"}


def _complaint(
    order: Order, declared: Declared, scope: Scope, reference: tuple[str, ...]
) -> Complaint | None:
    root, name = reference[0], reference[1] if len(reference) > 1 else None
    if root in ELSEWHERE and root not in scope.names:
        return f"there is no {root!r} here", ELSEWHERE[root]
    if name is None:
        return None
    if root == "steps":
        return order.complaint(scope, name)
    if root not in declared or name in declared[root]:
        return None
    hint = nearest(name, declared[root])
    if root == "secrets":
        hint = hint or f"name it in the document: secrets: [{name}]"
    return f"there is no {WHAT.get(root, 'input')} {name!r}", hint


def _pools(pipeline: Pipeline) -> set[str]:
    lists = (pipeline.steps, pipeline.on_error, pipeline.finally_)
    steps = (step for listed in lists for step in every_step(listed))
    return {resource.name for step in steps for resource in step.resources}


def _check_tools(notes: Notes, tools: Tools, strict: bool) -> None:
    for at, name, given in notes.uses:
        if name not in tools:
            hint = nearest(name, tools)
            at.say("tool", f"there is no tool {name!r}", hint, "error" if strict else "warning")
        elif isinstance(tools, Mapping) and (known := tools[name]):
            place, arguments = given or (At(notes, (*at.path[:-1], "with")), {})
            tool_problems(place, known, arguments)
