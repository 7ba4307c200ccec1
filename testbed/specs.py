"""From the two configuration files to what air and nodes are told."""

from __future__ import annotations

import numpy as np

from nodes.messages import (
    ClockSpec,
    ComputeSpec,
    LearningSpec,
    LinkSpec,
    NodeSetup,
    NumerologySpec,
    PortSpec,
)
from radio.air.block_limits import unsupported_by_blocks
from radio.air.channel import FadingProfile, LinkParameters
from radio.air.core import AirParameters, PortParameters
from radio.air.front_end import PortImpairments, ReceiverImpairments, TransmitterImpairments
from radio.air.interference import Interference
from radio.air.oscillator import PhaseNoise
from radio.air.process import AirSetup
from radio.fidelity import Fidelity
from radio.numerology import Numerology
from radio.units import dbm_to_watt, seconds_to_ns, watt_to_dbm
from testbed.config.schema import Experiment, Fading, Impairments, Lab, Processor, Scenario
from testbed.errors import LabError
from testbed.scenario import resolve_scenario

RX_FULL_SCALE_DBM = 0.0  # of the emulated front ends, at a receiver gain of 0 dB


def numerology_of(experiment: Experiment) -> Numerology:
    """The resource grid of an experiment."""
    section = experiment.numerology
    return Numerology(
        section.sample_rate_hz,
        section.fft_size,
        section.prefix_samples,
        section.num_subchannels,
        section.subcarriers_per_subchannel,
        section.symbols_per_slot,
        section.slots_per_frame,
    )


def downlink_power_w(experiment: Experiment, lab: Lab) -> float:
    """Power of the server over the whole band [W]."""
    numerology = numerology_of(experiment)
    bandwidth_hz = numerology.num_subchannels * numerology.subchannel_bandwidth_hz
    return float(dbm_to_watt(lab.server.downlink_psd_dbm_per_hz)) * bandwidth_hz


def ports_of(experiment: Experiment, lab: Lab) -> tuple[PortSpec, ...]:
    """Port of each node: full scale lies ``backoff_db`` above its maximum mean power."""
    server_dbm = float(watt_to_dbm(np.float64(downlink_power_w(experiment, lab))))
    powers_dbm = {board.name: board.max_power_dbm for board in lab.boards}
    powers_dbm[lab.server.name] = server_dbm
    return tuple(
        PortSpec(name, power_dbm + lab.radio.backoff_db, RX_FULL_SCALE_DBM)
        for name, power_dbm in powers_dbm.items()
    )


def air_setup(experiment: Experiment, lab: Lab) -> AirSetup:
    """The emulated air of a lab; with :func:`node_setup` the only place where hidden truth is read.

    Raises
    ------
    LabError
        The lab asks for blocks fidelity and has something that it cannot represent.
    """
    numerology = numerology_of(experiment)
    ports = tuple(
        PortParameters(
            port.name,
            port.tx_full_scale_dbm,
            port.rx_full_scale_dbm,
            lab.radio.noise_figure_db,
            lab.radio.converter_bits,
            muted=port.name in lab.radio.muted,
            impairments=impairments_of(lab, port.name),
        )
        for port in ports_of(experiment, lab)
    )
    links: list[LinkParameters] = []
    truths = resolve_scenario(lab.scenario, lab, experiment.rounds).boards
    for board in lab.boards:
        channel, truth = board.channel, truths[board.name]
        if channel is None:
            continue
        fading = fading_of(channel.fading, lab.scenario)
        ends = ((board.name, lab.server.name, 1.0), (lab.server.name, board.name, -1.0))
        links.extend(
            LinkParameters(
                transmitter,
                receiver,
                channel.path_loss_db,
                lab.radio.antenna_gain_db,
                sign * channel.cfo_hz,
                channel.timing_offset_samples,
                fading,
                truth.attenuation_db,
                truth.redraw_rounds,
                sign * channel.clock_drift_ppm,
                numerology.frame_samples,
            )
            for transmitter, receiver, sign in ends
        )
    parameters = AirParameters(
        experiment.seed,
        numerology.sample_rate_hz,
        numerology.slot_samples,
        ports,
        tuple(links),
        interference_of(lab),
        fidelity=lab.radio.fidelity,
        numerology=numerology,
    )
    if lab.radio.fidelity is Fidelity.BLOCKS and (refused := unsupported_by_blocks(parameters)):
        raise LabError(
            f"lab {lab.name} asks for radio.fidelity: blocks, which cannot represent {'; '.join(refused)}; "
            "take iq, or leave these out"
        )
    return AirSetup(
        parameters,
        numerology.frame_samples,
        shared_memory=lab.radio.plane != "network",
    )


