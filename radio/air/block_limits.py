"""What an air of ``blocks`` fidelity cannot represent, so that it refuses in place of leaving it out."""

from __future__ import annotations

import dataclasses

from radio.air.channel import FadingProfile, LinkChannel, LinkParameters
from radio.air.core import AirParameters, PortParameters

# Fields that this air knows what to do with; any other one must have its default.
_KNOWN = {
    PortParameters: {
        "name",
        "tx_full_scale_dbm",
        "rx_full_scale_dbm",
        "noise_figure_db",
        "converter_bits",
        "muted",
    },
    LinkParameters: {
        "transmitter",
        "receiver",
        "path_loss_db",
        "antenna_gain_db",
        "cfo_hz",
        "timing_offset_samples",
        "fading",
        "attenuation_db",
        "redraw_rounds",
        "clock_realign_samples",  # of a clock that drifts, which is refused
    },
    FadingProfile: {
        "delay_spread_s",
        "num_taps",
        "rician_k_db",
        "doppler_hz",
        "round_correlation",
    },
}


def unsupported_by_blocks(parameters: AirParameters) -> list[str]:
    """What an air of ``blocks`` fidelity cannot represent of these parameters, in words; empty: nothing."""
    found = []
    for port in parameters.ports:
        found += _unknown(port, f"port {port.name}")
    found += [f"interference at {source.receiver}" for source in parameters.interference]
    for link in parameters.links:
        name = f"link {link.transmitter} to {link.receiver}"
        found += _unknown(link, name) + _unknown(link.fading, name)
    numerology = parameters.numerology
    if numerology is None:
        return [*found, "no numerology was given"]
    if parameters.sample_rate_hz != numerology.sample_rate_hz:
        found.append(
            f"the air's {parameters.sample_rate_hz} samples/s, the grid's being {numerology.sample_rate_hz}"
        )
    if parameters.tap_update_samples % numerology.slot_samples:
        found.append(
            f"taps that change every {parameters.tap_update_samples} samples, within a slot of "
            f"{numerology.slot_samples}"
        )
    if found:
        return found
    for link in parameters.links:
        channel = LinkChannel(link, parameters.seed, parameters.sample_rate_hz)
        low, high = channel.min_delay_samples, channel.max_delay_samples
        if low < 0 or high >= numerology.prefix_samples:
            found.append(
                f"link {link.transmitter} to {link.receiver}: echoes {low}..{high} samples late, a prefix of "
                f"{numerology.prefix_samples} holding 0..{numerology.prefix_samples - 1}"
            )
    return found


def _unknown(part: PortParameters | LinkParameters | FadingProfile, where: str) -> list[str]:
    known = next(names for kind, names in _KNOWN.items() if isinstance(part, kind))
    return [
        f"{where}: {item.name} = {getattr(part, item.name)!r}"
        for item in dataclasses.fields(part)
        if item.name not in known and getattr(part, item.name) != _default(item)
    ]


def _default(item: dataclasses.Field[object]) -> object:
    if item.default_factory is not dataclasses.MISSING:
        return item.default_factory()
    return item.default
