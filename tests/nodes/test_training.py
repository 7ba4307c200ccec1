"""The facts that pin split learning down: it equals plain training wherever it must."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from nodes.learning.aggregation import Reading, merge_stage_states, server_items
from nodes.learning.client import ClientTrainer, assemble_gradient
from nodes.learning.models import run_stages
from nodes.learning.server import ServerTrainer, evaluate
from nodes.learning.stages import OptimizerSettings
from tests.nodes.training import CLASSES, SHAPE, Group, distance, make_batch, make_model

ROUNDING = 1e-12
READINGS = list(Reading)
PLAIN = OptimizerSettings(0.1)
MOMENTUM = OptimizerSettings(0.1, 0.9)


def _train_centrally(
    model: nn.ModuleList,
    rounds: list[list[tuple[np.ndarray, np.ndarray]]],
    weights: list[float],
    momentum: float,
) -> np.ndarray:
    """Plain autograd on sum_i lambda_i L_i, nothing split."""
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum)
    for batches in rounds:
        optimiser.zero_grad()
        total = sum(
            weight * cross_entropy(run_stages(model, torch.from_numpy(x)), torch.from_numpy(y))
            for weight, (x, y) in zip(weights, batches, strict=True)
        )
        assert isinstance(total, torch.Tensor)
        total.backward()
        optimiser.step()
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]).numpy()


def test_averaging_every_round_is_centralised_training() -> None:
    """Unequal lambda and unequal batches, no batch norm, plain SGD, 10 rounds: equal to rounding."""
    weights = [0.5, 0.3, 0.2]
    rounds = [[make_batch(10 * r + i, (6, 4, 7)[i]) for i in range(3)] for r in range(10)]
    group = Group.make(3, settings=PLAIN)
    for batches in rounds:
        group.round(batches, weights)
        for index in range(2):
            merged = merge_stage_states([c.stage_state(index) for c in group.clients], weights)
            for client in group.clients:
                client.load_stage_state(index, merged)
    first, *_, server = group.parameters()
    central = _train_centrally(make_model(), rounds, weights, momentum=0.0)
    assert np.abs(np.concatenate([first, server]) - central).max() < ROUNDING
    # The test can fail: a scale wrong by lambda_i shows up far above rounding.
    wrong = _train_centrally(make_model(), rounds, [1 / 3] * 3, momentum=0.0)
    assert np.abs(wrong - central).max() > 1e-4


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("phi", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("cut", [1, 3])
def test_a_single_client_trains_as_if_nothing_were_split(reading: Reading, phi: float, cut: int) -> None:
    rounds = [[make_batch(r, 6)] for r in range(5)]
    group = Group.make(1, cut, MOMENTUM)
    for batches in rounds:
        group.round(batches, [1.0], phi, reading)
    central = _train_centrally(make_model(), rounds, [1.0], momentum=0.9)
    assert np.abs(np.concatenate(group.parameters()) - central).max() < ROUNDING


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("phi", [0.25, 0.5, 1.0])
def test_identical_clients_with_identical_data_make_any_aggregation_equal_psl(
    reading: Reading, phi: float
) -> None:
    """True without batch norm only: with it, virtual samples are normalised by their own statistics."""
    weights = [0.5, 0.3, 0.2]
    plain, aggregated = Group.make(3), Group.make(3)
    for r in range(5):
        batches = [make_batch(r, 6)] * 3
        plain.round(batches, weights)
        aggregated.round(batches, weights, phi, reading)
    assert distance(plain.parameters(), aggregated.parameters()) < ROUNDING


def test_aggregation_over_different_clients_is_not_psl() -> None:
    batches = [make_batch(i, 6) for i in range(3)]
    results = []
    for reading, phi in [(Reading.LAYERWISE, 0.0), *((reading, 0.5) for reading in READINGS)]:
        group = Group.make(3, cut=1)  # with one stage below the last, two readings coincide
        group.round(batches, [0.5, 0.3, 0.2], phi, reading)
        results.append(group.parameters())
    for i in range(4):
        for j in range(i):
            assert distance(results[i], results[j]) > 1e-6


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("name", ["mlp", "small-norm"])
def test_ratio_zero_is_bitwise_psl(reading: Reading, name: str) -> None:
    """Against one batch of all clients through an unsplit autograd graph, in float32."""
    batches = [(x.astype(np.float32), y) for x, y in (make_batch(i, 4 + i) for i in range(3))]
    weights = {0: 0.5, 1: 0.3, 2: 0.2}
    model = make_model(1, name, torch.float32)
    server = ServerTrainer(copy.deepcopy(model), 2, MOMENTUM)
    clients = [ClientTrainer(copy.deepcopy(model), 2, MOMENTUM) for _ in range(3)]
    smashed = {i: clients[i].forward(x) for i, (x, _) in enumerate(batches)}
    step = server.step(smashed, {i: y for i, (_, y) in enumerate(batches)}, weights, 0.0, reading)

    stages = nn.ModuleList(list(model)[2:]).train()
    leaf = torch.from_numpy(np.concatenate([smashed[i] for i in range(3)])).requires_grad_()
    per_sample = cross_entropy(
        run_stages(stages, leaf), torch.from_numpy(np.concatenate([y for _, y in batches])), reduction="none"
    )
    scale = torch.cat([torch.full((len(batches[i][1]),), weights[i] / len(batches[i][1])) for i in range(3)])
    optimiser = torch.optim.SGD(stages.parameters(), lr=0.1, momentum=0.9)
    (per_sample * scale).sum().backward()
    optimiser.step()
    assert leaf.grad is not None
    assert step.broadcast is None
    for i, gradient in enumerate(torch.split(leaf.grad, [4, 5, 6])):
        assert np.array_equal(step.own[i], (gradient / weights[i]).numpy())
    for key, value in stages.state_dict().items():
        assert torch.equal(server.stages.state_dict()[key], value)


def test_a_client_gets_the_gradient_of_its_own_loss_whatever_its_weight() -> None:
    batches = [make_batch(i, 4) for i in range(2)]
    group = Group.make(2)
    smashed = {i: group.clients[i].forward(x) for i, (x, _) in enumerate(batches)}
    stages = copy.deepcopy(group.server.stages)
    step = group.server.step(smashed, {i: y for i, (_, y) in enumerate(batches)}, {0: 0.9, 1: 0.1}, 0.0)
    for i, (_, y) in enumerate(batches):
        leaf = torch.from_numpy(smashed[i].copy()).requires_grad_()
        loss = cross_entropy(run_stages(stages, leaf), torch.from_numpy(y))
        loss.backward()
        assert leaf.grad is not None
        assert np.abs(step.own[i] - leaf.grad.numpy()).max() < ROUNDING
        assert step.losses[i] == pytest.approx(float(loss.detach()), abs=ROUNDING)
    assert step.loss == pytest.approx(0.9 * step.losses[0] + 0.1 * step.losses[1])


@pytest.mark.parametrize("reading", READINGS)
def test_the_broadcast_gradient_is_that_of_the_merged_loss_at_the_mean_smashed_data(reading: Reading) -> None:
    """With one server stage all but ``merged`` reduce to the mean gradient; ``merged`` is checked by autograd."""
    weights = [0.6, 0.4]
    batches = [make_batch(i, 5) for i in range(2)]
    group = Group.make(2, cut=3)
    smashed = {i: group.clients[i].forward(x) for i, (x, _) in enumerate(batches)}
    last = copy.deepcopy(group.server.stages)
    step = group.server.step(
        smashed, {i: y for i, (_, y) in enumerate(batches)}, dict(enumerate(weights)), 1.0, reading
    )
    leaves = [torch.from_numpy(smashed[i].copy()).requires_grad_() for i in range(2)]
    labels = [nn.functional.one_hot(torch.from_numpy(y), CLASSES).double() for _, y in batches]
    if reading is Reading.MERGED:
        mean = (0.6 * leaves[0] + 0.4 * leaves[1]).detach().requires_grad_()
        cross_entropy(run_stages(last, mean), 0.6 * labels[0] + 0.4 * labels[1]).backward()
        expected = mean.grad
    else:
        for leaf, label in zip(leaves, labels, strict=True):
            cross_entropy(run_stages(last, leaf), label).backward()
        assert leaves[0].grad is not None
        assert leaves[1].grad is not None
        expected = 0.6 * leaves[0].grad + 0.4 * leaves[1].grad
    assert expected is not None
    assert step.broadcast is not None
    assert np.abs(step.broadcast - expected.numpy()).max() < ROUNDING
    assert all(gradient.shape[0] == 0 for gradient in step.own.values())


@pytest.mark.parametrize("phi", [0.0, 0.5])
def test_the_weighted_switch_scales_a_clients_whole_update_by_its_weight(phi: float) -> None:
    weights = [0.7, 0.3]
    batches = [make_batch(i, 6) for i in range(2)]
    start = Group.make(2, settings=PLAIN).parameters()
    plain, weighted = Group.make(2, settings=PLAIN), Group.make(2, settings=PLAIN)
    plain.round(batches, weights, phi)
    weighted.round(batches, weights, phi, weighted=True)
    for i, weight in enumerate(weights):
        full, scaled = plain.parameters()[i] - start[i], weighted.parameters()[i] - start[i]
        assert np.abs(scaled - weight * full).max() < ROUNDING
    assert distance(plain.parameters()[2:], weighted.parameters()[2:]) == 0.0


@pytest.mark.parametrize("reading", READINGS)
def test_unequal_batches_and_missing_clients_renormalise_the_merge(reading: Reading) -> None:
    """Identical samples per slot: whoever lacks a slot, the rest must still see that sample's own gradient."""
    x, y = make_batch(3, 8)
    lengths = {0: 8, 2: 3}  # client 1 is missing
    weights = {0: 0.2, 1: 0.5, 2: 0.3}
    group = Group.make(3)
    smashed = {i: group.clients[i].forward(x[:size]) for i, size in lengths.items()}
    labels = {i: y[:size] for i, size in lengths.items()}
    stages = copy.deepcopy(group.server.stages)
    step = group.server.step(smashed, labels, weights, 0.75, reading)
    assert step.plan.weights == pytest.approx((0.4, 0.6))
    assert step.plan.shared == (6, 3)
    assert step.broadcast is not None
    assert step.broadcast.shape[0] == 6
    assert {i: len(own) for i, own in step.own.items()} == {0: 2, 2: 0}
    # The gradient of slot j is the weighted mean of lambda_i / b_i over those who have it.
    leaf = torch.from_numpy(smashed[0].copy()).requires_grad_()
    cross_entropy(run_stages(stages, leaf), torch.from_numpy(y), reduction="sum").backward()
    assert leaf.grad is not None
    scale = np.array([(0.4 / 8 + 0.6 / 3) if j < 3 else 1 / 8 for j in range(6)])
    expected = leaf.grad.numpy()[:6] * scale.reshape(-1, *[1] * (leaf.dim() - 1))
    assert np.abs(step.broadcast - expected).max() < ROUNDING
    assembled = assemble_gradient(step.broadcast, step.own[2], 3)
    assert np.array_equal(assembled, step.broadcast[:3])


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("phi", [0.0, 0.5, 1.0])
def test_the_number_of_items_back_propagated_is_the_counted_one(reading: Reading, phi: float) -> None:
    """Below the last stage m + C(b - m), in the last C b (``merged``: m + C(b - m) throughout)."""
    group = Group.make(3, cut=1)
    seen = [0, 0, 0]
    for index, stage in enumerate(group.server.stages):

        def count(_: nn.Module, __: object, gradient: tuple[torch.Tensor, ...], index: int = index) -> None:
            seen[index] += gradient[0].shape[0]

        stage.register_full_backward_hook(count)
    step = group.round([make_batch(i, 6) for i in range(3)], [0.5, 0.3, 0.2], phi, reading)
    items = server_items(step.plan, reading)
    m = {0.0: 0, 0.5: 3, 1.0: 6}[phi]
    reduced = m + 3 * (6 - m)
    assert items.backward_below == reduced
    assert items.backward_last == (reduced if reading is Reading.MERGED else 18)
    assert seen == [items.backward_below, items.backward_below, items.backward_last]


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("phi", [0.5, 1.0])
def test_batch_norm_counts_one_pass_of_real_samples(reading: Reading, phi: float) -> None:
    batches = [(x.astype(np.float32), y) for x, y in (make_batch(i, 4) for i in range(2))]
    running = {}
    for name, ratio in (("psl", 0.0), ("epsl", phi)):
        group = Group.make(2, cut=2, name="small-norm", dtype=torch.float32)
        group.round(batches, [0.5, 0.5], ratio, reading)
        buffers = dict(group.server.stages.named_buffers())
        assert all(int(value) == 1 for key, value in buffers.items() if key.endswith("num_batches_tracked"))
        assert all(module.training for module in group.server.stages.modules())
        running[name] = buffers
    equal = all(
        torch.allclose(value, running["epsl"][key], rtol=1e-4, atol=1e-6)
        for key, value in running["psl"].items()
    )
    # `merged` never sees the real samples of merged slots, so its statistics differ; the others' do not.
    assert equal == (reading is not Reading.MERGED)


