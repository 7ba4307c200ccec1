"""One slot after the other: transport blocks -> samples, and samples -> transport blocks.

A transport block fills one subchannel of one slot.  Both ends know from the grant which
subchannels carry whose blocks and at which MCS, so no header is spent on it; blocks of one MCS
are coded together, whatever slot or subchannel they lie in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from radio.coding.transport_block import TransportBlockCode, decode, encode, transport_block_code
from radio.estimation import ChannelEstimate, estimate_channel
from radio.grid import equalise_blocks, map_blocks, map_pilots, sensible, take_pilots
from radio.mcs import mcs_table
from radio.modulation import constellation, demodulate_llr, modulate
from radio.numerology import Numerology
from radio.ofdm import reference_symbols, spectrum_to_samples, useful_samples, useful_to_spectrum

UNUSED = -1  # MCS index or owner of a subchannel that carries nothing

# Prior of the frequency offset left after sounding, as a fraction of the subcarrier spacing.  The
# phase drift over a slot is shrunk towards zero by it, or single subchannels at -5 dB would be
# turned by their own estimation error.
RESIDUAL_CFO_SPACINGS = 0.003


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
        ``[num_slots, num_subchannels]`` whether there was a block: one was decoded or its pilots
        were found.  Decoding is tried wherever a transmitter was present, so a missed pilot
        costs no block, and an unused subchannel counts as no failure.
    snr
        ``[num_slots, num_subchannels]`` linear SNR per subcarrier, from the pilots.
    noise_power
        ``[num_slots, num_subchannels]`` per subcarrier, in the receiver's digital scale.
    evm
        Root mean square error of the equalised symbols over the RMS of the nearest constellation
        points, over decoded blocks; NaN when there are none.
    iterations
        Decoder iterations, summed over blocks.
    """

    blocks: dict[tuple[int, int], bytes]
    attempted: NDArray[np.bool_]
    snr: NDArray[np.float32]
    noise_power: NDArray[np.float32]
    evm: float
    iterations: int


