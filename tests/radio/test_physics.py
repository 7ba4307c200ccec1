"""What the long statistics of the modem found, held to theory, and a seeded tenth of them done again."""

from __future__ import annotations

import importlib.util
import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

VALIDATION = Path(__file__).resolve().parent.parent / "validation"
sys.path.append(str(VALIDATION / "studies"))

import study_bler  # noqa: E402
import study_coding  # noqa: E402
import study_estimators  # noqa: E402
import study_modulation  # noqa: E402
import study_sharing  # noqa: E402
from study_common import CONFIDENCE, NUMEROLOGIES, rising_pairs, threshold_10_percent  # noqa: E402

from calibration.mcs_thresholds import BlerPoint  # noqa: E402
from radio.coding.transport_block import transport_block_code  # noqa: E402
from radio.estimation import SOUNDING_FALSE_ALARM  # noqa: E402
from radio.mcs import SCHEMES, thresholds_db  # noqa: E402
from radio.modulation import Modulation  # noqa: E402

WIDE = float(stats.norm.isf((1 - CONFIDENCE) / 2))  # standard deviations
BOTH = pytest.mark.parametrize("name", list(NUMEROLOGIES))
STUDIES = (study_modulation, study_coding, study_estimators, study_sharing, study_bler)


@cache
def results() -> dict[str, Any]:
    return json.loads((VALIDATION / "physics.json").read_text())


def of_kind(kind: str, name: str | None = None) -> list[dict[str, Any]]:
    found = [case for key, case in results()["cases"].items() if key.split("/")[0] == kind]
    return [case for case in found if name is None or case["numerology"] == name]


def points_of(lists: list[list[float]]) -> list[BlerPoint]:
    return [BlerPoint(snr_db, int(sent), int(lost)) for snr_db, sent, lost in lists]


def a_tenth_of(name: str) -> dict[str, Any]:
    (case,) = (case for study in STUDIES for case in study.cases() if case.name == name)
    return case(0.1)


# ------------------------------------------------------------------------- what was found, and from what
def test_the_results_are_complete_and_say_what_they_were_measured_on() -> None:
    found = results()
    assert found["format"] == "physics-validation/1"
    assert len(found["commit"]) >= 7
    assert "dirty" not in found["commit"]
    assert found["share"] == 1.0
    assert set(found["cases"]) == {case.name for study in STUDIES for case in study.cases()}
    for name, numerology in NUMEROLOGIES.items():
        for key, value in found["numerologies"][name].items():
            assert getattr(numerology, key) == value


