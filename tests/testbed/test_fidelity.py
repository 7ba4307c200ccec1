"""Runs of blocks fidelity: like those of samples where it matters, repeatable, and named as what they are."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scipy import stats

from radio.fidelity import Fidelity
from testbed.config.loader import load
from testbed.errors import ConfigError, LabError
from testbed.record import Run
from testbed.report import write_report
from testbed.results import RunResult
from testbed.runs import summary_of
from testbed.specs import air_setup, node_setup
from tests.testbed.experiments import checkpoint_bytes, run_in_memory, run_in_processes, small

VALIDATION = Path(__file__).resolve().parent.parent / "validation"
CLAIM = 0.03  # what goodput and retransmissions may differ by
BLOCKS = "lab.radio.fidelity=blocks"


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunResult, Run]:
    return run_in_memory(small(), tmp_path_factory.mktemp("samples") / "run")


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunResult, Run]:
    return run_in_memory(small(BLOCKS), tmp_path_factory.mktemp("blocks") / "run")


@pytest.fixture(scope="module")
def study() -> ModuleType:
    """The long validation, as a module."""
    spec = importlib.util.spec_from_file_location("fidelity_validation", VALIDATION / "fidelity.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


# ------------------------------------------------------------------------------------- whole runs
def test_training_does_not_see_the_fidelity(
    samples: tuple[RunResult, Run], blocks: tuple[RunResult, Run]
) -> None:
    """The same bytes arrive, so the same weights come out; latencies differ by what channels draw."""
    (left, one), (right, other) = samples, blocks
    assert (right.exit_code, right.rounds) == (0, left.rounds), right.words
    assert checkpoint_bytes(one.directory) == checkpoint_bytes(other.directory)
    assert right.mean_round_latency_s == pytest.approx(left.mean_round_latency_s, rel=0.1)
    # Soundings are samples in both: until the first data are sent, nothing may differ at all.
    assert one.of_kind("link")[:4] == other.of_kind("link")[:4]


def test_processes_and_memory_give_the_same_bytes_and_another_seed_others(
    tmp_path: Path, blocks: tuple[RunResult, Run]
) -> None:
    result, run = run_in_processes(small(BLOCKS), tmp_path / "run")
    assert result.exit_code == 0, result.words
    expected = (blocks[1].directory / "events.jsonl").read_bytes()
    assert (run.directory / "events.jsonl").read_bytes() == expected
    _, other = run_in_memory(small(BLOCKS, seed=2), tmp_path / "other")
    assert (other.directory / "events.jsonl").read_bytes() != expected


def test_a_muted_board_is_left_out_as_with_samples(tmp_path: Path) -> None:
    result, run = run_in_memory(small(BLOCKS, "lab.radio.muted=[board-2]", num_boards=3), tmp_path / "run")
    assert (result.exit_code, result.rounds) == (0, 2)
    assert [event["node"] for event in run.of_kind("left-out")] == ["board-2"]


# ---------------------------------------------------------------------------- what a run is called
def test_records_and_reports_name_the_fidelity(
    samples: tuple[RunResult, Run], blocks: tuple[RunResult, Run]
) -> None:
    assert (samples[1].start["fidelity"], blocks[1].start["fidelity"]) == ("iq", "blocks")
    assert summary_of(blocks[1]).fidelity == "blocks"
    write_report(blocks[1].directory)
    page = (blocks[1].directory / "report.html").read_text()
    assert "blocks fidelity" in page


def test_a_flag_wins_and_samples_are_the_default() -> None:
    assert load().lab.radio.fidelity is Fidelity.IQ
    config = load(overrides=["lab.radio.fidelity=iq"], flags={"fidelity": "blocks"})
    assert config.lab.radio.fidelity is Fidelity.BLOCKS
    assert air_setup(config.experiment, config.lab).parameters.fidelity is Fidelity.BLOCKS
    name = config.lab.server.name
    assert node_setup(config.experiment, config.lab, name, "run", "", 0).fidelity == "blocks"
    with pytest.raises(ConfigError, match="fidelity"):
        load(flags={"fidelity": "samples"})


def test_a_lab_that_blocks_cannot_represent_is_refused_in_words() -> None:
    config = small(BLOCKS)
    channel = config.lab.boards[1].channel
    assert channel is not None
    # Past the configuration's own check, as a lab would be that another program has put together.
    late = channel.model_copy(update={"timing_offset_samples": 40})
    boards = (config.lab.boards[0], config.lab.boards[1].model_copy(update={"channel": late}))
    lab = config.lab.model_copy(update={"boards": boards})
    with pytest.raises(LabError, match=r"blocks.*board-2.*prefix.*take iq"):
        air_setup(config.experiment, lab)
    samples = lab.radio.model_copy(update={"fidelity": Fidelity.IQ})
    air_setup(config.experiment, lab.model_copy(update={"radio": samples}))


# -------------------------------------------------------------------------------- the long validation
def results() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((VALIDATION / "fidelity.json").read_text())
    return loaded


@pytest.mark.parametrize("key", ["goodput_bps", "retransmissions"])
def test_the_validation_found_what_is_claimed(study: ModuleType, key: str) -> None:
    """Each scenario's mean agrees within 3 %, or is not told from that: its interval reaches there."""
    found = results()
    assert found["format"] == study.FORMAT
    assert [entry["scenario"] for entry in found["links"]] == [each.name for each in study.SCENARIOS]
    for entry in found["links"]:
        assert abs(entry[key]["relative_difference"]) < CLAIM, entry["scenario"]
        low, high = entry[key]["interval"]
        assert low < CLAIM, entry["scenario"]
        assert high > -CLAIM, entry["scenario"]


def test_a_tenth_of_the_validation_done_again_finds_it_again(study: ModuleType) -> None:
    """One seed of ten: a stored mean lies where one more seed may be, and both fidelities agree."""
    stored = {entry["scenario"]: entry for entry in results()["links"]}
    for number in (0, 3):
        scenario = study.SCENARIOS[number]
        found = {
            fidelity: study.stream_over_link(scenario, fidelity, 1, study.FRAMES // 2, study.SETTLING_FRAMES)
            for fidelity in Fidelity
        }
        iq, drawn = found[Fidelity.IQ], found[Fidelity.BLOCKS]
        goodput = [float(np.mean(each["goodput_bps"])) for each in (iq, drawn)]
        assert goodput[1] == pytest.approx(goodput[0], rel=CLAIM)
        assert goodput[0] == pytest.approx(stored[scenario.name]["goodput_bps"]["iq"], rel=0.15)
        rates = [each["retransmissions"][0] for each in (iq, drawn)]
        scatter = np.sqrt(sum(rate * (1 - rate) / iq["blocks"] for rate in rates))
        assert abs(rates[1] - rates[0]) < CLAIM * rates[0] + stats.norm.isf(5e-5) * scatter
