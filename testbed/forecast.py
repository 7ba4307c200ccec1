"""What a plan is expected to take: estimates turned into the inputs of :mod:`testbed.latency`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from radio.numerology import SOUNDING_SYMBOLS
from radio.units import linear_to_db, seconds_to_ns
from testbed.allocator.problem import Plan, RateModel
from testbed.latency.inputs import ComputeTime, Links, McsSteps, RoundInputs, Timing
from testbed.latency.paper import predict_formula
from testbed.latency.twin import RoundPrediction, Summary, predict_cut_move, predict_round
from testbed.latency.work import server_work

if TYPE_CHECKING:
    from testbed.planner import Planner

FloatArray = NDArray[np.float64]
WEIGHING_DRAWS = 32  # per candidate, with equal luck for all
MOVE_DRAWS = 32


@dataclass(frozen=True)
class Persistence:
    """The forecast that needs no model: the last round's measured values."""

    round_s: float
    phases: dict[str, float] | None
    airtime_s: dict[str, float]

    def record(self) -> dict[str, Any]:
        return {"round_s": self.round_s, "phases": self.phases, "airtime_s": self.airtime_s}


NO_PERSISTENCE: dict[str, Any] = {"round_s": None, "phases": None, "airtime_s": None}


@dataclass(frozen=True)
class RoundForecast:
    """A predicted round, and what the same estimates say of moving the cut before it."""

    prediction: RoundPrediction
    forecaster: Forecaster
    plan: Plan

    @property
    def model(self) -> str:
        return self.prediction.model

    @property
    def round_s(self) -> Summary:
        return self.prediction.round_s

    @property
    def phases(self) -> dict[str, Summary]:
        return self.prediction.phases

    @property
    def airtime_s(self) -> dict[str, Summary]:
        return self.prediction.airtime

    def longest_phase(self) -> str:
        """The tile with the largest expected length."""
        return self.prediction.longest_phase

    def cut_move(self, previous_cut: int) -> Summary:
        """Expected time of moving the cut from ``previous_cut`` to the plan's [s]."""
        return self.forecaster.cut_move(self.plan, previous_cut)

    def record(self, last: Persistence | None) -> dict[str, Any]:
        """Values of the event ``prediction``."""
        return {**self.prediction.record(), "persistence": last.record() if last else NO_PERSISTENCE}


