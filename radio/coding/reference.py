"""The transport block code in plain NumPy: what the kernels are held to, bit by bit.

Nothing here is fast.  Shifts are `numpy.roll`, bits are one per element in their natural order, and
the decoder does the kernels' integer arithmetic in int64 with explicit clipping.  A second decoder in
floating point, without rounding and saturation, says what the int8 arithmetic costs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from radio.coding.base_graph import NUM_CORE_LAYERS, NUM_PUNCTURED_COLUMNS, LiftedCode
from radio.coding.crc import Crc, crc_bits_reference
from radio.coding.ldpc import LLR_MAX
from radio.coding.ldpc_tables import decoder_checkpoints, decoder_layer_order
from radio.coding.scrambling import gold_sequence
from radio.coding.transport_block import (
    LLR_SCALE,
    SCRAMBLING_STATE,
    DecodeResult,
    TransportBlockCode,
)
from radio.coding.vectors import MESSAGE_MAX


def parity_check_matrix(lifted: LiftedCode) -> NDArray[np.uint8]:
    """Return H of a lifted code, columns of the parity in use included.

    Returns
    -------
    uint8 [num_layers * Z, (num_systematic_columns + num_layers) * Z]
        Columns that hold only fillers are zero.
    """
    size = lifted.lifting_size
    num_columns = lifted.base_graph.num_systematic_columns + lifted.num_layers
    matrix = np.zeros((lifted.num_layers * size, num_columns * size), dtype=np.uint8)
    rows = np.arange(size)
    for layer, column, shift in _entries(lifted):
        matrix[layer * size + rows, column * size + (rows + shift) % size] = 1
    return matrix


def syndrome(lifted: LiftedCode, word: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return H c for a whole code word, punctured and filler columns included.

    Parameters
    ----------
    lifted
        The code.
    word
        uint8 [(num_systematic_columns + num_layers) * Z].

    Returns
    -------
    uint8 [num_layers, Z]
    """
    columns = word.reshape(-1, lifted.lifting_size)
    out = np.zeros((lifted.num_layers, lifted.lifting_size), dtype=np.uint8)
    for layer, column, shift in _entries(lifted):
        out[layer] ^= np.roll(columns[column], -shift)
    return out


def _entries(lifted: LiftedCode) -> list[tuple[int, int, int]]:
    """Return (row, column, shift) of every entry."""
    layers = np.repeat(np.arange(lifted.num_layers), np.diff(lifted.layer_start))
    return [
        (int(layer), int(column), int(shift))
        for layer, column, shift in zip(layers, lifted.entry_column, lifted.entry_shift, strict=True)
    ]


