"""What a radio without common timing hears: offsets, drift, echoes and a converter of 12 bits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from signals import Blocks, complex_noise, random_blocks

from radio.burst import BurstGrant, modulate_burst, overhead_symbols
from radio.header import BurstHeader
from radio.numerology import Numerology
from radio.phy import UNUSED
from radio.preamble import PREAMBLE_SYMBOLS
from radio.resampling import interpolate_reference

TINY = Numerology(1e6, 64, 8, 4, 12, 12, 4)


def echoes(rng: np.random.Generator, numerology: Numerology, direct: float = 1.0) -> NDArray[np.complex64]:
    """Taps over a quarter of the prefix, exponential in power, of unit energy; the first is `direct` or more."""
    count = numerology.prefix_samples // 4
    taps = complex_noise(rng, count, 1.0) * np.exp(-np.arange(count) / 4).astype(np.float32) * np.float32(0.5)
    taps[0] = direct + abs(taps[0])
    return (taps / np.linalg.norm(taps)).astype(np.complex64)


def heard(
    numerology: Numerology,
    sent: NDArray[np.complex64],
    *,
    delay_samples: float = 0.0,
    cfo_hz: float = 0.0,
    clock_drift_ppm: float = 0.0,
    taps: NDArray[np.complex64] | None = None,
    phase: float = 0.0,
) -> NDArray[np.complex64]:
    """A signal of a fast clock and another carrier, its first sample at `delay_samples`, without noise."""
    through = sent if taps is None else np.convolve(sent, taps).astype(np.complex64)
    step = 1.0 + clock_drift_ppm * 1e-6
    count = int((len(through) + 12) / step + delay_samples)
    pieces = [  # the reference holds all weights of all outputs at a time
        interpolate_reference(through, (first - delay_samples) * step, step, min(1 << 14, count - first))
        for first in range(0, count, 1 << 14)
    ]
    out = np.concatenate(pieces)
    turn = 2 * np.pi * cfo_hz / numerology.sample_rate_hz * np.arange(count) + phase
    return (out * np.exp(1j * turn)).astype(np.complex64)


def quantised(samples: NDArray[np.complex64], bits: int = 12) -> NDArray[np.complex64]:
    """What a converter with full scale 1.0 makes of it."""
    steps = 2 ** (bits - 1)
    parts = np.clip(np.round(samples.view(np.float32) * steps), -steps, steps - 1) / np.float32(steps)
    return parts.view(np.complex64)


def announced(
    rng: np.random.Generator, numerology: Numerology, mcs: int, num_slots: int, transmitter: int = 3
) -> tuple[BurstHeader, Blocks, BurstGrant]:
    """A burst on all subchannels with random blocks, and the grant for it."""
    index = np.full(numerology.num_subchannels, mcs)
    schemes = tuple(index.tolist())
    header = BurstHeader(transmitter, 0x5EED, int(rng.integers(1 << 16)), num_slots, schemes)
    blocks = random_blocks(rng, numerology, num_slots, index)
    return header, blocks, BurstGrant(transmitter, 0x5EED, num_slots, schemes)


def burst_of(numerology: Numerology, header: BurstHeader, blocks: Blocks) -> NDArray[np.complex64]:
    """Samples of a burst whose subcarriers have magnitude one."""
    return modulate_burst(numerology, header, blocks, np.ones(numerology.num_subchannels))


def beginning(numerology: Numerology, header: BurstHeader) -> NDArray[np.complex64]:
    """Preamble and header of a burst that has no slots to follow."""
    used = sum(mcs != UNUSED for mcs in header.mcs_index)
    scale = np.sqrt(numerology.num_subchannels / used)
    amplitude = np.full(numerology.num_subchannels, scale)
    samples = modulate_burst(numerology, header, {}, amplitude)
    return samples[: overhead_symbols(numerology) * numerology.symbol_samples]


def cfo_bound_hz(numerology: Numerology, snr: float, num_symbols: int = PREAMBLE_SYMBOLS) -> float:
    """Cramer-Rao bound of the carrier offset from equal symbols through an unknown channel [Hz]."""
    elements = numerology.num_subcarriers * num_symbols * (num_symbols**2 - 1)
    symbol_s = numerology.symbol_samples / numerology.sample_rate_hz
    return float(np.sqrt(6 / (snr * elements)) / (2 * np.pi * symbol_s))


NUM_GARBAGE_KINDS = 9


def garbage(rng: np.random.Generator, kind: int, samples: NDArray[np.complex64]) -> NDArray[np.complex64]:
    """Samples of a burst, damaged."""
    damaged = samples.copy()
    place = rng.integers(0, len(samples), 40)
    if kind == 0:
        damaged[place] = np.nan
    elif kind == 1:
        damaged[place] = np.inf
    elif kind == 2:
        damaged[place] = np.float32(3e38) * (1 - 1j)
    elif kind == 3:
        damaged[:] = np.nan
    elif kind == 4:
        return damaged[: int(rng.integers(0, len(damaged)))]
    elif kind == 5:
        damaged[:] = rng.integers(0, 2**32, 2 * len(samples), dtype=np.uint32).view(np.complex64)
    elif kind == 6:
        damaged[:] = damaged[0] + 1
    elif kind == 7:
        rng.shuffle(damaged)
    else:
        begin = int(rng.integers(0, len(damaged)))
        damaged[begin:] = damaged[: len(damaged) - begin]
    return damaged
