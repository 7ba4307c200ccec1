"""A run as tables: nothing invented, nothing lost, and a unit for every column."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

import testbed
from testbed.config.loader import load, resolved_yaml
from testbed.errors import StorageError
from testbed.frames import BESIDE_ROUND, LoadedRun, load_run
from testbed.scenario import resolve_scenario
from tests.testbed.stories import CLIENTS, NUM_SUBCHANNELS, SERVER, enrich, write_record

FRAMES = (
    "rounds",
    "phases",
    "airtime",
    "spans",
    "transmissions",
    "receptions",
    "links",
    "plans",
    "decisions",
    "candidates",
    "losses",
    "evaluations",
    "client_evaluations",
    "estimates",
    "radio_events",
    "cut_moves",
    "remarks",
)
UNIT_OF_SUFFIX = {
    "_s": "s",
    "_db": "dB",
    "_dbm": "dBm",
    "_dbm_per_hz": "dBm/Hz",
    "_hz": "Hz",
    "_bps": "bit/s",
    "_bytes": "byte",
    "_samples": "sample",
}


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_record(tmp_path_factory.mktemp("frames") / "old", num_rounds=9)


@pytest.fixture(scope="module")
def story(old: Path) -> LoadedRun:
    return load_run(enrich(old, old.parent / "new"))


def records(loaded: LoadedRun, kind: str) -> list[dict]:
    """Events as the file has them, read without any of our code."""
    lines = (loaded.run.directory / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["kind"] == kind]


# -------------------------------------------------------------------------------------------- units
@pytest.mark.parametrize("name", FRAMES)
def test_every_column_has_a_unit_and_its_name_says_the_same(story: LoadedRun, name: str) -> None:
    frame = getattr(story, name)
    units = frame.attrs["units"]
    assert list(units) == list(frame.columns)
    assert len(frame)
    for column, unit in units.items():
        assert unit
        suffixes = [suffix for suffix in UNIT_OF_SUFFIX if column.endswith(suffix)]
        if suffixes and not column.startswith("snr_per_psd") and column != "num_samples":
            assert unit == UNIT_OF_SUFFIX[max(suffixes, key=len)], column


@pytest.mark.parametrize("name", FRAMES)
def test_a_run_that_failed_at_once_has_the_same_columns_and_types(
    story: LoadedRun, tmp_path: Path, name: str
) -> None:
    empty = getattr(load_run(write_record(tmp_path / "run", num_rounds=0)), name)
    full = getattr(story, name)
    assert len(empty) == 0
    assert list(empty.columns) == list(full.columns)
    assert empty.attrs == full.attrs
    assert list(empty.dtypes) == list(full.dtypes)


def test_a_unit_survives_a_selection(story: LoadedRun) -> None:
    chosen = story.phases[story.phases["phase"] == "uplink"]
    assert chosen.attrs["units"]["measured_s"] == "s"


# ------------------------------------------------------------------------------------ conservation
def test_phases_add_up_to_the_latency_of_their_round(story: LoadedRun) -> None:
    inside = story.phases[~story.phases["phase"].isin(BESIDE_ROUND)]
    sums = inside.groupby("round")["measured_s"].sum()
    latencies = story.rounds.set_index("round")["latency_s"]
    np.testing.assert_allclose(sums, latencies, atol=1e-9)
    everything = story.phases.groupby("round")["measured_s"].sum()
    np.testing.assert_allclose(everything, story.rounds.set_index("round")["total_s"], atol=1e-9)
    assert story.rounds["cut_move_s"].gt(0).any()


def test_predicted_tiles_are_those_of_the_record(story: LoadedRun) -> None:
    said = {event["round"]: event for event in records(story, "prediction")}
    assert len(said) == 9
    for row in story.phases[~story.phases["phase"].isin(BESIDE_ROUND)].itertuples():
        interval = said[row.round]["phases"][row.phase]
        assert (row.predicted_s, row.low_s, row.high_s) == (
            interval["mean"],
            interval["low"],
            interval["high"],
        )
    for row in story.rounds.itertuples():
        assert row.predicted_s == said[row.round]["round_s"]["mean"]


def test_persistence_is_what_the_round_before_measured(story: LoadedRun) -> None:
    for frame, key in ((story.phases, "phase"), (story.airtime, "stream")):
        frame = frame[~frame[key].isin(BESIDE_ROUND)]
        measured = frame.pivot(index="round", columns=key, values="measured_s")
        persistence = frame.pivot(index="round", columns=key, values="persistence_s")
        pd.testing.assert_frame_equal(persistence.iloc[1:], measured.shift().iloc[1:])
        assert persistence.iloc[0].isna().all()


def test_power_is_the_sum_of_what_every_subchannel_gets(story: LoadedRun) -> None:
    bandwidth_hz = 36 * 5e6 / 256
    psd_w_per_hz = 10 ** ((story.plans["psd_dbm_per_hz"] - 30) / 10)
    power_w = (psd_w_per_hz * bandwidth_hz).groupby(story.plans["round"]).sum()
    np.testing.assert_allclose(10 * np.log10(power_w) + 30, story.rounds["total_power_dbm"])


def test_a_link_has_a_row_per_subchannel_with_the_measured_gain(story: LoadedRun) -> None:
    events = records(story, "link")
    assert len(story.links) == NUM_SUBCHANNELS * len(events)
    event = events[7]
    rows = story.links.iloc[7 * NUM_SUBCHANNELS : 8 * NUM_SUBCHANNELS]
    np.testing.assert_allclose(rows["channel_gain_db"], 10 * np.log10(event["channel_gain"]))
    np.testing.assert_allclose(
        rows["snr_per_psd_db"], 10 * np.log10(np.array(event["channel_gain"]) / event["noise_w_per_hz"])
    )
    np.testing.assert_allclose(rows["noise_dbm_per_hz"], 10 * np.log10(event["noise_w_per_hz"]) + 30)
    assert set(rows["transmitter"]) == {event["transmitter"]}
    assert list(rows["subchannel"]) == list(range(NUM_SUBCHANNELS))


def test_a_plan_has_a_row_per_subchannel_and_no_client_where_it_is_unused(story: LoadedRun) -> None:
    owners = [name for event in records(story, "plan") for name in event["assignment"]]
    assert None in owners
    assert [name if isinstance(name, str) else None for name in story.plans["client"]] == owners


def test_spans_and_streams_keep_their_number_and_their_length(story: LoadedRun) -> None:
    spans = records(story, "span")
    assert len(story.spans) == len(spans)
    total_ns = sum(span["end_ns"] - span["start_ns"] for span in spans)
    assert story.spans["duration_s"].sum() == pytest.approx(total_ns / 1e9)
    airtime_ns = sum(event["airtime_ns"] for event in records(story, "transmission"))
    assert story.transmissions["airtime_s"].sum() == pytest.approx(airtime_ns / 1e9)
    # Subchannels that carried nothing have no SNR, and none in the mean.
    assert story.receptions["mean_snr_db"].between(8, 24).all()


def test_what_a_reader_should_know_is_told_in_words(story: LoadedRun) -> None:
    kinds = list(story.remarks["kind"])
    assert kinds == ["rejected", "left", "joined-late"]
    words = story.remarks["words"].iloc[0]
    assert "14 dB from what was expected" in words
    assert words.startswith(f"gain, {CLIENTS[0]} to {SERVER}: ")


def test_the_truth_is_what_the_scenario_did_and_only_with_a_scenario(
    tmp_path: Path, story: LoadedRun
) -> None:
    assert story.truth.empty
    resolved = load(flags={"scenario": "busy-day", "rounds": 40})
    lab = resolved.lab
    names = tuple(board.name for board in lab.boards)
    place = write_record(
        tmp_path / "run",
        clients=names,
        configuration=yaml.safe_load(resolved_yaml(resolved)),
        num_rounds=3,
    )
    truth = load_run(place).truth
    assert list(truth.attrs["units"]) == list(truth.columns)
    assert len(truth) == 40 * len(names)
    boards = resolve_scenario(lab.scenario, lab, 40).boards
    highest = truth.groupby("board")["attenuation_db"].max()
    for name in names:
        assert highest[name] == max(boards[name].attenuation_db, default=0.0)
    (late,) = [name for name in names if boards[name].first_round]
    assert truth[(truth["board"] == late) & truth["present"]]["round"].min() == boards[late].first_round
    redrawn = truth[truth["redrawn"]]
    assert set(zip(redrawn["board"], redrawn["round"], strict=True)) == {
        (name, index) for name in names for index in boards[name].redraw_rounds
    }


# ------------------------------------------------------------------------------ older, torn, killed
def test_an_older_record_has_measurements_and_no_predictions(old: Path) -> None:
    loaded = load_run(old)
    assert len(loaded.rounds) == 9
    assert loaded.rounds["predicted_s"].isna().all()
    assert loaded.phases.empty
    assert loaded.rounds["formula_latency_s"].eq(0.05).all()
    assert loaded.clients == CLIENTS
    assert loaded.server == SERVER


def test_an_older_record_tells_the_cost_of_a_cut_move_in_its_event(old: Path, tmp_path: Path) -> None:
    place = enrich(old, tmp_path / "run")
    events = [json.loads(line) for line in (place / "events.jsonl").read_text().splitlines()]
    for event in events:
        event.pop("cut_move_ns", None)
    (place / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    loaded = load_run(place)
    moved = loaded.rounds[loaded.rounds["cut_move_s"] > 0]
    assert list(moved["round"]) == list(loaded.cut_moves["round"]) == [4, 8]
    np.testing.assert_allclose(moved["cut_move_s"], loaded.cut_moves["latency_s"])


def test_a_torn_record_has_the_rounds_that_were_written(old: Path, tmp_path: Path) -> None:
    place = enrich(old, tmp_path / "run")
    log = place / "events.jsonl"
    data = log.read_bytes()
    kept = data[: int(0.6 * len(data))]
    log.write_bytes(kept)
    (place / "stop.json").unlink()
    loaded = load_run(place)
    assert loaded.run.torn_lines == 1
    assert len(loaded.rounds) == kept.count(b'"kind": "round"') < 9
    assert set(loaded.plans["round"]) >= set(loaded.rounds["round"])


def test_a_run_without_its_configuration_is_read_all_the_same(old: Path, tmp_path: Path) -> None:
    place = enrich(old, tmp_path / "run")
    for damage in ("[", "just words", None):
        if damage is None:
            (place / "config.yaml").unlink()
        else:
            (place / "config.yaml").write_text(damage)
        loaded = load_run(place)
        assert loaded.clients == CLIENTS
        assert loaded.server == SERVER
        assert loaded.rounds["total_power_dbm"].isna().all()


# ---------------------------------------------------------------------------------------- front door
def test_the_front_door_opens_what_it_names_and_only_that(old: Path) -> None:
    assert len(testbed.load_run(old).rounds) == 9
    assert len(testbed.load_run(str(old)).rounds) == 9
    with pytest.raises(AttributeError, match="no attribute 'load_rum'"):
        _ = testbed.load_rum
    with pytest.raises(StorageError, match="holds no run"):
        testbed.load_run(old / "nowhere")


def test_importing_the_room_or_the_command_line_loads_no_tables() -> None:
    heavy = {"pandas", "plotly", "jinja2", "numpy", "matplotlib"}
    code = "import sys, testbed, testbed.cli; print(sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert not heavy & set(ast.literal_eval(done.stdout)), done.stderr
