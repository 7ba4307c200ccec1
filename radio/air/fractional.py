"""Delays that are no whole number of samples: the one interpolation kernel of the air.

A sinc of one sample's zeros under a Kaiser window (Oppenheim and Schafer, "Discrete-Time Signal
Processing", section 7.5).  Over the middle 80 % of the band, which is more than an OFDM grid with its
guard subcarriers occupies, its error is at most -61 dB at any frequency and fraction, and -67 dB on
average.  Plain arrays only: configuration checks use it without compiling anything.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

HALF_WIDTH = 10  # samples on each side
NUM_TAPS = 2 * HALF_WIDTH
# Found by a search for the smallest error at the worst frequency within 0.4 of the sample rate.
_WINDOW_HALF_WIDTH = 10.3
_BETA = 6.4
NUM_PHASES = 128  # of the table; between two of them one interpolates linearly: -84 dB


def interpolation_kernel(offset_samples: ArrayLike) -> NDArray[np.float64]:
    """Weight of a sample that lies so far [samples] from the wanted instant; of the argument's shape."""
    offset = np.asarray(offset_samples, np.float64)
    inside = np.abs(offset) <= HALF_WIDTH
    arch = np.sqrt(np.clip(1.0 - (offset / _WINDOW_HALF_WIDTH) ** 2, 0.0, None))
    return np.where(inside, np.sinc(offset) * np.i0(_BETA * arch) / np.i0(_BETA), 0.0)


def phase_table() -> NDArray[np.float32]:
    """Kernel by fraction, float32 ``[NUM_PHASES + 1, NUM_TAPS]``.

    Row p, column k is the weight of sample floor(t) - HALF_WIDTH + 1 + k where t has the fraction
    p / NUM_PHASES.
    """
    fractions = np.arange(NUM_PHASES + 1)[:, None] / NUM_PHASES
    return interpolation_kernel(fractions - np.arange(1 - HALF_WIDTH, HALF_WIDTH + 1)).astype(np.float32)


def project_on_grid(delays_samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights of whole-sample taps that stand for paths of any delay.

    Parameters
    ----------
    delays_samples
        ``[num_paths]``, not negative.

    Returns
    -------
    ``[num_paths, num_taps]``; column j is the tap at a delay of ``j - HALF_WIDTH`` samples.
    """
    last = int(np.ceil(delays_samples.max())) + HALF_WIDTH
    return interpolation_kernel(np.arange(-HALF_WIDTH, last + 1) - delays_samples[:, None])
