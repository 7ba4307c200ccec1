"""Where CPU time goes: thread CPU seconds by kind of work."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class CpuLedger:
    """Accumulates the calling thread's CPU time under a kind ("modem", "air", "torch", ...)."""

    def __init__(self) -> None:
        self._spent_ns: dict[str, int] = {}

    @contextmanager
    def account(self, kind: str) -> Iterator[None]:
        """Book the block's thread CPU time under ``kind``; blocks must not nest or await."""
        start = time.thread_time_ns()
        try:
            yield
        finally:
            self.add(kind, time.thread_time_ns() - start)

    def add(self, kind: str, cpu_ns: int) -> None:
        """Book CPU time measured elsewhere [ns]."""
        self._spent_ns[kind] = self._spent_ns.get(kind, 0) + cpu_ns

    def seconds(self, kind: str) -> float:
        """CPU seconds booked under ``kind``."""
        return self._spent_ns.get(kind, 0) / 1e9

    def totals_s(self) -> dict[str, float]:
        """CPU seconds by kind."""
        return {kind: spent / 1e9 for kind, spent in sorted(self._spent_ns.items())}
