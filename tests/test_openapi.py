"""The document says what the table does, and nothing else."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
import pytest
from msgspec import Meta
from openapi_spec_validator import OpenAPIV31SpecValidator

from orchestrator import api, openapi
from orchestrator.openapi.samples import Samples
from orchestrator.wire import Call, Endpoint, ProblemBody, Reply, Request, decode, encode

Name = Annotated[str, Meta(min_length=1, max_length=80, description="Any `name`, on one line.")]
Height = Annotated[float, Meta(gt=0, description="In metres; <script>alert(1)</script>.")]


class Season(enum.Enum):
    """When it bears."""

    SUMMER = "summer"
    AUTUMN = "autumn"


class Branch(Request):
    """A branch, and what grows on it."""

    name: Name
    branches: list[Branch] = []
    parent: Branch | None = None


class NewTree(Request):
    """A tree to plant.

    It is watered once.
    """

    name: Name
    height: Height
    kind: Literal["apple", "pear"]
    root: Branch
    age: Annotated[int, Meta(ge=0, le=900)] = 1
    season: Season = Season.AUTUMN
    labels: dict[str, str] = {}
    notes: Annotated[list[str], Meta(min_length=2)] | None = None


class Tree(msgspec.Struct):
    """A tree as it stands."""

    id: UUID
    name: Name
    planted_at: Annotated[datetime, Meta(tz=True)]
    place: tuple[float, float]
    season: Season | None
    extra: Any = None


class Fell(Request, tag="fell", tag_field="do"):
    at: int


class Graft(Request, tag="graft", tag_field="do"):
    onto: str


class Care(Request):
    """Something to do to a tree."""

    work: Fell | Graft
    code: Annotated[str, Meta(pattern="^[A-Z]{3}$", examples=["ABC"])] = "XYZ"
    share: Annotated[float, Meta(ge=0, lt=1)] | None = None


class Look(Request):
    where: Name
    season: Annotated[Season, Meta(description="Bearing then.")] | None = None
    label: list[str] = []
    limit: Annotated[int, Meta(ge=1, le=200)] = 50


async def measure(call: Call) -> Reply:
    """Numbers of the orchard.

    One line for each tree.
    """
    return Reply()


ENDPOINTS = [
    Endpoint("GET", "/ping", "ping", returns=dict[str, str]),
    Endpoint("GET", "/measures", "measure", handler=measure, content_type="text/plain"),
    Endpoint("POST", "/trees", "plant_tree", NewTree, Tree, scope="trees:write", status=201),
    Endpoint("GET", "/trees", "find_trees", None, list[Tree], Look, scope="trees:read"),
    Endpoint("GET", "/trees/{id:uuid}", "get_tree", returns=Tree, scope=""),
    Endpoint("DELETE", "/trees/{id:uuid}", "fell_tree", status=204, errors=(409,)),
    Endpoint(
        "PATCH", "/trees/{id:uuid}/care/{step}", "care", Care | None, Tree, summary="Care for one"
    ),
    Endpoint("GET", "/v1/trees/", "list_trees", returns=list[Branch]),
]


def a_document(endpoints: list[Endpoint] = ENDPOINTS) -> dict[str, Any]:
    return openapi.document("Orchard", "1.2.3", "Trees, and what grows on them.", endpoints)


def operation(verb: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = [
        operation
        for item in a_document()["paths"].values()
        for operation in item.values()
        if operation["operationId"] == verb
    ]
    return found[0]


def parameter(verb: str, name: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = operation(verb)["parameters"]
    return next(one for one in found if one["name"] == name)


def test_the_document_is_valid_openapi() -> None:
    OpenAPIV31SpecValidator(a_document()).validate()


def test_a_document_of_nothing_is_valid_too() -> None:
    OpenAPIV31SpecValidator(a_document([])).validate()


def test_the_same_table_gives_the_same_bytes() -> None:
    assert msgspec.json.encode(a_document()) == msgspec.json.encode(a_document())


def test_every_row_is_an_operation_under_its_path_and_verb() -> None:
    paths = a_document()["paths"]
    found = {
        (method.upper(), path, operation["operationId"])
        for path, item in paths.items()
        for method, operation in item.items()
    }
    written = {(row.method, row.path.replace(":uuid", ""), row.verb) for row in ENDPOINTS}
    assert found == written


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (Endpoint("GET", "/pong", "ping"), "verb ping"),
        (Endpoint("GET", "/ping", "pong"), "route GET /ping"),
        (Endpoint("GET", "/trees/{name}", "tree_by_name"), "route GET /trees/{}"),
        (Endpoint("PUT", "/trees/{name}", "replace_tree"), "name its parameters once"),
    ],
)
def test_rows_that_can_not_both_be_in_a_document_are_refused(row: Endpoint, words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("{", r"\{")):
        a_document([*ENDPOINTS, row])


@pytest.mark.parametrize(
    ("verb", "statuses"),
    [
        ("ping", "200 422 500 503"),
        ("plant_tree", "201 401 403 409 413 415 422 500 503"),
        ("find_trees", "200 401 403 422 500 503"),
        ("get_tree", "200 401 404 422 500 503"),
        ("fell_tree", "204 404 409 413 422 500 503"),
        ("care", "200 404 413 415 422 500 503"),
    ],
)
def test_every_answer_that_a_row_can_give_is_described(verb: str, statuses: str) -> None:
    responses = operation(verb)["responses"]
    assert list(responses) == statuses.split()
    shared = a_document()["components"]["responses"]
    for status, answer in responses.items():
        if status >= "400":
            content = shared[answer["$ref"].rpartition("/")[2]]["content"]
            assert list(content) == ["application/problem+json"]


def test_every_answer_names_its_headers() -> None:
    document = a_document()
    shared = list(document["components"]["responses"].values())
    direct = [answer for answer in operation("ping")["responses"].values() if "$ref" not in answer]
    assert all(set(answer["headers"]) == {"X-Request-ID", "X-Process-Time"} for answer in shared)
    assert all(set(answer["headers"]) == {"X-Request-ID", "X-Process-Time"} for answer in direct)


def test_an_answer_has_the_type_that_the_row_returns() -> None:
    tree = {"$ref": "#/components/schemas/Tree"}
    told = {
        ("plant_tree", "201"): ("application/json", tree),
        ("find_trees", "200"): ("application/json", {"type": "array", "items": tree}),
        ("measure", "200"): ("text/plain", {"type": "string"}),
    }
    for (verb, status), (kind, schema) in told.items():
        content = operation(verb)["responses"][status]["content"]
        assert {name: it["schema"] for name, it in content.items()} == {kind: schema}
    assert "content" not in operation("fell_tree")["responses"]["204"]


def test_an_answer_is_described_by_its_type() -> None:
    assert operation("get_tree")["responses"]["200"]["description"] == "A tree as it stands."
    assert operation("find_trees")["responses"]["200"]["description"] == "A tree as it stands."
    assert operation("ping")["responses"]["200"]["description"] == "OK"


def test_a_body_is_required_unless_it_may_be_null() -> None:
    body = operation("plant_tree")["requestBody"]
    assert body["required"] is True
    (content,) = body["content"].items()
    assert content[0] == "application/json"
    assert content[1]["schema"] == {"$ref": "#/components/schemas/NewTree"}
    assert operation("care")["requestBody"]["required"] is False
    assert "requestBody" not in operation("get_tree")


def test_a_type_that_refuses_unknown_fields_says_so() -> None:
    schemas = a_document()["components"]["schemas"]
    assert schemas["NewTree"]["additionalProperties"] is False
    assert "additionalProperties" not in schemas["Tree"]


def test_descriptions_are_kept_without_the_indent_of_the_source() -> None:
    schemas = a_document()["components"]["schemas"]
    assert schemas["NewTree"]["description"] == "A tree to plant.\n\nIt is watered once."
    assert schemas["NewTree"]["properties"]["name"]["description"] == "Any `name`, on one line."


def test_a_parameter_of_the_path_has_the_type_of_its_convertor() -> None:
    place = {"in": "path", "required": True}
    assert operation("care")["parameters"] == [
        {"name": "id", **place, "schema": {"type": "string", "format": "uuid"}},
        {"name": "step", **place, "schema": {"type": "string"}},
    ]


def test_each_field_of_a_query_is_a_parameter() -> None:
    assert parameter("find_trees", "where") == {
        "name": "where",
        "in": "query",
        "required": True,
        "description": "Any `name`, on one line.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 80},
    }
    limit = parameter("find_trees", "limit")
    assert limit["required"] is False
    assert limit["schema"] == {"type": "integer", "minimum": 1, "maximum": 200, "default": 50}


def test_a_query_that_may_be_left_out_is_never_null() -> None:
    season = parameter("find_trees", "season")
    assert season["schema"] == {"$ref": "#/components/schemas/Season"}
    assert season["description"] == "Bearing then."
    assert parameter("find_trees", "label")["schema"]["type"] == "array"


def test_a_type_that_is_only_a_query_is_no_schema() -> None:
    assert "Look" not in a_document()["components"]["schemas"]


def test_a_scope_asks_for_a_key_and_names_itself() -> None:
    assert operation("plant_tree")["security"] == [{"bearer": ["trees:write"]}]
    assert operation("get_tree")["security"] == [{"bearer": []}]
    assert "security" not in operation("ping")
    assert a_document()["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    assert "securitySchemes" not in a_document(ENDPOINTS[:2])["components"]


def test_a_summary_is_the_rows_or_the_handlers_or_the_verb() -> None:
    assert operation("care")["summary"] == "Care for one"
    assert operation("measure")["summary"] == "Numbers of the orchard"
    assert operation("measure")["description"] == "One line for each tree."
    assert operation("plant_tree")["summary"] == "Plant tree"


def test_operations_are_grouped_by_the_first_word_of_their_path() -> None:
    assert operation("care")["tags"] == operation("list_trees")["tags"] == ["trees"]
    assert [tag["name"] for tag in a_document()["tags"]] == ["ping", "measures", "trees"]


def test_every_error_code_has_its_own_advice() -> None:
    assert {kind.code for kind in openapi.catalogue()} <= openapi.ADVICE.keys()


def test_every_example_of_an_error_is_a_body_of_ours() -> None:
    for answer in a_document()["components"]["responses"].values():
        example = answer["content"]["application/problem+json"]["example"]
        body = msgspec.convert(example, ProblemBody)
        assert body.type == f"/redoc#error-{body.error}"


def test_every_sample_is_what_its_schema_allows() -> None:
    document = a_document()
    samples = Samples(document["components"]["schemas"])
    for kind in (NewTree, Tree, Branch, Care, Fell, Season):
        schema = {"$ref": f"#/components/schemas/{kind.__name__}"}
        for brief in (False, True):
            decode(encode(samples.of(schema, brief=brief)), kind)


def contents(operation: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What the operation takes and answers, where it is no refusal."""
    yield from operation.get("requestBody", {}).get("content", {}).items()
    for status, answer in operation["responses"].items():
        if status < "400":
            yield from answer.get("content", {}).items()


