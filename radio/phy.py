"""One slot after the other: transport blocks -> samples, and samples -> transport blocks.

A transport block fills one subchannel of one slot.  Both ends know from the grant which
subchannels carry whose blocks and at which MCS, so no header is spent on it; blocks of one MCS
are coded together, whatever slot or subchannel they lie in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from radio.coding.transport_block import TransportBlockCode, decode, encode, transport_block_code
from radio.estimation import estimate_channel
from radio.mcs import mcs_table
from radio.modulation import demodulate_llr, modulate
from radio.numerology import Numerology
from radio.ofdm import grid_to_samples, reference_symbols, samples_to_grid

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
    width = numerology.subcarriers_per_subchannel
    grid = np.zeros((num_slots, numerology.symbols_per_slot, numerology.num_subchannels, width), np.complex64)
    pilots = pilot_reference(numerology).reshape(2, numerology.num_subchannels, width)
    scale = amplitude.astype(np.float32)
    by_mcs: dict[int, list[tuple[int, int]]] = {}
    for slot, subchannel in blocks:
        by_mcs.setdefault(int(mcs_index[subchannel]), []).append((slot, subchannel))
    pilot_symbols = np.array(numerology.pilot_symbols)
    for mcs, places in by_mcs.items():
        code = block_code(numerology, mcs)
        payload = np.frombuffer(b"".join(blocks[place] for place in places), np.uint8)
        coded = encode(code, payload.reshape(len(places), code.num_info_bytes))
        symbols = modulate(mcs_table()[mcs].modulation, coded)
        slots = np.array([place[0] for place in places])
        subchannels = np.array([place[1] for place in places])
        data = symbols.reshape(len(places), len(numerology.data_symbols), width)
        data = data * scale[subchannels][:, None, None]
        grid[slots[:, None], numerology.data_symbols[None, :], subchannels[:, None]] = data
        known = pilots[:, subchannels].transpose(1, 0, 2) * scale[subchannels][:, None, None]
        grid[slots[:, None], pilot_symbols[None, :], subchannels[:, None]] = known
    return grid_to_samples(numerology, grid.reshape(-1, numerology.num_subcarriers))


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
        ``[num_slots * slot_samples]``, the first slot's prefix first.
    mcs_index
        ``[num_subchannels]``; :data:`UNUSED` where nothing is expected.
    owner
        ``[num_subchannels]`` transmitter of each subchannel (:data:`UNUSED`: none).  Subchannels
        of one transmitter share its frequency offset and are present or absent together.
    """
    width = numerology.subcarriers_per_subchannel
    num_slots = len(samples) // numerology.slot_samples
    grid = samples_to_grid(numerology, samples).reshape(
        num_slots, numerology.symbols_per_slot, numerology.num_subchannels, width
    )
    used = np.flatnonzero((mcs_index != UNUSED) & (owner != UNUSED))
    shape = (num_slots, numerology.num_subchannels)
    attempted = np.zeros(shape, bool)
    snr = np.zeros(shape, np.float32)
    noise_power = np.zeros(shape, np.float32)
    result = ReceivedSlots({}, attempted, snr, noise_power, float("nan"), 0)
    if len(used) == 0 or num_slots == 0:
        return result
    reference = pilot_reference(numerology).reshape(2, numerology.num_subchannels, width)
    pilots = grid[:, list(numerology.pilot_symbols)][:, :, used] * reference[:, used].conj()
    estimate = estimate_channel(numerology, pilots)
    snr[:, used] = estimate.snr
    # Noise does not change from slot to slot: the mean over the window is the better estimate.
    noise = estimate.noise_power.mean(axis=0)
    noise_power[:, used] = noise

    middle, drift = _phase_drift(numerology, estimate.first, estimate.second, noise, owner[used])
    tried = np.zeros(shape, bool)
    for transmitter in np.unique(owner[used]):
        mine = owner[used] == transmitter
        present = estimate.detected[:, mine].any(axis=1)
        tried[np.ix_(np.flatnonzero(present), used[mine])] = True
    attempted[:, used] = estimate.detected

    error_power = reference_power = 0.0
    for mcs in np.unique(mcs_index[used]):
        columns = np.flatnonzero(mcs_index[used] == mcs)
        slots, chosen = np.nonzero(tried[:, used[columns]])
        if len(slots) == 0:
            continue
        local = columns[chosen]
        subchannels = used[local]
        received = grid[slots[:, None], numerology.data_symbols[None, :], subchannels[:, None]]
        channel = middle[slots, local][:, None, :] * drift[slots, local][:, :, None]
        power = np.maximum(np.abs(middle[slots, local]) ** 2, 1e-20)
        equalised = received * channel.conj() / power[:, None, :]
        variance = np.broadcast_to((noise[local][:, None] / power)[:, None, :], equalised.shape)
        code = block_code(numerology, int(mcs))
        modulation = mcs_table()[int(mcs)].modulation
        symbols = np.ascontiguousarray(equalised.reshape(len(slots), -1), np.complex64)
        spread = np.ascontiguousarray(variance.reshape(len(slots), -1), np.float32)
        decoded = decode(code, demodulate_llr(modulation, symbols, spread))
        result.iterations += int(decoded.iterations.sum())
        for row in np.flatnonzero(decoded.ok):
            place = (int(slots[row]), int(subchannels[row]))
            result.blocks[place] = decoded.payload[row].tobytes()
            attempted[place] = True
        good = np.flatnonzero(decoded.ok)[:1]  # one block per MCS and window is enough for an EVM
        if len(good):
            sent = modulate(modulation, encode(code, decoded.payload[good]))
            error_power += float(np.sum(np.abs(symbols[good] - sent) ** 2))
            reference_power += float(np.sum(np.abs(sent) ** 2))
    if reference_power > 0:
        result.evm = float(np.sqrt(error_power / reference_power))
    return result


