"""What a converter does to a signal of many subcarriers, which is Gaussian: no sample is needed for it.

By Bussgang's theorem (1952) any memoryless device turns a Gaussian signal x into a x + d with d
uncorrelated with x.  Rounding and clipping of :func:`radio.air.kernels.receive_convert` are such a device.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy import special

_STEPS_PER_DB = 20  # powers are told apart to 0.05 dB, over which the effect hardly moves
_SILENT_DB = -200.0


class ConverterEffect(NamedTuple):
    """Effect on a complex Gaussian signal.

    Attributes
    ----------
    gain
        Amplitude of what is left of the signal over what it was.
    distortion_power
        Power of what was added to a complex sample, full scale being 1.0; white.
    clipped_share
        Share of the samples of which a part was clipped.
    """

    gain: float
    distortion_power: float
    clipped_share: float


def converter_effect(power: float, num_bits: int) -> ConverterEffect:
    """Effect of rounding to ``num_bits`` and of clipping at full scale.

    Parameters
    ----------
    power
        Of a complex sample at the converter, full scale being 1.0.
    """
    level_db = 10.0 * np.log10(power) if power > 0 else _SILENT_DB
    return _effect(round(max(level_db, _SILENT_DB) * _STEPS_PER_DB), num_bits)


@lru_cache(maxsize=4096)
def _effect(level: int, num_bits: int) -> ConverterEffect:
    power = 10.0 ** (level / _STEPS_PER_DB / 10.0)
    deviation = np.sqrt(power / 2)
    steps = 2 ** (num_bits - 1)
    step = 1.0 / steps
    # Output values -steps .. steps - 1, in steps; half-way between two of them the output jumps.
    thresholds = (np.arange(-steps, steps - 1) + 0.5) * (step / deviation)
    density = np.exp(-(thresholds**2) / 2) / np.sqrt(2 * np.pi)
    gain = float(density.sum() * step / deviation)
    # E q^2 = q_lowest^2 + sum of (q_above^2 - q_below^2) P(x > threshold)
    above = np.arange(-steps + 1, steps) * step
    below = above - step
    output = 1.0 + float(np.sum((above**2 - below**2) * special.ndtr(-thresholds)))
    mean = -1.0 + float(np.sum(step * special.ndtr(-thresholds)))
    part = max(output - mean**2 - gain**2 * deviation**2, 0.0)
    beyond = 2 * special.ndtr(-(steps + 0.5) * step / deviation)
    return ConverterEffect(gain, 2 * part, float(1 - (1 - beyond) ** 2))
