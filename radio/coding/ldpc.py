"""Kernels that encode and decode batches of transport blocks with the 5G NR LDPC code.

One block column of a code word (Z lanes) is a run of 64-lane vectors.  A cyclic shift is a load at a
byte offset from a column that repeats behind its end as far as a load may reach; nothing is gathered.
`radio.coding.reference` computes the same numbers in plain NumPy and `radio.coding.transport_block` is
the way in.

Decoder: layered normalised min-sum on int8.  Per check row: the extrinsic message of each entry is
`q = clip(posterior - r)`, the answer is `r = sign * min(m - ((m + 2) >> 2), 31)` with m the smallest
magnitude of the *other* entries, and the posterior becomes `clip(q + r)`.

* Three quarters are rounded: truncating costs 0.3 dB.
* The cap leaves a saturated posterior a clear sign after the subtraction.  A posterior clipped at 127
  has forgotten how many answers support it.  With answers of up to 63, two wrong ones turn it round,
  and whole blocks flip at *high* SNR (rate 1/3 at 3 dB: most of them, when the input is strong); with
  31 that needs four, and nothing is lost near the waterfall.
* The row with a single punctured column goes first.  A row with two unknown columns says nothing, so
  in natural order the first row of the first iteration would be wasted.
* A parity column beyond the core has one entry, so its message is always the channel's value: it is
  never updated.
* It stops when the four core rows are satisfied and the check of the block is: the rows are a cheap
  filter, the check is what the receiver relies on.  It looks after the core rows and after every
  `GROUP_LAYERS` others, since on average half of the last iteration is not needed.
* What limits it is the number of vector instructions: a vector of a row is read, answered and stored
  before the next one, which needs the registers of no more than 64 lanes at a time.
"""

from __future__ import annotations

import numpy as np

from radio.coding import vectors
from radio.coding.base_graph import NUM_CORE_LAYERS, NUM_PUNCTURED_COLUMNS
from radio.coding.crc import crc_of_range
from radio.jit import kernel

LLR_MAX = 127

_LANES = vectors.LANES
_CORE = NUM_CORE_LAYERS
_PUNCTURED = NUM_PUNCTURED_COLUMNS
# Packs or spreads the bits of a byte over the bytes of a little-endian word, first bit first.
_SPREAD_MASK = np.uint64(0x0102040810204080)
# More than any row has entries.
_MAX_DEGREE = 24
_ONES = np.uint64(0x0101010101010101)
_SEVENS = np.uint64(0x7F7F7F7F7F7F7F7F)


@kernel
def _interleave(coded, num_bits, bits_per_symbol, out):  # type: ignore[no-untyped-def]
    """Write bit j of run i to place i of symbol j (TS 38.212, 5.4.2.2)."""
    count = num_bits // bits_per_symbol
    if bits_per_symbol == 1:
        for j in range(count):
            out[j] = coded[j]
    elif bits_per_symbol == 2:
        for j in range(count):
            for i in range(2):
                out[2 * j + i] = coded[i * count + j]
    elif bits_per_symbol == 4:
        for j in range(count):
            for i in range(4):
                out[4 * j + i] = coded[i * count + j]
    elif bits_per_symbol == 6:
        for j in range(count):
            for i in range(6):
                out[6 * j + i] = coded[i * count + j]
    elif bits_per_symbol == 8:
        for j in range(count):
            for i in range(8):
                out[8 * j + i] = coded[i * count + j]
    else:
        for j in range(count):
            for i in range(bits_per_symbol):
                out[bits_per_symbol * j + i] = coded[i * count + j]


@kernel
def _deinterleave(received, num_bits, bits_per_symbol, out):  # type: ignore[no-untyped-def]
    """Undo `_interleave`."""
    count = num_bits // bits_per_symbol
    if bits_per_symbol == 1:
        for j in range(count):
            out[j] = received[j]
    elif bits_per_symbol == 2:
        for j in range(count):
            for i in range(2):
                out[i * count + j] = received[2 * j + i]
    elif bits_per_symbol == 4:
        for j in range(count):
            for i in range(4):
                out[i * count + j] = received[4 * j + i]
    elif bits_per_symbol == 6:
        for j in range(count):
            for i in range(6):
                out[i * count + j] = received[6 * j + i]
    elif bits_per_symbol == 8:
        for j in range(count):
            for i in range(8):
                out[i * count + j] = received[8 * j + i]
    else:
        for j in range(count):
            for i in range(bits_per_symbol):
                out[i * count + j] = received[bits_per_symbol * j + i]


