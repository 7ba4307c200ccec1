"""What every role of a node works with, and the conversions between digital and physical scales."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from nodes.messages import (
    ClockSpec,
    LinkMeasurement,
    NodeSetup,
    NumerologySpec,
    PortSpec,
    RadioEventRecord,
)
from nodes.timeline import Timeline
from nodes.transport.endpoint import Endpoint
from radio.clock import Clock, ClockKind, VirtualClock, WallClock
from radio.drivers.base import Radio
from radio.estimation import SoundingEstimate
from radio.events import RadioEvent
from radio.fidelity import Fidelity
from radio.ledger import CpuLedger
from radio.modem import make_modem
from radio.numerology import Numerology
from radio.ofdm import subcarrier_amplitude
from radio.units import db_to_linear, dbm_to_watt
from radio.workers import Workers, num_cores


def make_clock(spec: ClockSpec) -> Clock:
    """The clock that a run is measured with."""
    if ClockKind(spec.kind) is ClockKind.VIRTUAL:
        return VirtualClock()
    return WallClock(spec.epoch_ns, spec.slow_motion)


def make_numerology(spec: NumerologySpec) -> Numerology:
    """The resource grid of a run."""
    return Numerology(
        spec.sample_rate_hz,
        spec.fft_size,
        spec.prefix_samples,
        spec.num_subchannels,
        spec.subcarriers_per_subchannel,
        spec.symbols_per_slot,
        spec.slots_per_frame,
    )


class NodeContext:
    """One node in one run.

    Attributes
    ----------
    rx_gain_db
        Receiver gain that the radio accepted [dB].
    cfo_hz
        Offset of the server's carrier as this node sees it [Hz]; clients take it out of what
        they receive and out of what they send.  0 at the server.
    """

    def __init__(
        self,
        setup: NodeSetup,
        name: str,
        endpoint: Endpoint,
        radio: Radio,
        executor: Executor,
        ledger: CpuLedger,
        radio_events: list[RadioEvent],
    ) -> None:
        self.setup = setup
        self.name = name
        self.endpoint = endpoint
        self.radio = radio
        self.ledger = ledger
        self.link = setup.link
        self.numerology = make_numerology(setup.numerology)
        # A server hears all clients at once; a client has little to share.
        self.workers = Workers(num_cores() if setup.role == "server" else 1)
        self.modem = make_modem(
            Fidelity(setup.fidelity), self.numerology, radio, self.account_modem, self.workers
        )
        self.clock = make_clock(setup.clock)
        self.timeline = Timeline(self.clock, setup.compute, executor, ledger)
        self.rx_gain_db = 0.0
        self.cfo_hz = 0.0
        self.run_attempt = 0
        self._ports = {port.name: port for port in setup.ports}
        self._radio_events = radio_events

    @contextmanager
    def account_modem(self) -> Iterator[None]:
        """Book the block's CPU time, that of the modem's other threads included."""
        with self.ledger.account("modem"):
            yield
        self.ledger.add("modem", self.workers.take_cpu_ns())

    def close(self) -> None:
        """End the modem's threads."""
        self.workers.close()

    def port(self, name: str) -> PortSpec:
        return self._ports[name]

    @property
    def wait_s(self) -> float:
        """Wall-clock limit of a wait for a peer that computes or for the air [s].

        Liveness is watched by heartbeats; this limit only ends waits that no heartbeat explains.
        """
        return 300.0

    def amplitude(self, transmitter: str, psd_w_per_hz: NDArray[np.float64]) -> NDArray[np.float64]:
        """Subcarrier magnitude of a PSD [W/Hz] sent by a port."""
        return subcarrier_amplitude(
            psd_w_per_hz, self.numerology.sample_rate_hz, self.port(transmitter).tx_full_scale_dbm
        )

    def measurement(self, transmitter: str, estimate: SoundingEstimate) -> LinkMeasurement:
        """A sounding estimate of this node's receiver, referred to the ports."""
        rx_full_scale_w = float(dbm_to_watt(self.port(self.name).rx_full_scale_dbm))
        rx_scale = rx_full_scale_w / float(db_to_linear(self.rx_gain_db))
        tx_scale = float(dbm_to_watt(self.port(transmitter).tx_full_scale_dbm))
        return LinkMeasurement(
            transmitter=transmitter,
            receiver=self.name,
            detected=estimate.detected,
            channel_gain=tuple(float(value) for value in estimate.gain * rx_scale / tx_scale),
            noise_w_per_hz=estimate.noise_power * rx_scale / self.numerology.sample_rate_hz,
            cfo_hz=estimate.cfo_hz,
            delay_samples=estimate.delay_samples,
        )

    def drain_radio_events(self) -> tuple[RadioEventRecord, ...]:
        """Radio events since the last call, with their instants in experiment time."""
        records = tuple(
            RadioEventRecord(
                event.kind.value,
                self.numerology.samples_to_ns(event.sample_index),
                event.count,
                event.detail,
            )
            for event in self._radio_events
        )
        self._radio_events.clear()
        return tuple(sorted(records, key=lambda record: (record.at_ns, record.kind, record.detail)))
