"""What a node does with its radio: send and hear the blocks of slots, and soundings.

Two modems with one interface.  :class:`IqModem` makes and demodulates samples, and works with every
radio.  :class:`BlockModem` leaves modulation, demodulation and decoding of blocks to an emulated air of
``blocks`` fidelity; its soundings are samples like the other's, so that everything found by them (gain,
carrier, timing, clipping) is found in the same way.

Both count slots and samples from the start of the run.  Carrier offsets are what the node itself puts in
or takes out.  CPU time is booked by the caller's ``account``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from radio.block_words import MAX_REMEMBERED, SlotBurst, SlotRequest
from radio.combining import SoftMemory
from radio.drivers.base import Radio, SlotRadio
from radio.errors import RadioConfigurationError
from radio.estimation import SoundingEstimate, estimate_sounding, sounding_grid
from radio.fidelity import Fidelity
from radio.numerology import SOUNDING_SYMBOLS, Numerology
from radio.ofdm import grid_to_samples, samples_to_grid
from radio.phy import ReceivedSlots, demodulate_slots, modulate_slots
from radio.rotation import rotate
from radio.workers import ALONE, Workers

Account = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class SoundingTurn:
    """One transmitter's sounding in a window.

    Attributes
    ----------
    offset_samples
        Of its first sample from that of the window.
    amplitude
        Of each sent subcarrier, in the transmitter's digital scale.
    """

    offset_samples: int
    amplitude: float


@dataclass(frozen=True)
class Sounding:
    """What a window of soundings said.

    Attributes
    ----------
    estimates
        By turn.
    peak_dbfs
        Largest received component [dBFS].
    """

    estimates: tuple[SoundingEstimate, ...]
    peak_dbfs: float


class Modem(Protocol):
    """A modem of any fidelity."""

    async def send_slots(
        self,
        first_slot: int,
        num_slots: int,
        blocks: Mapping[tuple[int, int], bytes],
        mcs_index: NDArray[np.int64],
        amplitude: NDArray[np.float64],
        *,
        silent_until: int,
        cfo_hz: float = 0.0,
    ) -> int:
        """Radiate blocks from an absolute slot on; return the samples that this takes.

        Parameters
        ----------
        blocks
            Payload by (slot, counted from ``first_slot``; subchannel).
        mcs_index, amplitude
            ``[num_subchannels]``, as for :func:`radio.phy.modulate_slots`.
        silent_until
            Sample index before which nothing follows.
        cfo_hz
            Carrier offset to put in [Hz].
        """

    async def receive_slots(
        self,
        first_slot: int,
        num_slots: int,
        mcs_index: NDArray[np.int64],
        owner: NDArray[np.int64],
        *,
        expected: frozenset[str],
        timeout_s: float,
        cfo_hz: float = 0.0,
        memory: Memory | None = None,
    ) -> ReceivedSlots:
        """Blocks of consecutive slots from an absolute one on, and what was estimated on the way.

        Parameters
        ----------
        mcs_index, owner
            ``[num_subchannels]``, as for :func:`radio.phy.demodulate_slots`.
        expected
            Transmitters that will speak for this window themselves.
        cfo_hz
            Carrier offset to take out [Hz].
        memory
            From :meth:`new_memory`: failed blocks are combined with their repetitions.
        """

    def new_memory(self, owners: Iterable[int]) -> Memory:
        """An empty memory of failed blocks for streams of some transmitters."""

    async def send_sounding(
        self, at_sample: int, amplitude: float, *, silent_until: int, cfo_hz: float = 0.0
    ) -> int:
        """Radiate the known signal from a sample index on; return the samples that this takes."""

    async def receive_sounding(
        self,
        at_sample: int,
        num_samples: int,
        turns: Sequence[SoundingTurn],
        *,
        expected: frozenset[str],
        timeout_s: float,
        cfo_hz: float = 0.0,
    ) -> Sounding:
        """Hear the known signal of some transmitters in turn."""


class _SoundingModem:
    """Soundings, which are samples in every fidelity."""

    def __init__(self, numerology: Numerology, radio: Radio, account: Account = nullcontext) -> None:
        self._numerology = numerology
        self._radio = radio
        self._account = account

    async def send_sounding(
        self, at_sample: int, amplitude: float, *, silent_until: int, cfo_hz: float = 0.0
    ) -> int:
        numerology = self._numerology
        with self._account():
            burst = grid_to_samples(numerology, sounding_grid(numerology, amplitude))
            burst = self._turned(burst, at_sample, cfo_hz, out=burst)
        await self._radio.transmit(burst[None, :], at_sample, silent_until=silent_until)
        return len(burst)

    async def receive_sounding(
        self,
        at_sample: int,
        num_samples: int,
        turns: Sequence[SoundingTurn],
        *,
        expected: frozenset[str],
        timeout_s: float,
        cfo_hz: float = 0.0,
    ) -> Sounding:
        numerology = self._numerology
        length = SOUNDING_SYMBOLS * numerology.symbol_samples
        reception = await self._radio.receive(num_samples, at_sample, expected, timeout_s)
        samples = reception.samples[0]
        with self._account():
            heard = self._turned(samples, at_sample, -cfo_hz)
            estimates = tuple(
                estimate_sounding(
                    numerology,
                    samples_to_grid(numerology, heard[turn.offset_samples : turn.offset_samples + length]),
                    turn.amplitude,
                )
                for turn in turns
            )
        return Sounding(estimates, _peak_dbfs(samples))

    def _turned(
        self,
        samples: NDArray[np.complex64],
        first_sample: int,
        cfo_hz: float,
        out: NDArray[np.complex64] | None = None,
    ) -> NDArray[np.complex64]:
        if cfo_hz == 0.0:
            return samples
        return rotate(samples, first_sample, cfo_hz / self._numerology.sample_rate_hz, out=out)


def _peak_dbfs(samples: NDArray[np.complex64]) -> float:
    peak = max(float(np.max(np.abs(samples.real))), float(np.max(np.abs(samples.imag))), 1e-9)
    return float(20 * np.log10(peak))


class IqModem(_SoundingModem):
    """Samples out, samples in: works with every radio."""

    def __init__(
        self,
        numerology: Numerology,
        radio: Radio,
        account: Account = nullcontext,
        workers: Workers = ALONE,
    ) -> None:
        super().__init__(numerology, radio, account)
        self._workers = workers

    async def send_slots(
        self,
        first_slot: int,
        num_slots: int,
        blocks: Mapping[tuple[int, int], bytes],
        mcs_index: NDArray[np.int64],
        amplitude: NDArray[np.float64],
        *,
        silent_until: int,
        cfo_hz: float = 0.0,
    ) -> int:
        at_sample = first_slot * self._numerology.slot_samples
        with self._account():
            samples = modulate_slots(self._numerology, num_slots, blocks, mcs_index, amplitude)
            samples = self._turned(samples, at_sample, cfo_hz, out=samples)
        await self._radio.transmit(samples[None, :], at_sample, silent_until=silent_until)
        return len(samples)

    async def receive_slots(
        self,
        first_slot: int,
        num_slots: int,
        mcs_index: NDArray[np.int64],
        owner: NDArray[np.int64],
        *,
        expected: frozenset[str],
        timeout_s: float,
        cfo_hz: float = 0.0,
        memory: Memory | None = None,
    ) -> ReceivedSlots:
        soft = memory.soft if isinstance(memory, SoftMemories) else None
        numerology = self._numerology
        at_sample = first_slot * numerology.slot_samples
        reception = await self._radio.receive(
            num_slots * numerology.slot_samples, at_sample, expected, timeout_s
        )
        with self._account():
            samples = self._turned(reception.samples[0], at_sample, -cfo_hz)
            return demodulate_slots(numerology, samples, mcs_index, owner, memory=soft, workers=self._workers)

    def new_memory(self, owners: Iterable[int]) -> Memory:
        return SoftMemories({owner: SoftMemory() for owner in owners})


class Memory:
    """What a modem remembers of failed blocks; each kind of modem has its own."""


@dataclass
class SoftMemories(Memory):
    """Soft bits by transmitter."""

    soft: dict[int, SoftMemory]


@dataclass
class BlockMemory(Memory):
    """What copies of blocks that failed have left: the SNRs of copies add up, as in chase combining."""

    snr: dict[bytes, float] = field(default_factory=dict)

    def note(self, failed: Mapping[bytes, float]) -> None:
        """Keep what failed, and no more than the newest :data:`~radio.block_words.MAX_REMEMBERED`."""
        for content, snr in failed.items():
            self.snr.pop(content, None)
            self.snr[content] = snr
        while len(self.snr) > MAX_REMEMBERED:
            del self.snr[next(iter(self.snr))]


class BlockModem(_SoundingModem):
    """Blocks out, blocks in, over an emulated air of ``blocks`` fidelity.

    Raises
    ------
    RadioConfigurationError
        The radio carries samples only.
    """

    def __init__(self, numerology: Numerology, radio: Radio, account: Account = nullcontext) -> None:
        if not radio.capabilities.slots:
            raise RadioConfigurationError(
                f"a {radio.capabilities.driver} radio carries samples only; take radio.fidelity: iq"
            )
        super().__init__(numerology, radio, account)
        self._slots = cast(SlotRadio, radio)

    async def send_slots(
        self,
        first_slot: int,
        num_slots: int,
        blocks: Mapping[tuple[int, int], bytes],
        mcs_index: NDArray[np.int64],
        amplitude: NDArray[np.float64],
        *,
        silent_until: int,
        cfo_hz: float = 0.0,
    ) -> int:
        numerology = self._numerology
        cycles = cfo_hz / numerology.sample_rate_hz
        # The air keeps it: what the caller does with its arrays later must not reach it.
        burst = SlotBurst(num_slots, dict(blocks), mcs_index.copy(), amplitude.copy(), cycles)
        await self._slots.transmit_slots(burst, first_slot * numerology.slot_samples, silent_until)
        return num_slots * numerology.slot_samples

    async def receive_slots(
        self,
        first_slot: int,
        num_slots: int,
        mcs_index: NDArray[np.int64],
        owner: NDArray[np.int64],
        *,
        expected: frozenset[str],
        timeout_s: float,
        cfo_hz: float = 0.0,
        memory: Memory | None = None,
    ) -> ReceivedSlots:
        numerology = self._numerology
        cycles = cfo_hz / numerology.sample_rate_hz
        remembered = dict(memory.snr) if isinstance(memory, BlockMemory) else None
        reception = await self._slots.receive_slots(
            SlotRequest(num_slots, mcs_index, owner, cycles, remembered),
            first_slot * numerology.slot_samples,
            num_slots * numerology.slot_samples,
            expected,
            timeout_s,
        )
        if isinstance(memory, BlockMemory):
            memory.note(reception.failed)
        return reception.received

    def new_memory(self, owners: Iterable[int]) -> Memory:
        return BlockMemory()


def make_modem(
    fidelity: Fidelity,
    numerology: Numerology,
    radio: Radio,
    account: Account = nullcontext,
    workers: Workers = ALONE,
) -> Modem:
    """The modem of a fidelity; its demodulator shares its work with ``workers``.

    Raises
    ------
    RadioConfigurationError
        The radio cannot be used with it.
    """
    if fidelity is Fidelity.BLOCKS:
        return BlockModem(numerology, radio, account)
    return IqModem(numerology, radio, account, workers)
