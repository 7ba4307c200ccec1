"""What a run comes to, one line of its progress, and what may interrupt it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any


class StopReason(str, Enum):
    FINISHED = "finished"
    INTERRUPTED = "interrupted"
    FAILED = "failed"


@dataclass(frozen=True)
class RoundSummary:
    """One line of progress."""

    round_index: int
    latency_s: float
    predicted_s: float
    loss: float | None
    cut_layer: int
    words: tuple[str, ...]
    validation_accuracy: float | None
    retransmitted: int
    at_s: float


@dataclass
class RunResult:
    """What a run came to; also the body of ``stop.json``."""

    reason: StopReason
    words: str
    exit_code: int
    rounds: int
    test_accuracy: float | None = None
    test_accuracy_worst_client: float | None = None
    test_loss: float | None = None
    mean_round_latency_s: float | None = None
    experiment_s: float = 0.0
    wall_s: float = 0.0
    cpu_s: dict[str, dict[str, float]] = field(default_factory=dict)
    cpu_share_outside_signal_and_training: float | None = None
    peak_memory_bytes: int = 0


class Interrupts:
    """Counts interrupts: one finishes the round, the second stops now."""

    def __init__(self) -> None:
        self.count = 0
        self.task: asyncio.Task[Any] | None = None
        self.say: Callable[[str], None] = lambda words: None

    def __call__(self) -> None:
        self.count += 1
        if self.count == 1:
            self.say("interrupted: finishing the round; once more stops now")
        if self.count == 2 and self.task is not None:
            self.task.cancel()


def run_directory(out: Path | None, run: str) -> Path:
    """Where a run goes: ``out``, or ``runs/RUN`` under the present folder."""
    return out if out is not None else Path("runs") / run
