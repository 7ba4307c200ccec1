"""Agents and air as tasks of one event loop, for :class:`testbed.launch.InMemoryLab` only.

Loads torch, so the command line never imports this module.
"""

from __future__ import annotations

import asyncio

from nodes.agent import Agent
from nodes.messages import NodeSetup
from nodes.process import use_one_thread
from nodes.transport.wire import MemoryHub
from radio.air.blocks import make_air
from radio.air.core import AirParameters
from radio.drivers.emulated import EmulatedRadio, InMemoryAir
from radio.events import Observer
from radio.ledger import CpuLedger
from radio.warmup import warm_up
from testbed.errors import NodeError


class MemoryNodes:
    """Agents and air in one event loop."""

    def __init__(self, hub: MemoryHub, air: AirParameters) -> None:
        use_one_thread()  # as in a node's process, or sums would be taken in another order
        warm_up()  # or the first round compiles, and every heartbeat waits
        self._hub = hub
        self.air_ledger = CpuLedger()
        self._air = InMemoryAir(
            lambda observer: make_air(air, observer), lambda: self.air_ledger.account("air")
        )
        self._agents: dict[str, Agent] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._dismissed: set[str] = set()

    def start(self, name: str) -> None:
        """Start a node as a task.

        Raises
        ------
        NodeError
            It has been started before.
        """
        if name in self._tasks:
            raise NodeError(f"{name} was started before; a node runs once in a run")

        def make_radio(setup: NodeSetup, observer: Observer) -> EmulatedRadio:
            return EmulatedRadio(self._air.connect(name, observer), setup.numerology.sample_rate_hz)

        agent = Agent(self._hub.wire(name), make_radio, CpuLedger())
        self._agents[name] = agent
        self._tasks[name] = asyncio.create_task(agent.run(), name=f"node {name}")

    def ended(self) -> dict[str, str]:
        """Nodes whose task has ended, with the reason."""
        reasons = {}
        for name, task in self._tasks.items():
            if name not in self._dismissed and task.done() and not task.cancelled():
                failure = task.exception()
                reasons[name] = f"its task ended: {failure or 'it was stopped'}"
        return reasons

    def detach(self, name: str) -> None:
        self._air.deliver(self._air.core.detach(name))

    def dismiss(self, name: str) -> None:
        """Its task may end, and the air shall wait for it no more."""
        self._dismissed.add(name)
        self.detach(name)

    def begin_round(self, round_index: int, first_sample: int) -> None:
        """Tell the air; an error of :mod:`radio.errors` if it refuses."""
        self._air.core.begin_round(round_index, first_sample)

    async def close(self) -> None:
        for agent in self._agents.values():
            agent.end("the lab was closed")
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
