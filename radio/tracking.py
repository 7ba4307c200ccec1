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
def _pilot_products(first, second, product, moment):  # type: ignore[no-untyped-def]
    """Sum z = second conj(first) over the subcarriers of each place, and z times the distance from its centre."""
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


@kernel
def _mean_places(product, raw, centres, owner_of_used, heard, power, centre, spread):  # type: ignore[no-untyped-def]
    """Power of each subchannel, and centre and mean square width of each transmitter's."""
    weight = np.zeros(centre.shape[0])
    centre[:] = 0.0
    spread[:] = 0.0
    for used in range(power.shape[0]):
        owner = owner_of_used[used]
        total = 0j
        for slot in range(product.shape[0]):
            if heard[slot, used]:
                angle = raw[slot, owner]
                total += product[slot, used] * complex(np.cos(angle), -np.sin(angle))
        # Magnitudes: real parts of what the clock has turned by more than a quarter are negative.
        power[used] = abs(total)
        weight[owner] += power[used]
        centre[owner] += power[used] * centres[used]
    for owner in range(centre.shape[0]):
        centre[owner] /= max(weight[owner], 1e-30)
    for used in range(power.shape[0]):
        owner = owner_of_used[used]
        spread[owner] += power[used] * (centres[used] - centre[owner]) ** 2
    for owner in range(centre.shape[0]):
        spread[owner] /= max(weight[owner], 1e-30)


@kernel
def estimate_motion(  # type: ignore[no-untyped-def]
    first,
    second,
    channel_power,
    noise,
    centres,
    owner_of_used,
    heard,
    angle_prior,
    slope_prior,
    angle,
    slope,
    middle,
):
    """Phase and clock of each transmitter, and the channel between the pilots; see :func:`slot_motion`.

    Parameters
    ----------
    first, second
        complex64 [num_slots, num_used, subcarriers].
    channel_power, noise
        float32 [num_slots, num_used] and [num_used].
    centres, owner_of_used, heard
        float64 [num_used], int64 [num_used], bool [num_slots, num_used].
    angle_prior, slope_prior
        Variances that are expected [rad^2], [rad^2 per subcarrier^2].
    angle, slope, middle
        float32 [num_slots, num_used], float32 [num_used], complex64 like `first`; written.
    """
    num_slots, num_used, width = first.shape
    num_owners = 0
    for used in range(num_used):
        num_owners = max(num_owners, owner_of_used[used] + 1)
    product = np.empty((num_slots, num_used), np.complex64)
    moment = np.empty((num_slots, num_used), np.complex64)
    _pilot_products(first, second, product, moment)
    raw = np.zeros((num_slots, num_owners))
    total_snr = np.zeros((num_slots, num_owners))
    noise_of, count = np.zeros(num_owners), np.zeros(num_owners)
    for used in range(num_used):
        noise_of[owner_of_used[used]] += noise[used]
        count[owner_of_used[used]] += 1.0
    sums = np.zeros(num_owners, np.complex128)
    present = np.zeros(num_owners)  # summed SNR over the slots in which an owner was heard
    for slot in range(num_slots):
        sums[:] = 0.0
        was_heard = np.zeros(num_owners, np.bool_)
        for used in range(num_used):
            owner = owner_of_used[used]
            sums[owner] += product[slot, used]
            total_snr[slot, owner] += channel_power[slot, used]
            was_heard[owner] |= heard[slot, used]
        for owner in range(num_owners):
            raw[slot, owner] = np.arctan2(sums[owner].imag, sums[owner].real)
            # The mean SNR times the resource elements that it was taken over.
            mean_noise = max(noise_of[owner] / count[owner], 1e-20)
            total_snr[slot, owner] = max(total_snr[slot, owner] / (2.0 * mean_noise), 1e-6)
            if was_heard[owner]:
                present[owner] += total_snr[slot, owner]
    power = np.empty(num_used)
    centre, spread = np.empty(num_owners), np.empty(num_owners)
    _mean_places(product, raw, centres, owner_of_used, heard, power, centre, spread)
    within = (width * width - 1) / 12.0  # mean square distance from a subchannel's centre
    found = np.zeros(num_owners)
    numerator, weight = np.empty(num_owners), np.empty(num_owners)
    for _ in range(4):  # of a large phase the sine says too little: what it leaves is found next time
        numerator[:] = 0.0
        weight[:] = 0.0
        for used in range(num_used):
            owner = owner_of_used[used]
            away = centres[used] - centre[owner]
            for slot in range(num_slots):
                if heard[slot, used]:
                    phase = raw[slot, owner] + found[owner] * away
                    turn = complex(np.cos(phase), -np.sin(phase))
                    level, inside = product[slot, used] * turn, moment[slot, used] * turn
                    numerator[owner] += away * level.imag + inside.imag - found[owner] * within * level.real
            weight[owner] += power[used]
        for owner in range(num_owners):
            found[owner] += numerator[owner] / max((spread[owner] + within) * weight[owner], 1e-30)
    for owner in range(num_owners):
        variance = 1.0 / (max(present[owner], 1e-6) * (spread[owner] + within))
        found[owner] *= slope_prior / (slope_prior + variance)
    bend = np.empty(width, np.complex64)
    for used in range(num_used):
        owner = owner_of_used[used]
        slope[used] = found[owner]
        for slot in range(num_slots):
            turned = raw[slot, owner] * angle_prior / (angle_prior + 1.0 / total_snr[slot, owner])
            turned += found[owner] * (centres[used] - centre[owner])
            angle[slot, used] = turned
            half = 0.5 * (turned - found[owner] * 0.5 * (width - 1))
            turn = complex(np.cos(half), np.sin(half))
            step = complex(np.cos(0.5 * found[owner]), np.sin(0.5 * found[owner]))
            for n in range(width):
                bend[n] = complex(np.float32(turn.real), np.float32(turn.imag))
                turn *= step
            a, b, out = first[slot, used], second[slot, used], middle[slot, used]
            for n in range(width):
                c, s = bend[n].real, bend[n].imag
                real = a[n].real * c - a[n].imag * s + b[n].real * c + b[n].imag * s
                imaginary = a[n].real * s + a[n].imag * c - b[n].real * s + b[n].imag * c
                out[n] = complex(np.float32(0.5) * real, np.float32(0.5) * imaginary)