PRODUCT = openapi.document("Orchestrator", "1", "All of it.", api.ENDPOINTS)


@pytest.mark.parametrize("row", api.ENDPOINTS, ids=[row.verb for row in api.ENDPOINTS])
def test_every_operation_has_examples_that_its_own_types_allow(row: Endpoint) -> None:
    operation = PRODUCT["paths"][openapi.PARAMETER.sub(r"{\1}", row.path)][row.method.lower()]
    types = {True: [row.body, *row.bodies.values()], False: [row.returns]}
    bodies = [*operation.get("requestBody", {}).get("content", {}).items()]
    shown = [*contents(operation)]
    assert shown or row.status == 204
    for number, (kind, content) in enumerate(shown):
        fitting = types[number < len(bodies)]
        told = decode(encode(content["example"]), Any)
        assert told not in (None, "", []), kind
        assert any(holds(told, one) for one in fitting), (kind, told)


def holds(told: Any, kind: Any) -> bool:
    if kind is None:
        return True
    try:
        msgspec.convert(told, kind)
    except msgspec.ValidationError:
        return False
    return True


def test_examples_speak_plainly() -> None:
    """A text that only says the name of its field again tells nothing."""
    found: set[str] = set()

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            found.update(name for name, it in value.items() if it == name.replace("_", " "))
            value = [*value.values()]
        for inner in value if isinstance(value, list) else ():
            walk(inner)

    for item in PRODUCT["paths"].values():
        for operation in item.values():
            for _, content in contents(operation):
                walk(content["example"])
    assert found == set()
