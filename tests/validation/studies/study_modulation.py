"""Uncoded bit error rate of every constellation on white noise against the exact closed form."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from scipy import optimize, special, stats
from study_common import CONFIDENCE, Case, scaled, white_noise

from radio.modulation import Modulation, demodulate_llr, modulate

TARGET_RATES = (0.1, 1e-2, 1e-3, 1e-4)
NUM_SYMBOLS = 1_200_000  # per point
_BATCH = 1 << 17


@functools.cache
def gray_axis(num_bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Amplitudes of a Gray-coded axis in ascending order, and their bits ``[num_levels, num_bits]``.

    Written from TS 38.211, 5.1.3 to 5.1.7, and not taken from the modem.
    """
    labels = np.arange(1 << num_bits)
    bits = (labels[:, None] >> np.arange(num_bits - 1, -1, -1)) & 1
    amplitude = 1.0 - 2.0 * bits[:, -1]
    for level, column in enumerate(range(num_bits - 2, -1, -1), start=1):
        amplitude = (1 - 2 * bits[:, column]) * (2.0**level - amplitude)
    order = np.argsort(amplitude)
    return amplitude[order], bits[order]


def axis_error_moments(modulation: Modulation, snr_db: float) -> tuple[float, float]:
    """Mean and variance of the number of wrong bits on one axis of a symbol, by hard decisions.

    Sums the probability of landing in each decision interval over all pairs of levels, which for
    square Gray QAM is the exact result (Cho and Yoon 2002, eq. 16).  BPSK of TS 38.211 is one axis.
    """
    if modulation is Modulation.BPSK:
        rate = float(stats.norm.sf(np.sqrt(2 * 10 ** (snr_db / 10))))
        return rate, rate * (1 - rate)
    amplitude, bits = gray_axis(modulation.value // 2)
    scale = np.sqrt(1.5 / (2.0**modulation.value - 1))
    deviation = np.sqrt(10 ** (-snr_db / 10) / 2)
    edges = np.concatenate(([-np.inf], (amplitude[1:] + amplitude[:-1]) / 2, [np.inf])) * scale
    upper = special.ndtr((edges[None, 1:] - amplitude[:, None] * scale) / deviation)
    lower = special.ndtr((edges[None, :-1] - amplitude[:, None] * scale) / deviation)
    wrong = (bits[:, None, :] != bits[None, :, :]).sum(axis=2)
    landing = (upper - lower) / len(amplitude)
    mean = float((landing * wrong).sum())
    return mean, float((landing * wrong**2).sum()) - mean**2


def bit_error_rate(modulation: Modulation, snr_db: float) -> float:
    """Exact uncoded bit error rate at an Es/N0 [dB]."""
    return axis_error_moments(modulation, snr_db)[0] / modulation.bits_per_axis


def _point(
    rng: np.random.Generator, modulation: Modulation, snr_db: float, num_symbols: int
) -> dict[str, Any]:
    power = 10 ** (-snr_db / 10)
    errors = 0
    for start in range(0, num_symbols, _BATCH):
        count = min(_BATCH, num_symbols - start)
        bits = rng.integers(0, 2, (1, count * modulation), dtype=np.uint8)
        received = modulate(modulation, bits) + white_noise(rng, (1, count), power)
        # Soft bits near zero are rounded to zero; a smaller variance leaves every sign.
        variance = np.full(received.shape, power * 1e-3, np.float32)
        errors += int(((demodulate_llr(modulation, received, variance) < 0) != bits).sum())
    num_axes = 1 if modulation is Modulation.BPSK else 2
    mean, variance_of_count = axis_error_moments(modulation, snr_db)
    deviation = np.sqrt(variance_of_count * num_axes * num_symbols)
    num_bits = num_symbols * int(modulation)
    half = stats.norm.isf((1 - CONFIDENCE) / 2) * deviation / num_bits
    rate = mean / modulation.bits_per_axis
    return {
        "snr_db": round(snr_db, 4),
        "num_bits": num_bits,
        "measured": errors / num_bits,
        "closed_form": rate,
        "interval": [rate - half, rate + half],
        "deviations": (errors - mean * num_axes * num_symbols) / deviation,
    }


def _run(modulation: Modulation, rng: np.random.Generator, share: float) -> dict[str, Any]:
    points = []
    for rate in TARGET_RATES:
        snr_db = optimize.brentq(lambda x, t=rate: bit_error_rate(modulation, x) - t, -8, 45, xtol=1e-6)
        points.append(_point(rng, modulation, float(snr_db), scaled(NUM_SYMBOLS, share)))
    return {"points": points}


def cases() -> list[Case]:
    """One case per constellation."""
    return [
        Case(f"uncoded/{modulation.name}", functools.partial(_run, modulation)) for modulation in Modulation
    ]
