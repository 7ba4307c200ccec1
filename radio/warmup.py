"""One explicit step that compiles every kernel of the radio, so that no measurement does.

A cold start costs many seconds of compilation.  This module imports each module that owns kernels
(importing registers its warm-up) and runs them all; later processes load from the cache on disk.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from radio import jit
from radio.memory import keep_freed_memory

try:
    import fcntl
except ImportError:  # not a Unix: processes that start together compile side by side
    fcntl = None  # type: ignore[assignment]

KERNEL_MODULES = (
    "radio.air.front_end",
    "radio.air.interference",
    "radio.air.interpolation",
    "radio.air.block_kernels",
    "radio.air.kernels",
    "radio.air.noise",
    "radio.air.oscillator",
    "radio.coding.convolutional",
    "radio.coding.crc",
    "radio.coding.transport_block",
    "radio.fft",
    "radio.effective_snr",
    "radio.grid",
    "radio.modulation",
    "radio.preamble",
    "radio.resampling",
    "radio.rotation",
    "radio.tracking",
)


def warm_up(progress: Callable[[str], None] | None = None) -> None:
    """Import every kernel module and run what it registered; `progress` gets each module's name.

    Of several processes that start together one compiles, and the others wait and load.  Memory that
    frames will free is kept from now on, for the same reason: first touches cost time.
    """
    keep_freed_memory()
    for name in KERNEL_MODULES:
        importlib.import_module(name)
    with _only_one():
        jit.warm_up(progress)
        _send_one_slot_of_each_modulation()


def _send_one_slot_of_each_modulation() -> None:
    """Run the frame path itself: kernels also compile for the read-only arrays that it uses."""
    import numpy as np

    from radio.mcs import mcs_table
    from radio.numerology import Numerology
    from radio.phy import block_bytes, demodulate_slots, modulate_slots

    # Two slots of two subchannels: arrays with an axis of length one would count as contiguous.
    numerology = Numerology(1e6, 128, 8, 2, 40, 28, 1)
    schemes = {scheme.modulation: scheme.index for scheme in mcs_table().schemes}
    for index in schemes.values():
        mcs = np.array([index, index])
        block = bytes(block_bytes(numerology, index))
        blocks = {(slot, k): block for slot in range(2) for k in range(2)}
        samples = modulate_slots(numerology, 2, blocks, mcs, np.ones(2))
        received = demodulate_slots(numerology, samples, mcs, np.zeros(2, np.int64))
        if received.blocks != blocks:
            raise RuntimeError(f"warming up: MCS {index} did not survive a loop without noise")


@contextmanager
def _only_one() -> Iterator[None]:
    if fcntl is None:
        yield
        return
    try:
        lock = os.open(jit.cache_directory() / "warming.lock", os.O_CREAT | os.O_RDWR, 0o600)
    except OSError:  # a cache that cannot be written is not shared either
        yield
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
