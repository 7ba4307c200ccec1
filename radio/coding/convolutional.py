"""A convolutional code for what is too short for LDPC: constraint length 7, rate 1/3, zero-terminated.

::

    bits [n] + 6 zeros -> shift register of 7 -> 3 (n + 6) coded bits -> Viterbi over 64 states -> bits [n]

Generators 133, 171 and 165 (octal) are those of TS 36.212, section 5.1.3.1 (free distance 15), but the
register starts and ends at zero instead of biting its tail: six more bits, and one pass decodes exactly.
The check that tells a good block from a bad one belongs to what is sent (`radio.header`).
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from radio.jit import kernel, register_warmup

GENERATORS = (0o133, 0o171, 0o165)
MEMORY_BITS = 6  # zeros that end a block
NUM_OUTPUTS = len(GENERATORS)
_NUM_STATES = 1 << MEMORY_BITS
_HALF = _NUM_STATES // 2
_LLR_LIMIT = 1024.0  # soft bits beyond it decide alone; sums of them stay exact enough in float32
_UNREACHABLE = np.float32(-1e12)


def num_coded_bits(num_bits: int) -> int:
    """Return the coded bits of a block of `num_bits`."""
    return NUM_OUTPUTS * (num_bits + MEMORY_BITS)


@functools.cache
def _output_labels() -> NDArray[np.uint8]:
    """Return the outputs of each register content, uint8 [128, 3]; the newest bit is the highest."""
    register = np.arange(2 * _NUM_STATES)
    labels = np.zeros((2 * _NUM_STATES, NUM_OUTPUTS), np.uint8)
    for index, generator in enumerate(GENERATORS):
        tapped = register & generator
        for bit in range(MEMORY_BITS + 1):
            labels[:, index] ^= ((tapped >> bit) & 1).astype(np.uint8)
    labels.flags.writeable = False
    return labels


@functools.cache
def _branch_signs() -> NDArray[np.float32]:
    """Return +1 for output 0 and -1 for output 1 of register contents 0, 2, .., 62, float32 [3, 32].

    Every generator taps both the newest and the oldest bit, so changing either turns all outputs around:
    these signs give the other three branches of a butterfly too.
    """
    return np.ascontiguousarray(1.0 - 2.0 * _output_labels()[0:_NUM_STATES:2].T, dtype=np.float32)


@kernel
def _encode(labels, bits, out):  # type: ignore[no-untyped-def]
    num_bits = bits.shape[1]
    for row in range(bits.shape[0]):
        register = 0
        for n in range(num_bits + MEMORY_BITS):
            newest = np.int64(bits[row, n] & 1) if n < num_bits else 0
            register = (newest << MEMORY_BITS) | (register >> 1)
            for index in range(NUM_OUTPUTS):
                out[row, NUM_OUTPUTS * n + index] = labels[register, index]


def _rows(what: str, values: NDArray[np.generic]) -> None:
    if values.ndim != 2:
        raise ValueError(
            f"{what}: the array has shape {list(values.shape)}, not [num_blocks, num_values]; "
            "add a leading axis for a single block"
        )


def encode(bits: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the coded bits of a batch of blocks.

    Parameters
    ----------
    bits
        uint8 [num_blocks, num_bits], zeros and ones.

    Returns
    -------
    uint8 [num_blocks, 3 * (num_bits + 6)]
        The three outputs of a step stand together.
    """
    _rows("convolutional encoding", bits)
    source = np.array(bits, np.uint8, order="C")
    out = np.empty((source.shape[0], num_coded_bits(source.shape[1])), np.uint8)
    _encode(np.array(_output_labels()), source, out)
    return out


@kernel
def _add_compare_select(signs, soft, first, old, new, decisions, branch):  # type: ignore[no-untyped-def]
    """Advance the path metrics of all states by one step.

    State t is reached from states 2 (t mod 32) and 2 (t mod 32) + 1 with newest bit t // 32.
    """
    a, b, c = soft[first], soft[first + 1], soft[first + 2]
    for j in range(_HALF):
        branch[j] = a * signs[0, j] + b * signs[1, j] + c * signs[2, j]
    for j in range(_HALF):
        even, odd = old[2 * j], old[2 * j + 1]
        plus, minus = even + branch[j], odd - branch[j]
        decisions[j] = minus > plus
        new[j] = minus if minus > plus else plus
        plus, minus = even - branch[j], odd + branch[j]
        decisions[j + _HALF] = minus > plus
        new[j + _HALF] = minus if minus > plus else plus


