"""Statistics of packet reception without common timing: run by ``make validate``.

Each study is a function of a numerology and a share of the full number of trials, and draws from its own
seed, so that a test can do a tenth of it again.  Results go into ``acquisition.json`` beside this file, with
the commit they were measured on; studies whose part lies in the folder already are not repeated.

    detection    preambles found, offset against the Cramer-Rao bound, timing; over SNR, AWGN and echoes
    noise        candidates and false preambles in noise alone
    header       preamble and header together, lost at and around the lowest threshold
    burst        threshold of bursts against that of the receiver with common timing
    fdma         leakage and threshold of a filtered band between two others
    garbage      headers that lie and samples that are none
    speed        CPU time of search and reception, one thread
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT / "tests" / "radio"))

from burst_signals import (  # noqa: E402
    NUM_GARBAGE_KINDS,
    TINY,
    announced,
    beginning,
    burst_of,
    cfo_bound_hz,
    echoes,
    garbage,
    heard,
)
from signals import LAPTOP, PLUTO_LAB, complex_noise  # noqa: E402

from radio.burst import BurstCounters, overhead_symbols, receive_bursts  # noqa: E402
from radio.coding.crc import Crc, crc_bits  # noqa: E402
from radio.filtered_fdma import Band, filter_burst, plan_bands, receive_band, select_band  # noqa: E402
from radio.header import VERSION, HeaderFault, num_header_bits, parse_header  # noqa: E402
from radio.mcs import mcs_table, thresholds_db  # noqa: E402
from radio.ofdm import grid_to_samples, samples_to_grid  # noqa: E402
from radio.phy import demodulate_slots  # noqa: E402
from radio.preamble import confirm, find_candidates, find_preambles, preamble_grid  # noqa: E402
from radio.rotation import rotate  # noqa: E402

RESULTS = HERE / "acquisition.json"
FORMAT = "acquisition-validation/1"
SEED = 20261124
CONFIDENCE = 0.95
NUMEROLOGIES = {"pluto-lab": PLUTO_LAB, "laptop": LAPTOP}
MAX_CFO_HZ = 150e3
Result = dict[str, Any]


def _rng(*key: int | str) -> np.random.Generator:
    words = [SEED, *(part if isinstance(part, int) else sum(part.encode()) for part in key)]
    return np.random.default_rng(words)


def _count(share: float, full: int) -> int:
    return max(1, round(share * full))


def _proportion(successes: int, trials: int) -> Result:
    """A share with its Clopper-Pearson interval."""
    interval = stats.binomtest(successes, trials).proportion_ci(CONFIDENCE)
    return {
        "count": successes,
        "of": trials,
        "share": successes / trials,
        "low": float(interval.low),
        "high": float(interval.high),
    }


def _rms(values: list[float]) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) if values else float("nan")


DETECTION_SNR_DB = (-9.0, -8.0, -7.0, -6.0, -5.0, -3.0, 0.0, 5.0, 10.0, 15.0, 20.0)


def detection(name: str, share: float = 1.0) -> Result:
    """Single preambles at unknown time and offset."""
    numerology = NUMEROLOGIES[name]
    sent = grid_to_samples(numerology, preamble_grid(numerology))
    rows = []
    for channel in ("awgn", "echoes"):
        for snr_db in DETECTION_SNR_DB:
            rng = _rng("detection", name, channel, round(snr_db) + 100)
            trials, found, late, errors = _count(share, 1000), 0, [], []
            for _ in range(trials):
                cfo_hz, at = rng.uniform(-MAX_CFO_HZ, MAX_CFO_HZ), int(rng.integers(0, 5000))
                delay = rng.random()
                taps = echoes(rng, numerology) if channel == "echoes" else None
                signal = heard(numerology, sent, delay_samples=delay, cfo_hz=cfo_hz, taps=taps)
                samples = complex_noise(rng, at + len(signal) + 3000, 10 ** (-snr_db / 10))
                samples[at : at + len(signal)] += signal
                for preamble in find_preambles(numerology, samples).found:
                    miss = preamble.start_sample - at - delay
                    error = preamble.cfo_hz - cfo_hz
                    near = abs(error) < numerology.subcarrier_spacing_hz / 4
                    if abs(miss) < numerology.prefix_samples / 2 and near:
                        found += 1
                        late.append(miss)
                        errors.append(error)
            bound_hz = cfo_bound_hz(numerology, 10 ** (snr_db / 10))
            rows.append(
                {
                    "channel": channel,
                    "snr_db": snr_db,
                    "found": _proportion(found, trials),
                    "cfo_rmse_hz": _rms(errors),
                    "cfo_bound_hz": bound_hz,
                    "cfo_rmse_over_bound": _rms(errors) / bound_hz,
                    "timing_mean_samples": float(np.mean(late)) if late else float("nan"),
                    "timing_rmse_samples": float(np.std(late)) if late else float("nan"),
                    "timing_worst_samples": float(np.max(np.abs(late))) if late else float("nan"),
                }
            )
    return {"max_cfo_hz": MAX_CFO_HZ, "rows": rows}


LENIENT_FALSE_ALARM = 0.01


def noise(name: str, share: float = 1.0) -> Result:
    """Noise alone: what the first step lets through, and the last one."""
    numerology, rng = NUMEROLOGIES[name], _rng("noise", name)
    batch = 2_000_000
    num_samples = num_candidates = num_false = num_lenient = 0
    for _ in range(_count(share, 100)):
        samples = complex_noise(rng, batch, 0.01)
        candidates, count = find_candidates(numerology, samples)
        num_samples += batch
        num_candidates += count
        for candidate in candidates:
            num_false += confirm(numerology, samples, candidate) is not None
            lenient = confirm(numerology, samples, candidate, false_alarm=LENIENT_FALSE_ALARM)
            num_lenient += lenient is not None
    return {
        "num_samples": num_samples,
        "candidates_per_million_samples": num_candidates / num_samples * 1e6,
        "false_preambles": _proportion(num_false, num_candidates),
        "false_preambles_per_10_ms_at_most": stats.chi2.isf(1 - CONFIDENCE, 2 * num_false + 2)
        / 2
        / num_samples
        * 0.01
        * numerology.sample_rate_hz,
        "stated_lenient_false_alarm": LENIENT_FALSE_ALARM,
        "lenient_false_alarm": _proportion(num_lenient, num_candidates),
    }


def header(name: str, share: float = 1.0) -> Result:
    """Preamble and header in noise, at unknown time and offset."""
    numerology = NUMEROLOGIES[name]
    threshold_db = float(thresholds_db(numerology.block_resource_elements)[0])
    rows = []
    points = [(-8.0, 2000), (-7.0, 2000), (-6.0, 5000), (-5.0, 10_000), (threshold_db, 10_000)]
    for index, (snr_db, full) in enumerate(points):
        rng = _rng("header", name, index)
        trials = _count(share, full)
        not_found = unread = wrong = 0
        for _ in range(trials):
            sent_header, _, grant = announced(rng, numerology, 0, 1)
            sent = beginning(numerology, sent_header)
            at, cfo_hz = int(rng.integers(0, 1500)), rng.uniform(-MAX_CFO_HZ, MAX_CFO_HZ)
            samples = complex_noise(rng, at + len(sent) + 500, 10 ** (-snr_db / 10))
            samples[at : at + len(sent)] += rotate(sent, 0, cfo_hz / numerology.sample_rate_hz)
            bursts = receive_bursts(numerology, samples, [grant])
            right = any(burst.header == sent_header for burst in bursts)
            wrong += any(burst.header not in (None, sent_header) for burst in bursts)
            not_found += not bursts
            unread += bool(bursts) and not right
        rows.append(
            {
                "snr_db": snr_db,
                "lost": _proportion(not_found + unread, trials),
                "preamble_not_found": not_found,
                "header_unread": unread,
                "wrong_header_accepted": wrong,
            }
        )
    return {
        "lowest_mcs": mcs_table()[0].name,
        "lowest_threshold_10_percent_db": threshold_db,
        "overhead_symbols": overhead_symbols(numerology),
        "rows": rows,
    }


def _fit_threshold_db(points: list[tuple[float, int, int]]) -> tuple[float, float]:
    """SNR at a block error rate of 10 % and its standard error [dB].

    Maximum likelihood of a normal distribution function in dB over (SNR, blocks, lost).
    """
    snr_db, blocks, lost = np.array(points, np.float64).T

    def cost(parameters: NDArray[np.float64]) -> float:
        probability = stats.norm.cdf((parameters[0] - snr_db) * np.exp(parameters[1]) + stats.norm.ppf(0.1))
        probability = np.clip(probability, 1e-9, 1 - 1e-9)
        return float(-np.sum(lost * np.log(probability) + (blocks - lost) * np.log(1 - probability)))

    best = min(
        (optimize.minimize(cost, [start, 0.5], method="Nelder-Mead") for start in snr_db),
        key=lambda result: result.fun,
    )
    step = 0.02
    aside = np.array([step, 0.0])
    curvature = (cost(best.x + aside) - 2 * best.fun + cost(best.x - aside)) / step**2
    return float(best.x[0]), float(1 / np.sqrt(max(curvature, 1e-9)))


BURST_SCHEMES = (0, 6, 12)


def burst(name: str, share: float = 1.0, schemes: tuple[int, ...] = BURST_SCHEMES) -> Result:
    """Unknown time, carrier and clock against common timing, at equal SNR per data symbol."""
    numerology, num_slots = NUMEROLOGIES[name], 2
    rows = []
    for mcs in schemes:
        points: dict[str, list[tuple[float, int, int]]] = {"burst": [], "common": []}
        middle = float(thresholds_db(numerology.block_resource_elements)[mcs])
        reach = np.arange(0.0, 3.1, 0.5) if numerology is PLUTO_LAB else np.arange(-0.25, 1.1, 0.25)
        worst_ppm: list[float] = []
        for index, offset in enumerate(reach.tolist()):
            rng = _rng("burst", name, mcs, index)
            snr_db = middle + offset
            lost = {"burst": 0, "common": 0}
            trials = _count(share, 30)
            for _ in range(trials):
                sent_header, blocks, grant = announced(rng, numerology, mcs, num_slots)
                sent = burst_of(numerology, sent_header, blocks)
                drift_ppm = rng.uniform(-50, 50)
                signal = heard(
                    numerology,
                    sent,
                    delay_samples=rng.random(),
                    cfo_hz=rng.uniform(-MAX_CFO_HZ, MAX_CFO_HZ),
                    clock_drift_ppm=drift_ppm,
                )
                at = int(rng.integers(0, 2000))
                samples = complex_noise(rng, at + len(signal), 10 ** (-snr_db / 10))
                samples[at:] += signal
                received = receive_bursts(numerology, samples, [grant])
                right = sum(blocks[p] == b for one in received for p, b in one.blocks.items())
                worst_ppm += [abs(one.clock_drift_ppm - drift_ppm) for one in received if one.slots]
                lost["burst"] += len(blocks) - right
                slots = sent[-num_slots * numerology.slot_samples :]
                slots = slots + complex_noise(rng, len(slots), 10 ** (-snr_db / 10))
                common = demodulate_slots(
                    numerology, slots, np.array(sent_header.mcs_index), np.zeros(20, np.int64)
                )
                lost["common"] += len(blocks) - len(common.blocks)
            for kind, points_of_kind in points.items():
                points_of_kind.append((snr_db, trials * len(blocks), lost[kind]))
        fitted = {kind: _fit_threshold_db(points_of_kind) for kind, points_of_kind in points.items()}
        rows.append(
            {
                "mcs": mcs_table()[mcs].name,
                "awgn_threshold_db": middle,
                "burst_threshold_db": fitted["burst"][0],
                "common_threshold_db": fitted["common"][0],
                "loss_db": fitted["burst"][0] - fitted["common"][0],
                "loss_standard_error_db": float(np.hypot(fitted["burst"][1], fitted["common"][1])),
                "clock_drift_rmse_ppm": _rms(worst_ppm),
                "points": points,
            }
        )
    return {"num_slots": num_slots, "block_error_rate": 0.1, "rows": rows}


FDMA_SHARES = (6, 7, 6)
FDMA_GUARDS = (0, 2, 4, 8)
FDMA_IMBALANCES_DB = (None, 0.0, 10.0, 20.0)  # None: the others are silent
FDMA_MCS = 12
FDMA_REACH_DB = 12.0  # above where a threshold should be, after which it counts as not reached


def _leakage(bands: tuple[Band, ...], rng: np.random.Generator, trials: int, filtered: bool) -> Result:
    """Power per subcarrier of the middle band over that of its neighbours, which have random timing."""
    own = bands[1]
    numerology = own.numerology
    size = numerology.symbol_samples
    powers = np.zeros(numerology.num_subcarriers)
    for _ in range(trials):
        samples = np.zeros(40 * size, np.complex64)
        for band in (bands[0], bands[2]):
            quadrant = rng.integers(0, 4, (44, band.numerology.num_subcarriers))
            grid = np.exp(1j * np.pi / 2 * (quadrant + 0.5)).astype(np.complex64)
            sent = grid_to_samples(band.numerology, grid)
            centre = band.centre_subcarriers / numerology.fft_size
            signal = filter_burst(band, sent) if filtered else rotate(sent, 0, centre)
            late = int(rng.integers(size))
            samples += signal[late : late + len(samples)]
        centre = own.centre_subcarriers / numerology.fft_size
        received = select_band(own, samples) if filtered else rotate(samples, 0, -centre)
        grid = samples_to_grid(numerology, received[2 * size : -2 * size])
        powers += np.mean(np.abs(grid) ** 2, axis=0) / trials
    return {
        "mean_db": 10 * np.log10(powers.mean()),
        "edge_db": 10 * np.log10(max(powers[0], powers[-1])),
        "middle_db": 10 * np.log10(powers[len(powers) // 2]),
    }


def _fdma_lost(
    bands: tuple[Band, ...],
    rng: np.random.Generator,
    snr_db: float,
    imbalance_db: float | None,
    trials: int,
) -> tuple[int, int]:
    """Blocks of the middle band, and how many of them were lost."""
    own = bands[1]
    numerology = own.numerology
    lost = total = 0
    for _ in range(trials):
        sent_header, blocks, grant = announced(rng, numerology, FDMA_MCS, 1)
        sent = filter_burst(own, burst_of(numerology, sent_header, blocks))
        delay = int(rng.integers(0, 2 * numerology.symbol_samples))
        samples = complex_noise(rng, delay + len(sent), 10 ** (-snr_db / 10))
        samples[delay:] += sent
        for client, band in enumerate((bands[0], bands[2])):
            if imbalance_db is None:
                continue
            # More slots than the burst, so that it is disturbed from its beginning to its end.
            other_header, other_blocks, _ = announced(rng, band.numerology, FDMA_MCS, 2, client)
            other = filter_burst(band, burst_of(band.numerology, other_header, other_blocks))
            late = int(rng.integers(2 * numerology.symbol_samples, 6 * numerology.symbol_samples))
            part = other[late : late + len(samples)]
            samples[: len(part)] += np.float32(10 ** (imbalance_db / 20)) * part
        received = receive_band(own, samples, [grant])
        right = sum(blocks[p] == b for one in received for p, b in one.blocks.items())
        lost += len(blocks) - right
        total += len(blocks)
    return total, lost


def _fdma_threshold(
    bands: tuple[Band, ...], rng: np.random.Generator, imbalance_db: float | None, trials: int
) -> tuple[float | None, float | None, list[tuple[float, int, int]]]:
    """SNR at 10 % block errors, its standard error [dB] and the points; ``None`` where it is not reached."""
    numerology = bands[1].numerology
    snr_db = float(thresholds_db(numerology.block_resource_elements)[FDMA_MCS]) - 0.25
    last_db = snr_db + FDMA_REACH_DB
    step_db = 0.5 if numerology.subcarriers_per_subchannel < 20 else 0.2  # longer blocks are steeper
    points: list[tuple[float, int, int]] = []
    below = 0
    while snr_db < last_db and below < 2:
        total, lost = _fdma_lost(bands, rng, snr_db, imbalance_db, trials)
        points.append((snr_db, total, lost))
        below = below + 1 if lost < 0.06 * total else 0
        # Where all is lost, larger steps.
        snr_db += 4 * step_db if lost > 0.97 * total else step_db
    if below < 2:
        return None, None, points
    return *_fit_threshold_db(points), points


def fdma(
    name: str,
    share: float = 1.0,
    guards: tuple[int, ...] = FDMA_GUARDS,
    imbalances_db: tuple[float | None, ...] = FDMA_IMBALANCES_DB,
) -> Result:
    """The middle one of three bands, the others with unknown timing beyond the prefix."""
    rows = []
    for guard in guards:
        bands = plan_bands(NUMEROLOGIES[name], FDMA_SHARES, guard)
        leaking = _rng("leakage", name, guard)
        row: Result = {
            "guard_subcarriers": guard,
            "leakage_filtered": _leakage(bands, leaking, _count(share, 30), True),
            "leakage_unfiltered": _leakage(bands, leaking, _count(share, 30), False),
            "thresholds": [],
        }
        alone_db: float | None = None
        for imbalance_db in imbalances_db:
            key = -1 if imbalance_db is None else round(imbalance_db)
            rng = _rng("fdma", name, guard, key + 1)
            threshold_db, error_db, points = _fdma_threshold(bands, rng, imbalance_db, _count(share, 30))
            if imbalance_db is None:
                alone_db = threshold_db
            reached = threshold_db is not None and alone_db is not None
            row["thresholds"].append(
                {
                    "imbalance_db": imbalance_db,
                    "threshold_db": threshold_db,
                    "standard_error_db": error_db,
                    "loss_db": threshold_db - alone_db if reached else None,
                    "points": points,
                }
            )
        rows.append(row)
    return {"subchannels": FDMA_SHARES, "mcs": mcs_table()[FDMA_MCS].name, "rows": rows}


def lying_headers(num_cases: int) -> Result:
    """Headers over arbitrary content with checks that hold."""
    rng = _rng("lying")
    num_bits = num_header_bits(TINY)
    counted: Counter[str] = Counter()
    for case in range(num_cases):
        content = rng.integers(0, 2, num_bits - 16, dtype=np.uint8)
        if case % 4:
            content[:4] = [(VERSION >> n) & 1 for n in (3, 2, 1, 0)]
        if case % 4 == 2:
            content[44:52] = [0, 0, 0, 0, 0, 0, 1, 1]
        check = int(crc_bits(Crc.CRC16, content[None])[0])
        bits = np.concatenate([content, [(check >> n) & 1 for n in range(15, -1, -1)]]).astype(np.uint8)
        if case % 8 == 7:
            bits = bits[: int(rng.integers(0, num_bits))]
        found = parse_header(TINY, bits)
        counted[found.name if isinstance(found, HeaderFault) else "accepted"] += 1
    return {"num_cases": num_cases, "outcomes": dict(sorted(counted.items()))}


def damaged_samples(num_cases: int) -> Result:
    """Bursts of a tiny numerology, damaged in every way that `garbage` knows."""
    rng = _rng("damaged")
    counters = BurstCounters()
    wrong = 0
    for case in range(num_cases):
        if case % 50 == 0:
            sent_header, blocks, grant = announced(rng, TINY, 6, 2)
            sent = burst_of(TINY, sent_header, blocks)
        for one in receive_bursts(
            TINY, garbage(rng, case % NUM_GARBAGE_KINDS, sent), [grant], counters=counters
        ):
            wrong += one.header not in (None, sent_header)
            wrong += not set(one.blocks.values()) <= set(blocks.values())
    return {
        "num_cases": num_cases,
        "num_received": counters.num_received,
        "num_wrong": wrong,
        "refused": {fault.name: count for fault, count in sorted(counters.refused.items(), key=str)},
    }


def robustness(name: str, share: float = 1.0) -> Result:
    """Nothing crashes, everything is counted; the numerology is a tiny one."""
    assert name in NUMEROLOGIES
    return {
        "headers": lying_headers(_count(share, 100_000)),
        "samples": damaged_samples(_count(share, 25_000)),
    }


def speed(name: str, share: float = 1.0) -> Result:
    """CPU time of this thread: samples per second."""
    numerology, rng = NUMEROLOGIES[name], _rng("speed", name)
    repeats = _count(share, 10)
    empty = complex_noise(rng, round(0.01 * numerology.sample_rate_hz) * 8, 0.01)
    sent_header, blocks, grant = announced(rng, numerology, 12, 4)
    sent = burst_of(numerology, sent_header, blocks)
    noisy = np.concatenate([empty[: len(empty) // 8], sent])
    noisy = noisy + complex_noise(rng, len(noisy), 0.01)
    slots = noisy[-4 * numerology.slot_samples :].copy()
    index = np.array(sent_header.mcs_index)
    calls: dict[str, tuple[int, Callable[[], object]]] = {
        "search_of_noise": (len(empty), lambda: find_preambles(numerology, empty)),
        "reception_of_bursts": (len(noisy), lambda: receive_bursts(numerology, noisy, [grant])),
        "slots_with_common_timing": (
            len(slots),
            lambda: demodulate_slots(numerology, slots, index, np.zeros(20, np.int64)),
        ),
    }
    result: Result = {}
    for what, (num_samples, call) in calls.items():
        call()
        started = time.process_time()
        for _ in range(repeats):
            call()
        rate = repeats * num_samples / (time.process_time() - started) / 1e6
        result[what] = {"msamples_per_cpu_s": rate, "times_real_time": rate * 1e6 / numerology.sample_rate_hz}
    return result


STUDIES: dict[str, Callable[..., Result]] = {
    "detection": detection,
    "noise": noise,
    "header": header,
    "burst": burst,
    "fdma": fdma,
    "robustness": robustness,
    "speed": speed,
}


def commit() -> str:
    """The commit in the working tree, marked when something was changed since."""
    name = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    return name.stdout.strip() or "unknown"


def main() -> None:
    """Run everything, or what is missing of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/validate/acquisition"))
    parser.add_argument("--share", type=float, default=1.0, help="of the full number of trials")
    parser.add_argument("--studies", default=",".join(STUDIES), help="comma-separated")
    options = parser.parse_args()
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    measured_on = commit()
    results: Result = {
        "format": FORMAT,
        "commit": measured_on,
        "share": options.share,
        "seed": SEED,
        "confidence": CONFIDENCE,
        "host": {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()},
    }
    for study in options.studies.split(","):
        # What does not depend on the numerology is done once.
        names = ["pluto-lab"] if study == "robustness" else list(NUMEROLOGIES)
        for name in names:
            part = folder / f"{study}-{name}-{measured_on}-{options.share:g}.json"
            if not part.exists():
                started = time.process_time()
                measured = STUDIES[study](name, options.share)
                measured["cpu_s"] = round(time.process_time() - started, 1)
                part.write_text(json.dumps(measured) + "\n")
                sys.stderr.write(f"{study} {name}: {measured['cpu_s']} s\n")
            results.setdefault(study, {})[name] = json.loads(part.read_text())
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    sys.stdout.write(f"{RESULTS}\n")


if __name__ == "__main__":
    main()
