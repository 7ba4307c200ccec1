"""The FFT kernels: equal to scipy's in double precision within float32 rounding, both ways, any rows."""

import numpy as np
import pytest
import scipy.fft

from radio.fft import MAX_SIZE, MIN_SIZE, forward, has_kernel, inverse_with_prefix

SIZES = [1 << exponent for exponent in range(4, 15)] + [12, 600, 1536]
# Rounding of a transform grows as the square root of log2 N [Schatzman 1996]; 24 bits, and room for the
# rounded twiddles and the maximum over all elements.
TOLERANCE = 3e-6


def _rows(num_rows: int, size: int, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((num_rows, 2 * size), np.float32).view(np.complex64)


def _close(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == np.complex64
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def test_sizes_with_kernels_are_those_of_ofdm() -> None:
    assert [size for size in SIZES if has_kernel(size)] == [
        size for size in SIZES if MIN_SIZE <= size <= MAX_SIZE and size.bit_count() == 1
    ]
    assert has_kernel(256)
    assert has_kernel(1024)


@pytest.mark.parametrize("size", SIZES)
def test_forward_is_the_unitary_transform(size: int) -> None:
    rows = _rows(3, size)
    _close(forward(rows), scipy.fft.fft(rows.astype(complex), axis=1, norm="ortho"))


@pytest.mark.parametrize("size", SIZES)
def test_inverse_is_the_unitary_transform_behind_its_own_end(size: int) -> None:
    rows = _rows(3, size)
    before = rows.copy()
    expected = scipy.fft.ifft(rows.astype(complex), axis=1, norm="ortho")
    for prefix in (0, 5, size):
        found = inverse_with_prefix(rows, prefix)
        _close(found, np.hstack([expected[:, size - prefix :], expected]))
    np.testing.assert_array_equal(rows, before)


@pytest.mark.parametrize("size", [256, 1024])
def test_every_subcarrier_alone(size: int) -> None:
    """All rows of the transform matrix: no index is exchanged, however small its share of the energy."""
    identity = np.eye(size, dtype=np.complex64)
    turns = np.outer(np.arange(size), np.arange(size)) % size
    _close(forward(identity), np.exp(-2j * np.pi * turns / size) / np.sqrt(size))


def test_rows_that_lie_apart_or_backwards_or_cannot_be_written() -> None:
    samples = _rows(1, 7 * 300)[0]
    apart = samples.reshape(7, 300)[:, 44:]
    expected = scipy.fft.fft(apart.astype(complex), axis=1, norm="ortho")
    _close(forward(apart), expected)
    _close(forward(apart[::2]), expected[::2])
    _close(forward(apart[::-1]), expected[::-1])
    _close(forward(apart[:0]), expected[:0])
    across = np.asfortranarray(apart)
    _close(forward(across), expected)
    samples.setflags(write=False)
    _close(forward(samples.reshape(7, 300)[:, 44:]), expected)


def test_what_is_no_number_stays_in_its_row() -> None:
    rows = _rows(3, 1024)
    rows[1, 7] = np.nan
    found = forward(rows)
    assert np.isfinite(found[[0, 2]]).all()
    assert np.isnan(found[1]).all()
