"""The tables of endpoints as an OpenAPI 3.1 document, and the catalogue of errors.

Everything is read from the types and the rows that also serve the requests, so the document
can't disagree with them. The same table gives the same bytes.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

import msgspec

from .. import errors
from ..wire import Endpoint, Place, ProblemBody
from .samples import Samples

Schema = dict[str, Any]

REFERENCE = "#/components/schemas/{name}"
JSON = "application/json"
PROBLEM = "application/problem+json"
FORM = "application/x-www-form-urlencoded"
PARAMETER = re.compile(r"\{(\w+)(?::(\w+))?\}")

CONVERTORS: dict[str, Schema] = {
    "float": {"type": "number"},
    "int": {"type": "integer"},
    "uuid": {"type": "string", "format": "uuid"},
}
"""What a path's `{name:convertor}` says of its text; any other is just text."""

HEADERS: dict[str, Schema] = {
    "X-Request-ID": {
        "description": "Names this request in answers and logs; yours, when you sent a usable one.",
        "schema": {"type": "string"},
    },
    "X-Process-Time": {
        "description": "Milliseconds that the service spent on it.",
        "schema": {"type": "number"},
    },
}

LAST_EVENT_ID: Schema = {
    "name": "Last-Event-ID",
    "in": "header",
    "required": False,
    "description": "The last id that you were told: the stream goes on after it.",
    "schema": {"type": "string"},
}

TEXTS = {
    "application/schema+json": {"$schema": "https://json-schema.org/draft/2020-12/schema"},
    "text/event-stream": "id: 019c2f6e-5d00-7a41-8c1f-2b7de7a90c55\n"
    'data: {"topic": "orders.created", "payload": {"total": 120}}\n\n',
    "text/plain": 'orchestrator_runs_finished_total{outcome="succeeded"} 7.0\n',
}
"""Samples of what no schema tells."""

ADVICE: dict[str, tuple[str, str]] = {
    "bad_request": (
        "The request can't be read: it isn't proper HTTP, or its body hasn't the described shape.",
        "`detail` says what is wrong with it. Repair that, then send it again.",
    ),
    "unauthorized": (
        "The call carries no key, or one that isn't known or has run out.",
        "Send `Authorization: Bearer <key>` with a key that is still valid.",
    ),
    "forbidden": (
        "The key is known and may not do this.",
        "Use a key with the scope that the operation names, or have the scope added to yours.",
    ),
    "not_found": (
        "There is no such path, no such thing, or it isn't yours to see.",
        "Check the path, then the id: ids are compared letter by letter.",
    ),
    "method_not_allowed": (
        "The path exists and doesn't know this method.",
        "Use a method that this page lists for the path.",
    ),
    "request_timeout": (
        "The request arrived too slowly to be waited for.",
        "Send it again in one go; split a large body into several requests.",
    ),
    "conflict": (
        "It contradicts what is stored: a name is taken, a state is final, or someone was faster.",
        "Read the current state, decide again, then send the changed request.",
    ),
    "gone": (
        "The lease is no longer yours: it ran out, or the work was taken back.",
        "Drop this work without reporting it, and ask for the next.",
    ),
    "stale": (
        "`If-Match` names a version that is no more: somebody has changed it since it was read.",
        "Read it again, decide again, and send the ETag that it has now.",
    ),
    "too_large": (
        "The body is larger than this path accepts.",
        "Send less at once, in several requests.",
    ),
    "unsupported_media_type": (
        "The body's content type isn't one that this path reads.",
        "Send JSON with `Content-Type: application/json`.",
    ),
    "invalid": (
        "The request has the right shape and asks for something that can't be.",
        "`detail` says which value it is and `details.hint` what would do. "
        "The same request never succeeds later.",
    ),
    "malformed": (
        "The body or the query hasn't the shape that is described here.",
        "`detail` lists every problem at once, each with its place in `loc`, a sentence in `msg` "
        "and a kind in `type`. Repair them all, then send it again.",
    ),
    "too_many": (
        "There are more requests, or more work in flight, than you are allowed.",
        "Wait for as long as `Retry-After` says, then go on more slowly.",
    ),
    "headers_too_large": (
        "The request's headers are larger than the service reads.",
        "Send fewer or shorter headers; what is long belongs in the body.",
    ),
    "internal": (
        "The service failed; it isn't your request's fault.",
        "Try it once more. If it stays, report the `request_id`: the log has the rest.",
    ),
    "unavailable": (
        "The database can't be reached, or didn't answer in time.",
        "Try again in a few seconds, then with growing pauses.",
    ),
}
"""For each error code what it means and what its reader does next."""


