"""One slot after the other: transport blocks -> samples, and samples -> transport blocks.

A transport block fills one subchannel of one slot.  Both ends know from the grant which
subchannels carry whose blocks and at which MCS, so no header is spent on it; blocks of one MCS
are coded together, whatever slot or subchannel they lie in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from radio.coding.transport_block import (
    DecodeResult,
    TransportBlockCode,
    decode,
    encode,
    transport_block_code,
)
from radio.combining import SoftMemory
from radio.estimation import estimate_channel, find_transmitters
from radio.grid import bend_blocks, equalise_blocks, map_blocks, map_pilots, sensible, take_pilots
from radio.mcs import mcs_table
from radio.modulation import constellation, demodulate_llr, modulate
from radio.numerology import Numerology
from radio.ofdm import reference_symbols, spectrum_to_samples, useful_samples, useful_to_spectrum
from radio.tracking import SlotMotion, slot_motion
from radio.turns import resolve_turns
from radio.workers import ALONE, Workers

UNUSED = -1  # MCS index or owner of a subchannel that carries nothing

# A linear phase within a subchannel is taken out where it would exceed this at its edges [rad]: below,
# it is -50 dB of the signal's power, far under the noise of any MCS.
LEAST_BEND = 0.01
# Per thread.  In shorter windows threads wait for the interpreter's lock longer than they save.
LEAST_SLOTS = 12


def block_code(numerology: Numerology, mcs_index: int) -> TransportBlockCode:
    """Code of a transport block at this MCS."""
    mcs = mcs_table()[mcs_index]
    coded_bits = numerology.block_resource_elements * int(mcs.modulation)
    return transport_block_code(coded_bits, int(mcs.modulation), mcs.code_rate)


def block_bytes(numerology: Numerology, mcs_index: int) -> int:
    """Bytes that a transport block at this MCS carries, its CRC not among them."""
    return block_code(numerology, mcs_index).num_info_bytes


def pilot_reference(numerology: Numerology) -> NDArray[np.complex64]:
    """``[2, num_subcarriers]`` known pilots of a slot."""
    return reference_symbols("pilot", 2, numerology.num_subcarriers)


def modulate_slots(
    numerology: Numerology,
    num_slots: int,
    blocks: Mapping[tuple[int, int], bytes],
    mcs_index: NDArray[np.int64],
    amplitude: NDArray[np.float64],
) -> NDArray[np.complex64]:
    """Samples of consecutive slots.

    Parameters
    ----------
    blocks
        Payload by (slot, subchannel), each exactly :func:`block_bytes` long.
    mcs_index
        ``[num_subchannels]``; :data:`UNUSED` where nothing is sent.
    amplitude
        ``[num_subchannels]`` magnitude of each subcarrier; pilots share it.

    Returns
    -------
    ``[num_slots * slot_samples]``.  A slot without any block is silent; pilots are sent in the
    subchannels of a slot that carry a block.
    """
    groups = []
    for mcs, places in _by_mcs(blocks, mcs_index).items():
        code = block_code(numerology, mcs)
        payload = np.frombuffer(b"".join(blocks[place] for place in places), np.uint8)
        coded = encode(code, payload.reshape(len(places), code.num_info_bytes))
        slots, subchannels = np.array(places, np.int64).T.copy()
        groups.append(CodedBlocks(mcs, slots, subchannels, coded))
    return coded_to_samples(numerology, num_slots, groups, amplitude)


def _by_mcs(
    places: Iterable[tuple[int, int]], mcs_index: NDArray[np.int64]
) -> dict[int, list[tuple[int, int]]]:
    """(slot, subchannel) places by the MCS of their subchannel."""
    groups: dict[int, list[tuple[int, int]]] = {}
    for place in places:
        groups.setdefault(int(mcs_index[place[1]]), []).append(place)
    return groups


class CodedBlocks(NamedTuple):
    """Coded blocks of one MCS.

    Attributes
    ----------
    slots, subchannels
        int64 ``[num_blocks]``.
    bits
        uint8 ``[num_blocks, num_coded_bits]``.
    """

    mcs_index: int
    slots: NDArray[np.int64]
    subchannels: NDArray[np.int64]
    bits: NDArray[np.uint8]


def coded_to_samples(
    numerology: Numerology, num_slots: int, groups: Iterable[CodedBlocks], amplitude: NDArray[np.float64]
) -> NDArray[np.complex64]:
    """Samples of coded blocks; see :func:`modulate_slots`."""
    spectrum = np.zeros((num_slots * numerology.symbols_per_slot, numerology.fft_size), np.complex64)
    scale = amplitude.astype(np.float32)
    shape = numerology.grid_shape
    reference = pilot_reference(numerology)
    for group in groups:
        modulation = mcs_table()[group.mcs_index].modulation
        map_blocks(
            shape,
            group.slots,
            group.subchannels,
            numerology.data_symbols,
            constellation(modulation),
            int(modulation),
            group.bits,
            scale,
            spectrum,
        )
        map_pilots(
            shape, group.slots, group.subchannels, numerology.pilot_symbols, reference, scale, spectrum
        )
    return spectrum_to_samples(numerology, spectrum)


@dataclass
class ReceivedSlots:
    """What consecutive slots held.

    Attributes
    ----------
    blocks
        Decoded payload by (slot, subchannel); only blocks whose CRC holds.
    attempted
        ``[num_slots, num_subchannels]`` whether there was a block: one was decoded, its pilots were
        found, or its transmitter went on sending after it.  Decoding is tried wherever a
        transmitter may have been, so a missed pilot costs no block, and an unused subchannel
        counts as no failure.
    snr
        ``[num_slots, num_subchannels]`` linear SNR per subcarrier, from the pilots.
    noise_power
        ``[num_slots, num_subchannels]`` per subcarrier, in the receiver's digital scale.
    evm
        Root mean square error of the equalised symbols over the RMS of the nearest constellation
        points, over decoded blocks; NaN when there are none.
    iterations
        Decoder iterations, summed over blocks.
    combined
        (slot, subchannel) places of blocks that were decoded only with an earlier copy of theirs.
    """

    blocks: dict[tuple[int, int], bytes]
    attempted: NDArray[np.bool_]
    snr: NDArray[np.float32]
    noise_power: NDArray[np.float32]
    evm: float
    iterations: int
    combined: set[tuple[int, int]] = field(default_factory=set)


def demodulate_slots(
    numerology: Numerology,
    samples: NDArray[np.complex64],
    mcs_index: NDArray[np.int64],
    owner: NDArray[np.int64],
    *,
    memory: Mapping[int, SoftMemory] | None = None,
    workers: Workers = ALONE,
) -> ReceivedSlots:
    """Blocks of consecutive slots.

    Parameters
    ----------
    samples
        ``[num_slots * slot_samples]``, the first slot's prefix first; what does not fill a slot is
        not looked at, and samples that are no number count as zero.
    mcs_index
        ``[num_subchannels]``; :data:`UNUSED` where nothing is expected.
    owner
        ``[num_subchannels]`` transmitter of each subchannel (:data:`UNUSED`: none).  Subchannels
        of one transmitter share its frequency offset and clock, and are present or absent together.
    memory
        By transmitter: where failed blocks wait for their repetition.  None: each block by itself.
    workers
        Threads to share the work with; what comes out does not depend on their number.
    """
    received = _prepare(numerology, samples, mcs_index, owner, workers)
    result, groups = received.result, received.groups
    outcomes = [_Outcome.empty(numerology, group) for group in groups]

    def receive_part(part: tuple[int, int]) -> None:
        for index, first, end in received.read(part):
            group, outcome = groups[index], outcomes[index]
            code = block_code(numerology, group.mcs_index)
            found = decode(code, group.llr[first:end])
            outcome.decoded.payload[first:end] = found.payload
            outcome.decoded.ok[first:end] = found.ok
            outcome.decoded.iterations[first:end] = found.iterations
            outcome.take_blocks(group, first, end)
            if first == 0:
                outcome.measure_evm(code, group)

    # Whole slots from FFT to decoder: what one step leaves in the cache is there for the next.
    workers.run(receive_part, workers.ranges(received.num_tried, LEAST_SLOTS))
    error_power = reference_power = 0.0
    for group, outcome in zip(groups, outcomes, strict=True):
        decoded = outcome.decoded
        if memory:
            code = block_code(numerology, group.mcs_index)
            result.combined |= _combine(code, group, outcome, owner, memory)
        result.iterations += int(decoded.iterations.sum())
        result.attempted[group.slots[decoded.ok], group.subchannels[decoded.ok]] = True
        result.blocks.update(outcome.blocks)
        error_power += outcome.error_power
        reference_power += outcome.reference_power
    if reference_power > 0:
        result.evm = float(np.sqrt(error_power / reference_power))
    return result


@dataclass
class _Outcome:
    """What a group decodes to, written by parts, and the EVM of one of its blocks."""

    decoded: DecodeResult
    blocks: dict[tuple[int, int], bytes] = field(default_factory=dict)
    error_power: float = 0.0
    reference_power: float = 0.0

    @classmethod
    def empty(cls, numerology: Numerology, group: SoftBlocks) -> _Outcome:
        count, num_bytes = len(group.slots), block_bytes(numerology, group.mcs_index)
        payload = np.empty((count, num_bytes), np.uint8)
        return cls(DecodeResult(payload, np.empty(count, bool), np.empty(count, np.int32)))

    def take_blocks(self, group: SoftBlocks, first: int, end: int) -> None:
        """Note the payload of the good ones among some rows."""
        good = first + np.flatnonzero(self.decoded.ok[first:end])
        places = zip(group.slots[good].tolist(), group.subchannels[good].tolist(), strict=True)
        for row, place in zip(good.tolist(), places, strict=True):
            self.blocks[place] = self.decoded.payload[row].tobytes()

    def measure_evm(self, code: TransportBlockCode, group: SoftBlocks) -> None:
        """Compare the first decoded block of the group's first slot with what was sent: one is enough."""
        # However the work is shared, a slot is one thread's.
        end = int(np.searchsorted(group.slots, group.slots[0], side="right"))
        good = np.flatnonzero(self.decoded.ok[:end])[:1]
        if len(good):
            modulation = mcs_table()[group.mcs_index].modulation
            sent = modulate(modulation, encode(code, self.decoded.payload[good]))
            error = group.symbols[good] - sent
            self.error_power = float(np.vdot(error, error).real)
            self.reference_power = float(np.vdot(sent, sent).real)


