"""Bringing a lab to life: air, hub and nodes, in processes of their own or in this event loop.

Whatever ends this process, nothing stays behind: each process that is started here watches a
lifeline, a pipe that only this process holds open, and the sample memory has no name on disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Protocol

import msgspec
import psutil
import zmq

from nodes.transport.wire import MemoryHub, Wire
from nodes.transport.zeromq import ZmqHub
from radio import plane
from radio.air.process import AirReady, AirSetup
from radio.errors import RadioError as AirError
from radio.loop_socket import LoopSocket
from testbed.errors import NodeError, RadioError, TransportError

PRELOAD = ["nodes.preload", "testbed.cli"]
AIR_START_TIMEOUT_S = 180.0  # a cold kernel cache is compiled first
AIR_ANSWER_TIMEOUT_S = 30.0
EXIT_TIMEOUT_S = 5.0


def run_local_node(name: str, controller: str, lifeline: Connection) -> None:
    """Body of a local node's process: the function behind ``testbed node``, with a lifeline."""
    from nodes.process import NodeOptions, run_node  # torch: in the child only

    run_node(NodeOptions(name, controller, lifeline_fd=lifeline.fileno()))


def _helper_usage() -> list[ProcessUsage]:
    """Cost of the forkserver, which has imported for everybody; it is nobody's to wait for."""
    usages = []
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if any("multiprocessing.forkserver" in part for part in process.cmdline()):
                times = process.cpu_times()
                usages.append(
                    ProcessUsage("forkserver", times.user + times.system, {}, process.memory_info().rss)
                )
    return usages


@dataclass(frozen=True)
class ProcessUsage:
    """What one process cost: CPU seconds in all and by kind of work, and its peak memory."""

    name: str
    cpu_s: float
    kinds_s: dict[str, float]
    max_rss_bytes: int


class RunningLab(Protocol):
    """A lab whose nodes are being started or run."""

    air_endpoint: str
    transport: str

    @property
    def wire(self) -> Wire:
        """The controller's end of the control plane."""

    async def open(self) -> None:
        """Make the wire, on which nodes can join."""

    async def start_nodes(self, names: tuple[str, ...]) -> None:
        """Start local nodes, at the beginning or later; external ones join by themselves.

        Raises
        ------
        NodeError
            One of them was started before.
        RadioError
            The air did not start.
        """

    async def begin_round(self, round_index: int, first_sample: int) -> None:
        """Tell the air that from a sample index on it is this round; done when it has answered.

        Said before the first command of the round, and once; the same word again is harmless.

        Raises
        ------
        RadioError
            The air refused (the words say why), is gone, or did not answer in time.
        """

    def silence_s(self, name: str) -> float | None:
        """Wall seconds since a node was last heard; ``None`` where silence means nothing."""

    def gone(self) -> dict[str, str]:
        """Nodes whose process has ended, with the reason."""

    async def detach(self, name: str) -> None:
        """The air shall wait for this node no more, and nobody for its end."""

    async def dismiss(self, name: str) -> None:
        """This node was told to stop: it may end, and the air shall wait for it no more."""

    async def usage(self) -> list[ProcessUsage]:
        """Cost of what this lab runs besides the nodes."""

    async def close(self, grace_s: float = EXIT_TIMEOUT_S) -> None:
        """End everything that was started; at once with ``grace_s = 0``."""


