"""A cut moves between rounds: deeper changes no output, shallower merges diverged copies."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nodes.learning.aggregation import merge_stage_states
from nodes.learning.models import profile
from nodes.learning.server import evaluate
from nodes.learning.stages import OptimizerSettings, StageState, flatten_states, unflatten_states
from tests.nodes.training import SHAPE, Group, distance, make_batch

WEIGHTS = [0.5, 0.3, 0.2]


def _trained(name: str = "mlp", cut: int = 2) -> Group:
    dtype = torch.float64 if name == "mlp" else torch.float32
    group = Group.make(3, cut, name=name, dtype=dtype)
    for r in range(3):
        group.round(_batches(r, dtype), WEIGHTS)
    return group


def _batches(r: int, dtype: torch.dtype) -> list[tuple[np.ndarray, np.ndarray]]:
    kind = np.float64 if dtype == torch.float64 else np.float32
    return [(x.astype(kind), y) for x, y in (make_batch(10 * r + i, 4) for i in range(3))]


def _deeper(group: Group, cut: int) -> None:
    states = {index: group.server.stage_state(index) for index in range(group.server.cut, cut)}
    for client in group.clients:
        client.move_cut(cut, states)
    group.server.move_cut(cut, {})


def _shallower(group: Group, cut: int) -> None:
    lost = range(cut, group.server.cut)
    merged: dict[int, StageState] = {
        index: merge_stage_states([client.stage_state(index) for client in group.clients], WEIGHTS)
        for index in lost
    }
    for client in group.clients:
        client.move_cut(cut, {})
    group.server.move_cut(cut, merged)


def _losses(group: Group) -> tuple[float, ...]:
    x, y = make_batch(99, 40)
    return evaluate([client.stages for client in group.clients], group.server.stages, x, y).losses


@pytest.mark.parametrize("name", ["mlp", "small-norm"])
def test_deeper_and_back_changes_no_output_and_no_state(name: str) -> None:
    """Right after a deeper move the new copies are equal, so moving back merges equals: bit for bit."""
    group = _trained(name)
    before, states = _losses(group), flatten_states(group.server.stack.states())
    _deeper(group, 3)
    assert (group.server.cut, group.clients[0].cut) == (3, 3)
    assert _losses(group) == before
    _shallower(group, 2)
    assert _losses(group) == before
    after = flatten_states(group.server.stack.states())
    assert list(after) == list(states)
    assert all(np.array_equal(after[key], states[key]) for key in states)


def test_training_goes_on_as_if_a_cut_had_not_gone_there_and_back() -> None:
    """Momentum travels too: three more rounds end on the same bits."""
    moved, stayed = _trained(), _trained()
    _deeper(moved, 3)
    _shallower(moved, 2)
    for r in range(3, 6):
        for group in (moved, stayed):
            group.round(_batches(r, torch.float64), WEIGHTS)
    assert distance(moved.parameters(), stayed.parameters()) == 0.0


def test_momentum_is_part_of_what_moves() -> None:
    """Without it the same rounds end elsewhere, so the test above can fail."""
    moved, stayed = _trained(), _trained()
    states = {2: moved.server.stage_state(2)}
    forgotten = {name: torch.zeros_like(t) if "momentum" in name else t for name, t in states[2].items()}
    moved.server.load_stage_state(2, forgotten)
    for group in (moved, stayed):
        group.round(_batches(3, torch.float64), WEIGHTS)
    assert distance(moved.parameters(), stayed.parameters()) > 1e-6


def test_shallower_with_diverged_copies_is_their_weighted_mean_and_shows() -> None:
    group = _trained()
    before = _losses(group)
    copies = [client.stage_state(1) for client in group.clients]
    assert not torch.equal(copies[0]["param.0.weight"], copies[1]["param.0.weight"])
    _shallower(group, 1)
    after = _losses(group)
    assert max(abs(a - b) for a, b in zip(before, after, strict=True)) > 1e-6
    merged = group.server.stage_state(1)
    for name, tensor in merged.items():
        expected = sum(w * copy[name] for w, copy in zip(WEIGHTS, copies, strict=True))
        assert torch.allclose(tensor, expected, rtol=0, atol=1e-14)
    assert any(name.startswith("momentum.") for name in merged)


def test_merging_averages_float_buffers_and_keeps_the_largest_counter() -> None:
    group = _trained("small-norm")
    copies = [client.stage_state(0) for client in group.clients]
    copies[1]["buffer.1.num_batches_tracked"] += 4
    merged = merge_stage_states(copies, [2.0, 1.0, 1.0])
    assert int(merged["buffer.1.num_batches_tracked"]) == 7
    mean = 0.5 * copies[0]["buffer.1.running_mean"] + 0.25 * (
        copies[1]["buffer.1.running_mean"] + copies[2]["buffer.1.running_mean"]
    )
    assert torch.allclose(merged["buffer.1.running_mean"], mean, rtol=0, atol=1e-6)
    assert merged["buffer.1.running_mean"].dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_merging_equal_copies_returns_them_bit_for_bit(dtype: torch.dtype) -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(1), dtype=dtype)
    merged = merge_stage_states([{"x": values.clone()} for _ in range(5)], [0.1, 0.2, 0.3, 0.3, 0.1])
    assert torch.equal(merged["x"], values)


def test_a_state_survives_the_way_as_a_flat_bundle() -> None:
    group = _trained("small-norm")
    states = group.server.stack.states()
    bundle = flatten_states(states)
    restored = unflatten_states(bundle)
    assert set(states) - set(restored) == {3}  # the average pool has no state
    for index, state in states.items():
        if index == 3:
            assert not state
            continue
        assert restored[index].keys() == state.keys()
        assert all(torch.equal(restored[index][name], tensor) for name, tensor in state.items())
    counted = profile(group.server.stack.model, SHAPE)
    for index in states:
        size = sum(array.nbytes for key, array in bundle.items() if key.startswith(f"{index}/"))
        parts = (counted.parameter_bytes, counted.buffer_bytes, counted.optimiser_bytes)
        assert size == sum(part[index] for part in parts)
    with pytest.raises(ValueError, match="INDEX/NAME"):
        unflatten_states({"weight": np.zeros(1)})


def test_a_cut_moves_across_a_stage_without_state() -> None:
    group = _trained("small-norm", cut=1)
    before = _losses(group)
    states = unflatten_states(flatten_states({index: group.server.stage_state(index) for index in (1, 2)}))
    assert list(states) == [2]
    for client in group.clients:
        client.move_cut(3, states)
    group.server.move_cut(3, {})
    assert _losses(group) == before


def test_a_move_without_the_states_it_needs_is_refused_and_changes_nothing() -> None:
    group = _trained()
    client = group.clients[0]
    before = _losses(group)
    with pytest.raises(ValueError, match=r"states for stages \[2\] are needed"):
        client.move_cut(3, {})
    damaged = {2: {name: tensor[:1] for name, tensor in group.server.stage_state(2).items()}}
    with pytest.raises(ValueError, match="do both ends use the same model"):
        client.move_cut(3, damaged)
    with pytest.raises(ValueError, match=r"missing \['momentum.0.bias'"):
        client.move_cut(3, {2: {}})
    with pytest.raises(ValueError, match="choose a cut layer from 1 to 3"):
        client.move_cut(4, {})
    with pytest.raises(ValueError, match="not on this side of the cut"):
        client.stage_state(2)
    assert client.cut == 2
    assert _losses(group) == before
    group.round(_batches(7, torch.float64), WEIGHTS)


def test_stage_states_have_the_same_names_before_and_after_the_first_step() -> None:
    fresh, used = Group.make(1), Group.make(1)
    used.round([make_batch(1, 4)], [1.0])
    for a, b in ((fresh.clients[0], used.clients[0]), (fresh.server, used.server)):
        assert list(flatten_states(a.stack.states())) == list(flatten_states(b.stack.states()))
    plain = Group.make(1, settings=OptimizerSettings(0.1))
    assert not any("momentum" in key for key in flatten_states(plain.server.stack.states()))
