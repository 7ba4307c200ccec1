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
# Extension rows between two looks whether the decoder is done.
GROUP_LAYERS = 8

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
    checkpoints
        After how many visited rows the decoder looks whether it is done.
    decode_start
        int32 [num_layers + 1]: entries before each visited row.
    decode_source
        int32 [2, num_entries * num_vectors], for even and odd iterations: where each vector of each
        entry is loaded, rotation included.  Row by row, in a row the last vector first, in a vector
        entry by entry.
    decode_target
        int32 [2, num_entries]: where an entry's column is stored.
    check_source
        int32 [2, num_checkpoints, num_core_entries * num_vectors]: sources of the core rows there.
    column_place, column_rotation
        int32 [2, num_checkpoints, num_columns]: where each column lies there, and how far turned.
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
    checkpoints: NDArray[np.int32]
    decode_start: NDArray[np.int32]
    decode_source: NDArray[np.int32]
    decode_target: NDArray[np.int32]
    check_source: NDArray[np.int32]
    column_place: NDArray[np.int32]
    column_rotation: NDArray[np.int32]
    crc24a: NDArray[np.uint32]
    crc24b: NDArray[np.uint32]
    scrambling: NDArray[np.uint8]
    scrambling_remainder: int


def column_strides(lifting_size: int) -> tuple[int, int, int]:
    """Return vectors per column, bytes of one as whole vectors, and bytes of a doubled column."""
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


def decoder_checkpoints(num_layers: int) -> NDArray[np.int32]:
    """Return after how many visited rows of an iteration the decoder looks whether it is done.

    A look that fails costs next to nothing, since the first vector of the first core row tells;
    one that succeeds saves the rest of the iteration.
    """
    num_groups = 1 + -(-(num_layers - _CORE) // GROUP_LAYERS)
    return _int32([min(_CORE + group * GROUP_LAYERS, num_layers) for group in range(num_groups)])


def decoder_tables(code: LiftedCode) -> dict[str, NDArray[np.int32]]:
    """Return the decoder's fields of `CodeTables`.

    A row stores a column in its own rotation, as it computed it, and into the other one of the
    column's two places: so no store of a row destroys what a later vector of the row has to load.
    The next row loads it at the difference of the two shifts, which is therefore fixed per entry, also
    from the last row of an iteration to the first row of the next one.  Only the place depends on
    whether an iteration is even or odd, for columns that are visited an odd number of times.
    """
    size = code.lifting_size
    num_vectors, row_stride, _ = column_strides(size)
    stride = row_stride + _LANES
    num_columns = code.base_graph.num_systematic_columns + _CORE
    order = decoder_layer_order(code.num_layers)
    visited: list[list[tuple[int, int]]] = []
    for layer in order:
        span = range(code.layer_start[layer], code.layer_start[layer + 1])
        pairs = [(int(code.entry_column[entry]), int(code.entry_shift[entry])) for entry in span]
        visited.append([pair for pair in pairs if pair[0] < num_columns])
    rotation = dict(pair for pairs in visited for pair in pairs)
    descending = range(num_vectors - 1, -1, -1)

    def lanes(place: int, shift: int) -> list[int]:
        """Where each vector of a column at `place` is read to turn it by `shift`, last vector first."""
        return [place + (shift + vector * _LANES) % size for vector in descending]

    def expanded(entries: list[tuple[int, int]]) -> list[int]:
        """Offsets of a row's entries, vector after vector."""
        by_entry = [lanes(*entry) for entry in entries]
        return [offsets[turn] for turn in range(num_vectors) for offsets in by_entry]

    checkpoints = decoder_checkpoints(code.num_layers).tolist()
    current = dict(rotation)
    half = dict.fromkeys(range(num_columns), 0)
    source: list[list[int]] = [[], []]
    target: list[list[int]] = [[], []]
    check: list[list[int]] = [[], []]
    place: list[list[int]] = [[], []]
    turned: list[list[int]] = [[], []]
    for parity in range(2):
        for position, pairs in enumerate(visited):
            source[parity] += expanded(
                [((2 * c + half[c]) * stride, (shift - current[c]) % size) for c, shift in pairs]
            )
            for column, shift in pairs:
                half[column] ^= 1
                target[parity].append((2 * column + half[column]) * stride)
                current[column] = shift
            if position + 1 in checkpoints:
                for row in visited[:_CORE]:
                    check[parity] += expanded(
                        [((2 * c + half[c]) * stride, (shift - current[c]) % size) for c, shift in row]
                    )
                place[parity] += [(2 * column + half[column]) * stride for column in range(num_columns)]
                turned[parity] += [current.get(column, 0) for column in range(num_columns)]
    start = np.cumsum([0, *(len(pairs) for pairs in visited)])
    return {
        "layer_order": order,
        "checkpoints": decoder_checkpoints(code.num_layers),
        "decode_start": start.astype(np.int32),
        "decode_source": np.array(source, np.int32),
        "decode_target": np.array(target, np.int32),
        "check_source": np.array(check, np.int32).reshape(2, len(checkpoints), -1),
        "column_place": np.array(place, np.int32).reshape(2, len(checkpoints), -1),
        "column_rotation": np.array(turned, np.int32).reshape(2, len(checkpoints), -1),
    }
