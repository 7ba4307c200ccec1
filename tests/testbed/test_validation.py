"""What the long validation found, and a tenth of it done again."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest

from testbed.compare import numbers_of
from testbed.config.loader import load
from testbed.record import read_run
from testbed.session import run_experiment

RESULTS = Path(__file__).resolve().parent.parent / "validation" / "closed_loop.json"


@pytest.fixture(scope="module")
def results() -> dict:
    return json.loads(RESULTS.read_text())


def test_the_results_say_what_they_were_measured_on(results: dict) -> None:
    assert results["format"] == "closed-loop-validation/1"
    assert len(results["commit"]) >= 7
    assert "dirty" not in results["commit"]
    for study in ("busy_day", "static"):
        assert results[study]["compute"] == "modelled"
        assert results[study]["radio"] == "emulated"


def test_differences_follow_from_the_runs_that_stand_beside_them(results: dict) -> None:
    """The intervals are those of Student's t over ten seeds: 2.262 standard errors."""
    for study in ("busy_day", "static"):
        runs = results[study]["runs"]
        for found in results[study]["differences"]:
            latency = {
                policy: np.array([run["mean_round_latency_s"] for run in runs if run["policy"] == policy])
                for policy in (found["reference"], found["other"])
            }
            shares = 1 - latency[found["reference"]] / latency[found["other"]]
            half = 2.262157 * shares.std(ddof=1) / np.sqrt(len(shares))
            assert len(shares) == found["num_seeds"] == 10
            assert found["mean_share"] == pytest.approx(shares.mean(), abs=1e-9)
            assert found["low_share"] == pytest.approx(shares.mean() - half, abs=1e-6)


def test_on_a_busy_day_the_closed_loop_is_faster_than_every_other_policy(results: dict) -> None:
    differences = {found["other"]: found for found in results["busy_day"]["differences"]}
    assert set(differences) == {"solve-once", "balanced", "round-robin"}
    for other, found in differences.items():
        assert found["low_share"] > 0, other


def test_on_a_still_channel_it_costs_less_than_one_percent(results: dict) -> None:
    (found,) = results["static"]["differences"]
    assert found["mean_share"] > -0.01


def test_a_tenth_of_the_busy_day_done_again(tmp_path: Path) -> None:
    """One seed, modelled compute time: the same order of policies."""
    latency = {}
    for policy in ("closed-loop", "solve-once", "round-robin"):
        flags = {"allocator": policy, "scenario": "busy-day", "rounds": 24, "seed": 1, "compute": "modelled"}
        config = load(preset="edge", flags=flags)
        asyncio.run(run_experiment(config, tmp_path / policy, in_memory=True))
        latency[policy] = numbers_of(read_run(tmp_path / policy)).mean_round_latency_s
    assert latency["closed-loop"] < latency["solve-once"]
    assert latency["closed-loop"] < latency["round-robin"]
