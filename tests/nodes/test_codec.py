"""The tensor codec: bit-exact round trips, and no damage that goes unnoticed."""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nodes.codec import CodecError, decode_tensors, encode_tensors

DTYPES = [np.float32, np.float16, np.float64, np.int8, np.uint8, np.int64]
LIMIT = 1 << 20

arrays = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
)
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)


def _same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return list(a) == list(b) and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and a[k].tobytes() == b[k].tobytes() for k in a
    )


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.dictionaries(names, arrays, max_size=6))
def test_round_trip_is_bit_exact_and_in_order(tensors: dict[str, np.ndarray]) -> None:
    data = encode_tensors(tensors)
    decoded = decode_tensors(data, LIMIT)
    assert _same(decoded, tensors)
    assert all(array.flags.writeable for array in decoded.values())
    assert encode_tensors(decoded) == data


def test_layouts_of_memory_do_not_matter() -> None:
    array = np.arange(24, dtype=np.float32).reshape(4, 6)
    for view in (array.T, array[::2, ::-1], array.astype(">f4")):
        decoded = decode_tensors(encode_tensors({"x": view}), LIMIT)["x"]
        assert np.array_equal(decoded, view)
        assert decoded.dtype == np.float32


def _bundle() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(4)
    return {
        "smashed": rng.standard_normal((4, 3, 2, 2)).astype(np.float32),
        "labels": rng.integers(0, 10, 4).astype(np.uint8),
        "scale": np.array(0.5),
    }


def test_overhead_of_a_typical_bundle_is_small() -> None:
    tensors = _bundle()
    assert len(encode_tensors(tensors)) - sum(array.nbytes for array in tensors.values()) < 200


def _rehash(data: bytes) -> bytes:
    """A message whose hash vouches for it again: a lie, not an accident."""
    return data[:12] + hashlib.blake2b(data[:12] + data[28:], digest_size=16).digest() + data[28:]


def _mutate(rng: np.random.Generator, data: bytes) -> bytes:
    kind = rng.integers(0, 7)
    if kind == 0:  # flip 1 to 8 bits
        changed = bytearray(data)
        for _ in range(rng.integers(1, 9)):
            changed[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        return bytes(changed)
    if kind == 1:  # cut off
        return data[: rng.integers(len(data))]
    if kind == 2:  # repeat a piece
        start, stop = sorted(rng.integers(0, len(data) + 1, 2))
        return data[:stop] + data[start:stop] + data[stop:]
    if kind == 3:  # drop a piece
        start, stop = sorted(rng.integers(0, len(data) + 1, 2))
        return data[:start] + data[stop:]
    if kind == 4:  # append
        return data + rng.bytes(int(rng.integers(1, 40)))
    if kind == 5:  # swap two pieces of equal length
        size = int(rng.integers(1, 16))
        a, b = sorted(rng.integers(0, len(data) - size, 2))
        if b - a < size:
            return data[::-1]
        return data[:a] + data[b : b + size] + data[a + size : b] + data[a : a + size] + data[b + size :]
    changed = bytearray(data)  # a fixed field
    offset = int(rng.integers(0, 28))
    changed[offset] = int(rng.integers(256))
    return bytes(changed)


def test_no_mutation_goes_undetected_and_none_raises_anything_else() -> None:
    rng = np.random.default_rng(20)
    data = encode_tensors(_bundle())
    undetected = changed = 0
    while changed < 20_000:
        mutated = _mutate(rng, data)
        if mutated == data:
            continue
        changed += 1
        try:
            decode_tensors(mutated, LIMIT)
        except CodecError:
            continue
        undetected += 1
    assert undetected == 0


def test_lying_headers_with_a_matching_hash_never_get_past_the_bounds_checks() -> None:
    """A valid hash makes the parser itself face every lie: it answers CodecError or a bundle that fits."""
    rng = np.random.default_rng(21)
    data = encode_tensors(_bundle())
    refused = 0
    for _ in range(20_000):
        mutated = bytearray(_mutate(rng, data))
        if len(mutated) <= 28:
            continue
        mutated[:6] = data[:6]
        if rng.random() < 0.7:  # lie where the headers are
            position = int(rng.integers(28, min(len(mutated), 100)))
            mutated[position] = int(rng.choice([0, 1, 2, 255, rng.integers(256)]))
        mutated[8:12] = struct.pack("<I", len(mutated))
        try:
            decoded = decode_tensors(_rehash(bytes(mutated)), LIMIT)
        except CodecError:
            refused += 1
            continue
        assert sum(array.nbytes for array in decoded.values()) <= len(mutated)
    assert refused > 10_000


@pytest.mark.parametrize("shape", [(2**31 - 1, 2**31 - 1, 0), (2**31 - 1,) * 8, (2**32 - 1,)])
def test_a_huge_declared_shape_is_refused_before_anything_is_allocated(shape: tuple[int, ...]) -> None:
    header = b"\1x" + struct.pack(f"<BB{len(shape)}II", 0, len(shape), *shape, 4)
    body = header + bytes(4)
    fixed = struct.pack("<4sBBHI", b"TNSR", 1, 0, 1, 28 + len(body))
    with pytest.raises(CodecError, match="contradict each other"):
        decode_tensors(_rehash(fixed + bytes(16) + body), LIMIT)


def test_limits_and_versions_are_refused_in_words() -> None:
    data = encode_tensors(_bundle())
    with pytest.raises(CodecError, match="at most 100"):
        decode_tensors(data, 100)
    newer = _rehash(data[:4] + b"\2" + data[5:])
    with pytest.raises(CodecError, match="format version 2"):
        decode_tensors(newer, LIMIT)
    with pytest.raises(CodecError, match="complex64 is not one of"):
        encode_tensors({"x": np.zeros(2, np.complex64)})
    with pytest.raises(CodecError, match="a name is"):
        encode_tensors({"": np.zeros(2, np.float32)})
    with pytest.raises(CodecError, match="9 dimensions"):
        encode_tensors({"x": np.zeros((1,) * 9, np.float32)})
