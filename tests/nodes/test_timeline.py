"""How long a computation lasts in experiment time, by kind of compute and by round."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from nodes.messages import ComputeSpec
from nodes.timeline import Timeline
from radio.clock import VirtualClock
from radio.ledger import CpuLedger

CPU_NS = 250_000  # what the work costs on this machine
FLOPS = 4e6
# Measured: 0.25 ms x 8; modelled: 4e6 FLOPs x 0.5 cycles / 1 GHz.  Both are 2 ms.
SPECS = {kind: ComputeSpec(kind, 1e9, 0.5, 8.0) for kind in ("measured", "modelled")}
PLAIN_NS = 2_000_000


class Machine:
    """A processor whose thread CPU time advances by what the work costs, and else not at all."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cpu_ns = 0
        monkeypatch.setattr(time, "thread_time_ns", lambda: self.cpu_ns)

    def work(self) -> str:
        self.cpu_ns += CPU_NS
        return "done"


def lengths_ns(
    machine: Machine, kind: str, factors: tuple[float, ...], rounds: list[int | None]
) -> list[int]:
    """Span lengths [ns] of one computation in each round; None: before any round was entered."""
    spec = ComputeSpec(kind, 1e9, 0.5, 8.0, factors)

    async def run() -> list[int]:
        with ThreadPoolExecutor(1) as executor:
            timeline = Timeline(VirtualClock(), spec, executor, CpuLedger())
            for index in rounds:
                if index is not None:
                    timeline.enter_round(index)
                result, _ = await timeline.compute("client-forward", 0, FLOPS, machine.work)
                assert result == "done"
            return [span.end_ns - span.start_ns for span in timeline.drain()]

    return asyncio.run(run())


@pytest.mark.parametrize("kind", SPECS)
def test_a_throttled_board_takes_as_many_times_as_long_in_those_rounds(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(monkeypatch)
    rounds = [None, 0, 1, 2, 3, 4, 1000, 1]
    found = lengths_ns(machine, kind, (1.0, 3.0, 1.5), rounds)
    assert found == [PLAIN_NS * factor for factor in (1, 1, 3, 1.5, 1.5, 1.5, 1.5, 3)]
    assert lengths_ns(machine, kind, (), [None, 0, 7]) == [PLAIN_NS] * 3


def test_the_record_of_a_span_does_not_tell_of_the_throttle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever estimates sees that it took long, and not why."""
    machine = Machine(monkeypatch)

    async def attributes(factors: tuple[float, ...]) -> dict[str, float | int | str | None]:
        with ThreadPoolExecutor(1) as executor:
            spec = ComputeSpec("modelled", 1e9, 0.5, 8.0, factors)
            timeline = Timeline(VirtualClock(), spec, executor, CpuLedger())
            await timeline.compute("client-forward", 0, FLOPS, machine.work)
            return timeline.drain()[0].attributes

    assert asyncio.run(attributes((3.0,))) == asyncio.run(attributes(()))


def test_the_factor_is_that_of_the_round_in_which_work_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)

    async def run() -> int:
        with ThreadPoolExecutor(1) as executor:
            spec = ComputeSpec("modelled", 1e9, 0.5, 8.0, (2.0, 1.0))
            timeline = Timeline(VirtualClock(), spec, executor, CpuLedger())
            work = asyncio.create_task(timeline.compute("client-forward", 0, FLOPS, machine.work))
            await asyncio.sleep(0)  # it has begun
            timeline.enter_round(1)
            return (await work)[1]

    assert asyncio.run(run()) == 2 * PLAIN_NS
