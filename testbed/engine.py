"""One run, from the first hello to the stop document.

    estimates -> plan -> grants -> sounding and round -> reports -> estimates

The engine decides the order of things; nodes do them, and the record keeps what they report.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import platform
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil

from nodes.checkpoints import save_checkpoint
from nodes.errors import NodeError as NodesRoomError
from nodes.errors import PeerLostError
from nodes.messages import (
    Configure,
    CutMove,
    Evaluate,
    Evaluated,
    Hello,
    Ready,
    RoundReport,
    RoundStart,
    SoundingReport,
    SoundingStart,
    Stop,
    Stopped,
    WeightsDone,
    WeightsInstall,
    WeightsWanted,
)
from radio.units import ns_to_seconds, seconds_to_ns
from testbed.allocator.api import warm_up
from testbed.allocator.problem import AllocationError, Plan, RateModel
from testbed.config.loader import ResolvedConfig, config_hash, resolved_yaml
from testbed.controller import Controller, NodeFailedError
from testbed.errors import ExitCode, NodeError, RadioError, TestbedError, exit_code
from testbed.launch import ProcessUsage, RunningLab
from testbed.planner import Planner
from testbed.record import Event, RunWriter
from testbed.specs import node_setup

MAX_GAIN_SOUNDINGS = 6
STOP_TIMEOUT_S = 5.0
BULK_TIMEOUT_S = 120.0
MEMORY_SAMPLE_ROUNDS = 50  # walking the page tables of eight processes takes 0.15 s of CPU


class StopReason(str, Enum):
    FINISHED = "finished"
    INTERRUPTED = "interrupted"
    FAILED = "failed"


class NothingArrivedError(RadioError):
    """A whole round in which no client's smashed data came through the air."""


class LinkBudgetError(RadioError):
    """What was measured of the links leaves no way to get the clients' data through."""


@dataclass(frozen=True)
class RoundSummary:
    """One line of progress."""

    round_index: int
    latency_s: float
    loss: float | None
    cut_layer: int
    words: tuple[str, ...]
    validation_accuracy: float | None
    retransmitted: int
    at_s: float


@dataclass
class RunResult:
    """What a run came to; also the body of ``stop.json``."""

    reason: StopReason
    words: str
    exit_code: int
    rounds: int
    test_accuracy: float | None = None
    test_accuracy_worst_client: float | None = None
    test_loss: float | None = None
    mean_round_latency_s: float | None = None
    experiment_s: float = 0.0
    wall_s: float = 0.0
    cpu_s: dict[str, dict[str, float]] = field(default_factory=dict)
    cpu_share_outside_signal_and_training: float | None = None
    peak_memory_bytes: int = 0


class Interrupts:
    """Counts interrupts: one finishes the round, the second stops now."""

    def __init__(self) -> None:
        self.count = 0
        self.task: asyncio.Task[Any] | None = None
        self.say: Callable[[str], None] = lambda words: None

    def __call__(self) -> None:
        self.count += 1
        if self.count == 1:
            self.say("interrupted: finishing the round; once more stops now")
        if self.count == 2 and self.task is not None:
            self.task.cancel()