def test_a_lone_virtual_sample_passes_batch_norm() -> None:
    group = Group.make(2, cut=2, name="small-norm", dtype=torch.float32)
    batches = [(x.astype(np.float32), y) for x, y in (make_batch(i, 4) for i in range(2))]
    for reading in READINGS:
        step = group.round(batches, [0.5, 0.5], 0.25, reading)
        assert step.broadcast is not None
        assert np.isfinite(step.broadcast).all()


def test_evaluation_scores_every_composite_and_changes_nothing() -> None:
    group = Group.make(2, cut=2, name="small-norm", dtype=torch.float32)
    batches = [(x.astype(np.float32), y) for x, y in (make_batch(i, 6) for i in range(2))]
    group.round(batches, [0.5, 0.5])
    before = group.parameters()
    x, y = make_batch(9, 50)
    images = x.astype(np.float32)
    stages = [client.stages for client in group.clients]
    result = evaluate(stages, group.server.stages, images, y, batch_size=16)
    again = evaluate(stages, group.server.stages, images, y, batch_size=50)
    assert result.accuracies == again.accuracies
    assert result.losses == pytest.approx(again.losses, rel=1e-5)
    assert distance(before, group.parameters()) == 0.0
    assert all(module.training for module in group.server.stages.modules())
    assert result.accuracy == pytest.approx(sum(result.accuracies) / 2)
    assert result.worst_accuracy == min(result.accuracies)
    composite = nn.ModuleList([*stages[1], *group.server.stages]).eval()
    with torch.no_grad():
        predicted = run_stages(composite, torch.from_numpy(images)).argmax(1).numpy()
    assert result.accuracies[1] == (predicted == y).mean()


