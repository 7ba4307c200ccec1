"""Sample-rate loops of the air."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from radio.jit import kernel, register_warmup

BLOCK_SAMPLES = 1024  # a block of every operand stays in the first-level cache


@kernel(fastmath=True)
def add_link(
    out: NDArray[np.complex64],
    out_first: int,
    burst: NDArray[np.complex64],
    burst_first: int,
    delays: NDArray[np.int64],
    taps: NDArray[np.complex64],
    cycles_per_sample: float,
) -> None:
    """Add one burst, seen through a tapped delay line and a carrier offset, to a window.

    Parameters
    ----------
    out
        ``[num_samples]``, the receiver's window; ``out_first`` is its absolute sample index.
    burst
        ``[burst_samples]``, what was sent from absolute index ``burst_first`` on.
    delays, taps
        ``[num_taps]`` [samples] and complex amplitude gains, constant over the window.
    cycles_per_sample
        Carrier frequency offset over sample rate; the phase is that of the absolute index.
    """
    scratch = np.empty(BLOCK_SAMPLES, np.complex64)
    rotor = np.empty(BLOCK_SAMPLES, np.complex64)
    rotating = cycles_per_sample != 0.0
    if rotating:
        for n in range(BLOCK_SAMPLES):
            phase = 2.0 * np.pi * ((n * cycles_per_sample) % 1.0)
            rotor[n] = np.complex64(complex(np.cos(phase), np.sin(phase)))
    num_samples = out.shape[0]
    for block in range(0, num_samples, BLOCK_SAMPLES):
        length = min(BLOCK_SAMPLES, num_samples - block)
        absolute = out_first + block
        touched = False
        for n in range(length):
            scratch[n] = 0.0
        for tap in range(delays.shape[0]):
            shift = absolute - delays[tap] - burst_first
            first = max(0, -shift)
            last = min(length, burst.shape[0] - shift)
            amplitude = taps[tap]
            if last > first:
                touched = True
                for n in range(first, last):
                    scratch[n] += amplitude * burst[shift + n]
        if not touched:
            continue
        if rotating:
            phase = 2.0 * np.pi * ((absolute * cycles_per_sample) % 1.0)
            start = np.complex64(complex(np.cos(phase), np.sin(phase)))
            for n in range(length):
                out[block + n] += scratch[n] * (rotor[n] * start)
        else:
            for n in range(length):
                out[block + n] += scratch[n]


@kernel()
def convert(samples: NDArray[np.complex64], gain: float, num_bits: int) -> int:
    """Amplify, clip to full scale and quantise a window in place, as a converter does.

    Returns
    -------
    int
        Number of samples of which I or Q was clipped.
    """
    steps = np.float32(2.0 ** (num_bits - 1))
    top = steps - np.float32(1.0)
    scale = np.float32(gain) * steps
    clipped = 0
    for n in range(samples.shape[0]):
        real = np.rint(samples[n].real * scale)
        imag = np.rint(samples[n].imag * scale)
        if abs(real) > steps or abs(imag) > steps:
            clipped += 1
        real = min(max(real, -steps), top)
        imag = min(max(imag, -steps), top)
        samples[n] = complex(real / steps, imag / steps)
    return clipped


def _warm_up() -> None:
    out = np.zeros(8, np.complex64)
    add_link(out, 0, out.copy(), 0, np.zeros(1, np.int64), np.ones(1, np.complex64), 1e-5)
    convert(out, 1.0, 12)


register_warmup(_warm_up)
