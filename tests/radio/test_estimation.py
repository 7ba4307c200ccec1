"""Estimators against what is known of them: unbiased, near the Cramer-Rao bound, stated error rates."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from signals import LAPTOP, PLUTO_LAB, complex_noise

from radio.estimation import (
    FALSE_ALARM,
    LEAKAGE,
    estimate_channel,
    estimate_sounding,
    prefix_span,
    sounding_grid,
)
from radio.numerology import SOUNDING_SYMBOLS, Numerology
from radio.ofdm import grid_to_samples, samples_to_grid

BOTH = pytest.mark.parametrize("numerology", [LAPTOP, PLUTO_LAB], ids=["laptop", "pluto-lab"])
CONFIDENCE = 1 - 1e-4


def _channels(
    rng: np.random.Generator, numerology: Numerology, shape: tuple[int, ...]
) -> NDArray[np.complex64]:
    """Rayleigh channels of four paths anywhere in the prefix, mean power 1, over one subchannel."""
    width = numerology.subcarriers_per_subchannel
    delays = rng.uniform(0, numerology.prefix_samples, (*shape, 4, 1))
    gains = complex_noise(rng, (*shape, 4, 1), 0.25)
    carriers = np.exp(-2j * np.pi * delays * np.arange(width) / numerology.fft_size)
    return (gains * carriers).sum(axis=-2).astype(np.complex64)


@BOTH
def test_span_is_a_projection_that_keeps_channels_inside_the_prefix(numerology: Numerology) -> None:
    width = numerology.subcarriers_per_subchannel
    projection, rank = prefix_span(numerology.prefix_samples, numerology.fft_size, width)
    np.testing.assert_allclose(projection, projection.conj().T, atol=1e-6)
    np.testing.assert_allclose(projection @ projection, projection, atol=2e-6)
    assert np.trace(projection).real == pytest.approx(rank, abs=1e-4)
    channels = _channels(np.random.default_rng(1), numerology, (4000,))
    missed = channels - channels @ projection.T
    assert np.mean(np.abs(missed) ** 2) < 3 * LEAKAGE
    first_path = np.ones(width) - projection @ np.ones(width)
    assert 10 * np.log10(np.mean(np.abs(first_path) ** 2)) < -49
    # The fewest vectors that do: white noise keeps only rank / width of its power.
    assert rank <= width * numerology.prefix_samples / numerology.fft_size + 4


@BOTH
@pytest.mark.parametrize("snr_db", [0.0, 10.0, 20.0])
def test_noise_and_snr_are_unbiased(numerology: Numerology, snr_db: float) -> None:
    rng = np.random.default_rng([2, round(snr_db)])
    width, num = numerology.subcarriers_per_subchannel, numerology.num_subchannels
    _, rank = prefix_span(numerology.prefix_samples, numerology.fft_size, width)
    power = 10 ** (-snr_db / 10)
    channel = _channels(rng, numerology, (500, 1, num))
    true_snr = np.mean(np.abs(channel[:, 0]) ** 2, axis=-1) / power
    noise = complex_noise(rng, (500, 2, num, width), power)
    estimate = estimate_channel(numerology, channel + noise)
    # Noise power is a chi-square variable with four real dimensions per pair of subcarriers.
    deviation = np.sqrt(2 / (4 * (width - rank)) / estimate.noise_power.size)
    bias = estimate.noise_power.mean() / power - 1
    limit = stats.norm.isf((1 - CONFIDENCE) / 2) * deviation
    assert -limit < bias < limit + 3 * LEAKAGE / power
    strong = true_snr > 1.0
    ratio = estimate.snr[strong] / true_snr[strong]
    assert ratio.mean() == pytest.approx(1.0, abs=0.03)
    error = np.mean(np.abs(estimate.first - channel[:, 0]) ** 2) / power
    assert error == pytest.approx(rank / width, rel=0.03, abs=3 * LEAKAGE / power)


@BOTH
def test_pilot_detection_has_the_stated_false_alarm_rate(numerology: Numerology) -> None:
    width = numerology.subcarriers_per_subchannel
    noise = complex_noise(np.random.default_rng(3), (2000, 2, 20, width), 0.3)
    detected = estimate_channel(numerology, noise).detected
    result = stats.binomtest(int(detected.sum()), detected.size, FALSE_ALARM)
    assert result.pvalue > 1 - CONFIDENCE


def test_pilot_detection_rate_at_a_steady_channel() -> None:
    # At -5 dB, where the lowest MCS dies, most of the laptop's pilots are found one by one; those of a
    # transmitter's other subchannels make up for the rest.
    noise = complex_noise(np.random.default_rng(4), (500, 2, 20, 40), 10**0.5)
    detected = estimate_channel(LAPTOP, noise + np.complex64(1)).detected
    interval = stats.binomtest(int(detected.sum()), detected.size).proportion_ci(CONFIDENCE)
    assert interval.low > 0.8


def _sound(
    rng: np.random.Generator, numerology: Numerology, cfo_hz: float, snr_db: float
) -> NDArray[np.complex64]:
    symbol_s = numerology.symbol_samples / numerology.sample_rate_hz
    turn = np.exp(2j * np.pi * cfo_hz * symbol_s * np.arange(SOUNDING_SYMBOLS))[:, None]
    grid = sounding_grid(numerology, 1.0) * turn
    return (grid + complex_noise(rng, grid.shape, 10 ** (-snr_db / 10))).astype(np.complex64)


@BOTH
@pytest.mark.parametrize("snr_db", [0.0, 5.0, 10.0, 20.0])
def test_cfo_is_near_the_cramer_rao_bound(numerology: Numerology, snr_db: float) -> None:
    rng = np.random.default_rng([5, round(snr_db)])
    symbol_s = numerology.symbol_samples / numerology.sample_rate_hz
    elements = numerology.num_subcarriers * SOUNDING_SYMBOLS * (SOUNDING_SYMBOLS**2 - 1)
    bound_hz = np.sqrt(6 / (10 ** (snr_db / 10) * elements)) / (2 * np.pi * symbol_s)
    trials = 400
    true = rng.uniform(-0.4, 0.4, trials) / symbol_s
    errors = [
        estimate_sounding(numerology, _sound(rng, numerology, cfo, snr_db), 1.0).cfo_hz - cfo for cfo in true
    ]
    # Noise meeting noise adds 1 / (4 SNR) to the variance; the rest is the spread of 400 trials.
    expected = bound_hz * np.sqrt(1 + 10 ** (-snr_db / 10) / SOUNDING_SYMBOLS)
    spread = np.sqrt(stats.chi2.isf(1e-4, trials) / trials)
    assert np.sqrt(np.mean(np.square(errors))) < expected * spread
    assert abs(np.mean(errors)) < 4 * expected / np.sqrt(trials)


@pytest.mark.parametrize(
    ("numerology", "snr_db"), [(LAPTOP, -8.0), (PLUTO_LAB, -5.0)], ids=["laptop", "pluto"]
)
def test_sounding_is_found_where_the_lowest_mcs_dies_and_not_in_noise(
    numerology: Numerology, snr_db: float
) -> None:
    rng = np.random.default_rng(6)
    trials = 1500
    false = sum(
        estimate_sounding(numerology, complex_noise(rng, (4, numerology.num_subcarriers), 1.0), 1.0).detected
        for _ in range(trials)
    )
    assert stats.binomtest(false, trials).proportion_ci(CONFIDENCE).high < 0.01
    found = sum(
        estimate_sounding(numerology, _sound(rng, numerology, 300.0, snr_db), 1.0).detected
        for _ in range(300)
    )
    assert stats.binomtest(found, 300).proportion_ci(CONFIDENCE).low > 0.95


@pytest.mark.parametrize("amplitude", [0.01, 1.0, 30.0])
def test_sounding_gives_gains_noise_and_delay(amplitude: float) -> None:
    rng = np.random.default_rng(7)
    samples = grid_to_samples(LAPTOP, sounding_grid(LAPTOP, amplitude))
    delay = 23
    received = np.concatenate([np.zeros(delay, np.complex64), samples])[: len(samples)]
    received = received * np.complex64(0.2 * np.exp(1j)) + complex_noise(
        rng, len(samples), 1e-3 * amplitude**2
    )
    estimate = estimate_sounding(LAPTOP, samples_to_grid(LAPTOP, received), amplitude)
    assert estimate.detected
    assert estimate.delay_samples == delay
    np.testing.assert_allclose(estimate.gain, 0.04, rtol=0.06)
    assert estimate.noise_power == pytest.approx(1e-3 * amplitude**2, rel=0.08)
    np.testing.assert_allclose(estimate.snr, 40, rtol=0.15)


def test_sounding_of_garbage_is_not_detected_and_finite() -> None:
    for value in (np.nan, np.inf, 1e30, 0.0):
        grid = np.full((4, 800), value, np.complex64)
        estimate = estimate_sounding(LAPTOP, grid, 0.1)
        assert not estimate.detected
        assert np.isfinite(estimate.gain).all()
        assert np.isfinite([estimate.noise_power, estimate.cfo_hz, estimate.delay_samples]).all()
