"""Measures the SNR at which each MCS works: AWGN, perfect channel knowledge, this modem's own chain.

Every block passes encoder, modulator, noise, soft demodulator and decoder.  The waterfall is found by a
coarse search, sampled on a grid, and a normal distribution function in dB is fitted to all counts by
maximum likelihood; thresholds are read from the fit, so that each uses the statistics of all points.
Estimation losses of a real receiver are not in these numbers.

Run `python -m calibration.mcs_thresholds OUTPUT.json` to measure; the packaged table came from it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from radio.coding.transport_block import LLR_SCALE, decode, encode, transport_block_code
from radio.mcs import SCHEMES, THRESHOLDS_FORMAT, Mcs
from radio.modulation import demodulate_llr, modulate

BLOCK_RESOURCE_ELEMENTS = (520, 1040, 2080)
MAX_ITERATIONS = 8
# Blocks that are simulated in one call: bounds the memory, not the statistics.
_BATCH_BLOCKS = 100


@dataclass(frozen=True)
class BlerPoint:
    """Blocks sent and lost at one SNR."""

    snr_db: float
    num_blocks: int
    num_errors: int

    @property
    def bler(self) -> float:
        """Share of lost blocks."""
        return self.num_errors / self.num_blocks


@dataclass(frozen=True)
class Waterfall:
    """A fitted curve BLER(snr) = Phi((center_db - snr) / width_db) and the counts behind it."""

    center_db: float
    width_db: float
    points: tuple[BlerPoint, ...]

    def snr_db_at(self, bler: float) -> float:
        """Return the SNR at which the fit reaches a block error rate [dB]."""
        return float(self.center_db - self.width_db * special.ndtri(bler))


def measure_bler(
    mcs: Mcs,
    num_resource_elements: int,
    snr_db: float,
    num_blocks: int,
    rng: np.random.Generator,
    max_iterations: int = MAX_ITERATIONS,
) -> BlerPoint:
    """Return the block errors of one scheme on AWGN.

    Parameters
    ----------
    mcs
        The scheme.
    num_resource_elements
        Data symbols per block.
    snr_db
        Es/N0 per symbol [dB].
    num_blocks
        How many blocks to send.
    rng
        Source of payloads and noise.
    max_iterations
        Of the decoder.

    Returns
    -------
    BlerPoint
        A block whose check passes with a wrong payload counts as an error too.
    """
    code = transport_block_code(num_resource_elements * mcs.modulation, int(mcs.modulation), mcs.code_rate)
    noise_variance = 10.0 ** (-snr_db / 10)
    amplitude = np.float32(np.sqrt(noise_variance / 2))
    num_errors = 0
    for start in range(0, num_blocks, _BATCH_BLOCKS):
        count = min(_BATCH_BLOCKS, num_blocks - start)
        payload = rng.integers(0, 256, (count, code.num_info_bytes), dtype=np.uint8)
        received = modulate(mcs.modulation, encode(code, payload))
        noise = rng.standard_normal((count, 2 * num_resource_elements), dtype=np.float32)
        received += (noise * amplitude).view(np.complex64)
        variance = np.full(received.shape, noise_variance, dtype=np.float32)
        result = decode(code, demodulate_llr(mcs.modulation, received, variance), max_iterations)
        num_errors += int((~result.ok | (result.payload != payload).any(axis=1)).sum())
    return BlerPoint(snr_db, num_blocks, num_errors)


def fit_waterfall(points: list[BlerPoint]) -> Waterfall:
    """Return the normal distribution function in dB that makes the counts most likely."""
    snr_db = np.array([point.snr_db for point in points])
    sent = np.array([point.num_blocks for point in points], dtype=np.float64)
    lost = np.array([point.num_errors for point in points], dtype=np.float64)
    half = snr_db[np.argmin(np.abs(lost / sent - 0.5))]

    def negative_log_likelihood(parameters: NDArray[np.float64]) -> float:
        argument = (parameters[0] - snr_db) / np.exp(parameters[1])
        likelihood = lost * special.log_ndtr(argument) + (sent - lost) * special.log_ndtr(-argument)
        return float(-likelihood.sum())

    best = optimize.minimize(negative_log_likelihood, [half, np.log(0.2)], method="Nelder-Mead")
    return Waterfall(float(best.x[0]), float(np.exp(best.x[1])), tuple(points))


def measure_waterfall(
    mcs: Mcs,
    num_resource_elements: int,
    rng: np.random.Generator,
    *,
    num_blocks: int,
    start_db: float,
    max_iterations: int = MAX_ITERATIONS,
) -> Waterfall:
    """Return the fitted waterfall of one scheme.

    Parameters
    ----------
    mcs, num_resource_elements, rng, max_iterations
        As in `measure_bler`.
    num_blocks
        Blocks per grid point.
    start_db
        A guess from which the search walks [dB].
    """
    coarse_blocks = 40

    def share(snr_db: float) -> float:
        return measure_bler(mcs, num_resource_elements, snr_db, coarse_blocks, rng, max_iterations).bler

    low = start_db
    while share(low) < 0.5:
        low -= 1.0
    high = low + 1.0
    while share(high) >= 0.5:
        low, high = high, high + 1.0
    for _ in range(3):
        middle = (low + high) / 2
        low, high = (middle, high) if share(middle) >= 0.5 else (low, middle)
    center = (low + high) / 2

    pilot = [
        measure_bler(mcs, num_resource_elements, center + offset, 100, rng, max_iterations)
        for offset in (-0.3, -0.1, 0.1, 0.3)
    ]
    rough = fit_waterfall(pilot)
    width = min(max(rough.width_db, 0.05), 1.0)
    # From 70 % to 0.3 %: 10 % and 1 % are interpolated, never extrapolated.
    grid = rough.center_db + width * np.array([-0.5, 0.3, 0.9, 1.4, 1.9, 2.3, 2.8])
    points = [
        measure_bler(mcs, num_resource_elements, float(snr_db), num_blocks, rng, max_iterations)
        for snr_db in grid
    ]
    return fit_waterfall(points)


def measure_all(*, num_blocks: int, seed: int, report: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Return the thresholds document of all schemes and block lengths.

    Parameters
    ----------
    num_blocks
        Blocks per grid point, of which there are seven per scheme and length.
    seed
        Seeds an independent generator per scheme and length.
    report
        Called with a line of text per scheme; None for silence.
    """
    entries: list[dict[str, Any]] = []
    guess_db = -8.0
    for mcs in SCHEMES:
        fits = []
        for class_index, num_resource_elements in enumerate(BLOCK_RESOURCE_ELEMENTS):
            rng = np.random.default_rng([seed, mcs.index, class_index])
            fit = measure_waterfall(mcs, num_resource_elements, rng, num_blocks=num_blocks, start_db=guess_db)
            guess_db = fit.center_db
            fits.append(fit)
        entries.append(
            {
                "index": mcs.index,
                "modulation": mcs.modulation.name,
                "code_rate": mcs.code_rate,
                "snr_db_at_bler_10_percent": [round(fit.snr_db_at(0.1), 4) for fit in fits],
                "snr_db_at_bler_1_percent": [round(fit.snr_db_at(0.01), 4) for fit in fits],
                "points": [
                    [[round(point.snr_db, 4), point.num_blocks, point.num_errors] for point in fit.points]
                    for fit in fits
                ],
            }
        )
        if report is not None:
            found = " ".join(f"{value:7.2f}" for value in entries[-1]["snr_db_at_bler_10_percent"])
            report(f"{mcs.index:2d} {mcs.name:13s} {mcs.spectral_efficiency:5.2f} bit  10 % at {found} dB")
    return {
        "format": THRESHOLDS_FORMAT,
        "provenance": {
            "measured_by": "python -m calibration.mcs_thresholds",
            "channel": "AWGN, one tap, channel and noise variance known",
            "snr": "Es/N0 per data symbol [dB]",
            "decoder": "layered normalised min-sum, int8",
            "max_iterations": MAX_ITERATIONS,
            "llr_scale": LLR_SCALE,
            "blocks_per_point": num_blocks,
            "fit": "normal distribution function in dB, maximum likelihood over all points",
            "seed": seed,
            "date": datetime.date.today().isoformat(),
            "machine": platform.machine(),
            "versions": {
                "python": platform.python_version(),
                "numpy": np.__version__,
                "numba": numba.__version__,
            },
        },
        "block_resource_elements": list(BLOCK_RESOURCE_ELEMENTS),
        "mcs": entries,
    }


def write_document(document: dict[str, Any], path: Path) -> None:
    """Write a thresholds document with one line per list of numbers."""
    lines = [json.dumps(entry) for entry in document["mcs"]]
    head = {key: value for key, value in document.items() if key != "mcs"}
    text = json.dumps(head, indent=1)[:-2] + ',\n "mcs": [\n  ' + ",\n  ".join(lines) + "\n ]\n}\n"
    path.write_text(text, encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Measure all thresholds and write them to a file."""
    parser = argparse.ArgumentParser(prog="python -m calibration.mcs_thresholds", description=__doc__)
    parser.add_argument("output", type=Path, help="the JSON file to write")
    parser.add_argument("--blocks", type=int, default=800, help="blocks per grid point")
    parser.add_argument("--seed", type=int, default=20240229)
    options = parser.parse_args(arguments)
    started = time.process_time()

    def report(line: str) -> None:
        sys.stderr.write(line + "\n")

    document = measure_all(num_blocks=options.blocks, seed=options.seed, report=report)
    write_document(document, options.output)
    report(f"{time.process_time() - started:.0f} s of CPU time")


if __name__ == "__main__":
    main()