class Engine:
    """Runs one experiment on one lab.

    Parameters
    ----------
    lab
        Opened, its nodes not yet started.
    progress
        Called after each round.
    """

    def __init__(
        self,
        config: ResolvedConfig,
        lab: RunningLab,
        writer: RunWriter,
        run: str,
        interrupts: Interrupts,
        progress: Callable[[RoundSummary], None] = lambda summary: None,
        status: Callable[[str], None] = lambda words: None,
    ) -> None:
        self._config = config
        self._experiment, self._lab_config = config.experiment, config.lab
        self._lab = lab
        self._writer = writer
        self._run = run
        self._interrupts = interrupts
        self._progress = progress
        self._status = status
        self._clients = tuple(board.name for board in config.lab.boards)
        self._server = config.lab.server.name
        self._names = (*self._clients, self._server)
        self._latency_ns = seconds_to_ns(config.lab.control.latency_s)
        self._now_ns = 0
        self._epoch_ns = 0
        self._cut = 0
        self._in_step: set[str] = set()  # clients whose submodel has the present cut
        self._latencies_s: list[float] = []
        self._rounds_done = 0
        self._peak_memory_bytes = 0
        self._controller: Controller | None = None
        self._planner_or_none: Planner | None = None
        self._last_accuracy: float | None = None

    # ------------------------------------------------------------------------------ the run
    async def run(self) -> RunResult:
        """Run to the end, whatever the end is; the stop document is written in every case."""
        started = time.monotonic()
        result: RunResult
        try:
            await self._start()
            await self._train()
            interrupted = self._interrupts.count > 0
            result = RunResult(
                StopReason.INTERRUPTED if interrupted else StopReason.FINISHED,
                f"interrupted; the round was finished ({self._rounds_done} of "
                f"{self._experiment.rounds} rounds)"
                if interrupted
                else f"all {self._experiment.rounds} rounds were run",
                1 if interrupted else 0,
                self._rounds_done,
            )
            await self._conclude(result)
        except asyncio.CancelledError:
            if self._interrupts.count < 2:
                await self._finish(self._failed("cancelled", ExitCode.INTERRUPTED), started)
                raise
            result = RunResult(
                StopReason.INTERRUPTED, "stopped at once by a second interrupt", 1, self._rounds_done
            )
        except (TestbedError, NodesRoomError) as exc:
            result = self._failed(str(exc), exit_code(exc))
        except BaseException as exc:
            await self._finish(self._failed(f"a fault of the testbed itself: {exc!r}", ExitCode.BUG), started)
            raise
        await self._finish(result, started)
        return result

    def _failed(self, words: str, code: ExitCode) -> RunResult:
        return RunResult(StopReason.FAILED, words, int(code), self._rounds_done)

    async def _finish(self, result: RunResult, started_s: float) -> None:
        """End what was started, then write why the run ended."""
        try:
            await self._stop(result)
        except TestbedError as exc:
            if not result.exit_code:
                result.reason, result.words, result.exit_code = (
                    StopReason.FAILED,
                    str(exc),
                    int(exit_code(exc)),
                )
        finally:
            result.wall_s = round(time.monotonic() - started_s, 3)
            result.experiment_s = ns_to_seconds(self._now_ns)
            if self._latencies_s:
                result.mean_round_latency_s = float(np.mean(self._latencies_s))
            result.peak_memory_bytes = max(result.peak_memory_bytes, self._peak_memory_bytes)
            self._writer.stop(
                {
                    **{key: value for key, value in vars(result).items() if key != "reason"},
                    "reason": result.reason.value,
                }
            )

    async def _start(self) -> None:
        self._write_start_document()
        allocator = self._experiment.allocator
        self._status("loading the allocator's kernels (compiling them on a first run)")
        await asyncio.to_thread(warm_up, (allocator.name,), (RateModel(allocator.rate_model),))
        self._status("starting the air and the nodes")
        await self._lab.open()
        self._controller = Controller(
            self._lab,
            self._run,
            self._names,
            self._server,
            self._lab_config.control.timeout_s,
            self._lab_config.control.heartbeat_s,
            self._on_lost,
            lambda peer, reason: self._writer.operation("refused", peer=peer, reason=reason),
        )
        launch = {board.name: board.launch for board in self._lab_config.boards}
        launch[self._server] = self._lab_config.server.launch
        local = tuple(name for name in self._names if launch[name] == "local")
        await self._lab.start_nodes(local)
        epoch_ns = self._epoch_ns = time.monotonic_ns()

        def setup_of(name: str) -> Any:
            return node_setup(
                self._experiment, self._lab_config, name, self._run, self._lab.air_endpoint, epoch_ns
            )

        hellos, ready = await self._controller.welcome_all(setup_of, self._lab_config.control.start_timeout_s)
        self._note_nodes(hellos, ready)
        model = ready[self._server].model
        num_samples = {name: ready[name].num_samples for name in self._clients}
        self._check_cuts(len(model.state_bytes))
        self._planner_or_none = Planner(self._experiment, self._lab_config, model, num_samples)
        await self._set_gains()
        self._note_left_out()
        plan = await self._plan(0, self._heard(), None)
        await self._configure(plan.cut_layer)

    @property
    def _planner(self) -> Planner:
        assert self._planner_or_none is not None
        return self._planner_or_none

    @property
    def _control(self) -> Controller:
        assert self._controller is not None
        return self._controller

    def _check_cuts(self, num_stages: int) -> None:
        wanted = list(self._experiment.model.cut_schedule.values())
        if self._experiment.model.cut_layer != "auto":
            wanted.append(self._experiment.model.cut_layer)
        for cut in wanted:
            if not 1 <= cut <= num_stages - 1:
                raise NodeError(
                    f"cut layer {cut} of {self._experiment.model.name}: it has {num_stages} stages, so a "
                    f"cut layer lies in 1..{num_stages - 1}"
                )

    def _heard(self) -> tuple[str, ...]:
        """Clients that take part: present, and heard in a sounding."""
        heard = self._planner.estimates.heard
        present = tuple(name for name in self._clients if name in self._control.present and name in heard)
        if not present:
            raise NothingArrivedError(
                "nothing arrived over the air: the server heard no client's sounding; are ports muted "
                "(lab.radio.muted), or is every path loss beyond the link budget?"
            )
        return present

    def _catch_up(self) -> int:
        """Experiment time [ns]; on wall time it has gone on while the controller was at work."""
        clock = self._lab_config.clock
        if clock.kind == "wall":
            passed_ns = int((time.monotonic_ns() - self._epoch_ns) / clock.slow_motion)
            self._now_ns = max(self._now_ns, passed_ns)
        return self._now_ns

    def _note_left_out(self) -> None:
        """Name the clients that no plan can have, because the server cannot hear them."""
        for name in self._clients:
            if name in self._control.present and name not in self._planner.estimates.heard:
                words = f"{name} is left out: the server did not hear its sounding"
                self._writer.add(Event(self._now_ns, name, "left-out", -1, {"words": words}))
                self._status(words)

    async def _plan(self, round_index: int, clients: tuple[str, ...], cut_layer: int | None) -> Plan:
        """Ask the allocator, in a thread: the first call may compile, and heartbeats must go on.

        Raises
        ------
        LinkBudgetError
            No power and no subchannels bring these clients' data through.
        """
        try:
            return await asyncio.to_thread(self._planner.plan, round_index, clients, cut_layer)
        except AllocationError as exc:
            index = re.search(r"\[(\d+)\]", exc.field)
            who = clients[int(index[1])] if index and int(index[1]) < len(clients) else ", ".join(clients)
            raise LinkBudgetError(
                f"nothing can be sent in round {round_index}: there is no plan for {who} ({exc}); is a path "
                "loss beyond the link budget, or a port muted (lab.radio.muted)?"
            ) from exc

    async def _set_gains(self) -> None:
        """Sound until every receiver's strongest signal peaks where it should."""
        self._status("sounding, setting receiver gains")
        for attempt in range(MAX_GAIN_SOUNDINGS):
            start_ns = self._catch_up() + self._latency_ns
            command = SoundingStart(
                start_ns,
                self._planner.downlink_psd_w_per_hz,
                self._clients,
                tuple(self._planner.sounding_psd_w_per_hz(name) for name in self._clients),
            )
            reports = await self._control.ask_all(
                dict.fromkeys(self._names, command), SoundingReport, at_ns=start_ns
            )
            settled = True
            self._planner.estimates.heard.clear()  # with a better gain, this sounding says more
            for name, report in reports.items():
                if isinstance(report, Exception):
                    raise NodeError(f"sounding failed: {report}") from report
                self._note_sounding(name, report, attempt)
                self._planner.estimates.take_links(report.links)
                settled &= report.gain_settled
                self._now_ns = max(self._now_ns, report.end_ns + self._latency_ns)
            self._writer.barrier()
            if settled:
                return

    async def _configure(self, cut_layer: int) -> None:
        self._cut = cut_layer
        self._in_step = set(self._clients)
        await self._require(
            await self._control.ask_all({name: Configure(cut_layer) for name in self._names}, WeightsDone)
        )
        for name in self._clients:
            if name not in self._control.present:
                continue
            purpose = f"start/{name}"
            await self._control.ask(self._server, WeightsWanted(name, purpose), WeightsDone)
            done = await self._control.ask(name, WeightsInstall(purpose), WeightsDone)
            self._writer.operation("bulk", purpose=purpose, bytes=done.num_bytes)

    async def _train(self) -> None:
        self._status("training")
        gc.freeze()  # what was imported stays; collections need not walk it
        for round_index in range(self._experiment.rounds):
            if self._interrupts.count:
                return
            await self._round(round_index)

    # ---------------------------------------------------------------------------- one round
    async def _round(self, round_index: int) -> None:
        clients = self._heard()
        await self._bring_in_step(clients)
        idle = tuple(name for name in self._clients if name in self._control.present and name not in clients)
        solver_start = time.perf_counter()
        plan = await self._plan(round_index, clients, self._cut)
        solver_s = time.perf_counter() - solver_start
        if plan.cut_layer != self._cut:
            await self._move_cut(round_index, plan, clients)
        start_ns = self._catch_up() + self._latency_ns
        self._note_plan(round_index, start_ns, plan, clients)
        grant = self._planner.grant(plan, clients, start_ns, self._cut, self._cut, idle)
        command = RoundStart(grant)
        reports = await self._control.ask_all(
            dict.fromkeys((*clients, *idle, self._server), command),
            RoundReport,
            round_index=round_index,
            at_ns=start_ns,
        )
        words, end_ns = self._take_reports(round_index, "round", reports)
        latency_ns = end_ns + self._latency_ns - self._now_ns
        self._latencies_s.append(ns_to_seconds(latency_ns))
        started_ns, self._now_ns = self._now_ns, end_ns + self._latency_ns
        server = reports[self._server]
        losses = [entry.loss for entry in server.losses] if isinstance(server, RoundReport) else []
        loss = float(np.mean(losses)) if losses else None
        self._rounds_done = round_index + 1
        accuracy = await self._maybe_evaluate(round_index)
        self._writer.add(
            Event(
                self._now_ns,
                "controller",
                "round",
                round_index,
                {
                    "start_ns": started_ns,
                    "latency_ns": latency_ns,
                    "loss": loss,
                    "cut_layer": self._cut,
                    "clients": clients,
                    "words": words,
                },
            )
        )
        self._writer.barrier()
        if round_index % MEMORY_SAMPLE_ROUNDS == 0:
            await asyncio.to_thread(self._sample_memory)
        self._writer.operation(
            "round",
            round=round_index,
            solver_s=round(solver_s, 6),
            memory_bytes=self._peak_memory_bytes,
        )
        every = self._experiment.checkpoints.every_rounds
        if every and self._rounds_done % every == 0:
            await self._checkpoint()
        self._progress(
            RoundSummary(
                round_index,
                ns_to_seconds(latency_ns),
                loss,
                self._cut,
                words,
                accuracy,
                sum(
                    sent.blocks_retransmitted
                    for report in reports.values()
                    if isinstance(report, RoundReport)
                    for sent in report.transmissions
                ),
                ns_to_seconds(self._now_ns),
            )
        )
        self._raise_if_hopeless(round_index, reports, words)

    def _raise_if_hopeless(self, round_index: int, reports: dict[str, Any], words: tuple[str, ...]) -> None:
        """End the run when the server is gone, or nothing at all came through."""
        server = reports[self._server]
        if "air" in self._control.lost:
            raise RadioError(f"the emulated air is gone in round {round_index}: {self._control.lost['air']}")
        if not isinstance(server, RoundReport):
            raise NodeError(f"round {round_index} ended without the server: {server}")
        if not any(stream.complete_ns is not None for stream in server.receptions):
            raise NothingArrivedError(f"round {round_index}: " + "; ".join(words))

    def _take_reports(
        self, round_index: int, what: str, reports: dict[str, Any]
    ) -> tuple[tuple[str, ...], int]:
        """Put reports into the record and the estimates; what went wrong in words, and the end."""
        words: list[str] = []
        end_ns = self._now_ns
        for name in self._names:  # in one order, whoever answered first
            if name not in reports:
                continue
            report = reports[name]
            if not isinstance(report, RoundReport):
                words.append(f"{name}: {report}")
                self._writer.add(
                    Event(self._now_ns, name, "node-failure", round_index, {"words": str(report)})
                )
                continue
            end_ns = max(end_ns, report.end_ns)
            words.extend(text for text in report.words if text not in words)
            self._note_report(round_index, name, report)
            self._planner.estimates.take_links(report.links)
            self._planner.estimates.take_spans(name, report)
        return tuple(words), end_ns

    async def _bring_in_step(self, clients: tuple[str, ...]) -> None:
        """Give clients that were not heard when the cut moved the submodel of one that was."""
        for name in clients:
            if name in self._in_step:
                continue
            donor = next((other for other in clients if other in self._in_step), self._server)
            purpose = f"{'start' if donor == self._server else 'rejoin'}/{self._rounds_done}/{name}"
            await self._control.ask(name, Configure(self._cut), WeightsDone)
            await self._control.ask(donor, WeightsWanted(name, purpose), WeightsDone)
            done = await self._control.ask(name, WeightsInstall(purpose), WeightsDone)
            self._writer.operation("bulk", purpose=purpose, donor=donor, bytes=done.num_bytes)
            self._writer.add(Event(self._now_ns, name, "joined-late", self._rounds_done, {"donor": donor}))
            self._in_step.add(name)

    def _trained(self) -> tuple[str, ...]:
        """Clients whose submodels take part in training, for evaluation."""
        members = self._control.present & self._in_step & self._planner.estimates.heard
        return tuple(name for name in self._clients if name in members)

    async def _move_cut(self, round_index: int, plan: Plan, clients: tuple[str, ...]) -> None:
        """Move the cut over the air; shallower moves merge diverged copies, so loss is noted."""
        shallower = plan.cut_layer < self._cut
        before = await self._evaluate("validation", clients) if shallower else None
        start_ns = self._catch_up() + self._latency_ns
        grant = self._planner.grant(plan, clients, start_ns, plan.cut_layer, self._cut)
        reports = await self._control.ask_all(
            {name: CutMove(grant) for name in (*clients, self._server)},
            RoundReport,
            round_index=round_index,
            at_ns=start_ns,
        )
        words, end_ns = self._take_reports(round_index, "cut-move", reports)
        started_ns, self._now_ns = self._now_ns, end_ns + self._latency_ns
        failed = [
            name
            for name, report in reports.items()
            if not isinstance(report, RoundReport) or not report.complete
        ]
        if failed:
            raise RadioError(
                f"moving the cut from {self._cut} to {plan.cut_layer} failed at {', '.join(failed)}: "
                + "; ".join(words)
            )
        previous, self._cut = self._cut, plan.cut_layer
        self._in_step = set(clients)
        after = await self._evaluate("validation", clients) if shallower else None
        self._writer.add(
            Event(
                self._now_ns,
                "controller",
                "cut-move",
                round_index,
                {
                    "start_ns": started_ns,
                    "latency_ns": self._now_ns - started_ns,
                    "from": previous,
                    "to": self._cut,
                    "validation_loss_before": _mean_loss(before),
                    "validation_loss_after": _mean_loss(after),
                },
            )
        )
        self._latencies_s.append(ns_to_seconds(self._now_ns - started_ns))

    # --------------------------------------------------------------------------- evaluation
    async def _evaluate(self, split: str, clients: tuple[str, ...]) -> Evaluated:
        """Off the clock and off the air: weights to the server over the bulk plane."""
        purposes = []
        for name in clients:
            purpose = f"evaluate/{self._rounds_done}/{split}/{self._cut}/{name}"
            await self._control.ask(name, WeightsWanted(self._server, purpose), WeightsDone)
            purposes.append(purpose)
        return await self._control.ask(self._server, Evaluate(split, tuple(purposes)), Evaluated)

    async def _maybe_evaluate(self, round_index: int) -> float | None:
        if (round_index + 1) % self._experiment.evaluation.every_rounds:
            return None
        present = self._trained()
        if not present or self._server not in self._control.present:
            return None
        outcome = await self._evaluate("validation", present)
        self._note_evaluation(round_index, outcome, present)
        return float(np.mean(outcome.accuracy))

    async def _conclude(self, result: RunResult) -> None:
        present = self._trained()
        if present and self._rounds_done:
            outcome = await self._evaluate("test", present)
            self._note_evaluation(self._rounds_done - 1, outcome, present)
            result.test_accuracy = float(np.mean(outcome.accuracy))
            result.test_accuracy_worst_client = float(np.min(outcome.accuracy))
            result.test_loss = _mean_loss(outcome)
            await self._checkpoint()

    async def _checkpoint(self) -> None:
        """Weights and optimiser state of every node, manifest last."""
        parts: dict[str, bytes] = {}
        for name in self._names:
            if name not in self._control.present:
                continue
            purpose = f"checkpoint/{self._rounds_done}/{name}"
            await self._control.ask(name, WeightsWanted("controller", purpose), WeightsDone)
            parts[name] = await self._control.endpoint.take_bulk(purpose, BULK_TIMEOUT_S)
        meta = {"cut_layer": self._cut, "config": config_hash(self._config), "now_ns": self._now_ns}
        await asyncio.to_thread(
            save_checkpoint,
            self._writer.directory / "checkpoints",
            self._rounds_done,
            parts,
            meta,
        )
        self._writer.operation("checkpoint", round=self._rounds_done, bytes=sum(map(len, parts.values())))

    # -------------------------------------------------------------------------------- stop
    async def _stop(self, result: RunResult) -> None:
        """Ask everyone to stop and to say what it cost, then end what was started."""
        usages: list[ProcessUsage] = []
        controller = self._controller
        try:
            if controller is not None and self._interrupts.count < 2:
                usages = await self._collect_usage(controller, result)
        except asyncio.CancelledError:
            if self._interrupts.count < 2:
                raise
        finally:
            if controller is not None:
                await controller.close()
            at_once = self._interrupts.count >= 2
            closing = asyncio.create_task(self._lab.close(0.0 if at_once else STOP_TIMEOUT_S))
            try:
                await asyncio.shield(closing)
            except asyncio.CancelledError:
                await closing
        if usages:
            self._account(result, usages)

    async def _collect_usage(self, controller: Controller, result: RunResult) -> list[ProcessUsage]:
        usages = []
        await asyncio.to_thread(self._sample_memory)
        await controller.stop_watching()
        for name in sorted(controller.present):
            await controller.tell(name, Stop(result.words))
        for name in sorted(controller.present):
            try:
                last, _ = await controller.endpoint.take(
                    Stopped, name, timeout_s=STOP_TIMEOUT_S, what="its last words"
                )
            except NodesRoomError as exc:
                self._writer.operation("no-last-words", node=name, words=str(exc))
                continue
            usages.append(ProcessUsage(name, last.process_cpu_s, last.cpu_s, last.max_rss_bytes))
            self._writer.operation("stopped", node=name, **msgspec.to_builtins(last))
        usages.extend(await self._lab.usage())
        return usages

    def _account(self, result: RunResult, usages: list[ProcessUsage]) -> None:
        """Where the process tree's CPU time went."""
        table = {usage.name: {"total": usage.cpu_s, **usage.kinds_s} for usage in usages}
        if self._lab.transport == "processes":
            table["controller"] = {"total": time.process_time()}
            useful = sum(
                seconds
                for kinds in table.values()
                for kind, seconds in kinds.items()
                if kind in ("modem", "air", "torch")
            )
            total = sum(kinds["total"] for kinds in table.values())
            result.cpu_share_outside_signal_and_training = round(1 - useful / total, 4) if total else None
        result.cpu_s = {
            name: {kind: round(seconds, 3) for kind, seconds in kinds.items()}
            for name, kinds in sorted(table.items())
        }

    def _sample_memory(self) -> None:
        """Memory of the process tree right now: proportional where the system tells it."""
        total = 0
        own = psutil.Process()
        for process in (own, *own.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                try:
                    total += process.memory_full_info().pss
                except (psutil.AccessDenied, AttributeError):
                    total += process.memory_info().rss
        self._peak_memory_bytes = max(self._peak_memory_bytes, total)

    # ------------------------------------------------------------------------------- notes
    def _on_lost(self, name: str, reason: str) -> None:
        self._writer.operation("lost", node=name, reason=reason)
        self._writer.add(Event(self._now_ns, name, "lost", self._rounds_done, {"reason": reason}))
        self._status(f"{name} is lost: {reason}")

    def _write_start_document(self) -> None:
        lab = self._lab_config
        self._writer.start(
            {
                "run": self._run,
                "experiment": self._experiment.name,
                "lab": lab.name,
                "seed": self._experiment.seed,
                "config_hash": config_hash(self._config),
                "radio": lab.radio.driver,
                "environment": lab.environment,
                "clock": lab.clock.kind,
                "slow_motion": lab.clock.slow_motion,
                "compute": self._experiment.compute.value,
                "transport": self._lab.transport,
                "reading": self._experiment.learning.reading,
                "scenario": "reconstructed, check against the paper",
                "started_wall_s": round(time.time(), 3),
                "host": {
                    "machine": platform.machine(),
                    "system": platform.system(),
                    "python": platform.python_version(),
                    "cores": os.cpu_count(),
                },
                "pid": os.getpid(),
            },
            resolved_yaml(self._config),
        )

    def _note_nodes(self, hellos: dict[str, Hello], ready: dict[str, Ready]) -> None:
        for name in self._names:
            hello = hellos[name]
            self._writer.operation("joined", node=name, pid=hello.pid, versions=hello.versions)
            self._writer.add(Event(0, name, "joined", -1, {"num_samples": ready[name].num_samples}))
        self._writer.add(Event(0, "controller", "model", -1, msgspec.to_builtins(ready[self._server].model)))

    def _note_sounding(self, name: str, report: SoundingReport, attempt: int) -> None:
        values = msgspec.to_builtins(report)
        for link in values.pop("links"):
            self._writer.add(Event(report.end_ns, name, "link", -1, link))
        for span in values.pop("spans"):
            self._writer.add(Event(span["start_ns"], name, "span", -1, span))
        for event in values.pop("radio_events"):
            self._writer.add(Event(event["at_ns"], name, "radio-event", -1, _renamed(event)))
        self._writer.add(Event(report.end_ns, name, "gain", -1, {"attempt": attempt, **values}))

    def _note_plan(self, round_index: int, start_ns: int, plan: Plan, clients: tuple[str, ...]) -> None:
        self._writer.add(
            Event(
                self._now_ns,
                "controller",
                "plan",
                round_index,
                {
                    "method": plan.method,
                    "cut_layer": plan.cut_layer,
                    "assignment": [clients[int(owner)] if owner >= 0 else None for owner in plan.assignment],
                    "psd_w_per_hz": [float(value) for value in plan.psd_w_per_hz],
                    "predicted_latency_s": plan.latency_s,
                    "start_ns": start_ns,
                },
            )
        )

    def _note_report(self, round_index: int, name: str, report: RoundReport) -> None:
        values = msgspec.to_builtins(report)
        for span in values["spans"]:
            self._writer.add(Event(span["start_ns"], name, "span", round_index, span))
        for kind, key in (("transmission", "transmissions"), ("reception", "receptions")):
            for stream in values[key]:
                self._writer.add(Event(report.end_ns, name, kind, round_index, stream))
        for link in values["links"]:
            self._writer.add(Event(report.end_ns, name, "link", round_index, link))
        for entry in values["losses"]:
            self._writer.add(Event(report.end_ns, name, "loss", round_index, entry))
        for event in values["radio_events"]:
            self._writer.add(Event(event["at_ns"], name, "radio-event", round_index, _renamed(event)))

    def _note_evaluation(self, round_index: int, outcome: Evaluated, clients: tuple[str, ...]) -> None:
        self._last_accuracy = float(np.mean(outcome.accuracy))
        self._writer.add(
            Event(
                self._now_ns,
                "controller",
                "evaluation",
                round_index,
                {
                    "split": outcome.split,
                    "accuracy": self._last_accuracy,
                    "worst_client_accuracy": float(np.min(outcome.accuracy)),
                    "loss": _mean_loss(outcome),
                    "by_client": dict(zip(clients, outcome.accuracy, strict=True)),
                    "num_samples": outcome.num_samples,
                },
            )
        )

    async def _require(self, answers: dict[str, Any]) -> None:
        for name, answer in answers.items():
            if isinstance(answer, Exception):
                raise NodeError(f"{name} could not do its part: {answer}") from answer


def _mean_loss(outcome: Evaluated | None) -> float | None:
    return None if outcome is None else float(np.mean(outcome.loss))


def _renamed(event: dict[str, Any]) -> dict[str, Any]:
    """A radio event's own kind, beside the record's."""
    values = {key: value for key, value in event.items() if key not in ("at_ns", "kind")}
    return {"radio_event": event["kind"], **values}


def run_directory(out: Path | None, run: str) -> Path:
    """Where a run goes: ``out``, or ``runs/RUN`` under the present folder."""
    return out if out is not None else Path("runs") / run


__all__ = [
    "Engine",
    "Interrupts",
    "LinkBudgetError",
    "NodeFailedError",
    "NothingArrivedError",
    "PeerLostError",
    "RoundSummary",
    "RunResult",
    "StopReason",
    "run_directory",
]
