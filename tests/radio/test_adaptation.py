"""The outer loop ends at the target block error rate, whatever the estimates are worth."""

import numpy as np
import pytest

from radio.adaptation import LEAST_WEIGHT, LIMIT_DB, STEP_DB, LinkAdaptation, TrackedSnr
from radio.mcs import SCHEMES, block_error_rate, thresholds_db
from radio.phy import UNUSED

ELEMENTS = 1040


@pytest.mark.parametrize("bias_db", [-3.0, 0.0, 4.0])
@pytest.mark.parametrize("target", [0.1, 0.3])
def test_outer_loop_converges_to_the_target(bias_db: float, target: float) -> None:
    # 20 subchannels whose SNR is estimated with a constant error and jitter; blocks fail as the
    # measured curves say.
    rng = np.random.default_rng([1, round(bias_db + 10), round(10 * target)])
    adaptation = LinkAdaptation(target, 0.0)
    true_db = rng.uniform(5, 22, 20)
    ok_count = total = 0
    for frame in range(3000):
        estimate_db = true_db + bias_db + rng.normal(0, 0.7, 20)
        mcs = adaptation.choose(10 ** (estimate_db / 10), ELEMENTS)
        used = mcs != UNUSED
        bler = block_error_rate(mcs[used], true_db[used], ELEMENTS)
        ok = int((rng.random(used.sum()) >= bler).sum())
        adaptation.observe(ok, int(used.sum()) - ok)
        if frame >= 500:
            ok_count += ok
            total += int(used.sum())
    assert 1 - ok_count / total == pytest.approx(target, abs=0.015)


def test_shift_is_bounded_and_moves_by_at_most_one_step() -> None:
    adaptation = LinkAdaptation(0.1, 0.0)
    for _ in range(100):
        before = adaptation.offset_db
        adaptation.observe(0, 5)
        assert 0 <= adaptation.offset_db - before <= STEP_DB
    assert adaptation.offset_db == LIMIT_DB
    for _ in range(1200):
        adaptation.observe(5, 0)
    assert adaptation.offset_db == -LIMIT_DB
    adaptation.observe(0, 0)
    assert adaptation.offset_db == -LIMIT_DB


def test_inner_loop_takes_the_fastest_whose_threshold_is_met() -> None:
    thresholds = thresholds_db(ELEMENTS)
    adaptation = LinkAdaptation(0.1, 1.0)
    snr_db = thresholds + 1.0 + 1e-6
    np.testing.assert_array_equal(adaptation.choose(10 ** (snr_db / 10), ELEMENTS), np.arange(len(SCHEMES)))
    below = adaptation.choose(10 ** ((snr_db - 0.01) / 10), ELEMENTS)
    assert below[0] == UNUSED
    np.testing.assert_array_equal(below[1:], np.arange(len(SCHEMES) - 1))


def test_the_best_subchannel_is_used_however_bad_and_senseless_ones_are_not() -> None:
    adaptation = LinkAdaptation(0.1, 1.0)
    assert adaptation.choose(np.array([0.01, 0.02, 0.0, np.nan]), ELEMENTS).tolist() == [-1, 0, -1, -1]
    chosen = adaptation.choose(np.array([np.inf, np.nan, 100.0, -5.0]), ELEMENTS)
    assert chosen[2] > 0
    assert (chosen[[0, 1, 3]] == UNUSED).all()
    assert len(adaptation.choose(np.array([]), ELEMENTS)) == 0


def test_a_new_sounding_forgets_a_disaster_but_not_the_fine_tuning() -> None:
    adaptation = LinkAdaptation(0.01, 1.0)
    for _ in range(60):
        adaptation.observe(0, 20)
    assert adaptation.offset_db == 10.0
    for _ in range(6):
        adaptation.renew()
    assert adaptation.offset_db < 1.2
    for offset_db in (-2.0, 0.4, 1.0):
        adaptation.offset_db = offset_db
        adaptation.renew()
        assert adaptation.offset_db == offset_db


def test_slots_are_noted_one_by_one() -> None:
    together, apart = LinkAdaptation(0.1, 0.0), LinkAdaptation(0.1, 0.0)
    ok, failed = np.array([20, 3, 0, 7]), np.array([0, 1, 0, 9])
    together.observe_slots(ok, failed)
    for good, bad in zip(ok.tolist(), failed.tolist(), strict=True):
        apart.observe(good, bad)
    assert together.offset_db == apart.offset_db != 0.0


def test_a_tracked_snr_is_the_mean_at_first_and_follows_within_a_few_frames() -> None:
    rng = np.random.default_rng(5)
    every = np.arange(2000)
    tracked = TrackedSnr.empty(2000)
    for _ in range(40):
        tracked.add(every, 10.0 + rng.standard_normal(2000))
    # An exponential average with weight w has the variance w / (2 - w) of one estimate.
    assert np.var(tracked.snr) == pytest.approx(LEAST_WEIGHT / (2 - LEAST_WEIGHT), rel=0.12)
    for _ in range(8):
        tracked.add(every[:5], np.full(5, 40.0))
    assert (tracked.snr[:5] > 38).all()
    tracked.restart(every, np.full(2000, 3.0))
    tracked.add(every[:1], np.array([5.0]))
    assert tracked.snr[0] == 4.0
    assert tracked.snr[1] == 3.0
