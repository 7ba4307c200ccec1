"""Units: decibels, powers, power spectral densities and instants.

The bottom of the import chain.  Instants are integer nanoseconds of experiment time, so that
equal times compare equal and no sum of floats drifts.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

BOLTZMANN_J_PER_K = 1.380649e-23
REFERENCE_TEMPERATURE_K = 290.0  # IEEE standard noise temperature
NS_PER_S = 1_000_000_000

Scalar = TypeVar("Scalar", float, NDArray[np.floating])


def db_to_linear(value_db: Scalar) -> Scalar:
    """Power ratio of a value in decibels."""
    return 10.0 ** (value_db / 10.0)


def linear_to_db(ratio: Scalar) -> Scalar:
    """Decibels of a power ratio; zero becomes ``-inf`` without a warning."""
    with np.errstate(divide="ignore"):
        result: Scalar = 10.0 * np.log10(ratio)
    return result


def dbm_to_watt(power_dbm: Scalar) -> Scalar:
    """Power [W] of a level [dBm]; also W/Hz of dBm/Hz."""
    return 10.0 ** ((power_dbm - 30.0) / 10.0)


def watt_to_dbm(power_w: Scalar) -> Scalar:
    """Level [dBm] of a power [W]; also dBm/Hz of W/Hz."""
    return linear_to_db(power_w) + 30.0


def thermal_noise_w_per_hz(noise_figure_db: float) -> float:
    """Noise PSD k T F [W/Hz] at 290 K."""
    return BOLTZMANN_J_PER_K * REFERENCE_TEMPERATURE_K * float(db_to_linear(noise_figure_db))


def seconds_to_ns(duration_s: float) -> int:
    """Nearest integer number of nanoseconds."""
    return round(duration_s * NS_PER_S)


def ns_to_seconds(duration_ns: int) -> float:
    """Seconds of an integer number of nanoseconds."""
    return duration_ns / NS_PER_S
