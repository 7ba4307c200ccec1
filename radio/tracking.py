"""What moves within a slot: the carrier's phase and the sampling clock, from its two pilot symbols.

Between the pilots the carrier turns every subcarrier of a transmitter by the same angle; a sampling
clock that is off moves the symbols in time, which turns subcarrier m by an angle that is linear in m.
A transmitter's subchannels share both.  The angle is estimated in each slot; the slope is that of an
oscillator, so one value holds for a whole window.  Both are shrunk towards zero by what they are
expected to be after sounding, or weak transmitters would be turned by their own estimation error.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from radio.estimation import ChannelEstimate
from radio.jit import kernel, register_warmup
from radio.numerology import Numerology

# Priors: the frequency offset left after sounding, as a fraction of the subcarrier spacing, and the
# sampling clock's.  The latter is that of radios which do not share a clock but correct theirs.
RESIDUAL_CFO_SPACINGS = 0.003
RESIDUAL_CLOCK_PPM = 5.0


class SlotMotion(NamedTuple):
    """How the channel of some blocks turns within their slots.

    Attributes
    ----------
    middle
        complex64 ``[num_slots, num_used, subcarriers]``: the channel half-way between the pilots.
    angle
        float32 ``[num_slots, num_used]``: phase [rad] from one pilot to the other at the subchannel's centre.
    slope
        float32 ``[num_used]``: by how much that phase grows per subcarrier [rad].
    """

    middle: NDArray[np.complex64]
    angle: NDArray[np.float32]
    slope: NDArray[np.float32]


@kernel
def pilot_products(first, second, product, moment):  # type: ignore[no-untyped-def]
    """Sum second * conj(first) over the subcarriers of each place, plainly and weighted.

    Parameters
    ----------
    first, second
        complex64 [num_slots, num_used, subcarriers].
    product, moment
        complex64 [num_slots, num_used], written: the sum, and the sum of terms times their
        subcarrier's distance from the subchannel's centre.
    """
    width = first.shape[2]
    centre = np.float32(0.5 * (width - 1))
    for slot in range(first.shape[0]):
        for used in range(first.shape[1]):
            a, b = first[slot, used], second[slot, used]
            real = imaginary = np.float32(0.0)
            moment_real = moment_imaginary = np.float32(0.0)
            for n in range(width):
                x = b[n].real * a[n].real + b[n].imag * a[n].imag
                y = b[n].imag * a[n].real - b[n].real * a[n].imag
                away = np.float32(n) - centre
                real += x
                imaginary += y
                moment_real += away * x
                moment_imaginary += away * y
            product[slot, used] = complex(real, imaginary)
            moment[slot, used] = complex(moment_real, moment_imaginary)


def slot_motion(
    numerology: Numerology,
    estimate: ChannelEstimate,
    noise: NDArray[np.float32],
    centres: NDArray[np.float64],
    members: NDArray[np.float32],
    owner_of_used: NDArray[np.int64],
    heard: NDArray[np.bool_],
) -> SlotMotion:
    """Phase and clock of each transmitter over a window, and the channel between the pilots.

    Parameters
    ----------
    noise
        ``[num_used]`` noise power per subcarrier.
    centres
        ``[num_used]`` signed subcarrier number of each subchannel's centre.
    members
        ``[num_owners, num_used]``, 1 where a subchannel is of a transmitter, else 0.
    owner_of_used
        ``[num_used]`` row of each in ``members``.
    heard
        ``[num_slots, num_used]`` whether the transmitter was present.

    Notes
    -----
    With z_n = second_n conj(first_n), the phase of the sum over all subcarriers of a transmitter has
    the variance 1 / (sum of SNRs), and the slope sum(f_n Im z_n) / sum(f_n^2 Re z_n), with f_n counted
    from the centre of power, the variance 1 / (sum of SNRs f_n^2): linear regression of phases with
    weights |z_n|.
    """
    first, second = estimate.first, estimate.second
    pilot_a, pilot_b = numerology.pilot_symbols
    product = np.empty(first.shape[:2], np.complex64)
    moment = np.empty_like(product)
    pilot_products(first, second, product, moment)

    symbol_spacings = numerology.symbol_samples / numerology.fft_size
    angle_prior = (2 * np.pi * RESIDUAL_CFO_SPACINGS * symbol_spacings * (pilot_b - pilot_a)) ** 2
    by_owner = product @ members.T
    raw = np.angle(by_owner)
    mean_noise = np.maximum(members @ noise / members.sum(axis=1), 1e-20)
    # The mean SNR times the resource elements that it was taken over.
    total_snr = np.maximum((estimate.channel_power @ members.T) / (2 * mean_noise), 1e-6)
    slope_by_owner, centre_by_owner = _slopes(
        numerology, product, moment, raw, total_snr, centres, members, owner_of_used, heard
    )
    angle_by_owner = raw * angle_prior / (angle_prior + 1.0 / total_snr)
    away = centres - centre_by_owner[owner_of_used]
    slope = slope_by_owner[owner_of_used]
    angle = (angle_by_owner[:, owner_of_used] + slope * away).astype(np.float32)
    half = np.exp(0.5j * angle).astype(np.complex64)[:, :, None]
    if np.any(slope):
        width = numerology.subcarriers_per_subchannel
        bend = np.exp(0.5j * slope[:, None] * (np.arange(width) - (width - 1) / 2)).astype(np.complex64)
        half = half * bend
    middle = (first * half + second * half.conj()) * np.float32(0.5)
    return SlotMotion(np.asarray(middle, np.complex64), angle, slope.astype(np.float32))


def _slopes(
    numerology: Numerology,
    product: NDArray[np.complex64],
    moment: NDArray[np.complex64],
    raw: NDArray[np.floating],
    total_snr: NDArray[np.floating],
    centres: NDArray[np.float64],
    members: NDArray[np.float32],
    owner_of_used: NDArray[np.int64],
    heard: NDArray[np.bool_],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Slope [rad per subcarrier] and centre of power [subcarrier] of each transmitter, ``[num_owners]``."""
    pilot_a, pilot_b = numerology.pilot_symbols
    width = numerology.subcarriers_per_subchannel
    drift_samples = RESIDUAL_CLOCK_PPM * 1e-6 * numerology.symbol_samples * (pilot_b - pilot_a)
    prior = (2 * np.pi * drift_samples / numerology.fft_size) ** 2
    # Weights are magnitudes: real parts of what the clock has turned by more than a quarter are negative.
    power = np.abs((product * np.exp(-1j * raw)[:, owner_of_used] * heard).sum(axis=0))
    weight = np.maximum(members @ power, 1e-30)
    centre = members @ (power * centres) / weight
    away = centres - centre[owner_of_used]
    within = (width**2 - 1) / 12  # mean square distance from a subchannel's centre
    spread = members @ (power * (away**2 + within)) / weight
    found = np.zeros(len(members))
    for _ in range(4):  # of a large phase the sine says too little: what it leaves is found next time
        bent = np.exp(-1j * (raw[:, owner_of_used] + found[owner_of_used] * away)) * heard
        level = (product * bent).sum(axis=0)
        inside = (moment * bent).imag.sum(axis=0) - found[owner_of_used] * within * level.real
        found = found + members @ (away * level.imag + inside) / np.maximum(spread * weight, 1e-30)
    owner_heard = (heard @ members.T) > 0
    snr = np.maximum((total_snr * owner_heard).sum(axis=0), 1e-6)
    variance = 1.0 / (snr * np.maximum(spread, 1e-9))
    return found * prior / (prior + variance), centre


@register_warmup
def _warm_up() -> None:
    pilots = np.ones((1, 1, 4), np.complex64)
    pilot_products(pilots, pilots, np.empty((1, 1), np.complex64), np.empty((1, 1), np.complex64))
