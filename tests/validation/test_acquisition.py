"""What the long statistics of packet reception found, and a small part of them done again."""

from __future__ import annotations

import json

import acquisition
import numpy as np
import pytest
from scipy import stats

BOTH = pytest.mark.parametrize("name", ["pluto-lab", "laptop"])


@pytest.fixture(scope="module")
def results() -> dict:
    return json.loads(acquisition.RESULTS.read_text())


def _agree(again: dict, before: dict) -> None:
    """Two counts of one probability: Fisher's exact test."""
    table = [[one["count"], one["of"] - one["count"]] for one in (again, before)]
    assert stats.fisher_exact(table).pvalue > 1e-4


def test_the_results_say_what_they_were_measured_on(results: dict) -> None:
    assert results["format"] == acquisition.FORMAT
    assert results["share"] == 1.0
    assert len(results["commit"]) >= 7
    assert "dirty" not in results["commit"]
    assert set(acquisition.STUDIES) <= set(results)


@BOTH
def test_preambles_are_found_at_minus_five_db_and_offsets_lie_near_the_bound(
    results: dict, name: str
) -> None:
    for row in results["detection"][name]["rows"]:
        if row["snr_db"] >= -5.0:
            assert row["found"]["high"] > 0.999, row
        if 0.0 <= row["snr_db"] <= 20.0:
            # The spread of a thousand trials is 2 %.
            assert 0.9 < row["cfo_rmse_over_bound"] < 1.15, row
            assert row["timing_worst_samples"] < acquisition.NUMEROLOGIES[name].prefix_samples / 8


@BOTH
def test_noise_passes_no_more_often_than_stated(results: dict, name: str) -> None:
    found = results["noise"][name]
    assert found["num_samples"] >= 2e8
    assert found["false_preambles"]["count"] == 0
    assert found["lenient_false_alarm"]["low"] <= found["stated_lenient_false_alarm"]


@BOTH
def test_headers_survive_at_the_lowest_threshold(results: dict, name: str) -> None:
    found = results["header"][name]
    lowest = found["lowest_threshold_10_percent_db"]
    (row,) = [row for row in found["rows"] if row["snr_db"] == lowest]
    assert row["lost"]["of"] >= 10_000
    assert row["lost"]["share"] <= 1e-3
    assert all(row["wrong_header_accepted"] == 0 for row in found["rows"])
    lost = [row["lost"]["share"] for row in found["rows"]]
    assert lost == sorted(lost, reverse=True)


@BOTH
def test_bursts_lose_little_against_common_timing(results: dict, name: str) -> None:
    for row in results["burst"][name]["rows"]:
        assert row["loss_db"] < 0.3, row
        assert row["loss_standard_error_db"] < 0.1


@BOTH
def test_a_guard_of_eight_and_filters_let_neighbours_be_twenty_db_stronger(results: dict, name: str) -> None:
    rows = {row["guard_subcarriers"]: row for row in results["fdma"][name]["rows"]}
    for row in rows.values():
        assert -32 < row["leakage_unfiltered"]["mean_db"] < -15
    assert rows[8]["leakage_filtered"]["mean_db"] < -55
    leakage = [rows[guard]["leakage_filtered"]["mean_db"] for guard in sorted(rows)]
    assert leakage == sorted(leakage, reverse=True)
    for threshold in rows[8]["thresholds"]:
        assert threshold["loss_db"] < 0.5


def test_no_case_was_lost_from_the_count(results: dict) -> None:
    found = results["robustness"]["pluto-lab"]
    assert found["headers"]["num_cases"] + found["samples"]["num_cases"] >= 100_000
    assert sum(found["headers"]["outcomes"].values()) == found["headers"]["num_cases"]
    assert found["samples"]["num_wrong"] == 0


def test_a_part_of_the_noise_again(results: dict) -> None:
    again, before = acquisition.noise("pluto-lab", 0.02), results["noise"]["pluto-lab"]
    assert again["false_preambles"]["count"] == 0
    _agree(again["lenient_false_alarm"], before["lenient_false_alarm"])
    assert again["candidates_per_million_samples"] == pytest.approx(
        before["candidates_per_million_samples"], rel=0.4
    )


@BOTH
def test_a_part_of_the_headers_again(results: dict, name: str) -> None:
    again, before = acquisition.header(name, 0.01), results["header"][name]
    for one, other in zip(again["rows"], before["rows"], strict=True):
        assert one["snr_db"] == other["snr_db"]
        _agree(one["lost"], other["lost"])


@BOTH
def test_a_tenth_of_a_burst_threshold_again(results: dict, name: str) -> None:
    (again,) = acquisition.burst(name, 0.1, schemes=(6,))["rows"]
    (before,) = [row for row in results["burst"][name]["rows"] if row["mcs"] == again["mcs"]]
    for kind in ("burst", "common"):
        key = f"{kind}_threshold_db"
        assert again[key] == pytest.approx(before[key], abs=0.4)


def test_a_tenth_of_the_leakage_again(results: dict) -> None:
    again = acquisition.fdma("pluto-lab", 0.1, imbalances_db=())
    before = results["fdma"]["pluto-lab"]
    for one, other in zip(again["rows"], before["rows"], strict=True):
        for kind in ("leakage_filtered", "leakage_unfiltered"):
            # The neighbours' delays alone move it by 2 dB from trial to trial.
            assert one[kind]["mean_db"] == pytest.approx(other[kind]["mean_db"], abs=3.0)
    assert np.isfinite(before["rows"][0]["leakage_filtered"]["edge_db"])
