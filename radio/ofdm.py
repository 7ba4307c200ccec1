"""Resource grid <-> samples: unitary OFDM with a cyclic prefix.

With the unitary FFT the mean power of a symbol's samples is the summed power of its subcarriers
divided by the FFT size, so a subchannel at PSD p contributes p B_k / P_fs when each of its
subcarriers has magnitude sqrt(p f_s / P_fs).
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from radio.fft import forward, inverse_with_prefix
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
    spectrum = np.zeros((grid.shape[0], numerology.fft_size), np.complex64)
    below = numerology.num_subcarriers // 2
    if below:
        spectrum[:, -below:] = grid[:, :below]
    spectrum[:, 1 : numerology.num_subcarriers - below + 1] = grid[:, below:]
    return spectrum_to_samples(numerology, spectrum)


def spectrum_to_samples(numerology: Numerology, spectrum: NDArray[np.complex64]) -> NDArray[np.complex64]:
    """Samples of consecutive OFDM symbols from all FFT bins.

    Parameters
    ----------
    spectrum
        ``[num_symbols, fft_size]``, DC first.
    """
    return inverse_with_prefix(spectrum, numerology.prefix_samples).reshape(-1)


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
    spectrum = useful_to_spectrum(useful_samples(numerology, samples))
    below = numerology.num_subcarriers // 2
    grid = np.empty((len(spectrum), numerology.num_subcarriers), np.complex64)
    if below:
        grid[:, :below] = spectrum[:, -below:]
    grid[:, below:] = spectrum[:, 1 : numerology.num_subcarriers - below + 1]
    return grid


def useful_samples(numerology: Numerology, samples: NDArray[np.complex64]) -> NDArray[np.complex64]:
    """View of the symbols without their prefixes, ``[num_symbols, fft_size]``."""
    return samples.reshape(-1, numerology.symbol_samples)[:, numerology.prefix_samples :]


def useful_to_spectrum(useful: NDArray[np.complex64]) -> NDArray[np.complex64]:
    """All FFT bins of symbols without their prefixes, ``[..., fft_size]``, DC first."""
    # Slots of consecutive symbols, their prefixes left out, are still equally spaced: no copy.
    return forward(useful.reshape(-1, useful.shape[-1])).reshape(useful.shape)


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
