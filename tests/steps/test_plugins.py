"""Step kinds of other distributions, installed for real: metadata and modules on the path."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Make
from crew import Crew, enqueue, exit_status, look

from orchestrator import db
from orchestrator.config import Config
from orchestrator.steps import kinds, listing
from orchestrator.steps.plugins import plugins

DOUBLE = '''"""`acme.double`: a number, twice."""

import msgspec
from orchestrator.steps import Context, Done, Kind


class Number(msgspec.Struct, forbid_unknown_fields=True):
    n: int


async def run(number: Number, context: Context) -> Done:
    return Done({"n": 2 * number.n, "run": context.run})


KIND = Kind("acme.double", Number, run)
'''


def install(folder: Path, name: str, points: dict[str, str], **modules: str) -> None:
    """As an installer leaves it."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [f"{point} = {target}" for point, target in points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[orchestrator.steps]", *lines, ""]))
    for module, text in modules.items():
        (folder / f"{module}.py").write_text(text)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of installed distributions: a kind that works, and all the others."""
    points = {
        "acme.double": "acme_double",
        "set": "acme_double:KIND",
        "acme.triple": "acme_double:KIND",
        "acme.gone": "acme_gone",
        "acme.exits": "acme_exits",
        "acme.none": "acme_double:Number",
    }
    install(tmp_path, "acme-steps", points, acme_double=DOUBLE, acme_exits="raise SystemExit(3)")
    install(tmp_path, "other-steps", {"acme.double": "acme_double"})
    monkeypatch.syspath_prepend(tmp_path)
    plugins.cache_clear()
    yield tmp_path
    plugins.cache_clear()
    sys.modules.pop("acme_double", None)


async def test_a_real_worker_runs_a_kind_of_another_distribution(
    place: Path, make: Make, conn: db.Connection
) -> None:
    crew = Crew(make.config())
    good = await enqueue(conn, {"id": "a", "uses": "acme.double", "with": {"n": 21}})
    wrong = await enqueue(conn, {"id": "a", "uses": "acme.double", "with": {"m": 21}})
    gone = await enqueue(conn, {"id": "a", "uses": "acme.gone"})
    ours = await enqueue(conn, {"id": "a", "uses": "set", "with": {"x": 1}})
    process = crew.process("--once", environment={"PYTHONPATH": str(place)})
    try:
        assert await exit_status(process) == 0
        assert process.stderr
        said = [json.loads(line) for line in process.stderr.read().decode().splitlines()]
    finally:
        await crew.end()
    assert (await look(conn, good))["output"] == {"a": {"n": 42, "run": good}}
    assert (await look(conn, wrong))["error"]["type"] == "validation"
    assert (await look(conn, ours))["output"] == {"a": {"x": 1}}
    failed = (await look(conn, gone))["error"]
    assert failed["type"] == "configuration"
    assert "acme.gone can't be loaded from acme-steps 1.0: ModuleNotFoundError" in failed["message"]
    refused = {
        (line["kind"], line["distribution"]): line["error"]
        for line in said
        if line["action"] == "step_kind_refused"
    }
    assert refused["set", "acme-steps 1.0"] == "a built-in has this name"
    assert "No module named" in refused["acme.gone", "acme-steps 1.0"]
    assert "SystemExit" in refused["acme.exits", "acme-steps 1.0"]
    assert "calls itself 'acme.double'" in refused["acme.triple", "acme-steps 1.0"]
    assert "neither a Kind nor a module" in refused["acme.none", "acme-steps 1.0"]
    assert any(
        kind == "acme.double" and "has this name" in why for (kind, _), why in refused.items()
    )


def test_it_is_loaded_once_and_listed_with_its_distribution(place: Path) -> None:
    assert kinds()["acme.double"] is kinds()["acme.double"]
    assert kinds()["set"].pure
    listed = listing.every(Config(), [], [])
    assert listed["acme.double"].source == "plugin"
    assert listed["acme.double"].provider in ("acme-steps 1.0", "other-steps 1.0")
    assert listed["acme.double"].description == "a number, twice."
    assert "No module named" in (listed["acme.gone"].problem or "")
    assert listed["set"].source == "builtin"
