"""What the studies of the modem share: seeds, slots through white noise, fitted curves and intervals."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from calibration.mcs_thresholds import BlerPoint, fit_waterfall
from radio.numerology import Numerology
from radio.phy import UNUSED, block_bytes, demodulate_slots, modulate_slots

SEED = 20261123
# Of each single interval.  About four hundred are looked at, so one in twenty-five full passes would
# see one fail by chance.
CONFIDENCE = 1 - 1e-4
NUMEROLOGIES = {
    "laptop": Numerology(20e6, 1024, 72, 20, 40, 28, 4),
    "pluto-lab": Numerology(2.5e6, 256, 32, 20, 10, 105, 2),
}


@dataclass(frozen=True)
class Case:
    """One piece of a study that is computed, stored and taken up again on its own.

    Attributes
    ----------
    name
        Unique; the seed follows from it.
    run
        Called with a generator and the share of the statistics to take; returns what JSON can hold.
    """

    name: str
    run: Callable[[np.random.Generator, float], dict[str, Any]]

    def __call__(self, share: float) -> dict[str, Any]:
        return self.run(np.random.default_rng([SEED, zlib.crc32(self.name.encode())]), share)


def scaled(count: int, share: float, least: int = 1) -> int:
    """A share of a count of trials."""
    return max(least, round(count * share))


def db(ratio: float) -> float:
    return float(10 * np.log10(ratio))


def white_noise(rng: np.random.Generator, shape: tuple[int, ...], power: float) -> NDArray[np.complex64]:
    """Circular Gaussian noise of a mean power."""
    parts = rng.standard_normal((*shape[:-1], 2 * shape[-1]), dtype=np.float32)
    parts *= np.float32(np.sqrt(power / 2))
    return parts.view(np.complex64)


def binomial_interval(num_hits: int, num_trials: int, confidence: float = CONFIDENCE) -> list[float]:
    """Clopper-Pearson interval of a probability."""
    interval = stats.binomtest(num_hits, num_trials).proportion_ci(confidence, "exact")
    return [float(interval.low), float(interval.high)]


# ------------------------------------------------------------------------------------ slots and blocks
class Outcome(NamedTuple):
    """Blocks of some slots.

    Attributes
    ----------
    failed
        ``[num_slots, num_subchannels]`` blocks that were sent and did not arrive as sent.
    sent
        ``[num_slots, num_subchannels]``.
    num_wrong
        Blocks whose check held and whose payload differs.
    snr
        ``[num_slots, num_subchannels]`` as the receiver estimated it.
    """

    failed: NDArray[np.bool_]
    sent: NDArray[np.bool_]
    num_wrong: int
    snr: NDArray[np.float32]


Blocks = dict[tuple[int, int], bytes]


def random_slots(
    rng: np.random.Generator,
    numerology: Numerology,
    num_slots: int,
    mcs_index: NDArray[np.int64],
    amplitude: float = 1.0,
) -> tuple[Blocks, NDArray[np.complex64]]:
    """Random blocks in all used subchannels, and their samples."""
    used = np.flatnonzero(mcs_index != UNUSED).tolist()
    blocks = {
        (slot, k): rng.bytes(block_bytes(numerology, int(mcs_index[k])))
        for slot in range(num_slots)
        for k in used
    }
    scale = np.full(numerology.num_subchannels, amplitude)
    return blocks, modulate_slots(numerology, num_slots, blocks, mcs_index, scale)


def judge(
    numerology: Numerology,
    samples: NDArray[np.complex64],
    blocks: Blocks,
    mcs_index: NDArray[np.int64],
    owner: NDArray[np.int64],
) -> Outcome:
    """Demodulate slots and compare with what was sent."""
    received = demodulate_slots(numerology, samples, mcs_index, owner)
    shape = (len(samples) // numerology.slot_samples, numerology.num_subchannels)
    sent, failed = np.zeros(shape, bool), np.zeros(shape, bool)
    num_wrong = 0
    for place, block in blocks.items():
        got = received.blocks.get(place)
        sent[place] = True
        failed[place] = got != block
        num_wrong += got is not None and got != block
    return Outcome(failed, sent, num_wrong, received.snr)


def through_noise(
    rng: np.random.Generator,
    numerology: Numerology,
    num_slots: int,
    mcs_index: NDArray[np.int64],
    owner: NDArray[np.int64],
    snr_db: float,
) -> Outcome:
    """Random blocks through white noise; the SNR is that of a subcarrier."""
    blocks, samples = random_slots(rng, numerology, num_slots, mcs_index)
    samples += white_noise(rng, samples.shape, 10 ** (-snr_db / 10))
    return judge(numerology, samples, blocks, mcs_index, owner)


# ------------------------------------------------------------------------------------ fitted curves
class Threshold(NamedTuple):
    """Where a fitted curve crosses 10 %, with its standard error [dB]."""

    snr_db: float
    standard_error_db: float


def threshold_10_percent(points: list[BlerPoint]) -> Threshold:
    """10 % point of the normal distribution function in dB that fits the counts best.

    The standard error is that of maximum likelihood: the inverse of the Fisher information of centre
    and logarithmic width, carried to the 10 % point.
    """
    fit = fit_waterfall(points)
    quantile = float(special.ndtri(0.1))
    information = np.zeros((2, 2))
    for point in points:
        argument = (fit.center_db - point.snr_db) / fit.width_db
        share = float(np.clip(special.ndtr(argument), 1e-12, 1 - 1e-12))
        slope = np.array([1 / fit.width_db, -argument])
        density = float(stats.norm.pdf(argument))
        information += point.num_blocks * density**2 / (share * (1 - share)) * np.outer(slope, slope)
    gradient = np.array([1.0, -fit.width_db * quantile])
    variance = float(gradient @ np.linalg.pinv(information) @ gradient)
    return Threshold(float(fit.snr_db_at(0.1)), float(np.sqrt(variance)))


def rising_pairs(points: list[BlerPoint], significance: float = 1e-4) -> list[list[float]]:
    """Neighbouring points whose block error rate rises with the SNR by more than chance."""
    found = []
    for low, high in itertools.pairwise(points):
        table = [
            [high.num_errors, high.num_blocks - high.num_errors],
            [low.num_errors, low.num_blocks - low.num_errors],
        ]
        if stats.fisher_exact(table, alternative="greater").pvalue < significance:
            found.append([low.snr_db, high.snr_db])
    return found


def as_lists(points: list[BlerPoint]) -> list[list[float]]:
    """[SNR in dB, blocks, errors] of each point."""
    return [[round(point.snr_db, 4), point.num_blocks, point.num_errors] for point in points]
