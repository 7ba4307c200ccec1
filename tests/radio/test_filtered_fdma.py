"""Filtered FDMA: neighbours with unknown timing hardly hear each other, with their filters and a guard."""

from itertools import pairwise

import numpy as np
import pytest
from burst_signals import announced, burst_of, echoes, garbage, heard
from numpy.typing import NDArray
from signals import LAPTOP, PLUTO_LAB, complex_noise

from radio.burst import BurstCounters
from radio.errors import RadioConfigurationError
from radio.filtered_fdma import (
    Band,
    band_filter,
    filter_burst,
    plan_bands,
    receive_band,
    select_band,
)
from radio.numerology import Numerology
from radio.ofdm import grid_to_samples, samples_to_grid
from radio.preamble import MAX_SEARCH_SAMPLES
from radio.rotation import rotate

BOTH = pytest.mark.parametrize("numerology", [LAPTOP, PLUTO_LAB], ids=["laptop", "pluto-lab"])
SHARES = (6, 7, 6)


def _random_symbols(rng: np.random.Generator, band: Band, count: int) -> NDArray[np.complex64]:
    quadrant = rng.integers(0, 4, (count, band.numerology.num_subcarriers))
    grid = np.exp(1j * np.pi / 2 * (quadrant + 0.5)).astype(np.complex64)
    return grid_to_samples(band.numerology, grid)


@BOTH
def test_bands_do_not_overlap_and_keep_their_guards(numerology: Numerology) -> None:
    for guard in (0, 2, 4, 8):
        bands = plan_bands(numerology, SHARES, guard)
        occupied = [band.centre_subcarriers + band.numerology.subcarrier_offsets for band in bands]
        for below, above in pairwise(occupied):
            assert above[0] - below[-1] == guard + 1
        assert occupied[0][0] == pytest.approx(-occupied[-1][-1], abs=1)


def test_bands_that_do_not_fit_are_refused() -> None:
    for shares, guard in (((9, 9, 9), 8), ((), 0), ((3, 0), 2), ((3,), -1)):
        with pytest.raises(RadioConfigurationError, match="planning filtered FDMA"):
            plan_bands(PLUTO_LAB, shares, guard)


@BOTH
def test_filters_pass_their_own_band_and_stop_the_next(numerology: Numerology) -> None:
    for band in plan_bands(numerology, SHARES, 8):
        response = np.abs(np.fft.fft(band_filter(band), 16 * numerology.fft_size))
        offset = np.abs(np.fft.fftfreq(len(response)) * numerology.fft_size)
        own, other = band.width_subcarriers / 2, band.width_subcarriers / 2 + 8
        assert 20 * np.log10(response[offset <= own - 0.5].min()) > -0.1
        assert 20 * np.log10(response[offset >= other].max()) < -40


@BOTH
def test_leakage_is_far_below_that_of_plain_ofdm(numerology: Numerology) -> None:
    """Neighbours on both sides, timing unknown: -20..-30 dB without filters, below -55 dB with them."""
    rng = np.random.default_rng(1)
    lower, own, upper = plan_bands(numerology, SHARES, 8)
    size = numerology.symbol_samples
    heard_plain = np.zeros(50 * size, np.complex64)
    heard_filtered = np.zeros(50 * size, np.complex64)
    for band in (lower, upper):
        late = int(rng.integers(size))
        sent = _random_symbols(rng, band, 54)
        turned = rotate(sent, 0, band.centre_subcarriers / numerology.fft_size)
        heard_plain += turned[late : late + len(heard_plain)]
        heard_filtered += filter_burst(band, sent)[late : late + len(heard_plain)]
    back = rotate(heard_plain, 0, -own.centre_subcarriers / numerology.fft_size)
    leakage_db = {}
    for name, samples in (("plain", back), ("filtered", select_band(own, heard_filtered))):
        grid = samples_to_grid(own.numerology, samples[2 * size : -2 * size])
        leakage_db[name] = 10 * np.log10(np.mean(np.abs(grid) ** 2))
    assert -32 < leakage_db["plain"] < -20
    assert leakage_db["filtered"] < -55


@BOTH
def test_three_clients_at_once_with_timing_beyond_the_prefix_and_20_db_apart(numerology: Numerology) -> None:
    rng = np.random.default_rng(2)
    bands = plan_bands(numerology, SHARES, 8)
    size = numerology.symbol_samples
    samples = np.zeros(16 * size + 2 * numerology.slot_samples, np.complex64)
    samples = np.concatenate([samples, np.zeros(20 * size, np.complex64)])
    sent = []
    for client, band in enumerate(bands):
        header, blocks, grant = announced(rng, band.numerology, 12, 1, transmitter=client)
        burst = filter_burst(band, burst_of(band.numerology, header, blocks))
        delay = rng.uniform(0.0, 2.0) * size
        level = np.float32(0.1 if client == 1 else 1.0)
        signal = heard(
            band.numerology,
            burst,
            delay_samples=delay,
            cfo_hz=rng.uniform(-0.02, 0.02) * numerology.subcarrier_spacing_hz,
            clock_drift_ppm=rng.uniform(-5, 5),
            taps=echoes(rng, numerology),
        )
        samples[: len(signal)] += level * signal
        sent.append((header, blocks, grant))
    samples += complex_noise(rng, len(samples), 10 ** (-(20 + 25) / 10))
    for band, (header, blocks, grant) in zip(bands, sent, strict=True):
        counters = BurstCounters()
        (burst,) = receive_band(band, samples, [grant], counters=counters)
        assert burst.header == header
        assert burst.blocks == blocks
        assert counters.num_received == 1


def test_garbage_is_refused_and_counted() -> None:
    rng = np.random.default_rng(3)
    (band,) = plan_bands(PLUTO_LAB, (3,), 4)
    counters = BurstCounters()
    for bad in (
        np.zeros((2, 100), np.complex64),
        np.array(["x"]),
        np.broadcast_to(np.complex64(0), MAX_SEARCH_SAMPLES + 1),
    ):
        assert receive_band(band, bad, [], counters=counters) == []
    assert counters.num_refused_inputs == 3
    noise = complex_noise(rng, 5000, 1.0)
    for kind in range(8):
        assert receive_band(band, garbage(rng, kind, noise), [], counters=counters) == []
    assert receive_band(band, np.zeros(0, np.complex64), [], counters=counters) == []
