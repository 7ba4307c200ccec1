"""When a node did what, in experiment time, and how long its computations last.

Each of a node's resources (processor, transmitter, receiver) has an instant from which it is
free.  A span starts at the later of "inputs ready" and "resource free", so compute overlaps radio.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor
from enum import Enum
from typing import TypeVar

from nodes.messages import ComputeSpec, SpanRecord
from radio.clock import Clock
from radio.ledger import CpuLedger
from radio.units import seconds_to_ns

Result = TypeVar("Result")
Attribute = float | int | str | None


class Resource(str, Enum):
    PROCESSOR = "processor"
    TRANSMITTER = "transmitter"
    RECEIVER = "receiver"


class ComputeKind(str, Enum):
    MEASURED = "measured"
    MODELLED = "modelled"


class Timeline:
    """Spans of one node.

    Parameters
    ----------
    compute
        How a compute span gets its length: ``measured``: thread CPU time of the work times the
        emulated board's slowdown; ``modelled``: FLOPs x cycles per FLOP / clock.  Both are
        multiplied by the slowdown of the round in which the work begins.
    executor
        One worker thread that all computations of this node run on, so that heartbeats go on.
    """

    def __init__(self, clock: Clock, compute: ComputeSpec, executor: Executor, ledger: CpuLedger) -> None:
        self.clock = clock
        self._compute = compute
        self._kind = ComputeKind(compute.kind)
        self._executor = executor
        self._ledger = ledger
        self._free_ns = dict.fromkeys(Resource, 0)
        self._spans: list[SpanRecord] = []
        self._round_index = 0

    def enter_round(self, round_index: int) -> None:
        """What is computed from now on belongs to this round; before the first it is round 0."""
        self._round_index = round_index

    def _slowdown(self) -> float:
        """Factor of the present round on the board's usual compute times."""
        factors = self._compute.slowdown_by_round
        return factors[min(self._round_index, len(factors) - 1)] if factors else 1.0

    def drain(self) -> tuple[SpanRecord, ...]:
        """Spans since the last call, in order of their start."""
        spans = tuple(sorted(self._spans, key=lambda span: (span.start_ns, span.end_ns, span.phase)))
        self._spans.clear()
        return spans

    def add(
        self, phase: str, resource: Resource, start_ns: int, end_ns: int, **attributes: Attribute
    ) -> None:
        """Note a span whose length the air decided."""
        self._spans.append(SpanRecord(phase, resource.value, start_ns, end_ns, attributes))
        self._free_ns[resource] = max(self._free_ns[resource], end_ns)

    async def rehearse(self, flops: float, work: Callable[[], object]) -> float:
        """Run ``work`` where spans run but off the clock; how long it would last as a span [s]."""
        slowdown = self._slowdown()
        _, cpu_ns = await self._timed(work)
        return slowdown * self._length_s(flops, cpu_ns)

    async def _timed(self, work: Callable[[], Result]) -> tuple[Result, int]:
        loop = asyncio.get_running_loop()
        result, cpu_ns = await loop.run_in_executor(self._executor, _timed, work)
        self._ledger.add("torch", cpu_ns)
        return result, cpu_ns

    def _length_s(self, flops: float, cpu_ns: int) -> float:
        """Length of a computation on this board as it usually is [s]."""
        if self._kind is ComputeKind.MODELLED:
            seconds = flops * self._compute.cycles_per_flop / self._compute.clock_hz
        else:
            seconds = cpu_ns / 1e9 * self._compute.slowdown
        return seconds

    async def compute(
        self, phase: str, ready_ns: int, flops: float, work: Callable[[], Result]
    ) -> tuple[Result, int]:
        """Run ``work`` as a compute span.

        Parameters
        ----------
        ready_ns
            When its inputs are there [ns].
        flops
            Its floating-point operations, for the modelled length and the record.

        Returns
        -------
        result, end_ns
        """
        slowdown = self._slowdown()
        free_ns = self._free_ns[Resource.PROCESSOR]
        start_ns = await self.clock.reach(max(ready_ns, free_ns))
        result, cpu_ns = await self._timed(work)
        seconds = slowdown * self._length_s(flops, cpu_ns)
        end_ns = await self.clock.reach(start_ns + seconds_to_ns(seconds))
        self.add(phase, Resource.PROCESSOR, start_ns, end_ns, flops=flops, compute=self._kind.value)
        return result, end_ns


def _timed(work: Callable[[], Result]) -> tuple[Result, int]:
    start_ns = time.thread_time_ns()
    result = work()
    return result, time.thread_time_ns() - start_ns
