"""Soft combining of retransmissions (chase combining, Chase 1985).

A block that failed is kept as soft bits.  A copy of it that fails too is added to it and decoded
again: two copies are worth 3 dB.  Which block a reception repeats is not signalled; it shows, since
soft bits a and b of the same codeword point the same way.  Of unrelated codewords sum(a b) has mean 0
and standard deviation sqrt(sum(a^2 b^2)); that of two copies lies far above it at any SNR at which a
block can be sent at all.  A wrong guess is found by the block's check and costs one decoding.

A sender repeats a block bit for bit when it finds a place of the same size; see
:meth:`radio.link.SelectiveRepeatSender.next_block`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from radio.coding.transport_block import LLR_MAX

KEPT_BITS = 1 << 23  # soft bits kept per stream, one byte each; the oldest blocks go first
SIGNIFICANCE = 4.5  # standard deviations by which copies must agree more than strangers


class SoftMemory:
    """Soft bits of the failed blocks of one stream."""

    def __init__(self) -> None:
        self._failed: dict[int, list[NDArray[np.int8]]] = {}  # by MCS, oldest first
        self._order: list[int] = []  # MCS of each kept block, oldest first
        self._kept_bits = 0

    def __len__(self) -> int:
        return len(self._order)

    @property
    def kept_bits(self) -> int:
        """Soft bits in the memory, at most :data:`KEPT_BITS`."""
        return self._kept_bits

    def find(self, mcs_index: int, llr: NDArray[np.int8]) -> int | None:
        """Position among the failed blocks of an MCS of the one that ``llr`` ``[num_coded_bits]`` repeats."""
        kept = self._failed.get(mcs_index)
        if not kept:
            return None
        fresh = llr.astype(np.float32)
        known = np.stack(kept).astype(np.float32)
        # Of unrelated codewords the signs of the products are random, whatever their magnitudes.
        deviation = np.sqrt(known**2 @ fresh**2)
        agreement = known @ fresh / np.maximum(deviation, 1e-9)
        best = int(np.argmax(agreement))
        return best if agreement[best] > SIGNIFICANCE else None

    def sum_with(self, mcs_index: int, position: int, llr: NDArray[np.int8]) -> NDArray[np.int8]:
        """Soft bits ``[num_coded_bits]`` of a kept block and of a copy, added and saturated."""
        total = self._failed[mcs_index][position].astype(np.int16) + llr
        return np.clip(total, -LLR_MAX, LLR_MAX).astype(np.int8)

    def keep(self, mcs_index: int, llr: NDArray[np.int8]) -> None:
        """Remember a failed block; the oldest are forgotten beyond :data:`KEPT_BITS`."""
        if len(llr) > KEPT_BITS:
            return
        while self._kept_bits + len(llr) > KEPT_BITS:
            self.forget(self._order[0], 0)
        self._failed.setdefault(mcs_index, []).append(llr.copy())
        self._order.append(mcs_index)
        self._kept_bits += len(llr)

    def replace(self, mcs_index: int, position: int, llr: NDArray[np.int8]) -> None:
        """Put what several copies add up to in the place of the first ones."""
        self._failed[mcs_index][position] = llr.copy()

    def forget(self, mcs_index: int, position: int) -> None:
        """Drop a block, since it was decoded."""
        nth = [place for place, mcs in enumerate(self._order) if mcs == mcs_index][position]
        del self._order[nth]
        self._kept_bits -= len(self._failed[mcs_index].pop(position))
