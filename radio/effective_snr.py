"""One SNR in place of many: that of an AWGN channel over which a block would fail as often.

A code does not see symbols but the information that their bits carry.  So the SNRs of a block's
subcarriers are turned into the mutual information of a bit-interleaved coded constellation, averaged,
and turned back (Brueninghaus et al., "Link performance models for system level simulations", PIMRC 2005).
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from radio.jit import kernel, register_warmup
from radio.mcs import SCHEMES
from radio.modulation import Modulation, constellation

_FLOOR_DB, _CEILING_DB, _STEP_DB = -25.0, 50.0, 0.5
_NODES = 40  # of the quadrature over the noise


@lru_cache(maxsize=8)
def _information(modulation: Modulation) -> NDArray[np.float64]:
    """Mutual information [bit per bit] at each SNR of the grid, ascending."""
    points = constellation(modulation)
    bits = int(modulation)
    snr = 10.0 ** (np.arange(_FLOOR_DB, _CEILING_DB + _STEP_DB / 2, _STEP_DB) / 10)
    if bits == 1:
        # BPSK uses one dimension, with the whole energy in it.
        levels, labels = np.array([1.0, -1.0]), np.array([[0], [1]])
    else:
        # Gray-labelled square QAM is two PAMs, of which the even bits name one.
        half = bits // 2
        number = np.arange(1 << half)
        spread = np.zeros_like(number)
        for bit in range(half):
            spread |= ((number >> bit) & 1) << (2 * bit + 1)
        levels = np.asarray(points[spread].real, np.float64)
        labels = (number[:, None] >> np.arange(half)) & 1
    node, weight = np.polynomial.hermite_e.hermegauss(_NODES)
    weight = weight / weight.sum()
    result = np.empty(len(snr))
    for index, value in enumerate(snr):
        deviation = np.sqrt(0.5 / value)
        received = levels[:, None] + deviation * node  # [sent, node]
        metric = -((received[:, :, None] - levels) ** 2) / (2 * deviation**2)  # [sent, node, candidate]
        metric -= metric.max(axis=2, keepdims=True)
        likelihood = np.exp(metric)
        total = likelihood.sum(axis=2)
        lost = 0.0
        for bit in range(labels.shape[1]):
            same = labels[:, bit][:, None] == labels[:, bit]  # [sent, candidate]
            agreeing = np.einsum("snc,sc->sn", likelihood, same.astype(np.float64))
            lost += float(np.mean(np.log2(total / np.maximum(agreeing, 1e-300)) @ weight))
        result[index] = 1.0 - lost / labels.shape[1]
    # Strictly ascending even where rounding has it flat, so that it can be turned around.
    result = np.maximum.accumulate(np.maximum(result, 0.0)) + 1e-12 * np.arange(len(snr))
    result.flags.writeable = False
    return result


@lru_cache(maxsize=1)
def _tables() -> NDArray[np.float64]:
    """:func:`_information` by bits per symbol; rows of other counts are zero."""
    tables = np.zeros((max(Modulation) + 1, len(_information(Modulation.QPSK))))
    for modulation in Modulation:
        tables[modulation] = _information(modulation)
    tables.flags.writeable = False
    return tables


def effective_snr_db(bits_per_symbol: NDArray[np.int64], snr: NDArray[np.floating]) -> NDArray[np.float64]:
    """SNR [dB] of AWGN with the mean mutual information of several SNRs.

    Parameters
    ----------
    bits_per_symbol
        ``[num_blocks]``, values of :class:`~radio.modulation.Modulation`.
    snr
        ``[num_blocks, num_symbols]``, linear.

    Returns
    -------
    ``[num_blocks]``
        Within -25 dB and 50 dB.
    """
    tables = _tables()
    snr_db = 10.0 * np.log10(np.maximum(snr, 1e-9))
    position = np.clip((snr_db - _FLOOR_DB) / _STEP_DB, 0, tables.shape[1] - 1.001)
    below = position.astype(np.int64)
    share = position - below
    row = bits_per_symbol[:, None]
    lower = tables[row, below]
    information = (lower + share * (tables[row, below + 1] - lower)).mean(axis=-1)
    return _snr_of(bits_per_symbol, information, snr_db.mean(axis=-1))


def _snr_of(
    bits_per_symbol: NDArray[np.int64], information: NDArray[np.float64], mean_db: NDArray[np.float64]
) -> NDArray[np.float64]:
    """SNR [dB] at which the constellations carry some information; ``mean_db`` where it is all of it."""
    tables = _tables()
    grid = _FLOOR_DB + _STEP_DB * np.arange(tables.shape[1])
    result = np.empty(len(information))
    for bits in np.unique(bits_per_symbol).tolist():
        chosen = bits_per_symbol == bits
        result[chosen] = np.interp(information[chosen], tables[bits], grid)
    return np.where(information >= 1.0 - 1e-9, np.clip(mean_db, _FLOOR_DB, _CEILING_DB), result)


# Share of an amplitude error's power that disturbs like noise: it moves the borders between amplitudes
# and leaves signs alone.  Fitted to the block errors of the modem over AWGN at 10 % and 1 %
# (python -m calibration.block_errors); what is left then is in that script's table.
AMPLITUDE_SHARE: dict[int, float] = {
    Modulation.BPSK: 0.0,
    Modulation.QPSK: 0.0,
    Modulation.QAM16: 0.42,
    Modulation.QAM64: 0.65,
    Modulation.QAM256: 0.83,
    Modulation.QAM1024: 0.92,
}
# Soft bits are weighted by the estimate in place of the channel.  Where a code works with weak soft bits
# the loss is that of a maximum ratio combiner with these weights, and it fades with 1 / (1 + 4 SNR).
_WEIGHT_FADE = 4.0

_BITS = np.array([int(mcs.modulation) for mcs in SCHEMES], np.int64)
_SHARES = np.array([AMPLITUDE_SHARE.get(bits, 0.0) for bits in range(max(Modulation) + 1)])


class BlockQuality(NamedTuple):
    """What a receiver's estimate makes of blocks.

    Attributes
    ----------
    effective_snr_db
        ``[num_blocks]`` SNR of AWGN with a known channel over which a block would do as well.
    error_power
        ``[num_blocks]`` mean squared error of an equalised symbol.
    """

    effective_snr_db: NDArray[np.float64]
    error_power: NDArray[np.float64]


@kernel
def _quality(  # type: ignore[no-untyped-def]
    truth, middle, variance, slip, positions, bits, shares, tables, out
):
    """Write information, ratio of the combiner, mean SNR [dB] and error power of each block."""
    width = truth.shape[1]
    last = tables.shape[1] - 1.001
    once, twice = 1.0, 1.0
    known_slip = 0.0
    for block in range(truth.shape[0]):
        if slip[block] != known_slip or block == 0:
            known_slip = slip[block]
            once, twice = 0.0, 0.0
            for index in range(positions.shape[0]):
                once += np.cos(known_slip * positions[index])
                twice += np.cos(2.0 * known_slip * positions[index])
            once /= positions.shape[0]
            twice /= positions.shape[0]
        share = shares[bits[block]]
        table = tables[bits[block]]
        across = 1.0 if bits[block] > 1 else 0.0
        information, mean_db, error = 0.0, 0.0, 0.0
        sum_mean, sum_spread, sum_best = 0.0, 0.0, 0.0
        for n in range(width):
            h_real, h_imaginary = np.float64(truth[block, n].real), np.float64(truth[block, n].imag)
            m_real, m_imaginary = np.float64(middle[block, n].real), np.float64(middle[block, n].imag)
            taken = max(m_real * m_real + m_imaginary * m_imaginary, 1e-30)
            real = (h_real * m_real + h_imaginary * m_imaginary) / taken
            imaginary = (h_imaginary * m_real - h_real * m_imaginary) / taken
            power = real * real + imaginary * imaginary
            cosine = (real * real - imaginary * imaginary) * twice
            own = max((power + cosine) / 2, 1e-12)
            other = max((power - cosine) / 2, 0.0)
            scaling = max(max(1.0 + power - 2.0 * real * once, 0.0) - other, 0.0)
            plain = variance[block, n] / taken
            error += plain + other + scaling
            noise = max(plain + share * scaling + across * other, 1e-300)
            snr_db = 10.0 * ((1.0 - share) * np.log10(own) - np.log10(noise))
            mean_db += max(snr_db, -90.0)
            position = min(max((snr_db - _FLOOR_DB) / _STEP_DB, 0.0), last)
            below = int(position)
            information += table[below] + (position - below) * (table[below + 1] - table[below])
            mean, spread = taken * np.sqrt(own), taken * taken * noise
            sum_mean += mean
            sum_spread += spread
            sum_best += mean * mean / spread
        out[0, block] = information / width
        out[1, block] = sum_mean * sum_mean / (sum_spread * sum_best)
        out[2, block] = mean_db / width
        out[3, block] = error / width


def block_quality(
    truth: NDArray[np.complex64],
    middle: NDArray[np.complex64],
    variance: NDArray[np.float32],
    slip: NDArray[np.float64],
    positions: NDArray[np.float64],
    mcs_index: NDArray[np.int64],
) -> BlockQuality:
    """Quality of blocks.

    Parameters
    ----------
    truth, middle
        ``[num_blocks, width]`` channel half-way between the pilots, and what the receiver takes for it.
    variance
        ``[num_blocks, width]`` noise and interference.
    slip
        ``[num_blocks]`` phase from pilot to pilot that the receiver misses [rad].
    positions
        ``[num_data_symbols]`` distance of the data symbols from the middle, in distances of the pilots.
    mcs_index
        ``[num_blocks]``.

    Notes
    -----
    With y = h x + n and an estimate h' the receiver has y / h' = g x + n / h', g = h / h'.  The imaginary
    part of g brings the other axis' symbol in as noise, the real part scales the own axis.
    """
    bits = _BITS[mcs_index]
    found = np.empty((4, len(bits)))
    _quality(
        np.require(truth, np.complex64, ("C", "W")),
        np.require(middle, np.complex64, ("C", "W")),
        np.require(variance, np.float32, ("C", "W")),
        slip,
        positions,
        bits,
        _SHARES,
        _tables(),
        found,
    )
    information, ratio, mean_db, error = found
    return _with_weights(_snr_of(bits, information, mean_db), ratio, error)


def _with_weights(
    snr_db: NDArray[np.float64], ratio: NDArray[np.float64], error: NDArray[np.float64]
) -> BlockQuality:
    fade = 1 + _WEIGHT_FADE * 10 ** (snr_db / 10)
    return BlockQuality(snr_db + 10 * np.log10(ratio) / fade, error)


def block_quality_reference(
    truth: NDArray[np.complex64],
    middle: NDArray[np.complex64],
    variance: NDArray[np.float32],
    slip: NDArray[np.float64],
    positions: NDArray[np.float64],
    mcs_index: NDArray[np.int64],
) -> BlockQuality:
    """The same in plain NumPy."""
    bits = _BITS[mcs_index]
    share = _SHARES[bits][:, None]
    taken = middle.astype(np.complex128)
    taken_power = np.maximum(np.abs(taken) ** 2, 1e-30)
    ratio = truth * taken.conj() / taken_power
    turned = slip[:, None] * positions
    # Positions lie symmetrically around the middle: odd powers of the slip cancel.
    once = np.cos(turned).mean(axis=1)[:, None]
    twice = np.cos(2 * turned).mean(axis=1)[:, None]
    power = np.abs(ratio) ** 2
    cosine = (ratio.real**2 - ratio.imag**2) * twice  # |g|^2 cos 2 arg g
    own = np.maximum((power + cosine) / 2, 1e-12)  # Re(g)^2, averaged over the symbols
    other = np.maximum((power - cosine) / 2, 0.0)  # Im(g)^2
    mismatch = np.maximum(1 + power - 2 * ratio.real * once, 0.0)  # |g - 1|^2
    scaling = np.maximum(mismatch - other, 0.0)  # (Re(g) - 1)^2
    plain = variance / taken_power
    # BPSK has no other axis that could disturb.
    noise = np.maximum(plain + share * scaling + (bits > 1)[:, None] * other, 1e-300)
    snr_db = effective_snr_db(bits, own ** (1 - share) / noise)
    # A combiner that weighs with w where m / v is right has the SNR (sum m)^2 / sum v.
    mean, spread = taken_power * np.sqrt(own), taken_power**2 * noise
    combined = mean.sum(axis=1) ** 2 / (spread.sum(axis=1) * (mean**2 / spread).sum(axis=1))
    return _with_weights(snr_db, combined, (plain + other + scaling).mean(axis=1))


@register_warmup
def _warm_up() -> None:
    ones = np.ones((1, 2), np.complex64)
    block_quality(ones, ones, np.ones((1, 2), np.float32), np.zeros(1), np.zeros(1), np.zeros(1, np.int64))
