"""Named tensors to bytes for the air, and back, bit-exactly or not at all.

Layout, little-endian::

    offset  bytes
    0       4      magic "TNSR"
    4       1      format version, 1
    5       1      reserved, 0
    6       2      number of tensors
    8       4      total length of the message [byte]
    12      16     BLAKE2b-128 of everything else (bytes 0..11 and 28..)
    28      ...    per tensor: name length (1), name (UTF-8), dtype code (1), number of
                   dimensions (1), sizes (4 each), byte length (4)
    ...     ...    the tensors' values, in the order of the headers, C order

The hash is checked before anything is believed, and every length before anything is allocated.
It detects damage, not forgery.  Quantising smashed data belongs here too, when it comes; weights
in bulk are :mod:`nodes.weights`.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

FORMAT_VERSION = 1
MAX_TENSORS = 4096
MAX_DIMENSIONS = 8
MAX_NAME_BYTES = 255

_MAGIC = b"TNSR"
_FIXED = struct.Struct("<4sBBHI")
_HASH_BYTES = 16
_PREFIX_BYTES = _FIXED.size + _HASH_BYTES
_DTYPES: dict[int, np.dtype[Any]] = {
    0: np.dtype("<f4"),
    1: np.dtype("<f2"),
    2: np.dtype("<i1"),
    3: np.dtype("<u1"),
    4: np.dtype("<i8"),
    5: np.dtype("<f8"),
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


class CodecError(ValueError):
    """Bytes that are not a whole, undamaged bundle of tensors, or a bundle that cannot be encoded."""


def encode_tensors(tensors: Mapping[str, np.ndarray]) -> bytes:
    """The tensors as one self-contained message; :func:`decode_tensors` gives back equal bits.

    Parameters
    ----------
    tensors : by name; float32, float16, float64, int8, uint8 or int64, any shape of up to
        ``MAX_DIMENSIONS`` dimensions

    Raises
    ------
    CodecError
        For another dtype, too many tensors or dimensions, or a name that is empty or too long.
    """
    if len(tensors) > MAX_TENSORS:
        raise CodecError(f"encoding {len(tensors)} tensors: the limit is {MAX_TENSORS}; split the bundle")
    headers, payloads = [], []
    for name, array in tensors.items():
        encoded_name = name.encode("utf-8", errors="replace")
        if not 1 <= len(encoded_name) <= MAX_NAME_BYTES or encoded_name.decode() != name:
            raise CodecError(f"encoding tensor {name!r}: a name is 1 to {MAX_NAME_BYTES} bytes of UTF-8")
        dtype = array.dtype.newbyteorder("<")
        code = _CODES.get(dtype)
        if code is None:
            allowed = ", ".join(sorted(known.name for known in _CODES))
            raise CodecError(f"encoding tensor {name!r}: {array.dtype} is not one of {allowed}; convert it")
        if array.ndim > MAX_DIMENSIONS:
            raise CodecError(f"encoding tensor {name!r}: {array.ndim} dimensions, over {MAX_DIMENSIONS}")
        if array.nbytes >= 2**32 or max(array.shape, default=0) >= 2**31:
            raise CodecError(
                f"encoding tensor {name!r} of {array.nbytes} bytes: the limits are 4 GiB and 2**31 - 1 "
                "per dimension"
            )
        headers.append(
            bytes([len(encoded_name)])
            + encoded_name
            + struct.pack(f"<BB{array.ndim}II", code, array.ndim, *array.shape, array.nbytes)
        )
        payloads.append(array.astype(dtype, copy=False).tobytes())
    body = b"".join([*headers, *payloads])
    total = _PREFIX_BYTES + len(body)
    if total >= 2**32:
        raise CodecError(f"encoding {total} bytes of tensors: the limit is 4 GiB; send several messages")
    fixed = _FIXED.pack(_MAGIC, FORMAT_VERSION, 0, len(tensors), total)
    return b"".join([fixed, _digest(fixed, body), body])


def decode_tensors(data: bytes | bytearray | memoryview, max_bytes: int) -> dict[str, np.ndarray]:
    """The tensors of a message, as fresh writable arrays, in the order they were encoded.

    Parameters
    ----------
    data : exactly one message
    max_bytes : longest message that is looked at [byte]

    Raises
    ------
    CodecError
        If it is longer than `max_bytes`, truncated, damaged in any bit, or contradicts itself.
    """
    view = memoryview(data).cast("B")
    if len(view) > max_bytes:
        raise CodecError(f"decoding tensors: {len(view)} bytes, but at most {max_bytes} are expected here")
    if len(view) < _PREFIX_BYTES:
        raise CodecError(f"decoding tensors: {len(view)} bytes are too few for a header of {_PREFIX_BYTES}")
    magic, version, reserved, count, total = _FIXED.unpack_from(view)
    if magic != _MAGIC:
        raise CodecError(f"decoding tensors: the message starts with {magic!r}, expected {_MAGIC!r}")
    if total != len(view):
        raise CodecError(f"decoding tensors: {len(view)} bytes arrived, the header declares {total}")
    fixed, body = view[: _FIXED.size], view[_PREFIX_BYTES:]
    if _digest(fixed, body) != bytes(view[_FIXED.size : _PREFIX_BYTES]):
        raise CodecError("decoding tensors: the hash does not match; the message was damaged on the way")
    if version != FORMAT_VERSION or reserved != 0:
        raise CodecError(
            f"decoding tensors: format version {version}, this reads {FORMAT_VERSION}; run the same release "
            "on both ends"
        )
    if count > MAX_TENSORS:
        raise CodecError(f"decoding tensors: {count} tensors declared, the limit is {MAX_TENSORS}")
    headers, offset = _parse_headers(body, count)
    declared = sum(num_bytes for _, _, _, num_bytes in headers)
    if declared != len(body) - offset:
        raise CodecError(
            f"decoding tensors: headers declare {declared} bytes of values, {len(body) - offset} are there"
        )
    tensors: dict[str, np.ndarray] = {}
    for name, dtype, shape, num_bytes in headers:
        values = np.frombuffer(body[offset : offset + num_bytes], dtype=dtype)
        tensors[name] = values.astype(dtype.newbyteorder("="), copy=True).reshape(shape)
        offset += num_bytes
    return tensors


def _parse_headers(
    body: memoryview, count: int
) -> tuple[list[tuple[str, np.dtype, tuple[int, ...], int]], int]:
    """Name, dtype, shape and byte length of each tensor, and the offset where the values start."""
    headers: list[tuple[str, np.dtype, tuple[int, ...], int]] = []
    names: set[str] = set()
    offset = 0

    def take(num_bytes: int) -> memoryview:
        nonlocal offset
        if num_bytes > len(body) - offset:
            raise CodecError(f"decoding tensors: the header of tensor {len(headers)} runs past the end")
        offset += num_bytes
        return body[offset - num_bytes : offset]

    for index in range(count):
        raw_name = bytes(take(take(1)[0]))
        try:
            name = raw_name.decode("utf-8")
        except UnicodeDecodeError as error:
            raise CodecError(f"decoding tensors: the name of tensor {index} is not UTF-8") from error
        if not name or name in names:
            raise CodecError(f"decoding tensors: the name {name!r} of tensor {index} is empty or repeated")
        code, num_dimensions = take(2)
        dtype = _DTYPES.get(code)
        if dtype is None or num_dimensions > MAX_DIMENSIONS:
            raise CodecError(
                f"decoding tensors: {name!r} declares dtype code {code} and {num_dimensions} dimensions, "
                f"known are codes 0 to {len(_DTYPES) - 1} and up to {MAX_DIMENSIONS} dimensions"
            )
        *shape, num_bytes = struct.unpack(f"<{num_dimensions}II", take(4 * num_dimensions + 4))
        if math.prod(shape) * dtype.itemsize != num_bytes or any(size >= 2**31 for size in shape):
            raise CodecError(
                f"decoding tensors: {name!r} declares shape {tuple(shape)} of {dtype.name} and {num_bytes} "
                "bytes, which contradict each other"
            )
        names.add(name)
        headers.append((name, dtype, tuple(shape), num_bytes))
    return headers, offset


def _digest(fixed: bytes | memoryview, body: bytes | memoryview) -> bytes:
    digest = hashlib.blake2b(fixed, digest_size=_HASH_BYTES)
    digest.update(body)
    return digest.digest()