class Kind(msgspec.Struct, frozen=True):
    """An error code, as a caller meets it."""

    code: str
    statuses: tuple[int, ...]
    meaning: str
    remedy: str


def catalogue() -> list[Kind]:
    """Every error code that a class claims, by status."""
    statuses: dict[str, set[int]] = {}
    for kind in _classes():
        statuses.setdefault(kind.error, set()).add(kind.status)
    kinds = [_kind(code, *sorted(found)) for code, found in statuses.items()]
    return sorted(kinds, key=lambda kind: (kind.statuses, kind.code))


def _classes() -> Iterator[type[errors.Problem] | type[errors.Refused]]:
    waiting: list[type[errors.Problem] | type[errors.Refused]] = [errors.Problem, errors.Refused]
    while waiting:
        kind = waiting.pop()
        yield kind
        waiting += kind.__subclasses__()


def _kind(code: str, *statuses: int) -> Kind:
    unknown = (HTTPStatus(statuses[0]).phrase + ".", "Read `message` and `details.hint`.")
    return Kind(code, statuses, *ADVICE.get(code, unknown))


def document(
    title: str, version: str, description: str, endpoints: Sequence[Endpoint]
) -> dict[str, Any]:
    """The document, or a `ValueError` that names the two rows that can't both be in it."""
    _refuse_ambiguity(endpoints)
    types = _Types(endpoints)
    paths: dict[str, Any] = {}
    for endpoint in endpoints:
        path = PARAMETER.sub(r"{\1}", endpoint.path)
        paths.setdefault(path, {})[endpoint.method.lower()] = _operation(endpoint, types)
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version, "description": description},
        "tags": [{"name": tag} for tag in dict.fromkeys(row.tag for row in endpoints)],
        "paths": paths,
        "components": _components(endpoints, types),
    }


def _refuse_ambiguity(endpoints: Sequence[Endpoint]) -> None:
    claimed: dict[str, str] = {}
    written: dict[str, str] = {}
    for row in endpoints:
        route, shape = f"{row.method} {row.path}", PARAMETER.sub("{}", row.path)
        for claim in (f"verb {row.verb}", f"route {row.method} {shape}"):
            if claim in claimed:
                raise ValueError(f"{claimed[claim]} and {route} are both the {claim}")
            claimed[claim] = route
        path = PARAMETER.sub(r"{\1}", row.path)
        if (other := written.setdefault(shape, path)) != path:
            raise ValueError(f"{other} and {path} are one path: name its parameters once")


