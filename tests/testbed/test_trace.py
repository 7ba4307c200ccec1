"""The trace: valid by the documented format, complete, and shown where it belongs."""

from __future__ import annotations

import copy
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from testbed.frames import LoadedRun, load_run
from testbed.trace import trace, write_trace
from tests.testbed.stories import CLIENTS, SERVER, enrich, write_record

# "Trace Event Format": the keys of each phase, required and allowed beside them.
COMMON = {"name", "ph", "ts", "pid"}
KEYS = {
    "X": (COMMON | {"tid", "dur"}, {"cat", "args", "tts", "tdur", "cname"}),
    "i": (COMMON | {"tid", "s"}, {"cat", "args", "cname"}),
    "C": (COMMON | {"args"}, {"tid", "cat", "id", "cname"}),
    "M": ({"name", "ph", "pid", "args"}, {"tid", "ts", "cat"}),
}
METADATA = {
    "process_name": ("name", str),
    "process_sort_index": ("sort_index", int),
    "thread_name": ("name", str),
    "thread_sort_index": ("sort_index", int),
}
DOCUMENT_KEYS = {"traceEvents", "displayTimeUnit", "otherData", "systemTraceEvents", "stackFrames", "samples"}


def problems(document: Any) -> list[str]:
    """What is wrong with a trace, by the format and by what viewers need to show it."""
    found: list[str] = []
    if not isinstance(document, dict) or not isinstance(document.get("traceEvents"), list):
        return ["no list of traceEvents"]
    if unknown := set(document) - DOCUMENT_KEYS:
        found.append(f"unknown keys of the document: {unknown}")
    if document.get("displayTimeUnit", "ms") not in ("ms", "ns"):
        found.append("displayTimeUnit is neither ms nor ns")
    named: dict[str, set[Any]] = {"process_name": set(), "thread_name": set()}
    used_threads, used_processes = set(), set()
    threads: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for number, event in enumerate(document["traceEvents"]):
        wrong = _problems_of(event)
        found += [f"event {number}: {words}" for words in wrong]
        if wrong:
            continue
        place = (event["pid"], event.get("tid", 0))
        if event["ph"] == "M":
            if event["name"] == "process_name":
                named["process_name"].add(event["pid"])
            elif event["name"] == "thread_name":
                named["thread_name"].add(place)
            continue
        used_processes.add(event["pid"])
        if event["ph"] in "Xi":
            used_threads.add(place)
        if event["ph"] == "X":
            threads.setdefault(place, []).append((event["ts"], event["ts"] + event["dur"]))
    found += [f"process {process} has no name" for process in used_processes - named["process_name"]]
    found += [f"thread {thread} has no name" for thread in used_threads - named["thread_name"]]
    for place, spans in threads.items():
        open_until: list[float] = []
        for start, end in sorted(spans, key=lambda span: (span[0], -span[1])):
            while open_until and open_until[-1] <= start + 1e-6:
                open_until.pop()
            if open_until and end > open_until[-1] + 1e-6:
                found.append(f"thread {place}: spans overlap without nesting at {start}")
            open_until.append(end)
    return found


