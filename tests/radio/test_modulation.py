"""Constellations of TS 38.211, exact max-log soft bits, and the error rates of the textbook."""

import numpy as np
import pytest
from scipy import special, stats

from radio.coding.transport_block import LLR_MAX, LLR_SCALE
from radio.modulation import (
    Modulation,
    constellation,
    demodulate_llr,
    demodulate_llr_reference,
    modulate,
)


def _standard_point(bits: list[int]) -> complex:
    """TS 38.211, 5.1.2 to 5.1.6 and the 1024-QAM of 5.1.7, written out as printed."""
    s = [1 - 2 * bit for bit in bits]
    if len(s) == 1:
        return (s[0] + 1j * s[0]) / np.sqrt(2)
    if len(s) == 2:
        return (s[0] + 1j * s[1]) / np.sqrt(2)
    if len(s) == 4:
        return (s[0] * (2 - s[2]) + 1j * s[1] * (2 - s[3])) / np.sqrt(10)
    if len(s) == 6:
        return (s[0] * (4 - s[2] * (2 - s[4])) + 1j * s[1] * (4 - s[3] * (2 - s[5]))) / np.sqrt(42)
    if len(s) == 8:
        real = s[0] * (8 - s[2] * (4 - s[4] * (2 - s[6])))
        return (real + 1j * s[1] * (8 - s[3] * (4 - s[5] * (2 - s[7])))) / np.sqrt(170)
    real = s[0] * (16 - s[2] * (8 - s[4] * (4 - s[6] * (2 - s[8]))))
    return (real + 1j * s[1] * (16 - s[3] * (8 - s[5] * (4 - s[7] * (2 - s[9]))))) / np.sqrt(682)


@pytest.mark.parametrize("modulation", list(Modulation))
def test_points_are_those_of_the_standard_with_unit_mean_power(modulation: Modulation) -> None:
    labels = np.arange(1 << modulation)
    bits = ((labels[:, None] >> np.arange(modulation - 1, -1, -1)) & 1).astype(np.uint8)
    expected = np.array([_standard_point(row) for row in bits.tolist()])
    symbols = modulate(modulation, bits)
    np.testing.assert_allclose(symbols[:, 0], expected, atol=2e-6)
    np.testing.assert_allclose(constellation(modulation), expected, atol=2e-6)
    assert np.mean(np.abs(symbols) ** 2) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("modulation", list(Modulation))
@pytest.mark.parametrize("snr_db", [-3.0, 12.0, 33.0])
def test_soft_bits_are_the_exact_max_log_ones(modulation: Modulation, snr_db: float) -> None:
    rng = np.random.default_rng([modulation, round(snr_db) + 100])
    bits = rng.integers(0, 2, (3, 400 * modulation), dtype=np.uint8)
    variance = 10 ** (-snr_db / 10) * rng.uniform(0.5, 2.0, (3, 400)).astype(np.float32)
    noise = rng.standard_normal((3, 400)) + 1j * rng.standard_normal((3, 400))
    received = (modulate(modulation, bits) + noise * np.sqrt(variance / 2)).astype(np.complex64)
    exact = demodulate_llr_reference(modulation, received, variance)
    found = demodulate_llr(modulation, received, variance)
    # Half a step of rounding; float32 may fall on the other side of a rounding boundary.
    tolerance = 0.5 + 1e-5 * np.minimum(np.abs(exact), 4 * LLR_MAX) + 2e-3
    assert (np.abs(found - np.clip(exact, -LLR_MAX, LLR_MAX)) <= tolerance).all()
    assert np.abs(found.astype(int)).max() <= LLR_MAX


def test_soft_bits_of_qpsk_are_the_log_likelihood_ratios() -> None:
    # QPSK: LLR = 2 sqrt(2) Re(y) / N0 exactly, not only in the max-log sense.
    received = np.array([[0.3 - 0.2j, -0.05 + 0.4j]], dtype=np.complex64)
    variance = np.array([[0.5, 0.8]], dtype=np.float32)
    exact = 2 * np.sqrt(2) * np.stack((received.real, received.imag), axis=-1) / variance[..., None]
    np.testing.assert_array_equal(
        demodulate_llr(Modulation.QPSK, received, variance),
        np.rint(exact * LLR_SCALE).astype(np.int8).reshape(1, -1),
    )


