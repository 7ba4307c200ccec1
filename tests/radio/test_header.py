"""Headers: what is packed comes back, what lies is refused, and noise of the lowest MCS does not matter."""

from collections import Counter

import numpy as np
import pytest
from burst_signals import TINY
from numpy.typing import NDArray
from scipy import stats
from signals import LAPTOP, PLUTO_LAB, complex_noise

from radio.coding.crc import Crc, crc_bits
from radio.errors import RadioConfigurationError
from radio.header import (
    MAX_BURST_SLOTS,
    VERSION,
    BurstHeader,
    HeaderFault,
    decode_header,
    header_grid,
    num_header_bits,
    num_header_symbols,
    pack_header,
    parse_header,
)
from radio.mcs import SCHEMES
from radio.numerology import Numerology
from radio.phy import UNUSED

BOTH = pytest.mark.parametrize("numerology", [LAPTOP, PLUTO_LAB], ids=["laptop", "pluto-lab"])


def _random_header(rng: np.random.Generator, numerology: Numerology) -> BurstHeader:
    schemes = rng.integers(-1, len(SCHEMES), numerology.num_subchannels)
    schemes[rng.integers(len(schemes))] = 5
    return BurstHeader(
        int(rng.integers(256)),
        int(rng.integers(1 << 16)),
        int(rng.integers(1 << 16)),
        int(rng.integers(1, MAX_BURST_SLOTS + 1)),
        tuple(schemes.tolist()),
    )


