"""Lists of runs and comparisons: every difference, and nothing else."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from testbed.cli import app
from testbed.errors import StorageError, UsageError
from testbed.record import read_run
from testbed.runs import diff_runs, list_runs
from testbed.scalars import scalars, write_scalars
from tests.testbed.stories import config, enrich, write_record


def keys(found: list) -> list[str]:
    return [entry.key for entry in found]


# ---------------------------------------------------------------------------------------- comparison
def test_a_run_does_not_differ_from_itself_nor_from_one_made_alike(tmp_path: Path) -> None:
    first, second = (read_run(write_record(tmp_path / name)) for name in "ab")
    for other in (first, second):
        assert not any(vars(diff_runs(first, other)).values())


def test_exactly_the_changed_keys_differ(tmp_path: Path) -> None:
    base = config()
    changed = copy.deepcopy(base)
    changed["experiment"]["learning"]["phi"] = 1
    changed["experiment"]["allocator"]["model"] = "twin"
    changed["lab"]["boards"][1]["max_power_dbm"] = 12.5
    changed["lab"]["boards"] = changed["lab"]["boards"][::-1]  # boards are told apart by name, not by place
    del changed["lab"]["total_power_dbm"]
    first = write_record(tmp_path / "a", configuration=base)
    second = write_record(
        tmp_path / "b",
        configuration=changed,
        start={"run": "story-2", "seed": 2, "pid": 7},
        seed=2,
        stop={"test_accuracy": 0.5},
    )
    found = diff_runs(read_run(first), read_run(second))
    assert set(keys(found.config)) == {
        "experiment.learning.phi",
        "experiment.allocator.model",
        "lab.boards[board-2].max_power_dbm",
        "lab.total_power_dbm",
    }
    assert keys(found.start) == ["seed"]
    assert found.versions == []
    assert {"test_accuracy", "mean_round_latency_s", "experiment_s"} == set(keys(found.results))
    told = found.as_json()
    assert told["config"]["lab.boards[board-2].max_power_dbm"] == [18.0, 12.5]
    assert told["config"]["lab.total_power_dbm"] == [22.0, None]
    assert told["config"]["experiment.allocator.model"] == [None, "twin"]


def test_versions_differ_by_package_and_by_node_where_nodes_disagree(tmp_path: Path) -> None:
    places = [write_record(tmp_path / name) for name in "ab"]
    joined = {
        "kind": "joined",
        "node": "board-1",
        "wall_s": 1.0,
        "versions": {"numpy": "2.0.0", "python": "3.11.7"},
    }
    (places[1] / "operations.jsonl").write_text(json.dumps(joined) + "\n")
    runs = [read_run(place) for place in places]
    assert keys(diff_runs(*runs).versions) == ["numpy"]
    other = {**joined, "node": "server", "versions": {"numpy": "2.4.6", "python": "3.11.7"}}
    (places[1] / "operations.jsonl").write_text(json.dumps(joined) + "\n" + json.dumps(other) + "\n")
    found = diff_runs(runs[0], read_run(places[1])).versions
    assert set(keys(found)) == {"numpy", "board-1: numpy", "server: numpy"}


# ---------------------------------------------------------------------------------------------- lists
def test_every_run_of_a_folder_is_listed_whatever_became_of_it(tmp_path: Path) -> None:
    write_record(tmp_path / "finished", start={"started_wall_s": 3.0})
    write_record(tmp_path / "failed", num_rounds=0, start={"started_wall_s": 2.0})
    write_record(tmp_path / "killed", killed=True, start={"started_wall_s": 1.0})
    write_record(tmp_path / "damaged")
    log = tmp_path / "damaged/events.jsonl"
    log.write_bytes(b"{\n" + log.read_bytes())
    (tmp_path / "no-run").mkdir()
    found = list_runs(tmp_path)
    assert [(entry.directory.name, entry.reason) for entry in found] == [
        ("damaged", "damaged"),
        ("killed", "unfinished"),
        ("failed", "failed"),
        ("finished", "finished"),
    ]
    assert [entry.rounds for entry in found] == [0, 6, 0, 6]
    assert "events.jsonl:1 is damaged" in found[0].words
    assert found[3].policy == "balanced"
    assert found[3].test_accuracy is not None
    with pytest.raises(StorageError, match="cannot be listed"):
        list_runs(tmp_path / "nowhere")


# --------------------------------------------------------------------------------------- command line
def test_the_command_line_lists_shows_and_compares(tmp_path: Path) -> None:
    runner = CliRunner()
    first = enrich(write_record(tmp_path / "old/a"), tmp_path / "runs/a")
    second = write_record(tmp_path / "runs/b", start={"run": "story-2", "compute": "measured"})
    listed = runner.invoke(app, ["runs", "ls", str(tmp_path / "runs"), "--json"])
    assert [entry["run"] for entry in json.loads(listed.stdout)["runs"]] == ["story-1", "story-2"]
    assert str(second) in runner.invoke(app, ["runs", "ls", str(tmp_path / "runs")]).stdout
    shown = json.loads(runner.invoke(app, ["runs", "show", str(first), "--json"]).stdout)
    assert shown["rounds"] == 6
    assert shown["prediction"][0]["what"] == "round latency"
    assert "skill" in runner.invoke(app, ["runs", "show", str(first)]).stdout
    compared = json.loads(runner.invoke(app, ["runs", "diff", str(first), str(second), "--json"]).stdout)
    assert set(compared["start"]) == {"compute", "policy"}
    assert compared["config"] == {}
    told = runner.invoke(app, ["runs", "diff", str(first), str(second)]).stdout
    assert "configuration: the same" in told
    assert "modelled" in told


def test_the_command_line_makes_a_report_from_a_directory_alone(tmp_path: Path) -> None:
    place = enrich(write_record(tmp_path / "old"), tmp_path / "run")
    done = CliRunner().invoke(app, ["report", str(place)])
    assert done.exit_code == 0
    assert [Path(line).name for line in done.stdout.split()] == ["report.html", "trace.json", "run.svg"]
    assert all(Path(line).stat().st_size for line in done.stdout.split())
    missing = CliRunner().invoke(app, ["report", str(tmp_path / "nowhere")])
    assert isinstance(missing.exception, StorageError)


# ---------------------------------------------------------------------------------------- tensorboard
def test_without_tensorboard_the_error_says_what_to_install(tmp_path: Path, monkeypatch) -> None:
    import sys

    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    from testbed.frames import load_run

    with pytest.raises(UsageError, match=r"pip install 'epsl-testbed\[tensorboard\]'"):
        write_scalars(load_run(write_record(tmp_path / "run")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.optional
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_tensorboard_reads_back_every_scalar(tmp_path: Path) -> None:
    loader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_file_loader", reason="tensorboard is not installed"
    )
    from testbed.frames import load_run

    loaded = load_run(enrich(write_record(tmp_path / "old"), tmp_path / "run"))
    for _ in range(2):  # a second time replaces the first
        folder = write_scalars(loaded, tmp_path / "tensorboard")
    (path,) = folder.glob("events.out.tfevents.*")
    found = {
        (value.tag, event.step): (event.wall_time, value.simple_value)
        for event in loader.RawEventFileLoader(str(path)).Load()
        for event in [loader.event_pb2.Event.FromString(event)]
        for value in event.summary.value
    }
    expected = {(point.tag, point.step): (1.7e9 + point.at_s, point.value) for point in scalars(loaded)}
    assert found.keys() == expected.keys()
    for key, (wall_s, value) in expected.items():
        assert found[key] == pytest.approx((wall_s, value), rel=1e-6)


def test_scalars_have_every_round_and_no_missing_value(tmp_path: Path) -> None:
    from testbed.frames import load_run

    loaded = load_run(enrich(write_record(tmp_path / "old"), tmp_path / "run"))
    points = list(scalars(loaded))
    assert len({(point.tag, point.step) for point in points}) == len(points)
    latencies = [point.value for point in points if point.tag == "round/latency_s"]
    assert latencies == list(loaded.rounds["latency_s"])
    tags = {point.tag for point in points}
    assert {"phase_uplink/predicted_s", "airtime_broadcast/measured_s", "validation/accuracy"} <= tags
