"""A small grid and a round on it whose links are all alike, for tests of the prediction."""

from __future__ import annotations

import numpy as np

from radio.numerology import SOUNDING_SYMBOLS, Numerology
from testbed.latency import protocol
from testbed.latency.inputs import ComputeTime, Links, RoundInputs, Timing
from tests.testbed.round_truth import link_steps

NUM_SUBCHANNELS = 6


def grid_numerology(sample_rate_hz=5e6, slots_per_frame=4, symbols_per_slot=28):
    return Numerology(sample_rate_hz, 128, 8, NUM_SUBCHANNELS, 20, symbols_per_slot, slots_per_frame)


def grid_of(numerology, ack_delay_ns, control_latency_ns=0, lead_ns=0):
    return protocol.Grid(
        float(numerology.sample_rate_hz),
        numerology.slot_samples,
        numerology.slots_per_frame,
        ack_delay_ns,
        control_latency_ns,
        0,
        lead_ns,
    )


def timing_of(numerology, **options):
    values = {"ack_delay_ns": 700_000, "control_latency_ns": 1_000_000, "turnaround_ns": 500_000} | options
    return Timing(
        sample_rate_hz=numerology.sample_rate_hz,
        slot_samples=numerology.slot_samples,
        slots_per_frame=numerology.slots_per_frame,
        sounders_per_slot=numerology.sounders_per_slot,
        sounding_samples=SOUNDING_SYMBOLS * numerology.symbol_samples,
        **values,
    )


def level_inputs(num_clients=3, snr_db=16.0, **changes):
    """A round whose links are alike; `changes` replace fields."""
    numerology = grid_numerology()
    links = Links(np.full((num_clients, NUM_SUBCHANNELS), snr_db), 1.0, 1.0, 1.0, 0.1, 0.05)
    values = {
        "timing": timing_of(numerology),
        "steps": link_steps(numerology),
        "plan_ns": 123_456_789,
        "assignment": np.arange(NUM_SUBCHANNELS) % num_clients,
        "uplink": links,
        "downlink": links,
        "uplink_bytes": 1500,
        "broadcast_bytes": 900,
        "unicast_bytes": 800,
        "client_forward": ComputeTime(5e-3, 0.3),
        "client_backward": ComputeTime(4e-3, 0.3),
        "server_forward": ComputeTime(3e-3, 0.1),
        "server_backward": ComputeTime(6e-3, 0.1),
    }
    return RoundInputs(**(values | changes))
