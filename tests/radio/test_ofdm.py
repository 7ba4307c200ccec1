"""Unitary OFDM: exact in a loop, and its power is what the link budget says."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from signals import LAPTOP, PLUTO_LAB, complex_noise, random_blocks

from radio.numerology import Numerology
from radio.ofdm import grid_to_samples, reference_symbols, samples_to_grid, subcarrier_amplitude
from radio.phy import UNUSED, modulate_slots


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([64, 128, 256]),
    st.integers(0, 20),
    st.integers(1, 9),
    st.integers(4, 12),
    st.integers(1, 12),
    st.integers(0, 2**32),
)
def test_loop_is_exact(fft: int, prefix: int, subchannels: int, width: int, symbols: int, seed: int) -> None:
    if subchannels * width + 1 > fft:
        subchannels = 3
    numerology = Numerology(1e6, fft, prefix, subchannels, width, 28, 4)
    grid = complex_noise(np.random.default_rng(seed), (symbols, subchannels * width), 1.0)
    samples = grid_to_samples(numerology, grid)
    assert samples.dtype == np.complex64
    assert samples.shape == (symbols * numerology.symbol_samples,)
    np.testing.assert_allclose(samples_to_grid(numerology, samples), grid, atol=3e-6)


def test_is_the_textbook_sum_of_carriers_with_a_prefix() -> None:
    numerology = Numerology(1e6, 64, 8, 3, 7, 28, 4)
    grid = complex_noise(np.random.default_rng(1), (2, 21), 1.0)
    n = np.arange(-8, 64)
    carriers = np.exp(2j * np.pi * np.outer(numerology.subcarrier_offsets, n) / 64) / 8
    np.testing.assert_allclose(grid_to_samples(numerology, grid), (grid @ carriers).ravel(), atol=1e-5)


def test_a_channel_inside_the_prefix_is_one_tap_per_subcarrier() -> None:
    rng = np.random.default_rng(2)
    grid = complex_noise(rng, (5, PLUTO_LAB.num_subcarriers), 1.0)
    taps = complex_noise(rng, PLUTO_LAB.prefix_samples, 0.1)
    samples = np.convolve(grid_to_samples(PLUTO_LAB, grid), taps)[: 5 * PLUTO_LAB.symbol_samples]
    response = np.fft.fft(taps, PLUTO_LAB.fft_size)[PLUTO_LAB.fft_bins]
    found = samples_to_grid(PLUTO_LAB, samples.astype(np.complex64))
    np.testing.assert_allclose(found[1:], (grid * response)[1:], atol=2e-5)


@pytest.mark.parametrize("numerology", [LAPTOP, PLUTO_LAB], ids=["laptop", "pluto-lab"])
def test_power_of_a_burst_is_the_sum_of_psd_times_bandwidth(numerology: Numerology) -> None:
    rng = np.random.default_rng(3)
    num = numerology.num_subchannels
    full_scale_dbm = 32.69
    psd_w_per_hz = 10 ** rng.uniform(-10, -8.5, num) * 20e6 / numerology.sample_rate_hz
    psd_w_per_hz[4] = 0.0
    mcs = rng.integers(0, 20, num)
    mcs[7] = UNUSED
    amplitude = subcarrier_amplitude(psd_w_per_hz, numerology.sample_rate_hz, full_scale_dbm)
    samples = modulate_slots(numerology, 8, random_blocks(rng, numerology, 8, mcs), mcs, amplitude)
    # The prefix repeats a part of each symbol, so only the useful parts have exactly the mean power.
    useful = samples.reshape(-1, numerology.symbol_samples)[:, numerology.prefix_samples :]
    full_scale_w = 10 ** ((full_scale_dbm - 30) / 10)
    sent = mcs != UNUSED
    expected = float((psd_w_per_hz[sent] * numerology.subchannel_bandwidth_hz).sum() / full_scale_w)
    assert np.mean(np.abs(useful) ** 2) == pytest.approx(expected, rel=0.03)  # QAM symbols vary in power
    assert np.mean(np.abs(samples) ** 2) == pytest.approx(expected, rel=0.05)
    grid = samples_to_grid(numerology, samples)
    by_subchannel = (np.abs(grid.reshape(len(grid), num, -1)) ** 2).mean(axis=(0, 2))
    np.testing.assert_allclose(by_subchannel, np.where(sent, amplitude**2, 0), rtol=0.1, atol=1e-12)


def test_reference_symbols_are_the_same_everywhere_and_have_unit_magnitude() -> None:
    symbols = reference_symbols("pilot", 2, 800)
    np.testing.assert_allclose(np.abs(symbols), 1.0, atol=1e-6)
    # From SHAKE-256, hence on any machine and for ever.
    assert (np.angle(symbols[0, :8]) // (np.pi / 2)).astype(int).tolist() == _quadrants()
    assert abs(symbols.mean()) < 4 / np.sqrt(1600)
    with pytest.raises(ValueError, match="read-only"):
        symbols[0, 0] = 0


def _quadrants() -> list[int]:
    import hashlib

    digest = hashlib.shake_256(b"pilot/2/800").digest(8)
    return [(byte & 3) if (byte & 3) < 2 else (byte & 3) - 4 for byte in digest]