def _combine(
    code: TransportBlockCode,
    group: SoftBlocks,
    outcome: _Outcome,
    owner: NDArray[np.int64],
    memory: Mapping[int, SoftMemory],
) -> set[tuple[int, int]]:
    """Decode failed blocks with their earlier copies, keep what still fails; return places of successes."""
    decoded = outcome.decoded
    combined = set()
    for row in np.flatnonzero(~decoded.ok).tolist():
        kept = memory.get(int(owner[group.subchannels[row]]))
        if kept is None:
            continue
        position = kept.find(group.mcs_index, group.llr[row])
        if position is None:
            kept.keep(group.mcs_index, group.llr[row])
            continue
        total = kept.sum_with(group.mcs_index, position, group.llr[row])
        again = decode(code, total[None, :])
        decoded.iterations[row] += again.iterations[0]
        if again.ok[0]:
            decoded.payload[row], decoded.ok[row] = again.payload[0], True
            outcome.take_blocks(group, row, row + 1)
            combined.add((int(group.slots[row]), int(group.subchannels[row])))
            kept.forget(group.mcs_index, position)
        else:
            kept.replace(group.mcs_index, position, total)
    return combined


class SoftBlocks(NamedTuple):
    """Received blocks of one MCS before decoding.

    Attributes
    ----------
    slots, subchannels
        int64 ``[num_blocks]``.
    symbols
        complex64 ``[num_blocks, block_resource_elements]``, equalised.
    llr
        int8 ``[num_blocks, num_coded_bits]``.
    """

    mcs_index: int
    slots: NDArray[np.int64]
    subchannels: NDArray[np.int64]
    symbols: NDArray[np.complex64]
    llr: NDArray[np.int8]