def _problems_of(event: Any) -> list[str]:
    if not isinstance(event, dict):
        return ["not an object"]
    phase = event.get("ph")
    if phase not in KEYS:
        return [f"unknown phase {phase!r}"]
    required, allowed = KEYS[phase]
    found = [f"lacks {key}" for key in sorted(required - set(event))]
    found += [f"has an unknown key {key}" for key in sorted(set(event) - required - allowed)]
    if found:
        return found
    if not isinstance(event["name"], str) or not event["name"]:
        found.append("its name is no text")
    for key in ("ts", "dur"):
        value = event.get(key, 0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            found.append(f"{key} is no number")
        elif value < 0:
            found.append(f"{key} is negative")
    for key in ("pid", "tid"):
        if type(event.get(key, 0)) is not int:
            found.append(f"{key} is no integer")
    if not isinstance(event.get("args", {}), dict) or not isinstance(event.get("cat", ""), str):
        found.append("args is no object, or cat no text")
    elif phase == "C":
        values = event["args"].values()
        numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        if not values or not numeric:
            found.append("a counter without numbers")
    elif phase == "M":
        key, kind = METADATA.get(event["name"], ("", object))
        if not key or not isinstance(event["args"].get(key), kind):
            found.append("metadata that no viewer knows")
    if phase == "i" and event["s"] not in ("g", "p", "t"):
        found.append("an unknown scope")
    return found


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> LoadedRun:
    folder = tmp_path_factory.mktemp("trace")
    return load_run(enrich(write_record(folder / "old", num_rounds=9), folder / "new"))


@pytest.fixture(scope="module")
def document(story: LoadedRun) -> dict[str, Any]:
    path = write_trace(story, story.run.directory / "trace.json")
    found: dict[str, Any] = json.loads(path.read_text(), parse_constant=refuse)
    return found


def of_phase(document: dict[str, Any], phase: str) -> list[dict[str, Any]]:
    return [event for event in document["traceEvents"] if event["ph"] == phase]


def test_the_trace_is_valid(document: dict[str, Any]) -> None:
    assert problems(document) == []


@pytest.mark.parametrize(
    "damage",
    [
        {"ts": -1.0},
        {"ts": "0"},
        {"dur": float("nan")},
        {"pid": "server"},
        {"ph": "Q"},
        {"args": []},
        {"tid": 4711},
        {"stack": 1},
    ],
)
def test_the_validator_notices(document: dict[str, Any], damage: dict[str, Any]) -> None:
    broken = copy.deepcopy(document)
    next(event for event in broken["traceEvents"] if event["ph"] == "X").update(damage)
    assert problems(broken)


def test_the_validator_notices_spans_that_overlap_without_nesting(document: dict[str, Any]) -> None:
    broken = copy.deepcopy(document)
    first = next(event for event in broken["traceEvents"] if event["ph"] == "X")
    following = next(
        event
        for event in broken["traceEvents"]
        if event["ph"] == "X"
        and (event["pid"], event["tid"]) == (first["pid"], first["tid"])
        and event["ts"] > first["ts"]
    )
    first["dur"] = following["ts"] - first["ts"] + following["dur"] / 2
    assert any("without nesting" in words for words in problems(broken))


def test_every_span_is_in_it_once_with_its_instants(story: LoadedRun, document: dict[str, Any]) -> None:
    names = {
        event["pid"]: event["args"]["name"]
        for event in of_phase(document, "M")
        if event["name"] == "process_name"
    }
    shown = Counter(
        (
            names[event["pid"]],
            event["cat"],
            event["name"],
            round(1e3 * event["ts"]),
            round(1e3 * event["dur"]),
        )
        for event in of_phase(document, "X")
    )
    recorded = Counter(
        (
            span["node"],
            span["resource"],
            span["phase"],
            span["start_ns"],
            span["end_ns"] - span["start_ns"],
        )
        for span in story.run.of_kind("span")
    )
    assert shown == recorded


def test_a_node_is_a_process_and_a_resource_a_thread(document: dict[str, Any]) -> None:
    metadata = of_phase(document, "M")
    processes = {event["pid"]: event["args"]["name"] for event in metadata if event["name"] == "process_name"}
    assert sorted(processes.values()) == sorted([*CLIENTS, SERVER, "controller"])
    threads = {
        (processes[event["pid"]], event["args"]["name"])
        for event in metadata
        if event["name"] == "thread_name"
    }
    for name in CLIENTS:
        assert {"compute", "TX", "RX"} <= {thread for process, thread in threads if process == name}
    assert {thread for process, thread in threads if process == SERVER} == {"events", "compute", "TX", "RX"}


def test_what_overlaps_without_nesting_goes_to_a_further_thread_of_its_resource(tmp_path: Path) -> None:
    place = write_record(tmp_path / "run", num_rounds=1)
    events = [json.loads(line) for line in (place / "events.jsonl").read_text().splitlines()]
    late_ns = 3_000_000
    for number, event in enumerate(event for event in events if event.get("phase") == "unicast"):
        if event["node"] == SERVER:
            event["start_ns"] += late_ns * number
            event["end_ns"] += 2 * late_ns * number
    (place / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    found = trace(load_run(place))
    assert problems(found) == []
    names = [event["args"]["name"] for event in of_phase(found, "M") if event["name"] == "thread_name"]
    assert {"TX", "TX 2"} <= set(names)


def test_counters_and_instants_are_those_of_the_record(story: LoadedRun, document: dict[str, Any]) -> None:
    latencies = [event for event in of_phase(document, "C") if event["name"] == "round latency [ms]"]
    assert [event["args"]["measured"] for event in latencies] == [
        event["latency_ns"] / 1e6 for event in story.run.of_kind("round")
    ]
    assert [event["args"]["predicted"] for event in latencies] == pytest.approx(
        [1e3 * event["round_s"]["mean"] for event in story.run.of_kind("prediction")]
    )
    accuracy = [event for event in of_phase(document, "C") if event["name"] == "validation accuracy"]
    assert [event["args"]["accuracy"] for event in accuracy] == [
        event["accuracy"] for event in story.run.of_kind("evaluation") if event["split"] == "validation"
    ]
    instants = Counter(event["cat"] for event in of_phase(document, "i"))
    for category, kind in (("plan", "plan"), ("cut-move", "cut-move"), ("radio", "radio-event")):
        assert instants[category] == len(story.run.of_kind(kind)) > 0


def test_old_empty_and_killed_runs_give_valid_traces(tmp_path: Path) -> None:
    for name, options in {
        "old": {},
        "empty": {"num_rounds": 0},
        "killed": {"num_rounds": 1, "killed": True},
    }.items():
        found = trace(load_run(write_record(tmp_path / name, **options)))
        assert problems(found) == []
        assert bool(of_phase(found, "X")) == (name != "empty")
