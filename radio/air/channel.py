"""One directed radio link of the emulated air: path loss, fading, timing and carrier offset.

Every value is a pure function of (seed, link, round, time), so nothing depends on the order of calls.
A channel that changes with the round and not with time is the same in a round however long the rounds
before it took: runs of different speed meet the same channel, and can be compared round by round.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from radio.air.sample_clock import SampleClock
from radio.air.tdl import EXPONENTIAL, LOS_DOPPLER_SHARE, TdlPaths, TdlTaps, tdl_paths, tdl_taps
from radio.errors import RadioConfigurationError
from radio.randomness import generator
from radio.units import db_to_linear

NUM_SINUSOIDS = 16  # per tap; enough for a Rayleigh envelope within 1 % of its moments
KEPT_ROUNDS = 4  # whose taps are kept: receivers may lag behind each other by a round or two


@dataclass(frozen=True)
class FadingProfile:
    """Tapped delay line: how power is spread over delays, and how it moves.

    Attributes
    ----------
    delay_spread_s
        RMS delay spread [s] that the exponential profile aims at, and the others have.
    num_taps
        Number of taps of the exponential profile; 1 is a flat channel.  The others bring their own.
    rician_k_db
        Power of the constant part (of the first tap) over the scattered power of the whole channel
        [dB]; ``None`` is Rayleigh, or what the table of TDL-D or TDL-E says.
    doppler_hz
        Maximum Doppler shift [Hz]; 0 freezes the channel.
    round_correlation
        ``None``: the channel moves with time, as ``doppler_hz`` says.  Otherwise rho in [0, 1): taps
        stand still within a round, and from round to round each scattered tap is a first-order
        autoregressive process, whose correlation over k rounds is rho^k.
    profile
        ``exponential``, with taps on whole samples, or one of :data:`radio.air.tdl.TDL_PROFILES`, whose
        paths lie at any delay and whose line of sight has 0.7 of the maximum Doppler shift.
    """

    delay_spread_s: float = 0.0
    num_taps: int = 1
    rician_k_db: float | None = None
    doppler_hz: float = 0.0
    round_correlation: float | None = None
    profile: str = EXPONENTIAL


@dataclass(frozen=True)
class LinkParameters:
    """Hidden truth of one directed link; no estimator may see it.

    Attributes
    ----------
    attenuation_db
        Path loss [dB] on top of ``path_loss_db`` by round; beyond its end the last value, empty: none.
    redraw_rounds
        From each of these rounds on the scattered part is an independent realisation: somebody moved
        furniture, and another subchannel becomes the best.
    clock_drift_ppm, clock_realign_samples
        The transmitter's sample clock against the receiver's; see :mod:`radio.air.sample_clock`.
    """

    transmitter: str
    receiver: str
    path_loss_db: float
    antenna_gain_db: float = 0.0
    cfo_hz: float = 0.0
    timing_offset_samples: int = 0
    fading: FadingProfile = FadingProfile()
    attenuation_db: tuple[float, ...] = ()
    redraw_rounds: tuple[int, ...] = ()
    clock_drift_ppm: float = 0.0
    clock_realign_samples: int = 0


@lru_cache(maxsize=64)
def _tdl(
    profile: str, delay_spread_s: float, rician_k_db: float | None, sample_rate_hz: float
) -> tuple[TdlPaths, TdlTaps]:
    """A profile's paths and taps, the same for all links that have it."""
    paths = tdl_paths(profile, delay_spread_s, rician_k_db)
    return paths, tdl_taps(paths, sample_rate_hz)