def slot_motion(
    numerology: Numerology,
    estimate: ChannelEstimate,
    noise: NDArray[np.float32],
    centres: NDArray[np.float64],
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
    owner_of_used
        ``[num_used]`` transmitter of each, counted from 0.
    heard
        ``[num_slots, num_used]`` whether the transmitter was present.

    Notes
    -----
    With z_n = second_n conj(first_n), the phase of the sum over all subcarriers of a transmitter has
    the variance 1 / (sum of SNRs), and the slope sum(f_n Im z_n) / sum(f_n^2 Re z_n), with f_n counted
    from the centre of power, the variance 1 / (sum of SNRs f_n^2): linear regression of phases with
    weights |z_n|.
    """
    pilot_a, pilot_b = numerology.pilot_symbols
    distance = numerology.symbol_samples * (pilot_b - pilot_a)
    angle_prior = (2 * np.pi * RESIDUAL_CFO_SPACINGS * distance / numerology.fft_size) ** 2
    slope_prior = (2 * np.pi * RESIDUAL_CLOCK_PPM * 1e-6 * distance / numerology.fft_size) ** 2
    angle = np.empty(estimate.first.shape[:2], np.float32)
    slope = np.empty(len(noise), np.float32)
    middle = np.empty_like(estimate.first)
    estimate_motion(
        estimate.first,
        estimate.second,
        estimate.channel_power,
        noise,
        centres,
        owner_of_used,
        heard,
        angle_prior,
        slope_prior,
        angle,
        slope,
        middle,
    )
    return SlotMotion(middle, angle, slope)


@register_warmup
def _warm_up() -> None:
    pilots = np.ones((1, 1, 4), np.complex64)
    power, place = np.ones((1, 1), np.float32), np.zeros(1, np.int64)
    noise, heard = np.ones(1, np.float32), np.ones((1, 1), np.bool_)
    angle, slope = np.empty((1, 1), np.float32), np.empty(1, np.float32)
    estimate_motion(
        pilots, pilots, power, noise, np.zeros(1), place, heard, 1.0, 1.0, angle, slope, np.empty_like(pilots)
    )
