"""Sample-rate loops of the air.

Samples are kept as two float32 rows, real and imaginary parts, so that every loop is one of plain
vectors.  All work is done in whole blocks on a grid of the absolute sample index and cut afterwards:
how a receiver cuts its windows then changes no bit, not even by the rounding of a remainder loop.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from radio.jit import kernel, register_warmup
from radio.rotation import BLOCK_SAMPLES, fill_phasors, phasor


@kernel(fastmath={"contract"})
def _add_three_taps(source_real, source_imaginary, offsets, taps, tap, real, imaginary):  # type: ignore[no-untyped-def]
    """Add three taps in one pass, which spares two thirds of the stores."""
    a_real, a_imaginary = taps[tap].real, taps[tap].imag
    b_real, b_imaginary = taps[tap + 1].real, taps[tap + 1].imag
    c_real, c_imaginary = taps[tap + 2].real, taps[tap + 2].imag
    a, b, c = offsets[tap], offsets[tap + 1], offsets[tap + 2]
    ar, ai = source_real[a : a + BLOCK_SAMPLES], source_imaginary[a : a + BLOCK_SAMPLES]
    br, bi = source_real[b : b + BLOCK_SAMPLES], source_imaginary[b : b + BLOCK_SAMPLES]
    cr, ci = source_real[c : c + BLOCK_SAMPLES], source_imaginary[c : c + BLOCK_SAMPLES]
    for n in range(BLOCK_SAMPLES):
        x = a_real * ar[n] - a_imaginary * ai[n]
        y = a_real * ai[n] + a_imaginary * ar[n]
        x += b_real * br[n] - b_imaginary * bi[n]
        y += b_real * bi[n] + b_imaginary * br[n]
        x += c_real * cr[n] - c_imaginary * ci[n]
        y += c_real * ci[n] + c_imaginary * cr[n]
        real[n] += x
        imaginary[n] += y


@kernel(fastmath={"contract"})
def _add_tap(source_real, source_imaginary, offset, tap, real, imaginary):  # type: ignore[no-untyped-def]
    tap_real, tap_imaginary = tap.real, tap.imag
    sr = source_real[offset : offset + BLOCK_SAMPLES]
    si = source_imaginary[offset : offset + BLOCK_SAMPLES]
    for n in range(BLOCK_SAMPLES):
        real[n] += tap_real * sr[n] - tap_imaginary * si[n]
        imaginary[n] += tap_real * si[n] + tap_imaginary * sr[n]


@kernel(fastmath={"contract"})
def _turn(table_real, table_imaginary, turn_real, turn_imaginary, real, imaginary):  # type: ignore[no-untyped-def]
    for n in range(BLOCK_SAMPLES):
        c = table_real[n] * turn_real - table_imaginary[n] * turn_imaginary
        s = table_real[n] * turn_imaginary + table_imaginary[n] * turn_real
        x, y = real[n], imaginary[n]
        real[n] = x * c - y * s
        imaginary[n] = x * s + y * c


@kernel
def add_link(
    out: NDArray[np.float32],
    out_first: int,
    first: int,
    end: int,
    origin: int,
    burst: NDArray[np.float32],
    burst_first: int,
    delays: NDArray[np.int64],
    taps: NDArray[np.complex64],
    cycles_per_sample: float,
) -> None:
    """Add one burst, seen through a tapped delay line and a carrier offset, to part of a window.

    Parameters
    ----------
    out
        float32 [2, num_samples], the receiver's window; `out_first` is its absolute sample index.
    first, end
        Absolute sample indices between which to add, inside the window.
    origin
        Absolute index, not after `first`, from which the grid of blocks is counted.
    burst
        float32 [2, burst_samples], what was sent from absolute index `burst_first` on.
    delays, taps
        [num_taps], delays [samples] ascending, and complex amplitude gains.
    cycles_per_sample
        Carrier frequency offset over sample rate; the phase is that of the absolute index.
    """
    num_taps = delays.shape[0]
    nearest, furthest = delays[0], delays[num_taps - 1]
    real = np.empty(BLOCK_SAMPLES, np.float32)
    imaginary = np.empty(BLOCK_SAMPLES, np.float32)
    table_real = np.empty(BLOCK_SAMPLES, np.float32)
    table_imaginary = np.empty(BLOCK_SAMPLES, np.float32)
    edge_samples = BLOCK_SAMPLES + furthest - nearest
    edge = np.empty((2, edge_samples), np.float32)
    offsets = np.empty(num_taps, np.int64)
    rotating = cycles_per_sample != 0.0
    if rotating:
        fill_phasors(cycles_per_sample, table_real, table_imaginary)
    for block in range((first - origin) // BLOCK_SAMPLES, -(-(end - origin) // BLOCK_SAMPLES)):
        block_first = origin + block * BLOCK_SAMPLES
        # What the last tap lets through at the block's first sample, counted from the burst's first.
        lowest = block_first - furthest - burst_first
        if lowest >= burst.shape[1] or lowest + edge_samples <= 0:
            continue
        source_real, source_imaginary, base = burst[0], burst[1], lowest
        if lowest < 0 or lowest + edge_samples > burst.shape[1]:
            start, stop = max(lowest, 0), min(lowest + edge_samples, burst.shape[1])
            edge[:] = np.float32(0.0)
            edge[0, start - lowest : stop - lowest] = burst[0, start:stop]
            edge[1, start - lowest : stop - lowest] = burst[1, start:stop]
            source_real, source_imaginary, base = edge[0], edge[1], 0
        for tap in range(num_taps):
            offsets[tap] = base + furthest - delays[tap]
        real[:] = np.float32(0.0)
        imaginary[:] = np.float32(0.0)
        whole = num_taps - num_taps % 3
        for tap in range(0, whole, 3):
            _add_three_taps(source_real, source_imaginary, offsets, taps, tap, real, imaginary)
        for tap in range(whole, num_taps):
            _add_tap(source_real, source_imaginary, offsets[tap], taps[tap], real, imaginary)
        if rotating:
            c, s = phasor(block_first * cycles_per_sample)
            _turn(table_real, table_imaginary, np.float32(c), np.float32(s), real, imaginary)
        start, stop = max(first, block_first), min(end, block_first + BLOCK_SAMPLES)
        target_real = out[0, start - out_first : stop - out_first]
        target_imaginary = out[1, start - out_first : stop - out_first]
        skipped = start - block_first
        for n in range(stop - start):
            target_real[n] += real[skipped + n]
            target_imaginary[n] += imaginary[skipped + n]


@kernel
def _quantise(value, scale, step, steps):  # type: ignore[no-untyped-def]
    """Return a clipped and rounded part, and whether it was clipped; what is no number is clipped."""
    scaled = value * scale
    beyond = not abs(scaled) <= steps + np.float32(0.5)
    scaled = scaled if scaled == scaled else np.float32(0.0)
    limited = min(max(np.rint(scaled), -steps), steps - np.float32(1.0))
    return limited * step, beyond


@kernel
def receive_convert(
    window: NDArray[np.float32], gain: float, num_bits: int, out: NDArray[np.complex64]
) -> int:
    """Amplify, clip to full scale and quantise a window, as a receiver's converter does.

    Parameters
    ----------
    window
        float32 [2, num_samples].
    out
        complex64 [num_samples], full scale 1.0.

    Returns
    -------
    int
        Number of samples of which a part was clipped or was no number; such a part becomes 0.
    """
    steps = np.float32(2.0 ** (num_bits - 1))
    scale, step = np.float32(gain) * steps, np.float32(1.0) / steps
    clipped = 0
    for start in range(0, out.shape[0], BLOCK_SAMPLES):
        count = min(BLOCK_SAMPLES, out.shape[0] - start)
        real, imaginary = window[0, start : start + count], window[1, start : start + count]
        target = out[start : start + count]
        in_block = np.int32(0)  # as wide as the samples, or the loop would not become one of vectors
        for n in range(count):
            x, x_beyond = _quantise(real[n], scale, step, steps)
            y, y_beyond = _quantise(imaginary[n], scale, step, steps)
            in_block += np.int32(x_beyond | y_beyond)
            target[n] = complex(x, y)
        clipped += int(in_block)
    return clipped


@kernel
def transmit_convert(samples: NDArray[np.complex64], num_bits: int, out: NDArray[np.float32]) -> int:
    """Clip and quantise a burst, as a transmitter's converter does.

    Parameters
    ----------
    samples
        complex64 [num_samples].
    out
        float32 [2, num_samples].

    Returns
    -------
    int
        As for :func:`receive_convert`.
    """
    steps = np.float32(2.0 ** (num_bits - 1))
    step = np.float32(1.0) / steps
    clipped = 0
    for start in range(0, samples.shape[0], BLOCK_SAMPLES):
        count = min(BLOCK_SAMPLES, samples.shape[0] - start)
        source = samples[start : start + count]
        real, imaginary = out[0, start : start + count], out[1, start : start + count]
        in_block = np.int32(0)
        for n in range(count):
            real[n], x_beyond = _quantise(source[n].real, steps, step, steps)
            imaginary[n], y_beyond = _quantise(source[n].imag, steps, step, steps)
            in_block += np.int32(x_beyond | y_beyond)
        clipped += int(in_block)
    return clipped


@register_warmup
def _warm_up() -> None:
    planes = np.zeros((2, 8), np.float32)
    samples = np.zeros(8, np.complex64)
    taps = np.ones(1, np.complex64)
    add_link(planes, 0, 0, 8, 0, planes.copy(), 0, np.zeros(1, np.int64), taps, 1e-5)
    receive_convert(planes, 1.0, 12, samples)
    transmit_convert(samples, 12, planes)
