"""One directed radio link of the emulated air: path loss, fading, timing and carrier offset.

Every value is a pure function of (seed, link, time), so nothing depends on the order of calls.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from radio.randomness import generator
from radio.units import db_to_linear

NUM_SINUSOIDS = 16  # per tap; enough for a Rayleigh envelope within 1 % of its moments


@dataclass(frozen=True)
class FadingProfile:
    """Tapped delay line with an exponential power-delay profile.

    Attributes
    ----------
    delay_spread_s
        RMS delay spread [s] that the profile aims at.
    num_taps
        Number of taps; 1 is a flat channel.
    rician_k_db
        Power of the constant part of the first tap over the scattered power of the whole channel
        [dB]; ``None`` is Rayleigh.
    doppler_hz
        Maximum Doppler shift [Hz]; 0 freezes the channel.
    """

    delay_spread_s: float = 0.0
    num_taps: int = 1
    rician_k_db: float | None = None
    doppler_hz: float = 0.0


@dataclass(frozen=True)
class LinkParameters:
    """Hidden truth of one directed link; no estimator may see it."""

    transmitter: str
    receiver: str
    path_loss_db: float
    antenna_gain_db: float = 0.0
    cfo_hz: float = 0.0
    timing_offset_samples: int = 0
    fading: FadingProfile = FadingProfile()


class LinkChannel:
    """Taps of one link at any time.

    Parameters
    ----------
    parameters
        The link's truth.
    seed
        Seed of the run.
    sample_rate_hz
        Sample rate of the air [Hz].

    Notes
    -----
    Scattered taps are sums of sinusoids with uniformly distributed arrival angles (Clarke's
    model); their mean power over time is the profile's.
    """

    def __init__(self, parameters: LinkParameters, seed: int, sample_rate_hz: float) -> None:
        self.parameters = parameters
        self.cycles_per_sample = parameters.cfo_hz / sample_rate_hz
        fading = parameters.fading
        rng = generator(seed, "fading", parameters.transmitter, parameters.receiver)
        spacing = self._tap_spacing(fading, sample_rate_hz)
        tap_index = np.arange(fading.num_taps)
        if fading.num_taps == 1 or fading.delay_spread_s == 0.0:
            powers = np.zeros(fading.num_taps)
            powers[0] = 1.0
        else:
            powers = np.exp(-tap_index * spacing / (fading.delay_spread_s * sample_rate_hz))
            powers /= powers.sum()
        self.delays: NDArray[np.int64] = (tap_index * spacing + parameters.timing_offset_samples).astype(
            np.int64
        )
        mean_power = float(db_to_linear(parameters.antenna_gain_db - parameters.path_loss_db))
        if fading.rician_k_db is None:
            scattered, constant = 1.0, 0.0
        else:
            k_factor = float(db_to_linear(fading.rician_k_db))
            scattered, constant = 1.0 / (1.0 + k_factor), k_factor / (1.0 + k_factor)
        self._scattered = np.sqrt(mean_power * scattered * powers / NUM_SINUSOIDS)
        self._constant = np.sqrt(mean_power * constant)
        shape = (fading.num_taps, NUM_SINUSOIDS)
        angles = 2 * np.pi * (np.arange(NUM_SINUSOIDS) + rng.random(shape)) / NUM_SINUSOIDS
        self._doppler_hz = fading.doppler_hz * np.cos(angles)
        self._phases = 2 * np.pi * rng.random(shape)
        self._constant_phase = 2 * np.pi * rng.random()

    @staticmethod
    def _tap_spacing(fading: FadingProfile, sample_rate_hz: float) -> int:
        """Whole samples between taps, so that the last tap lies near three delay spreads."""
        if fading.num_taps == 1:
            return 1
        return max(1, round(3.0 * fading.delay_spread_s * sample_rate_hz / (fading.num_taps - 1)))

    @property
    def min_delay_samples(self) -> int:
        return int(self.delays[0])

    @property
    def max_delay_samples(self) -> int:
        return int(self.delays[-1])

    def taps_at(self, time_s: ArrayLike) -> NDArray[np.complex64]:
        """Complex amplitude gain of each tap at some times [s], ``[..., num_taps]``."""
        time = np.asarray(time_s, np.float64)[..., None, None]
        phases = 2 * np.pi * np.mod(self._doppler_hz * time, 1.0) + self._phases
        taps = self._scattered * np.exp(1j * phases).sum(axis=-1)
        taps[..., 0] += self._constant * np.exp(1j * self._constant_phase)
        return np.asarray(taps, dtype=np.complex64)
