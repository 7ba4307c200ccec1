"""The noise generator: Gaussian, white, independent between keys, a function of the index alone.

Probabilities: each statistic must lie inside its central 1 - 1e-4 interval (two-sided), so that a
sound generator with these fixed keys had a chance of about 1 % to fail anywhere.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from radio.air.noise import (
    BLOCK_SAMPLES,
    gaussian_noise,
    gaussian_noise_reference,
    noise_key,
)

ERROR = 1e-4
COUNT = 1 << 21
LIMIT = float(stats.norm.isf(ERROR / 2))


@pytest.fixture(scope="module")
def parts() -> np.ndarray:
    return gaussian_noise(noise_key(1, "noise", "server"), 10**9 + 17, COUNT).astype(np.float64)


@pytest.mark.parametrize("first", [0, 511, 1024, 10**6 + 3, (1 << 41) + 5])
def test_kernel_is_the_reference(first: int) -> None:
    key = noise_key(3, "noise", "a")
    found = gaussian_noise(key, first, 5000)
    expected = gaussian_noise_reference(key, first, 5000)
    np.testing.assert_allclose(found, expected, atol=3e-6, rtol=2e-6)


def test_words_are_philox_4x32() -> None:
    # Salmon et al. publish answers for 7 and 10 rounds; of 7, counter and key all zeros:
    # 5f6fb709 0d893f64 4f121f81 4f730a48.
    from radio.air import noise

    half = BLOCK_SAMPLES // 2
    words = [np.empty(half, np.uint32) for _ in range(4)]
    noise._words(np.zeros(4, np.uint32), 0, *words)
    assert [int(word[0]) for word in words] == [0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 5000), st.lists(st.integers(1, 3000), min_size=1, max_size=6))
def test_cutting_changes_nothing(first: int, lengths: list[int]) -> None:
    key = noise_key(9, "noise", "b")
    whole = gaussian_noise(key, first, sum(lengths), 0.7)
    start = first
    pieces = []
    for length in lengths:
        pieces.append(gaussian_noise(key, start, length, 0.7))
        start += length
    assert np.concatenate(pieces, axis=1).tobytes() == whole.tobytes()


def test_moments(parts: np.ndarray) -> None:
    n = parts.size
    values = parts.ravel()
    assert abs(values.mean()) * np.sqrt(n) < LIMIT
    assert abs(values.var() - 1) / np.sqrt(2 / n) < LIMIT
    assert abs(stats.skew(values)) / np.sqrt(6 / n) < LIMIT
    assert abs(stats.kurtosis(values)) / np.sqrt(24 / n) < LIMIT
    # Sixth and eighth moments weigh the tails: variances of x^6 and x^8 are 10170 and 2016000.
    assert abs(np.mean(values**6) - 15) / np.sqrt(10170 / n) < LIMIT
    assert abs(np.mean(values**8) - 105) / np.sqrt(2016000 / n) < LIMIT


@pytest.mark.parametrize("row", [0, 1])
def test_distribution(parts: np.ndarray, row: int) -> None:
    assert stats.kstest(parts[row], "norm").pvalue > ERROR
    edges = stats.norm.ppf(np.linspace(0, 1, 257)[1:-1])
    observed = np.bincount(np.searchsorted(edges, parts[row]), minlength=256)
    assert ERROR < stats.chisquare(observed).pvalue < 1 - ERROR


def test_tails_to_five_sigma() -> None:
    counts = np.zeros(4, np.int64)
    levels = np.array([3.0, 4.0, 4.5, 5.0])
    draws = 0
    for chunk in range(16):
        values = np.abs(gaussian_noise(noise_key(5, "tails"), chunk << 21, 1 << 21))
        draws += values.size
        counts += [(values > level).sum() for level in levels]
    for level, count in zip(levels, counts.tolist(), strict=True):
        assert stats.binomtest(count, draws, 2 * stats.norm.sf(level)).pvalue > ERROR
    assert counts[-1] >= 10


def test_parts_are_independent_and_the_phase_uniform(parts: np.ndarray) -> None:
    real, imaginary = parts
    n = len(real)
    assert abs(np.mean(real * imaginary)) * np.sqrt(n) < LIMIT
    # Squares, too: dependence of magnitudes would pass an uncorrelatedness test.
    assert abs(np.mean((real**2 - 1) * (imaginary**2 - 1))) * np.sqrt(n) / 2 < LIMIT
    phase = np.mod(np.angle(real + 1j * imaginary) / (2 * np.pi), 1.0)
    observed = np.bincount((phase * 64).astype(np.int64), minlength=64)
    assert ERROR < stats.chisquare(observed).pvalue < 1 - ERROR


def test_white_over_lags_of_the_generator_and_over_frequency(parts: np.ndarray) -> None:
    samples = parts[0] + 1j * parts[1]
    n = len(samples)
    # 512 and 1024 are the lags at which one counter or neighbouring ones are used.
    for lag in (1, 2, 3, 511, 512, 513, 1023, 1024, 1025, 4096):
        correlation = np.mean(samples[lag:] * samples[:-lag].conj()) / 2
        assert abs(correlation) ** 2 * (n - lag) < -np.log(ERROR), f"lag {lag}"
        power = np.abs(samples) ** 2 / 2 - 1
        assert abs(np.mean(power[lag:] * power[:-lag])) * np.sqrt(n - lag) < LIMIT, f"power, lag {lag}"
    # Bins of a long transform have exponentially distributed power.
    spectrum = np.abs(np.fft.fft(samples)) ** 2 / (2 * n)
    assert stats.kstest(spectrum, "expon").pvalue > ERROR


@pytest.mark.parametrize(
    ("left", "right"),
    [((1, "noise", "a"), (1, "noise", "b")), ((1, "noise", "a"), (2, "noise", "a"))],
    ids=["ports", "seeds"],
)
def test_other_keys_are_independent(left: tuple, right: tuple) -> None:
    n = 1 << 19
    a, b = (
        parts[0] + 1j * parts[1] for parts in (gaussian_noise(noise_key(*x), 0, n) for x in (left, right))
    )
    for shift in (0, 1, 512, 1024):
        correlation = np.mean(a[shift:] * b[: n - shift].conj()) / 2
        assert abs(correlation) ** 2 * (n - shift) < -np.log(ERROR)


def test_one_bit_of_key_or_counter_changes_half_of_the_output_bits() -> None:
    from radio.air import noise

    half = BLOCK_SAMPLES // 2

    def words(key: np.ndarray, block: int) -> np.ndarray:
        out = [np.empty(half, np.uint32) for _ in range(4)]
        noise._words(key, block, *out)
        return np.stack(out)

    base_key = noise_key(7, "avalanche")
    base = words(base_key, 5)
    total = base.size * 32
    flips = [words(base_key, 5 ^ (1 << bit)) for bit in (0, 7, 20, 40)]
    for word in range(4):
        for bit in (0, 13, 31):
            key = base_key.copy()
            key[word] ^= np.uint32(1 << bit)
            flips.append(words(key, 5))
    for flipped in flips:
        changed = int(np.unpackbits((base ^ flipped).view(np.uint8)).sum())
        assert stats.binomtest(changed, total, 0.5).pvalue > ERROR
    neighbours = np.unpackbits((base[:, 1:] ^ base[:, :-1]).copy().view(np.uint8))
    assert stats.binomtest(int(neighbours.sum()), neighbours.size, 0.5).pvalue > ERROR


def test_an_index_before_the_start_is_refused() -> None:
    with pytest.raises(ValueError, match="start at 0"):
        gaussian_noise(noise_key(1), -1, 4)