class _Types:
    """The schema of everything that the table names, from one pass, so that names agree."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self.fields = {row.verb: _query_fields(row) for row in endpoints}
        kinds: dict[tuple[str, ...], Any] = {("problem",): ProblemBody}
        for row in endpoints:
            kinds |= {(row.verb, "body"): row.body, (row.verb, "returns"): row.returns}
            kinds |= {(row.verb, "body", kind): body for kind, body in row.bodies.items()}
            kinds |= {(row.verb, "query", f.encode_name): f.type for f in self.fields[row.verb]}
        given = {key: kind for key, kind in kinds.items() if kind is not None}
        schemas, named = msgspec.json.schema_components(given.values(), ref_template=REFERENCE)
        self._schemas = dict(zip(given, schemas, strict=True))
        self.named = {name: _tidy(named[name]) for name in sorted(named)}
        self.samples = Samples(self.named)

    def of(self, *key: str) -> Schema | None:
        return self._schemas.get(key)

    def description(self, schema: Schema | None) -> str:
        """What the type says of itself, or of its items."""
        schema = schema or {}
        schema = schema.get("items", schema)
        name = schema.get("$ref", "").rpartition("/")[2]
        return str(self.named.get(name, schema).get("description", ""))


def _query_fields(endpoint: Endpoint) -> tuple[msgspec.structs.FieldInfo, ...]:
    return msgspec.structs.fields(endpoint.query) if endpoint.query is not None else ()


def _tidy(schema: Schema) -> Schema:
    """A docstring without the indent that it had in the source."""
    if "description" not in schema:
        return schema
    return schema | {"description": inspect.cleandoc(schema["description"])}


def _operation(endpoint: Endpoint, types: _Types) -> dict[str, Any]:
    summary, description = _words(endpoint)
    operation: dict[str, Any] = {
        "operationId": endpoint.verb,
        "tags": [endpoint.tag],
        "summary": summary,
        "description": description,
        "parameters": [
            *_path_parameters(endpoint),
            *_query_parameters(endpoint, types),
            *_header_parameters(endpoint),
        ],
        "requestBody": _request_body(endpoint, types),
        "responses": _responses(endpoint, types),
        "security": _security(endpoint),
    }
    return {name: value for name, value in operation.items() if value}


def _words(endpoint: Endpoint) -> tuple[str, str]:
    """A summary of one line, and what a handler's docstring says beyond its first."""
    first, _, rest = (inspect.getdoc(endpoint.handler) or "").partition("\n")
    verb = endpoint.verb.replace("_", " ").capitalize()
    return endpoint.summary or first.rstrip(".") or verb, rest.strip()


def _path_parameters(endpoint: Endpoint) -> list[Schema]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": CONVERTORS.get(convertor, {"type": "string"}),
        }
        for name, convertor in PARAMETER.findall(endpoint.path)
    ]


IDEMPOTENCY_KEY: Schema = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "The same request with the same key is answered alike for 24 hours.",
    "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
}
PREFER: Schema = {
    "name": "Prefer",
    "in": "header",
    "required": False,
    "description": "`wait=N`: answers with the finished run, if it ends within N seconds (60).",
    "schema": {"type": "string", "examples": ["wait=10"]},
}


def _header_parameters(endpoint: Endpoint) -> list[Schema]:
    taken = {
        "Idempotency-Key": endpoint.method == "POST",
        "Prefer": bool(endpoint.finished),
        "Last-Event-ID": endpoint.content_type == "text/event-stream",
    }
    return [said for said in (IDEMPOTENCY_KEY, PREFER, LAST_EVENT_ID) if taken[said["name"]]]


def _query_parameters(endpoint: Endpoint, types: _Types) -> list[Schema]:
    return [
        _query_parameter(field, types.of(endpoint.verb, "query", field.encode_name) or {})
        for field in types.fields[endpoint.verb]
    ]


def _query_parameter(field: msgspec.structs.FieldInfo, schema: Schema) -> Schema:
    schema = _without_null(schema)
    description = schema.pop("description", None)
    if field.default not in (msgspec.NODEFAULT, msgspec.UNSET, None):
        schema["default"] = msgspec.to_builtins(field.default)
    parameter = {"name": field.encode_name, "in": "query", "required": field.required}
    return parameter | ({"description": description} if description else {}) | {"schema": schema}


def _without_null(schema: Schema) -> Schema:
    """A query can leave a field out but can't write null."""
    outer = {name: value for name, value in schema.items() if name != "anyOf"}
    members = [member for member in schema.get("anyOf", []) if member != {"type": "null"}]
    if len(members) == 1:
        return {**members[0], **outer}
    return outer | ({"anyOf": members} if members else {})