@kernel
def _double(columns, base, lifting_size, num_vectors):  # type: ignore[no-untyped-def]
    """Copy a column behind itself, over the lanes that the last vector left there."""
    for vector in range(num_vectors):
        lane = base + vector * _LANES
        vectors.store(columns, lane + lifting_size, vectors.load(columns, lane))


@kernel
def _encode_code_block(tables, bits, columns, coded):  # type: ignore[no-untyped-def]
    """Fill `coded` with the circular buffer of the block in `bits` (zeros beyond K')."""
    size = tables.lifting_size
    num_vectors = tables.num_vectors
    stride = tables.column_stride
    for column in range(tables.num_used_columns):
        for vector in range(num_vectors):
            lanes = vectors.load(bits, column * size + vector * _LANES)
            vectors.store(columns, column * stride + vector * _LANES, lanes)
        _double(columns, column * stride, size, num_vectors)

    num_systematic = tables.num_block_bits - _PUNCTURED * size
    for position in range(0, num_systematic, _LANES):
        vectors.store(coded, position, vectors.load(bits, _PUNCTURED * size + position))

    first_parity = tables.num_systematic_columns
    # The sums of the core rows wait in spare columns behind the last parity column.
    sums = (first_parity + _CORE) * stride
    total = sums + _CORE * stride
    for vector in range(num_vectors):
        lane = vector * _LANES
        all_rows = vectors.broadcast(0)
        for layer in range(_CORE):
            row = vectors.broadcast(0)
            for entry in range(tables.encode_start[layer], tables.encode_start[layer + 1]):
                row = vectors.exclusive_or(
                    row, vectors.load(columns, vectors.fetch(tables.encode_source, entry) + lane)
                )
            vectors.store(columns, sums + layer * stride + lane, row)
            all_rows = vectors.exclusive_or(all_rows, row)
        vectors.store(columns, total + lane, all_rows)
    _double(columns, total, size, num_vectors)

    for vector in range(num_vectors):
        lane = vector * _LANES
        parity = vectors.load(columns, total + tables.first_parity_offset + lane)
        vectors.store(columns, first_parity * stride + lane, parity)
        vectors.store(coded, num_systematic + lane, parity)
    _double(columns, first_parity * stride, size, num_vectors)
    for layer in range(_CORE - 1):
        target = (first_parity + layer + 1) * stride
        for vector in range(num_vectors):
            lane = vector * _LANES
            row = vectors.load(columns, sums + layer * stride + lane)
            for entry in range(tables.core_start[layer], tables.core_start[layer + 1]):
                row = vectors.exclusive_or(
                    row, vectors.load(columns, vectors.fetch(tables.core_source, entry) + lane)
                )
            vectors.store(columns, target + lane, row)
            vectors.store(coded, num_systematic + (layer + 1) * size + lane, row)
        _double(columns, target, size, num_vectors)

    for layer in range(_CORE, tables.num_layers):
        for vector in range(num_vectors):
            lane = vector * _LANES
            row = vectors.broadcast(0)
            for entry in range(tables.encode_start[layer], tables.encode_start[layer + 1]):
                row = vectors.exclusive_or(
                    row, vectors.load(columns, vectors.fetch(tables.encode_source, entry) + lane)
                )
            vectors.store(coded, num_systematic + layer * size + lane, row)