def _phase_drift(
    numerology: Numerology,
    first: NDArray[np.complex64],
    second: NDArray[np.complex64],
    noise: NDArray[np.float32],
    owner: NDArray[np.int64],
) -> tuple[NDArray[np.complex64], NDArray[np.complex64]]:
    """Channel half-way between the pilots, and its turn at each data symbol.

    Returns
    -------
    middle
        ``[num_slots, num_used, subcarriers]``.
    drift
        ``[num_slots, num_used, num_data_symbols]`` unit phasors.
    """
    num_slots, num_used, width = first.shape
    pilot_a, pilot_b = numerology.pilot_symbols
    span = pilot_b - pilot_a
    symbol_spacings = numerology.symbol_samples / numerology.fft_size
    prior = (2 * np.pi * RESIDUAL_CFO_SPACINGS * symbol_spacings * span) ** 2
    cross = np.sum(second * first.conj(), axis=2)
    power = np.sum(np.abs(first) ** 2 + np.abs(second) ** 2, axis=2) / 2
    angle = np.zeros((num_slots, num_used), np.float32)
    for transmitter in np.unique(owner):
        mine = owner == transmitter
        total = cross[:, mine].sum(axis=1)
        resource_elements = width * int(mine.sum())
        mean_snr = power[:, mine].sum(axis=1) / resource_elements / max(float(noise[mine].mean()), 1e-20)
        variance = 1.0 / np.maximum(mean_snr * resource_elements, 1e-6)
        angle[:, mine] = (np.angle(total) * prior / (prior + variance))[:, None]
    half = np.exp(0.5j * angle).astype(np.complex64)[:, :, None]
    middle = (first * half + second * half.conj()) / 2
    centre = (pilot_a + pilot_b) / 2
    position = (numerology.data_symbols - centre) / span
    drift = np.exp(1j * angle[:, :, None] * position).astype(np.complex64)
    return np.asarray(middle, np.complex64), drift


def effective_snr(snr: NDArray[np.floating]) -> NDArray[np.floating]:
    """SNR of equal capacity to several linear SNRs along the first axis."""
    return np.exp2(np.mean(np.log2(1.0 + snr), axis=0)) - 1.0
