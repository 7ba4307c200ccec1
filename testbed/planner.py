"""Estimates in, grants out: what the allocator is asked each round.

The planner sees what was measured and never the emulated lab's truth: link measurements of the
soundings, and the speed of each processor from the compute spans that were reported.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nodes.messages import ClientGrant, LinkMeasurement, ModelSpec, RoundGrant, RoundReport
from radio.mcs import mcs_table, thresholds_db
from radio.units import db_to_linear, dbm_to_watt, seconds_to_ns
from testbed.allocator.api import allocate
from testbed.allocator.problem import AllocationError, Plan, Problem, RateModel
from testbed.config.schema import Experiment, Lab
from testbed.specs import numerology_of

SPEED_WEIGHT = 0.3  # of the newest compute span in the estimate of a processor's speed


@dataclass
class Estimates:
    """What is known of links and processors, newest value per link.

    Attributes
    ----------
    uplink_snr_per_psd, downlink_snr_per_psd
        ``[num_clients, num_subchannels]`` channel gain over noise PSD [Hz/W].
    flops_per_s
        By node.
    """

    clients: tuple[str, ...]
    uplink_snr_per_psd: NDArray[np.float64]
    downlink_snr_per_psd: NDArray[np.float64]
    flops_per_s: dict[str, float]
    heard: set[str] = field(default_factory=set)

    def take_links(self, links: Iterable[LinkMeasurement]) -> None:
        """Take over soundings that were detected and make sense; others change nothing."""
        for link in links:
            gain = np.array(link.channel_gain)
            usable = (
                link.detected
                and link.noise_w_per_hz > 0
                and np.isfinite(link.noise_w_per_hz)
                and bool(np.all(np.isfinite(gain)))
            )
            if not usable:
                continue
            ratio = np.maximum(gain, 0.0) / link.noise_w_per_hz
            if link.transmitter in self.clients:
                self.uplink_snr_per_psd[self.clients.index(link.transmitter)] = ratio
                self.heard.add(link.transmitter)
            elif link.receiver in self.clients:
                self.downlink_snr_per_psd[self.clients.index(link.receiver)] = ratio

    def take_spans(self, node: str, report: RoundReport) -> None:
        """Follow the speed of a processor, FLOPs over the duration of its compute spans."""
        for span in report.spans:
            flops = span.attributes.get("flops")
            duration_s = (span.end_ns - span.start_ns) / 1e9
            if not isinstance(flops, float | int) or flops <= 0 or duration_s <= 0:
                continue
            speed = flops / duration_s
            self.flops_per_s[node] += SPEED_WEIGHT * (speed - self.flops_per_s[node])


class Planner:
    """Makes each round's grant.

    Parameters
    ----------
    num_samples
        D_i by client.
    """

    def __init__(
        self, experiment: Experiment, lab: Lab, model: ModelSpec, num_samples: dict[str, int]
    ) -> None:
        self._experiment = experiment
        self._lab = lab
        self._model = model
        self._num_samples = num_samples
        self._numerology = numerology_of(experiment)
        self._boards = {board.name: board for board in lab.boards}
        self.clients = tuple(board.name for board in lab.boards)
        processors = {board.name: board.processor for board in lab.boards}
        processors[lab.server.name] = lab.server.processor
        shape = (len(self.clients), self._numerology.num_subchannels)
        self.estimates = Estimates(
            self.clients,
            np.zeros(shape),
            np.zeros(shape),
            {name: unit.clock_hz / unit.cycles_per_flop for name, unit in processors.items()},
        )

    @property
    def downlink_psd_w_per_hz(self) -> float:
        return float(dbm_to_watt(self._lab.server.downlink_psd_dbm_per_hz))

    def sounding_psd_w_per_hz(self, client: str) -> float:
        """PSD at which a client's whole power, evenly over the band, is its limit."""
        bandwidth_hz = self._numerology.num_subchannels * self._numerology.subchannel_bandwidth_hz
        return float(dbm_to_watt(self._boards[client].max_power_dbm)) / bandwidth_hz

    def cuts(self, round_index: int) -> tuple[int, ...]:
        """Cut layers that the experiment allows in a round."""
        model = self._experiment.model
        scheduled = [start for start in sorted(model.cut_schedule) if start <= round_index]
        if scheduled:
            return (model.cut_schedule[scheduled[-1]],)
        if model.cut_layer == "auto":
            return tuple(range(1, len(self._model.forward_flops) - 1))
        return (model.cut_layer,)

    def problem(self, clients: tuple[str, ...], cuts: tuple[int, ...]) -> Problem:
        """What the allocator is asked for these clients."""
        numerology, learning = self._numerology, self._experiment.learning
        rows = [self.clients.index(name) for name in clients]
        # Prefix and pilots carry nothing: a subchannel is as good as one that much narrower.
        carried = len(numerology.data_symbols) / numerology.symbols_per_slot
        carried *= numerology.fft_size / numerology.symbol_samples
        elements = numerology.block_resource_elements
        margin_db = self._experiment.link.mcs_backoff_db
        table = mcs_table()
        learns = 0.0 if learning.scheme == "psl" else learning.phi
        return Problem(
            forward_flops=np.array(self._model.forward_flops),
            backward_flops=np.array(self._model.backward_flops),
            smashed_bits=np.array(self._model.smashed_bits, float),
            gradient_bits=np.array(self._model.gradient_bits, float),
            batch_size=np.array([min(learning.batch_size, self._num_samples[name]) for name in clients]),
            aggregation_ratio=learns,
            client_flops_per_s=np.array([self.estimates.flops_per_s[name] for name in clients]),
            server_flops_per_s=self.estimates.flops_per_s[self._lab.server.name],
            bandwidth_hz=np.full(numerology.num_subchannels, numerology.subchannel_bandwidth_hz * carried),
            uplink_snr_per_psd=self.estimates.uplink_snr_per_psd[rows],
            downlink_snr_per_psd=self.estimates.downlink_snr_per_psd[rows],
            downlink_psd_w_per_hz=self.downlink_psd_w_per_hz,
            # The power limit holds for the whole subchannel, the rate for what it carries.
            max_power_w=carried
            * np.array([float(dbm_to_watt(self._boards[name].max_power_dbm)) for name in clients]),
            total_power_w=carried * float(dbm_to_watt(self._lab.total_power_dbm)),
            mcs_efficiency=np.array([scheme.spectral_efficiency for scheme in table.schemes]),
            mcs_snr=np.asarray(db_to_linear(thresholds_db(elements) + margin_db)),
            broadcast="per-subchannel",
            cuts=cuts,
        )

    def plan(self, round_index: int, clients: tuple[str, ...], current_cut: int | None) -> Plan:
        """Cut, subchannels and PSD for a round.

        A cut moves only if the plan for the new one is predicted to be better than the plan for
        the present one by the configured share, since moving costs airtime and changes weights.

        Raises
        ------
        AllocationError
            Nothing can be allocated from the estimates.
        """
        allocator = self._experiment.allocator
        rate_model = RateModel(allocator.rate_model)
        cuts = self.cuts(round_index)
        best = allocate(self.problem(clients, cuts), allocator.name, rate_model)
        if current_cut is None or best.cut_layer == current_cut or current_cut not in cuts:
            return best
        stay = allocate(self.problem(clients, (current_cut,)), allocator.name, rate_model)
        gain = 1.0 - best.latency_s / stay.latency_s
        return best if gain > allocator.cut_hysteresis else stay

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
                    num_samples=self._num_samples[name],
                    subchannels=tuple(int(k) for k in chosen),
                    psd_w_per_hz=tuple(float(plan.psd_w_per_hz[k]) for k in chosen),
                    sounding_psd_w_per_hz=self.sounding_psd_w_per_hz(name),
                )
            )
        grants.extend(
            ClientGrant(name, self._num_samples[name], (), (), self.sounding_psd_w_per_hz(name))
            for name in idle
        )
        return RoundGrant(
            start_ns=start_ns,
            deadline_ns=start_ns + seconds_to_ns(self._experiment.round_deadline_s),
            cut_layer=cut_layer,
            previous_cut_layer=previous_cut_layer,
            downlink_psd_w_per_hz=self.downlink_psd_w_per_hz,
            clients=tuple(grants),
        )


__all__ = ["AllocationError", "Estimates", "Planner"]
