"""What ``testbed compare`` says: policies against each other in words and tables."""

from __future__ import annotations

import io

import numpy as np
from rich.console import Console
from rich.table import Table

from testbed.compare import Comparison, RunNumbers

WIDTH = 110


def line(numbers: RunNumbers) -> str:
    """One finished run."""
    accuracy = "-" if numbers.test_accuracy is None else f"{numbers.test_accuracy:.3f}"
    return (
        f"{numbers.policy:12s} seed {numbers.seed:3d}: mean round {1e3 * numbers.mean_round_latency_s:8.2f} ms, "
        f"{numbers.cut_moves} cut moves, {100 * numbers.subchannels_moved_share:.1f} % of subchannels moved per "
        f"round, accuracy {accuracy}"
    )


def render(comparison: Comparison) -> str:
    """Means by policy, and paired differences with their intervals."""
    buffer = io.StringIO()
    console = Console(file=buffer, width=WIDTH, highlight=False, markup=False, color_system=None)
    seeds = sorted({run.seed for run in comparison.runs})
    console.print(
        f"scenario {comparison.scenario or 'none'}, {comparison.radio} radio, "
        f"{comparison.fidelity} fidelity, {comparison.clock} time, "
        f"{comparison.compute} compute time, {len(seeds)} seeds, {comparison.runs[0].rounds} rounds each"
    )
    table = Table()
    for column in ("policy", "mean round [ms]", "moved/round", "cut moves", "accuracy"):
        table.add_column(column, justify="left" if column == "policy" else "right")
    for policy in dict.fromkeys(run.policy for run in comparison.runs):
        runs = [run for run in comparison.runs if run.policy == policy]
        known = [run.test_accuracy for run in runs if run.test_accuracy is not None]
        table.add_row(
            policy,
            f"{1e3 * comparison.mean_latency_s(policy):.2f}",
            f"{100 * np.mean([run.subchannels_moved_share for run in runs]):.1f} %",
            f"{np.mean([run.cut_moves for run in runs]):.1f}",
            f"{np.mean(known):.3f}" if known else "-",
        )
    console.print(table)
    for found in comparison.differences:
        verdict = (
            "faster" if found.low_share > 0 else "slower" if found.high_share < 0 else "no difference seen"
        )
        console.print(
            f"{found.reference} against {found.other}: {100 * found.mean_share:+.2f} % "
            f"(95 % interval {100 * found.low_share:+.2f} .. {100 * found.high_share:+.2f} %, "
            f"{found.num_seeds} pairs): {verdict}"
        )
    if comparison.unlike_rounds:
        console.print(
            f"in {comparison.unlike_rounds} rounds not all policies trained the same clients: who leaves one "
            "out is faster for that"
        )
    if not comparison.channel_by_round:
        console.print("the channel moves with time, so policies of other speed meet another channel")
    return buffer.getvalue()
