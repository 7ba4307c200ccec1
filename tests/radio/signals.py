"""Signals that several tests of the modem need."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from radio.numerology import Numerology
from radio.phy import UNUSED, block_bytes, modulate_slots

LAPTOP = Numerology(20e6, 1024, 72, 20, 40, 28, 4)
PLUTO_LAB = Numerology(2.5e6, 256, 32, 20, 10, 105, 2)

Blocks = dict[tuple[int, int], bytes]


def complex_noise(
    rng: np.random.Generator, shape: int | tuple[int, ...], power: float
) -> NDArray[np.complex64]:
    """White Gaussian noise of a mean power."""
    parts = rng.standard_normal((2, *np.atleast_1d(shape)), dtype=np.float32)
    return ((parts[0] + 1j * parts[1]) * np.float32(np.sqrt(power / 2))).astype(np.complex64)


def random_blocks(
    rng: np.random.Generator, numerology: Numerology, num_slots: int, mcs_index: NDArray[np.int64]
) -> Blocks:
    """A block for every slot and used subchannel."""
    return {
        (slot, k): rng.bytes(block_bytes(numerology, int(mcs_index[k])))
        for slot in range(num_slots)
        for k in np.flatnonzero(mcs_index != UNUSED).tolist()
    }


def slots_of(
    numerology: Numerology, num_slots: int, blocks: Blocks, mcs_index: NDArray[np.int64]
) -> NDArray[np.complex64]:
    """Samples of blocks whose subcarriers have magnitude one."""
    return modulate_slots(numerology, num_slots, blocks, mcs_index, np.ones(numerology.num_subchannels))
