"""Sounding: each round opens with it, so that what was not granted is measured too.

The server sends a known full-band signal, by which clients find its carrier; then each client in
turn sends one, with its carrier corrected, and the server measures every client on every
subchannel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nodes.context import NodeContext
from nodes.timeline import Resource
from radio.drivers.base import RadioConfig
from radio.estimation import SoundingEstimate
from radio.modem import SoundingTurn
from radio.numerology import SOUNDING_SYMBOLS

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
    downlink_psd = np.array([downlink_psd_w_per_hz])
    amplitude = float(context.amplitude(context.name, downlink_psd)[0])
    downlink_sample = times.downlink_slot * numerology.slot_samples
    length = await context.modem.send_sounding(
        downlink_sample, amplitude, silent_until=times.end_slot * numerology.slot_samples
    )
    sounding_ns = numerology.samples_to_ns(downlink_sample + length)
    context.timeline.add(
        "sounding-downlink",
        Resource.TRANSMITTER,
        numerology.samples_to_ns(downlink_sample),
        sounding_ns,
        samples=length,
    )
    first = times.uplink_slot * numerology.slot_samples
    num_samples = (times.end_slot - times.uplink_slot) * numerology.slot_samples
    turns = [
        SoundingTurn(
            _place(context, times, position) - first, float(context.amplitude(client, np.array([psd]))[0])
        )
        for position, (client, psd) in enumerate(zip(clients, client_psd_w_per_hz, strict=True))
    ]
    heard = await context.modem.receive_sounding(
        first, num_samples, turns, expected=frozenset(clients), timeout_s=context.wait_s
    )
    estimates = dict(zip(clients, heard.estimates, strict=True))
    end_ns = numerology.slot_start_ns(times.end_slot)
    context.timeline.add(
        "sounding-uplink", Resource.RECEIVER, numerology.slot_start_ns(times.uplink_slot), end_ns
    )
    return estimates, heard.peak_dbfs, end_ns


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
    sent = float(context.amplitude(server, np.array([downlink_psd_w_per_hz]))[0])
    heard = await context.modem.receive_sounding(
        first,
        num_samples,
        [SoundingTurn(0, sent)],
        expected=frozenset({server}),
        timeout_s=context.wait_s,
        cfo_hz=context.cfo_hz,
    )
    (estimate,) = heard.estimates
    if estimate.detected:
        context.cfo_hz += estimate.cfo_hz
    context.timeline.add(
        "sounding-downlink",
        Resource.RECEIVER,
        numerology.samples_to_ns(first),
        numerology.samples_to_ns(first + num_samples),
        cfo_hz=context.cfo_hz,
    )
    end_sample = times.end_slot * numerology.slot_samples
    amplitude = float(context.amplitude(context.name, np.array([own_psd_w_per_hz]))[0])
    length = await context.modem.send_sounding(
        own_sample, amplitude, silent_until=end_sample, cfo_hz=context.cfo_hz
    )
    context.timeline.add(
        "sounding-uplink",
        Resource.TRANSMITTER,
        numerology.samples_to_ns(own_sample),
        numerology.samples_to_ns(own_sample + length),
        samples=length,
    )
    return estimate, heard.peak_dbfs, numerology.slot_start_ns(times.end_slot)


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
