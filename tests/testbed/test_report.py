"""The report: one file that needs nothing else, says what the record says, and survives any record."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from testbed.config.loader import load, resolved_yaml
from testbed.errors import StorageError
from testbed.frames import LoadedRun, load_run
from testbed.report import write_report
from testbed.report.page import page
from testbed.report.round_chart import MAX_ROUNDS, MEASURED_TILES, PREDICTED_TILES, round_chart
from testbed.report.skill import skill_of, skill_table
from testbed.report.words import verdict
from tests.testbed.stories import CLIENTS, enrich, write_record

MAX_BYTES = 8_000_000
# Elements that a browser fetches something for, and the attribute that says what.
FETCHING = {"src", "srcset", "href", "data", "action", "poster", "background", "formaction", "xlink:href"}
PICTURES = {"learning", "spectrum", "latency", "phases", "airtime", "links", "round"}


class Page(HTMLParser):
    """What a browser would make of the file, as far as a test asks."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.fetched: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self.styles: list[str] = []
        self.text = ""
        self.tables: list[list[list[str]]] = []
        self._script: str | None = None
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        self.fetched += [value or "" for name, value in attrs if name in FETCHING]
        if any(name.startswith("on") for name, _ in attrs):
            self.fetched.append(f"handler on {tag}")
        self._open.append(tag)
        if tag == "script":
            self._script = found.get("id") or f"script-{len(self.scripts)}"
            self.scripts[self._script] = ""
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        inside = self._open[-1] if self._open else ""
        if inside == "script":
            assert self._script is not None
            self.scripts[self._script] += data
        elif inside == "style":
            self.styles.append(data)
        else:
            self.text += data
            if {"td", "th"} & set(self._open) and self.tables:
                self.tables[-1][-1][-1] += data

    def data(self, name: str) -> Any:
        """A block of numbers that the page draws from."""
        return json.loads(self.scripts[name], parse_constant=_refuse)

    def table(self, first_head: str) -> list[list[str]]:
        """The rows of the table whose first column has that head."""
        (found,) = [rows for rows in self.tables if rows[0][0] == first_head]
        return found[1:]


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_record(tmp_path_factory.mktemp("report") / "old", num_rounds=12)


@pytest.fixture(scope="module")
def story(old: Path) -> LoadedRun:
    return load_run(enrich(old, old.parent / "new"))


@pytest.fixture(scope="module")
def html(story: LoadedRun) -> str:
    return page(story)


@pytest.fixture(scope="module")
def parsed(html: str) -> Page:
    return Page(html)


# ------------------------------------------------------------------------------------ one file alone
def test_the_file_fetches_nothing(parsed: Page) -> None:
    assert parsed.fetched  # links within the page
    assert [target for target in parsed.fetched if not target.startswith("#")] == []
    anchors = {attributes.get("id") for _, attributes in parsed.tags}
    assert {target[1:] for target in parsed.fetched} <= anchors
    assert not [style for style in parsed.styles if re.search(r"@import|url\(", style)]
    ours = "".join(text for name, text in parsed.scripts.items() if len(text) < 1_000_000)
    assert "http" not in ours
    assert not {"link", "iframe", "object", "embed", "base", "img"} & {tag for tag, _ in parsed.tags}


def test_the_drawing_library_is_there_once_and_the_file_is_small_enough(html: str) -> None:
    assert html.count("plotly.js v") == 1
    assert len(html.encode()) < MAX_BYTES


def test_every_picture_is_drawn_from_data_that_is_there_and_explained(parsed: Page, html: str) -> None:
    places = {
        attributes["id"].removeprefix("picture-")
        for tag, attributes in parsed.tags
        if (attributes.get("id") or "").startswith("picture-")
    }
    assert places == PICTURES
    figures = parsed.data("figures-data")
    assert set(figures) == PICTURES - {"round"}
    for name in PICTURES:
        following = re.split(r'id="picture-[a-z]+"', html.split(f'id="picture-{name}"')[1])[0]
        explanation = re.search(r"<p>(.+?)</p>", following, re.DOTALL)
        assert explanation is not None
        assert len(explanation[1]) > 100


