"""One SNR in place of many: that of an AWGN channel over which a block would fail as often.

A code does not see symbols but the information that their bits carry.  So the SNRs of a block's
subcarriers are turned into the mutual information of a bit-interleaved coded constellation, averaged,
and turned back (Brueninghaus et al., "Link performance models for system level simulations", PIMRC 2005).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

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
    grid = _FLOOR_DB + _STEP_DB * np.arange(tables.shape[1])
    result = np.empty(len(information))
    for bits in np.unique(bits_per_symbol).tolist():
        chosen = bits_per_symbol == bits
        result[chosen] = np.interp(information[chosen], tables[bits], grid)
    saturated = information >= 1.0 - 1e-9
    if saturated.any():
        # Every bit is certain: the mean of the logarithms is as good an answer as any.
        result[saturated] = np.clip(snr_db[saturated].mean(axis=-1), _FLOOR_DB, _CEILING_DB)
    return result


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


class BlockQuality:
    """Equalised symbols of blocks against what was sent.

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

    Notes
    -----
    With y = h x + n and an estimate h' the receiver has y / h' = g x + n / h', g = h / h'.  The imaginary
    part of g brings the other axis' symbol in as noise, the real part scales the own axis.
    """

    def __init__(
        self,
        truth: NDArray[np.complex128],
        middle: NDArray[np.complex64],
        variance: NDArray[np.float64],
        slip: NDArray[np.float64],
        positions: NDArray[np.float64],
    ) -> None:
        taken = middle.astype(np.complex128)
        self._taken_power = np.maximum(np.abs(taken) ** 2, 1e-30)
        ratio = truth * taken.conj() / self._taken_power
        turned = slip[:, None] * positions
        # Positions lie symmetrically around the middle: odd powers of the slip cancel.
        once = np.cos(turned).mean(axis=1)[:, None]
        twice = np.cos(2 * turned).mean(axis=1)[:, None]
        power = np.abs(ratio) ** 2
        cosine = (ratio.real**2 - ratio.imag**2) * twice  # |g|^2 cos 2 arg g
        self._own = np.maximum((power + cosine) / 2, 1e-12)  # Re(g)^2, averaged over the symbols
        self._other = np.maximum((power - cosine) / 2, 0.0)  # Im(g)^2
        mismatch = np.maximum(1 + power - 2 * ratio.real * once, 0.0)  # |g - 1|^2
        self._scaling = np.maximum(mismatch - self._other, 0.0)  # (Re(g) - 1)^2
        self._noise = variance / self._taken_power
        self._weight = self._taken_power * np.sqrt(self._own)

    def error_power(self) -> NDArray[np.float64]:
        """``[num_blocks]`` mean squared error of an equalised symbol."""
        return np.asarray((self._noise + self._other + self._scaling).mean(axis=1))

    def effective_snr_db(self, mcs_index: NDArray[np.int64]) -> NDArray[np.float64]:
        """``[num_blocks]`` SNR of AWGN with a known channel over which a block would do as well."""
        bits = _BITS[mcs_index]
        share = _SHARES[bits][:, None]
        # BPSK has no other axis that could disturb.
        noise = self._noise + share * self._scaling + (bits > 1)[:, None] * self._other
        snr = self._own ** (1 - share) / np.maximum(noise, 1e-300)
        snr_db = effective_snr_db(bits, snr)
        # A combiner that weighs with w where m / v is right has the SNR (sum m)^2 / sum v.
        mean, spread = self._weight, self._taken_power**2 * noise
        combined = mean.sum(axis=1) ** 2 / (spread.sum(axis=1) * (mean**2 / spread).sum(axis=1))
        return np.asarray(snr_db + 10 * np.log10(combined) / (1 + _WEIGHT_FADE * 10 ** (snr_db / 10)))