def test_the_script_takes_up_finished_cases_of_its_own_commit_only(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("physics_script", VALIDATION / "physics.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    calls: list[float] = []

    def run(rng: np.random.Generator, share: float) -> dict[str, Any]:
        calls.append(share)
        return {"value": int(rng.integers(1 << 30))}

    case = script.Case("a/b", run)
    first = script.run_case(case, 0.1, tmp_path, "one")
    assert script.run_case(case, 0.1, tmp_path, "one") == first
    assert calls == [0.1]
    assert script.run_case(case, 0.1, tmp_path, "another") == first  # the seed is of the name
    assert script.run_case(case, 1.0, tmp_path, "another") == first
    assert calls == [0.1, 0.1, 1.0]


# ---------------------------------------------------------------------------------- modulation
@pytest.mark.parametrize("modulation", Modulation, ids=lambda modulation: modulation.name)
def test_uncoded_bit_error_rates_are_the_closed_form(modulation: Modulation) -> None:
    (stored,) = (case for key, case in results()["cases"].items() if key == f"uncoded/{modulation.name}")
    for points in (stored["points"], a_tenth_of(f"uncoded/{modulation.name}")["points"]):
        for point, target in zip(points, study_modulation.TARGET_RATES, strict=True):
            exact = study_modulation.bit_error_rate(modulation, point["snr_db"])
            assert exact == pytest.approx(target, rel=2e-3)
            assert point["interval"][0] <= point["measured"] <= point["interval"][1]
            # The interval is no wider than the rate's own order of magnitude.
            assert point["interval"][1] < 2 * exact or point["num_bits"] * exact < 100
    assert min(point["num_bits"] for point in stored["points"]) >= 1e6


def test_the_closed_form_is_the_known_one_where_there_is_one() -> None:
    """QPSK: Q(sqrt(Es/N0)).  16-QAM: (3 Q(x) + 2 Q(3x) - Q(5x)) / 4 with x = sqrt(Es / (5 N0))."""
    for snr_db in (0.0, 8.0, 14.0):
        snr = 10 ** (snr_db / 10)
        assert study_modulation.bit_error_rate(Modulation.QPSK, snr_db) == pytest.approx(
            stats.norm.sf(np.sqrt(snr))
        )
        x = np.sqrt(snr / 5)
        exact = (3 * stats.norm.sf(x) + 2 * stats.norm.sf(3 * x) - stats.norm.sf(5 * x)) / 4
        assert study_modulation.bit_error_rate(Modulation.QAM16, snr_db) == pytest.approx(exact)


# ---------------------------------------------------------------------------------- block error rates
@BOTH
@pytest.mark.parametrize("members", study_bler.MEMBERS)
def test_every_mcs_dies_where_decoder_and_estimation_loss_say(name: str, members: int) -> None:
    """Within 0.3 dB, all standard errors included, through the whole modem."""
    curves = [case for case in of_kind("bler", name) if case["subchannels_of_a_transmitter"] == members]
    assert [case["mcs_index"] for case in curves] == list(range(len(SCHEMES)))
    for case in curves:
        points = points_of(case["points"])
        found = threshold_10_percent(points[1:-1])
        assert found.snr_db == pytest.approx(case["measured_db"], abs=1e-3)
        error = np.hypot(found.standard_error_db, case["expected_standard_error_db"])
        assert error < 0.1, case["mcs"]
        assert abs(found.snr_db - case["expected_db"]) + 2 * error < 0.3, case["mcs"]
        assert not rising_pairs(points), case["mcs"]
        assert points[0].bler > 0.3
        assert stats.binomtest(points[-1].num_errors, points[-1].num_blocks, 0.002).pvalue > 1e-4
        assert case["num_undetected"] == 0


def test_losses_are_near_the_formula_of_the_mean_error() -> None:
    """The formula knows no edges of subchannels and no missed pilots: those cost up to 0.7 dB more."""
    for case in of_kind("bler"):
        assert -0.35 < case["estimation_loss_db"] - case["closed_form_loss_db"] < 0.7, case["mcs"]


@BOTH
@pytest.mark.parametrize("mcs_index", [1, 6, 14, 22, 30])
def test_block_error_rates_of_a_tenth_done_again(name: str, mcs_index: int) -> None:
    case = results()["cases"][f"bler/{name}/4/{mcs_index:02d}"]
    rng = np.random.default_rng([1, mcs_index])
    for snr_db, sent, lost in (case["points"][2], case["points"][4]):
        point, wrong = study_bler.modem_bler(rng, NUMEROLOGIES[name], mcs_index, 4, snr_db, int(sent) // 10)
        table = [[point.num_errors, point.num_blocks - point.num_errors], [lost, sent - lost]]
        assert stats.fisher_exact(table).pvalue > 1e-4
        assert wrong == 0


def test_a_loss_of_half_a_decibel_would_be_noticed() -> None:
    """What the criterion can see: the same blocks at half a decibel less miss the expected threshold."""
    case = results()["cases"]["bler/laptop/20/14"]
    shifted = threshold_10_percent(
        [
            BlerPoint(point.snr_db + 0.5, point.num_blocks, point.num_errors)
            for point in points_of(case["points"])[1:-1]
        ]
    )
    assert abs(shifted.snr_db - case["expected_db"]) > 0.3


# ---------------------------------------------------------------------------------- goodput
@BOTH
def test_goodput_follows_the_shannon_line(name: str) -> None:
    """Of capacity less pilots, prefix and guards: 70 % on the average from 3 to 30 dB, never below 55 %."""
    rows = of_kind("goodput", name)
    assert [row["snr_db"] for row in rows] == list(range(3, 31))
    for row in rows:
        capacity = study_bler.shannon_bits(NUMEROLOGIES[name], row["snr_db"])
        assert row["shannon_bits_per_block"] == pytest.approx(capacity)
    shares = np.array([row["best_mcs"]["share"] for row in rows])
    assert shares.mean() >= 0.70
    assert min(row["best_mcs"]["share_interval"][0] for row in rows) > 0.5
    assert shares.min() >= 0.55
    assert shares.max() < 1.0


def test_link_adaptation_comes_near_the_best_mcs() -> None:
    for name in NUMEROLOGIES:
        rows = of_kind("goodput", name)
        best = np.mean([row["best_mcs"]["share"] for row in rows])
        assert np.mean([row["adapted"]["share"] for row in rows]) > 0.9 * best


# ---------------------------------------------------------------------------------- shared band
@BOTH
def test_neighbours_with_their_own_timing_and_carrier_cost_little(name: str) -> None:
    """Up to 64-QAM at most half a decibel, also beside a neighbour that is 10 dB stronger."""
    for case in of_kind("sharing", name):
        for imbalance in ("-10", "+0", "+10"):
            found = case["situations"][f"other at {imbalance} dB"]
            if case["mcs"].startswith("QAM256") and imbalance == "+10":
                continue  # the leakage of 2 % reaches its noise
            assert found["loss_db"] is not None, case["mcs"]
            assert found["loss_db"] - 2 * found["loss_standard_error_db"] <= 0.5, (case["mcs"], imbalance)
            assert found["loss_db"] <= 0.5, (case["mcs"], imbalance)
        strongest = case["situations"]["other at +20 dB"]
        expected = strongest["expected_loss_db"]
        if case["mcs"].startswith("QPSK"):
            assert strongest["loss_db"] <= 0.5
        if strongest["loss_db"] is not None and expected is not None and expected < 1.0:
            error = strongest["loss_standard_error_db"]
            assert abs(strongest["loss_db"] - expected) < 0.3 + WIDE * error, case["mcs"]


@BOTH
def test_own_carrier_offsets_after_sounding_are_followed(name: str) -> None:
    for case in of_kind("own-carrier", name):
        for spacings, sent, lost in case["rows"]:
            if spacings <= min(0.004, case["ambiguous_beyond_spacings"] / 2):
                assert stats.binomtest(lost, sent, 0.06, alternative="greater").pvalue > 1e-4
        offsets = [row for row in case["rows"] if row[0] > case["ambiguous_beyond_spacings"]]
        assert all(lost > 0.9 * sent for _, sent, lost in offsets)


def test_two_clients_on_the_emulated_air_done_again() -> None:
    case = results()["cases"]["sharing/laptop/12"]
    rng = np.random.default_rng(2)
    situation = case["situations"]["other at +10 dB"]
    lost = sent = 0
    for _ in range(6):
        outcome = study_sharing.victim_blocks(
            rng,
            NUMEROLOGIES["laptop"],
            12,
            situation["measured_db"],
            10.0,
            study_sharing.OWN_CFO_SPACINGS,
            study_sharing.BATCH_SLOTS,
        )
        lost, sent = lost + int(outcome.failed.sum()), sent + int(outcome.sent.sum())
    low, high = stats.binom.interval(CONFIDENCE, sent, 0.1)
    assert low <= lost <= high


@BOTH
def test_leakage_without_common_timing_is_that_of_the_cut_symbol(name: str) -> None:
    (stored,) = of_kind("leakage", name)
    for case, tolerance_db in ((stored, 0.4), (a_tenth_of(f"leakage/{name}"), 1.0)):
        for row in case["rows"]:
            assert row["measured_db"] == pytest.approx(row["theory_db"], abs=tolerance_db)
        # Near-far: a client 10 dB stronger and late leaves less than 15 dB of SNR beside it.
        assert max(row["measured_db"] for row in case["rows"]) > -25


# ---------------------------------------------------------------------------------- estimators
@BOTH
def test_sounding_is_as_good_as_the_bound_permits(name: str) -> None:
    snr_dbs = study_estimators.SOUNDING_SNR_DB
    again = [a_tenth_of(f"sounding/{name}/{snr_db:+.0f}") for snr_db in snr_dbs]
    for case in (*of_kind("sounding", name), *again):
        bound = study_estimators.cfo_bound_hz(NUMEROLOGIES[name], case["snr_db"])
        assert case["cfo_bound_hz"] == pytest.approx(bound)
        if case["snr_db"] >= 0:
            ratio = case["cfo_rmse_hz"] / bound / case["cfo_expected_over_bound"]
            assert case["cfo_chance"][0] < ratio < case["cfo_chance"][1], case["snr_db"]
            assert case["num_detected"] == case["num_soundings"]
        assert abs(case["gain_bias"]) < case["gain_bias_chance"]
        # A variance of n values has a relative standard deviation of sqrt(2 / n), here of Gaussians.
        count = case["num_soundings"] * NUMEROLOGIES[name].num_subchannels
        assert case["gain_variance_over_theory"] == pytest.approx(1.0, abs=WIDE * np.sqrt(2 / count) + 0.02)


@BOTH
def test_sounding_is_found_and_noise_is_not(name: str) -> None:
    (case,) = of_kind("sounding-detection", name)
    assert case["num_noise_soundings"] >= 20_000
    stated = stats.binomtest(case["num_false"], case["num_noise_soundings"], SOUNDING_FALSE_ALARM)
    assert stated.pvalue > 1e-3
    rates = np.array([found / count for _, count, found in case["detections"]])
    assert rates[0] < 0.05
    # At -5 dB, where the lowest MCS dies.
    _, count, found = case["detections"][-1]
    assert stats.binomtest(found, count).proportion_ci(CONFIDENCE).low > 0.95
    assert (np.diff(rates) > -0.15).all()


@BOTH
def test_pilots_are_found_at_the_rate_of_the_non_central_f_distribution(name: str) -> None:
    (stored,) = of_kind("pilot-detection", name)
    for case in (stored, a_tenth_of(f"pilot-detection/{name}")):
        low, high = case["false_alarm_interval"]
        assert low <= case["stated_false_alarm"] <= high
        for point in case["detections"]:
            assert point["interval"][0] <= point["rate"] <= point["interval"][1], point["snr_db"]


# ---------------------------------------------------------------------------------- coding
def test_every_encoded_word_satisfies_every_check() -> None:
    found = of_kind("syndrome")
    assert len(found) == len(SCHEMES)
    assert all(case["broken"] == 0 and case["checks"] > 5000 for case in found)
    again = [a_tenth_of(f"syndrome/{mcs.index:02d}") for mcs in SCHEMES]
    assert all(case["broken"] == 0 and case["checks"] > 1000 for case in again)


@settings(deadline=None, max_examples=40)
@given(
    num_symbols=st.integers(60, 2500),
    bits_per_symbol=st.sampled_from([1, 2, 4, 6, 8, 10]),
    code_rate=st.floats(0.2, 8 / 9),
    seed=st.integers(0, 1000),
)
def test_words_of_any_size_satisfy_every_check(
    num_symbols: int, bits_per_symbol: int, code_rate: float, seed: int
) -> None:
    num_coded_bits = num_symbols * bits_per_symbol
    if num_coded_bits * code_rate < 32:
        return
    code = transport_block_code(num_coded_bits, bits_per_symbol, code_rate)
    payload = np.random.default_rng(seed).integers(0, 256, (2, code.num_info_bytes), dtype=np.uint8)
    broken, checks = study_coding.unsatisfied_checks(code, payload)
    assert broken == 0
    assert checks > 0


def test_a_wrong_bit_breaks_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    code = transport_block_code(2080, 2, 0.5)
    right = study_coding.encode

    def wrong(code: Any, payload: Any) -> Any:
        bits = right(code, payload)
        bits[0, 1000] ^= 1
        return bits

    monkeypatch.setattr(study_coding, "encode", wrong)
    payload = np.zeros((1, code.num_info_bytes), np.uint8)
    assert study_coding.unsatisfied_checks(code, payload)[0] > 0


@pytest.mark.parametrize("rate", list(study_coding.FLOAT_RATES))
def test_int8_is_within_a_tenth_of_a_decibel_of_the_same_algorithm_in_floating_point(rate: str) -> None:
    case = results()["cases"][f"float/{rate}"]
    fixed, floating = (threshold_10_percent(points_of(case[key])) for key in ("int8_points", "float_points"))
    assert fixed.snr_db - floating.snr_db == pytest.approx(case["loss_db"], abs=1e-3)
    assert case["loss_db"] + 2 * case["standard_error_db"] <= 0.1
    again = a_tenth_of(f"float/{rate}")
    assert again["loss_db"] <= 0.1 + 2 * again["standard_error_db"]


def test_no_error_goes_unnoticed() -> None:
    """None among millions of failed blocks; 24 bits of check let one in 17 million through."""
    found = of_kind("undetected")
    assert sum(case["num_undetected"] for case in found) == 0
    assert sum(case["num_failed"] for case in found) > 2.9e6
    assert all(case["num_undetected"] == 0 for case in (a_tenth_of("undetected/0"),))


@BOTH
def test_thresholds_of_the_table_are_those_that_the_results_stand_beside(name: str) -> None:
    table = thresholds_db(NUMEROLOGIES[name].block_resource_elements)
    for case in of_kind("bler", name):
        assert case["table_db"] == pytest.approx(table[case["mcs_index"]], abs=0.05)
