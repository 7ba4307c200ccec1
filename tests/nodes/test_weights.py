"""Weights in bulk: only what was declared gets through."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest

from nodes.learning.stages import OptimizerSettings, StageStack, flatten_states, unflatten_states
from nodes.weights import Manifest, WeightsError, manifest_of, pack_weights, unpack_weights
from tests.nodes.training import make_model


def _bundle() -> dict[str, np.ndarray]:
    model = make_model()
    return flatten_states(StageStack(model, 1, 3, OptimizerSettings(0.1, 0.9)).states())


def _with_header(data: bytes, header: object) -> bytes:
    (size,) = struct.unpack_from("<Q", data)
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data[8 + size :]


def _header(data: bytes) -> dict[str, dict[str, object]]:
    (size,) = struct.unpack_from("<Q", data)
    header: dict[str, dict[str, object]] = json.loads(data[8 : 8 + size])
    return header


def test_declared_weights_come_back_bit_for_bit_and_load() -> None:
    bundle = _bundle()
    data = pack_weights(bundle)
    assert pack_weights(dict(reversed(bundle.items()))) == data
    restored = unpack_weights(data, manifest_of(bundle))
    assert list(restored) == list(bundle)
    assert all(np.array_equal(restored[name], bundle[name]) for name in bundle)
    stack = StageStack(make_model(seed=2), 1, 3, OptimizerSettings(0.1, 0.9))
    for index, state in unflatten_states(restored).items():
        stack.load_stage_state(index, state)
    assert all(np.array_equal(array, bundle[name]) for name, array in flatten_states(stack.states()).items())


@pytest.mark.parametrize(
    "smuggled",
    [
        {"smashed": np.zeros((4, 48))},
        {"1/gradient.0.weight": np.zeros((32, 48))},
        {"7/param.0.weight": np.zeros((32, 48))},
    ],
)
def test_smashed_data_and_gradients_do_not_get_through(smuggled: dict[str, np.ndarray]) -> None:
    bundle = _bundle()
    manifest = manifest_of(bundle)
    with pytest.raises(WeightsError, match="only the declared"):
        unpack_weights(pack_weights({**bundle, **smuggled}), manifest)
    with pytest.raises(WeightsError, match="only the declared"):
        unpack_weights(pack_weights(smuggled), manifest)


def test_a_declared_name_with_another_shape_or_type_is_refused() -> None:
    bundle = _bundle()
    manifest = manifest_of(bundle)
    name = "1/param.0.weight"
    for wrong in (bundle[name].T, bundle[name].astype(np.float32), np.zeros((4, *bundle[name].shape))):
        with pytest.raises(WeightsError, match="declared is float64"):
            unpack_weights(pack_weights({**bundle, name: wrong}), manifest)
    with pytest.raises(WeightsError, match="missing '1/param"):
        unpack_weights(pack_weights({k: v for k, v in bundle.items() if k != name}), manifest)


def test_lying_headers_are_refused() -> None:
    data, manifest = _packed()
    name = next(iter(manifest))
    lies = [
        ("data_offsets", [0, 2**60]),
        ("data_offsets", [-8, 0]),
        ("data_offsets", [0]),
        ("shape", [2**40, 2**40]),
        ("dtype", "F8_E4M3"),
        ("dtype", 3),
    ]
    for key, value in lies:
        header = _header(data)
        header[name][key] = value
        with pytest.raises(WeightsError):
            unpack_weights(_with_header(data, header), manifest)
    for header in ([], {"__metadata__": {"note": "x"}, **_header(data)}, {}):
        with pytest.raises(WeightsError):
            unpack_weights(_with_header(data, header), manifest)
    nested = b"[" * 100_000
    for raw in (b"", b"\xff" * 8, struct.pack("<Q", len(nested)) + nested, data + b"\0"):
        with pytest.raises(WeightsError):
            unpack_weights(raw, manifest)


def test_no_mutation_raises_anything_but_a_weights_error() -> None:
    data, manifest = _packed()
    rng = np.random.default_rng(5)
    (size,) = struct.unpack_from("<Q", data)
    for _ in range(3000):
        changed = bytearray(data)
        for _ in range(int(rng.integers(1, 4))):
            changed[int(rng.integers(8 + size))] ^= 1 << int(rng.integers(8))
        try:
            restored = unpack_weights(
                bytes(changed[: int(rng.integers(len(data) // 2, 2 * len(data)))]), manifest
            )
        except WeightsError:
            continue
        assert manifest_of(restored) == manifest


def test_types_that_no_model_has_are_not_packed() -> None:
    with pytest.raises(WeightsError, match="complex128"):
        pack_weights({"x": np.zeros(2, complex)})


def _packed() -> tuple[bytes, Manifest]:
    bundle = _bundle()
    return pack_weights(bundle), manifest_of(bundle)
