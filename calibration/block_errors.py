"""Measures where the modem's block errors lie against its effective SNR, for the fidelity ``blocks``.

Every block passes modulator, emulated air (one tap, thermal noise, 12-bit converters) and demodulator,
pilots and channel estimate included.  The same slots on an air of ``blocks`` fidelity say which effective
SNRs such blocks have.  A normal distribution function in dB, averaged over those SNRs, is fitted to the
counts by maximum likelihood, and its 10 % and 1 % points are stored as offsets from the thresholds of
:mod:`radio.mcs`.

Run `python -m calibration.block_errors OUTPUT.json` to measure; the packaged table came from it.
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

from radio.air.blocks import BlockAir
from radio.air.channel import FadingProfile, LinkParameters
from radio.air.core import AirCore, AirParameters, PortParameters, WindowRequest
from radio.block_errors import BLOCK_ERRORS_FORMAT
from radio.block_words import SlotBurst, SlotRequest
from radio.fidelity import Fidelity
from radio.mcs import SCHEMES, Mcs, thresholds_db
from radio.numerology import Numerology
from radio.phy import block_bytes, demodulate_slots, modulate_slots
from radio.units import thermal_noise_w_per_hz

NUMEROLOGY = Numerology(20e6, 1024, 72, 20, 40, 28, 6)
AIMS = (0.3, 0.1, 0.03, 0.01)  # block error rates of the AWGN curve at which to measure
_WINDOW_SLOTS = 6
_PATH_LOSS_DB = 70.0
_FULL_SCALE_DBM = 20.0
_NOISE_FIGURE_DB = 7.0
_RECEIVED_DBFS = -15.0


@dataclass(frozen=True)
class Point:
    """Blocks sent and lost at one SNR, and the effective SNRs [dB] that such blocks have."""

    snr_db: float
    num_blocks: int
    num_errors: int
    effective_snr_db: NDArray[np.float64]


class _Listening(BlockAir):
    """Notes effective SNRs."""

    def __init__(self, parameters: AirParameters) -> None:
        super().__init__(parameters)
        self.effective_snr_db: list[NDArray[np.float64]] = []

    def _failure_rate(self, mcs_index: NDArray[np.int64], snr_db: NDArray[np.float64]) -> NDArray[np.float64]:
        self.effective_snr_db.append(snr_db)
        return np.zeros(len(snr_db))


def _parameters(seed: int, fidelity: Fidelity) -> AirParameters:
    ports = (
        PortParameters("board", _FULL_SCALE_DBM, noise_figure_db=_NOISE_FIGURE_DB),
        PortParameters("server", _FULL_SCALE_DBM, noise_figure_db=_NOISE_FIGURE_DB),
    )
    still = FadingProfile(rician_k_db=80.0)
    link = LinkParameters("board", "server", _PATH_LOSS_DB, timing_offset_samples=9, fading=still)
    rate, slot = NUMEROLOGY.sample_rate_hz, NUMEROLOGY.slot_samples
    return AirParameters(seed, rate, slot, ports, (link,), fidelity=fidelity, numerology=NUMEROLOGY)


def measure_point(mcs: Mcs, snr_db: float, num_slots: int, seed: int) -> Point:
    """Return the block errors of one scheme behind the whole receiver.

    Parameters
    ----------
    snr_db
        Signal over thermal noise per subcarrier [dB].
    num_slots
        Of 20 blocks each.
    """
    noise_w = thermal_noise_w_per_hz(_NOISE_FIGURE_DB) * NUMEROLOGY.sample_rate_hz
    signal_w = 10 ** (snr_db / 10) * noise_w
    amplitude_w = 10 ** ((_FULL_SCALE_DBM - 30 - _PATH_LOSS_DB) / 10)
    num = NUMEROLOGY.num_subchannels
    amplitude = np.full(num, np.sqrt(signal_w / amplitude_w))
    sample_w = signal_w * NUMEROLOGY.num_subcarriers / NUMEROLOGY.fft_size + noise_w
    rx_gain_db = _RECEIVED_DBFS - 10 * np.log10(sample_w) - 30
    samples_air = AirCore(_parameters(seed, Fidelity.IQ))
    blocks_air = _Listening(_parameters(seed, Fidelity.BLOCKS))
    for core in (samples_air, blocks_air):
        core.attach("server")
        core.attach("board")
        core.set_rx_gain("server", rx_gain_db)
    rng = np.random.default_rng([seed, mcs.index])
    length = block_bytes(NUMEROLOGY, mcs.index)
    mcs_index, owner = np.full(num, mcs.index, np.int64), np.zeros(num, np.int64)
    num_decoded = 0
    for first_slot in range(0, num_slots, _WINDOW_SLOTS):
        slots = min(_WINDOW_SLOTS, num_slots - first_slot)
        first, count = first_slot * NUMEROLOGY.slot_samples, slots * NUMEROLOGY.slot_samples
        blocks = {(slot, k): rng.bytes(length) for slot in range(slots) for k in range(num)}
        samples_air.burst("board", first, modulate_slots(NUMEROLOGY, slots, blocks, mcs_index, amplitude))
        request = WindowRequest("server", first_slot, first, count, frozenset())
        (window,) = [*samples_air.request(request), *samples_air.silent_until("board", first + count)]
        num_decoded += len(demodulate_slots(NUMEROLOGY, window.samples, mcs_index, owner).blocks)
        blocks_air.burst_of_slots("board", first, SlotBurst(slots, blocks, mcs_index, amplitude))
        wanted = SlotRequest(slots, mcs_index, owner)
        blocks_air.request(WindowRequest("server", first_slot, first, count, frozenset(), wanted))
    total = num_slots * num
    return Point(snr_db, total, total - num_decoded, np.concatenate(blocks_air.effective_snr_db))


def fit(points: list[Point], center_db: float, width_db: float) -> tuple[float, float]:
    """Return centre and width [dB] of the curve that makes the counts most likely, from a first guess."""

    def negative_log_likelihood(parameters: NDArray[np.float64]) -> float:
        total = 0.0
        for point in points:
            rate = special.ndtr((parameters[0] - point.effective_snr_db) / np.exp(parameters[1])).mean()
            rate = min(max(rate, 1e-12), 1 - 1e-12)
            total -= point.num_errors * np.log(rate)
            total -= (point.num_blocks - point.num_errors) * np.log1p(-rate)
        return float(total)

    best = optimize.minimize(negative_log_likelihood, [center_db, np.log(width_db)], method="Nelder-Mead")
    return float(best.x[0]), float(np.exp(best.x[1]))


def measure_all(*, num_slots: int, seed: int, report: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Return the document of all schemes.

    Parameters
    ----------
    num_slots
        Per point, of 20 blocks each; there are four points per scheme.
    report
        Called with a line of text per scheme; None for silence.
    """
    elements = NUMEROLOGY.block_resource_elements
    at_10_percent, at_1_percent = thresholds_db(elements, 0.1), thresholds_db(elements, 0.01)
    quantile_10, quantile_1 = special.ndtri(0.1), special.ndtri(0.01)
    entries = []
    for mcs in SCHEMES:
        width = (at_1_percent[mcs.index] - at_10_percent[mcs.index]) / (quantile_10 - quantile_1)
        center = at_10_percent[mcs.index] + width * quantile_10
        # What the receiver adds is found with a few blocks, so that the points lie where they should.
        probe = measure_point(mcs, float(center) + 0.3, 12, seed)
        loss = float(center) + 0.3 - 10 * np.log10(np.mean(10 ** (probe.effective_snr_db / 10)))
        points = [
            measure_point(mcs, float(center - width * special.ndtri(aim)) + loss, num_slots, seed + 1 + index)
            for index, aim in enumerate(AIMS)
        ]
        fitted_center, fitted_width = fit(points, float(center), float(width))
        offsets = [
            fitted_center - fitted_width * quantile - threshold[mcs.index]
            for quantile, threshold in ((quantile_10, at_10_percent), (quantile_1, at_1_percent))
        ]
        entries.append(
            {
                "index": mcs.index,
                "modulation": mcs.modulation.name,
                "code_rate": mcs.code_rate,
                "offset_db_at_bler_10_percent": round(offsets[0], 4),
                "offset_db_at_bler_1_percent": round(offsets[1], 4),
                "points": [[round(point.snr_db, 4), point.num_blocks, point.num_errors] for point in points],
            }
        )
        if report is not None:
            counts = " ".join(f"{point.num_errors / point.num_blocks:.4f}" for point in points)
            report(f"{mcs.index:2d} {mcs.name:13s} {offsets[0]:+.3f} {offsets[1]:+.3f} dB; rates {counts}")
    return {
        "format": BLOCK_ERRORS_FORMAT,
        "provenance": {
            "measured_by": "python -m calibration.block_errors",
            "channel": "emulated air, one tap, thermal noise, 12-bit converters, iq fidelity",
            "receiver": "radio.phy.demodulate_slots: pilots, channel and noise estimated",
            "snr": "effective SNR of radio.effective_snr.BlockQuality against the threshold of radio.mcs [dB]",
            "fit": "normal distribution function in dB, averaged over the blocks' SNRs, maximum likelihood",
            "block_resource_elements": elements,
            "blocks_per_point": num_slots * NUMEROLOGY.num_subchannels,
            "seed": seed,
            "date": datetime.date.today().isoformat(),
            "machine": platform.machine(),
            "versions": {
                "python": platform.python_version(),
                "numpy": np.__version__,
                "numba": numba.__version__,
            },
        },
        "mcs": entries,
    }


def write_document(document: dict[str, Any], path: Path) -> None:
    """Write the document with one line per scheme."""
    lines = [json.dumps(entry) for entry in document["mcs"]]
    head = {key: value for key, value in document.items() if key != "mcs"}
    text = json.dumps(head, indent=1)[:-2] + ',\n "mcs": [\n  ' + ",\n  ".join(lines) + "\n ]\n}\n"
    path.write_text(text, encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Measure all schemes and write them to a file."""
    parser = argparse.ArgumentParser(prog="python -m calibration.block_errors", description=__doc__)
    parser.add_argument("output", type=Path, help="the JSON file to write")
    parser.add_argument("--slots", type=int, default=400, help="slots of 20 blocks per point")
    parser.add_argument("--seed", type=int, default=20240301)
    options = parser.parse_args(arguments)
    started = time.process_time()

    def report(line: str) -> None:
        sys.stderr.write(line + "\n")

    document = measure_all(num_slots=options.slots, seed=options.seed, report=report)
    write_document(document, options.output)
    report(f"{time.process_time() - started:.0f} s of CPU time")


if __name__ == "__main__":
    main()
