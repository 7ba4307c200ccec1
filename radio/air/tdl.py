"""Power-delay profiles TDL-A to TDL-E of 3GPP TR 38.901, and their taps on a sample grid.

Tables 7.7.2-1 to 7.7.2-5 as data; delays are scaled by the wanted RMS delay spread (7.7.3), and the
K factor of the profiles with a line of sight may be chosen (7.7.6).  How taps move is the business of
:mod:`radio.air.channel`; nothing here is random.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from radio.air.fractional import HALF_WIDTH, project_on_grid
from radio.errors import RadioConfigurationError
from radio.units import db_to_linear

LOS_DOPPLER_SHARE: Final = 0.7  # Doppler shift of the line of sight over the maximum (7.7.2)
EXPONENTIAL: Final = "exponential"
# Taps of the interpolated response are left out at both ends while they carry less than this together.
_TRIMMED_SHARE = 1e-7
MAX_DELAY_SAMPLES = 4096  # of the latest path: each sample of delay is a tap to compute

# (normalised delay, power [dB]) of the scattered paths.
_PATHS: Final[dict[str, tuple[tuple[float, float], ...]]] = {
    "tdl-a": (
        (0.0000, -13.4),
        (0.3819, 0.0),
        (0.4025, -2.2),
        (0.5868, -4.0),
        (0.4610, -6.0),
        (0.5375, -8.2),
        (0.6708, -9.9),
        (0.5750, -10.5),
        (0.7618, -7.5),
        (1.5375, -15.9),
        (1.8978, -6.6),
        (2.2242, -16.7),
        (2.1718, -12.4),
        (2.4942, -15.2),
        (2.5119, -10.8),
        (3.0582, -11.3),
        (4.0810, -12.7),
        (4.4579, -16.2),
        (4.5695, -18.3),
        (4.7966, -18.9),
        (5.0066, -16.6),
        (5.3043, -19.9),
        (9.6586, -29.7),
    ),
    "tdl-b": (
        (0.0000, 0.0),
        (0.1072, -2.2),
        (0.2155, -4.0),
        (0.2095, -3.2),
        (0.2870, -9.8),
        (0.2986, -1.2),
        (0.3752, -3.4),
        (0.5055, -5.2),
        (0.3681, -7.6),
        (0.3697, -3.0),
        (0.5700, -8.9),
        (0.5283, -9.0),
        (1.1021, -4.8),
        (1.2756, -5.7),
        (1.5474, -7.5),
        (1.7842, -1.9),
        (2.0169, -7.6),
        (2.8294, -12.2),
        (3.0219, -9.8),
        (3.6187, -11.4),
        (4.1067, -14.9),
        (4.2790, -9.2),
        (4.7834, -11.3),
    ),
    "tdl-c": (
        (0.0000, -4.4),
        (0.2099, -1.2),
        (0.2219, -3.5),
        (0.2329, -5.2),
        (0.2176, -2.5),
        (0.6366, 0.0),
        (0.6448, -2.2),
        (0.6560, -3.9),
        (0.6584, -7.4),
        (0.7935, -7.1),
        (0.8213, -10.7),
        (0.9336, -11.1),
        (1.2285, -5.1),
        (1.3083, -6.8),
        (2.1704, -8.7),
        (2.7105, -13.2),
        (4.2589, -13.9),
        (4.6003, -13.9),
        (5.4902, -15.8),
        (5.6077, -17.1),
        (6.3065, -16.0),
        (6.6374, -15.7),
        (7.0427, -21.6),
        (8.6523, -22.8),
    ),
    "tdl-d": (
        (0.000, -13.5),
        (0.035, -18.8),
        (0.612, -21.0),
        (1.363, -22.8),
        (1.405, -17.9),
        (1.804, -20.1),
        (2.596, -21.9),
        (1.775, -22.9),
        (4.042, -27.8),
        (7.937, -23.6),
        (9.424, -24.8),
        (9.708, -30.0),
        (12.525, -27.7),
    ),
    "tdl-e": (
        (0.0000, -22.03),
        (0.5133, -15.8),
        (0.5440, -18.1),
        (0.5630, -19.8),
        (0.5440, -22.9),
        (0.7112, -22.4),
        (1.9092, -18.6),
        (1.9293, -20.8),
        (1.9589, -22.6),
        (2.6426, -22.3),
        (3.7136, -25.6),
        (5.4524, -20.2),
        (12.0034, -29.8),
        (20.6519, -29.2),
    ),
}
_LINE_OF_SIGHT_DB: Final = {"tdl-d": -0.2, "tdl-e": -0.03}  # at delay 0
TDL_PROFILES: Final = tuple(_PATHS)
PROFILES_WITH_LINE_OF_SIGHT: Final = tuple(_LINE_OF_SIGHT_DB)


@dataclass(frozen=True)
class TdlPaths:
    """Paths of a profile; their powers and ``line_of_sight`` add up to 1.

    Attributes
    ----------
    delays_s
        ``[num_paths]`` [s]; the line of sight has delay 0.
    powers
        ``[num_paths]`` mean power of each scattered path.
    line_of_sight
        Power of the constant path.
    """

    delays_s: NDArray[np.float64]
    powers: NDArray[np.float64]
    line_of_sight: float

    @property
    def delay_spread_s(self) -> float:
        """RMS delay spread, the line of sight included [s]."""
        mean_s = float(self.powers @ self.delays_s)
        variance = float(self.powers @ self.delays_s**2) - mean_s**2
        return math.sqrt(max(variance, 0.0))


def tdl_paths(profile: str, delay_spread_s: float, rician_k_db: float | None = None) -> TdlPaths:
    """Paths of TR 38.901's profile at an RMS delay spread.

    Parameters
    ----------
    profile
        One of :data:`TDL_PROFILES`.
    delay_spread_s
        Wanted RMS delay spread [s]; the table's normalised delays are multiplied by it.
    rician_k_db
        Power of the line of sight over that of all scattered paths [dB]; ``None``: the table's, 9.0 dB
        of TDL-D and 9.3 dB of TDL-E.  With another one the scattered powers are scaled and the delay
        spread is normalised anew (7.7.6).

    Raises
    ------
    RadioConfigurationError
        An unknown profile, a delay spread that is negative or no number, or a K factor for a profile
        without line of sight.
    """
    if profile not in _PATHS:
        raise RadioConfigurationError(
            f"no power-delay profile {profile!r}; there are {EXPONENTIAL}, {', '.join(TDL_PROFILES)}"
        )
    if not 0.0 <= delay_spread_s < np.inf:
        raise RadioConfigurationError(f"a delay spread of {delay_spread_s} s for {profile}")
    table = np.array(_PATHS[profile])
    delays: NDArray[np.float64] = table[:, 0]
    powers: NDArray[np.float64] = 10.0 ** (table[:, 1] / 10.0)
    if profile not in _LINE_OF_SIGHT_DB:
        if rician_k_db is not None:
            raise RadioConfigurationError(
                f"a K factor of {rician_k_db} dB for {profile}, which has no line of sight; "
                f"{' and '.join(PROFILES_WITH_LINE_OF_SIGHT)} have one"
            )
        return TdlPaths(delays * delay_spread_s, powers / powers.sum(), 0.0)
    line_of_sight = float(db_to_linear(_LINE_OF_SIGHT_DB[profile]))
    if rician_k_db is None:
        total = line_of_sight + powers.sum()
        return TdlPaths(delays * delay_spread_s, powers / total, line_of_sight / total)
    k_factor = float(db_to_linear(rician_k_db))
    scaled = TdlPaths(delays, powers / powers.sum() / (1.0 + k_factor), k_factor / (1.0 + k_factor))
    return TdlPaths(delays * (delay_spread_s / scaled.delay_spread_s), scaled.powers, scaled.line_of_sight)


@dataclass(frozen=True)
class TdlTaps:
    """A profile on a sample grid.

    Attributes
    ----------
    first_delay_samples
        Delay of the line of sight behind the first tap [samples]: interpolation has precursors, and the
        air answers to no cause that is yet to come.
    weights
        ``[num_paths, num_taps]`` amplitude with which a path appears in each tap, one sample apart.
    line_of_sight
        ``[num_taps]`` the same for a constant path of delay 0.
    """

    first_delay_samples: int
    weights: NDArray[np.float64]
    line_of_sight: NDArray[np.float64]


def tdl_taps(paths: TdlPaths, sample_rate_hz: float) -> TdlTaps:
    """Band-limited taps of a profile, by :mod:`radio.air.fractional`.

    At both ends those taps are left out which together carry less than 1e-7 of the mean power.

    Raises
    ------
    RadioConfigurationError
        The latest path lies beyond 4096 samples.
    """
    delays_samples = np.append(paths.delays_s, 0.0) * sample_rate_hz
    if delays_samples.max() > MAX_DELAY_SAMPLES:
        raise RadioConfigurationError(
            f"the latest path comes {delays_samples.max():.0f} samples late, and {MAX_DELAY_SAMPLES} can be "
            "had: take a smaller delay spread or, with a line of sight, a smaller K factor"
        )
    weights = project_on_grid(delays_samples)
    powers = np.append(paths.powers, paths.line_of_sight) @ weights**2
    first = int(np.argmax(np.cumsum(powers) > _TRIMMED_SHARE))
    end = len(powers) - int(np.argmax(np.cumsum(powers[::-1]) > _TRIMMED_SHARE))
    return TdlTaps(HALF_WIDTH - first, weights[:-1, first:end], weights[-1, first:end])


def tdl_span_samples(paths: TdlPaths, sample_rate_hz: float, missed_share: float = 0.0) -> int:
    """Samples from the first tap to the last, leaving out a tail that carries `missed_share` of the power."""
    taps = tdl_taps(paths, sample_rate_hz)
    powers = paths.powers @ taps.weights**2 + paths.line_of_sight * taps.line_of_sight**2
    behind = powers.sum() - np.cumsum(powers)  # of the taps after each
    return int(np.argmax(behind <= max(missed_share, 1e-15)))