@kernel
def encode_blocks(tables, payload, out):  # type: ignore[no-untyped-def]
    """Encode rows of bytes into rows of bits.

    payload: uint8 [num_blocks, num_info_bytes]; out: uint8 [num_blocks, num_coded_bits].
    """
    num_info_bytes = payload.shape[1]
    num_code_blocks = tables.block_coded_bits.shape[0]
    block_bytes = tables.num_block_bits // 8
    check_bytes = 3 if num_code_blocks > 1 else 0
    block = np.zeros(num_info_bytes + 3, np.uint8)
    segment = np.zeros(block_bytes, np.uint8)
    num_words = tables.num_used_columns * tables.lifting_size // 8 + 3 * _LANES // 8 + block_bytes
    words = np.zeros(num_words, np.uint64)
    bits = words.view(np.uint8)
    num_columns = tables.num_systematic_columns + 2 * _CORE + 1
    columns = np.zeros(num_columns * tables.column_stride + _LANES, np.uint8)
    num_circular = tables.num_circular_bits
    coded = np.zeros(max(num_circular, tables.block_coded_bits.max()) + 2 * _LANES, np.uint8)
    for row in range(payload.shape[0]):
        for index in range(num_info_bytes):
            block[index] = payload[row, index]
        check = crc_of_range(tables.crc24a, block, 0, num_info_bytes)
        for index in range(3):
            block[num_info_bytes + index] = (check >> (24 - 8 * index)) & 255
        for index in range(num_info_bytes + 3):
            block[index] ^= tables.scrambling[index]
        start = 0
        for code_block in range(num_code_blocks):
            data_bytes = block_bytes - check_bytes
            source = code_block * data_bytes
            for index in range(data_bytes):
                segment[index] = block[source + index]
            if check_bytes > 0:
                check = crc_of_range(tables.crc24b, segment, 0, data_bytes)
                for index in range(3):
                    segment[data_bytes + index] = (check >> (24 - 8 * index)) & 255
            for index in range(block_bytes):
                spread = (np.uint64(segment[index]) * _ONES) & _SPREAD_MASK
                words[index] = ((spread + _SEVENS) >> np.uint64(7)) & _ONES
            _encode_code_block(tables, bits, columns, coded)
            num_bits = tables.block_coded_bits[code_block]
            for position in range(num_circular, num_bits):
                coded[position] = coded[position - num_circular]
            _interleave(coded, num_bits, tables.bits_per_symbol, out[row, start : start + num_bits])
            start += num_bits


@kernel
def _turn(source, start, size, rotation, columns, base):  # type: ignore[no-untyped-def]
    """Store Z lanes of `source` from `start` on as a column turned by `rotation`."""
    length = size - np.int64(rotation)
    for lane in range(0, length, _LANES):
        vectors.store(columns, base + lane, vectors.load(source, start + rotation + lane))
    for lane in range(length, size, _LANES):
        vectors.store(columns, base + lane, vectors.load(source, start + lane - length))
    vectors.store(columns, base + size, vectors.load(columns, base))


