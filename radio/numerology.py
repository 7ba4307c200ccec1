"""The resource grid: how samples are divided into symbols, slots, frames and subchannels.

Occupied subcarriers lie symmetrically around an empty DC subcarrier; subchannel ``k`` holds
``subcarriers_per_subchannel`` neighbours, counted from the lowest frequency.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from radio.errors import RadioConfigurationError
from radio.units import NS_PER_S

SOUNDING_SYMBOLS = 4  # per transmitter and round


class GridShape(NamedTuple):
    """What kernels must know of a numerology.

    Attributes
    ----------
    num_below
        Subcarriers below DC: subcarrier s is FFT bin ``s - num_below``, modulo the FFT size, or one
        more from DC on.
    width
        Subcarriers of a subchannel.
    """

    fft_size: int
    prefix_samples: int
    symbols_per_slot: int
    num_below: int
    width: int


@dataclass(frozen=True)
class Numerology:
    """Every count that both ends of the air must agree on.

    Raises
    ------
    RadioConfigurationError
        If the occupied subcarriers do not fit, or a slot cannot hold its two pilot symbols.
    """

    sample_rate_hz: float
    fft_size: int
    prefix_samples: int
    num_subchannels: int
    subcarriers_per_subchannel: int
    symbols_per_slot: int
    slots_per_frame: int

    def __post_init__(self) -> None:
        positive = (
            self.sample_rate_hz,
            self.fft_size,
            self.num_subchannels,
            self.subcarriers_per_subchannel,
            self.slots_per_frame,
        )
        if not all(value > 0 for value in positive) or self.prefix_samples < 0:
            raise RadioConfigurationError(
                "sample rate and all counts must be positive, and the prefix not negative"
            )
        if self.num_subcarriers + 1 > self.fft_size:
            raise RadioConfigurationError(
                f"{self.num_subchannels} subchannels x {self.subcarriers_per_subchannel} subcarriers and DC "
                f"do not fit into an FFT of {self.fft_size}"
            )
        if self.subcarriers_per_subchannel < 2:
            raise RadioConfigurationError(
                "a subchannel needs at least 2 subcarriers, or nothing tells its channel from its noise"
            )
        if self.symbols_per_slot < 4 or self.prefix_samples >= self.fft_size:
            raise RadioConfigurationError(
                "a slot needs at least 4 symbols, and the prefix must be shorter than the FFT"
            )

    @property
    def num_subcarriers(self) -> int:
        """Occupied subcarriers, DC not among them."""
        return self.num_subchannels * self.subcarriers_per_subchannel

    @property
    def subcarrier_spacing_hz(self) -> float:
        return self.sample_rate_hz / self.fft_size

    @property
    def subchannel_bandwidth_hz(self) -> float:
        """B_k: subcarriers times spacing."""
        return self.subcarriers_per_subchannel * self.subcarrier_spacing_hz

    @property
    def symbol_samples(self) -> int:
        return self.fft_size + self.prefix_samples

    @property
    def slot_samples(self) -> int:
        return self.symbols_per_slot * self.symbol_samples

    @property
    def frame_samples(self) -> int:
        return self.slots_per_frame * self.slot_samples

    @cached_property
    def pilot_symbols(self) -> tuple[int, int]:
        """Indices of the two pilot symbols of a slot, at its quarters."""
        quarter = self.symbols_per_slot // 4
        return quarter, self.symbols_per_slot - 1 - quarter

    @cached_property
    def data_symbols(self) -> NDArray[np.int64]:
        """Indices of the other symbols of a slot, ``[symbols_per_slot - 2]``."""
        return np.setdiff1d(np.arange(self.symbols_per_slot), np.array(self.pilot_symbols))

    @property
    def block_resource_elements(self) -> int:
        """Resource elements of one transport block: one subchannel in one slot, pilots taken out."""
        return len(self.data_symbols) * self.subcarriers_per_subchannel

    @cached_property
    def fft_bins(self) -> NDArray[np.int64]:
        """FFT bin of each occupied subcarrier, ``[num_subcarriers]``, lowest frequency first."""
        below = self.num_subcarriers // 2
        offsets = np.concatenate([np.arange(-below, 0), np.arange(1, self.num_subcarriers - below + 1)])
        return offsets % self.fft_size

    @cached_property
    def grid_shape(self) -> GridShape:
        """The counts that kernels need."""
        return GridShape(
            self.fft_size,
            self.prefix_samples,
            self.symbols_per_slot,
            self.num_subcarriers // 2,
            self.subcarriers_per_subchannel,
        )

    @cached_property
    def subcarrier_offsets(self) -> NDArray[np.int64]:
        """Signed subcarrier number of each occupied subcarrier, ``[num_subcarriers]``."""
        bins = self.fft_bins
        return np.where(bins > self.fft_size // 2, bins - self.fft_size, bins)

    def samples_to_ns(self, samples: int) -> int:
        """Instant [ns] of a sample index, rounded to the nearest nanosecond."""
        return round(samples * NS_PER_S / self.sample_rate_hz)

    def ns_to_samples(self, instant_ns: int) -> int:
        """First sample index at or after an instant [ns]."""
        candidate = int(instant_ns * self.sample_rate_hz / NS_PER_S)
        while self.samples_to_ns(candidate) < instant_ns:
            candidate += 1
        while candidate > 0 and self.samples_to_ns(candidate - 1) >= instant_ns:
            candidate -= 1
        return candidate

    def next_slot(self, instant_ns: int) -> int:
        """Index of the first slot that starts at or after an instant [ns]."""
        return -(-self.ns_to_samples(instant_ns) // self.slot_samples)

    def slot_start_ns(self, slot_index: int) -> int:
        """Instant [ns] at which a slot starts."""
        return self.samples_to_ns(slot_index * self.slot_samples)

    def frame_start_ns(self, frame_index: int) -> int:
        """Instant [ns] at which a frame starts."""
        return self.samples_to_ns(frame_index * self.frame_samples)

    def sounding_slots(self, num_transmitters: int) -> int:
        """Slots that a sounding of this many transmitters in turn takes."""
        return -(-num_transmitters // self.sounders_per_slot)

    @property
    def sounders_per_slot(self) -> int:
        """Transmitters whose sounding symbols fit into one slot."""
        return self.symbols_per_slot // SOUNDING_SYMBOLS
