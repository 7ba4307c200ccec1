"""Policies against each other, over seeds and in pairs.

Runs with the same seed and scenario see the same channel, data and weights in the same round, so
what differs between two policies is what they decide.  Differences are taken per seed, and their
mean is given with a 95 % interval (Student's t over the seeds).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from testbed.config.loader import ResolvedConfig, config_hash
from testbed.errors import NodeError, StorageError
from testbed.record import Run, read_run

COMPARISON_FORMAT = "comparison/1"


@dataclass(frozen=True)
class RunNumbers:
    """What one run contributes.

    Attributes
    ----------
    mean_round_latency_s
        Over all rounds, cut moves and joining boards included.
    subchannels_moved_share
        Of all subchannels, per round after the first.
    """

    policy: str
    seed: int
    directory: str
    rounds: int
    mean_round_latency_s: float
    test_accuracy: float | None
    cut_moves: int
    subchannels_moved_share: float


@dataclass(frozen=True)
class Difference:
    """Mean over seeds of (other - reference) / other, with its 95 % interval."""

    reference: str
    other: str
    mean_share: float
    low_share: float
    high_share: float
    num_seeds: int

    @property
    def reference_is_faster(self) -> bool:
        """Whether the interval excludes zero on the reference's side."""
        return self.low_share > 0


@dataclass(frozen=True)
class Comparison:
    """Runs of several policies and how the first compares with each other one.

    Attributes
    ----------
    channel_by_round
        Whether the channel is the same in the same round whatever the policy; where it moves with
        time, a faster policy meets another channel.
    unlike_rounds
        Rounds in which two policies with the same seed trained other clients: who leaves a board out
        is faster for that.
    """

    scenario: str | None
    compute: str
    radio: str
    fidelity: str  # of the emulated radio: samples, or blocks
    clock: str
    channel_by_round: bool
    unlike_rounds: int
    runs: tuple[RunNumbers, ...]
    differences: tuple[Difference, ...]

    def to_json(self) -> str:
        """As one JSON object."""
        return json.dumps({"format": COMPARISON_FORMAT, **asdict(self)})

    def mean_latency_s(self, policy: str) -> float:
        """Mean over seeds [s]."""
        return float(np.mean([run.mean_round_latency_s for run in self.runs if run.policy == policy]))


def numbers_of(run: Run) -> RunNumbers:
    """What a finished run contributes.

    Raises
    ------
    NodeError
        It did not finish: a mean over fewer rounds would compare different things.
    """
    if run.stop is None or run.stop.get("reason") != "finished":
        words = run.stop["words"] if run.stop else "it was killed"
        raise NodeError(
            f"the run in {run.directory} did not finish, so it cannot be compared: {words}; remove that "
            "folder and call again, and only it is run anew"
        )
    rounds = run.of_kind("round")
    moved = [event.get("subchannels_moved", 0) / len(event["assignment"]) for event in run.of_kind("plan")]
    return RunNumbers(
        policy=str(run.start["policy"]),
        seed=int(run.start["seed"]),
        directory=str(run.directory),
        rounds=len(rounds),
        mean_round_latency_s=float(
            np.mean([event["latency_ns"] + event["cut_move_ns"] + event["join_ns"] for event in rounds]) / 1e9
        ),
        test_accuracy=run.stop.get("test_accuracy"),
        cut_moves=len(run.of_kind("cut-move")),
        subchannels_moved_share=float(np.mean(moved[1:])) if len(moved) > 1 else 0.0,
    )


def difference(runs: Sequence[RunNumbers], reference: str, other: str) -> Difference:
    """Paired relative difference of two policies over the seeds that both ran.

    Raises
    ------
    ValueError
        They share fewer than two seeds, from which no interval follows.
    """
    by_policy = {
        policy: {run.seed: run.mean_round_latency_s for run in runs if run.policy == policy}
        for policy in (reference, other)
    }
    seeds = sorted(set(by_policy[reference]) & set(by_policy[other]))
    if len(seeds) < 2:
        raise ValueError(f"{reference} and {other} share {len(seeds)} seeds; an interval needs two or more")
    shares = np.array([1 - by_policy[reference][seed] / by_policy[other][seed] for seed in seeds])
    half = float(stats.t.ppf(0.975, len(seeds) - 1) * shares.std(ddof=1) / np.sqrt(len(seeds)))
    mean = float(shares.mean())
    return Difference(reference, other, mean, mean - half, mean + half, len(seeds))


def _by_round(config: ResolvedConfig) -> bool:
    """Whether no channel of a lab moves with time."""
    scenario = config.lab.scenario
    if scenario is not None and scenario.fading is not None:
        return scenario.fading.kind == "per_round" or scenario.fading.doppler_hz == 0
    return all(board.channel is None or board.channel.fading.doppler_hz == 0 for board in config.lab.boards)


def compare(
    make_config: Callable[[str, int], ResolvedConfig],
    policies: Sequence[str],
    seeds: Sequence[int],
    directory: Path,
    run: Callable[[ResolvedConfig, Path], Any],
    progress: Callable[[RunNumbers], None] = lambda numbers: None,
) -> Comparison:
    """Run every policy with every seed, one after the other, and compare the first with the others.

    A finished run that lies in the directory already is not repeated.

    Parameters
    ----------
    make_config
        From (policy, seed).
    run
        Runs a configuration into a directory.

    Raises
    ------
    ValueError, ConfigError
        Fewer than two policies, or one that does not exist.
    NodeError
        A run did not finish.
    StorageError
        What lies in the directory is of another configuration.
    """
    if len(set(policies)) < 2:
        raise ValueError(f"{', '.join(policies)} cannot be compared: it takes two policies")
    # All of them before the first run: a policy that does not exist must not cost anybody a run.
    configs = {(policy, seed): make_config(policy, seed) for seed in seeds for policy in policies}
    numbers = []
    members: dict[int, list[list[list[str]]]] = {}
    for seed in seeds:  # seeds outside: what is there after an interruption is balanced
        for policy in policies:
            config = configs[policy, seed]
            place = directory / f"{policy}-{seed}"
            if not (place / "run.json").exists():
                run(config, place)
            read = read_run(place)
            if read.start.get("config_hash") != config_hash(config):
                raise StorageError(f"{place} holds a run of another configuration; choose another --out")
            members.setdefault(seed, []).append([event["clients"] for event in read.of_kind("round")])
            found = numbers_of(read)
            numbers.append(found)
            progress(found)
    config = next(iter(configs.values()))
    scenario = config.lab.scenario
    return Comparison(
        scenario=scenario.name if scenario else None,
        compute=config.experiment.compute.value,
        radio=config.lab.radio.driver,
        fidelity=config.lab.radio.fidelity.value,
        clock=config.lab.clock.kind,
        channel_by_round=_by_round(config),
        unlike_rounds=sum(
            any(other != clients[0] for other in clients[1:])
            for runs in members.values()
            for clients in zip(*runs, strict=False)
        ),
        runs=tuple(numbers),
        differences=tuple(difference(numbers, policies[0], other) for other in policies[1:]),
    )
