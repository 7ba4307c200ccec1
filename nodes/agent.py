"""A node's process: joins a run, keeps its heartbeat, does what the controller asks.

The same coroutine serves a board in another building, a process that the command line started
and a task of the controller's own event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import get_args

import msgspec
import numpy as np
import torch

from nodes.client_role import ClientRole
from nodes.context import NodeContext
from nodes.data_source import load_material
from nodes.errors import NodeError, StoppedError
from nodes.messages import (
    CONTROLLER,
    Abort,
    Body,
    Configure,
    CutMove,
    Envelope,
    Evaluate,
    Evaluated,
    Failure,
    Heartbeat,
    Hello,
    NodeSetup,
    Ready,
    Rehearse,
    Rehearsed,
    RehearsedSpan,
    RoundReport,
    RoundStart,
    SoundingReport,
    SoundingStart,
    Stop,
    Stopped,
    WeightsDone,
    WeightsInstall,
    WeightsWanted,
    Welcome,
)
from nodes.roles import RoundNotes, pack_states
from nodes.server_role import ServerRole
from nodes.sounding import adjust_gain, client_sounding, server_sounding
from nodes.transport.endpoint import Endpoint
from nodes.transport.wire import Wire
from radio.drivers.base import Radio, RadioConfig
from radio.errors import RadioError
from radio.events import Observer, RadioEvent
from radio.ledger import CpuLedger

RadioFactory = Callable[[NodeSetup, Observer], Radio]
Command = (
    Configure
    | CutMove
    | Evaluate
    | Rehearse
    | RoundStart
    | SoundingStart
    | Stop
    | WeightsInstall
    | WeightsWanted
)
REHEARSALS = 4  # of which the first prepares kernels and memory
REHEARSAL_LIMIT_S = 2.0  # wall time per cut after which none is added: big models are steady anyway
START_RX_GAIN_DB = 40.0
HELLO_INTERVAL_S = 1.0
FOREVER_S = 1e9  # a wait that only heartbeats end
RECOVERABLE = (NodeError, RadioError, ValueError, OSError, RuntimeError)


def versions() -> dict[str, str]:
    """Versions that decide whether two nodes compute alike."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "msgspec": msgspec.__version__,
    }


