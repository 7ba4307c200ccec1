"""Transport blocks: bytes with a check, coded to an exact number of bits, and back.

Follows TS 38.212 sections 5.1 to 5.5 for one redundancy version (0): CRC24A, segmentation with
CRC24B, base graph and lifting size, LDPC, a circular buffer without the first 2 Z bits and without
fillers, and the interleaver of the modulation order.  Two things differ, both on purpose:

* every block carries CRC24A, also where the standard would take 16 bits, so that an undetected error
  stays below one in ten million;
* the block is scrambled before coding, so that an all-zero payload is not sent as a constant and an
  all-zero reception is not accepted.

Soft combining of retransmissions is adding LLRs: equal payloads give equal coded bits.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from radio.coding.base_graph import (
    NUM_CORE_LAYERS,
    NUM_PUNCTURED_COLUMNS,
    BaseGraph,
    LiftedCode,
    lifted_code,
    select_base_graph,
    select_lifting_size,
)
from radio.coding.crc import Crc, crc_of_range, crc_tables
from radio.coding.ldpc import LLR_MAX, decode_blocks, encode_blocks
from radio.coding.ldpc_tables import CodeTables, column_strides, decoder_tables, encoder_tables
from radio.coding.scrambling import gold_sequence
from radio.jit import register_warmup

__all__ = [
    "LLR_MAX",
    "LLR_SCALE",
    "DecodeResult",
    "TransportBlockCode",
    "decode",
    "encode",
    "transport_block_code",
]

# Decoder input steps per unit of natural log-likelihood ratio ln(P(bit = 0) / P(bit = 1)).  With half
# as many the steps are so coarse that the waterfall moves by over 0.1 dB; with twice as many (also two
# retransmissions added up) saturation begins to cost, but blocks far above the threshold still decode.
LLR_SCALE = 4.0
MIN_CODE_RATE = 1 / 5
MAX_CODE_RATE = 8 / 9
_CRC_BYTES = 3
SCRAMBLING_STATE = 0x2C5A1B7
_BITS_PER_SYMBOL = (1, 2, 4, 6, 8, 10)


@dataclass(frozen=True, eq=False)
class TransportBlockCode:
    """How a payload of one size becomes an exact number of coded bits.

    Attributes
    ----------
    num_info_bytes
        Payload, without any check [byte].
    num_coded_bits
        G: bits on the air [bit].
    bits_per_symbol
        Q_m of the interleaver.
    code_rate
        Nominal rate; `(num_info_bytes + 3) * 8 / num_coded_bits` does not exceed it.
    base_graph, lifting_size
        The LDPC code.
    num_code_blocks, num_code_block_bits
        C and K' (its check included).
    code_block_coded_bits
        E_r of each code block [bit].
    num_layers
        Check rows that the rate needs.
    lifted
        The lifted graph.
    tables
        What the kernels read.
    """

    num_info_bytes: int
    num_coded_bits: int
    bits_per_symbol: int
    code_rate: float
    base_graph: BaseGraph
    lifting_size: int
    num_code_blocks: int
    num_code_block_bits: int
    code_block_coded_bits: tuple[int, ...]
    num_layers: int
    lifted: LiftedCode = field(repr=False)
    tables: CodeTables = field(repr=False)


class DecodeResult(NamedTuple):
    """What a batch decoded to.

    Attributes
    ----------
    payload
        uint8 [num_blocks, num_info_bytes]; a failed block is all zero.
    ok
        bool [num_blocks]: every check holds.
    iterations
        int32 [num_blocks]: the most that a code block of the row took.
    """

    payload: NDArray[np.uint8]
    ok: NDArray[np.bool_]
    iterations: NDArray[np.int32]


def _segment(num_block_bytes: int, base_graph: BaseGraph) -> int:
    """Return the number of code blocks C for B bits (TS 38.212, 5.2.2)."""
    num_bits = num_block_bytes * 8
    if num_bits <= base_graph.max_code_block_bits:
        return 1
    return math.ceil(num_bits / (base_graph.max_code_block_bits - 8 * _CRC_BYTES))


@functools.lru_cache(maxsize=512)
def transport_block_code(num_coded_bits: int, bits_per_symbol: int, code_rate: float) -> TransportBlockCode:
    """Return the code that fills `num_coded_bits` at no more than `code_rate`.

    Parameters
    ----------
    num_coded_bits
        Bits on the air, a multiple of `bits_per_symbol` [bit].
    bits_per_symbol
        1, 2, 4, 6, 8 or 10.
    code_rate
        Payload and its CRC24A over coded bits, 1/5 to 8/9.

    Raises
    ------
    ValueError
        If a parameter is out of range or not even one payload byte fits.
    """
    doing = (
        f"planning a transport block of {num_coded_bits} coded bits, {bits_per_symbol} per symbol, "
        f"rate {code_rate:.4g}"
    )
    if bits_per_symbol not in _BITS_PER_SYMBOL:
        raise ValueError(f"{doing}: bits per symbol must be one of {_BITS_PER_SYMBOL}")
    if num_coded_bits <= 0 or num_coded_bits % bits_per_symbol:
        raise ValueError(f"{doing}: the coded bits must fill whole symbols; round down to a multiple")
    if not MIN_CODE_RATE - 1e-9 <= code_rate <= MAX_CODE_RATE + 1e-9:
        raise ValueError(f"{doing}: the rate must lie in 1/5..8/9; change the modulation instead")
    # The tolerance keeps a rate such as 1/3 from losing a byte to its binary rounding.
    num_block_bytes = math.floor(num_coded_bits * code_rate / 8 + 1e-9)
    if num_block_bytes - _CRC_BYTES < 1:
        raise ValueError(
            f"{doing}: {num_block_bytes} bytes leave no payload beside the {_CRC_BYTES}-byte check; "
            "use a longer block or a higher rate"
        )
    base_graph = select_base_graph((num_block_bytes - _CRC_BYTES) * 8, code_rate)
    num_code_blocks = _segment(num_block_bytes, base_graph)
    # Code blocks of one length: at most a few bytes are given up.
    num_block_bytes -= num_block_bytes % num_code_blocks
    check_bytes = _CRC_BYTES if num_code_blocks > 1 else 0
    num_code_block_bits = (num_block_bytes // num_code_blocks + check_bytes) * 8
    size = select_lifting_size(base_graph, num_block_bytes * 8, num_code_block_bits)

    # TS 38.212, 5.4.2.1: whole symbols per code block, the longer ones last.
    num_symbols = num_coded_bits // bits_per_symbol
    num_long = num_symbols % num_code_blocks
    coded_bits = tuple(
        bits_per_symbol * (num_symbols // num_code_blocks + (index >= num_code_blocks - num_long))
        for index in range(num_code_blocks)
    )
    num_systematic = num_code_block_bits - NUM_PUNCTURED_COLUMNS * size
    num_parity_columns = math.ceil((max(coded_bits) - num_systematic) / size)
    num_layers = min(max(num_parity_columns, NUM_CORE_LAYERS), base_graph.num_layers)
    num_used_columns = math.ceil(num_code_block_bits / size)
    lifted = lifted_code(base_graph, size, num_layers, num_used_columns)
    tables = _code_tables(
        lifted,
        num_used_columns=num_used_columns,
        num_code_block_bits=num_code_block_bits,
        num_block_bytes=num_block_bytes,
        bits_per_symbol=bits_per_symbol,
        coded_bits=coded_bits,
    )
    return TransportBlockCode(
        num_info_bytes=num_block_bytes - _CRC_BYTES,
        num_coded_bits=num_coded_bits,
        bits_per_symbol=bits_per_symbol,
        code_rate=code_rate,
        base_graph=base_graph,
        lifting_size=size,
        num_code_blocks=num_code_blocks,
        num_code_block_bits=num_code_block_bits,
        code_block_coded_bits=coded_bits,
        num_layers=num_layers,
        lifted=lifted,
        tables=tables,
    )


def _code_tables(
    lifted: LiftedCode,
    *,
    num_used_columns: int,
    num_code_block_bits: int,
    num_block_bytes: int,
    bits_per_symbol: int,
    coded_bits: tuple[int, ...],
) -> CodeTables:
    """Return what the kernels read about one code."""
    size = lifted.lifting_size
    num_vectors, row_stride, column_stride = column_strides(size)
    encode_start, encode_source, core_start, core_source, first_parity_offset = encoder_tables(lifted)
    scrambling = np.packbits(gold_sequence(SCRAMBLING_STATE, num_block_bytes * 8))
    crc24a = crc_tables(Crc.CRC24A)
    return CodeTables(
        lifting_size=size,
        num_vectors=num_vectors,
        row_stride=row_stride,
        column_stride=column_stride,
        num_systematic_columns=lifted.base_graph.num_systematic_columns,
        num_used_columns=num_used_columns,
        num_layers=lifted.num_layers,
        num_block_bits=num_code_block_bits,
        num_circular_bits=num_code_block_bits - NUM_PUNCTURED_COLUMNS * size + lifted.num_layers * size,
        bits_per_symbol=bits_per_symbol,
        block_coded_bits=np.array(coded_bits, dtype=np.int64),
        encode_start=encode_start,
        encode_source=encode_source,
        core_start=core_start,
        core_source=core_source,
        first_parity_offset=first_parity_offset,
        crc24a=crc24a,
        crc24b=crc_tables(Crc.CRC24B),
        scrambling=scrambling,
        # The check is linear, so a correct block leaves exactly the scrambling's own remainder.
        scrambling_remainder=int(crc_of_range(crc24a, scrambling, 0, num_block_bytes)),
        **decoder_tables(lifted),
    )


def encode(code: TransportBlockCode, payload: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the coded bits of a batch of payloads.

    Parameters
    ----------
    code
        From `transport_block_code`.
    payload
        uint8 [num_blocks, num_info_bytes].

    Returns
    -------
    uint8 [num_blocks, num_coded_bits]
        Zeros and ones.
    """
    rows = np.ascontiguousarray(payload)
    if rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != code.num_info_bytes:
        raise ValueError(
            f"encoding transport blocks: payload is {rows.dtype} {list(rows.shape)}, expected uint8 "
            f"[num_blocks, {code.num_info_bytes}]; pad the payload to the block"
        )
    out = np.empty((rows.shape[0], code.num_coded_bits), dtype=np.uint8)
    encode_blocks(code.tables, rows, out)
    return out


