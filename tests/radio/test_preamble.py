"""Preambles: found wherever they are, never in noise, with an offset near the Cramer-Rao bound."""

import numpy as np
import pytest
from burst_signals import TINY, cfo_bound_hz, echoes, heard
from scipy import stats
from signals import LAPTOP, PLUTO_LAB, complex_noise

from radio.numerology import Numerology
from radio.ofdm import grid_to_samples
from radio.preamble import (
    CANDIDATE_FALSE_ALARM,
    MAX_CANDIDATES,
    MAX_SEARCH_SAMPLES,
    PREAMBLE_SYMBOLS,
    advance_per_symbol,
    band_span,
    candidate_threshold,
    confirm,
    correlation_metric_reference,
    find_candidates,
    find_preambles,
    in_span,
    preamble_grid,
)

BOTH = pytest.mark.parametrize("numerology", [LAPTOP, PLUTO_LAB], ids=["laptop", "pluto-lab"])
CONFIDENCE = 1 - 1e-4


def _preamble(numerology: Numerology) -> np.ndarray:
    return grid_to_samples(numerology, preamble_grid(numerology))


def _in_noise(
    rng: np.random.Generator, numerology: Numerology, signal: np.ndarray, at: int, snr_db: float
) -> np.ndarray:
    samples = complex_noise(rng, at + len(signal) + 2 * numerology.symbol_samples, 10 ** (-snr_db / 10))
    samples[at : at + len(signal)] += signal
    return samples


