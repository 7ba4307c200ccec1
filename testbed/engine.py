"""One run, from the first hello to the stop document.

    estimates -> plan -> prediction -> grants -> sounding and round -> reports -> estimates

The engine brings a lab up, runs rounds and brings it down; what happens in a round is
:mod:`testbed.rounds`, and the record keeps what nodes report.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable

import msgspec
import numpy as np

from nodes.errors import NodeError as NodesRoomError
from nodes.messages import Configure, Stop, Stopped, WeightsDone, WeightsInstall, WeightsWanted
from radio.units import ns_to_seconds
from testbed.accounting import cpu_table, process_tree_bytes, share_outside
from testbed.allocator.api import warm_up
from testbed.allocator.problem import RateModel
from testbed.config.loader import ResolvedConfig
from testbed.controller import Controller
from testbed.errors import ExitCode, NodeError, TestbedError, exit_code
from testbed.launch import ProcessUsage, RunningLab
from testbed.membership import Membership
from testbed.notes import Notes, write_start_document
from testbed.planner import Planner
from testbed.policies import methods_of
from testbed.record import RunWriter
from testbed.results import Interrupts, RoundSummary, RunResult, StopReason
from testbed.rounds import Rounds
from testbed.scenario import resolve_scenario
from testbed.state import RunState, require
from testbed.upkeep import checkpoint, evaluate

STOP_TIMEOUT_S = 5.0
MEMORY_SAMPLE_ROUNDS = 50  # walking the page tables of eight processes takes 0.15 s of CPU


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
        self._lab = lab
        self._writer = writer
        self._interrupts = interrupts
        self._progress = progress
        self._peak_memory_bytes = 0
        scenario = resolve_scenario(config.lab.scenario, config.lab, config.experiment.rounds)
        self._state = RunState(run, config, lab, writer, Notes(writer), scenario, status)
        self._membership = Membership(self._state)
        self._rounds = Rounds(self._state, self._membership)

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
                f"interrupted; the round was finished ({self._state.rounds_done} of "
                f"{self._config.experiment.rounds} rounds)"
                if interrupted
                else f"all {self._config.experiment.rounds} rounds were run",
                1 if interrupted else 0,
                self._state.rounds_done,
            )
            await self._conclude(result)
        except asyncio.CancelledError:
            if self._interrupts.count < 2:
                await self._finish(self._failed("cancelled", ExitCode.INTERRUPTED), started)
                raise
            result = RunResult(
                StopReason.INTERRUPTED, "stopped at once by a second interrupt", 1, self._state.rounds_done
            )
        except (TestbedError, NodesRoomError) as exc:
            result = self._failed(str(exc), exit_code(exc))
        except BaseException as exc:
            await self._finish(self._failed(f"a fault of the testbed itself: {exc!r}", ExitCode.BUG), started)
            raise
        await self._finish(result, started)
        return result

    def _failed(self, words: str, code: ExitCode) -> RunResult:
        return RunResult(StopReason.FAILED, words, int(code), self._state.rounds_done)

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
            result.experiment_s = ns_to_seconds(self._state.now_ns)
            if self._state.total_s:
                result.mean_round_latency_s = float(np.mean(self._state.total_s))
            result.peak_memory_bytes = max(result.peak_memory_bytes, self._peak_memory_bytes)
            self._writer.stop(
                {
                    **{key: value for key, value in vars(result).items() if key != "reason"},
                    "reason": result.reason.value,
                }
            )

    async def _start(self) -> None:
        state, config = self._state, self._config
        control, allocator = config.lab.control, config.experiment.allocator
        write_start_document(self._writer, config, state.run, self._lab.transport)
        state.status("loading the allocator's kernels (compiling them on a first run)")
        await asyncio.to_thread(warm_up, methods_of(allocator.name), (RateModel(allocator.rate_model),))
        state.status("starting the air and the nodes")
        await self._lab.open()
        state.controller_or_none = Controller(
            self._lab,
            state.run,
            state.names,
            state.server,
            control.timeout_s,
            control.heartbeat_s,
            self._on_lost,
            lambda peer, reason: self._writer.operation("refused", peer=peer, reason=reason),
        )
        names = (*state.scenario.present(0), state.server)
        await self._lab.start_nodes(tuple(name for name in names if self._membership.is_local(name)))
        state.epoch_ns = time.monotonic_ns()
        hellos, ready = await state.control.welcome_all(
            self._membership.setup_of, control.start_timeout_s, names
        )
        for name in names:
            state.notes.joined(0, name, hellos[name], ready[name])
        state.notes.model(ready[state.server])
        model = ready[state.server].model
        self._check_cuts(len(model.state_bytes))
        state.planner_or_none = Planner(
            config.experiment, config.lab, model, {name: ready[name].num_samples for name in names}
        )
        await self._membership.rehearse(names)
        await self._membership.set_gains(state.scenario.present(0))
        await self._configure(await self._rounds.decide_first())

    def _check_cuts(self, num_stages: int) -> None:
        model = self._config.experiment.model
        wanted = list(model.cut_schedule.values())
        if model.cut_layer != "auto":
            wanted.append(model.cut_layer)
        for cut in wanted:
            if not 1 <= cut <= num_stages - 1:
                raise NodeError(
                    f"cut layer {cut} of {model.name}: it has {num_stages} stages, so a "
                    f"cut layer lies in 1..{num_stages - 1}"
                )

    async def _configure(self, cut_layer: int) -> None:
        state = self._state
        state.cut = cut_layer
        present = state.present_clients()
        state.in_step = set(present)
        names = (*present, state.server)
        require(await state.control.ask_all({name: Configure(cut_layer) for name in names}, WeightsDone))
        for name in present:
            if name not in state.control.present:
                continue
            purpose = f"start/{name}"
            await state.control.ask(state.server, WeightsWanted(name, purpose), WeightsDone)
            done = await state.control.ask(name, WeightsInstall(purpose), WeightsDone)
            self._writer.operation("bulk", purpose=purpose, bytes=done.num_bytes)

    async def _train(self) -> None:
        self._state.status("training")
        gc.freeze()  # what was imported stays; collections need not walk it
        for round_index in range(self._config.experiment.rounds):
            if self._interrupts.count:
                return
            self._progress(await self._rounds.run(round_index))
            if round_index % MEMORY_SAMPLE_ROUNDS == 0:
                await self._sample_memory()

    async def _conclude(self, result: RunResult) -> None:
        state = self._state
        trained = state.trained()
        if trained and state.rounds_done:
            trained, outcome = await evaluate(state, "test", trained)
            if outcome is None:
                return
            state.notes.evaluation(state.now_ns, state.rounds_done - 1, outcome, trained)
            result.test_accuracy = float(np.mean(outcome.accuracy))
            result.test_accuracy_worst_client = float(np.min(outcome.accuracy))
            result.test_loss = float(np.mean(outcome.loss))
            await checkpoint(state)

    # -------------------------------------------------------------------------------- stop
    async def _stop(self, result: RunResult) -> None:
        """Ask everyone to stop and to say what it cost, then end what was started."""
        usages: list[ProcessUsage] = []
        controller = self._state.controller_or_none
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
            self._account(result, [*self._state.departed, *usages])

    async def _collect_usage(self, controller: Controller, result: RunResult) -> list[ProcessUsage]:
        usages = []
        await self._sample_memory()
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
        result.cpu_s = cpu_table(usages, self._lab.transport, self._rounds.planning_cpu_s)
        if self._lab.transport == "processes":
            result.cpu_share_outside_signal_and_training = share_outside(result.cpu_s)

    async def _sample_memory(self) -> None:
        sample = await asyncio.to_thread(process_tree_bytes)
        self._peak_memory_bytes = max(self._peak_memory_bytes, sample)

    def _on_lost(self, name: str, reason: str) -> None:
        state = self._state
        self._writer.operation("lost", node=name, reason=reason)
        state.notes.add(state.now_ns, name, "lost", state.rounds_done, {"reason": reason})
        state.status(f"{name} is lost: {reason}")
