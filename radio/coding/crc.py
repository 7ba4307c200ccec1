"""Cyclic redundancy checks of TS 38.212 section 5.1, batched over blocks.

The generator starts at zero and nothing is inverted at the end, so a message followed by its own
check has remainder zero, and the check is linear: `crc(a ^ b) == crc(a) ^ crc(b)`.
"""

from __future__ import annotations

import functools
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from radio.jit import kernel, register_warmup


class Crc(Enum):
    """A generator polynomial as (degree, coefficients below the leading one)."""

    CRC24A = (24, 0x864CFB)
    CRC24B = (24, 0x800063)
    CRC16 = (16, 0x1021)

    @property
    def num_bits(self) -> int:
        """Degree of the generator [bit]."""
        return int(self.value[0])

    @property
    def polynomial(self) -> int:
        """Coefficients of the generator without its leading one."""
        return int(self.value[1])


@functools.cache
def crc_tables(kind: Crc) -> NDArray[np.uint32]:
    """Return the look-up tables that advance a remainder by eight bytes at a time.

    Returns
    -------
    uint32 [8, 256]
        Entry [k, b] is the remainder of byte b followed by k zero bytes, left aligned in 32 bits so
        that one kernel serves every degree.  Read only.
    """
    generator = kind.polynomial << (32 - kind.num_bits)
    tables = np.zeros((8, 256), dtype=np.uint32)
    for byte in range(256):
        remainder = byte << 24
        for _ in range(8):
            remainder = (remainder << 1) ^ (generator if remainder & 0x80000000 else 0)
            remainder &= 0xFFFFFFFF
        tables[0, byte] = remainder
    for zeros in range(1, 8):
        previous = tables[zeros - 1]
        tables[zeros] = (previous << np.uint32(8)) ^ tables[0][previous >> np.uint32(24)]
    tables.flags.writeable = False
    return tables


@kernel
def crc_of_range(tables, data, start, stop):  # type: ignore[no-untyped-def]
    """Return the left-aligned remainder (int64, 32 bits used) of bytes `data[start:stop]`."""
    remainder = np.int64(0)
    position = start
    while position + 8 <= stop:
        remainder ^= (
            (np.int64(data[position]) << 24)
            | (np.int64(data[position + 1]) << 16)
            | (np.int64(data[position + 2]) << 8)
            | np.int64(data[position + 3])
        )
        remainder = (
            np.int64(tables[7, remainder >> 24])
            ^ np.int64(tables[6, (remainder >> 16) & 255])
            ^ np.int64(tables[5, (remainder >> 8) & 255])
            ^ np.int64(tables[4, remainder & 255])
            ^ np.int64(tables[3, data[position + 4]])
            ^ np.int64(tables[2, data[position + 5]])
            ^ np.int64(tables[1, data[position + 6]])
            ^ np.int64(tables[0, data[position + 7]])
        )
        position += 8
    while position < stop:
        index = (remainder >> 24) ^ np.int64(data[position])
        remainder = ((remainder << 8) & 0xFFFFFFFF) ^ np.int64(tables[0, index])
        position += 1
    return remainder


@kernel
def _crc_byte_rows(tables, data, num_bits, out):  # type: ignore[no-untyped-def]
    for row in range(data.shape[0]):
        out[row] = crc_of_range(tables, data[row], 0, data.shape[1]) >> (32 - num_bits)


@kernel
def _crc_bit_rows(tables, bits, num_bits, out):  # type: ignore[no-untyped-def]
    num_bytes = bits.shape[1] // 8
    packed = np.empty(num_bytes, np.uint8)
    generator = np.int64(tables[0, 1])
    for row in range(bits.shape[0]):
        for index in range(num_bytes):
            byte = 0
            for bit in range(8):
                byte = (byte << 1) | (np.int64(bits[row, index * 8 + bit]) & 1)
            packed[index] = byte
        remainder = crc_of_range(tables, packed, 0, num_bytes)
        # A remainder of byte 0x01 is the generator itself, left aligned: one bit at a time.
        for index in range(num_bytes * 8, bits.shape[1]):
            feedback = (remainder >> 31) ^ (np.int64(bits[row, index]) & 1)
            remainder = ((remainder << 1) & 0xFFFFFFFF) ^ (generator * feedback)
        out[row] = remainder >> (32 - num_bits)


def crc_bytes(kind: Crc, data: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Return the check of each row of bytes, most significant bit first.

    Parameters
    ----------
    kind
        The generator.
    data
        uint8 [num_blocks, num_bytes].

    Returns
    -------
    uint32 [num_blocks]
    """
    rows = np.ascontiguousarray(data, dtype=np.uint8)
    if rows.ndim != 2:
        raise ValueError(
            f"computing {kind.name}: data has shape {rows.shape}, not [num_blocks, num_bytes]; "
            "add a leading axis for a single block"
        )
    out = np.empty(rows.shape[0], dtype=np.uint32)
    _crc_byte_rows(crc_tables(kind), rows, kind.num_bits, out)
    return out


def crc_bits(kind: Crc, bits: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Return the check of each row of bits (values 0 or 1, first bit first; any number of bits).

    Parameters
    ----------
    kind
        The generator.
    bits
        uint8 [num_blocks, num_bits].

    Returns
    -------
    uint32 [num_blocks]
    """
    rows = np.ascontiguousarray(bits, dtype=np.uint8)
    if rows.ndim != 2:
        raise ValueError(
            f"computing {kind.name}: bits have shape {rows.shape}, not [num_blocks, num_bits]; "
            "add a leading axis for a single block"
        )
    out = np.empty(rows.shape[0], dtype=np.uint32)
    _crc_bit_rows(crc_tables(kind), rows, kind.num_bits, out)
    return out


def crc_bits_reference(kind: Crc, bits: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Return what `crc_bits` returns, by long division over GF(2) in NumPy (TS 38.212, 5.1)."""
    num_blocks, num_bits = bits.shape
    coefficients = (kind.polynomial >> np.arange(kind.num_bits - 1, -1, -1)) & 1
    generator = np.concatenate(([1], coefficients)).astype(np.uint8)
    work = np.concatenate((bits & 1, np.zeros((num_blocks, kind.num_bits), np.uint8)), axis=1)
    for position in range(num_bits):
        work[:, position : position + generator.size] ^= work[:, position, None] * generator
    weights = np.uint32(1) << np.arange(kind.num_bits - 1, -1, -1, dtype=np.uint32)
    return (work[:, num_bits:].astype(np.uint32) * weights).sum(axis=1, dtype=np.uint32)


@register_warmup
def _warm_up() -> None:
    rows = np.zeros((1, 9), dtype=np.uint8)
    crc_bytes(Crc.CRC24A, rows)
    crc_bits(Crc.CRC24A, rows)
