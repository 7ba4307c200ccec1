"""Whole turns of the carrier between the pilots of a slot, found from its data.

Pilots tell the phase between them up to whole turns.  Where they lie so far apart that a carrier
offset of :data:`MAX_CFO_SPACINGS` turns by more than half a turn, data decide: symbols that are turned
back by the right number of turns lie around the points of their constellation.  An offset belongs to
an oscillator, so one number of turns holds for all slots of a window.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import special

from radio.grid import equalise_blocks
from radio.mcs import mcs_table
from radio.modulation import Modulation, constellation
from radio.numerology import Numerology
from radio.tracking import SlotMotion

# Two percent of the spacing is what transmitters may be off after their correction, and some room.
MAX_CFO_SPACINGS = 0.022
# Log-likelihood by which data must speak for more turns [nat]: after a good sounding there are none.
PENALTY = 8.0
TESTED_SUBCHANNELS = 4  # of each transmitter, the strongest
SYMBOL_STEP = 2  # one data symbol in so many is looked at
SUMMED_LEVELS = 4  # of an axis: with more the nearest alone is counted


def possible_turns(numerology: Numerology) -> int:
    """Whole turns between the pilots that the largest offset may make, either way."""
    pilot_a, pilot_b = numerology.pilot_symbols
    turns = MAX_CFO_SPACINGS * numerology.symbol_samples * (pilot_b - pilot_a) / numerology.fft_size
    return int(np.floor(turns + 0.5))


def resolve_turns(
    numerology: Numerology,
    spectrum_of: Callable[[int], NDArray[np.complex64]],
    subchannels: NDArray[np.int64],
    mcs_index: NDArray[np.int64],
    owner_of_used: NDArray[np.int64],
    heard: NDArray[np.bool_],
    noise: NDArray[np.float32],
    motion: SlotMotion,
) -> SlotMotion:
    """The motion with whole turns added where the data say so.

    Parameters
    ----------
    spectrum_of
        All FFT bins of a slot, ``[symbols_per_slot, fft_size]``.
    subchannels, mcs_index
        ``[num_used]`` number and MCS of each used subchannel.
    owner_of_used, heard, noise
        As for :func:`radio.tracking.slot_motion`.
    """
    most = possible_turns(numerology)
    if most == 0:
        return motion
    middle, angle = motion.middle.copy(), motion.angle.copy()
    spectra: dict[int, NDArray[np.complex64]] = {}
    power = np.sum(np.abs(middle) ** 2, axis=2) * heard
    for owner in range(int(owner_of_used.max()) + 1):
        own = np.flatnonzero(owner_of_used == owner)
        slot = int(np.argmax(power[:, own].sum(axis=1)))
        if not heard[slot, own].any():
            continue
        # One oscillator, one phase: slots whose phases lie on both sides of half a turn agree first.
        reference = angle[slot, own[0]]
        to_reference = np.round((reference - angle[:, own[0]]) / (2 * np.pi))
        tested = own[np.argsort(-power[slot, own], kind="stable")[:TESTED_SUBCHANNELS]]
        if slot not in spectra:
            spectra[slot] = spectrum_of(slot)
        scores = {}
        for turns in range(-most, most + 1):
            if abs(turns + reference / (2 * np.pi)) <= most + 0.5:
                sign = np.float32(-1.0 if turns % 2 else 1.0)
                scores[turns] = _agreement(
                    numerology,
                    spectra[slot],
                    subchannels[tested],
                    mcs_index[tested],
                    middle[slot, tested] * sign,
                    (angle[slot, tested] + 2 * np.pi * turns).astype(np.float32),
                    noise[tested],
                ) - (PENALTY if turns else 0.0)
        best = max(scores, key=lambda turns: (scores[turns], -abs(turns)))
        added = to_reference + best
        angle[:, own] += (2 * np.pi * added[:, None]).astype(np.float32)
        middle[:, own] *= np.where(added % 2, np.float32(-1.0), np.float32(1.0))[:, None, None]
    return SlotMotion(middle, angle, motion.slope)


def _agreement(
    numerology: Numerology,
    spectrum: NDArray[np.complex64],
    subchannels: NDArray[np.int64],
    mcs_index: NDArray[np.int64],
    middle: NDArray[np.complex64],
    angle: NDArray[np.float32],
    noise: NDArray[np.float32],
) -> float:
    """Log-likelihood of some data symbols up to a constant [nat]."""
    pilot_a, pilot_b = numerology.pilot_symbols
    data_symbols = numerology.data_symbols[::SYMBOL_STEP].copy()
    positions = (data_symbols - (pilot_a + pilot_b) / 2) / (pilot_b - pilot_a)
    symbols = np.empty(
        (len(subchannels), len(data_symbols) * numerology.subcarriers_per_subchannel), np.complex64
    )
    variance = np.empty(symbols.shape, np.float32)
    rows = np.zeros(len(subchannels), np.int64)
    equalise_blocks(
        numerology.grid_shape,
        rows,
        subchannels,
        data_symbols,
        positions,
        middle,
        angle,
        noise,
        spectrum,
        symbols,
        variance,
    )
    total = 0.0
    for mcs in np.unique(mcs_index).tolist():
        chosen = mcs_index == mcs
        total += log_likelihood(mcs_table()[mcs].modulation, symbols[chosen], variance[chosen])
    return total


def log_likelihood(
    modulation: Modulation, symbols: NDArray[np.complex64], variance: NDArray[np.float32]
) -> float:
    """Logarithm of the likelihood of symbols whose bits are not known, up to a constant [nat].

    Parameters
    ----------
    symbols, variance
        ``[...]``, equalised, and their noise power.

    Notes
    -----
    log of the mean over the points x of exp(-|y - x|^2 / N0), axis by axis where both carry bits of
    their own.  Of many levels only the nearest counts: they are used at a high SNR.
    """
    points = constellation(modulation)
    if modulation is Modulation.BPSK:
        distance = np.abs(symbols[..., None] - points) ** 2 / variance[..., None]
        return float(special.logsumexp(-distance, axis=-1).sum())
    levels = np.unique(points.real)
    total = 0.0
    for axis in (symbols.real, symbols.imag):
        if len(levels) > SUMMED_LEVELS:
            spacing = levels[1] - levels[0]
            nearest = np.clip(np.round((axis - levels[0]) / spacing), 0, len(levels) - 1)
            total -= float(((axis - levels[0] - nearest * spacing) ** 2 / variance).sum())
        else:
            distance = (axis[..., None] - levels) ** 2 / variance[..., None]
            total += float(special.logsumexp(-distance, axis=-1).sum())
    return total
