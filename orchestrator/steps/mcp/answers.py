"""What a tool answered, as the value of its step."""

from __future__ import annotations

import json
from typing import Any

import mcp_types as types
import msgspec

from ... import wire
from ...errors import Malformed
from .. import Done, Fail, Outcome, Retry
from ..reread import sentence
from .session import Answer, Tool


def outcome(address: str, tool: Tool, answer: Answer) -> Outcome:
    if isinstance(answer, types.InputRequiredResult):
        return Fail("configuration", f"{address} wants to ask a person, and there is none")
    if answer.is_error:
        return Retry("runtime", f"{address}: {_text(answer)}")
    structured = answer.structured_content
    value = _contents(answer) if structured is None else structured
    if problem := unkeepable(value):
        return Fail("validation", f"what {address} answered {problem}")
    if structured is not None and tool.results and (wrong := tool.results.complaint(structured)):
        return Fail("validation", f"what {address} answered isn't what it promised: {wrong}")
    return Done(value)


def refused(address: str, code: int, message: str, data: Any = None) -> Outcome:
    """An error of JSON-RPC: whether trying again may help."""
    said = f"{address}: {message}" + (f" ({json.dumps(data)[:500]})" if data else "")
    if code in (types.INVALID_PARAMS, types.PARSE_ERROR, types.INVALID_REQUEST):
        return Fail("validation", said)
    if code == types.METHOD_NOT_FOUND:
        return Fail("configuration", said)
    return Retry("runtime", said)


def unkeepable(value: Any) -> str:
    """Why a value can't be a row: the bounds of every document."""
    try:
        data = msgspec.json.encode(value)
        if b"null" in data:  # which is also how NaN and infinity are written
            json.dumps(value, allow_nan=False)
        wire.decode(data)
    except Malformed as problem:
        return f"can't be kept: {sentence(problem)}"
    except (ValueError, TypeError, RecursionError) as error:
        return f"can't be kept: {error}"
    return ""


def _text(answer: types.CallToolResult) -> str:
    texts = [part.text for part in answer.content if isinstance(part, types.TextContent)]
    return "\n".join(texts)[:4000] or "it failed, and didn't say why"


def _contents(answer: types.CallToolResult) -> Any:
    values = [_content(part) for part in answer.content]
    return values[0] if len(values) == 1 else values or None


def _content(part: types.ContentBlock) -> Any:
    match part:
        case types.TextContent(text=text):
            return _read(text)
        case types.ImageContent() | types.AudioContent():
            return {"type": part.type, "mimeType": part.mime_type, "data": part.data}
        case _:
            return part.model_dump(by_alias=True, mode="json", exclude_none=True)


def _read(text: str) -> Any:
    """JSON as its value; everything else, and what nobody could keep, as text."""
    try:
        return wire.decode(text.encode())
    except (Malformed, UnicodeEncodeError):
        return text
