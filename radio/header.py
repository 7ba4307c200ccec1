"""The header of a burst: who sends what, in so few bits that it survives where the lowest MCS dies.

::

    BurstHeader -> bits -> + CRC16 -> convolutional code, rate 1/3 -> repeated, interleaved, scrambled
                -> QPSK on all subcarriers of the header symbols
    soft bits -> repetitions added up -> Viterbi -> CRC16 -> fields in bounds? -> BurstHeader

Demodulation is driven by the grant; the header confirms it.  It says which grant a burst answers
(transmitter, run tag, sequence), and how many slots of which MCS follow: a receiver that did not schedule
the start can check that it expects just this.  Whatever the bits claim, nothing is allocated by them
before they are within :data:`MAX_BURST_SLOTS` and the grant (`radio.burst`).

Layout, most significant bit first: version 4, transmitter 8, run tag 16, sequence 16, slots 8, then 5 for
the MCS of each subchannel (31: unused), CRC16.  The number of subchannels is the numerology's.
"""

from __future__ import annotations

import functools
import hashlib
import math
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from radio.coding import convolutional
from radio.coding.crc import Crc, crc_bits
from radio.coding.scrambling import gold_sequence
from radio.errors import RadioConfigurationError
from radio.mcs import SCHEMES
from radio.modulation import Modulation, modulate
from radio.numerology import Numerology
from radio.phy import UNUSED, block_code

VERSION = 1
MAX_BURST_SLOTS = 64
MAX_HEADER_SUBCHANNELS = 64
# Resource elements for each header bit.  At -5 dB they give Eb/N0 = 4.5 dB, 1.3 dB more than the code
# needs for one error in a thousand; channel and frequency, estimated from the preamble, take their share.
RESOURCE_ELEMENTS_PER_BIT = 9
SCRAMBLING_STATE = 0x1B5E9D3

_FIELDS = (("version", 4), ("transmitter", 8), ("run_tag", 16), ("sequence", 16), ("num_slots", 8))
_MCS_BITS = 5
_UNUSED_CODE = (1 << _MCS_BITS) - 1
_FIXED_BITS = sum(width for _, width in _FIELDS)


class HeaderFault(Enum):
    """Why a received header is refused."""

    CHECK = "the CRC does not hold"
    VERSION = "another version of the header"
    LENGTH = "no slots, or more than a burst may have"
    EMPTY = "no subchannel carries anything"
    SCHEME = "an MCS that does not exist or whose blocks would be empty"


@dataclass(frozen=True)
class BurstHeader:
    """What a burst says of itself.

    Attributes
    ----------
    transmitter
        Number of the sender, 0..255.
    run_tag
        Distinguishes runs and streams that share a band, 0..65535.
    sequence
        Counts the bursts of a sender, 0..65535.
    num_slots
        Slots that follow, 1..:data:`MAX_BURST_SLOTS`.
    mcs_index
        One for each subchannel; ``UNUSED`` where nothing is sent.
    """

    transmitter: int
    run_tag: int
    sequence: int
    num_slots: int
    mcs_index: tuple[int, ...]


def num_header_bits(numerology: Numerology) -> int:
    """Bits of a header with its check.

    Raises
    ------
    RadioConfigurationError
        More than :data:`MAX_HEADER_SUBCHANNELS` subchannels.
    """
    if numerology.num_subchannels > MAX_HEADER_SUBCHANNELS:
        raise RadioConfigurationError(
            f"a burst header for {numerology.num_subchannels} subchannels; it names the MCS of "
            f"{MAX_HEADER_SUBCHANNELS} at most: use wider subchannels"
        )
    return _FIXED_BITS + _MCS_BITS * numerology.num_subchannels + Crc.CRC16.num_bits


def num_header_symbols(numerology: Numerology) -> int:
    """OFDM symbols of a header."""
    elements = RESOURCE_ELEMENTS_PER_BIT * num_header_bits(numerology)
    return math.ceil(elements / numerology.num_subcarriers)


@functools.lru_cache(maxsize=64)
def _carries_something(numerology: Numerology, mcs_index: int) -> bool:
    try:
        block_code(numerology, mcs_index)
    except ValueError:
        return False
    return True


def _fault_of(numerology: Numerology, header: BurstHeader) -> HeaderFault | None:
    """What is wrong with the fields, if anything."""
    if not 1 <= header.num_slots <= MAX_BURST_SLOTS:
        return HeaderFault.LENGTH
    used = {mcs for mcs in header.mcs_index if mcs != UNUSED}
    if not used:
        return HeaderFault.EMPTY
    if not all(0 <= mcs < len(SCHEMES) and _carries_something(numerology, mcs) for mcs in used):
        return HeaderFault.SCHEME
    return None


def _to_bits(value: int, width: int) -> list[int]:
    return [(value >> shift) & 1 for shift in range(width - 1, -1, -1)]


def _check_bits(bits: NDArray[np.uint8]) -> int:
    return int(crc_bits(Crc.CRC16, bits[None, :])[0])


