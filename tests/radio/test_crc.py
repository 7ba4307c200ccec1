"""The checks of TS 38.212 against published values and against long division."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radio.coding.crc import Crc, crc_bits, crc_bits_reference, crc_bytes

# The usual check message and the values of the published catalogue of CRC algorithms
# (CRC-24/LTE-A, CRC-24/LTE-B, CRC-16/XMODEM).
CHECK_MESSAGE = np.frombuffer(b"123456789", dtype=np.uint8)[None]


@pytest.mark.parametrize(
    ("kind", "expected"), [(Crc.CRC24A, 0xCDE703), (Crc.CRC24B, 0x23EF52), (Crc.CRC16, 0x31C3)]
)
def test_check_message_gives_the_published_value(kind: Crc, expected: int) -> None:
    assert crc_bytes(kind, CHECK_MESSAGE)[0] == expected
    assert crc_bits(kind, np.unpackbits(CHECK_MESSAGE, axis=1))[0] == expected
    assert crc_bits_reference(kind, np.unpackbits(CHECK_MESSAGE, axis=1))[0] == expected


@settings(deadline=None, max_examples=40)
@given(
    kind=st.sampled_from(Crc),
    num_bits=st.integers(1, 300),
    num_blocks=st.integers(1, 5),
    seed=st.integers(0, 2**32),
)
def test_kernel_is_long_division(kind: Crc, num_bits: int, num_blocks: int, seed: int) -> None:
    bits = np.random.default_rng(seed).integers(0, 2, (num_blocks, num_bits), dtype=np.uint8)
    np.testing.assert_array_equal(crc_bits(kind, bits), crc_bits_reference(kind, bits))


@pytest.mark.parametrize("kind", list(Crc))
def test_message_with_its_check_has_remainder_zero_and_one_flip_does_not(kind: Crc) -> None:
    rng = np.random.default_rng(5)
    data = rng.integers(0, 256, (1, 61), dtype=np.uint8)
    check = int(crc_bytes(kind, data)[0]).to_bytes(kind.num_bits // 8, "big")
    whole = np.concatenate((data[0], np.frombuffer(check, dtype=np.uint8)))
    assert crc_bytes(kind, whole[None])[0] == 0
    flips = np.tile(np.unpackbits(whole), (whole.size * 8, 1))
    flips[np.arange(whole.size * 8), np.arange(whole.size * 8)] ^= 1
    assert (crc_bits(kind, flips) != 0).all()


def test_wrong_shape_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match="num_bytes"):
        crc_bytes(Crc.CRC16, np.zeros(4, dtype=np.uint8))
