"""Experiment time: virtual, wall, or wall in slow motion.

Everything above the radio gives a :class:`Clock` the instant at which it wants to go on and is
told the instant at which it does; nothing else sleeps.  Instants are integer nanoseconds since
the start of the run.
"""

from __future__ import annotations

import asyncio
import time
from enum import Enum
from typing import Protocol

from radio.units import NS_PER_S


class ClockKind(str, Enum):
    """Which time a run was measured in; recorded with every run."""

    VIRTUAL = "virtual"
    WALL = "wall"


class Clock(Protocol):
    """What time is it, from where somebody stands who is ready at an instant.

    Attributes
    ----------
    lead_ns
        How long before its first sample a burst must be announced [ns].
    """

    kind: ClockKind
    lead_ns: int

    async def reach(self, instant_ns: int) -> int:
        """Wait until an instant; return it, or the later one that it has become meanwhile."""


class VirtualClock:
    """Nobody sleeps and nothing is late: each node's time is that of what it waited for."""

    kind = ClockKind.VIRTUAL
    lead_ns = 0

    async def reach(self, instant_ns: int) -> int:
        return instant_ns


class WallClock:
    """Monotonic wall time since ``epoch_ns``, slowed down by ``slow_motion``.

    Parameters
    ----------
    epoch_ns
        Value of :func:`time.monotonic_ns` at the start of the run; processes of one host share it.
    slow_motion
        Wall seconds for one second of experiment time; 1 is real time.
    lead_s
        How long before its first sample a burst is announced [s of wall time].
    """

    kind = ClockKind.WALL

    def __init__(self, epoch_ns: int, slow_motion: float = 1.0, lead_s: float = 0.01) -> None:
        if not slow_motion > 0:
            raise ValueError(f"slow_motion must be positive, got {slow_motion}")
        self._epoch_ns = epoch_ns
        self._slow_motion = slow_motion
        self.lead_ns = round(lead_s * NS_PER_S / slow_motion)

    def now_ns(self) -> int:
        """Experiment time [ns]."""
        return int((time.monotonic_ns() - self._epoch_ns) / self._slow_motion)

    async def reach(self, instant_ns: int) -> int:
        while (missing_ns := instant_ns - self.now_ns()) > 0:
            await asyncio.sleep(missing_ns * self._slow_motion / NS_PER_S)
        return max(instant_ns, self.now_ns())