def samples_to_soft_blocks(
    numerology: Numerology,
    samples: NDArray[np.complex64],
    mcs_index: NDArray[np.int64],
    owner: NDArray[np.int64],
    workers: Workers = ALONE,
) -> tuple[ReceivedSlots, list[SoftBlocks]]:
    """What :func:`demodulate_slots` does before decoding: estimates, and soft bits by MCS."""
    received = _prepare(numerology, samples, mcs_index, owner, workers)

    def read_part(part: tuple[int, int]) -> None:
        received.read(part)

    workers.run(read_part, workers.ranges(received.num_tried, LEAST_SLOTS))
    return received.result, received.groups


class _Prepared(NamedTuple):
    """A window whose pilots were looked at.

    Attributes
    ----------
    num_tried
        Slots in which somebody was heard.
    read
        Writes symbols and soft bits of a range of these slots; returns (group, first row, end row) of each
        group that has blocks there.
    """

    result: ReceivedSlots
    groups: list[SoftBlocks]
    num_tried: int
    read: Callable[[tuple[int, int]], list[tuple[int, int, int]]]


def _nothing(_: tuple[int, int]) -> list[tuple[int, int, int]]:
    return []


def _prepare(
    numerology: Numerology,
    samples: NDArray[np.complex64],
    mcs_index: NDArray[np.int64],
    owner: NDArray[np.int64],
    workers: Workers,
) -> _Prepared:
    """Estimates of a window, and what is needed to read its data."""
    width = numerology.subcarriers_per_subchannel
    num_slots = len(samples) // numerology.slot_samples
    used = np.flatnonzero((mcs_index != UNUSED) & (owner != UNUSED))
    place_shape = (num_slots, numerology.num_subchannels)
    attempted = np.zeros(place_shape, bool)
    snr = np.zeros(place_shape, np.float32)
    noise_power = np.zeros(place_shape, np.float32)
    result = ReceivedSlots({}, attempted, snr, noise_power, float("nan"), 0)
    groups: list[SoftBlocks] = []
    if len(used) == 0 or num_slots == 0:
        return _Prepared(result, groups, 0, _nothing)
    shape = numerology.grid_shape
    whole = sensible(samples[: num_slots * numerology.slot_samples])
    useful = useful_samples(numerology, whole).reshape(
        num_slots, numerology.symbols_per_slot, numerology.fft_size
    )
    # Pilots first: where nobody was heard the other symbols are not looked at.
    pilots = np.empty((num_slots, 2, len(used), width), np.complex64)
    reference = pilot_reference(numerology)

    def read_pilots(part: tuple[int, int]) -> None:
        first, end = part
        spectra = [useful_to_spectrum(useful[first:end, symbol]) for symbol in numerology.pilot_symbols]
        take_pilots(shape, used, (spectra[0], spectra[1]), reference, pilots[first:end])

    workers.run(read_pilots, workers.ranges(num_slots, LEAST_SLOTS))
    estimate = estimate_channel(numerology, pilots)
    snr[:, used] = estimate.snr
    # Noise does not change from slot to slot: the mean over the window is the better estimate.
    noise = estimate.noise_power.mean(axis=0)
    noise_power[:, used] = noise

    owners, owner_of_used = np.unique(owner[used], return_inverse=True)
    members = (owner_of_used[None, :] == np.arange(len(owners))[:, None]).astype(np.float32)
    tried, certain = find_transmitters(numerology, estimate, members)
    attempted[:, used] = certain
    tried_slots = np.flatnonzero(tried.any(axis=1))
    if len(tried_slots) == 0:
        return _Prepared(result, groups, 0, _nothing)
    centres = numerology.subcarrier_offsets.reshape(-1, width)[used].mean(axis=1)
    motion = slot_motion(numerology, estimate, noise, centres, owner_of_used, tried)
    motion = resolve_turns(
        numerology,
        lambda slot: useful_to_spectrum(useful[slot]),
        used,
        mcs_index[used],
        owner_of_used,
        tried,
        noise,
        motion,
    )
    for mcs in np.unique(mcs_index[used]).tolist():
        slots, local = np.nonzero(tried & (mcs_index[used] == mcs))
        if len(slots):
            symbols = np.empty((len(slots), numerology.block_resource_elements), np.complex64)
            llr = np.empty((len(slots), symbols.shape[1] * int(mcs_table()[mcs].modulation)), np.int8)
            groups.append(SoftBlocks(mcs, slots, used[local], symbols, llr))
    local_of = np.full(numerology.num_subchannels, UNUSED, np.int64)
    local_of[used] = np.arange(len(used))

    def read_data(part: tuple[int, int]) -> list[tuple[int, int, int]]:
        chosen = tried_slots[part[0] : part[1]]
        whole_range = len(chosen) == num_slots
        spectrum = useful_to_spectrum(useful if whole_range else useful[chosen])
        return _equalise(
            numerology, spectrum.reshape(-1, numerology.fft_size), chosen, local_of, motion, noise, groups
        )

    return _Prepared(result, groups, len(tried_slots), read_data)


