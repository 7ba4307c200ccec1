"""Weights as safetensors bytes, accepted only if they are exactly what was declared.

The bulk plane moves parameters and optimiser state off the clock.  What it may carry is fixed
before the run by a manifest of names, shapes and types taken from the model; smashed data and
gradients are in no manifest, so they cannot slip through it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

_MAX_HEADER_BYTES = 1 << 22
_NAMES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I64": np.dtype("<i8"),
    "I8": np.dtype("<i1"),
    "U8": np.dtype("<u1"),
}


class WeightsError(ValueError):
    """Bytes that are not the declared weights, or weights that cannot be packed."""


class TensorSpec(msgspec.Struct, frozen=True):
    """Shape and NumPy type name of one declared tensor."""

    shape: tuple[int, ...]
    dtype: str


Manifest = dict[str, TensorSpec]


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of a safetensors header."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def manifest_of(tensors: Mapping[str, np.ndarray]) -> Manifest:
    """The manifest that accepts exactly tensors like these."""
    return {name: TensorSpec(tuple(array.shape), array.dtype.name) for name, array in tensors.items()}


def pack_weights(tensors: Mapping[str, np.ndarray]) -> bytes:
    """The tensors in safetensors format; equal tensors give equal bytes.

    Raises
    ------
    WeightsError
        For a dtype other than float16/32/64, int8, int64 and uint8.
    """
    allowed = {dtype.name for dtype in _NAMES.values()}
    for name, array in tensors.items():
        if array.dtype.name not in allowed:
            raise WeightsError(f"packing weights: {name!r} is {array.dtype}, not one of {sorted(allowed)}")
    ordered = {name: np.array(tensors[name], order="C") for name in sorted(tensors)}
    return bytes(safetensors.numpy.save(ordered))


def unpack_weights(data: bytes, manifest: Manifest) -> dict[str, np.ndarray]:
    """The tensors in `data`, which must be exactly those that `manifest` declares.

    Raises
    ------
    WeightsError
        If the bytes are damaged, or a name, shape or type is missing, different or not declared.
        All of it is checked on the header, before a tensor is built.
    """
    expected_bytes = {
        name: math.prod(spec.shape) * np.dtype(spec.dtype).itemsize for name, spec in manifest.items()
    }
    header, num_value_bytes = _read_header(data)
    unknown = sorted(header.keys() - manifest.keys())
    missing = sorted(manifest.keys() - header.keys())
    if unknown or missing:
        raise WeightsError(
            f"unpacking weights: not declared {_some(unknown)}, missing {_some(missing)}; only the declared "
            "parameters and optimiser state are accepted"
        )
    end = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1].data_offsets):
        spec = manifest[name]
        dtype = _NAMES.get(entry.dtype)
        if dtype is None or dtype.name != spec.dtype or tuple(entry.shape) != spec.shape:
            raise WeightsError(
                f"unpacking weights: {name!r} is {entry.dtype} {tuple(entry.shape)}, declared is "
                f"{spec.dtype} {spec.shape}"
            )
        start, stop = entry.data_offsets
        if start != end or stop - start != expected_bytes[name]:
            raise WeightsError(
                f"unpacking weights: {name!r} claims bytes {start} to {stop}; expected "
                f"{expected_bytes[name]} bytes from {end}"
            )
        end = stop
    if end != num_value_bytes:
        raise WeightsError(f"unpacking weights: {num_value_bytes} bytes of values, {end} in the header")
    try:
        loaded = safetensors.numpy.load(bytes(data))
    except (SafetensorError, ValueError, KeyError) as error:
        raise WeightsError(f"unpacking weights: {error}") from error
    return {name: np.array(loaded[name]) for name in manifest}


def _read_header(data: bytes) -> tuple[dict[str, _Entry], int]:
    """Entries by name, and the number of bytes behind the header."""
    if len(data) < 8:
        raise WeightsError(f"unpacking weights: {len(data)} bytes are too few for a header")
    (num_header_bytes,) = struct.unpack_from("<Q", data)
    if num_header_bytes > min(_MAX_HEADER_BYTES, len(data) - 8):
        raise WeightsError(
            f"unpacking weights: a header of {num_header_bytes} bytes is declared, {len(data) - 8} follow"
        )
    raw = data[8 : 8 + num_header_bytes]
    try:
        header = msgspec.json.decode(raw, type=dict[str, _Entry])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WeightsError(f"unpacking weights: not a safetensors header: {error}") from error
    return header, len(data) - 8 - num_header_bytes


def _some(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:3]) or "nothing"
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")
