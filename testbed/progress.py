"""What a person sees while a run goes on: one progress bar and one line per round."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from testbed.results import RoundSummary, RunResult


class RunProgress:
    """Progress on standard error; without a terminal, plain lines."""

    def __init__(self, num_rounds: int) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            refresh_per_second=2,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=num_rounds)
        self._last_status = ""

    def __enter__(self) -> RunProgress:
        self._bar.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def status(self, words: str) -> None:
        """What is being done now."""
        self._bar.update(self._task, description=words)
        if not self._console.is_terminal:
            self._console.print(words)

    def round(self, summary: RoundSummary) -> None:
        """One finished round."""
        loss = "-" if summary.loss is None else f"{summary.loss:.3f}"
        line = (
            f"round {summary.round_index:4d}  {1e3 * summary.latency_s:8.2f} ms (predicted "
            f"{1e3 * summary.predicted_s:.2f})  loss {loss}  "
            f"cut {summary.cut_layer}  repeated blocks {summary.retransmitted:3d}  at {summary.at_s:8.3f} s"
        )
        if summary.validation_accuracy is not None:
            line += f"  validation accuracy {summary.validation_accuracy:.3f}"
        self._console.print(line)
        for words in summary.words:
            self._console.print(f"            {words}")
        self._bar.update(self._task, advance=1)

    def finish(self, directory: Path, result: RunResult, made: Mapping[str, Path]) -> None:
        """Last words: what it came to and where it lies."""
        self._bar.stop()
        say = self._console.print
        say(f"{result.reason.value}: {result.words}")
        if result.test_accuracy is not None:
            say(
                f"test accuracy {result.test_accuracy:.4f} (mean over clients; worst "
                f"{result.test_accuracy_worst_client:.4f})"
            )
        if result.mean_round_latency_s is not None:
            say(
                f"{result.rounds} rounds, mean round latency {1e3 * result.mean_round_latency_s:.2f} ms of "
                f"experiment time, {result.wall_s:.1f} s of wall time"
            )
        if result.cpu_s:
            say("CPU seconds by process and kind:")
            for name, kinds in result.cpu_s.items():
                parts = "  ".join(f"{kind} {seconds:.2f}" for kind, seconds in kinds.items())
                say(f"  {name:14s} {parts}")
        if result.cpu_share_outside_signal_and_training is not None:
            say(
                f"outside modem, air and torch: {100 * result.cpu_share_outside_signal_and_training:.1f} % of CPU; "
                f"peak memory {result.peak_memory_bytes / 2**30:.2f} GiB"
            )
        for what, path in made.items():
            say(f"{what}: {path}")
        say(f"run directory: {directory}")