def _equalise(
    numerology: Numerology,
    spectrum: NDArray[np.complex64],
    slots: NDArray[np.int64],
    local_of: NDArray[np.int64],
    motion: SlotMotion,
    noise: NDArray[np.float32],
    groups: list[SoftBlocks],
) -> list[tuple[int, int, int]]:
    """Write symbols and soft bits of the blocks that lie in some slots; return (group, first, end) of rows.

    Parameters
    ----------
    spectrum
        ``[len(slots) * symbols_per_slot, fft_size]``.
    slots
        Ascending; blocks of other slots are left alone.
    local_of
        ``[num_subchannels]`` place of each subchannel in ``motion`` and ``noise``.
    """
    pilot_a, pilot_b = numerology.pilot_symbols
    positions = (numerology.data_symbols - (pilot_a + pilot_b) / 2) / (pilot_b - pilot_a)
    furthest = float(np.abs(positions).max()) * numerology.subcarriers_per_subchannel / 2
    written = []
    for index, group in enumerate(groups):
        # Rows are in the order of their slots.
        first = int(np.searchsorted(group.slots, slots[0]))
        end = int(np.searchsorted(group.slots, slots[-1], side="right"))
        if first == end:
            continue
        own_slots, own = group.slots[first:end], local_of[group.subchannels[first:end]]
        symbols = group.symbols[first:end]
        variance = np.empty(symbols.shape, np.float32)
        equalise_blocks(
            numerology.grid_shape,
            np.searchsorted(slots, own_slots) * numerology.symbols_per_slot,
            group.subchannels[first:end],
            numerology.data_symbols,
            positions,
            motion.middle[own_slots, own],
            motion.angle[own_slots, own],
            noise[own],
            spectrum,
            symbols,
            variance,
        )
        slope = motion.slope[own]
        if np.abs(slope).max() * furthest > LEAST_BEND:
            bend_blocks(numerology.subcarriers_per_subchannel, positions, slope, symbols)
        modulation = mcs_table()[group.mcs_index].modulation
        group.llr[first:end] = demodulate_llr(modulation, symbols, variance)
        written.append((index, first, end))
    return written


def effective_snr(snr: NDArray[np.floating]) -> NDArray[np.floating]:
    """SNR of equal capacity to several linear SNRs along the first axis."""
    return np.exp2(np.mean(np.log2(1.0 + snr), axis=0)) - 1.0
