"""What is known of links and processors: filtered, aged, with uncertainty.

Measurements go in as they are reported; what comes out is the level to plan with and how far the
next round's truth may lie from it.  A level follows a random walk and is seen through noise; how
fast it walks and how noisy it is seen are learned from the measurements themselves.  A value far
outside of what the past allows is held back once: if the next one agrees with it, something has
changed and the level jumps there; if not, it was a spike and changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

GATE_DEVIATIONS = 4.0
OUTLIER_DEVIATIONS = 2.5  # beyond which a distance counts as this many deviations
SLOPE_DAMPING = 0.9  # of a common trend, per round (Holt's damped trend)
SLOPE_WEIGHT = 0.6  # of a common innovation in the trend
MOMENT_WEIGHT = 0.15  # of a new measurement in the learned variances
MAX_GAIN = 0.95  # of the filter: some trust in the past is always left
COMMON_GAIN = 0.95  # what many values say together is hardly noise


@dataclass(frozen=True)
class FilterPriors:
    """What a filter believes before it has seen anything, in the unit of its values.

    Attributes
    ----------
    walk, noise
        Standard deviation of the level's step from round to round, and of a measurement.
    min_gate
        No value closer to the level than this is held back, however quiet the past was.
    common_gate
        The same for what all values do together.
    min_slope
        A common trend per round is followed beyond this only: below it is chance.
    """

    walk: float
    noise: float
    min_gate: float
    common_gate: float
    min_slope: float


GAIN_PRIORS = FilterPriors(walk=0.6, noise=0.4, min_gate=4.0, common_gate=8.0, min_slope=0.5)  # [dB]
SPEED_PRIORS = FilterPriors(
    walk=0.05, noise=0.1, min_gate=0.35, common_gate=np.inf, min_slope=np.inf
)  # natural logarithm


@dataclass
class LevelFilter:
    """Levels of ``n`` values that are measured together, such as a link's subchannels.

    A local level model, x_t = x_{t-1} + w, z_t = x_t + v, with a Kalman filter whose variances
    follow from the moments of the differences d_t = z_t - z_{t-1}: E[d_t d_{t-1}] = -Var v and
    E[d_t^2] = Var w + 2 Var v (Harvey, Forecasting, structural time series models, 1989, 2.4).
    Who walks through a fade moves all values together and for many rounds: a damped common trend
    runs ahead of that.

    Attributes
    ----------
    level
        ``[n]``; NaN before the first measurement.
    age_rounds
        Rounds since the last measurement that was believed.
    """

    size: int
    priors: FilterPriors
    level: FloatArray = field(init=False)
    age_rounds: int = 0
    _slope: float = 0.0
    _taken: bool = True
    _variance: FloatArray = field(init=False)
    _walk: float = field(init=False)
    _noise: float = field(init=False)
    _difference_moment: float = field(init=False)
    _lagged_moment: float = field(init=False)
    _common_moment: float = field(init=False)
    _own_moment: float = field(init=False)
    _last: FloatArray = field(init=False)
    _last_difference: FloatArray = field(init=False)
    _suspect: FloatArray = field(init=False)

    def __post_init__(self) -> None:
        walk, noise = self.priors.walk**2, self.priors.noise**2
        for name in ("level", "_last", "_last_difference", "_suspect"):
            setattr(self, name, np.full(self.size, np.nan))
        self._variance = np.full(self.size, noise)
        self._walk, self._noise = walk, noise
        self._difference_moment, self._lagged_moment = walk + 2 * noise, -noise
        total = walk + noise
        self._common_moment, self._own_moment = total / 2, total / 2

    @property
    def known(self) -> bool:
        """Whether anything was measured yet."""
        return bool(np.all(np.isfinite(self.level)))

    def pass_round(self) -> None:
        """A round begins: what is known grows older and less certain."""
        self.age_rounds += 1
        self._variance = self._variance + self._walk
        if not self._taken:  # a difference over several rounds says nothing about one
            self._last = np.full(self.size, np.nan)
            self._last_difference = np.full(self.size, np.nan)
        self._taken = False
        if abs(self._slope) > self.priors.min_slope and self.age_rounds <= 1:  # a trend is not guessed on
            self.level = self.level + self._slope
        self._slope *= SLOPE_DAMPING

    def take(self, measured: FloatArray) -> NDArray[np.bool_]:
        """Take a measurement ``[n]``; which of its values are held back ``[n]``.

        Values that are not finite are held back too, and nothing is remembered of them.
        """
        finite = np.isfinite(measured)
        self._taken = bool(finite.any())
        fresh = finite & ~np.isfinite(self.level)
        self.level[fresh] = measured[fresh]
        innovation = np.where(finite, measured - self.level, 0.0)
        known = finite & ~fresh
        # What moves all values together is a walk, and measured as well as they are many.
        common = float(np.median(innovation[known])) if self.size > 1 and known.any() else 0.0
        if abs(common) > max(self.priors.common_gate, GATE_DEVIATIONS * float(np.sqrt(self._common_moment))):
            common = 0.0
        own = np.where(known, innovation - common, 0.0)
        spread = np.sqrt(self._variance + self._noise)
        gate = np.maximum(self.priors.min_gate, GATE_DEVIATIONS * spread)
        outside = known & (np.abs(own) > gate)
        agrees = outside & (np.abs(measured - self._suspect) <= gate)
        held = outside & ~agrees
        self._suspect = np.where(held, measured, np.nan)
        believed = known & ~outside
        if believed.any():
            self._learn(measured, common, np.where(believed, own, np.nan))
            self.level[known] += COMMON_GAIN * common
            self._slope += SLOPE_WEIGHT * common
            gain = np.minimum(self._variance / (self._variance + self._noise), MAX_GAIN)
            self.level[believed] += (gain * own)[believed]
            self._variance[believed] *= (1 - gain)[believed]
        # Something has changed: the past says nothing about the level any more.
        self.level[agrees] = measured[agrees]
        self._variance[agrees] = self._noise
        self._last = np.where(finite & ~held, measured, np.nan)
        if (finite & ~held).any():
            self.age_rounds = 0
        return held | ~finite

    def _learn(self, measured: FloatArray, common: float, own: FloatArray) -> None:
        """Follow the moments that walk, noise and deviations are read from; ``own`` is NaN where held."""
        usable = np.isfinite(own)
        difference = np.where(usable, measured - self._last, np.nan)
        compared = np.isfinite(difference)
        if compared.any():
            if self.size > 1:
                difference = difference - np.median(difference[compared])
            self._difference_moment += MOMENT_WEIGHT * (
                float(np.mean(difference[compared] ** 2)) - self._difference_moment
            )
            lagged = (difference * self._last_difference)[compared]
            lagged = lagged[np.isfinite(lagged)]
            if lagged.size:
                self._lagged_moment += MOMENT_WEIGHT * (float(lagged.mean()) - self._lagged_moment)
        self._last_difference = difference
        smallest = 0.01 * self.priors.noise**2
        self._noise = float(
            np.clip(-self._lagged_moment, smallest, 0.49 * self._difference_moment + smallest)
        )
        self._walk = max(self._difference_moment - 2 * self._noise, smallest)
        # One outlier must not make the rounds after it look uncertain.
        limit = OUTLIER_DEVIATIONS * float(np.sqrt(self._common_moment + self._own_moment))
        errors = np.clip(own[usable], -limit, limit)
        shift = float(np.clip(common, -limit, limit))
        self._common_moment += MOMENT_WEIGHT * (shift**2 - self._common_moment)
        self._own_moment += MOMENT_WEIGHT * (float(np.mean(errors**2)) - self._own_moment)

    def deviations(self) -> tuple[float, float]:
        """Standard deviations of the next measurement from the level: common to all values, and own.

        Learned from how far earlier measurements lay from the level; older levels deviate more.
        """
        aged = max(0, self.age_rounds - 1) * self._walk
        return float(np.sqrt(self._common_moment + aged)), float(np.sqrt(self._own_moment))

    def deviation(self) -> float:
        """Standard deviation of the next measurement from the level, common and own together."""
        common, own = self.deviations()
        return float(np.hypot(common, own))


@dataclass(frozen=True)
class Rejection:
    """A measurement that was not believed, in words for the record."""

    node: str
    what: str  # "gain", "compute" or "report"
    subject: str
    words: str


class LinkFilter:
    """Gain over noise PSD of one directed link, per subchannel [dB(Hz/W)]."""

    def __init__(self, transmitter: str, receiver: str, num_subchannels: int) -> None:
        self.transmitter = transmitter
        self.receiver = receiver
        self.filter = LevelFilter(num_subchannels, GAIN_PRIORS)
        self.first_level_db: FloatArray | None = None

    def take(self, gain: FloatArray, noise_w_per_hz: float, floor_per_psd: float) -> list[Rejection]:
        """Take a sounding's gains ``[M]``; what of it was not believed.

        Parameters
        ----------
        floor_per_psd
            Gain over noise below which the sounding cannot tell one value from another [Hz/W].
        """
        link = f"{self.transmitter} to {self.receiver}"
        if not (np.isfinite(noise_w_per_hz) and noise_w_per_hz > 0):
            return [
                Rejection(self.receiver, "gain", link, f"noise PSD of {noise_w_per_hz} W/Hz makes no sense")
            ]
        with np.errstate(invalid="ignore", over="ignore"):
            ratio = np.maximum(np.asarray(gain, float) / noise_w_per_hz, floor_per_psd)
            measured = 10 * np.log10(ratio)
        held = self.filter.take(measured)
        if self.first_level_db is None and self.filter.known:
            self.first_level_db = self.filter.level.copy()
        if not held.any():
            return []
        odd = np.flatnonzero(~np.isfinite(measured))
        if odd.size:
            words = f"gain is no number on subchannels {_listed(odd)}"
        else:
            distance = float(np.max(np.abs(measured - self.filter.level)[held]))
            words = (
                f"{int(held.sum())} of {held.size} subchannels lie up to {distance:.1f} dB from what was "
                "expected; held back until the next sounding agrees"
            )
        return [Rejection(self.receiver, "gain", link, words)]


class SpeedFilter:
    """Speed of one processor in one phase: what was rehearsed at each cut, times how it does now.

    A board that grows hot is slower at every cut, also at those where it is not running: what spans
    tell at one cut moves the expectation for all of them.

    Attributes
    ----------
    filter
        Logarithm of the present speed over the rehearsed one.
    """

    def __init__(self, nominal_flops_per_s: float) -> None:
        self.filter = LevelFilter(1, SPEED_PRIORS)
        self._nominal_log = float(np.log(nominal_flops_per_s))
        self._rehearsed_log: dict[int, float] = {}

    @property
    def known(self) -> bool:
        """Whether a span was measured yet."""
        return self.filter.known

    def rehearse(self, cut_layer: int, flops: float, seconds: float) -> bool:
        """Take what was measured off the clock at a cut; whether it made sense."""
        if not _is_span(flops, seconds):
            return False
        self._rehearsed_log[cut_layer] = float(np.log(flops / seconds))
        return True

    def _reference(self, cut_layer: int) -> float:
        """Rehearsed speed at a cut or the nearest one that was; the declared speed without any."""
        if not self._rehearsed_log:
            return self._nominal_log
        nearest = min(self._rehearsed_log, key=lambda cut: (abs(cut - cut_layer), cut))
        return self._rehearsed_log[nearest]

    def surprise(self, cut_layer: int, flops: float, seconds: float) -> float | None:
        """Logarithm of a span's speed over what is known; ``None`` where nothing is or it is no number."""
        if not self.known or not _is_span(flops, seconds):
            return None
        return float(np.log(flops / seconds) - self._reference(cut_layer) - self.filter.level[0])

    def take(self, cut_layer: int, flops: float, seconds: float, *, confirmed: bool = False) -> bool:
        """Take a compute span; whether it was believed.

        Parameters
        ----------
        confirmed
            Another span of the same board says the same: something has changed.
        """
        if not _is_span(flops, seconds):
            return False
        measured = np.array([np.log(flops / seconds) - self._reference(cut_layer)])
        if not bool(self.filter.take(measured)[0]):
            return True
        return confirmed and not bool(self.filter.take(measured)[0])

    def flops_per_s(self, cut_layer: int) -> float:
        """Expected speed at a cut [FLOP/s]."""
        now = float(self.filter.level[0]) if self.known else 0.0
        return float(np.exp(self._reference(cut_layer) + now))

    @property
    def relative_deviation(self) -> float:
        """Of the next span's length from what the speed says."""
        return self.filter.deviation()


def _is_span(flops: float, seconds: float) -> bool:
    return bool(np.isfinite(flops) and np.isfinite(seconds) and flops > 0 and seconds > 0)


def _listed(indices: NDArray[np.int64]) -> str:
    shown = ", ".join(str(int(k)) for k in indices[:6])
    return shown + (", ..." if indices.size > 6 else "")
