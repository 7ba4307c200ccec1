"""What the LDPC kernels read about one code: sizes, and where each entry's column lies in scratch.

Computed once per code, in Python.  A column is stored twice in a row, so that a cyclic shift is a load
at a byte offset; the offsets are worked out here, and the kernels only follow them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from radio.coding import vectors
from radio.coding.base_graph import NUM_CORE_LAYERS, LiftedCode

# The order in which the core rows are visited; extension rows follow in natural order.
CORE_LAYER_ORDER = (1, 0, 2, 3)

_LANES = vectors.LANES
_CORE = NUM_CORE_LAYERS


class CodeTables(NamedTuple):
    """What the kernels need to know about one transport block code.

    Sizes are int, offsets count bytes in a kernel's scratch.

    Attributes
    ----------
    lifting_size, num_vectors, row_stride, column_stride
        Z, vectors per column, bytes per message row, bytes per doubled column.
    num_systematic_columns, num_used_columns, num_layers
        Columns before the parity, those that hold information, check rows in use.
    num_block_bits
        K': bits of a code block, its check included.
    num_circular_bits
        Bits of the circular buffer that are not filler, up to the last parity column in use.
    bits_per_symbol
        Q_m of the interleaver.
    block_coded_bits
        int64 [num_code_blocks]: E_r.
    encode_start, encode_source
        Per check row the sources of its sum: core rows over information columns only.
    core_start, core_source
        Per core row, the core parity columns that are already known.
    first_parity_offset
        Where the rotated sum of the core rows is read to give the first parity column.
    layer_order
        Check rows in the decoder's order.
    decode_start, decode_source, decode_target
        Per visited row: where each entry's column is loaded, rotation included, and stored.
    check_source
        Sources of the core rows at the end of an iteration, row by row as `check_start` says.
    column_rotation
        Rotation of each stored column between iterations.
    crc24a, crc24b
        Tables of the two checks.
    scrambling
        uint8 [bytes of transport block and check].
    scrambling_remainder
        Check remainder of a correct scrambled block, left aligned.
    """

    lifting_size: int
    num_vectors: int
    row_stride: int
    column_stride: int
    num_systematic_columns: int
    num_used_columns: int
    num_layers: int
    num_block_bits: int
    num_circular_bits: int
    bits_per_symbol: int
    block_coded_bits: NDArray[np.int64]
    encode_start: NDArray[np.int32]
    encode_source: NDArray[np.int32]
    core_start: NDArray[np.int32]
    core_source: NDArray[np.int32]
    first_parity_offset: int
    layer_order: NDArray[np.int32]
    decode_start: NDArray[np.int32]
    decode_source: NDArray[np.int32]
    decode_target: NDArray[np.int32]
    check_start: NDArray[np.int32]
    check_source: NDArray[np.int32]
    column_rotation: NDArray[np.int32]
    crc24a: NDArray[np.uint32]
    crc24b: NDArray[np.uint32]
    scrambling: NDArray[np.uint8]
    scrambling_remainder: int


def column_strides(lifting_size: int) -> tuple[int, int, int]:
    """Return vectors per column, bytes per message row and bytes per doubled column."""
    num_vectors = -(-lifting_size // _LANES)
    row_stride = num_vectors * _LANES
    # A load may start anywhere in the first copy and always takes whole vectors.
    return num_vectors, row_stride, -(-(lifting_size + row_stride) // _LANES) * _LANES


def _int32(values: list[int]) -> NDArray[np.int32]:
    return np.array(values, dtype=np.int32)


def encoder_tables(
    code: LiftedCode,
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32], NDArray[np.int32], int]:
    """Return (encode_start, encode_source, core_start, core_source, first_parity_offset).

    The four core rows hold a column of weight three and a dual diagonal.  Adding them cancels the
    diagonal, and two of the three shifts, which leaves the first parity column rotated by the
    remaining shift; each of the first three rows then gives the next column.
    """
    size = code.lifting_size
    _, _, stride = column_strides(size)
    first_parity = code.base_graph.num_systematic_columns
    encode_start, encode_source = [0], []
    core_start, core_source = [0], []
    odd_shifts: set[int] = set()
    for layer in range(code.num_layers):
        span = range(code.layer_start[layer], code.layer_start[layer + 1])
        for entry in span:
            column, shift = int(code.entry_column[entry]), int(code.entry_shift[entry])
            source = column * stride + shift
            is_core_parity = first_parity <= column < first_parity + _CORE
            if column < first_parity or (layer >= _CORE and is_core_parity):
                encode_source.append(source)
            if layer < _CORE and column == first_parity:
                odd_shifts ^= {shift}
            if layer < _CORE - 1 and is_core_parity:
                if column <= first_parity + layer:
                    core_source.append(source)
                elif (column, shift) != (first_parity + layer + 1, 0):
                    raise ValueError(
                        f"preparing the encoder of {code.base_graph.name}: core row {layer} has an entry "
                        f"in column {column} that is no dual diagonal; the packaged graph is damaged"
                    )
        encode_start.append(len(encode_source))
        if layer < _CORE:
            core_start.append(len(core_source))
    if len(odd_shifts) != 1:
        raise ValueError(
            f"preparing the encoder of {code.base_graph.name}: the shifts of column {first_parity} do not "
            "cancel in pairs; the packaged graph is damaged"
        )
    first_parity_offset = (size - odd_shifts.pop()) % size
    return (
        _int32(encode_start),
        _int32(encode_source),
        _int32(core_start),
        _int32(core_source),
        first_parity_offset,
    )


def decoder_layer_order(num_layers: int) -> NDArray[np.int32]:
    """Return the check rows in the order in which an iteration visits them."""
    return _int32([*CORE_LAYER_ORDER, *range(_CORE, num_layers)])


def decoder_tables(code: LiftedCode) -> dict[str, NDArray[np.int32]]:
    """Return the decoder's fields of `CodeTables`.

    A row stores a column in its own rotation, as it computed it.  The next row loads it at the
    difference of the two shifts, which is therefore fixed per entry, also from the last row of an
    iteration to the first row of the next one.
    """
    size = code.lifting_size
    _, _, stride = column_strides(size)
    num_columns = code.base_graph.num_systematic_columns + _CORE
    order = decoder_layer_order(code.num_layers)
    visited: list[list[tuple[int, int]]] = []
    for layer in order:
        span = range(code.layer_start[layer], code.layer_start[layer + 1])
        pairs = [(int(code.entry_column[entry]), int(code.entry_shift[entry])) for entry in span]
        visited.append([pair for pair in pairs if pair[0] < num_columns])
    rotation = dict(pair for pairs in visited for pair in pairs)

    current = dict(rotation)
    start: list[int] = [0]
    source: list[int] = []
    target: list[int] = []
    for pairs in visited:
        for column, shift in pairs:
            source.append(column * stride + (shift - current[column]) % size)
            target.append(column * stride)
            current[column] = shift
        start.append(len(source))

    check_start: list[int] = [0]
    check_source: list[int] = []
    for pairs in visited[:_CORE]:
        check_source.extend(column * stride + (shift - rotation[column]) % size for column, shift in pairs)
        check_start.append(len(check_source))
    return {
        "layer_order": order,
        "decode_start": _int32(start),
        "decode_source": _int32(source),
        "decode_target": _int32(target),
        "check_start": _int32(check_start),
        "check_source": _int32(check_source),
        "column_rotation": _int32([rotation.get(column, 0) for column in range(num_columns)]),
    }
