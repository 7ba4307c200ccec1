"""Carrier rotation: samples times exp(j 2 pi f n / f_s), with the phase of the absolute index n.

A phasor table of one block is turned to each block's first sample.  Table and turns are computed in
double precision from the absolute index, so no error accumulates however long the signal is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from radio.jit import kernel, register_warmup

BLOCK_SAMPLES = 1024  # operands of one block stay in the first-level cache
_STEP = 32  # BLOCK_SAMPLES is its square


@kernel
def phasor(cycles):  # type: ignore[no-untyped-def]
    """Return exp(j 2 pi cycles) as (real, imaginary) float64."""
    angle = 2.0 * np.pi * (cycles - np.floor(cycles))
    return np.cos(angle), np.sin(angle)


@kernel
def fill_phasors(cycles_per_sample, real, imaginary):  # type: ignore[no-untyped-def]
    """Write exp(j 2 pi cycles_per_sample n) for n below BLOCK_SAMPLES into two float32 arrays."""
    fine_real = np.empty(_STEP, np.float64)
    fine_imaginary = np.empty(_STEP, np.float64)
    for n in range(_STEP):
        fine_real[n], fine_imaginary[n] = phasor(n * cycles_per_sample)
    for block in range(_STEP):
        c, s = phasor(block * _STEP * cycles_per_sample)
        for n in range(_STEP):
            real[block * _STEP + n] = np.float32(c * fine_real[n] - s * fine_imaginary[n])
            imaginary[block * _STEP + n] = np.float32(c * fine_imaginary[n] + s * fine_real[n])


@kernel(fastmath={"contract"})
def _rotate(samples, first_sample, cycles_per_sample, out):  # type: ignore[no-untyped-def]
    table_real = np.empty(BLOCK_SAMPLES, np.float32)
    table_imaginary = np.empty(BLOCK_SAMPLES, np.float32)
    fill_phasors(cycles_per_sample, table_real, table_imaginary)
    for start in range(0, samples.shape[0], BLOCK_SAMPLES):
        count = min(BLOCK_SAMPLES, samples.shape[0] - start)
        c, s = phasor((first_sample + start) * cycles_per_sample)
        turn_real, turn_imaginary = np.float32(c), np.float32(s)
        source = samples[start : start + count]
        target = out[start : start + count]
        for n in range(count):
            c32 = table_real[n] * turn_real - table_imaginary[n] * turn_imaginary
            s32 = table_real[n] * turn_imaginary + table_imaginary[n] * turn_real
            real, imaginary = source[n].real, source[n].imag
            target[n] = complex(real * c32 - imaginary * s32, real * s32 + imaginary * c32)


def rotate(
    samples: NDArray[np.complex64],
    first_sample: int,
    cycles_per_sample: float,
    out: NDArray[np.complex64] | None = None,
) -> NDArray[np.complex64]:
    """Return samples turned by a carrier offset.

    Parameters
    ----------
    samples
        complex64 [num_samples]; `first_sample` is the absolute index of its first.
    cycles_per_sample
        Carrier offset over sample rate; negative to take an offset out.
    out
        Where to put the result; may be `samples` itself.  A new array by default.

    Returns
    -------
    complex64 [num_samples]
        `out` where given.
    """
    source = np.require(samples, np.complex64, ("C", "W"))  # kernels know writable arrays only
    if out is None:
        out = np.empty_like(source)
    elif out.shape != source.shape or out.dtype != np.complex64 or not out.flags.c_contiguous:
        raise ValueError(
            f"rotating {list(source.shape)} samples into {out.dtype} {list(out.shape)}; the output must be "
            "contiguous complex64 of the same shape"
        )
    _rotate(source, int(first_sample), float(cycles_per_sample), out)
    return out


@register_warmup
def _warm_up() -> None:
    rotate(np.ones(8, np.complex64), 0, 1e-5)