def test_every_axis_says_what_it_is_and_in_which_unit(parsed: Page) -> None:
    for name, figure in parsed.data("figures-data").items():
        titles = " ".join(
            axis.get("title", {}).get("text") or ""
            for key, axis in figure["layout"].items()
            if key.startswith(("xaxis", "yaxis"))
        )
        assert ("experiment time [s]" if name == "learning" else "round") in titles
        unit = {"learning": "[%]", "spectrum": "[dBm]", "links": "[dB]"}.get(name, "[ms]")
        assert unit in titles


def test_numbers_are_rounded_to_what_can_be_seen(parsed: Page) -> None:
    data = [
        value
        for figure in parsed.data("figures-data").values()
        for trace in figure["data"]
        for value in trace.get("y", [])
        if isinstance(value, float)
    ]
    assert len(data) > 500
    assert all(float(f"{value:.6g}") == value for value in data)


# ------------------------------------------------------------------------------ what the record says
def test_the_table_of_skill_says_what_the_record_says(parsed: Page, story: LoadedRun) -> None:
    rows = {row[0]: row[1:] for row in parsed.table("what")}
    events = [json.loads(line) for line in (story.run.directory / "events.jsonl").read_text().splitlines()]
    measured = {event["round"]: event for event in events if event["kind"] == "round"}
    said = {event["round"]: event for event in events if event["kind"] == "prediction"}
    counted = sorted(measured)[1:]  # the first has no round before it
    for phase in ("uplink", "unicast", "server-forward"):
        true = np.array([measured[index]["phases"][phase] for index in counted])
        predicted = np.array([said[index]["phases"][phase]["mean"] for index in counted])
        before = np.array([measured[index - 1]["phases"][phase] for index in counted])
        error = np.abs(predicted - true) / true
        naive = np.abs(before - true) / true
        inside = np.mean(
            [
                said[index]["phases"][phase]["low"] <= value <= said[index]["phases"][phase]["high"]
                for index, value in zip(counted, true, strict=True)
            ]
        )
        assert rows[phase] == [
            str(len(counted)),
            f"{1e3 * true.mean():.2f}",
            f"{100 * np.median(error):.1f}",
            f"{100 * error.mean():.1f}",
            f"{100 * (predicted.mean() / true.mean() - 1):+.1f}",
            f"{100 * inside:.0f}",
            f"{100 * naive.mean():.1f}",
            f"{1 - error.mean() / naive.mean():+.2f}",
        ]
    assert "round latency" in rows
    assert "airtime, broadcast" in rows


def test_tiles_of_the_round_picture_are_those_of_the_record(story: LoadedRun) -> None:
    chart = round_chart(story)
    assert chart is not None
    heights = dict(chart.lanes)
    names = [look[0] for look in chart.looks]
    events = {(event["kind"], event["round"]): event for event in story.run.events}
    for index, drawn in chart.rounds.items():
        measured = events["round", index]["phases"]
        predicted = {name: entry["mean"] for name, entry in events["prediction", index]["phases"].items()}
        for lane, values in ((MEASURED_TILES, measured), (PREDICTED_TILES, predicted)):
            tiles = [bar for bar in drawn["bars"] if bar[1] == heights[lane] and bar[2] >= 0]
            sums = dict.fromkeys(values, 0.0)
            for phase, _, _, duration_ms, _ in tiles:
                sums[names[phase]] += duration_ms
            assert sums == pytest.approx({name: 1e3 * value for name, value in values.items()}, abs=2e-3)
            # End to end, without a gap, from the decision to the end.
            for before, after in itertools.pairwise(tiles):
                assert after[2] == pytest.approx(before[2] + before[3], abs=2e-3)
        latency_ms = events["round", index]["latency_ns"] / 1e6
        last = max(bar[2] + bar[3] for bar in drawn["bars"] if bar[1] == heights[MEASURED_TILES])
        assert last == pytest.approx(latency_ms, abs=0.02)