def test_gradients_that_do_not_belong_are_refused_and_a_retry_works() -> None:
    group = Group.make(1)
    client = group.clients[0]
    x, y = make_batch(1, 4)
    with pytest.raises(RuntimeError, match="call forward first"):
        client.backward(np.zeros((4, 32)))
    smashed = client.forward(x)
    with pytest.raises(ValueError, match="another round"):
        client.backward(np.zeros((3, *smashed.shape[1:])))
    client.backward(np.zeros_like(smashed))
    assert client.last_gradient_norm == 0.0
    with pytest.raises(RuntimeError, match="call forward first"):
        group.server.backward()
    with pytest.raises(ValueError, match="labels of"):
        group.server.forward({0: smashed}, {1: y}, {0: 1.0}, 0.5)
    with pytest.raises(ValueError, match="one label per sample"):
        group.server.forward({0: smashed}, {0: y[:2]}, {0: 1.0}, 0.5)
    with pytest.raises(ValueError, match="must be positive"):
        group.server.forward({0: smashed}, {0: y}, {1: 1.0}, 0.5)
    with pytest.raises(ValueError, match="do not fit"):
        assemble_gradient(None, smashed[:2], 4)


def test_read_only_inputs_are_welcome() -> None:
    client = ClientTrainer(make_model(), 1, PLAIN)
    x, _ = make_batch(1, 2)
    frozen = np.frombuffer(x.tobytes()).reshape(2, *SHAPE)
    smashed = client.forward(frozen)
    client.backward(np.frombuffer(smashed.tobytes()).reshape(smashed.shape))
