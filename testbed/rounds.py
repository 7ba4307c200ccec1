"""One round: who takes part, what is decided and predicted, what is run, what is learned from it."""

from __future__ import annotations

import asyncio
import dataclasses
import re
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from nodes.messages import CutMove, RoundGrant, RoundReport, RoundStart
from radio.units import ns_to_seconds, seconds_to_ns
from testbed.allocator.problem import AllocationError
from testbed.errors import NodeError, RadioError
from testbed.forecast import Persistence, RoundForecast
from testbed.membership import Membership
from testbed.notes import mean_loss
from testbed.phases import measured_phases
from testbed.policies import Decision
from testbed.results import RoundSummary
from testbed.state import LinkBudgetError, NothingArrivedError, RunState
from testbed.upkeep import checkpoint, evaluate


@dataclass(frozen=True)
class _Outcome:
    """What the nodes said of a round or a cut move."""

    reports: dict[str, Any]
    words: tuple[str, ...]
    end_ns: int

    def of(self, name: str) -> RoundReport | None:
        report = self.reports.get(name)
        return report if isinstance(report, RoundReport) else None

    def complete(self) -> dict[str, RoundReport]:
        return {name: report for name, report in self.reports.items() if isinstance(report, RoundReport)}


class Rounds:
    """Runs rounds, one after the other."""

    def __init__(self, state: RunState, membership: Membership) -> None:
        self._state = state
        self._membership = membership
        self._owners: dict[int, str] = {}
        self._first: Decision | None = None
        self.planning_cpu_s = 0.0
        self._last: Persistence | None = None

    # ------------------------------------------------------------------------------- planning
    async def decide_first(self) -> int:
        """Decide the first round before anybody is given a submodel; its cut layer."""
        self._first, _ = await self.decide(0, self._state.heard(), None)
        return self._first.plan.cut_layer

    async def decide(
        self, round_index: int, clients: tuple[str, ...], cut: int | None
    ) -> tuple[Decision, RoundForecast]:
        """Ask the policy, in a thread: the first call may compile, and heartbeats must go on.

        A client that no plan can carry a bit for is left out of the round, by name.

        Raises
        ------
        LinkBudgetError
            No power and no subchannels bring anybody's data through.
        """
        state = self._state
        while True:
            try:
                return await asyncio.to_thread(self._decide, round_index, clients, cut, state.catch_up())
            except AllocationError as exc:
                index = re.match(r"(?:up|down)link_snr_per_psd\[(\d+)\]", exc.field)
                culprit = clients[int(index[1])] if index else self._weakest(clients)
                if len(clients) == 1:
                    raise LinkBudgetError(
                        f"nothing can be sent in round {round_index}: there is no plan for "
                        f"{culprit} ({exc}); is a path loss beyond the link budget, or "
                        "a port muted (lab.radio.muted)?"
                    ) from exc
                self._membership.leave_out(culprit, round_index, str(exc))
                clients = tuple(name for name in clients if name != culprit)

    def _weakest(self, clients: tuple[str, ...]) -> str:
        """The client that is heard worst of all, on the sum of its subchannels."""
        levels = self._state.planner.estimates.snr_per_psd_db(clients, downlink=False)
        return clients[int(np.argmin((10 ** (levels / 10)).sum(axis=1)))]

    def _decide(
        self, round_index: int, clients: tuple[str, ...], cut: int | None, plan_ns: int
    ) -> tuple[Decision, RoundForecast]:
        """Body of the planning thread, whose CPU time is booked."""
        started = time.thread_time()
        num_sounders = len(self._state.present_clients())
        try:
            return self._state.planner.decide(round_index, clients, cut, plan_ns, num_sounders)
        finally:
            self.planning_cpu_s += time.thread_time() - started

    def _without_the_lost(self, decision: Decision) -> Decision:
        """The same plan for those who are still there; what the lost were given stays silent.

        Raises
        ------
        NothingArrivedError
            Nobody is left.
        """
        present = self._state.control.present
        left = tuple(name for name in decision.clients if name in present)
        if left == decision.clients:
            return decision
        if not left:
            raise NothingArrivedError("every client was lost while the cut moved")
        row = np.array([left.index(name) if name in left else -1 for name in decision.clients])
        owners = decision.plan.assignment
        assignment = np.where(owners >= 0, row[owners], -1)
        psd = np.where(assignment >= 0, decision.plan.psd_w_per_hz, 0.0)
        binding = dataclasses.replace(decision.plan.binding, uplink_client=0, downlink_client=0)
        plan = dataclasses.replace(
            decision.plan, assignment=assignment, psd_w_per_hz=psd, binding=binding, lower_bound_s=None
        )
        return dataclasses.replace(decision, plan=plan, clients=left)

    def _moved(self, decision: Decision) -> int:
        """Subchannels that change hands against the round before."""
        owners = {
            k: decision.clients[int(owner)] for k, owner in enumerate(decision.plan.assignment) if owner >= 0
        }
        before, self._owners = self._owners, owners
        if not before:
            return 0
        return sum(1 for k in set(before) | set(owners) if before.get(k) != owners.get(k))

    # -------------------------------------------------------------------------------- a round
    async def run(self, round_index: int) -> RoundSummary:
        """One round, from decision to the estimates for the next.

        Raises
        ------
        LinkBudgetError, NothingArrivedError, RadioError, NodeError
            There is no point in going on.
        """
        state = self._state
        began_ns = state.catch_up()
        state.planner.estimates.begin_round()
        await self._begin(round_index)
        await self._membership.change(round_index)
        join_ns = state.now_ns - began_ns
        clients = state.heard()
        await self._membership.bring_in_step(clients)
        solver_start = time.perf_counter()
        if self._first is not None and set(self._first.clients) <= set(clients):
            decision, self._first = self._first, None
            forecast = state.planner.forecast(
                round_index, decision, state.catch_up(), len(state.present_clients())
            )
        else:
            decision, forecast = await self.decide(round_index, clients, state.cut)
        solver_s = time.perf_counter() - solver_start
        clients, plan = decision.clients, decision.plan
        self._membership.take_part(clients)
        move_forecast, move_ns = None, 0
        if plan.cut_layer != state.cut:
            move_forecast = forecast.cut_move(state.cut)
            move_ns = await self._move_cut(round_index, decision)
            decision = self._without_the_lost(decision)
            clients, plan = decision.clients, decision.plan
            await self._membership.bring_in_step(clients)
            forecast = state.planner.forecast(
                round_index, decision, state.catch_up(), len(state.present_clients())
            )
        planned_ns = state.catch_up()
        start_ns = planned_ns + state.control_latency_ns
        state.notes.estimates(planned_ns, round_index, state.planner.estimates, clients)
        state.notes.decision(
            planned_ns,
            round_index,
            start_ns,
            decision,
            state.config.experiment.allocator.name,
            self._moved(decision),
            forecast.longest_phase(),
        )
        state.notes.add(
            planned_ns,
            "controller",
            "prediction",
            round_index,
            {**forecast.record(self._last), "cut_move_s": move_forecast and move_forecast.record()},
        )
        idle = tuple(name for name in state.present_clients() if name not in clients)
        grant = state.planner.grant(plan, clients, start_ns, state.cut, state.cut, idle)
        reports = await state.control.ask_all(
            dict.fromkeys((*clients, *idle, state.server), RoundStart(grant)),
            RoundReport,
            round_index=round_index,
            at_ns=start_ns,
        )
        state.planner.estimates.expect_reports()
        outcome = self._take(round_index, reports, grant)
        missing = state.planner.estimates.missing_links((*clients, *idle))
        state.notes.rejected(outcome.end_ns, round_index, missing)
        state.now_ns = outcome.end_ns + state.control_latency_ns
        predicted_s = forecast.round_s.mean
        return await self._close(
            round_index, outcome, clients, planned_ns, start_ns, move_ns, join_ns, solver_s, predicted_s
        )

    async def _begin(self, round_index: int) -> None:
        """The emulated air learns which round its next samples belong to."""
        state = self._state
        numerology = state.planner.numerology
        first_slot = numerology.next_slot(state.now_ns + state.control_latency_ns)
        await state.lab.begin_round(round_index, first_slot * numerology.slot_samples)

    async def _close(
        self,
        round_index: int,
        outcome: _Outcome,
        clients: tuple[str, ...],
        planned_ns: int,
        start_ns: int,
        move_ns: int,
        join_ns: int,
        solver_s: float,
        predicted_s: float,
    ) -> RoundSummary:
        """Note what the round came to."""
        state = self._state
        latency_ns = state.now_ns - planned_ns
        total_s = ns_to_seconds(latency_ns + move_ns + join_ns)
        phases, airtime = measured_phases(
            outcome.complete(),
            planned_ns,
            start_ns,
            state.control_latency_ns,
            state.server,
            ack_delay_ns=seconds_to_ns(state.config.experiment.link.ack_delay_s),
        )
        self._last = Persistence(ns_to_seconds(latency_ns), phases, airtime)
        server = outcome.of(state.server)
        loss = mean_loss(server.losses) if server else None
        state.notes.add(
            state.now_ns,
            "controller",
            "round",
            round_index,
            {
                "start_ns": planned_ns,
                "latency_ns": latency_ns,
                "cut_move_ns": move_ns,
                "join_ns": join_ns,
                "phases": phases,
                "airtime_s": airtime,
                "loss": loss,
                "cut_layer": state.cut,
                "clients": clients,
                "policy": state.config.experiment.allocator.name,
                "words": outcome.words,
            },
        )
        self._membership.note_left_out(round_index)
        state.writer.barrier()
        self._raise_if_hopeless(round_index, outcome)
        state.total_s.append(total_s)  # a round in which nothing came about is no latency
        state.rounds_done = round_index + 1
        accuracy = await self._maybe_evaluate(round_index)
        state.writer.barrier()
        state.writer.operation("round", round=round_index, solver_s=round(solver_s, 6))
        every = state.config.experiment.checkpoints.every_rounds
        if every and state.rounds_done % every == 0:
            await checkpoint(state)
        retransmitted = sum(
            sent.blocks_retransmitted
            for report in outcome.complete().values()
            for sent in report.transmissions
        )
        return RoundSummary(
            round_index,
            total_s,
            predicted_s,
            loss,
            state.cut,
            outcome.words,
            accuracy,
            retransmitted,
            ns_to_seconds(state.now_ns),
        )

    def _raise_if_hopeless(self, round_index: int, outcome: _Outcome) -> None:
        """End the run when the server is gone, or nothing at all came through."""
        state = self._state
        if "air" in state.control.lost:
            raise RadioError(f"the emulated air is gone in round {round_index}: {state.control.lost['air']}")
        server = outcome.of(state.server)
        if server is None:
            raise NodeError(f"round {round_index} ended without the server: {outcome.reports[state.server]}")
        if not any(stream.complete_ns is not None for stream in server.receptions):
            raise NothingArrivedError(f"round {round_index}: " + "; ".join(outcome.words))

    def _take(self, round_index: int, reports: dict[str, Any], grant: RoundGrant) -> _Outcome:
        """Put reports into the record and the estimates."""
        state = self._state
        estimates = state.planner.estimates
        words: list[str] = []
        end_ns = state.now_ns
        taken = []
        for name in state.names:  # in one order, whoever answered first
            if name not in reports:
                continue
            report = reports[name]
            if not isinstance(report, RoundReport):
                words.append(f"{name}: {report}")
                state.notes.add(state.now_ns, name, "node-failure", round_index, {"words": str(report)})
                continue
            end_ns = max(end_ns, report.end_ns)
            words.extend(text for text in report.words if text not in words)
            state.notes.report(round_index, name, report)
            rejections = estimates.take_links(report.links)
            rejections += estimates.take_spans(name, report.spans, state.cut)
            state.notes.rejected(report.end_ns, round_index, rejections)
            taken.append(report)
        for report in taken:  # after all soundings, which tell what the slots were promised
            estimates.take_streams(report, grant)
        return _Outcome(reports, tuple(words), end_ns)

    # ------------------------------------------------------------------------------- cut moves
    async def _move_cut(self, round_index: int, decision: Decision) -> int:
        """Move the cut over the air; how long it took [ns].

        Shallower moves merge diverged copies, so the loss before and after is noted.
        """
        state = self._state
        plan, clients = decision.plan, decision.clients
        shallower = plan.cut_layer < state.cut
        _, before = await evaluate(state, "validation", clients) if shallower else ((), None)
        start_ns = state.catch_up() + state.control_latency_ns
        grant = state.planner.grant(plan, clients, start_ns, plan.cut_layer, state.cut)
        reports = await state.control.ask_all(
            {name: CutMove(grant) for name in (*clients, state.server)},
            RoundReport,
            round_index=round_index,
            at_ns=start_ns,
        )
        outcome = self._take(round_index, reports, grant)
        started_ns, state.now_ns = state.now_ns, outcome.end_ns + state.control_latency_ns
        moved = tuple(name for name in clients if (said := outcome.of(name)) and said.complete)
        server = outcome.of(state.server)
        if server is None or not moved:
            raise RadioError(
                f"moving the cut from {state.cut} to {plan.cut_layer} failed at "
                f"{', '.join(name for name in reports if name not in moved)}: " + "; ".join(outcome.words)
            )
        previous, state.cut = state.cut, plan.cut_layer
        state.in_step = set(moved)  # who missed it is given the submodel of one that did not
        _, after = await evaluate(state, "validation", moved) if shallower else ((), None)
        state.notes.add(
            state.now_ns,
            "controller",
            "cut-move",
            round_index,
            {
                "start_ns": started_ns,
                "latency_ns": state.now_ns - started_ns,
                "from": previous,
                "to": state.cut,
                "validation_loss_before": before and float(np.mean(before.loss)),
                "validation_loss_after": after and float(np.mean(after.loss)),
            },
        )
        return state.now_ns - started_ns

    async def _maybe_evaluate(self, round_index: int) -> float | None:
        state = self._state
        if (round_index + 1) % state.config.experiment.evaluation.every_rounds:
            return None
        trained = state.trained()
        if not trained or state.server not in state.control.present:
            return None
        evaluated, outcome = await evaluate(state, "validation", trained)
        if outcome is None:
            return None
        return state.notes.evaluation(state.now_ns, round_index, outcome, evaluated)
