"""Resource grid <-> samples: unitary OFDM with a cyclic prefix.

With the unitary FFT the mean power of a symbol's samples is the summed power of its subcarriers
divided by the FFT size, so a subchannel at PSD p contributes p B_k / P_fs when each of its
subcarriers has magnitude sqrt(p f_s / P_fs).
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from radio.numerology import Numerology


def grid_to_samples(numerology: Numerology, grid: NDArray[np.complex64]) -> NDArray[np.complex64]:
    """Samples of consecutive OFDM symbols.

    Parameters
    ----------
    grid
        ``[num_symbols, num_subcarriers]``, lowest frequency first.

    Returns
    -------
    ``[num_symbols * symbol_samples]``, each symbol preceded by its cyclic prefix.
    """
    num_symbols = grid.shape[0]
    spectrum = np.zeros((num_symbols, numerology.fft_size), np.complex64)
    spectrum[:, numerology.fft_bins] = grid
    useful = scipy.fft.ifft(spectrum, axis=1, norm="ortho", overwrite_x=True)
    samples = np.empty((num_symbols, numerology.symbol_samples), np.complex64)
    samples[:, numerology.prefix_samples :] = useful
    samples[:, : numerology.prefix_samples] = useful[:, -numerology.prefix_samples :]
    return samples.reshape(-1)


def samples_to_grid(numerology: Numerology, samples: NDArray[np.complex64]) -> NDArray[np.complex64]:
    """Grid of consecutive OFDM symbols whose prefixes start at the first sample.

    Parameters
    ----------
    samples
        ``[num_symbols * symbol_samples]``.

    Returns
    -------
    ``[num_symbols, num_subcarriers]``.
    """
    symbols = samples.reshape(-1, numerology.symbol_samples)[:, numerology.prefix_samples :]
    spectrum = scipy.fft.fft(symbols, axis=1, norm="ortho")
    return np.asarray(spectrum[:, numerology.fft_bins], np.complex64)


@lru_cache(maxsize=64)
def reference_symbols(purpose: str, num_symbols: int, num_subcarriers: int) -> NDArray[np.complex64]:
    """Known QPSK symbols ``[num_symbols, num_subcarriers]`` of unit magnitude.

    Taken from SHAKE-256, so that boards with other library versions send the same ones.
    """
    key = f"{purpose}/{num_symbols}/{num_subcarriers}".encode()
    digest = hashlib.shake_256(key).digest(num_symbols * num_subcarriers)
    quadrant = np.frombuffer(digest, np.uint8).reshape(num_symbols, num_subcarriers) & 3
    symbols = np.exp(1j * (np.pi / 4 + np.pi / 2 * quadrant)).astype(np.complex64)
    symbols.setflags(write=False)
    return symbols


def subcarrier_amplitude(
    psd_w_per_hz: NDArray[np.float64], sample_rate_hz: float, full_scale_dbm: float
) -> NDArray[np.float64]:
    """Magnitude of each subcarrier that radiates a PSD [W/Hz] from a port of this full scale [dBm]."""
    full_scale_w = 10.0 ** ((full_scale_dbm - 30.0) / 10.0)
    return np.sqrt(psd_w_per_hz * sample_rate_hz / full_scale_w)
