"""Pseudo-random bit sequences of TS 38.211 section 5.2.1."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

# Outputs start this far into both registers, where their states have mixed (the standard's N_C).
_WARM_UP_BITS = 1600
_REGISTER_BITS = 31


def _shift_register(state: int, taps: tuple[int, ...], num_bits: int) -> NDArray[np.uint8]:
    """Return bits x(0..num_bits-1) of x(n + 31) = sum of x(n + tap), modulo two."""
    sequence = np.zeros(num_bits + 2 * _REGISTER_BITS, dtype=np.uint8)
    sequence[:_REGISTER_BITS] = (state >> np.arange(_REGISTER_BITS)) & 1
    # No bit of a run this long depends on another bit of the same run.
    run = _REGISTER_BITS - max(taps)
    for start in range(0, num_bits, run):
        fresh = sequence[start + _REGISTER_BITS : start + _REGISTER_BITS + run]
        for tap in taps:
            fresh ^= sequence[start + tap : start + tap + run]
    return sequence[:num_bits]


@functools.lru_cache(maxsize=64)
def gold_sequence(initial_state: int, num_bits: int) -> NDArray[np.uint8]:
    """Return the length-31 Gold sequence c(0..num_bits-1) of TS 38.211, 5.2.1.

    Parameters
    ----------
    initial_state
        c_init of the standard, 0 <= c_init < 2**31.
    num_bits
        Length [bit].

    Returns
    -------
    uint8 [num_bits]
        Zeros and ones; read only, because it is cached.
    """
    if not 0 <= initial_state < 1 << _REGISTER_BITS:
        raise ValueError(
            f"generating a Gold sequence: initial state {initial_state} is outside 0..2**31 - 1; "
            "reduce it modulo 2**31"
        )
    length = _WARM_UP_BITS + num_bits
    first = _shift_register(1, (0, 3), length)
    second = _shift_register(initial_state, (0, 1, 2, 3), length)
    sequence = (first ^ second)[_WARM_UP_BITS:]
    sequence.flags.writeable = False
    return sequence
