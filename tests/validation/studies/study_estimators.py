"""Estimators and detectors against what theory says of them."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from scipy import stats
from study_bler import detection_probability
from study_common import CONFIDENCE, NUMEROLOGIES, Case, binomial_interval, scaled, white_noise

from radio.estimation import FALSE_ALARM, estimate_channel, estimate_sounding, prefix_span, sounding_grid
from radio.numerology import SOUNDING_SYMBOLS, Numerology

SOUNDING_SNR_DB = (-5.0, 0.0, 5.0, 10.0, 20.0, 30.0)
SOUNDING_TRIALS = 2000
FALSE_SOUNDINGS = 20_000
SOUNDING_DETECTION_SNR_DB = (-20.0, -17.5, -15.0, -12.5, -10.0, -7.5, -5.0)
PILOT_NOISE_PLACES = 1_000_000
PILOT_DETECTION_SNR_DB = (-10.0, -7.5, -5.0, -2.5, 0.0, 2.5, 5.0)
PILOT_PLACES = 40_000


def cfo_bound_hz(numerology: Numerology, snr_db: float) -> float:
    """Cramer-Rao bound of the frequency of a sounding over an unknown channel [Hz].

    M symbols of K subcarriers, each with an unknown complex gain: Fisher information of the phase
    advance is 2 s K M (M^2 - 1) / 12 (Rife and Boorstyn 1974, with unknown phase and amplitude).
    """
    count = SOUNDING_SYMBOLS
    information = 10 ** (snr_db / 10) * numerology.num_subcarriers * count * (count**2 - 1) / 6
    symbol_s = numerology.symbol_samples / numerology.sample_rate_hz
    return float(1 / np.sqrt(information) / (2 * np.pi * symbol_s))


def _sound(rng: np.random.Generator, numerology: Numerology, cfo_hz: float, snr_db: float) -> Any:
    symbol_s = numerology.symbol_samples / numerology.sample_rate_hz
    turn = np.exp(2j * np.pi * cfo_hz * symbol_s * np.arange(SOUNDING_SYMBOLS))[:, None]
    grid = (sounding_grid(numerology, 1.0) * turn).astype(np.complex64)
    grid += white_noise(rng, grid.shape, 10 ** (-snr_db / 10))
    return estimate_sounding(numerology, grid, 1.0)


def _run_sounding(name: str, snr_db: float, rng: np.random.Generator, share: float) -> dict[str, Any]:
    """RMSE of the frequency over its bound; mean and variance of the gain over theirs."""
    numerology = NUMEROLOGIES[name]
    width, noise = numerology.subcarriers_per_subchannel, 10 ** (-snr_db / 10)
    trials = scaled(SOUNDING_TRIALS, share, 100)
    symbol_s = numerology.symbol_samples / numerology.sample_rate_hz
    true_hz = rng.uniform(-0.4, 0.4, trials) / symbol_s
    estimates = [_sound(rng, numerology, cfo, snr_db) for cfo in true_hz]
    errors = np.array([estimate.cfo_hz for estimate in estimates]) - true_hz
    gains = np.array([estimate.gain for estimate in estimates])
    bound = cfo_bound_hz(numerology, snr_db)
    # Squared magnitude of 1 + noise of power N / M, mean over the subchannel, noise subtracted.
    share_of_noise = noise / SOUNDING_SYMBOLS
    variance = (2 * share_of_noise + share_of_noise**2) / width + share_of_noise**2 / (
        (SOUNDING_SYMBOLS - 1) * numerology.num_subcarriers
    )
    half = stats.norm.isf((1 - CONFIDENCE) / 2)
    ratio = stats.chi2.interval(CONFIDENCE, trials)
    return {
        "numerology": name,
        "snr_db": snr_db,
        "num_soundings": trials,
        "cfo_rmse_hz": float(np.sqrt(np.mean(errors**2))),
        "cfo_bound_hz": bound,
        "cfo_rmse_over_bound": float(np.sqrt(np.mean(errors**2)) / bound),
        # Noise meeting noise adds 1 / (M s) to the variance.
        "cfo_expected_over_bound": float(np.sqrt(1 + noise / SOUNDING_SYMBOLS)),
        "cfo_chance": [float(np.sqrt(limit / trials)) for limit in ratio],
        "gain_bias": float(gains.mean() - 1),
        "gain_bias_chance": float(half * np.sqrt(variance / gains.size)),
        "gain_variance_over_theory": float(gains.var() / variance),
        "num_detected": int(sum(estimate.detected for estimate in estimates)),
    }


def _run_sounding_detection(name: str, rng: np.random.Generator, share: float) -> dict[str, Any]:
    numerology = NUMEROLOGIES[name]
    trials = scaled(FALSE_SOUNDINGS, share, 500)
    shape = (SOUNDING_SYMBOLS, numerology.num_subcarriers)
    false = sum(
        estimate_sounding(numerology, white_noise(rng, shape, 1.0), 1.0).detected for _ in range(trials)
    )
    rates = []
    for snr_db in SOUNDING_DETECTION_SNR_DB:
        count = scaled(400, share, 40)
        found = sum(_sound(rng, numerology, 300.0, snr_db).detected for _ in range(count))
        rates.append([snr_db, count, found])
    return {
        "numerology": name,
        "num_noise_soundings": trials,
        "num_false": int(false),
        "false_alarm_interval": binomial_interval(int(false), trials),
        "detections": rates,
    }


def _count_detected(
    rng: np.random.Generator, numerology: Numerology, num_places: int, gain: complex, power: float
) -> tuple[int, int]:
    found = total = 0
    while total < num_places:
        pilots = white_noise(
            rng, (500, 2, numerology.num_subchannels, numerology.subcarriers_per_subchannel), power
        )
        detected = estimate_channel(numerology, pilots + np.complex64(gain)).detected
        found, total = found + int(detected.sum()), total + detected.size
    return found, total


def _run_pilots(name: str, rng: np.random.Generator, share: float) -> dict[str, Any]:
    """Detection of the pilots of single subchannels against the non-central F distribution."""
    numerology = NUMEROLOGIES[name]
    width = numerology.subcarriers_per_subchannel
    projection, rank = prefix_span(numerology.prefix_samples, numerology.fft_size, width)
    false, places = _count_detected(rng, numerology, scaled(PILOT_NOISE_PLACES, share), 0.0, 1.0)
    kept = float(np.sum(np.abs(projection.astype(np.complex128) @ np.ones(width)) ** 2))
    rates = []
    for snr_db in PILOT_DETECTION_SNR_DB:
        power = 10 ** (-snr_db / 10)
        found, total = _count_detected(rng, numerology, scaled(PILOT_PLACES, share), 1.0, power)
        expected = detection_probability(rank, width, 4 * kept / power)
        low, high = stats.binom.interval(CONFIDENCE, total, expected)
        rates.append(
            {
                "snr_db": snr_db,
                "num_places": total,
                "rate": found / total,
                "theory": expected,
                "interval": [low / total, high / total],
            }
        )
    return {
        "numerology": name,
        "stated_false_alarm": FALSE_ALARM,
        "num_noise_places": places,
        "num_false": false,
        "false_alarm_interval": binomial_interval(false, places),
        "detections": rates,
    }


def cases() -> list[Case]:
    """Sounding and pilots of both numerologies."""
    found = []
    for name in NUMEROLOGIES:
        found += [
            Case(f"sounding/{name}/{snr_db:+.0f}", functools.partial(_run_sounding, name, snr_db))
            for snr_db in SOUNDING_SNR_DB
        ]
        found.append(Case(f"sounding-detection/{name}", functools.partial(_run_sounding_detection, name)))
        found.append(Case(f"pilot-detection/{name}", functools.partial(_run_pilots, name)))
    return found
