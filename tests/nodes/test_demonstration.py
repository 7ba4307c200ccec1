"""The recommended hyper-parameters really train the digits, with aggregation at the default ratio."""

from __future__ import annotations

import numpy as np
from torch.nn import ModuleList

from nodes.data.datasets import load_dataset
from nodes.data.partition import batch_indices, partition_iid, split_indices
from nodes.learning.aggregation import Reading
from nodes.learning.client import ClientTrainer
from nodes.learning.models import build_model
from nodes.learning.server import ServerTrainer, evaluate
from nodes.learning.stages import OptimizerSettings
from tests.nodes.training import Group


def test_five_clients_learn_the_digits_within_a_hundred_rounds() -> None:
    seed, num_clients, cut, batch_size = 1, 5, 1, 32
    data = load_dataset("digits")
    split = split_indices(len(data), 0.1, 0.2, seed)
    partition = partition_iid(data.labels[split.train], num_clients, seed)

    def fresh() -> ModuleList:
        return build_model("digits-cnn", data.input_shape, data.num_classes, seed)

    group = Group(
        [ClientTrainer(fresh(), cut, OptimizerSettings(0.01, 0.9)) for _ in range(num_clients)],
        ServerTrainer(fresh(), cut, OptimizerSettings(0.04, 0.9)),
    )
    # 539 samples: the 180 for validation alone scatter by two points.
    held_out = np.concatenate([split.validation, split.test])
    accuracies = []
    for r in range(100):
        batches = []
        for i, share in enumerate(partition.indices):
            chosen = split.train[share[batch_indices(seed, i, r, len(share), batch_size)]]
            batches.append((data.images[chosen], data.labels[chosen]))
        group.round(batches, partition.weights, 0.5, Reading.LAYERWISE)
        if r in (79, 89, 99):
            result = evaluate(
                [c.stages for c in group.clients],
                group.server.stages,
                data.images[held_out],
                data.labels[held_out],
            )
            accuracies.append(result.accuracy)
    assert sum(accuracies) / len(accuracies) >= 0.95