@kernel
def _load_channel(tables, rotations, coded, num_bits, columns, extension, last):  # type: ignore[no-untyped-def]
    """Spread a de-interleaved block over the decoder's columns, each in its starting rotation.

    `coded` is overwritten: repetitions are added, what was not sent becomes an erasure.
    """
    size = tables.lifting_size
    num_vectors = tables.num_vectors
    stride = tables.row_stride + _LANES
    num_circular = tables.num_circular_bits
    for position in range(num_circular, num_bits):
        total = np.int64(coded[position - num_circular]) + np.int64(coded[position])
        coded[position - num_circular] = min(max(total, -LLR_MAX), LLR_MAX)
    for position in range(min(num_bits, num_circular), num_circular + _LANES):
        coded[position] = 0

    num_systematic = tables.num_block_bits - _PUNCTURED * size
    first_parity = tables.num_systematic_columns
    num_last = tables.num_used_columns - 1
    for column in range(first_parity + _CORE):
        base = 2 * column * stride
        if column < _PUNCTURED:
            for vector in range(stride // _LANES):
                vectors.store(columns, base + vector * _LANES, vectors.broadcast(0))
        elif column < tables.num_used_columns or column >= first_parity:
            if column < first_parity:
                source = (column - _PUNCTURED) * size
            else:
                source = num_systematic + (column - first_parity) * size
            if column == num_last:
                # Fillers are zeros that both ends know.
                num_known = tables.num_block_bits - column * size
                for lane in range(num_known):
                    last[lane] = coded[source + lane]
                for lane in range(num_known, size + _LANES):
                    last[lane] = LLR_MAX
                _turn(last, 0, size, rotations[column], columns, base)
            else:
                _turn(coded, source, size, rotations[column], columns, base)
    for layer in range(_CORE, tables.num_layers):
        source = num_systematic + layer * size
        target = (layer - _CORE) * tables.row_stride
        for vector in range(num_vectors):
            lane = vector * _LANES
            vectors.store(extension, target + lane, vectors.load(coded, source + lane))


@kernel
def _visit_rows(  # type: ignore[no-untyped-def]
    geometry, layer_order, starts, sources, targets, span, is_first, columns, extension, messages, work
):
    """Visit some check rows once: read their columns, answer, store them in the row's rotation.

    The tables come one by one: taking them out of the tuple here would count references in every row.
    A row never stores where it loads, so its vectors are independent and each is finished in one go.
    The last one goes first: what it writes beyond lane Z belongs to the repetition of vector 0.
    """
    size, num_vectors, stride = geometry
    for visit in range(span[0], span[1]):
        channel = (np.int64(layer_order[visit]) - _CORE) * stride
        first = vectors.fetch(starts, visit)
        degree = vectors.fetch(starts, visit + 1) - first
        for turn in range(num_vectors):
            lane = (num_vectors - 1 - turn) * _LANES
            base = first * num_vectors + turn * degree
            if channel >= 0:
                sign = vectors.load(extension, channel + lane)
                minimum = vectors.magnitude(sign)
            else:
                sign = vectors.broadcast(0)
                minimum = vectors.broadcast(255)
            second = vectors.broadcast(255)
            for index in range(degree):
                value = vectors.load(columns, vectors.fetch(sources, base + index))
                if not is_first:
                    message = vectors.load(messages, (base + index) * _LANES)
                    value = vectors.subtract_saturating(value, message)
                vectors.store(work, index * _LANES, value)
                size_of = vectors.magnitude(value)
                second = vectors.minimum_unsigned(second, vectors.maximum_unsigned(minimum, size_of))
                minimum = vectors.minimum_unsigned(minimum, size_of)
                sign = vectors.exclusive_or(sign, value)
            usual = vectors.negate_where_negative(sign, vectors.normalise(minimum))
            rare = vectors.negate_where_negative(sign, vectors.normalise(second))
            if lane > 0:
                for index in range(degree):
                    value = vectors.load(work, index * _LANES)
                    answer = vectors.select_equal(vectors.magnitude(value), minimum, rare, usual)
                    answer = vectors.negate_where_negative(value, answer)
                    vectors.store(messages, (base + index) * _LANES, answer)
                    value = vectors.add_saturating(value, answer)
                    vectors.store(columns, vectors.fetch(targets, first + index) + lane, value)
            else:
                for index in range(degree):
                    value = vectors.load(work, index * _LANES)
                    answer = vectors.select_equal(vectors.magnitude(value), minimum, rare, usual)
                    answer = vectors.negate_where_negative(value, answer)
                    vectors.store(messages, (base + index) * _LANES, answer)
                    value = vectors.add_saturating(value, answer)
                    target = vectors.fetch(targets, first + index)
                    vectors.store(columns, target, value)
                    vectors.store(columns, target + size, value)


@kernel
def _core_rows_hold(geometry, starts, sources, columns):  # type: ignore[no-untyped-def]
    """Return whether the hard decisions satisfy the four core rows."""
    size, num_vectors, _ = geometry
    last_mask = ~np.uint64(0) >> np.uint64(num_vectors * _LANES - size)
    for row in range(_CORE):
        first = vectors.fetch(starts, row)
        degree = vectors.fetch(starts, row + 1) - first
        for turn in range(num_vectors):
            base = first * num_vectors + turn * degree
            parity = vectors.broadcast(0)
            for index in range(degree):
                lanes = vectors.load(columns, vectors.fetch(sources, base + index))
                parity = vectors.exclusive_or(parity, lanes)
            odd = vectors.sign_bits(parity)
            if turn == 0:
                odd &= last_mask
            if odd != np.uint64(0):
                return False
    return True


@kernel
def _decide(tables, places, rotations, columns, natural, words):  # type: ignore[no-untyped-def]
    """Pack the signs of the information columns into bytes, most significant bit first."""
    size = tables.lifting_size
    for column in range(tables.num_used_columns):
        # Lane j of the stored column is bit (j + rotation) mod Z.
        source = (size - np.int64(rotations[column])) % size
        for vector in range(tables.num_vectors):
            lanes = vectors.load(columns, places[column] + source)
            vectors.store(natural, column * size + vector * _LANES, lanes)
            source += _LANES
            if source >= size:
                source -= size
    for index in range((tables.num_block_bits + _LANES - 1) // _LANES):
        bits = vectors.sign_bits(vectors.load(natural, index * _LANES))
        # Reverse the bits of each byte: lane 0 is the most significant bit.
        bits = ((bits >> np.uint64(1)) & np.uint64(0x5555555555555555)) | (
            (bits & np.uint64(0x5555555555555555)) << np.uint64(1)
        )
        bits = ((bits >> np.uint64(2)) & np.uint64(0x3333333333333333)) | (
            (bits & np.uint64(0x3333333333333333)) << np.uint64(2)
        )
        bits = ((bits >> np.uint64(4)) & np.uint64(0x0F0F0F0F0F0F0F0F)) | (
            (bits & np.uint64(0x0F0F0F0F0F0F0F0F)) << np.uint64(4)
        )
        words[index] = bits


@kernel
def decode_blocks(tables, llr, max_iterations, payload, ok, iterations):  # type: ignore[no-untyped-def]
    """Decode rows of LLRs into rows of bytes.

    llr: int8 [num_blocks, num_coded_bits]; payload: uint8 [num_blocks, num_info_bytes];
    ok: bool [num_blocks]; iterations: int32 [num_blocks], the most that any code block took.
    """
    num_info_bytes = payload.shape[1]
    num_code_blocks = tables.block_coded_bits.shape[0]
    block_bytes = tables.num_block_bits // 8
    check_bytes = 3 if num_code_blocks > 1 else 0
    data_bytes = block_bytes - check_bytes
    size = tables.lifting_size
    num_columns = tables.num_systematic_columns + _CORE
    geometry = (size, tables.num_vectors, tables.row_stride)
    columns = np.zeros((2 * num_columns + 1) * (tables.row_stride + _LANES), np.int8)
    extension = np.zeros((tables.num_layers - _CORE) * tables.row_stride, np.int8)
    messages = np.empty(tables.decode_source.shape[1] * _LANES, np.int8)
    work = np.empty(_MAX_DEGREE * _LANES, np.int8)
    last = np.empty(size + 2 * _LANES, np.int8)
    natural = np.zeros(tables.num_used_columns * size + 2 * _LANES, np.int8)
    words = np.zeros((tables.num_block_bits + _LANES - 1) // _LANES, np.uint64)
    decided = words.view(np.uint8)
    block = np.zeros(num_info_bytes + 3, np.uint8)
    layer_order = tables.layer_order
    checkpoints = tables.checkpoints
    num_looks = checkpoints.shape[0]
    starts = tables.decode_start
    longest = max(tables.num_circular_bits, tables.block_coded_bits.max())
    coded = np.zeros(longest + 2 * _LANES, np.int8)
    # The turn of each column before the first iteration is that after the last row of any.
    first_turns = tables.column_rotation[1, num_looks - 1]
    for row in range(llr.shape[0]):
        good = True
        most = 0
        start = 0
        for code_block in range(num_code_blocks):
            num_bits = tables.block_coded_bits[code_block]
            _deinterleave(llr[row, start : start + num_bits], num_bits, tables.bits_per_symbol, coded)
            start += num_bits
            _load_channel(tables, first_turns, coded, num_bits, columns, extension, last)
            good = False
            iteration = 0
            while not good and iteration < max_iterations:
                parity = iteration % 2
                sources = tables.decode_source[parity]
                targets = tables.decode_target[parity]
                is_first = iteration == 0
                iteration += 1
                visited = np.int64(0)
                for look in range(num_looks):
                    until = np.int64(checkpoints[look])
                    _visit_rows(
                        geometry,
                        layer_order,
                        starts,
                        sources,
                        targets,
                        (visited, until),
                        is_first,
                        columns,
                        extension,
                        messages,
                        work,
                    )
                    visited = until
                    is_last = iteration == max_iterations and look == num_looks - 1
                    if is_last or _core_rows_hold(
                        geometry, starts, tables.check_source[parity, look], columns
                    ):
                        places = tables.column_place[parity, look]
                        turns = tables.column_rotation[parity, look]
                        _decide(tables, places, turns, columns, natural, words)
                        if check_bytes > 0:
                            good = crc_of_range(tables.crc24b, decided, 0, block_bytes) == 0
                        else:
                            remainder = crc_of_range(tables.crc24a, decided, 0, block_bytes)
                            good = remainder == tables.scrambling_remainder
                        if good:
                            break
            most = max(most, iteration)
            if not good:
                # The transport block is lost whatever its other code blocks hold.
                break
            for index in range(data_bytes):
                block[code_block * data_bytes + index] = decided[index]
        if good and check_bytes > 0:
            remainder = crc_of_range(tables.crc24a, block, 0, num_info_bytes + 3)
            good = remainder == tables.scrambling_remainder
        ok[row] = good
        iterations[row] = most
        for index in range(num_info_bytes):
            payload[row, index] = (block[index] ^ tables.scrambling[index]) if good else 0
