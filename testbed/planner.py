"""Estimates in, decisions and grants out: what a policy is asked each round.

The planner turns estimates into the arrays that allocator and twin understand, and a plan into
the message that nodes act on.  It never sees the emulated lab's truth.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from nodes.messages import ClientGrant, ModelSpec, RoundGrant
from radio.link import HEADER
from radio.mcs import mcs_table, thresholds_db
from radio.phy import block_bytes
from radio.units import db_to_linear, dbm_to_watt, seconds_to_ns
from testbed.allocator.problem import AllocationError, Plan, Problem, RateModel
from testbed.config.schema import Experiment, Lab
from testbed.estimates import Estimates
from testbed.forecast import Forecaster, RoundForecast
from testbed.latency.work import num_aggregated
from testbed.policies import Decision, Policy, Tuning, View, make_policy
from testbed.specs import numerology_of

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class StreamBytes:
    """Payloads of one round [byte]; 0 where a stream does not exist.

    Attributes
    ----------
    uplink, unicast
        ``[C]``.
    """

    uplink: NDArray[np.int64]
    broadcast: int
    unicast: NDArray[np.int64]


class Planner:
    """Makes each round's decision and grant.

    Parameters
    ----------
    num_samples
        D_i by client.
    """

    def __init__(
        self, experiment: Experiment, lab: Lab, model: ModelSpec, num_samples: dict[str, int]
    ) -> None:
        self.experiment = experiment
        self.lab = lab
        self.model = model
        self.num_samples = dict(num_samples)
        self.numerology = numerology_of(experiment)
        self._boards = {board.name: board for board in lab.boards}
        self.clients = tuple(board.name for board in lab.boards)
        self.server = lab.server.name
        processors = {board.name: board.processor for board in lab.boards}
        processors[lab.server.name] = lab.server.processor
        self.estimates = Estimates(
            self.clients,
            self.server,
            self.numerology.num_subchannels,
            {name: unit.clock_hz / unit.cycles_per_flop for name, unit in processors.items()},
            {name: self.sounding_psd_w_per_hz(name) for name in self.clients},
            self.downlink_psd_w_per_hz,
            experiment.link.target_bler,
        )
        self._policy: Policy = make_policy(experiment.allocator.name)

    @property
    def downlink_psd_w_per_hz(self) -> float:
        return float(dbm_to_watt(self.lab.server.downlink_psd_dbm_per_hz))

    @property
    def aggregation_ratio(self) -> float:
        """phi; 0 for PSL."""
        learning = self.experiment.learning
        return 0.0 if learning.scheme == "psl" else learning.phi

    def sounding_psd_w_per_hz(self, client: str) -> float:
        """PSD at which a client's whole power, evenly over the band, is its limit."""
        bandwidth_hz = self.numerology.num_subchannels * self.numerology.subchannel_bandwidth_hz
        return float(dbm_to_watt(self._boards[client].max_power_dbm)) / bandwidth_hz

    def batch_size(self, client: str) -> int:
        """Samples of a client's mini-batch."""
        return min(self.experiment.learning.batch_size, self.num_samples[client])

    def cuts(self, round_index: int) -> tuple[int, ...]:
        """Cut layers that the experiment allows in a round."""
        model = self.experiment.model
        scheduled = [start for start in sorted(model.cut_schedule) if start <= round_index]
        if scheduled:
            return (model.cut_schedule[scheduled[-1]],)
        if model.cut_layer == "auto":
            return tuple(range(1, len(self.model.forward_flops) - 1))
        return (model.cut_layer,)

    def every_cut(self) -> tuple[int, ...]:
        """Cut layers that some round of the experiment allows."""
        starts = {0, *self.experiment.model.cut_schedule}
        return tuple(sorted({cut for start in starts for cut in self.cuts(start)}))

    @cached_property
    def block_room_bytes(self) -> NDArray[np.int64]:
        """Bytes of a stream that one transport block carries, by MCS ``[K]``."""
        count = len(mcs_table().schemes)
        return np.array([block_bytes(self.numerology, index) - HEADER.size for index in range(count)])

    @cached_property
    def thresholds_db(self) -> FloatArray:
        """SNR that each MCS needs for 10 % block errors, back-off included ``[K]`` [dB]."""
        elements = self.numerology.block_resource_elements
        return np.asarray(thresholds_db(elements)) + self.experiment.link.mcs_backoff_db

    def problem(
        self,
        clients: tuple[str, ...],
        cut: int,
        *,
        guard_db: float = 0.0,
        first: bool = False,
    ) -> Problem:
        """What the allocator is asked for these clients at a cut.

        The SNRs are lowered by how careful the outer loops are and by what slots were seen to make of
        them, and the steps carry what a block carries of a stream: header, check, pilots and prefix
        are off, and the block errors that the link adaptation aims at.
        """
        numerology, estimates = self.numerology, self.estimates
        carried = len(numerology.data_symbols) / numerology.symbols_per_slot
        carried *= numerology.fft_size / numerology.symbol_samples
        width_hz = numerology.subchannel_bandwidth_hz * carried
        slot_s = numerology.slot_samples / numerology.sample_rate_hz
        delivered = 1.0 - self.experiment.link.target_bler
        efficiency = np.asarray(8.0 * self.block_room_bytes * delivered / (slot_s * width_hz), np.float64)
        up_db = estimates.snr_per_psd_db(clients, downlink=False, first=first) - guard_db
        down_db = estimates.snr_per_psd_db(clients, downlink=True, first=first)
        if not first:
            up_db = up_db - self._care_db(clients, downlink=False)[:, None]
            down_db = down_db - self._care_db(clients, downlink=True)[:, None]
        speeds = self.compute_speeds(clients, cut)
        forward = np.array(self.model.forward_flops)
        # One speed per client in the problem: what its backward passes do otherwise goes into the work.
        ratio = float(np.mean(speeds["client-forward"] / speeds["client-backward"]))
        return Problem(
            forward_flops=forward,
            backward_flops=np.array(self.model.backward_flops) * ratio,
            smashed_bits=np.array(self.model.smashed_bits, float) + 8 * self.model.label_bytes,
            gradient_bits=np.array(self.model.gradient_bits, float),
            batch_size=np.array([self.batch_size(name) for name in clients]),
            aggregation_ratio=self.aggregation_ratio,
            client_flops_per_s=speeds["client-forward"],
            server_flops_per_s=float(speeds["server-forward"]),
            bandwidth_hz=np.full(numerology.num_subchannels, width_hz),
            uplink_snr_per_psd=np.asarray(db_to_linear(up_db)),
            downlink_snr_per_psd=np.asarray(db_to_linear(down_db)),
            downlink_psd_w_per_hz=self.downlink_psd_w_per_hz,
            # The power limit holds for the whole subchannel, the rate for what it carries.
            max_power_w=carried
            * np.array([float(dbm_to_watt(self._boards[name].max_power_dbm)) for name in clients]),
            total_power_w=carried * float(dbm_to_watt(self.lab.total_power_dbm)),
            mcs_efficiency=efficiency,
            mcs_snr=np.asarray(db_to_linear(self.thresholds_db)),
            broadcast="per-subchannel",
            cuts=(cut,),
        )

    def _care_db(self, clients: tuple[str, ...], *, downlink: bool) -> FloatArray:
        """What outer loops hold back beyond the back-off, less what slots turned out better ``[C]`` [dB]."""
        states = self.estimates.downlink if downlink else self.estimates.uplink
        return np.array([states[name].outer_loop_db - states[name].bias_db for name in clients])

    def compute_speeds(self, clients: tuple[str, ...], cut: int) -> dict[str, FloatArray]:
        """Estimated FLOP/s by phase at a cut: ``[C]`` for the clients' phases, ``[]`` for the server's."""
        known = self.estimates.flops_per_s
        speeds = {
            phase: np.array([known(name, phase, cut) for name in clients])
            for phase in ("client-forward", "client-backward")
        }
        for phase in ("server-forward", "server-backward"):
            speeds[phase] = np.array(known(self.server, phase, cut))
        return speeds

    def stream_bytes(self, clients: tuple[str, ...], cut: int) -> StreamBytes:
        """What each stream of a round carries at a cut."""
        model = self.model
        batches = np.array([self.batch_size(name) for name in clients])
        merged = num_aggregated(self.aggregation_ratio, batches)
        own = np.maximum(0, batches - merged)
        smashed, gradient = model.smashed_bits[cut] // 8, model.gradient_bits[cut] // 8
        described = model.gradient_overhead_bytes[cut]
        return StreamBytes(
            uplink=batches * (smashed + model.label_bytes) + model.uplink_overhead_bytes[cut],
            broadcast=int(merged * gradient + described) if merged else 0,
            unicast=np.where(own > 0, own * gradient + described, 0),
        )

    def compute_deviations(self, clients: tuple[str, ...]) -> dict[str, FloatArray | float]:
        """Relative standard deviation of compute spans by phase: ``[C]``, or a number for the server."""
        doubt = self.estimates.compute_deviation
        deviations: dict[str, FloatArray | float] = {
            phase: np.array([doubt(name, phase) for name in clients])
            for phase in ("client-forward", "client-backward")
        }
        for phase in ("server-forward", "server-backward"):
            deviations[phase] = doubt(self.server, phase)
        return deviations

    def forecast(
        self, round_index: int, decision: Decision, plan_ns: int, num_sounders: int
    ) -> RoundForecast:
        """What a decided round is expected to take when it is planned at another instant."""
        forecaster = Forecaster(self, round_index, decision.clients, plan_ns, num_sounders)
        return forecaster.round(decision.plan, self.experiment.prediction.num_draws)

    def decide(
        self,
        round_index: int,
        clients: tuple[str, ...],
        current_cut: int | None,
        plan_ns: int,
        num_sounders: int,
    ) -> tuple[Decision, RoundForecast]:
        """The plan of a round and what it is expected to take.

        Parameters
        ----------
        plan_ns
            Instant of the decision, from which latency counts.
        num_sounders
            Boards that are sounded, idle ones included.

        Raises
        ------
        AllocationError
            Nothing can be allocated from the estimates.
        """
        view = PlannerView(self, round_index, clients, current_cut, plan_ns, num_sounders)
        decision = self._policy.decide(view)
        return decision, view.forecaster.round(decision.plan, self.experiment.prediction.num_draws)

    def grant(
        self,
        plan: Plan,
        clients: tuple[str, ...],
        start_ns: int,
        cut_layer: int,
        previous_cut_layer: int,
        idle: tuple[str, ...] = (),
    ) -> RoundGrant:
        """A plan as the message that nodes act on.

        ``idle`` clients get no subchannel and send their sounding only, so that the loop learns
        when they can be heard.
        """
        grants = []
        for row, name in enumerate(clients):
            chosen = np.flatnonzero(plan.assignment == row)
            grants.append(
                ClientGrant(
                    client=name,
                    num_samples=self.num_samples[name],
                    subchannels=tuple(int(k) for k in chosen),
                    psd_w_per_hz=tuple(float(plan.psd_w_per_hz[k]) for k in chosen),
                    sounding_psd_w_per_hz=self.sounding_psd_w_per_hz(name),
                )
            )
        grants.extend(
            ClientGrant(name, self.num_samples[name], (), (), self.sounding_psd_w_per_hz(name))
            for name in idle
        )
        return RoundGrant(
            start_ns=start_ns,
            deadline_ns=start_ns + seconds_to_ns(self.experiment.round_deadline_s),
            cut_layer=cut_layer,
            previous_cut_layer=previous_cut_layer,
            downlink_psd_w_per_hz=self.downlink_psd_w_per_hz,
            clients=tuple(grants),
        )