@pytest.mark.parametrize("numerology", [TINY, PLUTO_LAB])
def test_peaks_are_those_of_the_reference(numerology: Numerology) -> None:
    rng = np.random.default_rng(1)
    size = numerology.symbol_samples
    for offset in (0, 1, size - 1, size, 3 * size + 5):
        samples = complex_noise(rng, 9 * size + offset, 1.0)
        samples[offset + size : offset + 5 * size] += 2 * _preamble(numerology)
        samples[: size // 2] = 0
        metric, angle = correlation_metric_reference(samples, size)
        (candidate,), count = find_candidates(numerology, samples)
        assert count == 1
        assert candidate.start_sample == np.argmax(metric)
        assert candidate.metric == pytest.approx(metric.max(), rel=1e-4)
        assert candidate.angle == pytest.approx(angle[np.argmax(metric)], abs=1e-4)


def test_the_metric_has_one_peak_as_wide_as_a_symbol() -> None:
    """Side lobes of the cover: none one symbol away, and where little else is heard at most a half."""
    size = PLUTO_LAB.symbol_samples
    samples = np.zeros(10 * size, np.complex64)
    samples[3 * size : 7 * size] = _preamble(PLUTO_LAB)
    samples += complex_noise(np.random.default_rng(2), len(samples), 1e-6)
    metric, _ = correlation_metric_reference(samples, size)
    assert np.argmax(metric) == pytest.approx(3 * size, abs=2)
    assert metric.max() > 0.999
    assert metric[3 * size + size // 2] == pytest.approx(0.25, abs=0.06)
    away = np.abs(np.arange(len(metric)) - 3 * size) > size
    assert metric[away].max() < 0.51
    assert metric[[2 * size, 4 * size]].max() < 0.01


@BOTH
def test_the_stated_share_of_noise_becomes_a_candidate(numerology: Numerology) -> None:
    rng = np.random.default_rng(3)
    threshold = candidate_threshold(numerology)
    # Metrics a symbol apart share few samples; these are one window apart and share none.
    size = numerology.symbol_samples
    trials = 20_000 if numerology is PLUTO_LAB else 5_000
    above = 0
    for _ in range(trials // 100):
        x = complex_noise(rng, (100, 4 * size), 1.0)
        early, late = x[:, : 3 * size], x[:, size:]
        signs = np.repeat([1, -1, -1], size)
        product = np.abs(np.sum(early.conj() * late * signs, axis=1)) ** 2
        scale = np.sum(np.abs(early) ** 2, axis=1) * np.sum(np.abs(late) ** 2, axis=1)
        above += int(np.count_nonzero(product / scale > threshold))
    interval = stats.binomtest(above, trials).proportion_ci(CONFIDENCE)
    assert interval.low < CANDIDATE_FALSE_ALARM
    assert interval.high > CANDIDATE_FALSE_ALARM / 3


@BOTH
def test_confirmation_keeps_to_its_false_alarm_rate_and_noise_is_no_preamble(numerology: Numerology) -> None:
    rng = np.random.default_rng(4)
    noise = complex_noise(rng, 3_000_000, 0.01)
    candidates, count = find_candidates(numerology, noise)
    assert count == len(candidates) > 10
    passed = sum(confirm(numerology, noise, c, false_alarm=0.05) is not None for c in candidates)
    assert stats.binomtest(passed, count, 0.05, alternative="greater").pvalue > 1 - CONFIDENCE
    assert not any(confirm(numerology, noise, c) for c in candidates)


@BOTH
@pytest.mark.parametrize("multipath", [False, True], ids=["awgn", "multipath"])
def test_found_at_minus_five_db_anywhere_with_any_offset(numerology: Numerology, multipath: bool) -> None:
    rng = np.random.default_rng([5, multipath])
    trials, found = 100, 0
    for _ in range(trials):
        cfo_hz, at = rng.uniform(-150e3, 150e3), int(rng.integers(0, 20_000))
        taps = echoes(rng, numerology) if multipath else None
        signal = heard(numerology, _preamble(numerology), cfo_hz=cfo_hz, taps=taps)
        result = find_preambles(numerology, _in_noise(rng, numerology, signal, at, -5.0))
        assert len(result.found) <= 1
        for preamble in result.found:
            found += 1
            assert abs(preamble.start_sample - at) < numerology.prefix_samples / 2
            assert abs(preamble.cfo_hz - cfo_hz) < 0.1 * numerology.subcarrier_spacing_hz
            gain = np.mean(np.abs(preamble.channel) ** 2)
            assert preamble.noise_power == pytest.approx(10**0.5, rel=0.2)
            assert preamble.snr == pytest.approx(gain / 10**0.5, rel=0.5)
    assert stats.binomtest(found, trials, 0.995, alternative="less").pvalue > 1 - CONFIDENCE


@BOTH
@pytest.mark.parametrize("snr_db", [0.0, 5.0, 10.0, 20.0])
def test_offset_is_near_the_cramer_rao_bound_and_timing_within_the_prefix(
    numerology: Numerology, snr_db: float
) -> None:
    rng = np.random.default_rng([6, round(snr_db)])
    trials = 80
    errors, late = [], []
    for _ in range(trials):
        cfo_hz, at = rng.uniform(-150e3, 150e3), int(rng.integers(0, 3_000))
        delay = rng.random()
        signal = heard(
            numerology,
            _preamble(numerology),
            cfo_hz=cfo_hz,
            delay_samples=delay,
            taps=echoes(rng, numerology),
        )
        (preamble,) = find_preambles(numerology, _in_noise(rng, numerology, signal, at, snr_db)).found
        errors.append(preamble.cfo_hz - cfo_hz)
        late.append(preamble.start_sample - at - delay)
    # 10 % over the bound, and the spread of 80 trials.
    spread = np.sqrt(stats.chi2.isf(1e-4, trials) / trials)
    assert np.sqrt(np.mean(np.square(errors))) < 1.1 * cfo_bound_hz(numerology, 10 ** (snr_db / 10)) * spread
    # The first path is the strongest or 16 dB less: an eighth of the prefix is more than it ever misses by.
    assert max(np.abs(late)) <= numerology.prefix_samples / 8
    assert -3.0 < np.mean(late) < 0.5


@BOTH
def test_level_does_not_matter(numerology: Numerology) -> None:
    rng = np.random.default_rng(7)
    signal = heard(numerology, _preamble(numerology), cfo_hz=77e3)
    samples = _in_noise(rng, numerology, signal, 1234, 3.0)
    (expected,) = find_preambles(numerology, samples).found
    for level in (1e-6, 1e-3, 1e3):
        (found,) = find_preambles(numerology, samples * np.float32(level)).found
        assert found.start_sample == expected.start_sample
        assert found.cfo_hz == pytest.approx(expected.cfo_hz, abs=1.0)
        assert found.snr == pytest.approx(expected.snr, rel=1e-3)
        assert found.noise_power == pytest.approx(expected.noise_power * level**2, rel=1e-3)


@BOTH
def test_carriers_silence_and_steps_are_no_preambles(numerology: Numerology) -> None:
    rng = np.random.default_rng(8)
    n = np.arange(30_000)
    noise = complex_noise(rng, len(n), 1e-4)
    for samples in (
        np.zeros(len(n), np.complex64),
        np.ones(len(n), np.complex64),
        np.exp(2j * np.pi * 0.013 * n).astype(np.complex64) + noise,
        (n % numerology.symbol_samples == 0).astype(np.complex64),
        np.where(n > 15_000, 1, 0).astype(np.complex64) + noise,
        np.where(n > 15_000, 0, complex_noise(rng, len(n), 1.0)).astype(np.complex64),
    ):
        assert not find_preambles(numerology, samples).found


def test_a_loud_burst_does_not_hide_a_faint_one() -> None:
    """60 dB apart, ten symbols between them: sums that were subtracted from each other would lose it."""
    rng = np.random.default_rng(9)
    size = PLUTO_LAB.symbol_samples
    samples = complex_noise(rng, 40 * size, 1e-8)
    samples[2 * size : 6 * size] += _preamble(PLUTO_LAB)
    samples[16 * size : 20 * size] += np.float32(1e-3) * _preamble(PLUTO_LAB)
    starts = [found.start_sample for found in find_preambles(PLUTO_LAB, samples).found]
    np.testing.assert_allclose(starts, [2 * size, 16 * size], atol=3)


@BOTH
def test_span_holds_every_channel_inside_the_prefix(numerology: Numerology) -> None:
    rng = np.random.default_rng(10)
    span = band_span(numerology)
    np.testing.assert_allclose(span.conj().T @ span, np.eye(span.shape[1]), atol=1e-5)
    delays = rng.uniform(0, numerology.prefix_samples, (300, 1))
    channels = np.exp(-2j * np.pi * delays * numerology.subcarrier_offsets / numerology.fft_size)
    inside = in_span(numerology, channels.astype(np.complex64))
    np.testing.assert_allclose(inside, channels @ span.conj(), atol=2e-4 * np.sqrt(len(span)))
    missed = 1 - np.sum(np.abs(inside) ** 2, axis=1) / numerology.num_subcarriers
    assert missed.mean() < 1e-3


def test_phase_advance_of_a_clean_signal_is_exact() -> None:
    rng = np.random.default_rng(11)
    vector = complex_noise(rng, (1, 50), 1.0)
    places = np.array([0.0, 1.0, 2.0, 3.0, 7.0])
    for advance in (-0.4, 0.0, 0.3):
        observed = vector * np.exp(1j * advance * places)[:, None]
        assert advance_per_symbol(observed, places, advance - 0.1) == pytest.approx(advance, abs=1e-6)


def test_searches_are_bounded() -> None:
    with pytest.raises(ValueError, match="cut them into pieces"):
        find_preambles(TINY, np.zeros(MAX_SEARCH_SAMPLES + 1, np.complex64))
    size = TINY.symbol_samples
    count = MAX_CANDIDATES + 40
    samples = np.tile(np.concatenate([_preamble(TINY), np.zeros(4 * size, np.complex64)]), count)
    result = find_preambles(TINY, samples + complex_noise(np.random.default_rng(12), len(samples), 1e-3))
    assert result.num_candidates == count
    assert result.num_dropped == 40
    assert len(result.found) == MAX_CANDIDATES
    for too_short in (0, 1, PREAMBLE_SYMBOLS * size - 1):
        assert not find_preambles(TINY, np.ones(too_short, np.complex64)).found