def demodulate_slots(
    numerology: Numerology,
    samples: NDArray[np.complex64],
    mcs_index: NDArray[np.int64],
    owner: NDArray[np.int64],
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
        of one transmitter share its frequency offset and are present or absent together.
    """
    result, groups = samples_to_soft_blocks(numerology, samples, mcs_index, owner)
    error_power = reference_power = 0.0
    for group in groups:
        code = block_code(numerology, group.mcs_index)
        decoded = decode(code, group.llr)
        result.iterations += int(decoded.iterations.sum())
        good = np.flatnonzero(decoded.ok)
        for row in good.tolist():
            place = int(group.slots[row]), int(group.subchannels[row])
            result.blocks[place] = decoded.payload[row].tobytes()
            result.attempted[place] = True
        if len(good):  # one block per MCS and window is enough for an EVM
            first = good[:1]
            modulation = mcs_table()[group.mcs_index].modulation
            sent = modulate(modulation, encode(code, decoded.payload[first]))
            error_power += float(np.sum(np.abs(group.symbols[first] - sent) ** 2))
            reference_power += float(np.sum(np.abs(sent) ** 2))
    if reference_power > 0:
        result.evm = float(np.sqrt(error_power / reference_power))
    return result


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
) -> tuple[ReceivedSlots, list[SoftBlocks]]:
    """What :func:`demodulate_slots` does before decoding: estimates, and soft bits by MCS."""
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
        return result, groups
    shape = numerology.grid_shape
    whole = sensible(samples[: num_slots * numerology.slot_samples])
    useful = useful_samples(numerology, whole).reshape(
        num_slots, numerology.symbols_per_slot, numerology.fft_size
    )
    # Pilots first: where nobody was heard the other symbols are not looked at.
    spectra = [useful_to_spectrum(useful[:, symbol]) for symbol in numerology.pilot_symbols]
    pilots = np.empty((num_slots, 2, len(used), width), np.complex64)
    take_pilots(shape, used, (spectra[0], spectra[1]), pilot_reference(numerology), pilots)
    estimate = estimate_channel(numerology, pilots)
    snr[:, used] = estimate.snr
    attempted[:, used] = estimate.detected
    # Noise does not change from slot to slot: the mean over the window is the better estimate.
    noise = estimate.noise_power.mean(axis=0)
    noise_power[:, used] = noise

    # A transmitter that was found anywhere in a slot is tried on all its subchannels there.
    owners, owner_of_used = np.unique(owner[used], return_inverse=True)
    members = (owner_of_used[None, :] == np.arange(len(owners))[:, None]).astype(np.float32)
    tried = (estimate.detected @ members.T)[:, owner_of_used] > 0
    tried_slots = np.flatnonzero(tried.any(axis=1))
    if len(tried_slots) == 0:
        return result, groups
    middle, angle = _phase_drift(numerology, estimate, noise, members, owner_of_used)
    row_of_slot = np.zeros(num_slots, np.int64)
    row_of_slot[tried_slots] = np.arange(len(tried_slots)) * numerology.symbols_per_slot
    wanted = useful if len(tried_slots) == num_slots else useful[tried_slots]
    spectrum = useful_to_spectrum(wanted).reshape(-1, numerology.fft_size)

    pilot_a, pilot_b = numerology.pilot_symbols
    positions = (numerology.data_symbols - (pilot_a + pilot_b) / 2) / (pilot_b - pilot_a)
    for mcs in np.unique(mcs_index[used]).tolist():
        slots, local = np.nonzero(tried & (mcs_index[used] == mcs))
        if len(slots) == 0:
            continue
        subchannels = used[local]
        symbols = np.empty((len(slots), numerology.block_resource_elements), np.complex64)
        variance = np.empty(symbols.shape, np.float32)
        equalise_blocks(
            shape,
            row_of_slot[slots],
            subchannels,
            numerology.data_symbols,
            positions,
            middle[slots, local],
            angle[slots, local],
            noise[local],
            spectrum,
            symbols,
            variance,
        )
        llr = demodulate_llr(mcs_table()[mcs].modulation, symbols, variance)
        groups.append(SoftBlocks(mcs, slots, subchannels, symbols, llr))
    return result, groups


def _phase_drift(
    numerology: Numerology,
    estimate: ChannelEstimate,
    noise: NDArray[np.float32],
    members: NDArray[np.float32],
    owner_of_used: NDArray[np.int64],
) -> tuple[NDArray[np.complex64], NDArray[np.float32]]:
    """Channel half-way between the pilots, and the phase over which it turns from one to the other.

    Parameters
    ----------
    noise
        ``[num_used]`` noise power per subcarrier.
    members
        ``[num_owners, num_used]``, 1 where a subchannel is of a transmitter, else 0.
    owner_of_used
        ``[num_used]`` row of each in ``members``.

    Returns
    -------
    middle
        ``[num_slots, num_used, subcarriers]``.
    angle
        ``[num_slots, num_used]`` [rad], the same for all subchannels of a transmitter.
    """
    first, second = estimate.first, estimate.second
    pilot_a, pilot_b = numerology.pilot_symbols
    symbol_spacings = numerology.symbol_samples / numerology.fft_size
    prior = (2 * np.pi * RESIDUAL_CFO_SPACINGS * symbol_spacings * (pilot_b - pilot_a)) ** 2
    cross = np.einsum("skn,skn->sk", second, first.conj()) @ members.T
    power = estimate.channel_power @ members.T / 2
    mean_noise = np.maximum(members @ noise / members.sum(axis=1), 1e-20)
    # The mean SNR times the resource elements that it was taken over.
    total_snr = power / mean_noise
    variance = 1.0 / np.maximum(total_snr, 1e-6)
    by_owner = (np.angle(cross) * prior / (prior + variance)).astype(np.float32)
    angle = np.ascontiguousarray(by_owner[:, owner_of_used])
    half = np.exp(0.5j * angle).astype(np.complex64)[:, :, None]
    middle = (first * half + second * half.conj()) * np.float32(0.5)
    return np.asarray(middle, np.complex64), angle


def effective_snr(snr: NDArray[np.floating]) -> NDArray[np.floating]:
    """SNR of equal capacity to several linear SNRs along the first axis."""
    return np.exp2(np.mean(np.log2(1.0 + snr), axis=0)) - 1.0
