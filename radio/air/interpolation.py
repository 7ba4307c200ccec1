"""Values of a sampled signal between its samples, at instants that are a linear function of the index.

Serves links whose ends have different sample clocks, and noise of a bandwidth below the sample rate.
Each output is computed by itself from its absolute index, always by the same operations, so it does
not matter how a signal is cut.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from radio.air.fractional import HALF_WIDTH, NUM_PHASES, NUM_TAPS, interpolation_kernel, phase_table
from radio.jit import kernel, register_warmup

_TABLE = phase_table()
_TABLE.flags.writeable = True  # kernels know writable arrays only


_RUN_SAMPLES = 512  # longest run of outputs that are computed together
_TAPS_AT_ONCE = 5


@kernel
def _phase_of(index, anchor, slope):  # type: ignore[no-untyped-def]
    """Whole samples of an instant's offset, the table's row before its fraction, and the share of the next."""
    offset = (index - anchor) * slope
    whole = np.floor(offset)
    place = (offset - whole) * NUM_PHASES
    phase = min(int(place), NUM_PHASES - 1)
    return int(whole), phase, np.float32(place - phase)


@kernel
def _add_taps(part, near, step, near_sum, step_sum, count):  # type: ignore[no-untyped-def]
    """Add a few taps of both table rows to one part of a run, in one pass."""
    a0, a1, a2, a3, a4 = near[0], near[1], near[2], near[3], near[4]
    b0, b1, b2, b3, b4 = step[0], step[1], step[2], step[3], step[4]
    for n in range(count):
        p, q, r, s, t = part[n], part[n + 1], part[n + 2], part[n + 3], part[n + 4]
        near_sum[n] += a0 * p + a1 * q + a2 * r + a3 * s + a4 * t
        step_sum[n] += b0 * p + b1 * q + b2 * r + b3 * s + b4 * t


@kernel
def _interpolate_runs(source, source_first, anchor, slope, first, table, out):  # type: ignore[no-untyped-def]
    """Unit 1: while the offset stays between two rows of the table, outputs are two convolutions."""
    sums = np.empty((4, _RUN_SAMPLES), np.float32)
    weights = np.empty(_RUN_SAMPLES, np.float32)
    step = np.empty(NUM_TAPS, np.float32)
    # Of outputs that surely share a row, were the first in the middle of it; the last one is looked at.
    likely = min(_RUN_SAMPLES, int(1.0 / (NUM_PHASES * max(abs(slope), 1e-9))) + 1)
    i, num = 0, out.shape[1]
    while i < num:
        whole, phase, _ = _phase_of(first + i, anchor, slope)
        count = min(likely, num - i)
        while count > 1:
            last_whole, last_phase, _ = _phase_of(first + i + count - 1, anchor, slope)
            if last_whole == whole and last_phase == phase:
                break
            count //= 2
        begin = first + i - anchor
        for n in range(count):
            weights[n] = np.float32(((begin + n) * slope - whole) * NUM_PHASES - phase)
        near, far = table[phase], table[phase + 1]
        for k in range(NUM_TAPS):
            step[k] = far[k] - near[k]
        sums[:, :count] = np.float32(0.0)
        start = first + i - anchor + whole - (HALF_WIDTH - 1) - source_first
        for k in range(0, NUM_TAPS, _TAPS_AT_ONCE):
            _add_taps(source[0, start + k :], near[k:], step[k:], sums[0], sums[1], count)
            _add_taps(source[1, start + k :], near[k:], step[k:], sums[2], sums[3], count)
        real, imaginary = out[0, i : i + count], out[1, i : i + count]
        for n in range(count):
            real[n] = sums[0, n] + weights[n] * sums[1, n]
            imaginary[n] = sums[2, n] + weights[n] * sums[3, n]
        i += count


@kernel(fastmath={"contract", "reassoc"})
def _interpolate_each(source, source_first, anchor, slope, first, table, out):  # type: ignore[no-untyped-def]
    """Unit 0."""
    for i in range(out.shape[1]):
        whole, phase, weight = _phase_of(first + i, anchor, slope)
        start = whole - (HALF_WIDTH - 1) - source_first
        near, far = table[phase], table[phase + 1]
        real, imaginary = source[0, start : start + NUM_TAPS], source[1, start : start + NUM_TAPS]
        x, y = np.float32(0.0), np.float32(0.0)
        for k in range(NUM_TAPS):
            tap = near[k] + weight * (far[k] - near[k])
            x += tap * real[k]
            y += tap * imaginary[k]
        out[0, i] = x
        out[1, i] = y


def source_range(first: int, end: int, unit: int, anchor: int, slope: float) -> tuple[int, int]:
    """First and end of the source samples on which outputs first..end depend; see :func:`interpolate`."""
    low = unit * (first - anchor) + int(np.floor((first - anchor) * slope))
    high = unit * (end - 1 - anchor) + int(np.floor((end - 1 - anchor) * slope))
    return low - HALF_WIDTH + 1, high + HALF_WIDTH + 1


def interpolate(
    source: NDArray[np.float32],
    source_first: int,
    first: int,
    unit: int,
    anchor: int,
    slope: float,
    out: NDArray[np.float32],
) -> None:
    """Write the source's values at (unit + slope) (n - anchor) for n from `first` on.

    Parameters
    ----------
    source
        float32 [2, num_samples], real and imaginary parts; its first sample has index `source_first`.
        It must hold :func:`source_range`.
    unit, slope
        Source samples per output sample in two parts, 0 or 1 and a float: at a drift of parts per
        million a product with their sum would lose digits late in a run.  ``slope`` is not below -1.
    anchor
        Output index that lies on source index 0.
    out
        float32 [2, num_outputs].

    Raises
    ------
    ValueError
        The source does not hold what is needed.
    """
    if not out.shape[1]:
        return
    low, high = source_range(first, first + out.shape[1], unit, anchor, slope)
    if low < source_first or high > source_first + source.shape[1]:
        raise ValueError(
            f"interpolating needs source samples {low}..{high}; {source_first}.."
            f"{source_first + source.shape[1]} are given"
        )
    if unit:
        _interpolate_runs(source, source_first, anchor, float(slope), first, _TABLE, out)
    else:
        _interpolate_each(source, source_first, anchor, float(slope), first, _TABLE, out)


def interpolate_reference(
    source: NDArray[np.float32],
    source_first: int,
    first: int,
    unit: int,
    anchor: int,
    slope: float,
    num_outputs: int,
) -> NDArray[np.complex128]:
    """The same in plain NumPy with the exact kernel at every instant, ``[num_outputs]``."""
    steps = np.arange(first, first + num_outputs) - anchor
    offset = steps * slope
    whole = np.floor(offset)
    places = (unit * steps + whole.astype(np.int64))[:, None] + np.arange(1 - HALF_WIDTH, HALF_WIDTH + 1)
    weights = interpolation_kernel((offset - whole)[:, None] - np.arange(1 - HALF_WIDTH, HALF_WIDTH + 1))
    values = (source[0] + 1j * source[1].astype(np.float64))[places - source_first]
    return np.asarray((weights * values).sum(axis=1))


@register_warmup
def _warm_up() -> None:
    planes, out = np.zeros((2, NUM_TAPS + 8), np.float32), np.empty((2, 4), np.float32)
    for unit in (0, 1):
        interpolate(planes, 1 - HALF_WIDTH, 0, unit, 0, 1e-6, out)
