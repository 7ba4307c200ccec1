"""Samples of one clock from those of another: a windowed-sinc polyphase interpolator.

::

    samples [n] --(output m lies at input position start + m step)--> samples [m]

Every output is a sum over the 24 nearest inputs, weighted by a Kaiser-windowed sinc that is tabulated at
2048 fractions of a sample, of which the nearest is taken.  For signals within +-0.39 of the sample rate
(800 of 1024 subcarriers) the error stays 60 dB below.  Made for ratios within 0.1 % of one, as crystals
differ: nothing is filtered against aliasing.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from radio.jit import kernel, register_warmup

NUM_TAPS = 24
NUM_PHASES = 2048  # the nearest lies within 1/4096 sample: 64 dB below at the edge of the band
_KAISER_BETA = 7.0  # the transition ends where the band's first image begins
MAX_RATIO_ERROR = 1e-3
MAX_OUTPUT_SAMPLES = 1 << 23  # declared cap of one call's allocation: 64 MiB


@functools.cache
def interpolation_table() -> NDArray[np.float32]:
    """Return the weights of the nearest inputs by fraction of a sample, float32 [NUM_PHASES + 1, NUM_TAPS].

    Tap k weighs input ``floor(position) - NUM_TAPS / 2 + 1 + k``.
    """
    fraction = np.arange(NUM_PHASES + 1)[:, None] / NUM_PHASES
    distance = np.arange(NUM_TAPS)[None, :] - (NUM_TAPS // 2 - 1) - fraction
    inside = np.maximum(1.0 - (2.0 * distance / NUM_TAPS) ** 2, 0.0)
    weights = np.sinc(distance) * np.i0(_KAISER_BETA * np.sqrt(inside)) / np.i0(_KAISER_BETA)
    # A constant stays a constant at every fraction.
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


@kernel(fastmath={"contract", "reassoc"})
def _weigh(parts, first, weights, count):  # type: ignore[no-untyped-def]
    real = np.float32(0.0)
    imaginary = np.float32(0.0)
    for tap in range(count):
        real += weights[tap] * parts[2 * (first + tap)]
        imaginary += weights[tap] * parts[2 * (first + tap) + 1]
    return real, imaginary


@kernel
def _resample(parts, start, step, table, out):  # type: ignore[no-untyped-def]
    num_inputs = parts.shape[0] // 2
    for m in range(out.shape[0]):
        position = start + m * step
        whole = np.floor(position)
        weights = table[np.int64((position - whole) * NUM_PHASES + 0.5)]
        first = np.int64(whole) - (NUM_TAPS // 2 - 1)
        if first >= 0 and first + NUM_TAPS <= num_inputs:
            real, imaginary = _weigh(parts, first, weights, NUM_TAPS)
        else:  # beyond both ends there is silence
            below, above = max(0, -first), min(NUM_TAPS, num_inputs - first)
            real, imaginary = np.float32(0.0), np.float32(0.0)
            if above > below:
                real, imaginary = _weigh(parts, first + below, weights[below:], above - below)
        out[m] = complex(real, imaginary)


def _check(start: float, step: float, num_samples: int) -> None:
    if not (np.isfinite(start) and abs(start) < 2**53):
        raise ValueError(f"resampling from position {start}; it must be a finite sample index")
    if not abs(step - 1.0) <= MAX_RATIO_ERROR:
        raise ValueError(
            f"resampling by a step of {step} samples; clocks may differ by {MAX_RATIO_ERROR:g} at most, "
            "because nothing is filtered against aliasing"
        )
    if not 0 <= num_samples <= MAX_OUTPUT_SAMPLES:
        raise ValueError(f"resampling to {num_samples} samples; at most {MAX_OUTPUT_SAMPLES} in one call")


def interpolate(
    samples: NDArray[np.complex64], start: float, step: float, num_samples: int
) -> NDArray[np.complex64]:
    """Return the signal at positions ``start + m step`` of its sample index; silence beyond its ends.

    Parameters
    ----------
    samples
        complex64 [num_inputs].
    start, step
        Position of the first output and distance between outputs [samples].
    num_samples
        Outputs.

    Returns
    -------
    complex64 [num_samples]

    Raises
    ------
    ValueError
        A step further than 1e-3 from one, or more outputs than :data:`MAX_OUTPUT_SAMPLES`.
    """
    _check(start, step, num_samples)
    source = np.require(samples, np.complex64, ("C", "W"))
    out = np.empty(num_samples, np.complex64)
    _resample(source.view(np.float32), float(start), float(step), interpolation_table(), out)
    return out


def interpolate_reference(
    samples: NDArray[np.complex64], start: float, step: float, num_samples: int
) -> NDArray[np.complex128]:
    """Return what `interpolate` returns, from the same weights in NumPy."""
    position = start + step * np.arange(num_samples)
    whole = np.floor(position).astype(np.int64)
    weights = interpolation_table()[((position - whole) * NUM_PHASES + 0.5).astype(np.int64)]
    index = whole[:, None] - (NUM_TAPS // 2 - 1) + np.arange(NUM_TAPS)
    known = (index >= 0) & (index < len(samples))
    values = np.where(known, np.asarray(samples, np.complex128)[np.clip(index, 0, len(samples) - 1)], 0)
    return np.asarray((values * weights).sum(axis=1))


def correct_clock(samples: NDArray[np.complex64], clock_drift_ppm: float) -> NDArray[np.complex64]:
    """Return what a transmitter with a clock that is fast by so much must send to be heard on time.

    Parameters
    ----------
    samples
        complex64 [num_samples] as they would be sent with a true clock.
    clock_drift_ppm
        How much the sending clock is fast, within +-1000 [ppm].

    Returns
    -------
    complex64 [about num_samples * (1 + clock_drift_ppm / 1e6)]
    """
    ratio = 1.0 + clock_drift_ppm * 1e-6
    return interpolate(samples, 0.0, 1.0 / ratio, round(len(samples) * ratio))


@register_warmup
def _warm_up() -> None:
    interpolate(np.ones(64, np.complex64), 0.5, 1.00001, 40)
