"""TDL-A to TDL-E: the tables' own properties, their taps on a grid, and how these fade."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from scipy.special import j0

from radio.air.channel import FadingProfile, LinkChannel, LinkParameters
from radio.air.tdl import (
    PROFILES_WITH_LINE_OF_SIGHT,
    TDL_PROFILES,
    tdl_paths,
    tdl_span_samples,
    tdl_taps,
)
from radio.errors import RadioConfigurationError

RATE_HZ = 20e6
NUM_SEEDS = 3000
WIDE = float(stats.norm.isf(1e-6))  # standard deviations that an estimate stays within


def channels(fading: FadingProfile, num_seeds: int = NUM_SEEDS) -> list[LinkChannel]:
    link = LinkParameters("a", "b", 0.0, fading=fading)
    return [LinkChannel(link, seed, RATE_HZ) for seed in range(num_seeds)]


def response(taps: NDArray[np.complexfloating], cycles: NDArray[np.float64]) -> NDArray[np.complex128]:
    """Frequency response of taps ``[..., num_taps]`` one sample apart, ``[..., num_frequencies]``."""
    return taps @ np.exp(-2j * np.pi * np.outer(np.arange(taps.shape[-1]), cycles))


# --------------------------------------------------------------------------------- tables
@pytest.mark.parametrize("profile", TDL_PROFILES)
def test_a_table_has_unit_power_and_the_chosen_delay_spread(profile: str) -> None:
    """TR 38.901 normalises its tables to an RMS delay spread of 1; rounding costs TDL-D 0.6 %."""
    paths = tdl_paths(profile, 80e-9)
    assert paths.powers.sum() + paths.line_of_sight == pytest.approx(1.0, abs=1e-12)
    assert paths.delay_spread_s == pytest.approx(80e-9, rel=0.007 if profile == "tdl-d" else 3e-4)
    assert paths.delays_s.min() == 0.0


def test_sizes_and_strongest_paths_are_those_of_the_standard() -> None:
    assert [len(tdl_paths(profile, 1.0).powers) for profile in TDL_PROFILES] == [23, 23, 24, 13, 14]
    latest = [tdl_paths(profile, 1.0).delays_s.max() for profile in TDL_PROFILES]
    assert latest == [9.6586, 4.7834, 8.6523, 12.525, 20.6519]
    # The Rice factor of the first tap alone, as the notes below the tables have it.
    for profile, first_tap_db in (("tdl-d", 13.3), ("tdl-e", 22.0)):
        paths = tdl_paths(profile, 1.0)
        assert 10 * np.log10(paths.line_of_sight / paths.powers[0]) == pytest.approx(first_tap_db, abs=1e-9)


@pytest.mark.parametrize("profile", PROFILES_WITH_LINE_OF_SIGHT)
@pytest.mark.parametrize("k_db", [-3.0, 0.0, 7.0, 20.0])
def test_a_chosen_k_factor_keeps_the_delay_spread(profile: str, k_db: float) -> None:
    paths, table = tdl_paths(profile, 50e-9, k_db), tdl_paths(profile, 50e-9)
    assert paths.powers.sum() + paths.line_of_sight == pytest.approx(1.0, abs=1e-12)
    assert 10 * np.log10(paths.line_of_sight / paths.powers.sum()) == pytest.approx(k_db, abs=1e-9)
    assert paths.delay_spread_s == pytest.approx(50e-9, rel=1e-12)
    np.testing.assert_allclose(paths.powers / paths.powers[0], table.powers / table.powers[0])


@pytest.mark.parametrize("profile", TDL_PROFILES)
@pytest.mark.parametrize("delay_spread_s", [5e-9, 100e-9, 363e-9])
def test_taps_on_the_grid_have_the_response_of_the_paths(profile: str, delay_spread_s: float) -> None:
    """In the 80 % of the band that is used, each path to 60 dB below the whole channel's power."""
    paths = tdl_paths(profile, delay_spread_s)
    taps = tdl_taps(paths, RATE_HZ)
    cycles = np.linspace(-0.4, 0.4, 201)
    bulk = np.exp(-2j * np.pi * cycles * taps.first_delay_samples)
    exact = np.exp(-2j * np.pi * np.outer(paths.delays_s * RATE_HZ, cycles)) * bulk
    missed = np.abs(response(taps.weights, cycles) - exact) ** 2
    assert (paths.powers @ missed).max() < 1e-6
    line_missed = np.abs(response(taps.line_of_sight, cycles) - bulk) ** 2
    assert (paths.line_of_sight * line_missed).max() < 1e-6
    assert (
        taps.weights.shape[1] - 1 == tdl_span_samples(paths, RATE_HZ) < 20.7 * delay_spread_s * RATE_HZ + 21
    )