class PlannerView:
    """A round as a policy sees it."""

    def __init__(
        self,
        planner: Planner,
        round_index: int,
        clients: tuple[str, ...],
        current_cut: int | None,
        plan_ns: int,
        num_sounders: int,
        *,
        first: bool = False,
    ) -> None:
        allocator = planner.experiment.allocator
        self._planner = planner
        self._round_index = round_index
        self._plan_ns = plan_ns
        self._num_sounders = num_sounders
        self._first = first
        self._problems: dict[tuple[int, float], Problem] = {}
        self.clients = clients
        self.cuts = planner.cuts(round_index)
        self.current_cut = current_cut
        self.rounds_left = planner.experiment.rounds - round_index
        self.rate_model = RateModel(allocator.rate_model)
        self.tuning = Tuning(
            allocator.power_hysteresis,
            allocator.assignment_hysteresis,
            allocator.cut_hysteresis,
            allocator.cut_horizon_rounds,
            allocator.iterations,
        )
        self.forecaster = Forecaster(planner, round_index, clients, plan_ns, num_sounders, first=first)

    def problem(self, cut: int, guard_db: float = 0.0) -> Problem:
        key = (cut, guard_db)
        if key not in self._problems:
            self._problems[key] = self._planner.problem(
                self.clients, cut, guard_db=guard_db, first=self._first
            )
        return self._problems[key]

    def expect(self, plan: Plan) -> float:
        return self.forecaster.mean_s(plan)

    def move_cost_s(self, plan: Plan) -> float:
        if self.current_cut is None or self.current_cut == plan.cut_layer:
            return 0.0
        return self.forecaster.cut_move(plan, self.current_cut).mean

    def at_first_sight(self) -> View:
        return PlannerView(
            self._planner,
            self._round_index,
            self.clients,
            self.current_cut,
            self._plan_ns,
            self._num_sounders,
            first=True,
        )


__all__ = ["AllocationError", "Planner", "PlannerView"]
