"""The pipeline language: what a document may say, and what the engine is handed."""

from __future__ import annotations

from ..wire import Call, Endpoint, Reply, encode
from . import answers
from .check import Report, check, compile
from .document import Pipeline
from .order import steps_before
from .problems import Problem, Problems
from .schema import schema

__all__ = ["ENDPOINTS", "Pipeline", "Problem", "Problems", "Report", "check", "compile", "schema",
           "steps_before"]  # fmt: skip


async def _schema(call: Call) -> Reply:
    """The JSON Schema of the pipeline language, for editors and other programs."""
    return Reply(
        body=encode(schema()),
        content_type="application/schema+json",
        headers={"Cache-Control": "public, max-age=3600"},
    )


ENDPOINTS = [
    Endpoint("GET", "/schemas/pipeline.json", "pipeline_schema", handler=_schema,
             content_type="application/schema+json",
             group="pipelines", summary="The JSON Schema of the pipeline language"),
    *answers.ENDPOINTS,
]  # fmt: skip