class Agent:
    """One node in one run.

    Parameters
    ----------
    wire
        Connection to the controller's hub.
    make_radio
        Makes this node's radio once the run's setup is known.
    ledger
        Where CPU time is booked; shared by nodes of one process.
    """

    def __init__(self, wire: Wire, make_radio: RadioFactory, ledger: CpuLedger) -> None:
        self._endpoint = Endpoint(wire)
        self._make_radio = make_radio
        self._ledger = ledger
        self._radio_events: list[RadioEvent] = []
        self._role: ClientRole | ServerRole | None = None
        self._context: NodeContext | None = None

    def end(self, reason: str) -> None:
        """Stop now: every wait ends, and :meth:`run` returns after muting the radio."""
        self._endpoint.end(reason)

    async def run(self, join_timeout_s: float = 60.0) -> None:
        """Join, serve until told to stop, mute.

        Raises
        ------
        WaitTimeoutError
            No controller answered within ``join_timeout_s``.
        """
        executor = ThreadPoolExecutor(1, thread_name_prefix=f"compute {self._endpoint.name}")
        radio: Radio | None = None
        watch: asyncio.Task[None] | None = None
        try:
            setup = await self._join(join_timeout_s)
            self._endpoint.run = setup.run
            watch = asyncio.create_task(self._watch(setup), name=f"heartbeat {self._endpoint.name}")
            radio = self._make_radio(setup, self._radio_events.append)
            await self._prepare(setup, radio, executor)
            await self._serve()
        except StoppedError:
            pass
        except RECOVERABLE as exc:
            # Outside a command nobody else would ever learn why this node is gone.
            await self._endpoint.send(CONTROLLER, Failure(type(exc).__name__, str(exc)))
            raise
        finally:
            if watch is not None:
                watch.cancel()
                await asyncio.gather(watch, return_exceptions=True)
            if radio is not None:
                with contextlib.suppress(RadioError):
                    await radio.stop()
            await self._endpoint.close()
            executor.shutdown(wait=True)
            if self._context is not None:
                self._context.close()

    async def _join(self, timeout_s: float) -> NodeSetup:
        deadline = time.monotonic() + timeout_s
        while True:
            await self._endpoint.send(CONTROLLER, Hello(os.getpid(), versions()))
            try:
                welcome, _ = await self._endpoint.take(
                    Welcome, CONTROLLER, timeout_s=HELLO_INTERVAL_S, what="a welcome"
                )
                return welcome.setup
            except NodeError:
                if self._endpoint.ended is not None or time.monotonic() > deadline:
                    raise

    async def _watch(self, setup: NodeSetup) -> None:
        """Say that this node lives, and notice when the controller does not."""
        loop = asyncio.get_running_loop()
        listening_since_s = loop.time()
        while True:
            await self._endpoint.send(CONTROLLER, Heartbeat())
            asleep_s = loop.time()
            await asyncio.sleep(setup.heartbeat_s)
            if loop.time() - asleep_s > setup.heartbeat_s + setup.timeout_s:
                listening_since_s = loop.time()  # this process was stopped: the silence was its own
            heard_s = max(self._endpoint.last_heard_s or 0.0, listening_since_s)
            if loop.time() - heard_s > 3 * setup.timeout_s:
                self._endpoint.end(f"the controller has been silent for {loop.time() - heard_s:.1f} s")

    async def _prepare(self, setup: NodeSetup, radio: Radio, executor: ThreadPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        material = await loop.run_in_executor(executor, load_material, setup)
        await radio.start()
        context = NodeContext(
            setup,
            self._endpoint.name,
            self._endpoint,
            radio,
            executor,
            self._ledger,
            self._radio_events,
        )
        rate = context.numerology.sample_rate_hz
        context.rx_gain_db = (await radio.configure(RadioConfig(rate, START_RX_GAIN_DB))).rx_gain_db
        role: ClientRole | ServerRole
        if setup.role == "client":
            role = ClientRole(context, material)
        else:
            role = ServerRole(context, material)
        num_samples = role.num_samples if isinstance(role, ClientRole) else 0
        self._role, self._context = role, context
        await self._endpoint.send(CONTROLLER, Ready(num_samples, material.model_spec()))

    async def _serve(self) -> None:
        while True:
            command, envelope = await self._endpoint.take(
                get_args(Command), CONTROLLER, timeout_s=FOREVER_S, what="a command"
            )
            if isinstance(command, Stop):
                await self._say_stopped()
                return
            try:
                answer = await self._obey_unless_aborted(command, envelope)
            except StoppedError:
                raise
            except RECOVERABLE as exc:
                answer = Failure(type(exc).__name__, str(exc))
                with contextlib.suppress(RadioError):
                    assert self._context is not None
                    await self._context.radio.stand_down()
            if answer is not None:
                await self._endpoint.send(
                    CONTROLLER,
                    answer,
                    round_index=envelope.round_index,
                    attempt=envelope.attempt,
                    at_ns=_end_of(answer),
                )

    async def _obey_unless_aborted(self, command: Body, envelope: Envelope) -> Body | None:
        if not isinstance(command, RoundStart | CutMove | SoundingStart):
            return await self._obey(command, envelope)
        work = asyncio.create_task(self._obey(command, envelope), name=f"command {self._endpoint.name}")
        abort = asyncio.create_task(
            self._endpoint.take(
                Abort,
                CONTROLLER,
                timeout_s=FOREVER_S,
                round_index=envelope.round_index,
                accepts=lambda abort: abort.command == type(command).__name__,
            ),
            name=f"abort {self._endpoint.name}",
        )
        try:
            await asyncio.wait({work, abort}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            reason, _ = abort.result()
            raise NodeError(f"aborted: {reason.words}")
        finally:
            work.cancel()
            abort.cancel()
            await asyncio.gather(work, abort, return_exceptions=True)

    async def _say_stopped(self) -> None:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        await self._endpoint.send(
            CONTROLLER,
            Stopped(
                self._ledger.totals_s(),
                time.process_time(),
                usage.ru_maxrss * 1024,
                self._endpoint.refused,
            ),
        )

    async def _obey(self, command: Body, envelope: Envelope) -> Body | None:
        role, context = self._role, self._context
        assert role is not None
        assert context is not None
        if isinstance(command, RoundStart | CutMove):
            self._endpoint.enter_round(envelope.round_index)
            context.run_attempt = envelope.attempt
            context.timeline.enter_round(envelope.round_index)
            grant = command.grant
            if isinstance(command, RoundStart):
                notes = await role.round(envelope.round_index, grant)
            else:
                notes = await role.move_cut(envelope.round_index, grant)
            return _round_report(context, notes)
        if isinstance(command, SoundingStart):
            self._endpoint.enter_round(envelope.round_index)
            return await _sound(context, command)
        if isinstance(command, Configure):
            role.configure(command.cut_layer)
            return WeightsDone("configure", 0)
        if isinstance(command, Rehearse):
            return await _rehearse(context, role, command.cut_layers)
        if isinstance(command, WeightsWanted):
            if command.purpose.startswith("start/") and isinstance(role, ServerRole):
                data = pack_states(role.initial_client_states())
            else:
                data = pack_states(role.states())
            await self._endpoint.send_bulk(command.target, command.purpose, "weights", data)
            return WeightsDone(command.purpose, len(data))
        if isinstance(command, WeightsInstall):
            data = await self._endpoint.take_bulk(command.purpose, context.wait_s)
            role.install(data)
            return WeightsDone(command.purpose, len(data))
        if isinstance(command, Evaluate) and isinstance(role, ServerRole):
            weights = [
                await self._endpoint.take_bulk(purpose, context.wait_s) for purpose in command.purposes
            ]
            with context.ledger.account("torch"):
                result, num_samples = role.evaluate(command.split, weights)
            return Evaluated(command.split, result.accuracies, result.losses, num_samples)
        raise NodeError(f"{type(command).__name__} is no command for a {context.setup.role}")


async def _rehearse(
    context: NodeContext, role: ClientRole | ServerRole, cut_layers: tuple[int, ...]
) -> Rehearsed:
    """Time the work of a round at some cuts; what is prepared once is prepared before any span."""
    spans = []
    for cut_layer in cut_layers:
        steps = role.rehearsal(cut_layer)
        taken: list[list[float]] = [[] for _ in steps]
        deadline_s = time.monotonic() + REHEARSAL_LIMIT_S
        while len(taken[-1]) < REHEARSALS and (not taken[-1] or time.monotonic() < deadline_s):
            for step, seconds in zip(steps, taken, strict=True):
                seconds.append(await context.timeline.rehearse(step.flops, step.work))
        spans += [
            RehearsedSpan(step.phase, cut_layer, step.flops, statistics.median(seconds[1:] or seconds))
            for step, seconds in zip(steps, taken, strict=True)
        ]
    return Rehearsed(tuple(spans))


async def _sound(context: NodeContext, command: SoundingStart) -> SoundingReport:
    """A sounding by itself, after which the receiver gain is set."""
    if context.setup.role == "server":
        estimates, peak_dbfs, end_ns = await server_sounding(
            context,
            command.start_ns,
            command.clients,
            command.sounding_psd_w_per_hz,
            command.downlink_psd_w_per_hz,
        )
        links = tuple(context.measurement(name, estimate) for name, estimate in estimates.items())
    else:
        own = command.clients.index(context.name)
        estimate, peak_dbfs, end_ns = await client_sounding(
            context,
            command.start_ns,
            command.clients,
            command.sounding_psd_w_per_hz[own],
            command.downlink_psd_w_per_hz,
        )
        links = (context.measurement(context.setup.server, estimate),)
    await context.radio.stand_down()
    rx_gain_db = context.rx_gain_db
    settled = await adjust_gain(context, peak_dbfs)
    return SoundingReport(
        links=links,
        spans=context.timeline.drain(),
        radio_events=context.drain_radio_events(),
        rx_gain_db=rx_gain_db,
        peak_dbfs=round(peak_dbfs, 2),
        gain_settled=settled,
        end_ns=end_ns,
    )


def _round_report(context: NodeContext, notes: RoundNotes) -> RoundReport:
    return RoundReport(
        complete=notes.complete,
        words=tuple(notes.words),
        end_ns=notes.end_ns,
        spans=context.timeline.drain(),
        transmissions=tuple(notes.transmissions),
        receptions=tuple(notes.receptions),
        links=tuple(notes.links),
        losses=tuple(notes.losses),
        radio_events=context.drain_radio_events(),
        adaptation=tuple(notes.adaptation),
    )


def _end_of(answer: Body) -> int:
    """Experiment time at which an answer was ready."""
    return answer.end_ns if isinstance(answer, RoundReport | SoundingReport) else 0