class ProcessLab:
    """Air and nodes in processes of their own, ZeroMQ on loopback.

    Parameters
    ----------
    air
        Setup of the air; its process is started first.
    on_refused
        Called with (peer, reason) for each refused control message.
    """

    transport = "processes"

    def __init__(
        self,
        air: AirSetup,
        bind: str,
        names: tuple[str, ...],
        on_refused: Callable[[str, str], None],
    ) -> None:
        self._air_setup = air
        self._bind = bind
        self._names = names
        self._on_refused = on_refused
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._processes: dict[str, BaseProcess] = {}
        self._lifelines: list[Connection] = []
        self._detached: set[str] = set()
        self._dismissed: set[str] = set()
        self._air: asyncio.subprocess.Process | None = None
        self._air_socket: LoopSocket | None = None
        self._air_usage: asyncio.Future[plane.Usage] | None = None
        self._round_begun: asyncio.Future[plane.RoundBegun] | None = None
        self.air_endpoint = ""
        self.air_pid = 0
        self._hub: ZmqHub | None = None

    @property
    def wire(self) -> ZmqHub:
        assert self._hub is not None, "open() comes first"
        return self._hub

    @property
    def pids(self) -> dict[str, int]:
        """Process ids by name, the air among them."""
        pids = {name: process.pid or 0 for name, process in dict(self._processes).items()}
        if self._air is not None:
            pids["air"] = self._air.pid
        return pids

    async def open(self) -> None:
        """Bind the hub and let the air's process begin to load.

        Raises
        ------
        TransportError
            The hub cannot listen there.
        """
        try:
            self._hub = ZmqHub(self._context, self._bind, self._names, self._on_refused)
        except zmq.ZMQError as exc:
            raise TransportError(
                f"the controller cannot listen on {self._bind}: {exc}; does another run use it? "
                "lab.control.bind can name another address"
            ) from exc
        self._air = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "radio.air.process",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )

    async def _await_air(self) -> None:
        air = self._air
        assert air is not None
        assert air.stdin is not None
        assert air.stdout is not None
        air.stdin.write(msgspec.json.encode(self._air_setup) + b"\n")
        await air.stdin.drain()
        try:
            line = await asyncio.wait_for(air.stdout.readline(), AIR_START_TIMEOUT_S)
            ready = msgspec.json.decode(line, type=AirReady)
        except (TimeoutError, asyncio.TimeoutError, msgspec.DecodeError) as exc:
            raise RadioError(
                f"the emulated air did not start within {AIR_START_TIMEOUT_S} s "
                f"(exit code {air.returncode}); its messages are above"
            ) from exc
        self.air_endpoint, self.air_pid = ready.endpoint, ready.pid
        socket = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.IDENTITY, plane.CONTROLLER_IDENTITY)
        socket.connect(self.air_endpoint)
        self._air_socket = LoopSocket(socket, self._take_air_word)

    def _take_air_word(self, frames: list[bytes]) -> None:
        word = plane.decode_word(frames[0])
        usage, begun = self._air_usage, self._round_begun
        if isinstance(word, plane.Usage) and usage is not None and not usage.done():
            usage.set_result(word)
        elif isinstance(word, plane.RoundBegun) and begun is not None and not begun.done():
            begun.set_result(word)

    async def start_nodes(self, names: tuple[str, ...]) -> None:
        for name in names:
            if name in self._processes:
                raise NodeError(f"{name} was started before; a node runs once in a run")
        air_ready = None if self._air_socket else asyncio.create_task(self._await_air())
        try:
            await asyncio.to_thread(self._fork_nodes, names)
        finally:
            if air_ready is not None:
                await air_ready

    async def begin_round(self, round_index: int, first_sample: int) -> None:
        air = self._air
        if self._air_socket is None or air is None:
            raise RadioError(f"round {round_index} cannot begin: the emulated air has not been started")
        begun = self._round_begun = asyncio.get_running_loop().create_future()
        self._air_socket.send([plane.encode_word(plane.BeginRound(round_index, first_sample))])
        ended = asyncio.create_task(air.wait(), name="the air's end")
        try:
            await asyncio.wait(
                {begun, ended}, timeout=AIR_ANSWER_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            ended.cancel()
            await asyncio.gather(ended, return_exceptions=True)
        if begun.done():
            _check_begun(round_index, begun.result().refusal)
            return
        if air.returncode is not None:
            raise RadioError(
                f"round {round_index} cannot begin: the emulated air ended with exit code {air.returncode}"
            )
        raise RadioError(
            f"round {round_index} cannot begin: the emulated air did not answer within "
            f"{AIR_ANSWER_TIMEOUT_S:.0f} s"
        )

    def _fork_nodes(self, names: tuple[str, ...]) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        for name in names:
            reader, writer = context.Pipe(duplex=False)
            process = context.Process(
                target=run_local_node,
                args=(name, self.wire.endpoint, reader),
                name=f"node {name}",
                daemon=True,
            )
            process.start()
            reader.close()
            self._lifelines.append(writer)
            self._processes[name] = process

    def silence_s(self, name: str) -> float | None:
        seen = self.wire.last_seen_s.get(name)
        return None if seen is None else time.monotonic() - seen

    def gone(self) -> dict[str, str]:
        ended = {
            name: f"its process ended with exit code {process.exitcode}"
            for name, process in dict(self._processes).items()  # another thread may be forking
            if process.exitcode is not None and name not in self._dismissed
        }
        if self._air is not None and self._air.returncode is not None:
            ended["air"] = f"its process ended with exit code {self._air.returncode}"
        return ended

    async def detach(self, name: str) -> None:
        self._detached.add(name)
        self.wire.forget(name)
        if self._air_socket is not None:
            self._air_socket.send([plane.encode_word(plane.Detach(name))])

    async def dismiss(self, name: str) -> None:
        self._dismissed.add(name)
        self.wire.forget(name)
        if self._air_socket is not None:
            self._air_socket.send([plane.encode_word(plane.Detach(name))])

    async def usage(self) -> list[ProcessUsage]:
        if self._air_socket is None or "air" in self.gone():
            return []
        self._air_usage = asyncio.get_running_loop().create_future()
        self._air_socket.send([plane.encode_word(plane.Usage())])
        try:
            word = await asyncio.wait_for(self._air_usage, EXIT_TIMEOUT_S)
        except (TimeoutError, asyncio.TimeoutError):
            return []
        air = ProcessUsage("air", word.process_cpu_s, {"air": word.air_cpu_s}, word.max_rss_bytes)
        return [air, *_helper_usage()]

    async def close(self, grace_s: float = EXIT_TIMEOUT_S) -> None:
        for lifeline in self._lifelines:
            lifeline.close()
        self._lifelines.clear()
        if self._air is not None and self._air.stdin is not None:
            self._air.stdin.close()
        await asyncio.to_thread(self._join_nodes, grace_s)
        if self._air is not None:
            try:
                await asyncio.wait_for(self._air.wait(), max(grace_s, 0.1))
            except (TimeoutError, asyncio.TimeoutError):
                self._air.kill()
                await self._air.wait()
        if self._air_socket is not None:
            self._air_socket.close()
        if self._hub is not None:
            await self._hub.close()
        self._context.term()

    def _join_nodes(self, grace_s: float) -> None:
        deadline = time.monotonic() + grace_s
        for name, process in self._processes.items():
            if name in self._detached:
                process.kill()  # it may hang: no farewell is to be waited for
            process.join(max(0.05, deadline - time.monotonic()))
            if process.exitcode is None:
                process.kill()
                process.join(EXIT_TIMEOUT_S)
            process.close()
        self._processes.clear()


class InMemoryLab:
    """Air and nodes as tasks of this event loop; the same agents, no process and no socket.

    Loads torch into this process, which the command line never does: it is for tests and for
    looking into a run with a debugger.
    """

    transport = "memory"

    def __init__(self, air: AirSetup, names: tuple[str, ...]) -> None:
        from testbed.memory_nodes import MemoryNodes

        self._hub = MemoryHub()
        self._wire = self._hub.wire("controller")
        for name in names:
            self._hub.wire(name)  # a message sent before its node runs must not be lost
        self.air_endpoint = ""
        self._nodes = MemoryNodes(self._hub, air.parameters)

    @property
    def wire(self) -> Wire:
        return self._wire

    async def open(self) -> None:
        pass

    async def start_nodes(self, names: tuple[str, ...]) -> None:
        for name in names:
            self._nodes.start(name)

    def silence_s(self, name: str) -> float | None:
        return None  # one event loop: who computes is silent, and so is everybody else

    def gone(self) -> dict[str, str]:
        return self._nodes.ended()

    async def begin_round(self, round_index: int, first_sample: int) -> None:
        try:
            self._nodes.begin_round(round_index, first_sample)
        except AirError as exc:
            _check_begun(round_index, str(exc))

    async def detach(self, name: str) -> None:
        self._nodes.detach(name)

    async def dismiss(self, name: str) -> None:
        self._nodes.dismiss(name)

    async def usage(self) -> list[ProcessUsage]:
        return [ProcessUsage("air", 0.0, self._nodes.air_ledger.totals_s(), 0)]

    async def close(self, grace_s: float = EXIT_TIMEOUT_S) -> None:
        await self._nodes.close()


def _check_begun(round_index: int, refusal: str) -> None:
    if refusal:
        raise RadioError(f"round {round_index} cannot begin: {refusal}")


def require_node(names: tuple[str, ...], name: str) -> None:
    """Refuse a name that the lab does not know."""
    if name not in names:
        raise NodeError(f"{name!r} is no node of this lab; nodes are: {', '.join(names)}")
