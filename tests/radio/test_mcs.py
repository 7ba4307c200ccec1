"""The MCS table: order, bounds of information theory, and thresholds that the modem really meets."""

import numpy as np
import pytest
from scipy import stats

from calibration.mcs_thresholds import BlerPoint, fit_waterfall, measure_bler
from radio.coding.transport_block import transport_block_code
from radio.mcs import block_error_rate, highest_mcs, mcs_table, parse_table, thresholds_db
from radio.modulation import Modulation


def test_table_spans_bpsk_to_1024_qam_in_order() -> None:
    table = mcs_table()
    assert len(table) >= 28
    efficiency = [mcs.spectral_efficiency for mcs in table.schemes]
    assert (np.diff(efficiency) > 0).all()
    assert [mcs.index for mcs in table.schemes] == list(range(len(table)))
    assert {mcs.modulation for mcs in table.schemes} == set(Modulation)
    assert efficiency[0] == pytest.approx(0.25)
    assert efficiency[-1] == pytest.approx(10 * 8 / 9)


def test_lowest_scheme_carries_256_bits_on_26_symbols_of_40_subcarriers() -> None:
    lowest = mcs_table()[0]
    code = transport_block_code(26 * 40 * lowest.modulation, int(lowest.modulation), lowest.code_rate)
    assert (code.num_info_bytes + 3) * 8 >= 256


def test_thresholds_rise_with_the_index_and_fall_with_the_permitted_error_rate() -> None:
    table = mcs_table()
    assert (np.diff(table.threshold_10_percent_db, axis=0) > 0).all()
    assert (table.threshold_1_percent_db > table.threshold_10_percent_db).all()
    for length in (100, 520, 700, 1040, 1500, 2080, 9000):
        assert (np.diff(thresholds_db(length)) > 0).all()
        assert (thresholds_db(length, 0.01) > thresholds_db(length, 0.1)).all()
        assert (thresholds_db(length, 0.1) > thresholds_db(length, 0.3)).all()


def test_thresholds_lie_between_capacity_and_three_decibels_above() -> None:
    table = mcs_table()
    for mcs, thresholds in zip(table.schemes, table.threshold_10_percent_db, strict=True):
        shannon_db = 10 * np.log10(2**mcs.spectral_efficiency - 1)
        assert (thresholds > shannon_db).all(), mcs.name
        assert (thresholds < shannon_db + 3.5).all(), mcs.name


def test_measured_classes_are_returned_exactly_and_lengths_between_lie_between() -> None:
    table = mcs_table()
    for index, length in enumerate(table.block_resource_elements.tolist()):
        np.testing.assert_allclose(thresholds_db(length), table.threshold_10_percent_db[:, index])
        np.testing.assert_allclose(thresholds_db(length, 0.01), table.threshold_1_percent_db[:, index])
    low, high = thresholds_db(520), thresholds_db(1040)
    middle = thresholds_db(735)
    assert (middle >= np.minimum(low, high) - 1e-12).all()
    assert (middle <= np.maximum(low, high) + 1e-12).all()
    np.testing.assert_array_equal(thresholds_db(10), low)


def test_highest_mcs_inverts_the_thresholds() -> None:
    thresholds = thresholds_db(1040)
    indices = np.arange(thresholds.size)
    np.testing.assert_array_equal(highest_mcs(thresholds, 1040), indices)
    np.testing.assert_array_equal(highest_mcs(thresholds - 1e-9, 1040), indices - 1)
    np.testing.assert_array_equal(highest_mcs(thresholds + 1.5, 1040, backoff_db=1.5 - 1e-9), indices)
    found = highest_mcs([[-40.0, 90.0], [np.nan, -np.inf]], 1040)
    np.testing.assert_array_equal(found, [[-1, thresholds.size - 1], [-1, -1]])


def test_block_error_rate_passes_through_both_measured_points() -> None:
    indices = np.arange(len(mcs_table()))
    np.testing.assert_allclose(block_error_rate(indices, thresholds_db(520), 520), 0.1)
    np.testing.assert_allclose(block_error_rate(indices, thresholds_db(520, 0.01), 520), 0.01)
    curve = block_error_rate(5, np.linspace(-30, 40, 400), 520)
    assert (np.diff(curve) <= 0).all()
    assert curve[0] == pytest.approx(1)
    assert curve[-1] == pytest.approx(0)


@pytest.mark.parametrize(
    ("mcs_index", "num_resource_elements"),
    [(0, 1040), (2, 520), (6, 1040), (11, 520), (18, 1040), (24, 520), (30, 520), (30, 2080)],
)
def test_modem_meets_the_shipped_threshold(mcs_index: int, num_resource_elements: int) -> None:
    """10 % within what 300 blocks can tell at 99.9 % confidence and 0.05 dB of threshold error."""
    num_blocks = 300
    mcs = mcs_table()[mcs_index]
    threshold = thresholds_db(num_resource_elements)[mcs_index]
    rng = np.random.default_rng([99, mcs_index, num_resource_elements])
    point = measure_bler(mcs, num_resource_elements, threshold, num_blocks, rng)
    expected = block_error_rate(mcs_index, threshold + np.array([0.05, -0.05]), num_resource_elements)
    low = stats.binom.ppf(0.0005, num_blocks, expected[0])
    high = stats.binom.ppf(0.9995, num_blocks, expected[1])
    assert low <= point.num_errors <= high


@pytest.mark.parametrize("mcs_index", [1, 8, 14, 27])
def test_block_error_rate_falls_with_snr(mcs_index: int) -> None:
    mcs = mcs_table()[mcs_index]
    threshold = thresholds_db(520)[mcs_index]
    rng = np.random.default_rng([98, mcs_index])
    offsets = (-1.5, -0.4, 0.1, 0.8, 3.0, 8.0)
    lost = [measure_bler(mcs, 520, threshold + offset, 100, rng).bler for offset in offsets]
    assert (np.diff(lost) <= 0).all()
    assert lost[0] > 0.9
    assert lost[-2:] == [0, 0]


def test_fit_recovers_a_known_waterfall() -> None:
    snr_db = np.linspace(4.4, 5.6, 7)
    expected = stats.norm.sf((snr_db - 4.7) / 0.25)
    points = [
        BlerPoint(float(snr), 2000, round(2000 * float(rate)))
        for snr, rate in zip(snr_db, expected, strict=True)
    ]
    fit = fit_waterfall(points)
    assert fit.snr_db_at(0.1) == pytest.approx(4.7 - 0.25 * stats.norm.ppf(0.1), abs=0.02)
    assert fit.snr_db_at(0.01) == pytest.approx(4.7 - 0.25 * stats.norm.ppf(0.01), abs=0.03)


def test_foreign_document_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match="mcs-thresholds/1"):
        parse_table({"format": "mcs-thresholds/7"})
    with pytest.raises(ValueError, match="another list"):
        parse_table({"format": "mcs-thresholds/1", "mcs": []})