def _with_check(content: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Bits whose check holds, whatever they say."""
    check = int(crc_bits(Crc.CRC16, content[None])[0])
    return np.concatenate([content, [(check >> n) & 1 for n in range(15, -1, -1)]]).astype(np.uint8)


@BOTH
def test_what_is_packed_is_parsed(numerology: Numerology) -> None:
    rng = np.random.default_rng(1)
    for _ in range(100):
        header = _random_header(rng, numerology)
        bits = pack_header(numerology, header)
        assert bits.shape == (num_header_bits(numerology),)
        assert parse_header(numerology, bits) == header


@BOTH
def test_one_wrong_bit_is_noticed(numerology: Numerology) -> None:
    bits = pack_header(numerology, _random_header(np.random.default_rng(2), numerology))
    for index in range(len(bits)):
        wrong = bits.copy()
        wrong[index] ^= 1
        assert parse_header(numerology, wrong) is HeaderFault.CHECK


@pytest.mark.parametrize(
    "change",
    [
        {"transmitter": 256},
        {"transmitter": -1},
        {"run_tag": 1 << 16},
        {"sequence": 1 << 16},
        {"num_slots": 0},
        {"num_slots": MAX_BURST_SLOTS + 1},
        {"mcs_index": (4,)},
        {"mcs_index": (UNUSED,) * 20},
        {"mcs_index": (len(SCHEMES),) * 20},
    ],
)
def test_fields_out_of_range_are_not_sent(change: dict) -> None:
    fields = {"transmitter": 1, "run_tag": 2, "sequence": 3, "num_slots": 4, "mcs_index": (5,) * 20}
    with pytest.raises(ValueError, match="packing a burst header"):
        pack_header(PLUTO_LAB, BurstHeader(**{**fields, **change}))


def test_more_subchannels_than_a_header_can_name_are_refused() -> None:
    with pytest.raises(RadioConfigurationError, match="wider subchannels"):
        num_header_bits(Numerology(1e6, 256, 16, 65, 3, 12, 1))


def test_headers_that_lie_are_refused_whatever_they_say() -> None:
    """Checks that hold over any content: 20,000 cases, each of which is in bounds or counted."""
    rng = np.random.default_rng(3)
    num_bits = num_header_bits(TINY)
    counted: Counter[HeaderFault | None] = Counter()
    for case in range(20_000):
        kind = case % 4
        content = rng.integers(0, 2, num_bits - 16, dtype=np.uint8)
        if kind != 0:  # this version, so that the other fields are looked at
            content[:4] = [(VERSION >> n) & 1 for n in (3, 2, 1, 0)]
        if kind == 2:  # few slots, so that the schemes are
            content[44:52] = [0, 0, 0, 0, 0, 0, 1, 1]
        bits = _with_check(content)
        if kind == 3 and case % 8 == 3:
            bits = bits[: int(rng.integers(0, num_bits))]
        found = parse_header(TINY, bits)
        if isinstance(found, HeaderFault):
            counted[found] += 1
            continue
        counted[None] += 1
        assert 1 <= found.num_slots <= MAX_BURST_SLOTS
        assert all(mcs == UNUSED or 0 <= mcs < len(SCHEMES) for mcs in found.mcs_index)
        np.testing.assert_array_equal(pack_header(TINY, found), bits)
    assert sum(counted.values()) == 20_000
    for fault in (HeaderFault.CHECK, HeaderFault.VERSION, HeaderFault.LENGTH, None):
        assert counted[fault] > 1000, fault


def test_a_header_for_nobody_and_schemes_without_room_are_refused() -> None:
    header = BurstHeader(1, 2, 3, 4, (5, 5, 5, 5))
    bits = pack_header(TINY, header)[:-16]
    bits[52:72] = 1
    assert parse_header(TINY, _with_check(bits)) is HeaderFault.EMPTY
    cramped = Numerology(1e6, 64, 8, 4, 12, 4, 4)  # 24 resource elements: BPSK 1/4 has no room for a byte
    bits = pack_header(cramped, BurstHeader(1, 2, 3, 4, (20,) * 4))[:-16]
    bits[52:72] = 0
    assert parse_header(cramped, _with_check(bits)) is HeaderFault.SCHEME


@BOTH
def test_with_a_known_channel_one_in_a_thousand_is_lost_below_the_lowest_scheme(
    numerology: Numerology,
) -> None:
    """Es/N0 -5.5 dB: Eb/N0 is 4.3 dB, where the code loses fewer than 0.3 in a thousand."""
    rng = np.random.default_rng(4)
    power = 10**0.55
    lost = 0
    trials = 1000
    for _ in range(trials):
        bits = pack_header(numerology, _random_header(rng, numerology))
        grid = header_grid(numerology, bits)
        assert grid.shape == (num_header_symbols(numerology), numerology.num_subcarriers)
        received = grid + complex_noise(rng, grid.shape, power)
        lost += not np.array_equal(decode_header(numerology, received[None] / power).bits, bits)
    assert stats.binomtest(lost, trials, 1e-3, alternative="greater").pvalue > 1e-3


@BOTH
def test_any_third_of_the_subcarriers_may_fade(numerology: Numerology) -> None:
    """Repetitions lie apart: whole runs of subcarriers or single symbols may be missing."""
    rng = np.random.default_rng(5)
    width = numerology.num_subcarriers // 3
    for first in range(0, numerology.num_subcarriers - width, width // 4):
        bits = pack_header(numerology, _random_header(rng, numerology))
        received = header_grid(numerology, bits) + complex_noise(rng, (1,), 0)
        received[:, first : first + width] = 0
        received = received + complex_noise(rng, received.shape, 10**0.3)
        np.testing.assert_array_equal(decode_header(numerology, received[None]).bits, bits)


def test_the_right_hypothesis_is_found() -> None:
    rng = np.random.default_rng(6)
    symbols = np.arange(num_header_symbols(PLUTO_LAB))[:, None]
    turns = np.exp(1j * np.array([-0.6, 0.0, 0.6])[:, None, None] * symbols)
    for right in range(3):
        bits = pack_header(PLUTO_LAB, _random_header(rng, PLUTO_LAB))
        grid = header_grid(PLUTO_LAB, bits) * turns[right].conj()
        received = grid + complex_noise(rng, grid.shape, 10**0.3)
        decoded = decode_header(PLUTO_LAB, received[None] * turns)
        assert decoded.hypothesis == right
        np.testing.assert_array_equal(decoded.bits, bits)


def test_noise_is_no_header() -> None:
    """The check passes noise once in 65,536."""
    rng = np.random.default_rng(7)
    shape = (500, num_header_symbols(TINY), TINY.num_subcarriers)
    passed = sum(
        parse_header(TINY, decode_header(TINY, noise[None]).bits) is not HeaderFault.CHECK
        for noise in complex_noise(rng, shape, 1.0)
    )
    assert passed <= 1