def encode_word(lifted: LiftedCode, block_bits: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the whole code word of one code block (TS 38.212, 5.3.2).

    Parameters
    ----------
    lifted
        The code.
    block_bits
        uint8 [num_code_block_bits], without fillers.

    Returns
    -------
    uint8 [(num_systematic_columns + num_layers) * Z]
        Punctured columns and fillers included.
    """
    size, first_parity = lifted.lifting_size, lifted.base_graph.num_systematic_columns
    word = np.zeros((first_parity + lifted.num_layers, size), dtype=np.uint8)
    word.reshape(-1)[: block_bits.size] = block_bits
    entries = _entries(lifted)

    def row_sum(layer: int) -> NDArray[np.uint8]:
        total = np.zeros(size, dtype=np.uint8)
        for row, column, shift in entries:
            if row == layer:
                total ^= np.roll(word[column], -shift)
        return total

    # With all parity still zero, the sum of the core rows is the first parity column, rotated by the
    # one shift of its three that does not cancel.
    core = range(NUM_CORE_LAYERS)
    shifts = [shift for row, column, shift in entries if column == first_parity and row in core]
    (rotation,) = {shift for shift in shifts if shifts.count(shift) % 2}
    word[first_parity] = np.roll(np.bitwise_xor.reduce([row_sum(layer) for layer in core]), rotation)
    for layer in core[:-1]:
        word[first_parity + layer + 1] = row_sum(layer)
    for layer in range(NUM_CORE_LAYERS, lifted.num_layers):
        word[first_parity + layer] = row_sum(layer)
    return word.reshape(-1)


def _circular_positions(code: TransportBlockCode) -> NDArray[np.int64]:
    """Return the places in a code word that are sent, in order, once."""
    size = code.lifting_size
    num_systematic = code.base_graph.num_systematic_columns * size
    information = np.arange(NUM_PUNCTURED_COLUMNS * size, code.num_code_block_bits)
    parity = np.arange(num_systematic, num_systematic + code.num_layers * size)
    return np.concatenate((information, parity))


def _bits_of(values: NDArray[np.uint32], num_bits: int) -> NDArray[np.uint8]:
    return ((values[:, None] >> np.arange(num_bits - 1, -1, -1)) & 1).astype(np.uint8)


def encode_reference(code: TransportBlockCode, payload: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return what `radio.coding.transport_block.encode` returns."""
    rows = []
    for row in np.unpackbits(payload, axis=1):
        block = np.concatenate((row, _bits_of(crc_bits_reference(Crc.CRC24A, row[None]), 24)[0]))
        block ^= gold_sequence(SCRAMBLING_STATE, block.size)
        sent = []
        segments = np.split(block, code.num_code_blocks)
        for segment, num_bits in zip(segments, code.code_block_coded_bits, strict=True):
            bits = segment
            if code.num_code_blocks > 1:
                check = _bits_of(crc_bits_reference(Crc.CRC24B, bits[None]), 24)[0]
                bits = np.concatenate((bits, check))
            circular = encode_word(code.lifted, bits)[_circular_positions(code)]
            selected = np.resize(circular, num_bits)
            sent.append(selected.reshape(code.bits_per_symbol, -1).T.reshape(-1))
        rows.append(np.concatenate(sent))
    return np.array(rows, dtype=np.uint8).reshape(payload.shape[0], code.num_coded_bits)


def _channel_values(code: TransportBlockCode, llr: NDArray[np.int8]) -> NDArray[np.int64]:
    """Return the LLR of every bit of the code word from those of one received code block."""
    circular = _circular_positions(code)
    values = np.zeros(
        (code.base_graph.num_systematic_columns + code.num_layers) * code.lifting_size, dtype=np.int64
    )
    start = code.num_code_block_bits
    values[start : code.base_graph.num_systematic_columns * code.lifting_size] = LLR_MAX
    natural = llr.astype(np.int64).reshape(-1, code.bits_per_symbol).T.reshape(-1)
    values[circular[: natural.size]] = natural[: circular.size]
    for index in range(circular.size, natural.size):
        place = circular[index % circular.size]
        values[place] = np.clip(values[place] + natural[index], -LLR_MAX, LLR_MAX)
    return values


def _normalise(magnitude: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.minimum(magnitude - ((magnitude + 2) >> 2), MESSAGE_MAX)


def _decode_code_block(
    code: TransportBlockCode, llr: NDArray[np.int8], max_iterations: int, remainder: int, kind: Crc
) -> tuple[NDArray[np.uint8], bool, int]:
    """Return (bits with their check, whether the check holds, iterations) of one code block."""
    lifted, size = code.lifted, code.lifting_size
    posterior = _channel_values(code, llr).reshape(-1, size)
    num_updated = code.base_graph.num_systematic_columns + NUM_CORE_LAYERS
    entries = _entries(lifted)
    by_layer = [[entry[1:] for entry in entries if entry[0] == row] for row in range(lifted.num_layers)]
    messages = {entry: np.zeros(size, dtype=np.int64) for entry in entries}
    checkpoints = decoder_checkpoints(lifted.num_layers).tolist()
    for iteration in range(1, max_iterations + 1):
        for position, layer in enumerate(decoder_layer_order(lifted.num_layers).tolist(), start=1):
            inputs = []
            for column, shift in by_layer[layer]:
                value = np.roll(posterior[column], -shift)
                if column < num_updated:
                    value = np.clip(value - messages[layer, column, shift], -128, 127)
                inputs.append(value)
            stacked = np.array(inputs)
            magnitude = np.abs(stacked)
            smallest, second = np.partition(magnitude, 1, axis=0)[:2]
            negative = stacked < 0
            odd = np.logical_xor.reduce(negative, axis=0)
            for index, (column, shift) in enumerate(by_layer[layer]):
                if column >= num_updated:
                    continue
                answer = _normalise(np.where(magnitude[index] == smallest, second, smallest))
                answer = np.where(odd ^ negative[index], -answer, answer)
                messages[layer, column, shift] = answer
                posterior[column] = np.roll(np.clip(stacked[index] + answer, -128, 127), shift)
            if position not in checkpoints:
                continue
            hard = (posterior < 0).astype(np.uint8)
            core_holds = all(
                not np.bitwise_xor.reduce([np.roll(hard[c], -s) for c, s in by_layer[row]]).any()
                for row in range(NUM_CORE_LAYERS)
            )
            bits = hard.reshape(-1)[: code.num_code_block_bits]
            is_last = iteration == max_iterations and position == lifted.num_layers
            if core_holds or is_last:
                good = int(crc_bits_reference(kind, bits[None])[0]) == remainder
                if good or is_last:
                    return bits, good, iteration
    raise AssertionError("unreachable: the last iteration returns")


def decode_reference(
    code: TransportBlockCode, llr: NDArray[np.int8], max_iterations: int = 8
) -> DecodeResult:
    """Return what `radio.coding.transport_block.decode` returns."""
    num_blocks = llr.shape[0]
    scrambling = gold_sequence(SCRAMBLING_STATE, (code.num_info_bytes + 3) * 8)
    remainder = int(crc_bits_reference(Crc.CRC24A, scrambling[None])[0])
    is_segmented = code.num_code_blocks > 1
    payload = np.zeros((num_blocks, code.num_info_bytes), dtype=np.uint8)
    ok = np.zeros(num_blocks, dtype=np.bool_)
    iterations = np.zeros(num_blocks, dtype=np.int32)
    ends = np.cumsum(code.code_block_coded_bits)[:-1]
    for row in range(num_blocks):
        collected = []
        for part in np.split(llr[row], ends):
            bits, good, used = _decode_code_block(
                code,
                part,
                max_iterations,
                0 if is_segmented else remainder,
                Crc.CRC24B if is_segmented else Crc.CRC24A,
            )
            iterations[row] = max(iterations[row], used)
            if not good:
                break
            collected.append(bits[:-24] if is_segmented else bits)
        else:
            block = np.concatenate(collected) ^ scrambling
            ok[row] = not crc_bits_reference(Crc.CRC24A, block[None]).any()
            if ok[row]:
                payload[row] = np.packbits(block[:-24])
    return DecodeResult(payload, ok, iterations)


def decode_float(
    code: TransportBlockCode, llr: NDArray[np.float64], max_iterations: int = 8
) -> NDArray[np.uint8]:
    """Return hard decisions of the same algorithm in floating point, all blocks at once.

    Layered normalised min-sum with factor 0.75 and the same order of rows; no rounding, no caps, and
    always all iterations.  For codes with a single code block.

    Parameters
    ----------
    code
        From `transport_block_code`.
    llr
        float64 [num_blocks, num_coded_bits] in natural units.
    max_iterations
        Iterations that are done.

    Returns
    -------
    uint8 [num_blocks, num_info_bytes]
        Descrambled payloads, right or wrong.
    """
    if code.num_code_blocks != 1:
        raise ValueError(
            f"decoding in floating point: the code has {code.num_code_blocks} code blocks; choose a block "
            "length that needs no segmentation"
        )
    lifted, size = code.lifted, code.lifting_size
    num_columns = code.base_graph.num_systematic_columns + code.num_layers
    circular = _circular_positions(code)
    values = np.zeros((llr.shape[0], num_columns * size))
    values[:, code.num_code_block_bits : code.base_graph.num_systematic_columns * size] = LLR_MAX / LLR_SCALE
    per_symbol = llr.reshape(llr.shape[0], -1, code.bits_per_symbol)
    natural = per_symbol.transpose(0, 2, 1).reshape(llr.shape[0], -1)
    for start in range(0, natural.shape[1], circular.size):
        chunk = natural[:, start : start + circular.size]
        values[:, circular[: chunk.shape[1]]] += chunk
    posterior = values.reshape(llr.shape[0], num_columns, size)
    entries = _entries(lifted)
    by_layer = [[entry[1:] for entry in entries if entry[0] == row] for row in range(lifted.num_layers)]
    messages = {entry: np.zeros((llr.shape[0], size)) for entry in entries}
    for _ in range(max_iterations):
        for layer in decoder_layer_order(lifted.num_layers).tolist():
            stacked = np.array(
                [
                    np.roll(posterior[:, column], -shift, axis=1) - messages[layer, column, shift]
                    for column, shift in by_layer[layer]
                ]
            )
            magnitude = np.abs(stacked)
            smallest, second = np.partition(magnitude, 1, axis=0)[:2]
            signs = np.where(stacked < 0, -1.0, 1.0)
            product = signs.prod(axis=0)
            for index, (column, shift) in enumerate(by_layer[layer]):
                other = np.where(magnitude[index] == smallest, second, smallest)
                answer = 0.75 * other * product * signs[index]
                messages[layer, column, shift] = answer
                posterior[:, column] = np.roll(stacked[index] + answer, shift, axis=1)
    hard = (posterior < 0).reshape(llr.shape[0], -1)[:, : code.num_code_block_bits].astype(np.uint8)
    hard ^= gold_sequence(SCRAMBLING_STATE, code.num_code_block_bits)
    return np.packbits(hard[:, :-24], axis=1)