def test_a_tile_ends_where_the_span_ends_that_it_stands_for(story: LoadedRun) -> None:
    chart = round_chart(story)
    assert chart is not None
    names = [look[0] for look in chart.looks]
    heights = dict(chart.lanes)
    for drawn in chart.rounds.values():
        ends: dict[tuple[str, bool], list[float]] = {}
        for phase, height, start_ms, duration_ms, _ in drawn["bars"]:
            if height != heights[PREDICTED_TILES]:
                tile = height == heights[MEASURED_TILES]
                ends.setdefault((names[phase], tile), []).append(start_ms + duration_ms)
        for phase in ("server-forward", "server-backward", "client-backward"):
            assert max(ends[phase, True]) == pytest.approx(max(ends[phase, False]), abs=0.01)


def test_the_map_shows_every_subchannel_with_its_client(parsed: Page, story: LoadedRun) -> None:
    traces = parsed.data("figures-data")["spectrum"]["data"]
    shown = np.array(traces[0]["text"])
    for plan in story.run.of_kind("plan"):
        column = [name or "unused" for name in plan["assignment"]]
        assert list(shown[:, plan["round"]]) == column
    gains = [trace for trace in traces[1:] if trace["type"] == "heatmap"]
    assert len(gains) == len(CLIENTS)
    assert [trace["visible"] for trace in gains] == [True, False, False]
    link = next(
        event
        for event in story.run.of_kind("link")
        if (event["transmitter"], event["round"]) == (CLIENTS[1], 3)
    )
    column = [row[3] for row in gains[1]["z"]]
    np.testing.assert_allclose(column, 10 * np.log10(link["channel_gain"]), atol=0.051)


def test_the_maps_have_the_same_axes_one_above_the_other(parsed: Page) -> None:
    layout = parsed.data("figures-data")["spectrum"]["layout"]
    above, below = layout["yaxis"], layout["yaxis2"]
    assert above["range"] == below["range"]
    assert above["domain"][0] > below["domain"][1]
    assert layout["xaxis"]["range"] == layout["xaxis2"]["range"]
    assert layout["xaxis"]["matches"] == layout["xaxis2"]["matches"]


def test_the_verdict_says_what_a_stranger_asks(story: LoadedRun) -> None:
    said = verdict(story, skill_table(story))
    for words in (
        "12 rounds of EPSL with 3 boards",
        "emulated radio",
        "nothing was radiated",
        "virtual time",
        "modelled compute time",
        "Test accuracy",
        "Mean round latency",
        "guessing the last round's value",
        "all 12 rounds were run",
        "policy balanced",
        "reconstructed, check against the paper",
    ):
        assert words in said
    named = load_run(story.run.directory)
    named.run.start.update(
        scenario={"name": "busy-lab", "version": 3}, label="reconstructed", policy="twin", clock="wall"
    )
    said = verdict(named, skill_table(named))
    assert "Scenario busy-lab, version 3; allocation policy twin; reconstructed." in said
    assert "wall time" in said


def test_plans_and_events_are_told(parsed: Page, story: LoadedRun) -> None:
    rows = [row for table in parsed.tables for row in table if len(row) == 9 and row[0].isdigit()]
    assert len(rows) == 12
    for row, plan in zip(rows, story.run.of_kind("plan"), strict=True):
        binding = plan["binding"]
        assert row[2].startswith(binding["uplink_client"])
        assert row[3].startswith(binding["downlink_client"])
        assert row[4:6] == [binding["phase"], binding["power"]]
        assert ("at least" in row[6]) == binding["runner_up_is_bound"]
        assert all(candidate["name"] in row[7] for candidate in plan["candidates"])
        assert row[8] == plan["why"]
    moves = parsed.table("before round")
    assert [row[0] for row in moves] == ["4", "8"]
    assert [row[1] for row in moves] == ["1 → 2 (deeper)", "2 → 1 (shallower)"]
    assert [row[5:] for row in moves] == [["–", "–"], ["0.5000", "0.5200"]]
    assert "said goodbye" in parsed.text


