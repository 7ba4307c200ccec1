"""Sounding: each round opens with it, so that what was not granted is measured too.

The server sends a known full-band signal, by which clients find its carrier; then each client in
turn sends one, with its carrier corrected, and the server measures every client on every
subchannel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nodes.context import NodeContext
from nodes.timeline import Resource
from radio.drivers.base import RadioConfig
from radio.estimation import SoundingEstimate, estimate_sounding, sounding_grid
from radio.numerology import SOUNDING_SYMBOLS
from radio.ofdm import grid_to_samples, samples_to_grid
from radio.rotation import rotate

TARGET_PEAK_DBFS = -6.0
PEAK_TOLERANCE_DB = 1.5
CLIPPED_STEP_DB = 20.0  # a clipped peak says only that the gain is too high


@dataclass(frozen=True)
class SoundingTimes:
    """Slots of one sounding."""

    downlink_slot: int
    uplink_slot: int
    end_slot: int


def sounding_times(context: NodeContext, start_ns: int, num_clients: int) -> SoundingTimes:
    """When the parts of a sounding that starts at or after an instant lie; equal at all nodes."""
    numerology = context.numerology
    downlink = numerology.next_slot(start_ns)
    ready_ns = numerology.slot_start_ns(downlink + 1) + context.link.turnaround_ns
    uplink = numerology.next_slot(ready_ns)
    return SoundingTimes(downlink, uplink, uplink + numerology.sounding_slots(num_clients))


def _place(context: NodeContext, times: SoundingTimes, position: int) -> int:
    """First sample of the sounding of the client at a position in the turn."""
    numerology = context.numerology
    slot, turn = divmod(position, numerology.sounders_per_slot)
    return (
        times.uplink_slot + slot
    ) * numerology.slot_samples + turn * SOUNDING_SYMBOLS * numerology.symbol_samples


def _peak_dbfs(samples: NDArray[np.complex64]) -> float:
    peak = max(float(np.max(np.abs(samples.real))), float(np.max(np.abs(samples.imag))), 1e-9)
    return float(20 * np.log10(peak))


async def server_sounding(
    context: NodeContext,
    start_ns: int,
    clients: tuple[str, ...],
    client_psd_w_per_hz: tuple[float, ...],
    downlink_psd_w_per_hz: float,
) -> tuple[dict[str, SoundingEstimate], float, int]:
    """Send the downlink sounding, hear the clients in turn.

    Returns
    -------
    estimates
        By client.
    peak_dbfs
        Largest received component [dBFS].
    end_ns
        End of the sounding.
    """
    numerology = context.numerology
    times = sounding_times(context, start_ns, len(clients))
    psd = np.array([downlink_psd_w_per_hz])
    with context.ledger.account("modem"):
        amplitude = float(context.amplitude(context.name, psd)[0])
        burst = grid_to_samples(numerology, sounding_grid(numerology, amplitude))
    downlink_sample = times.downlink_slot * numerology.slot_samples
    await context.radio.transmit(
        burst[None, :], downlink_sample, silent_until=times.end_slot * numerology.slot_samples
    )
    sounding_ns = numerology.samples_to_ns(downlink_sample + len(burst))
    context.timeline.add(
        "sounding-downlink",
        Resource.TRANSMITTER,
        numerology.samples_to_ns(downlink_sample),
        sounding_ns,
        samples=len(burst),
    )
    first = times.uplink_slot * numerology.slot_samples
    num_samples = (times.end_slot - times.uplink_slot) * numerology.slot_samples
    reception = await context.radio.receive(num_samples, first, frozenset(clients), context.wait_s)
    samples = reception.samples[0]
    estimates = {}
    with context.ledger.account("modem"):
        for position, client in enumerate(clients):
            offset = _place(context, times, position) - first
            window = samples[offset : offset + len(burst)]
            sent = np.array([client_psd_w_per_hz[position]])
            estimates[client] = estimate_sounding(
                numerology,
                samples_to_grid(numerology, window),
                float(context.amplitude(client, sent)[0]),
            )
    end_ns = numerology.slot_start_ns(times.end_slot)
    context.timeline.add(
        "sounding-uplink", Resource.RECEIVER, numerology.slot_start_ns(times.uplink_slot), end_ns
    )
    return estimates, _peak_dbfs(samples), end_ns


async def client_sounding(
    context: NodeContext,
    start_ns: int,
    clients: tuple[str, ...],
    own_psd_w_per_hz: float,
    downlink_psd_w_per_hz: float,
) -> tuple[SoundingEstimate, float, int]:
    """Hear the server, correct the carrier, send the own sounding when it is this client's turn.

    Returns
    -------
    estimate, peak_dbfs, end_ns
        As for :func:`server_sounding`; the estimate is of the downlink.
    """
    numerology = context.numerology
    times = sounding_times(context, start_ns, len(clients))
    server = context.setup.server
    first = times.downlink_slot * numerology.slot_samples
    num_samples = SOUNDING_SYMBOLS * numerology.symbol_samples
    position = clients.index(context.name)
    own_sample = _place(context, times, position)
    await context.radio.silent_until(own_sample)
    reception = await context.radio.receive(num_samples, first, frozenset({server}), context.wait_s)
    samples = reception.samples[0]
    rate = numerology.sample_rate_hz
    with context.ledger.account("modem"):
        corrected = rotate(samples, first, -context.cfo_hz / rate)
        psd = np.array([downlink_psd_w_per_hz])
        estimate = estimate_sounding(
            numerology,
            samples_to_grid(numerology, corrected),
            float(context.amplitude(server, psd)[0]),
        )
        if estimate.detected:
            context.cfo_hz += estimate.cfo_hz
        own = np.array([own_psd_w_per_hz])
        amplitude = float(context.amplitude(context.name, own)[0])
        burst = grid_to_samples(numerology, sounding_grid(numerology, amplitude))
        burst = rotate(burst, own_sample, context.cfo_hz / rate, out=burst)
    context.timeline.add(
        "sounding-downlink",
        Resource.RECEIVER,
        numerology.samples_to_ns(first),
        numerology.samples_to_ns(first + num_samples),
        cfo_hz=context.cfo_hz,
    )
    end_sample = times.end_slot * numerology.slot_samples
    await context.radio.transmit(burst[None, :], own_sample, silent_until=end_sample)
    context.timeline.add(
        "sounding-uplink",
        Resource.TRANSMITTER,
        numerology.samples_to_ns(own_sample),
        numerology.samples_to_ns(own_sample + len(burst)),
        samples=len(burst),
    )
    return estimate, _peak_dbfs(samples), numerology.slot_start_ns(times.end_slot)


async def adjust_gain(context: NodeContext, peak_dbfs: float) -> bool:
    """Move the receiver gain so that the peak meets the target; ``True`` when it already does."""
    error_db = TARGET_PEAK_DBFS - peak_dbfs
    if abs(error_db) <= PEAK_TOLERANCE_DB:
        return True
    wanted_db = context.rx_gain_db + (error_db if peak_dbfs < -0.1 else -CLIPPED_STEP_DB)
    accepted = await context.radio.configure(RadioConfig(context.numerology.sample_rate_hz, wanted_db))
    unchanged = accepted.rx_gain_db == context.rx_gain_db
    context.rx_gain_db = accepted.rx_gain_db
    return unchanged  # the device's range ends here: more is not to be had