def test_the_span_leaves_out_a_tail_of_the_stated_power() -> None:
    paths = tdl_paths("tdl-a", 300e-9)
    taps = tdl_taps(paths, RATE_HZ)
    powers = paths.powers @ taps.weights**2
    span = tdl_span_samples(paths, RATE_HZ, 1e-3)
    assert powers[span + 1 :].sum() <= 1e-3 < powers[span:].sum()


# --------------------------------------------------------------------------------- statistics
@pytest.mark.parametrize("by_round", [None, 0.9])
@pytest.mark.parametrize("profile", ["tdl-b", "tdl-d"])
def test_frequency_correlation_gives_the_chosen_delay_spread(profile: str, by_round: float | None) -> None:
    """|E H(f) H*(f + d)| / E |H|^2 = 1 - (2 pi d sigma)^2 / 2 for a small d: what a sounder measures."""
    spread_s = 60e-9
    fading = FadingProfile(spread_s, round_correlation=by_round, profile=profile)
    taps = np.array([channel.taps_at(0.0, 3) for channel in channels(fading)])
    step = 0.05 / (2 * np.pi * spread_s * RATE_HZ)
    cycles = np.arange(-0.38, 0.38 - step, 0.02)
    one, other = response(taps, cycles), response(taps, cycles + step)
    power = np.sqrt((np.abs(one) ** 2).mean() * (np.abs(other) ** 2).mean())
    assert power == pytest.approx(1.0, abs=WIDE / np.sqrt(NUM_SEEDS))
    products = (one * other.conj()).mean(axis=1)
    correlation = abs(products.mean()) / power
    exact = tdl_paths(profile, spread_s)
    shifts = np.exp(-2j * np.pi * step * exact.delays_s * RATE_HZ)
    assert correlation == pytest.approx(abs(exact.powers @ shifts + exact.line_of_sight), abs=2e-4)
    measured_s = np.sqrt(2 * (1 - correlation)) / (0.05 / spread_s)
    assert measured_s == pytest.approx(spread_s, rel=0.06)


def test_without_line_of_sight_a_subcarrier_fades_as_rayleigh_says() -> None:
    fading = FadingProfile(100e-9, doppler_hz=20.0, profile="tdl-c")
    gain = np.array([channel.taps_at(0.7) for channel in channels(fading)])
    power = np.abs(response(gain, np.array([0.13]))[:, 0]) ** 2
    # 24 paths of 16 sinusoids each: |h|^2 is exponential to within the test's power.
    assert stats.kstest(power, "expon").pvalue > 1e-5
    assert power.mean() == pytest.approx(1.0, abs=WIDE / np.sqrt(NUM_SEEDS))
    assert power.var() == pytest.approx(1.0, abs=WIDE * np.sqrt(8 / NUM_SEEDS))


@pytest.mark.parametrize("k_db", [None, 3.0])
def test_with_a_line_of_sight_a_subcarrier_fades_as_rice_says(k_db: float | None) -> None:
    fading = FadingProfile(100e-9, rician_k_db=k_db, profile="tdl-e", doppler_hz=20.0)
    gain = np.array([channel.taps_at(0.7) for channel in channels(fading)])
    power = np.abs(response(gain, np.array([-0.2]))[:, 0]) ** 2
    paths = tdl_paths("tdl-e", 100e-9, k_db)
    scattered, constant = paths.powers.sum(), paths.line_of_sight
    variance = scattered**2 + 2 * scattered * constant
    assert power.mean() == pytest.approx(1.0, abs=WIDE * np.sqrt(variance / NUM_SEEDS))
    # The moment method for K (Greenstein, Michelson, Erceg 1999): sqrt(1 - var) is K / (K + 1).
    measured = np.sqrt(power.mean() ** 2 - power.var()) / power.mean()
    assert measured == pytest.approx(constant, abs=0.02)