@pytest.mark.parametrize("modulation", list(Modulation))
def test_senseless_symbols_and_variances_are_erasures(modulation: Modulation) -> None:
    received = np.array([[np.nan + 1j * np.nan, 1 + 1j, 1 + 1j, 1 + 1j]], dtype=np.complex64)
    variance = np.array([[1.0, 0.0, -1.0, np.nan]], dtype=np.float32)
    assert not demodulate_llr(modulation, received, variance).any()
    infinite = np.array([[np.inf - 1j * np.inf]], dtype=np.complex64)
    extreme = demodulate_llr(modulation, infinite, np.full((1, 1), 1e-30, dtype=np.float32))
    assert np.abs(extreme.astype(int)).max() <= LLR_MAX


def _bit_error_rate(modulation: Modulation, snr_db: float) -> float:
    """Exact bit error rate of Gray-coded square QAM on AWGN, hard decisions.

    Per axis, the mean over points and bits of the probability to land in a region of another value;
    the regions are those of the points themselves.
    """
    noise_deviation = np.sqrt(10 ** (-snr_db / 10) / 2)
    if modulation is Modulation.BPSK:
        return float(stats.norm.sf(1 / noise_deviation))
    levels = modulation.bits_per_axis
    scale = modulation.axis_scale
    labels = np.arange(1 << levels)
    bits = (labels[:, None] >> np.arange(levels - 1, -1, -1)) & 1
    amplitude = np.array([_standard_point(np.repeat(row, 2).tolist()).real for row in bits])
    order = np.argsort(amplitude)
    edges = np.concatenate(([-np.inf], (amplitude[order][1:] + amplitude[order][:-1]) / 2, [np.inf]))
    landing = np.diff(special.ndtr((edges - amplitude[order][:, None]) / noise_deviation), axis=1)
    different = bits[order][:, None, :] != bits[order][None, :, :]
    assert edges[1:-1] == pytest.approx(np.arange(2 - len(labels), len(labels), 2) * scale, abs=1e-6)
    return float((landing[..., None] * different).sum(axis=1).mean())


@pytest.mark.parametrize(
    ("modulation", "snr_db"),
    [
        (Modulation.BPSK, 4.0),
        (Modulation.QPSK, 7.0),
        (Modulation.QAM16, 13.0),
        (Modulation.QAM64, 19.0),
        (Modulation.QAM256, 25.0),
        (Modulation.QAM1024, 30.0),
    ],
)
def test_uncoded_bit_error_rate_is_the_closed_form(modulation: Modulation, snr_db: float) -> None:
    # Inside the 99.9 % binomial interval of the exact rate; bits of one symbol are correlated, which
    # the factor on the count covers (at most two bits per symbol fail together at these SNRs).
    rng = np.random.default_rng([7, modulation])
    num_symbols = 240_000 // modulation
    bits = rng.integers(0, 2, (1, num_symbols * modulation), dtype=np.uint8)
    noise_variance = 10 ** (-snr_db / 10)
    noise = rng.standard_normal((2, num_symbols)) * np.sqrt(noise_variance / 2)
    received = (modulate(modulation, bits) + noise[0] + 1j * noise[1]).astype(np.complex64)
    variance = np.full(received.shape, noise_variance, dtype=np.float32)
    # Ties at zero cannot be told; scale the variance down so that none are rounded away.
    decided = demodulate_llr(modulation, received, variance * np.float32(1e-3)) < 0
    errors = int((decided != bits).sum())
    low, high = stats.binom.interval(0.999, bits.size, _bit_error_rate(modulation, snr_db))
    assert low <= errors <= high


def test_partial_symbol_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match="whole symbols"):
        modulate(Modulation.QAM64, np.zeros(7, dtype=np.uint8))
