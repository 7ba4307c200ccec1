"""The run record: ordered, never half a line in the middle, readable whenever its writer died."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from testbed.errors import ExitCode, StorageError, exit_code
from testbed.record import EVENT_FORMAT, RUN_FORMAT, STOP_FORMAT, Event, RunWriter, read_run


def written(directory: Path, num_rounds: int = 30, seed: int = 1, stop: bool = True) -> list[dict]:
    """Write a run of random events, a barrier per round; what the events should read as, in order."""
    rng = np.random.default_rng(seed)
    writer = RunWriter(directory)
    writer.start({"run": "run-1", "seed": seed}, "format: resolved/1\n")
    expected, sequence = [], 0
    for round_index in range(num_rounds):
        batch = []
        for _ in range(rng.integers(1, 8)):
            sequence += 1
            event = Event(
                1000 * round_index + int(rng.integers(4)),
                str(rng.choice(["server", "board-1", "board-10", "board-2"])),
                "span",
                round_index,
                {"phase": 'größe \n"0"', "x": float(rng.standard_normal())},
            )
            writer.add(event)
            batch.append(
                {
                    "at_ns": event.at_ns,
                    "node": event.node,
                    "seq": sequence,
                    "kind": "span",
                    "round": round_index,
                    **event.values,
                }
            )
        writer.operation("round", round=round_index)
        writer.barrier()
        expected += sorted(batch, key=lambda entry: (entry["at_ns"], entry["node"], entry["seq"]))
    if stop:
        writer.stop({"reason": "finished"})
    else:
        writer.close()
    return expected


@contextlib.contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """No file grows beyond a size: writing fails halfway through a line, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# ------------------------------------------------------------------------------------------ writing
def test_events_are_ordered_by_time_then_node_then_sequence_within_a_barrier(tmp_path: Path) -> None:
    expected = written(tmp_path / "run")
    run = read_run(tmp_path / "run")
    assert run.events == expected
    ties = [(a, b) for a, b in itertools.pairwise(expected) if a["at_ns"] == b["at_ns"]]
    assert any(a["node"] == b["node"] for a, b in ties)
    assert any(a["node"] < b["node"] and a["seq"] > b["seq"] for a, b in ties)
    assert run.torn_lines == 0
    assert [entry["round"] for entry in run.operations] == list(range(30))
    assert run.start == {
        "format": RUN_FORMAT,
        "events_format": EVENT_FORMAT,
        "run": "run-1",
        "seed": 1,
    }
    assert run.stop == {"format": STOP_FORMAT, "reason": "finished"}


def test_equal_events_are_equal_bytes_and_operations_carry_the_wall_time(tmp_path: Path) -> None:
    for name in ("one", "two"):
        written(tmp_path / name)
    assert (tmp_path / "one/events.jsonl").read_bytes() == (tmp_path / "two/events.jsonl").read_bytes()
    assert "wall" not in (tmp_path / "one/events.jsonl").read_text()
    assert all(entry["wall_s"] > 1e9 for entry in read_run(tmp_path / "one").operations)


def test_events_reach_the_disk_at_barriers_and_only_there(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run")
    writer.start({}, "")
    writer.add(Event(5, "server", "late", 0))
    writer.add(Event(3, "server", "early", 0))
    assert read_run(tmp_path / "run").events == []
    writer.barrier()
    assert [event["kind"] for event in read_run(tmp_path / "run").events] == ["early", "late"]
    writer.add(Event(9, "server", "lost", 1))
    writer.close()  # as a kill would
    run = read_run(tmp_path / "run")
    assert [event["kind"] for event in run.events] == ["early", "late"]
    assert run.stop is None


@pytest.mark.parametrize("trace", ["run.json", "events.jsonl", "operations.jsonl"])
def test_a_directory_with_a_run_in_it_is_refused_and_not_touched(tmp_path: Path, trace: str) -> None:
    (tmp_path / trace).write_text("precious\n")
    with pytest.raises(StorageError, match="already holds a run; choose another --out"):
        RunWriter(tmp_path)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(trace, "precious\n")]


def test_a_place_where_no_directory_can_be_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(StorageError, match="cannot be written") as caught:
            RunWriter(place)
        assert str(place) in str(caught.value)
        assert exit_code(caught.value) is ExitCode.STORAGE