def pack_header(numerology: Numerology, header: BurstHeader) -> NDArray[np.uint8]:
    """Bits of a header, its check at the end, ``[num_header_bits]``.

    Raises
    ------
    ValueError
        A field out of its range; the message names it.
    """
    num_bits = num_header_bits(numerology)
    values = {**vars(header), "version": VERSION}
    bits: list[int] = []
    for name, width in _FIELDS:
        if not 0 <= values[name] < 1 << width:
            raise ValueError(f"packing a burst header: {name} is {values[name]}, not 0..{(1 << width) - 1}")
        bits += _to_bits(values[name], width)
    if len(header.mcs_index) != numerology.num_subchannels:
        raise ValueError(
            f"packing a burst header: {len(header.mcs_index)} MCS for {numerology.num_subchannels} subchannels"
        )
    fault = _fault_of(numerology, header)
    if fault is not None:
        raise ValueError(f"packing a burst header: {fault.value} in {header}")
    for mcs in header.mcs_index:
        bits += _to_bits(_UNUSED_CODE if mcs == UNUSED else mcs, _MCS_BITS)
    content = np.array(bits, np.uint8)
    check = np.array(_to_bits(_check_bits(content), Crc.CRC16.num_bits), np.uint8)
    assert len(content) + len(check) == num_bits
    return np.concatenate([content, check])


def parse_header(numerology: Numerology, bits: NDArray[np.uint8]) -> BurstHeader | HeaderFault:
    """The header in some bits, or why there is none.

    Parameters
    ----------
    bits
        uint8 ``[num_header_bits]``, zeros and ones; another length counts as a failed check.
    """
    if bits.shape != (num_header_bits(numerology),) or _check_bits(bits):
        return HeaderFault.CHECK
    # Python's integers: no bit pattern can overflow them.
    position = 0

    def take(width: int) -> int:
        nonlocal position
        value = int("".join(map(str, bits[position : position + width].tolist())), 2)
        position += width
        return value

    values = {name: take(width) for name, width in _FIELDS}
    if values.pop("version") != VERSION:
        return HeaderFault.VERSION
    codes = [take(_MCS_BITS) for _ in range(numerology.num_subchannels)]
    header = BurstHeader(**values, mcs_index=tuple(UNUSED if c == _UNUSED_CODE else c for c in codes))
    return _fault_of(numerology, header) or header


class _Places(NamedTuple):
    """Where coded bits lie on the air.

    Attributes
    ----------
    source
        int64 [2 * num_resource_elements], coded bit of each place.
    flip
        uint8 [2 * num_resource_elements], scrambling.
    """

    source: NDArray[np.int64]
    flip: NDArray[np.uint8]


@functools.lru_cache(maxsize=16)
def _places(num_coded_bits: int, num_resource_elements: int) -> _Places:
    """Repetitions spread over all symbols and subcarriers, so that no fade takes all of one bit."""
    num_places = 2 * num_resource_elements
    digest = hashlib.shake_256(f"header/{num_coded_bits}/{num_places}".encode()).digest(8 * num_places)
    # SHAKE rather than a generator of a library, so that every board spreads alike.
    order = np.argsort(np.frombuffer(digest, "<u8"), kind="stable")
    source = np.empty(num_places, np.int64)
    source[order] = np.arange(num_places) % num_coded_bits
    # Also keeps repetitions from correlating with themselves, which would look like a preamble.
    return _Places(source, gold_sequence(SCRAMBLING_STATE, num_places))


def _places_of(numerology: Numerology) -> _Places:
    coded = convolutional.num_coded_bits(num_header_bits(numerology))
    return _places(coded, num_header_symbols(numerology) * numerology.num_subcarriers)


def header_grid(numerology: Numerology, bits: NDArray[np.uint8]) -> NDArray[np.complex64]:
    """Symbols that carry packed bits, ``[num_header_symbols, num_subcarriers]``, unit magnitude."""
    places = _places_of(numerology)
    coded = convolutional.encode(bits[None, :])[0]
    symbols = modulate(Modulation.QPSK, coded[places.source] ^ places.flip)
    return symbols.reshape(num_header_symbols(numerology), numerology.num_subcarriers)


class DecodedHeader(NamedTuple):
    """The most likely bits behind soft symbols.

    Attributes
    ----------
    bits
        uint8 ``[num_header_bits]``.
    hypothesis
        Which of the candidates they were found in.
    """

    bits: NDArray[np.uint8]
    hypothesis: int


def decode_header(numerology: Numerology, matched: NDArray[np.complex64]) -> DecodedHeader:
    """Most likely bits over some hypotheses of what the channel did.

    Parameters
    ----------
    matched
        ``[num_hypotheses, num_header_symbols, num_subcarriers]``: received symbols times the conjugate of
        the channel over the noise power, whose real and imaginary part are soft bits up to a factor.

    Notes
    -----
    A codeword whose check holds goes before one that fits better; among equals the higher path metric, the
    correlation of soft bits and codeword, decides.
    """
    places = _places_of(numerology)
    num_coded = convolutional.num_coded_bits(num_header_bits(numerology))
    parts = np.ascontiguousarray(matched, np.complex64).reshape(len(matched), -1).view(np.float32)
    soft = np.nan_to_num(parts, nan=0.0, posinf=0.0, neginf=0.0) * (np.float32(1) - 2 * places.flip)
    combined = np.stack([np.bincount(places.source, row, num_coded) for row in soft])
    # The decoder saturates; only the relative scale within a block matters to it.
    largest = np.maximum(np.abs(combined).max(axis=1, keepdims=True), 1e-30)
    combined = combined * (512.0 / largest)
    bits = convolutional.decode(combined)
    metric = (combined * (1.0 - 2.0 * convolutional.encode(bits))).sum(axis=1) / 512.0 * largest[:, 0]
    holds = crc_bits(Crc.CRC16, bits) == 0
    best = int(np.lexsort((metric, holds))[-1])
    return DecodedHeader(bits[best], best)
