"""The one function behind every node process, whoever started it.

``testbed node`` calls it on a board; the command line's forkserver calls it for local boards.
"""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import dataclass

import torch
import zmq

from nodes.agent import Agent
from nodes.messages import NodeSetup
from nodes.transport.zeromq import ZmqWire
from radio.drivers.emulated import EmulatedRadio, ZmqConnection
from radio.event_loop import run
from radio.events import Observer
from radio.ledger import CpuLedger
from radio.warmup import warm_up

PLANES = {"auto": None, "shared-memory": True, "network": False}


@dataclass(frozen=True)
class NodeOptions:
    """What a node must know before it can ask for the rest.

    Attributes
    ----------
    name
        The node's name in ``lab.yaml``.
    controller
        ZeroMQ endpoint of the controller's hub.
    lifeline_fd
        Read end of a pipe that whoever started this process holds open; -1: none.
    """

    name: str
    controller: str
    lifeline_fd: int = -1
    join_timeout_s: float = 60.0


def use_one_thread() -> None:
    """One torch thread per node, whose CPU time is the length of a compute span."""
    torch.set_num_threads(1)


def run_node(options: NodeOptions) -> None:
    """Serve one run as a node, then return.

    One torch thread per node: several emulated boards share a machine, and a thread's CPU time
    is what a compute span is measured by.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the controller decides what an interrupt means
    use_one_thread()
    warm_up()
    run(_run(options))


async def _run(options: NodeOptions) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        wire = ZmqWire(context, options.controller, options.name)
        ledger = CpuLedger()

        def make_radio(setup: NodeSetup, observer: Observer) -> EmulatedRadio:
            connection = ZmqConnection(
                context,
                setup.air_endpoint,
                options.name,
                observer,
                PLANES[setup.plane],
                account=lambda: ledger.account("air"),  # moving samples is the air's work
            )
            return EmulatedRadio(connection, setup.numerology.sample_rate_hz)

        agent = Agent(wire, make_radio, ledger)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, agent.end, "terminated")
        if options.lifeline_fd >= 0:
            loop.add_reader(options.lifeline_fd, _lifeline_cut, options.lifeline_fd, agent)
        await agent.run(options.join_timeout_s)
    finally:
        context.destroy(linger=200)


def _lifeline_cut(lifeline_fd: int, agent: Agent) -> None:
    """Whoever started this process is gone, however it went."""
    asyncio.get_running_loop().remove_reader(lifeline_fd)
    os.close(lifeline_fd)
    agent.end("the process that started this node is gone")
