"""Phase noise of a port's oscillator.

The phase of an oscillator in a loop that follows a clean reference up to its bandwidth B is white
below B and falls by 20 dB per decade above it (Demir, "Computing timing jitter from phase noise
spectra", 2006): the stationary Ornstein-Uhlenbeck process, here with samples

    phi_n = a phi_{n-1} + w_n,    a = exp(-2 pi B / f_s),

w white and Gaussian, so that phi has the chosen variance sigma^2 and the two-sided density

    S(f) = sigma^2 (1 - a^2) / |1 - a exp(-j 2 pi f / f_s)|^2 / f_s
         = sigma^2 / (pi B) / (1 + (f / B)^2) where f is far below f_s, in dBc/Hz by 10 lg.

Any stretch can be had without what comes before it: a block begins with the sum of what the blocks
before it left behind, forgotten after 60 dB, and white noise is a function of the absolute index.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from radio.air.noise import BLOCK_SAMPLES, fill_noise, noise_key
from radio.errors import RadioConfigurationError
from radio.jit import kernel, register_warmup

MAX_RMS_DEG = 60.0
# Of the sample rate.  Slower loops would have to look back over too many blocks at each window.
BANDWIDTH_SHARES = (1e-5, 0.25)
_FORGOTTEN = 1e-3  # of an amplitude: 60 dB
_HALF = BLOCK_SAMPLES // 2
_CYCLE, _QUARTER = np.float32(2 * np.pi), np.float32(0.25)


@dataclass(frozen=True)
class PhaseNoise:
    """Phase noise of an oscillator.

    Attributes
    ----------
    rms_deg
        Integrated phase error [deg RMS].
    bandwidth_hz
        Bandwidth of the loop [Hz]: above it the density falls by 20 dB per decade.
    """

    rms_deg: float
    bandwidth_hz: float


@kernel
def _phases(innovations, pole, powers, num_before, out):  # type: ignore[no-untyped-def]
    """Filter white noise ``[num_blocks, BLOCK_SAMPLES]``; blocks after the first `num_before` come out."""
    num_blocks = innovations.shape[0]
    left = np.empty(num_blocks, np.float64)  # what a block alone leaves behind at its end
    for block in range(num_blocks):
        state = 0.0
        row = innovations[block]
        for n in range(BLOCK_SAMPLES):
            state = pole * state + row[n]
            row[n] = np.float32(state)
        left[block] = state
    decay = pole**BLOCK_SAMPLES
    for block in range(num_before, num_blocks):
        # Always the same terms in the same order, whatever else has been asked for.
        start = 0.0
        for before in range(block - num_before, block):
            start = decay * start + left[before]
        carried = np.float32(start)
        row, target = innovations[block], out[block - num_before]
        for n in range(BLOCK_SAMPLES):
            target[n] = row[n] + carried * powers[n]


@kernel
def _turn(planes, phases, sign):  # type: ignore[no-untyped-def]
    """Turn samples by a phase [rad] each, times a sign."""
    real, imaginary = planes[0], planes[1]
    for n in range(planes.shape[1]):
        phase = phases[n] * sign
        angle = (phase - _CYCLE * np.rint(phase / _CYCLE)) * _QUARTER
        # Taylor series within an eighth of a cycle (3e-7), and twice the double angle.
        square = angle * angle
        s = angle * (
            np.float32(1.0)
            + square * (np.float32(-1 / 6) + square * (np.float32(1 / 120) + square * np.float32(-1 / 5040)))
        )
        half_square = np.float32(2.0) * s * s
        c = np.sqrt(np.float32(1.0) - s * s)
        s, c = np.float32(2.0) * s * c, np.float32(1.0) - half_square
        s, c = np.float32(2.0) * s * c, np.float32(1.0) - np.float32(2.0) * s * s
        x, y = real[n], imaginary[n]
        real[n] = x * c - y * s
        imaginary[n] = x * s + y * c


class Oscillator:
    """Phase of one oscillator at any sample of a run.

    Parameters
    ----------
    noise
        Its phase noise.
    key
        From :func:`radio.air.noise.noise_key`.

    Raises
    ------
    RadioConfigurationError
        More than 60 deg RMS, or a bandwidth that is not within 1e-5 and 0.25 of the sample rate.
    """

    def __init__(self, noise: PhaseNoise, sample_rate_hz: float, key: NDArray[np.uint32]) -> None:
        if not 0.0 <= noise.rms_deg <= MAX_RMS_DEG:
            raise RadioConfigurationError(
                f"phase noise of {noise.rms_deg} deg RMS; from 0 to {MAX_RMS_DEG:g} can be had"
            )
        lowest_hz, highest_hz = (share * sample_rate_hz for share in BANDWIDTH_SHARES)
        if not lowest_hz <= noise.bandwidth_hz <= highest_hz:
            raise RadioConfigurationError(
                f"phase noise of {noise.bandwidth_hz} Hz bandwidth; from {lowest_hz:g} to {highest_hz:g} Hz "
                f"can be had at {sample_rate_hz:g} samples/s"
            )
        self._key = key
        self._pole = math.exp(-2 * np.pi * noise.bandwidth_hz / sample_rate_hz)
        self._deviation = np.deg2rad(noise.rms_deg) * math.sqrt(1.0 - self._pole**2)
        self._powers = (self._pole ** np.arange(1, BLOCK_SAMPLES + 1)).astype(np.float32)
        self._num_before = math.ceil(math.log(_FORGOTTEN) / (BLOCK_SAMPLES * math.log(self._pole)))

    def phases(self, first_sample: int, num_samples: int) -> NDArray[np.float32]:
        """Phase [rad] at absolute sample indices, not negative, ``[num_samples]``."""
        first_block = first_sample // BLOCK_SAMPLES
        num_blocks = -(-(first_sample + num_samples) // BLOCK_SAMPLES) - first_block
        total = self._num_before + num_blocks
        white = np.empty((2, total * _HALF), np.float32)
        # Both parts of a complex sample serve; block 0 has a past as well, so all are counted from there.
        fill_noise(white, first_block * _HALF, self._key, np.float32(self._deviation))
        innovations = np.ascontiguousarray(white.reshape(2, total, _HALF).swapaxes(0, 1)).reshape(total, -1)
        out = np.empty((num_blocks, BLOCK_SAMPLES), np.float32)
        _phases(innovations, self._pole, self._powers, self._num_before, out)
        skipped = first_sample - first_block * BLOCK_SAMPLES
        return out.reshape(-1)[skipped : skipped + num_samples]

    def turn(self, planes: NDArray[np.float32], first_sample: int, sign: float) -> None:
        """Turn samples ``[2, num_samples]`` in place by the phase times `sign`."""
        _turn(planes, self.phases(first_sample, planes.shape[1]), np.float32(sign))


@register_warmup
def _warm_up() -> None:
    oscillator = Oscillator(PhaseNoise(1.0, 1e4), 1e6, noise_key(0))
    oscillator.turn(np.zeros((2, 8), np.float32), 0, 1.0)
