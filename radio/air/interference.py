"""Signals of others at a receiver's port: tones and noise of a band, always on or in bursts.

A function of the absolute sample index, like all of the air; whoever sends them knows nothing of the
lab.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from radio.air.fractional import HALF_WIDTH, phase_table
from radio.air.interpolation import interpolate, source_range
from radio.air.noise import fill_noise, noise_key
from radio.errors import RadioConfigurationError
from radio.jit import kernel, register_warmup
from radio.randomness import generator
from radio.rotation import BLOCK_SAMPLES, fill_phasors, phasor
from radio.units import dbm_to_watt

KINDS = ("tone", "noise")
MIN_BANDWIDTH_SHARE = 1e-6  # of the sample rate


@dataclass(frozen=True)
class Interference:
    """One interferer.

    Attributes
    ----------
    receiver
        Port at which it is heard.
    kind
        ``tone``, or ``noise``: white within its band and Gaussian.
    power_dbm
        Power at the port while it is on [dBm].
    centre_hz
        Middle of its band over the receiver's carrier [Hz].
    bandwidth_hz
        Of noise, between its points of half amplitude [Hz]: flat within 80 % of it, and 60 dB down
        beyond 120 %.
    duty
        Share of each period in which it is on, at its start.
    period_s
        Period of its bursts [s].
    """

    receiver: str
    kind: str
    power_dbm: float
    centre_hz: float = 0.0
    bandwidth_hz: float = 0.0
    duty: float = 1.0
    period_s: float = 0.01


@kernel
def _add_bursts(window, first, signal, cycles_per_sample, period, on):  # type: ignore[no-untyped-def]
    """Add a baseband signal at its frequency where it is on; phase and period are of the absolute index."""
    table_real = np.empty(BLOCK_SAMPLES, np.float32)
    table_imaginary = np.empty(BLOCK_SAMPLES, np.float32)
    fill_phasors(cycles_per_sample, table_real, table_imaginary)
    end = first + window.shape[1]
    for block in range(first // BLOCK_SAMPLES, -(-end // BLOCK_SAMPLES)):
        origin = block * BLOCK_SAMPLES
        cosine, sine = phasor(origin * cycles_per_sample)
        turn_real, turn_imaginary = np.float32(cosine), np.float32(sine)
        start, stop = max(first, origin), min(end, origin + BLOCK_SAMPLES)
        place = start % period
        for n in range(start, stop):
            if place < on:
                c = table_real[n - origin] * turn_real - table_imaginary[n - origin] * turn_imaginary
                s = table_real[n - origin] * turn_imaginary + table_imaginary[n - origin] * turn_real
                x, y = signal[0, n - first], signal[1, n - first]
                window[0, n - first] += x * c - y * s
                window[1, n - first] += x * s + y * c
            place += 1
            if place == period:
                place = 0


class Interferer:
    """An interferer at work.

    Parameters
    ----------
    interference
        What it sends.
    seed, index
        Of the run, and its place among the air's interferers: they decide its noise or phase.

    Raises
    ------
    RadioConfigurationError
        A kind that there is not, a band that the sample rate does not hold, or a period shorter than a
        sample.
    """

    def __init__(self, interference: Interference, seed: int, index: int, sample_rate_hz: float) -> None:
        name = f"the interferer at {interference.receiver}"
        if interference.kind not in KINDS:
            raise RadioConfigurationError(f"{name} is of kind {interference.kind!r}; {KINDS} there are")
        self._ratio = interference.bandwidth_hz / sample_rate_hz if interference.kind == "noise" else 0.0
        if interference.kind == "noise" and not MIN_BANDWIDTH_SHARE <= self._ratio <= 1.0:
            raise RadioConfigurationError(
                f"{name} has a bandwidth of {interference.bandwidth_hz} Hz; from "
                f"{MIN_BANDWIDTH_SHARE * sample_rate_hz:g} Hz to the sample rate can be had"
            )
        if not abs(interference.centre_hz) <= sample_rate_hz / 2:
            raise RadioConfigurationError(
                f"{name} lies at {interference.centre_hz} Hz; a receiver of {sample_rate_hz:g} samples/s "
                "hears half of that on both sides"
            )
        if not math.isfinite(interference.power_dbm) or not 0.0 < interference.duty <= 1.0:
            raise RadioConfigurationError(
                f"{name} has {interference.power_dbm} dBm for {interference.duty} of the time"
            )
        if not interference.period_s * sample_rate_hz >= 1.0:
            raise RadioConfigurationError(f"{name} has a period of {interference.period_s} s: below a sample")
        self._cycles_per_sample = interference.centre_hz / sample_rate_hz
        self._period = round(interference.period_s * sample_rate_hz)
        self._on = max(1, round(interference.duty * self._period))
        self._key = noise_key(seed, "interference", interference.receiver, index)
        amplitude = math.sqrt(float(dbm_to_watt(interference.power_dbm)))
        phase = 2 * np.pi * generator(seed, "interference", interference.receiver, index).random()
        self._tone = amplitude * np.array([math.cos(phase), math.sin(phase)], np.float32)
        # Interpolated noise has the kernel's energy, averaged over fractions, as power gain.
        gain = float((phase_table()[:-1].astype(np.float64) ** 2).sum(axis=1).mean())
        if self._ratio == 1.0:
            gain = 1.0
        self._deviation = np.float32(amplitude / math.sqrt(2.0 * gain))

    def add(self, window: NDArray[np.float32], first_sample: int) -> None:
        """Add it to a window ``[2, num_samples]`` [sqrt(W)] from an absolute index, not negative, on."""
        signal = np.empty_like(window)
        if self._ratio == 0.0:
            signal[:] = self._tone[:, None]
        else:
            low, high = source_range(first_sample, first_sample + window.shape[1], 0, 0, self._ratio)
            # Noise begins at index 0, and the first sample needs some from before.
            white = np.empty((2, high - low), np.float32)
            fill_noise(white, low + HALF_WIDTH, self._key, self._deviation)
            interpolate(white, low, first_sample, 0, 0, self._ratio, signal)
        _add_bursts(window, first_sample, signal, self._cycles_per_sample, self._period, self._on)


@register_warmup
def _warm_up() -> None:
    planes = np.zeros((2, 8), np.float32)
    _add_bursts(planes, 0, planes.copy(), 0.1, 4, 2)
