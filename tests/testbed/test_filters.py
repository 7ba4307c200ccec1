"""Levels follow what changed, average what is noise, and disbelieve what comes once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from testbed.estimation import GAIN_PRIORS, LevelFilter, LinkFilter, SpeedFilter

NUM = 20
ROUNDS = 200


def gains(seed: int, walk_db: float, noise_db: float, rounds: int = ROUNDS) -> tuple[np.ndarray, np.ndarray]:
    """True levels and measurements ``[rounds, NUM]`` [dB]."""
    rng = np.random.default_rng(seed)
    truth = 90 + rng.normal(0, 4, NUM) + np.cumsum(rng.normal(0, walk_db, (rounds, NUM)), axis=0)
    return truth, truth + rng.normal(0, noise_db, (rounds, NUM))


def follow(measured: np.ndarray) -> tuple[LevelFilter, np.ndarray]:
    """The filter after all measurements, and its levels after each."""
    level = LevelFilter(NUM, GAIN_PRIORS)
    levels = []
    for values in measured:
        level.pass_round()
        level.take(values)
        levels.append(level.level.copy())
    return level, np.array(levels)


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


@pytest.mark.parametrize("seed", range(5))
def test_a_level_that_stands_still_is_known_far_better_than_one_measurement_tells(seed: int) -> None:
    truth, measured = gains(seed, 0.0, 2.0)
    _, levels = follow(measured)
    assert rms(levels[-50:] - truth[-50:]) < 0.55 * 2.0


@pytest.mark.parametrize("seed", range(5))
def test_a_level_that_walks_is_followed_without_delay_when_measured_well(seed: int) -> None:
    truth, measured = gains(seed, 2.0, 0.2)
    _, levels = follow(measured)
    assert rms(levels[50:] - truth[50:]) < 0.5


@pytest.mark.parametrize(("walk_db", "noise_db"), [(0.5, 2.0), (1.0, 1.0), (0.3, 0.5)])
def test_the_filter_comes_close_to_the_best_that_knows_both_variances(
    walk_db: float, noise_db: float
) -> None:
    """Steady-state error of the Kalman filter of a local level: P = (q + sqrt(q^2 + 4 q r)) / 2 - q."""
    truth, measured = gains(1, walk_db, noise_db, 600)
    _, levels = follow(measured)
    q, r = walk_db**2, noise_db**2
    prior = (q + np.sqrt(q * q + 4 * q * r)) / 2
    best = np.sqrt(prior - prior**2 / (prior + r))
    assert rms(levels[100:] - truth[100:]) < 1.2 * best


def test_a_channel_that_forgets_within_a_round_is_averaged() -> None:
    rng = np.random.default_rng(3)
    mean = 90 + rng.normal(0, 4, NUM)
    _, levels = follow(mean + rng.normal(0, 3, (ROUNDS, NUM)))
    assert rms(levels[-50:] - mean) < 0.5 * 3


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("walk_db", "noise_db"), [(0.5, 2.0), (1.5, 0.3), (0.0, 1.0)])
def test_the_stated_deviation_of_the_next_measurement_is_honest(
    seed: int, walk_db: float, noise_db: float
) -> None:
    _, measured = gains(seed, walk_db, noise_db, 300)
    level = LevelFilter(NUM, GAIN_PRIORS)
    inside = []
    for number, values in enumerate(measured):
        level.pass_round()
        if number > 60:
            inside.append(np.abs(values - level.level) < 1.96 * level.deviation())
        level.take(values)
    assert 0.90 <= np.mean(inside) <= 0.99


@pytest.mark.parametrize("spike_db", [30.0, -30.0])
def test_a_spike_changes_nothing(spike_db: float) -> None:
    _, measured = gains(4, 0.3, 0.5, 40)
    level, _ = follow(measured[:30])
    level.pass_round()
    before = level.level.copy()
    held = level.take(measured[30] + spike_db)
    assert held.all()
    np.testing.assert_array_equal(level.level, before)
    level.pass_round()
    assert not level.take(measured[31]).any()
    assert rms(level.level - measured[31]) < 1.5


def test_a_spike_on_one_subchannel_is_held_back_there_alone() -> None:
    _, measured = gains(5, 0.3, 0.5, 31)
    level, _ = follow(measured[:30])
    spiked = measured[30].copy()
    spiked[7] += 30
    level.pass_round()
    np.testing.assert_array_equal(np.flatnonzero(level.take(spiked)), [7])
    assert level.age_rounds == 0


def test_a_walk_through_a_fade_is_met_ahead_of_time() -> None:
    """15 dB down and up again within 24 rounds, all subchannels together."""
    rng = np.random.default_rng(9)
    along = np.clip((np.arange(60) - 20) / 24, 0, 1)
    truth = 90 - 15 * (1 - np.cos(2 * np.pi * along)) / 2
    level = LevelFilter(NUM, GAIN_PRIORS)
    errors, lags = [], []
    for number, value in enumerate(truth):
        level.pass_round()
        measured = value + rng.normal(0, 0.5, NUM)
        if 21 <= number < 44:
            errors.append(float(np.mean(level.level)) - value)
            lags.append(truth[number - 1] - value)
        level.take(measured)
    assert rms(np.array(errors)) < 0.6 * rms(np.array(lags))


def test_what_comes_twice_has_changed_and_is_followed_at_once() -> None:
    _, measured = gains(6, 0.3, 0.5, 40)
    level, _ = follow(measured[:30])
    for number in (30, 31):
        level.pass_round()
        level.take(measured[number] - 15)
    assert rms(level.level - (measured[31] - 15)) < 0.5


def test_no_number_changes_nothing_and_age_and_doubt_grow() -> None:
    _, measured = gains(7, 1.0, 0.5, 30)
    level, _ = follow(measured)
    before, certain = level.level.copy(), level.deviation()
    for number in range(1, 6):
        level.pass_round()
        level.take(np.full(NUM, np.nan))
        assert level.age_rounds == number
    np.testing.assert_array_equal(level.level, before)
    assert level.deviation() > 1.3 * certain


@settings(max_examples=60, deadline=None, derandomize=True)
@given(arrays(np.float64, (12, 4), elements=st.floats(allow_nan=True, allow_infinity=True, width=64)))
def test_whatever_is_measured_levels_are_numbers_once_known(measured: np.ndarray) -> None:
    level = LevelFilter(4, GAIN_PRIORS)
    with np.errstate(over="ignore", invalid="ignore"):
        bounded = np.where(np.abs(measured) < 1e150, measured, np.nan)
        for values in bounded:
            level.pass_round()
            level.take(values)
            known = np.isfinite(level.level)
            assert known[np.isfinite(values)].all()
            assert np.isfinite(level.deviation())


def test_a_board_that_slows_down_threefold_is_believed_on_the_second_span() -> None:
    rng = np.random.default_rng(8)
    speed = SpeedFilter(1e9)
    for _ in range(10):
        speed.filter.pass_round()
        assert speed.take(1, 1e7, 0.05 * (1 + 0.05 * rng.standard_normal()))
    speed.filter.pass_round()
    assert not speed.take(1, 1e7, 0.15)
    assert speed.flops_per_s(1) == pytest.approx(2e8, rel=0.1)
    speed.filter.pass_round()
    assert speed.take(1, 1e7, 0.151)
    assert speed.flops_per_s(1) == pytest.approx(1e7 / 0.151, rel=0.02)
    speed.filter.pass_round()
    assert speed.take(1, 1e7, 0.05, confirmed=True)
    assert speed.flops_per_s(1) == pytest.approx(2e8, rel=0.02)


def test_a_board_that_is_hot_at_one_cut_is_expected_to_be_hot_at_all() -> None:
    speed = SpeedFilter(1e9)
    assert speed.rehearse(1, 1e7, 0.05)
    assert speed.rehearse(3, 1e8, 0.2)
    assert speed.flops_per_s(1) == pytest.approx(2e8)
    for _ in range(3):
        speed.filter.pass_round()
        speed.take(1, 1e7, 0.15)
    assert speed.flops_per_s(1) == pytest.approx(2e8 / 3, rel=0.01)
    assert speed.flops_per_s(3) == pytest.approx(5e8 / 3, rel=0.01)
    assert speed.flops_per_s(2) == speed.flops_per_s(1)


@pytest.mark.parametrize(
    ("flops", "seconds"), [(1e6, 0.0), (1e6, -1.0), (0.0, 0.1), (np.nan, 0.1), (1e6, np.inf)]
)
def test_a_span_that_makes_no_sense_is_not_believed(flops: float, seconds: float) -> None:
    speed = SpeedFilter(1e9)
    assert not speed.take(1, flops, seconds)
    assert speed.flops_per_s(1) == pytest.approx(1e9)


def test_a_link_says_in_words_what_it_did_not_believe() -> None:
    link = LinkFilter("board-1", "server", 4)
    assert link.take(np.full(4, 1e-10), 1e-20, 1e3) == []
    (noise,) = link.take(np.full(4, 1e-10), float("nan"), 1e3)
    assert "noise" in noise.words
    (number,) = link.take(np.array([1e-10, np.nan, 1e-10, 1e-10]), 1e-20, 1e3)
    assert "subchannels 1" in number.words
    (spike,) = link.take(np.full(4, 1e-7), 1e-20, 1e3)
    assert "30.0 dB" in spike.words
    assert spike.subject == "board-1 to server"


def test_a_gain_lost_in_noise_counts_as_the_least_that_a_sounding_can_tell() -> None:
    link = LinkFilter("board-1", "server", 2)
    link.take(np.array([1e-10, 0.0]), 1e-20, 1e6)
    np.testing.assert_allclose(link.filter.level, [100.0, 60.0])