def test_scattered_paths_decorrelate_as_clarke_says() -> None:
    lags_s = np.array([0.0, 0.01, 0.02, 0.0383])
    fading = FadingProfile(100e-9, doppler_hz=10.0, profile="tdl-a")
    taps = np.array([channel.taps_at(lags_s) for channel in channels(fading)])
    there = response(taps, np.array([0.05]))[:, :, 0]
    correlation = (there * there[:, :1].conj()).mean(axis=0)
    np.testing.assert_allclose(correlation, j0(2 * np.pi * 10.0 * lags_s), atol=WIDE / np.sqrt(NUM_SEEDS))


def test_the_line_of_sight_has_seven_tenths_of_the_doppler_shift() -> None:
    fading = FadingProfile(100e-9, rician_k_db=60.0, doppler_hz=50.0, profile="tdl-d")
    times_s = np.arange(64) * 1e-3
    channel = LinkChannel(LinkParameters("a", "b", 0.0, fading=fading), 3, 1e6)
    gain = response(channel.taps_at(times_s), np.zeros(1))[:, 0]
    cycles = np.unwrap(np.angle(gain)) / (2 * np.pi)
    assert np.polyfit(times_s, cycles, 1)[0] == pytest.approx(0.7 * 50.0, abs=0.1)


@pytest.mark.parametrize("rho", [0.0, 0.8])
def test_correlation_over_rounds_is_rho_to_the_k(rho: float) -> None:
    fading = FadingProfile(100e-9, round_correlation=rho, profile="tdl-c")
    taps = np.array([[channel.taps_at(0.0, r) for r in (2, 3, 5)] for channel in channels(fading)])
    there = response(taps, np.array([0.21]))[:, :, 0]
    for later, steps in ((1, 1), (2, 3)):
        correlation = (there[:, later] * there[:, 0].conj()).mean()
        assert abs(correlation - rho**steps) < WIDE / np.sqrt(NUM_SEEDS)


def test_the_exponential_profile_is_what_it_was() -> None:
    """Golden values of a channel as the shipped labs have it: their runs must repeat."""
    link = LinkParameters("a", "b", 60.0, fading=FadingProfile(150e-9, 3, 5.0, 0.2))
    channel = LinkChannel(link, 7, RATE_HZ)
    assert channel.delays.tolist() == [0, 4, 8]
    golden = [0.651358128 + 0.017613176j, 0.023077751 - 0.063947782j, -0.087620176 + 0.033104919j]
    np.testing.assert_allclose(channel.taps_at(1.5) * 1e3, golden, rtol=2e-6)


@pytest.mark.parametrize(
    ("fading", "words"),
    [
        (FadingProfile(profile="tdl-f"), "there are exponential, tdl-a"),
        (FadingProfile(1e-7, rician_k_db=3.0, profile="tdl-a"), "tdl-d and tdl-e have one"),
        (FadingProfile(float("nan"), profile="tdl-a"), "a delay spread of nan"),
        (FadingProfile(1.0, profile="tdl-e"), "a smaller delay spread"),
    ],
)
def test_impossible_profiles_are_refused_in_words(fading: FadingProfile, words: str) -> None:
    with pytest.raises(RadioConfigurationError, match=words):
        LinkChannel(LinkParameters("a", "b", 0.0, fading=fading), 1, RATE_HZ)


def test_taps_do_not_depend_on_how_many_instants_are_asked_for() -> None:
    fading = FadingProfile(100e-9, doppler_hz=30.0, profile="tdl-e")
    channel = LinkChannel(LinkParameters("a", "b", 0.0, fading=fading), 1, RATE_HZ)
    times_s = np.arange(97) * 1e-3
    whole = channel.taps_at(times_s)
    assert all((channel.taps_at(time_s) == row).all() for time_s, row in zip(times_s, whole, strict=True))
    assert (channel.taps_at(times_s[5:31]) == whole[5:31]).all()