def test_a_scenario_is_shown_where_there_was_one(tmp_path: Path, parsed: Page) -> None:
    resolved = load(flags={"scenario": "walk", "rounds": 20})
    names = [board.name for board in resolved.lab.boards]
    configuration = yaml.safe_load(resolved_yaml(resolved))
    place = write_record(tmp_path / "run", clients=names, configuration=configuration, num_rounds=2)
    found = Page(page(load_run(place)))
    traces = found.data("figures-data")["truth"]["data"]
    assert {trace["legendgroup"] for trace in traces} == set(names)
    walked = next(trace for trace in traces if trace["legendgroup"] == names[0])
    assert max(walked["y"]) > 5
    assert "What was done to the boards" in found.text
    assert "What was done to the boards" not in parsed.text


# --------------------------------------------------------------------------------------------- skill
def test_skill_of_known_errors() -> None:
    import pandas as pd

    frame = pd.DataFrame(
        {
            "measured_s": [9.0, 1.0, 2.0, 4.0, 0.0],
            "predicted_s": [1.0, 1.1, 1.8, 4.0, 0.0],
            "low_s": [0.0, 1.05, 1.7, 4.0, 0.0],
            "high_s": [2.0, 1.20, 1.9, 4.0, 0.0],
            "persistence_s": [np.nan, 2.0, 1.0, 2.0, 4.0],
        }
    )
    found = skill_of(frame)
    assert found["num_rounds"] == 4  # the first has nothing before it
    assert found["mape_percent"] == pytest.approx(100 * (0.1 + 0.1 + 0) / 3)
    assert found["median_error_percent"] == pytest.approx(10)
    assert found["bias_percent"] == pytest.approx(100 * (0.1 - 0.2) / 7)
    assert found["coverage_percent"] == pytest.approx(50)
    assert found["persistence_mape_percent"] == pytest.approx(100 * (1 + 0.5 + 0.5) / 3)
    assert found["skill"] == pytest.approx(1 - 0.2 / 2)
    alone = skill_of(frame.assign(persistence_s=np.nan))
    assert alone["num_rounds"] == 5
    assert np.isnan(alone["skill"])
    perfect = skill_of(frame.assign(predicted_s=frame["measured_s"]))
    assert perfect["skill"] == 1
    last = skill_of(frame.assign(predicted_s=frame["persistence_s"]))
    assert last["skill"] == 0


# ----------------------------------------------------------------------------------------- any record
def test_an_older_record_says_in_one_line_what_it_lacks(old: Path) -> None:
    found = Page(page(load_run(old)))
    for words in (
        "This record has no predictions to compare with.",
        "The plans of this record give no reasons.",
        "This record has no phases, so the tiles of the latency are missing.",
    ):
        assert words in found.text
    assert set(found.data("figures-data")) == {"learning", "spectrum", "latency", "links"}
    assert round_chart(load_run(old)).has_tiles is False  # type: ignore[union-attr]


@pytest.mark.parametrize("what", ["one round", "no round", "killed", "torn", "no config", "no spans"])
def test_whatever_became_of_a_run_it_is_reported(tmp_path: Path, what: str) -> None:
    place = tmp_path / "run"
    if what == "no round":
        write_record(place, num_rounds=0)
    elif what == "one round":
        enrich(write_record(tmp_path / "old", num_rounds=1), place)
    else:
        enrich(write_record(tmp_path / "old", killed=what == "killed"), place)
    log = place / "events.jsonl"
    if what == "torn":
        log.write_bytes(log.read_bytes()[:-40])
    elif what == "no config":
        (place / "config.yaml").unlink()
    elif what == "no spans":
        lines = [line for line in log.read_text().splitlines() if '"span"' not in line]
        log.write_text("\n".join(lines) + "\n")
    paths = write_report(place)
    assert {path.name for path in paths.values()} == {"report.html", "trace.json", "run.svg"}
    found = Page(paths["report"].read_text())
    said = {
        "one round": "1 round of EPSL",
        "no round": "It failed: nothing arrived over the air.",
        "killed": "the run still goes on, or its process was killed",
        "torn": "1 line of the record was cut short",
        "no config": "6 rounds of SPLIT LEARNING",
        "no spans": "No round came about, so there is nothing to draw",
    }[what]
    assert said in found.text
    assert not list(place.glob(".*"))


