"""Experiments small enough for tests: a narrow band, few short slots, small batches."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

from testbed.config.loader import ResolvedConfig, load
from testbed.record import Run, read_run
from testbed.results import RunResult
from testbed.session import run_experiment

BATCH_SIZE = 8
PATH_LOSS_DB = (100.0, 104.0, 108.0, 102.0)
CFO_HZ = (-420.0, 180.0, 760.0, -1150.0)

NUMEROLOGY = {
    "sample_rate_hz": 5e6,
    "fft_size": 256,
    "prefix_samples": 32,
    "num_subchannels": 6,
    "subcarriers_per_subchannel": 36,
    "symbols_per_slot": 32,
    "slots_per_frame": 4,
}


def board(number: int, **channel: object) -> dict[str, object]:
    """A board of ``lab.yaml``; numbers count from 1."""
    return {
        "name": f"board-{number}",
        "max_power_dbm": 15.0,
        "processor": {"clock_hz": 1e8 * number, "cycles_per_flop": 0.0625},
        "channel": {
            "path_loss_db": PATH_LOSS_DB[number - 1],
            "cfo_hz": CFO_HZ[number - 1],
            "timing_offset_samples": 2 * number,
            "fading": {"delay_spread_s": 2e-7, "num_taps": 3, "rician_k_db": 10.0, "doppler_hz": 1.0},
            **channel,
        },
    }


def small_overrides(num_boards: int = 2) -> list[str]:
    """``--set`` options that make the laptop preset small."""
    values = {f"numerology.{key}": value for key, value in NUMEROLOGY.items()}
    values |= {
        "learning.batch_size": BATCH_SIZE,
        "evaluation.every_rounds": 100,
        "checkpoints.every_rounds": 0,
        "lab.boards": [board(number) for number in range(1, num_boards + 1)],
    }
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def small(
    *overrides: str, num_boards: int = 2, rounds: int = 2, seed: int = 1, compute: str = "modelled"
) -> ResolvedConfig:
    """The small experiment, changed by ``KEY=VALUE``."""
    return load(
        overrides=[*small_overrides(num_boards), *overrides],
        flags={"rounds": rounds, "seed": seed, "compute": compute},
    )


def run_in_memory(config: ResolvedConfig, directory: Path) -> tuple[RunResult, Run]:
    """Run it as tasks of one event loop; what it came to and what its directory says."""
    _, result = asyncio.run(run_experiment(config, directory, in_memory=True))
    return result, read_run(directory)


def run_in_processes(config: ResolvedConfig, directory: Path) -> tuple[RunResult, Run]:
    """Run it in processes of its own, forked from one server that outlives the run."""
    _, result = asyncio.run(run_experiment(config, directory))
    return result, read_run(directory)


def checkpoint_bytes(directory: Path) -> dict[str, bytes]:
    """Every weights file of the newest checkpoint, by name."""
    newest: Sequence[Path] = sorted((directory / "checkpoints").iterdir())
    return {path.name: path.read_bytes() for path in sorted(newest[-1].glob("*.safetensors"))}


def words_of(result: RunResult, run: Run) -> str:
    """All that the run says in words."""
    said = [result.words, *(text for event in run.of_kind("round") for text in event["words"])]
    return "\n".join(said)