class Forecaster:
    """Predictions for one round and one set of clients.

    Parameters
    ----------
    plan_ns
        Instant of the decision [ns]: the slots that follow lie where they lie.
    num_sounders
        Boards that are sounded, idle ones included.
    first
        From what was known of each link when it was first heard.
    """

    def __init__(
        self,
        planner: Planner,
        round_index: int,
        clients: tuple[str, ...],
        plan_ns: int,
        num_sounders: int,
        *,
        first: bool = False,
    ) -> None:
        self._planner = planner
        self._clients = clients
        self._plan_ns = plan_ns
        self._num_sounders = num_sounders
        self._first = first
        self._seed = (planner.experiment.seed << 20) + round_index

    def round(self, plan: Plan, num_draws: int) -> RoundForecast:
        """What a plan is expected to take, by the configured model."""
        if self._planner.experiment.prediction.model == "paper":
            problem = self._planner.problem(self._clients, plan.cut_layer, first=self._first)
            prediction = predict_formula(
                problem,
                plan.cut_layer,
                plan.assignment,
                plan.psd_w_per_hz,
                RateModel(self._planner.experiment.allocator.rate_model),
            )
        else:
            prediction = predict_round(self.inputs(plan), num_draws=num_draws, seed=self._seed)
        return RoundForecast(prediction, self, plan)

    def mean_s(self, plan: Plan) -> float:
        """Mean of the round under a plan [s], for weighing plans: the same luck for each of them."""
        prediction = predict_round(self.inputs(plan), num_draws=WEIGHING_DRAWS, seed=self._seed)
        return float(prediction.round_s.mean)

    def cut_move(self, plan: Plan, previous_cut: int) -> Summary:
        """Moving the cut from ``previous_cut`` to the plan's."""
        low, high = sorted((previous_cut, plan.cut_layer))
        num_bytes = sum(self._planner.model.packed_bytes[low:high])
        deeper = plan.cut_layer > previous_cut
        moved = predict_cut_move(self.inputs(plan), num_bytes, deeper, num_draws=MOVE_DRAWS, seed=self._seed)
        return moved.round_s

    # ---------------------------------------------------------------------------------- inputs
    def inputs(self, plan: Plan) -> RoundInputs:
        """Everything the twin is told of a round under a plan."""
        planner, clients = self._planner, self._clients
        estimates = planner.estimates
        sizes = planner.stream_bytes(clients, plan.cut_layer)
        compute = self._compute(plan.cut_layer)
        used = plan.psd_w_per_hz > 0
        psd_db = np.full(len(used), -np.inf)
        psd_db[used] = np.asarray(linear_to_db(plan.psd_w_per_hz[used]))
        downlink_db = float(linear_to_db(np.float64(planner.downlink_psd_w_per_hz)))
        return RoundInputs(
            timing=self._timing(),
            steps=McsSteps(planner.thresholds_db, planner.block_room_bytes),
            plan_ns=self._plan_ns,
            assignment=plan.assignment,
            uplink=self._links(psd_db, downlink=False),
            downlink=self._links(np.full(len(used), downlink_db), downlink=True),
            uplink_bytes=sizes.uplink,
            broadcast_bytes=sizes.broadcast,
            unicast_bytes=sizes.unicast,
            broadcast_union_error=estimates.broadcast.bler,
            broadcast_overdispersion=estimates.broadcast.overdispersion,
            num_sounders=self._num_sounders,
            client_forward=compute["client-forward"],
            client_backward=compute["client-backward"],
            server_forward=compute["server-forward"],
            server_backward=compute["server-backward"],
        )

    def _timing(self) -> Timing:
        planner = self._planner
        numerology, link = planner.numerology, planner.experiment.link
        return Timing(
            sample_rate_hz=numerology.sample_rate_hz,
            slot_samples=numerology.slot_samples,
            slots_per_frame=numerology.slots_per_frame,
            ack_delay_ns=seconds_to_ns(link.ack_delay_s),
            control_latency_ns=seconds_to_ns(planner.lab.control.latency_s),
            turnaround_ns=seconds_to_ns(link.turnaround_s),
            sounders_per_slot=numerology.sounders_per_slot,
            sounding_samples=SOUNDING_SYMBOLS * numerology.symbol_samples,
        )

    def _links(self, psd_db: FloatArray, *, downlink: bool) -> Links:
        estimates, clients = self._planner.estimates, self._clients
        states = [(estimates.downlink if downlink else estimates.uplink)[name] for name in clients]
        snr_db = estimates.snr_per_psd_db(clients, downlink=downlink, first=self._first) + psd_db
        deviations = np.array([state.gains.filter.deviations() for state in states])
        return Links(
            snr_db=snr_db,
            common_deviation_db=deviations[:, 0],
            subchannel_deviation_db=deviations[:, 1],
            # The thresholds have the back-off in them already.
            margin_db=np.array([state.outer_loop_db - state.bias_db for state in states]),
            block_error=np.array([state.stream.bler for state in states]),
            overdispersion=np.array([state.stream.overdispersion for state in states]),
        )

    def _compute(self, cut: int) -> dict[str, ComputeTime]:
        planner, clients = self._planner, self._clients
        model, learning = planner.model, planner.experiment.learning
        batches = np.array([planner.batch_size(name) for name in clients], float)
        server = server_work(
            model.forward_flops,
            model.backward_flops,
            cut,
            batches,
            planner.aggregation_ratio,
            learning.reading,
        )
        speeds = planner.compute_speeds(clients, cut)
        deviation = planner.compute_deviations(clients)
        flops = {
            "client-forward": batches * model.forward_flops[cut],
            "client-backward": batches * model.backward_flops[cut],
            "server-forward": np.array(server[0]),
            "server-backward": np.array(server[1]),
        }
        return {phase: ComputeTime(flops[phase] / speeds[phase], deviation[phase]) for phase in flops}


__all__ = ["Forecaster", "Persistence", "RoundForecast", "Summary"]
