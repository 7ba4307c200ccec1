"""The carrier rotation kernel against double precision, far out on the time axis."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from signals import complex_noise

from radio.estimation import cfo_rotation
from radio.rotation import BLOCK_SAMPLES, rotate


@pytest.mark.parametrize("first_sample", [0, 12_345, 10**11 + 7])
@pytest.mark.parametrize("cfo_hz", [0.0, -1480.0, 149_999.0])
def test_is_the_phasor_of_the_absolute_index(first_sample: int, cfo_hz: float) -> None:
    samples = complex_noise(np.random.default_rng(1), 5000, 1.0)
    expected = samples * cfo_rotation(5000, first_sample, cfo_hz, 20e6)
    np.testing.assert_allclose(rotate(samples, first_sample, cfo_hz / 20e6), expected, atol=5e-6)


def test_error_does_not_grow_with_length() -> None:
    ones = np.ones(1 << 20, np.complex64)
    exact = np.exp(2j * np.pi * np.mod(np.arange(1 << 20) * 3.7e-4, 1.0))
    error = np.abs(rotate(ones, 0, 3.7e-4) - exact)
    assert error[-BLOCK_SAMPLES:].max() < 5e-7
    assert error.max() < 5e-7


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 3000), st.integers(0, 10**9), st.floats(-0.5, 0.5))
def test_taking_an_offset_out_undoes_putting_it_in(length: int, first: int, cycles: float) -> None:
    samples = complex_noise(np.random.default_rng(2), length, 1.0)
    there = rotate(samples, first, cycles)
    back = rotate(there, first, -cycles, out=there)
    assert back is there
    np.testing.assert_allclose(back, samples, atol=2e-6)


def test_read_only_input_is_taken_and_a_wrong_output_is_refused() -> None:
    samples = complex_noise(np.random.default_rng(3), 100, 1.0)
    samples.flags.writeable = False
    assert rotate(samples, 5, 0.0).tobytes() == samples.tobytes()
    with pytest.raises(ValueError, match="complex64"):
        rotate(samples, 0, 0.1, out=np.empty(99, np.complex64))
