"""The header's code: the standard's distances, exact maximum likelihood, kernels equal to their references."""

import numpy as np
import pytest

from radio.coding.convolutional import (
    GENERATORS,
    MEMORY_BITS,
    decode,
    decode_reference,
    encode,
    encode_reference,
    num_coded_bits,
)


def _all_words(num_bits: int) -> np.ndarray:
    return ((np.arange(1 << num_bits)[:, None] >> np.arange(num_bits)) & 1).astype(np.uint8)


def test_impulse_response_is_the_generators() -> None:
    coded = encode(np.array([[1]], np.uint8)).reshape(MEMORY_BITS + 1, 3)
    assert tuple(int("".join(map(str, column)), 2) for column in coded.T) == GENERATORS


@pytest.mark.parametrize("num_bits", [1, 7, 168])
def test_encoder_is_its_reference_and_linear(num_bits: int) -> None:
    rng = np.random.default_rng([1, num_bits])
    first, second = rng.integers(0, 2, (2, 50, num_bits), dtype=np.uint8)
    coded = encode(first)
    assert coded.shape == (50, num_coded_bits(num_bits))
    np.testing.assert_array_equal(coded, encode_reference(first))
    np.testing.assert_array_equal(encode(first ^ second), coded ^ encode(second))


def test_free_distance_is_fifteen() -> None:
    """Of 133, 171, 165: Proakis, Digital Communications, table of rate 1/3 codes."""
    weights = encode(_all_words(12)).sum(axis=1)
    assert weights[1:].min() == 15


def test_decoder_finds_the_most_likely_of_all_words() -> None:
    rng = np.random.default_rng(2)
    words = _all_words(8)
    signs = 1.0 - 2.0 * encode(words)
    # Noise in which most blocks are lost: the best word is rarely the one sent.
    soft = signs[rng.integers(0, len(words), 500)] + rng.normal(0, 2.5, (500, signs.shape[1]))
    soft = np.round(8 * soft).astype(np.float32)
    metrics = soft @ signs.T
    found = decode(soft)
    np.testing.assert_array_equal((soft * (1.0 - 2.0 * encode(found))).sum(axis=1), metrics.max(axis=1))


@pytest.mark.parametrize("deviation", [0.5, 1.3, 3.0])
def test_decoder_is_its_reference(deviation: float) -> None:
    rng = np.random.default_rng([3, int(10 * deviation)])
    bits = rng.integers(0, 2, (60, 168), dtype=np.uint8)
    soft = 1.0 - 2.0 * encode(bits) + rng.normal(0, deviation, (60, num_coded_bits(168)))
    # Whole numbers: sums are exact and ties are decided alike.
    soft = np.round(16 * soft)
    np.testing.assert_array_equal(decode(soft), decode_reference(soft))


def test_seven_errors_of_any_block_are_corrected() -> None:
    """Half the free distance."""
    rng = np.random.default_rng(4)
    bits = rng.integers(0, 2, (400, 100), dtype=np.uint8)
    soft = 1.0 - 2.0 * encode(bits).astype(np.float32)
    for row in soft:
        row[rng.choice(len(row), 7, replace=False)] *= -1
    np.testing.assert_array_equal(decode(soft), bits)


def test_what_is_no_number_is_an_erasure() -> None:
    bits = np.random.default_rng(5).integers(0, 2, (20, 100), dtype=np.uint8)
    soft = 1.0 - 2.0 * encode(bits).astype(np.float32)
    soft[:, ::5] = np.nan
    soft[:, 1::50] *= np.inf
    np.testing.assert_array_equal(decode(soft), bits)


@pytest.mark.parametrize("shape", [(3,), (2, 18), (2, 20)])
def test_lengths_that_no_block_has_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="convolutional decoding"):
        decode(np.zeros(shape, np.float32))
