"""Who takes part: boards that come and go, soundings that set gains, submodels that catch up."""

from __future__ import annotations

import time
from typing import Any

from nodes.errors import NodeError as NodesRoomError
from nodes.errors import PeerLostError
from nodes.messages import (
    Configure,
    Rehearse,
    Rehearsed,
    SoundingReport,
    SoundingStart,
    WeightsDone,
    WeightsInstall,
    WeightsWanted,
)
from testbed.errors import NodeError
from testbed.launch import ProcessUsage
from testbed.specs import node_setup
from testbed.state import RunState, require

MAX_GAIN_SOUNDINGS = 6


class Membership:
    """Boards of a run between its rounds."""

    def __init__(self, state: RunState) -> None:
        self._state = state
        self._left_out: set[str] = set()

    def setup_of(self, name: str) -> Any:
        """What a node is told when it joins."""
        state = self._state
        config = state.config
        return node_setup(
            config.experiment,
            config.lab,
            name,
            state.run,
            state.lab.air_endpoint,
            state.epoch_ns,
        )

    def is_local(self, name: str) -> bool:
        """Whether this machine starts the node's process."""
        lab = self._state.config.lab
        launch = {board.name: board.launch for board in lab.boards}
        launch[lab.server.name] = lab.server.launch
        return launch[name] == "local"

    # ---------------------------------------------------------------------------- come and go
    async def change(self, round_index: int) -> None:
        """Let boards leave and come before a round, as the scenario has it."""
        state = self._state
        if round_index == 0:
            return
        before, now = state.scenario.present(round_index - 1), state.scenario.present(round_index)
        come = tuple(name for name in now if name not in before)
        for name in come:
            await self._take_in(round_index, name)
        # Who comes is given the submodel of somebody who is there, which may be one that leaves.
        await self.bring_in_step(tuple(name for name in come if name in state.control.present))
        for name in before:
            if name not in now and name in state.control.present:
                await self._let_go(round_index, name)

    async def _let_go(self, round_index: int, name: str) -> None:
        state = self._state
        words = f"{name} leaves before round {round_index}"
        stopped = await state.control.dismiss(name, words)
        if stopped is not None:
            state.departed.append(
                ProcessUsage(name, stopped.process_cpu_s, stopped.cpu_s, stopped.max_rss_bytes)
            )
        state.in_step.discard(name)
        state.planner.estimates.heard.discard(name)
        state.notes.add(state.now_ns, name, "left", round_index, {"words": words})
        state.status(words)

    async def _take_in(self, round_index: int, name: str) -> None:
        """Start a board, welcome it, and set gains anew: nobody knows yet how strong it is."""
        state = self._state
        control = state.config.lab.control
        state.status(f"{name} joins before round {round_index}")
        if self.is_local(name):
            await state.lab.start_nodes((name,))
        try:
            hellos, ready = await state.control.welcome((name,), self.setup_of, control.start_timeout_s)
            state.notes.joined(state.now_ns, name, hellos[name], ready[name], round_index)
            state.planner.num_samples[name] = ready[name].num_samples
            await self.rehearse((name,), round_index)
        except (NodeError, NodesRoomError) as exc:
            # The others go on: a board that cannot come is as good as one that never was to come.
            self.leave_out(name, round_index, f"it did not join: {exc}")
            if name in state.control.present:
                await state.control.dismiss(name, "it could not do its part when it joined")
            return
        await self.set_gains((name,), round_index)

    async def rehearse(self, names: tuple[str, ...], round_index: int = -1) -> None:
        """Let nodes try the work of a round at every cut that may come, off the clock.

        What is prepared once is then no part of a measured span, and the first plan knows how long
        each cut takes on each board.
        """
        state = self._state
        state.status(f"{', '.join(names)}: rehearsing")
        answers = await state.control.ask_all(
            dict.fromkeys(names, Rehearse(state.planner.every_cut())), Rehearsed
        )
        require(answers)
        for name, answer in answers.items():
            if isinstance(answer, Rehearsed):
                state.planner.estimates.take_rehearsal(name, answer.spans)
                state.notes.rehearsal(state.now_ns, round_index, name, answer.spans)

    # ---------------------------------------------------------------------------------- gains
    async def set_gains(self, new: tuple[str, ...], round_index: int = -1) -> None:
        """Sound until every receiver's strongest signal peaks where it should.

        Parameters
        ----------
        new
            Boards that nothing is known of yet; what an attempt with a wrong gain said is forgotten.
        """
        state = self._state
        state.status("sounding, setting receiver gains")
        clients = state.present_clients()
        for attempt in range(MAX_GAIN_SOUNDINGS):
            start_ns = state.catch_up() + state.control_latency_ns
            command = SoundingStart(
                start_ns,
                state.planner.downlink_psd_w_per_hz,
                clients,
                tuple(state.planner.sounding_psd_w_per_hz(name) for name in clients),
            )
            reports = await state.control.ask_all(
                dict.fromkeys((*clients, state.server), command),
                SoundingReport,
                round_index=round_index,
                at_ns=start_ns,
            )
            settled = True
            state.planner.estimates.restart(new)  # with a better gain, this sounding says more
            for name, report in reports.items():
                if isinstance(report, PeerLostError) and name != state.server and round_index >= 0:
                    continue  # it was noted as lost; the others were heard
                if isinstance(report, Exception):
                    raise NodeError(f"sounding failed: {report}") from report
                state.notes.sounding(name, report, attempt, round_index)
                state.notes.rejected(
                    report.end_ns, round_index, state.planner.estimates.take_links(report.links)
                )
                settled &= report.gain_settled
                state.now_ns = max(state.now_ns, report.end_ns + state.control_latency_ns)
            state.writer.barrier()
            if settled:
                break
        self.note_left_out(round_index)

    def note_left_out(self, round_index: int) -> None:
        """Name the clients that no plan can have, because the server cannot hear them."""
        state = self._state
        for name in state.present_clients():
            if name not in state.planner.estimates.heard:
                self.leave_out(name, round_index, "the server did not hear its sounding")

    def leave_out(self, name: str, round_index: int, reason: str) -> None:
        """Say that a board takes no part, once until it does again."""
        state = self._state
        if name in self._left_out:
            return
        self._left_out.add(name)
        words = f"{name} is left out: {reason}"
        state.notes.add(state.now_ns, name, "left-out", round_index, {"words": words})
        state.status(words)

    def take_part(self, clients: tuple[str, ...]) -> None:
        """These take part in a round: the next time that one is left out is worth a word again."""
        self._left_out -= set(clients)
        self._state.trained_once |= set(clients)

    # ------------------------------------------------------------------------------ submodels
    async def bring_in_step(self, clients: tuple[str, ...]) -> None:
        """Give clients that were not there when the cut moved the submodel of one that was."""
        state = self._state
        for name in clients:
            if name in state.in_step:
                continue
            donor = next((other for other in state.present_clients() if other in state.in_step), state.server)
            purpose = f"{'start' if donor == state.server else 'rejoin'}/{state.rounds_done}/{name}"
            await state.control.ask(name, Configure(state.cut), WeightsDone)
            started = time.perf_counter()
            await state.control.ask(donor, WeightsWanted(name, purpose), WeightsDone)
            done = await state.control.ask(name, WeightsInstall(purpose), WeightsDone)
            state.writer.operation(
                "bulk",
                purpose=purpose,
                donor=donor,
                bytes=done.num_bytes,
                seconds=round(time.perf_counter() - started, 4),
            )
            state.notes.add(state.now_ns, name, "joined-late", state.rounds_done, {"donor": donor})
            state.in_step.add(name)