class LinkChannel:
    """Taps of one link at any time of any round.

    Parameters
    ----------
    parameters
        The link's truth.
    seed
        Seed of the run.
    sample_rate_hz
        Sample rate of the air [Hz].

    Raises
    ------
    RadioConfigurationError
        A round correlation outside of [0, 1), or beside a Doppler shift; an attenuation that is no number;
        a profile that there is not, or without the line of sight whose K factor is given; a clock drift
        that no clock has.

    Notes
    -----
    Scattered taps that move with time are sums of sinusoids with uniformly distributed arrival angles
    (Clarke's model); their mean power over time is the profile's.  Those that move with the round are
    s_r = rho s_{r-1} + sqrt(1 - rho^2) w_r with w_r of unit variance, circular and Gaussian, drawn from
    (seed, link, r); s_r = w_r in the first round and after each redraw.
    """

    def __init__(self, parameters: LinkParameters, seed: int, sample_rate_hz: float) -> None:
        self.parameters = parameters
        self.cycles_per_sample = parameters.cfo_hz / sample_rate_hz
        fading = parameters.fading
        self._check(parameters)
        self._key = (seed, "fading", parameters.transmitter, parameters.receiver)
        rng = generator(*self._key)
        drifts = parameters.clock_drift_ppm != 0.0
        self.clock = (
            SampleClock(parameters.clock_drift_ppm, parameters.clock_realign_samples) if drifts else None
        )
        self._grid: TdlTaps | None = None  # None: each path is a tap
        mean_power = float(db_to_linear(parameters.antenna_gain_db - parameters.path_loss_db))
        if fading.profile == EXPONENTIAL:
            offsets, powers = self._exponential(fading, sample_rate_hz)
            k_factor = 0.0 if fading.rician_k_db is None else float(db_to_linear(fading.rician_k_db))
            scattered, constant = 1.0 / (1.0 + k_factor), k_factor / (1.0 + k_factor)
        else:
            paths, self._grid = _tdl(
                fading.profile, fading.delay_spread_s, fading.rician_k_db, sample_rate_hz
            )
            offsets, powers = np.arange(self._grid.weights.shape[1]), paths.powers
            scattered, constant = 1.0, paths.line_of_sight
        self.delays: NDArray[np.int64] = (offsets + parameters.timing_offset_samples).astype(np.int64)
        self._num_paths = len(powers)
        self._scattered = np.sqrt(mean_power * scattered * powers)
        self._sinusoid = np.sqrt(mean_power * scattered * powers / NUM_SINUSOIDS)
        self._constant = np.sqrt(mean_power * constant)
        # The round from which each realisation of the scattered part holds.
        self._redraws = [0, *sorted({index for index in parameters.redraw_rounds if index > 0})]
        self._waves = {0: self._draw_waves(rng)}
        self._constant_phase = 2 * np.pi * rng.random()
        self._states: dict[int, NDArray[np.complex128]] = {}  # s_r of the latest rounds, [num_paths]

    @staticmethod
    def _check(parameters: LinkParameters) -> None:
        link, fading = f"{parameters.transmitter} to {parameters.receiver}", parameters.fading
        rho = fading.round_correlation
        if rho is not None and not 0.0 <= rho < 1.0:
            raise RadioConfigurationError(f"a round correlation of {rho} from {link}; it lies in [0, 1)")
        if rho is not None and fading.doppler_hz:
            raise RadioConfigurationError(
                f"fading by round and a Doppler shift of {fading.doppler_hz} Hz from {link}: a channel has one"
            )
        if not np.isfinite(parameters.attenuation_db).all():
            raise RadioConfigurationError(f"an attenuation from {link} is no number")

    def _draw_waves(self, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Doppler shifts [Hz] and phases of the sinusoids of each path, ``[num_paths, NUM_SINUSOIDS]``."""
        shape = (self._num_paths, NUM_SINUSOIDS)
        angles = 2 * np.pi * (np.arange(NUM_SINUSOIDS) + rng.random(shape)) / NUM_SINUSOIDS
        return self.parameters.fading.doppler_hz * np.cos(angles), 2 * np.pi * rng.random(shape)

    @classmethod
    def _exponential(
        cls, fading: FadingProfile, sample_rate_hz: float
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Delay [samples] and share of the scattered power of each tap."""
        spacing = cls._tap_spacing(fading, sample_rate_hz)
        tap_index = np.arange(fading.num_taps)
        if fading.num_taps == 1 or fading.delay_spread_s == 0.0:
            powers = np.zeros(fading.num_taps)
            powers[0] = 1.0
        else:
            powers = np.exp(-tap_index * spacing / (fading.delay_spread_s * sample_rate_hz))
            powers /= powers.sum()
        return tap_index * spacing, powers

    @staticmethod
    def _tap_spacing(fading: FadingProfile, sample_rate_hz: float) -> int:
        """Whole samples between taps, so that the last tap lies near three delay spreads."""
        if fading.num_taps == 1:
            return 1
        return max(1, round(3.0 * fading.delay_spread_s * sample_rate_hz / (fading.num_taps - 1)))

    def source_span(self, first: int, end: int) -> tuple[int, int]:
        """First and end of the transmitter's samples that receiver samples first..end depend on."""
        low, high = first - self.max_delay_samples, end - self.min_delay_samples
        return (low, high) if self.clock is None else self.clock.source_span(low, high)

    def spoken_for(self, end: int) -> int:
        """Sample before which the transmitter must have spoken for all that is received before `end`.

        By what its own clock counts; beyond `end` only of a transmitter whose clock runs fast, and free.
        """
        return end if self.clock is None else max(end, self.source_span(end - 1, end)[1])

    @property
    def min_delay_samples(self) -> int:
        return int(self.delays[0])

    @property
    def max_delay_samples(self) -> int:
        return int(self.delays[-1])

    def taps_at(self, time_s: ArrayLike, round_index: int = 0) -> NDArray[np.complex64]:
        """Complex amplitude gain of each tap at some times [s] of a round, ``[..., num_taps]``."""
        time = np.asarray(time_s, np.float64)[..., None, None]
        if self.parameters.fading.round_correlation is None:
            doppler_hz, offsets = self._waves_of(round_index)
            phases = 2 * np.pi * np.mod(doppler_hz * time, 1.0) + offsets
            taps = self._sinusoid * np.exp(1j * phases).sum(axis=-1)
        else:
            still = self._scattered * self._state(round_index)
            taps = np.broadcast_to(still, (*time.shape[:-2], len(still))).copy()
        if self._grid is None:
            taps[..., 0] += self._constant * np.exp(1j * self._constant_phase)
        else:
            # No matrix product: its rounding may depend on how many instants are asked for at once.
            taps = (taps[..., :, None] * self._grid.weights).sum(axis=-2)
            if self._constant:
                cycles = LOS_DOPPLER_SHARE * self.parameters.fading.doppler_hz * time[..., 0]
                line_of_sight = np.exp(1j * (2 * np.pi * np.mod(cycles, 1.0) + self._constant_phase))
                taps += self._constant * line_of_sight * self._grid.line_of_sight
        attenuation_db = self.parameters.attenuation_db
        if attenuation_db:
            taps *= 10.0 ** (-attenuation_db[min(round_index, len(attenuation_db) - 1)] / 20.0)
        return np.asarray(taps, dtype=np.complex64)

    def _redraw_of(self, round_index: int) -> int:
        """The round from which the realisation of a round holds."""
        return self._redraws[bisect_right(self._redraws, round_index) - 1]

    def _waves_of(self, round_index: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        redraw = self._redraw_of(round_index)
        if redraw not in self._waves:
            self._waves[redraw] = self._draw_waves(generator(*self._key, "redraw", redraw))
        return self._waves[redraw]

    def _state(self, round_index: int) -> NDArray[np.complex128]:
        """s_r, ``[num_paths]``: always the same steps from the same start, whatever is kept of them."""
        redraw, rho = self._redraw_of(round_index), self.parameters.fading.round_correlation
        assert rho is not None
        known = [index for index in self._states if redraw <= index <= round_index]
        index = max(known, default=redraw)
        state = self._states[index] if known else self._innovation(redraw)
        while index < round_index:
            index += 1
            state = rho * state + np.sqrt(1.0 - rho**2) * self._innovation(index)
        self._states[round_index] = state
        while len(self._states) > KEPT_ROUNDS:
            del self._states[min(self._states)]
        return state

    def _innovation(self, round_index: int) -> NDArray[np.complex128]:
        """w_r, ``[num_paths]``: circular Gaussian of unit variance."""
        parts = generator(*self._key, "round", round_index).standard_normal((2, self._num_paths))
        return np.asarray((parts[0] + 1j * parts[1]) * np.sqrt(0.5))