@kernel
def _decode(signs, soft, unreachable, out):  # type: ignore[no-untyped-def]
    num_bits = out.shape[1]
    num_steps = num_bits + MEMORY_BITS
    decisions = np.empty((num_steps, _NUM_STATES), np.bool_)
    branch = np.empty(_HALF, np.float32)
    metrics = np.empty((2, _NUM_STATES), np.float32)
    for row in range(out.shape[0]):
        metrics[0, :] = unreachable
        metrics[0, 0] = np.float32(0.0)
        for n in range(num_steps):
            _add_compare_select(
                signs, soft[row], NUM_OUTPUTS * n, metrics[n & 1], metrics[1 - (n & 1)], decisions[n], branch
            )
        state = 0  # the zeros at the end lead here
        for n in range(num_steps - 1, -1, -1):
            if n < num_bits:
                out[row, n] = state >> (MEMORY_BITS - 1)
            state = ((state << 1) & (_NUM_STATES - 1)) | np.int64(decisions[n, state])


def _usable(llr: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return soft bits within bounds; what is no number is an erasure."""
    clean = np.nan_to_num(np.asarray(llr, np.float32), nan=0.0, posinf=_LLR_LIMIT, neginf=-_LLR_LIMIT)
    return np.ascontiguousarray(np.clip(clean, -_LLR_LIMIT, _LLR_LIMIT))


def _num_bits_of(llr: NDArray[np.floating]) -> int:
    _rows("convolutional decoding", llr)
    num_bits = llr.shape[1] // NUM_OUTPUTS - MEMORY_BITS
    if llr.shape[1] % NUM_OUTPUTS or num_bits < 1:
        raise ValueError(
            f"convolutional decoding: {llr.shape[1]} soft bits; a block of n bits has 3 (n + 6) of them"
        )
    return num_bits


def decode(llr: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Return the most likely bits of a batch of blocks (Viterbi 1967).

    Parameters
    ----------
    llr
        Soft bits [num_blocks, 3 * (num_bits + 6)], at any scale that is the same within a block; positive
        means bit 0, zero or not a number is an erasure.  Saturated at +-1024.

    Returns
    -------
    uint8 [num_blocks, num_bits]
    """
    out = np.empty((llr.shape[0], _num_bits_of(llr)), np.uint8)
    _decode(_branch_signs(), _usable(llr), _UNREACHABLE, out)
    return out


def encode_reference(bits: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return what `encode` returns, as polynomial products over GF(2) in NumPy."""
    ended = np.pad(np.asarray(bits, np.uint8) & 1, ((0, 0), (0, MEMORY_BITS)))
    out = np.zeros((*ended.shape, NUM_OUTPUTS), np.uint8)
    for index, generator in enumerate(GENERATORS):
        for delay in range(MEMORY_BITS + 1):
            if (generator >> (MEMORY_BITS - delay)) & 1:
                out[:, delay:, index] ^= ended[:, : ended.shape[1] - delay]
    return out.reshape(len(out), -1)


def decode_reference(llr: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Return what `decode` returns, all blocks and states at a time in NumPy."""
    num_bits = _num_bits_of(llr)
    soft = _usable(llr).reshape(len(llr), -1, NUM_OUTPUTS)
    signs = 1.0 - 2.0 * _output_labels().astype(np.float32)
    states = np.arange(_NUM_STATES)
    # Register contents that lead to each state, oldest bit 0 and 1.
    registers = (states[:, None] << 1) | np.arange(2)
    metric = np.full((len(llr), _NUM_STATES), _UNREACHABLE)
    metric[:, 0] = 0.0
    decisions = np.empty((soft.shape[1], len(llr), _NUM_STATES), np.bool_)
    for n in range(soft.shape[1]):
        a, b, c = (soft[:, n, index, None, None] * signs[registers, index] for index in range(NUM_OUTPUTS))
        paths = metric[:, registers & (_NUM_STATES - 1)] + (a + b + c)
        decisions[n] = paths[..., 1] > paths[..., 0]
        metric = paths.max(axis=-1)
    state = np.zeros(len(llr), np.int64)
    out = np.empty((len(llr), num_bits), np.uint8)
    rows = np.arange(len(llr))
    for n in range(soft.shape[1] - 1, -1, -1):
        if n < num_bits:
            out[:, n] = state >> (MEMORY_BITS - 1)
        state = ((state << 1) & (_NUM_STATES - 1)) | decisions[n, rows, state]
    return out


@register_warmup
def _warm_up() -> None:
    decode(1.0 - 2.0 * encode(np.zeros((1, 2), np.uint8)).astype(np.float32))
