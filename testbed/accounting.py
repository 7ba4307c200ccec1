"""Where the CPU time and the memory of a run's process tree went."""

from __future__ import annotations

import contextlib
import time

import psutil

from testbed.launch import ProcessUsage

USEFUL_KINDS = ("modem", "air", "torch")  # signal processing and training


def cpu_table(usages: list[ProcessUsage], transport: str, planning_s: float) -> dict[str, dict[str, float]]:
    """CPU seconds by process and kind of work; the controller's among them when it is a process.

    Parameters
    ----------
    planning_s
        What allocator and prediction took of the controller's.
    """
    if transport == "memory":  # one process with one ledger, which every node reports as its own
        table = {"this process": {**usages[0].kinds_s, "total": time.process_time(), "planning": planning_s}}
    else:
        table = {usage.name: {"total": usage.cpu_s, **usage.kinds_s} for usage in usages}
    if transport == "processes":
        table["controller"] = {"total": time.process_time(), "planning": planning_s}
    return {
        name: {kind: round(seconds, 3) for kind, seconds in kinds.items()}
        for name, kinds in sorted(table.items())
    }


def share_outside(table: dict[str, dict[str, float]]) -> float | None:
    """Share of the CPU time that is neither signal processing nor training; ``None`` without any."""
    useful = sum(
        seconds for kinds in table.values() for kind, seconds in kinds.items() if kind in USEFUL_KINDS
    )
    total = sum(kinds["total"] for kinds in table.values())
    return round(1 - useful / total, 4) if total else None


def process_tree_bytes() -> int:
    """Memory of this process and its descendants now: proportional where the system tells it."""
    total = 0
    own = psutil.Process()
    for process in (own, *own.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            try:
                total += process.memory_full_info().pss
            except (psutil.AccessDenied, AttributeError):
                total += process.memory_info().rss
    return total