def decode(code: TransportBlockCode, llr: NDArray[np.int8], max_iterations: int = 8) -> DecodeResult:
    """Return the payloads of a batch of received blocks.

    Parameters
    ----------
    code
        From `transport_block_code`.
    llr
        int8 [num_blocks, num_coded_bits], `LLR_SCALE` steps per natural unit, saturated at
        +-`LLR_MAX`; positive means bit 0, zero is an erasure.
    max_iterations
        Iterations after which a code block is given up, at least 1.

    Returns
    -------
    DecodeResult
    """
    rows = np.ascontiguousarray(llr)
    if rows.dtype != np.int8 or rows.ndim != 2 or rows.shape[1] != code.num_coded_bits:
        raise ValueError(
            f"decoding transport blocks: LLRs are {rows.dtype} {list(rows.shape)}, expected int8 "
            f"[num_blocks, {code.num_coded_bits}]; demodulate with the grant of this block"
        )
    if max_iterations < 1:
        raise ValueError(f"decoding transport blocks: {max_iterations} iterations; at least 1 is needed")
    payload = np.empty((rows.shape[0], code.num_info_bytes), dtype=np.uint8)
    ok = np.empty(rows.shape[0], dtype=np.bool_)
    iterations = np.empty(rows.shape[0], dtype=np.int32)
    decode_blocks(code.tables, rows, max_iterations, payload, ok, iterations)
    return DecodeResult(payload, ok, iterations)


@register_warmup
def _warm_up() -> None:
    code = transport_block_code(256, 2, 0.5)
    bits = encode(code, np.zeros((1, code.num_info_bytes), dtype=np.uint8))
    decode(code, ((1 - 2 * bits.astype(np.int8)) * 32).astype(np.int8))