def fading_of(fading: Fading, scenario: Scenario | None) -> FadingProfile:
    """A channel's fading, its movement being the scenario's where that says anything of it."""
    doppler_hz, round_correlation = fading.doppler_hz, fading.round_correlation
    if scenario is not None and scenario.fading is not None:
        doppler_hz, round_correlation = scenario.fading.doppler_hz or 0.0, scenario.fading.correlation
    return FadingProfile(
        fading.delay_spread_s,
        fading.num_taps,
        fading.rician_k_db,
        doppler_hz,
        round_correlation,
        fading.profile,
    )


def impairments_of(lab: Lab, name: str) -> PortImpairments:
    """Analogue hardware of a port: its own where the lab gives it any, else that of all radios."""
    own: dict[str, Impairments | None] = {board.name: board.impairments for board in lab.boards}
    own[lab.server.name] = lab.server.impairments
    section = own[name] or lab.radio.impairments
    noise = section.phase_noise
    return PortImpairments(
        None if noise is None else PhaseNoise(noise.rms_deg, noise.bandwidth_hz),
        TransmitterImpairments(**section.transmitter.model_dump()),
        ReceiverImpairments(**section.receiver.model_dump()),
    )


def interference_of(lab: Lab) -> tuple[Interference, ...]:
    """What others send, as the air is told of it."""
    return tuple(
        Interference(
            section.receiver,
            section.kind,
            section.power_dbm,
            section.centre_hz,
            section.bandwidth_hz or 0.0,
            section.duty,
            section.period_s,
        )
        for section in lab.interference
    )


def _compute(
    experiment: Experiment, processor: Processor, slowdown_by_round: tuple[float, ...] = ()
) -> ComputeSpec:
    return ComputeSpec(
        experiment.compute.value,
        processor.clock_hz,
        processor.cycles_per_flop,
        processor.slowdown,
        slowdown_by_round,
    )


def node_setup(
    experiment: Experiment, lab: Lab, name: str, run: str, air_endpoint: str, epoch_ns: int
) -> NodeSetup:
    """What one node is told when it joins."""
    section, learning, data = experiment.numerology, experiment.learning, experiment.data
    processors = {board.name: board.processor for board in lab.boards}
    processors[lab.server.name] = lab.server.processor
    truths = resolve_scenario(lab.scenario, lab, experiment.rounds).boards
    slowdown_by_round = truths[name].slowdown_by_round if name in truths else ()
    return NodeSetup(
        run=run,
        seed=experiment.seed,
        role="server" if name == lab.server.name else "client",
        server=lab.server.name,
        clients=tuple(board.name for board in lab.boards),
        ports=ports_of(experiment, lab),
        air_endpoint=air_endpoint,
        plane=lab.radio.plane,
        numerology=NumerologySpec(
            section.sample_rate_hz,
            section.fft_size,
            section.prefix_samples,
            section.num_subchannels,
            section.subcarriers_per_subchannel,
            section.symbols_per_slot,
            section.slots_per_frame,
        ),
        link=LinkSpec(
            ack_delay_ns=seconds_to_ns(experiment.link.ack_delay_s),
            control_latency_ns=seconds_to_ns(lab.control.latency_s),
            turnaround_ns=seconds_to_ns(experiment.link.turnaround_s),
            target_bler=experiment.link.target_bler,
            mcs_backoff_db=experiment.link.mcs_backoff_db,
            stall_frames=experiment.link.stall_frames,
        ),
        clock=ClockSpec(lab.clock.kind, epoch_ns, lab.clock.slow_motion),
        compute=_compute(experiment, processors[name], slowdown_by_round),
        learning=LearningSpec(
            model=experiment.model.name,
            scheme=learning.scheme,
            phi=learning.phi,
            reading=learning.reading,
            weighted=learning.weighted,
            batch_size=learning.batch_size,
            learning_rate_client=learning.learning_rate_client,
            learning_rate_server=learning.learning_rate_server,
            momentum=learning.momentum,
            data=data.name,
            data_path=data.path,
            partition=data.partition,
            dirichlet_alpha=data.dirichlet_alpha,
            labels_per_client=data.labels_per_client,
            validation_fraction=experiment.evaluation.validation_fraction,
            test_fraction=experiment.evaluation.test_fraction,
        ),
        heartbeat_s=lab.control.heartbeat_s,
        timeout_s=lab.control.timeout_s,
        fidelity=lab.radio.fidelity.value,
    )
