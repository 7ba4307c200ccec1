"""Slots, samples and instants; the layout of the grid."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from signals import LAPTOP, PLUTO_LAB

from radio.errors import RadioConfigurationError
from radio.numerology import SOUNDING_SYMBOLS, Numerology
from radio.phy import block_code

RATES = st.sampled_from([2.5e6, 3.84e6, 20e6, 30.72e6, 61.44e6])
DAY_NS = 86_400 * 10**9


@given(RATES, st.integers(0, 10**12))
def test_a_sample_index_survives_the_way_through_nanoseconds(rate_hz: float, sample: int) -> None:
    numerology = dataclasses.replace(LAPTOP, sample_rate_hz=rate_hz)
    assert numerology.ns_to_samples(numerology.samples_to_ns(sample)) == sample


@given(RATES, st.integers(0, DAY_NS))
def test_next_slot_is_the_first_that_does_not_start_earlier(rate_hz: float, instant_ns: int) -> None:
    numerology = dataclasses.replace(LAPTOP, sample_rate_hz=rate_hz)
    slot = numerology.next_slot(instant_ns)
    assert numerology.slot_start_ns(slot) >= instant_ns
    assert slot == 0 or numerology.slot_start_ns(slot - 1) < instant_ns


@given(RATES, st.integers(0, 10**6))
def test_slots_follow_each_other(rate_hz: float, slot: int) -> None:
    numerology = dataclasses.replace(PLUTO_LAB, sample_rate_hz=rate_hz)
    assert numerology.next_slot(numerology.slot_start_ns(slot)) == slot
    assert numerology.next_slot(numerology.slot_start_ns(slot) + 1) == slot + 1
    assert numerology.frame_start_ns(slot) == numerology.slot_start_ns(slot * numerology.slots_per_frame)


@given(st.integers(1, 30), st.integers(2, 40), st.sampled_from([64, 256, 1024, 2048]), st.integers(4, 40))
def test_layout(num_subchannels: int, width: int, fft_size: int, symbols: int) -> None:
    if num_subchannels * width + 1 > fft_size:
        with pytest.raises(RadioConfigurationError, match="do not fit"):
            Numerology(1e6, fft_size, 8, num_subchannels, width, symbols, 1)
        return
    numerology = Numerology(1e6, fft_size, 8, num_subchannels, width, symbols, 1)
    bins = numerology.fft_bins
    assert len(set(bins.tolist())) == len(bins) == num_subchannels * width
    assert 0 not in bins
    offsets = numerology.subcarrier_offsets
    assert (np.diff(offsets) > 0).all()
    assert abs(int(offsets[0]) + int(offsets[-1])) <= 1
    pilots = set(numerology.pilot_symbols)
    assert len(pilots) == 2
    assert pilots | set(numerology.data_symbols.tolist()) == set(range(symbols))
    assert numerology.block_resource_elements == (symbols - 2) * width


@pytest.mark.parametrize("numerology", [LAPTOP, PLUTO_LAB], ids=["laptop", "pluto-lab"])
def test_slots_are_long_enough_for_the_lowest_mcs(numerology: Numerology) -> None:
    assert block_code(numerology, 0).num_code_block_bits >= 256


def test_sounders_share_slots() -> None:
    assert LAPTOP.sounders_per_slot == LAPTOP.symbols_per_slot // SOUNDING_SYMBOLS == 7
    assert [LAPTOP.sounding_slots(n) for n in (1, 7, 8, 14, 15)] == [1, 1, 2, 2, 3]


@pytest.mark.parametrize(
    "change",
    [
        {"fft_size": 512},
        {"symbols_per_slot": 3},
        {"prefix_samples": 1024},
        {"prefix_samples": -1},
        {"num_subchannels": 0},
        {"subcarriers_per_subchannel": -4},
        {"slots_per_frame": 0},
        {"sample_rate_hz": 0.0},
    ],
)
def test_impossible_ones_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(RadioConfigurationError):
        dataclasses.replace(LAPTOP, **change)