def _request_body(endpoint: Endpoint, types: _Types) -> Schema | None:
    schema = types.of(endpoint.verb, "body")
    if schema is None:
        return None
    required = {"type": "null"} not in schema.get("anyOf", [])
    others = {kind: types.of(endpoint.verb, "body", kind) or {} for kind in endpoint.bodies}
    others |= {FORM: schema} if endpoint.form else {}
    kinds = {JSON: schema, **others}
    samples = {kind: types.samples.of(it, brief=True) for kind, it in kinds.items()}
    content = {kind: {"schema": it, "example": samples[kind]} for kind, it in kinds.items()}
    return {"required": required, "content": content}


def _responses(endpoint: Endpoint, types: _Types) -> dict[str, Any]:
    refused = {str(status): _shared("responses", _name(status)) for status in _failures(endpoint)}
    statuses = {200, 202} if endpoint.finished else {endpoint.status}
    return {str(status): _answer(endpoint, types) for status in sorted(statuses)} | refused


def _answer(endpoint: Endpoint, types: _Types) -> Schema:
    schema = types.of(endpoint.verb, "returns")
    words, _, _ = types.description(schema).partition("\n")
    answer: Schema = {
        "description": words or HTTPStatus(endpoint.status).phrase,
        "headers": _headers(),
    }
    if schema is None:
        schema = {} if endpoint.content_type.endswith("json") else {"type": "string"}
    if endpoint.status not in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED):
        example = TEXTS.get(endpoint.content_type) or types.samples.of(schema)
        answer["content"] = {endpoint.content_type: {"schema": schema, "example": example}}
    return answer


def _failures(endpoint: Endpoint) -> list[int]:
    """The statuses that this row can be refused with."""
    statuses = {422, 500, 503, *endpoint.errors}
    if endpoint.scope is not None:
        statuses |= {401, 403} if endpoint.scope else {401}
    if PARAMETER.search(endpoint.path):
        statuses |= {404}
    if endpoint.method != "GET":
        statuses |= {413}
    if endpoint.method == "POST":
        statuses |= {409}  # of its Idempotency-Key
    if endpoint.body is not None:
        statuses |= {415}
    return sorted(statuses)


def _security(endpoint: Endpoint) -> list[dict[str, list[str]]]:
    if endpoint.scope is None:
        return []
    return [{"bearer": [endpoint.scope] if endpoint.scope else []}]


def _components(endpoints: Sequence[Endpoint], types: _Types) -> dict[str, Any]:
    statuses = sorted({status for row in endpoints for status in _failures(row)})
    components: dict[str, Any] = {
        "schemas": types.named,
        "responses": {_name(status): _failure(status, types) for status in statuses},
        "headers": HEADERS,
    }
    if any(row.scope is not None for row in endpoints):
        components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    return components


def _failure(status: int, types: _Types) -> Schema:
    kinds = [kind for kind in catalogue() if status in kind.statuses]
    meanings = " ".join(kind.meaning for kind in kinds) or HTTPStatus(status).phrase + "."
    content: Schema = {"schema": types.of("problem")}
    if kinds:
        content["example"] = msgspec.to_builtins(_example(kinds[-1], status))
    return {"description": meanings, "headers": _headers(), "content": {PROBLEM: content}}


def _example(kind: Kind, status: int) -> ProblemBody:
    place: Place = {"loc": ["body", "name"], "msg": "this field is required", "type": "missing"}
    return ProblemBody(
        type=f"/redoc#error-{kind.code}",
        title=HTTPStatus(status).phrase,
        status=status,
        instance="/the/path",
        error=kind.code,
        message=kind.meaning,
        detail=[place] if kind.code == "malformed" else kind.meaning,
        details={},
        request_id="019c2f6e5d007a418c1f2b7de7a90c55",
        timestamp=datetime(2026, 3, 1, 9, 30, tzinfo=UTC),
    )


def _headers() -> Schema:
    return {name: _shared("headers", name) for name in HEADERS}


def _shared(section: str, name: str) -> Schema:
    return {"$ref": f"#/components/{section}/{name}"}


def _name(status: int) -> str:
    return f"Error{status}"