def test_names_and_words_of_others_stay_text(tmp_path: Path) -> None:
    nasty = "</script><img src=x onerror=alert(1)>&\"'<b>"
    clients = (nasty, "board-2", "b\u2028{{ 7*7 }}")
    place = enrich(
        write_record(
            tmp_path / "old",
            num_rounds=5,
            clients=clients,
            start={"run": nasty, "lab": nasty},
            stop={"words": nasty},
        ),
        tmp_path / "run",
    )
    text = write_report(place)["report"].read_text(encoding="utf-8")
    found = Page(text)
    assert "img" not in {tag for tag, _ in found.tags}
    assert [target for target in found.fetched if not target.startswith("#")] == []
    assert len(found.scripts) == 4  # library, two blocks of data, ours
    assert nasty in found.text
    assert "{{ 7*7 }}" in found.text
    assert found.data("rounds-data")["lanes"][-1][0].startswith(clients[-1])


def test_a_report_is_made_again_from_the_directory_alone_and_the_same(
    story: LoadedRun, tmp_path: Path
) -> None:
    place = tmp_path / "elsewhere"
    shutil.copytree(story.run.directory, place)
    first = {name: path.read_bytes() for name, path in write_report(place).items()}
    again = {name: path.read_bytes() for name, path in write_report(str(place)).items()}
    assert first == again


def test_a_directory_without_a_run_or_that_is_full_is_named(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(StorageError, match="holds no run"):
        write_report(tmp_path)
    place = write_record(tmp_path / "run", num_rounds=1)

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(StorageError, match=r"report of .*run cannot be written: .*No space left"):
        write_report(place)
    assert not (place / "report.html").exists()
    assert not list(place.glob(".*"))


def test_of_very_many_rounds_the_picture_keeps_those_in_which_something_happened(tmp_path: Path) -> None:
    num_rounds = MAX_ROUNDS + 60
    loaded = load_run(write_record(tmp_path / "run", num_rounds=num_rounds))
    chart = round_chart(loaded)
    assert chart is not None
    assert len(chart.rounds) <= MAX_ROUNDS
    assert chart.left_out == num_rounds - len(chart.rounds)
    slowest = loaded.rounds.nlargest(5, "latency_s")["round"]
    assert {0, num_rounds - 1, *slowest} <= set(chart.rounds)


def test_a_real_run_is_reported(tmp_path: Path) -> None:
    """Guards against a record that no longer says what the report reads."""
    from tests.testbed.experiments import run_in_memory, small  # loads torch, and no other test here does

    _, run = run_in_memory(small(rounds=3), tmp_path / "run")
    paths = write_report(run.directory)
    found = Page(paths["report"].read_text())
    figures = found.data("figures-data")
    assert {"spectrum", "latency", "links"} <= set(figures)
    assert len(found.data("rounds-data")["rounds"]) == 3
    loaded = load_run(run.directory)
    assert loaded.clients == ("board-1", "board-2")
    assert np.all(np.isfinite(loaded.rounds["total_power_dbm"]))
    if len(loaded.phases):
        inside = loaded.phases[~loaded.phases["phase"].isin(("cut-move", "join"))]
        sums = inside.groupby("round")["measured_s"].sum()
        np.testing.assert_allclose(sums, loaded.rounds.set_index("round")["latency_s"], atol=1e-8)
