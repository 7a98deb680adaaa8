"""The benchmark measures: small runs of it, with the figures' shape and what they count."""

from __future__ import annotations

import json

import pytest

from orchestrator import bench
from orchestrator.errors import Misconfigured


def test_a_short_bench_prints_its_figures_as_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.run(["enqueue_many", "drain_1p"], scale=0.005, as_json=True) == 0
    said = json.loads(capsys.readouterr().out)
    assert set(said) == {"machine", "enqueue_many", "drain_1p"}
    assert said["machine"]["settings"]["fsync"] == "on"
    for name in ("enqueue_many", "drain_1p"):
        figure = said[name]
        assert figure["unit"] == "runs/s"
        assert figure["value"] > 100 and figure["floor"] > 100
        assert figure["ratio"] == pytest.approx(
            figure["value"] / figure["floor"], rel=0.01, abs=0.001
        )
    assert said["drain_1p"]["runs"] == 500, "each one succeeded in orc.runs"
    assert 100 < said["drain_1p"]["wal_bytes_per_run"] < 20_000


def test_steps_and_calls_of_pipelines_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["three_sets", "three_calls", "http_1000", "template_us", "condition_us"]
    assert bench.run(names, scale=0.01, as_json=True) == 0
    said = json.loads(capsys.readouterr().out)
    assert set(said) == {"machine", *names}
    assert [said[name]["unit"] for name in names] == ["runs/s", "runs/s", "calls/s", "µs", "µs"]
    assert all(said[name]["value"] > 0 and said[name]["floor"] > 0 for name in names)


def test_the_surface_is_measured_beside_a_bare_echo(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["post_tasks", "post_events", "get_run"]
    assert bench.run([*names, "sse_500"], scale=0.01, as_json=True) == 0
    said = json.loads(capsys.readouterr().out)
    assert [said[name]["unit"] for name in names] == ["requests/s"] * 3
    for name in names:
        figure = said[name]
        assert figure["ratio"] == pytest.approx(
            figure["value"] / figure["floor"], rel=0.02, abs=0.001
        )
        assert figure["p99_ratio"] == pytest.approx(
            figure["p99"] / figure["floor_p99"], rel=0.02, abs=0.001
        )
    heard = said["sse_500"]
    assert heard["clients"] == 20 and heard["connections"] <= 1
    assert 0 < heard["floor"] <= heard["p50"]


def test_how_late_tasks_start_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.run(["fire_1000", "fire_single"], scale=0.05, as_json=True) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["fire_1000"]["at_once"] == 50
    assert 0 < said["fire_1000"]["p50"] <= said["fire_1000"]["all_within"]
    assert said["fire_single"]["samples"] == 5 and said["fire_single"]["p50"] > 0


def test_what_many_tasks_cost_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.run(["tasks_100k"], scale=0.01, as_json=True) == 0
    crowd = json.loads(capsys.readouterr().out)["tasks_100k"]
    assert (crowd["tasks"], crowd["due"]) == (1000, 50)
    assert crowd["planned_per_second"] > 0 and crowd["p50"] > 0


@pytest.mark.soak
def test_the_scheduler_keeps_its_promises_of_time(capsys: pytest.CaptureFixture[str]) -> None:
    """On a calm machine of two cores: elsewhere the figures count, not these bounds."""
    assert bench.run(["fire_1000", "fire_single", "tasks_100k"], scale=1, as_json=True) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["fire_1000"]["at_once"] == 1000 and said["fire_1000"]["all_within"] <= 300
    assert said["fire_single"]["samples"] >= 60 and said["fire_single"]["p99"] <= 30
    crowd = said["tasks_100k"]
    assert (crowd["tasks"], crowd["due"]) == (100_000, 5_000) and crowd["p99"] <= 2000
    assert crowd["resting_ms"] <= 2 * crowd["resting_alone_ms"] + 1
    first, *later = crowd["memory_mb"][2:]
    assert max(later) <= 1.1 * first, "its memory stays what it is"


def test_a_figure_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(Misconfigured, match="drain_5p; there are enqueue_one"):
        bench.run(["drain_5p"], scale=1, as_json=True)


def test_every_figure_has_its_name() -> None:
    assert list(bench.FIGURES) == [
        "enqueue_one", "enqueue_many", "drain_1p", "drain_2p", "pickup", "drain_held_snapshot",
        "drain_backlog_1m", "drain_history_1m", "blocked_key", "fairness", "tenants_1000",
        "list_runs_1m", "post_tasks", "post_events", "get_run", "sse_500",
        "three_sets", "three_calls", "http_1000", "template_us", "condition_us",
        "fire_1000", "fire_single", "tasks_100k",
    ]  # fmt: skip
