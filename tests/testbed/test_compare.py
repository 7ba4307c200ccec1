"""Paired comparison: a difference that is there is seen, and one that is not is not claimed."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from testbed.cli import app
from testbed.compare import Comparison, RunNumbers, compare, difference, numbers_of
from testbed.compare_command import line, render
from testbed.config.loader import ResolvedConfig
from testbed.errors import NodeError, StorageError
from testbed.record import read_run
from testbed.session import run_experiment
from tests.testbed.experiments import small


def numbers(policy: str, seed: int, latency_s: float) -> RunNumbers:
    return RunNumbers(policy, seed, "nowhere", 10, latency_s, 0.9, 0, 0.1)


def runs(seed: int, share: float, num_seeds: int = 10) -> list[RunNumbers]:
    """Two policies whose latencies differ by a share, on seeds that differ far more."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(num_seeds):
        base = 0.3 * rng.lognormal(0, 0.3)
        found.append(numbers("a", number, base * (1 - share) * rng.lognormal(0, 0.01)))
        found.append(numbers("b", number, base * rng.lognormal(0, 0.01)))
    return found


def test_pairs_see_a_small_difference_that_seeds_would_hide() -> None:
    seen = [difference(runs(seed, 0.03), "a", "b").reference_is_faster for seed in range(50)]
    assert np.mean(seen) > 0.95


def test_where_nothing_differs_the_interval_covers_zero_in_nineteen_of_twenty_cases() -> None:
    covered = []
    for seed in range(400):
        found = difference(runs(seed, 0.0), "a", "b")
        covered.append(found.low_share <= 0 <= found.high_share)
    assert 0.92 < np.mean(covered) < 0.98


def test_one_pair_makes_no_interval() -> None:
    with pytest.raises(ValueError, match="1 seeds"):
        difference([numbers("a", 1, 0.1), numbers("b", 1, 0.2)], "a", "b")


def test_policies_are_run_compared_and_an_interrupted_comparison_goes_on(tmp_path: Path) -> None:
    made: list[str] = []
    rounds = [2]

    def configured(policy: str, seed: int) -> ResolvedConfig:
        return small(f"allocator.name={policy}", rounds=rounds[0], seed=seed)

    def run(config: ResolvedConfig, place: Path) -> None:
        made.append(place.name)
        asyncio.run(run_experiment(config, place, in_memory=True))

    def again() -> Comparison:
        return compare(configured, ["closed-loop", "round-robin"], [1, 2], tmp_path, run)

    first = again()
    assert made == ["closed-loop-1", "round-robin-1", "closed-loop-2", "round-robin-2"]
    (tmp_path / "round-robin-2" / "stop.json").unlink()
    with pytest.raises(NodeError, match="remove that folder and call again"):
        again()
    shutil.rmtree(tmp_path / "round-robin-2")
    made.clear()
    second = again()
    assert made == ["round-robin-2"]
    assert second.runs == first.runs  # modelled compute time: the same to the digit
    (found,) = second.differences
    expected = [
        1 - a.mean_round_latency_s / b.mean_round_latency_s
        for a, b in zip(second.runs[::2], second.runs[1::2], strict=True)
    ]
    assert found.mean_share == pytest.approx(np.mean(expected))
    assert json.loads(second.to_json())["format"] == "comparison/1"
    text = render(second)
    assert "closed-loop against round-robin" in text
    assert "modelled compute time" in text
    assert "seed   1" in line(second.runs[0])
    assert second.unlike_rounds == 0
    assert not second.channel_by_round
    assert "moves with time" in text
    rounds[0] = 3
    with pytest.raises(StorageError, match="another configuration"):
        again()


def test_the_mean_counts_cut_moves_and_a_run_that_did_not_finish_is_refused(tmp_path: Path) -> None:
    config = small("model.cut_layer=1", "model.cut_schedule={1: 2}", rounds=2)
    asyncio.run(run_experiment(config, tmp_path / "run", in_memory=True))
    run = read_run(tmp_path / "run")
    found = numbers_of(run)
    rounds_ns = [event["latency_ns"] for event in run.of_kind("round")]
    (move,) = run.of_kind("cut-move")
    assert found.mean_round_latency_s == pytest.approx((sum(rounds_ns) + move["latency_ns"]) / 2e9)
    assert found.cut_moves == 1
    (tmp_path / "run" / "stop.json").unlink()
    with pytest.raises(NodeError, match="killed"):
        numbers_of(read_run(tmp_path / "run"))


def test_one_policy_is_a_mistake_on_the_command_line_and_costs_no_run(tmp_path: Path) -> None:
    arguments = ["compare", "--out", str(tmp_path / "runs"), "--policies", "closed-loop"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "--policies" in result.output
    assert list(tmp_path.iterdir()) == []
