"""One SNR in place of many: that of an AWGN channel over which a block would fail as often.

A code does not see symbols but the information that their bits carry.  So the SNRs of a block's
subcarriers are turned into the mutual information of a bit-interleaved coded constellation, averaged,
and turned back (Brueninghaus et al., "Link performance models for system level simulations", PIMRC 2005).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from radio.mcs import mcs_table
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


def effective_snr_db(modulation: Modulation, snr: NDArray[np.floating]) -> NDArray[np.float64]:
    """SNR [dB] of AWGN with the mean mutual information of several SNRs.

    Parameters
    ----------
    snr
        ``[..., num_symbols]``, linear, of symbols in one block.

    Returns
    -------
    ``[...]``
        Within -25 dB and 50 dB.
    """
    table = _information(modulation)
    snr_db = 10.0 * np.log10(np.maximum(snr, 1e-9))
    position = np.clip((snr_db - _FLOOR_DB) / _STEP_DB, 0, len(table) - 1.001)
    below = position.astype(np.int64)
    share = position - below
    information = ((1 - share) * table[below] + share * table[below + 1]).mean(axis=-1)
    grid = _FLOOR_DB + _STEP_DB * np.arange(len(table))
    saturated = information >= 1.0 - 1e-9
    result = np.interp(information, table, grid)
    if saturated.any():
        # Every bit is certain: the mean of the logarithms is as good an answer as any.
        result = np.where(saturated, np.clip(snr_db.mean(axis=-1), _FLOOR_DB, _CEILING_DB), result)
    return np.asarray(result, np.float64)


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
    """

    def __init__(
        self,
        truth: NDArray[np.complex128],
        middle: NDArray[np.complex64],
        variance: NDArray[np.float64],
        slip: NDArray[np.float64],
        positions: NDArray[np.float64],
    ) -> None:
        self._variance = variance
        self._product = truth * middle.conj()
        self._truth_power = np.abs(truth) ** 2
        self._taken_power = np.maximum(np.abs(middle.astype(np.complex128)) ** 2, 1e-30)
        turned = slip[:, None] * positions
        # Positions lie symmetrically around the middle: odd powers of the slip cancel.
        self._once = np.cos(turned).mean(axis=1)[:, None]
        self._twice = np.cos(2 * turned).mean(axis=1)[:, None]

    def error_power(self) -> NDArray[np.float64]:
        """``[num_blocks]`` mean squared error of an equalised symbol."""
        return np.asarray(self._error().mean(axis=1))

    def _error(self) -> NDArray[np.float64]:
        """y / h' - x with y = h x + n: |h - h'|^2 / |h'|^2 + noise / |h'|^2, averaged over the symbols."""
        mismatch = self._truth_power + self._taken_power - 2 * self._product.real * self._once
        return np.asarray((np.maximum(mismatch, 0.0) + self._variance) / self._taken_power)

    def effective_snr_db(self, mcs_index: NDArray[np.int64]) -> NDArray[np.float64]:
        """``[num_blocks]`` SNR of AWGN with a known channel over which a block would do as well."""
        result = np.empty(len(mcs_index))
        modulations = np.array([int(mcs.modulation) for mcs in mcs_table().schemes])[mcs_index]
        for bits in np.unique(modulations).tolist():
            chosen = modulations == bits
            snr = self._phase_snr(chosen, bits) if bits <= Modulation.QPSK else 1 / self._error()[chosen]
            result[chosen] = effective_snr_db(Modulation(bits), snr)
        return result

    def _phase_snr(self, chosen: NDArray[np.bool_], bits: int) -> NDArray[np.float64]:
        """SNR where only the angle carries bits: an error of the amplitude scales all soft bits alike.

        A soft bit is the part of y conj(h') along its axis.  With z = h conj(h') that is Re(z) of its own
        bit, Im(z) of the other axis' bit, if there is one, and noise of |h'|^2 times that of y.
        """
        square = np.abs(self._product[chosen]) ** 2
        cosine = np.cos(2 * np.angle(self._product[chosen])) * self._twice[chosen]
        own, other = square * (1 + cosine) / 2, square * (1 - cosine) / 2
        noise = self._taken_power[chosen] * self._variance[chosen]
        if bits > 1:
            noise = noise + other
        return np.asarray(own / np.maximum(noise, 1e-300))
