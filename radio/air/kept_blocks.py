"""Bursts of blocks as the air keeps them, and as one receiver hears them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from radio.air.channel import LinkChannel
from radio.air.converter import converter_effect
from radio.air.kernels import transmit_convert
from radio.block_words import SlotBurst
from radio.numerology import Numerology
from radio.phy import UNUSED, modulate_slots
from radio.rotation import rotate


@dataclass(eq=False)
class KeptBlocks:
    """A burst of blocks as the air keeps it; samples are made where somebody hears it as such."""

    first_sample: int
    burst: SlotBurst
    numerology: Numerology
    converter_bits: int

    @property
    def num_samples(self) -> int:
        return self.burst.num_slots * self.numerology.slot_samples

    @property
    def end(self) -> int:
        return self.first_sample + self.num_samples

    @cached_property
    def samples(self) -> NDArray[np.float32]:
        burst = self.burst
        made = modulate_slots(
            self.numerology, burst.num_slots, burst.blocks, burst.mcs_index, burst.amplitude
        )
        turned = rotate(made, self.first_sample, burst.cycles_per_sample, out=made)
        converted = np.empty((2, len(turned)), np.float32)
        transmit_convert(turned, self.converter_bits, converted)
        return converted

    @cached_property
    def amplitude(self) -> NDArray[np.float64]:
        """``[num_slots, num_subchannels]`` of each subcarrier; 0 where there is no block."""
        result = np.zeros((self.burst.num_slots, len(self.burst.amplitude)))
        if self.burst.blocks:
            slots, subchannels = np.array(list(self.burst.blocks)).T
            result[slots, subchannels] = self.burst.amplitude[subchannels]
        return result

    @cached_property
    def effects(self) -> NDArray[np.float64]:
        """``[num_slots, 3]`` what the transmitter's converter does, as :func:`converter_effect` has it."""
        width = self.numerology.subcarriers_per_subchannel
        power = (self.amplitude**2).sum(axis=1) * (width / self.numerology.fft_size)
        return np.array([converter_effect(float(value), self.converter_bits) for value in power])

    @cached_property
    def mcs_index(self) -> NDArray[np.int64]:
        """``[num_slots, num_subchannels]``; :data:`~radio.phy.UNUSED` where there is no block."""
        result = np.full((self.burst.num_slots, len(self.burst.amplitude)), UNUSED, np.int64)
        if self.burst.blocks:
            slots, subchannels = np.array(list(self.burst.blocks)).T
            result[slots, subchannels] = self.burst.mcs_index[subchannels]
        return result


@dataclass
class Heard:
    """One transmitter's blocks in a window, in the receiver's digital scale.

    Attributes
    ----------
    taps
        ``[num_slots, num_taps]`` amplitude gains of its full scale.
    amplitude, mcs_index
        ``[num_slots, num_subchannels]`` of what it sends; :data:`~radio.phy.UNUSED` where there is no block.
    turn
        ``[num_slots]`` what its converter and its carrier make of all of it, half-way between the pilots.
    advance
        ``[num_slots]`` phase from one pilot to the other [rad].
    spill
        ``[num_slots]`` residual carrier offset in subcarrier spacings.
    converter_noise
        ``[num_slots]`` power that its converter adds to a sample, its full scale being 1.0.
    bursts
        Where the blocks' contents lie, with the slot of the window that is each burst's first.
    """

    link: LinkChannel
    taps: NDArray[np.complex128]
    amplitude: NDArray[np.float64]
    mcs_index: NDArray[np.int64]
    turn: NDArray[np.complex128]
    advance: NDArray[np.float64]
    spill: NDArray[np.float64]
    converter_noise: NDArray[np.float64]
    bursts: list[tuple[int, KeptBlocks]]

    def content(self, slot: int, subchannel: int) -> bytes:
        """Payload of a block."""
        for shift, kept in self.bursts:
            payload = kept.burst.blocks.get((slot - shift, subchannel))
            if payload is not None:
                return payload
        raise KeyError((slot, subchannel))