# ---------------------------------------------------------------------------------------- full disks
def test_a_full_disk_is_a_storage_error_and_leaves_whole_lines(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run")
    writer.start({}, "")
    for number in range(20):
        writer.add(Event(number, "server", "kept", 0, {"filler": "x" * 100}))
    writer.barrier()
    size = (tmp_path / "run/events.jsonl").stat().st_size
    for number in range(20, 40):
        writer.add(Event(number, "server", "new", 1, {"filler": "x" * 100}))
    with largest_file(size + 777), pytest.raises(StorageError, match=r"events\.jsonl cannot be written"):
        writer.barrier()
    run = read_run(tmp_path / "run")
    assert [event["kind"] for event in run.events] == ["kept"] * 20
    assert run.torn_lines == 0
    writer.barrier()  # there is room again: nothing is lost, and nothing there twice
    assert [event["at_ns"] for event in read_run(tmp_path / "run").events] == list(range(40))
    writer.stop({"reason": "finished"})


def test_stop_says_why_even_if_the_last_events_do_not_fit(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run")
    writer.start({}, "")
    for number in range(50):
        writer.add(Event(number, "server", "span", 0, {"filler": "x" * 100}))
    with largest_file(1000), pytest.raises(StorageError, match=r"events\.jsonl"):
        writer.stop({"reason": "failed", "words": "no space left"})
    run = read_run(tmp_path / "run")
    assert run.stop is not None
    assert run.stop["words"] == "no space left"
    assert run.events == []
    with pytest.raises(StorageError, match="cannot be written"):
        writer.operation("after the end")


def test_documents_are_whole_or_absent(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run")
    with largest_file(100):
        with pytest.raises(StorageError, match=r"run\.json cannot be written"):
            writer.start({"filler": "x" * 1000}, "small")
        with pytest.raises(StorageError, match=r"operations\.jsonl cannot be written"):
            writer.operation("round", filler="x" * 1000)
    writer.close()
    names = {path.name: path.stat().st_size for path in (tmp_path / "run").iterdir()}
    assert names == {"config.yaml": 5, "events.jsonl": 0, "operations.jsonl": 0}


# ------------------------------------------------------------------------------------------ reading
def test_a_run_is_readable_wherever_its_last_4_kb_were_cut(tmp_path: Path) -> None:
    expected = written(tmp_path / "run", num_rounds=14, stop=False)
    log = tmp_path / "run/events.jsonl"
    whole = log.read_bytes()
    assert len(whole) > 5000
    for length in range(len(whole), len(whole) - 4097, -1):
        os.truncate(log, length)
        run = read_run(tmp_path / "run")
        complete = whole[:length].count(b"\n")
        assert len(run.events) == complete
        assert run.torn_lines == (not whole[:length].endswith(b"\n"))
        assert run.stop is None
    assert run.events == expected[:complete]


@pytest.mark.parametrize("log", ["events.jsonl", "operations.jsonl"])
def test_a_damaged_line_in_the_middle_is_named_with_its_number(tmp_path: Path, log: str) -> None:
    written(tmp_path / "run")
    path = tmp_path / "run" / log
    good = path.read_bytes().split(b"\n")
    for damage in (b"{", b"", b"[1]", b'{"at_ns": 1\xff}', b"[" * 100_000, b"\0" * 50):
        lines = list(good)
        lines[16] = damage
        path.write_bytes(b"\n".join(lines))
        with pytest.raises(StorageError, match=rf"{log}:17 is damaged"):
            read_run(tmp_path / "run")


def test_a_run_without_its_last_words_is_unfinished_and_without_its_first_is_none(tmp_path: Path) -> None:
    written(tmp_path / "run")
    (tmp_path / "run/stop.json").unlink()
    assert read_run(tmp_path / "run").stop is None
    assert read_run(str(tmp_path / "run")).events  # a name will do
    (tmp_path / "run/operations.jsonl").unlink()
    assert read_run(tmp_path / "run").operations == []
    (tmp_path / "run/run.json").unlink()
    for place in (tmp_path / "run", tmp_path / "nowhere"):
        with pytest.raises(StorageError, match=r"holds no run: run\.json is missing"):
            read_run(place)


@pytest.mark.parametrize("name", ["run.json", "stop.json"])
def test_a_document_that_is_damaged_or_of_another_version_is_named(tmp_path: Path, name: str) -> None:
    written(tmp_path / "run")
    path = tmp_path / "run" / name
    whole = path.read_bytes()
    for damage in (whole[:-5], b"", b"7", b"\xff" * 9):
        path.write_bytes(damage)
        with pytest.raises(StorageError, match=rf"{name} cannot be read"):
            read_run(tmp_path / "run")
    path.write_text(json.dumps({"format": "run/99"}))
    with pytest.raises(StorageError, match=rf"{name} is 'run/99'; this version reads"):
        read_run(tmp_path / "run")


def test_events_of_another_version_are_refused(tmp_path: Path) -> None:
    written(tmp_path / "run")
    path = tmp_path / "run/run.json"
    path.write_text(path.read_text().replace(EVENT_FORMAT, "event/99"))
    with pytest.raises(StorageError, match=r"'event/99'; this version reads event/1"):
        read_run(tmp_path / "run")
