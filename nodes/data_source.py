"""The data and the fresh model that every node of a run derives alike from its setup."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
from torch import nn

from nodes.codec import encode_tensors
from nodes.data.datasets import Dataset, load_dataset
from nodes.data.partition import Partition, Split, batch_indices, make_partition, split_indices
from nodes.learning.models import ModelProfile, build_model, profile
from nodes.learning.stages import OptimizerSettings, StageStack
from nodes.messages import ModelSpec, NodeSetup
from nodes.roles import label_array, pack_states

_counting = threading.Lock()


@dataclass(frozen=True)
class Material:
    """What a node trains and tests with.

    Attributes
    ----------
    partition
        Positions in ``split.train`` by client index.
    """

    dataset: Dataset
    split: Split
    partition: Partition
    profile: ModelProfile
    setup: NodeSetup

    def fresh_model(self) -> nn.ModuleList:
        """A model with the run's initial weights."""
        return build_model(
            self.setup.learning.model, self.dataset.input_shape, self.dataset.num_classes, self.setup.seed
        )

    def mini_batch(self, client_index: int, round_index: int) -> tuple[np.ndarray, np.ndarray]:
        """Images and labels of one client's mini-batch of one round."""
        own = self.split.train[self.partition.indices[client_index]]
        chosen = own[
            batch_indices(
                self.setup.seed, client_index, round_index, len(own), self.setup.learning.batch_size
            )
        ]
        return self.dataset.images[chosen], self.dataset.labels[chosen]

    def batch_size(self, client_index: int) -> int:
        """Samples of a client's mini-batch."""
        return min(self.setup.learning.batch_size, self.partition.sizes[client_index])

    def evaluation_data(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Images and labels of the ``validation`` or ``test`` split."""
        chosen = {"validation": self.split.validation, "test": self.split.test}[split]
        return self.dataset.images[chosen], self.dataset.labels[chosen]

    def model_spec(self) -> ModelSpec:
        """The profile as a message."""
        cost = self.profile
        state_bytes = tuple(
            sum(parts)
            for parts in zip(cost.parameter_bytes, cost.buffer_bytes, cost.optimiser_bytes, strict=True)
        )
        labels = label_array(np.zeros(1, np.int64), self.dataset.num_classes)
        # Measured on a message of one sample: what does not grow with the samples is description.
        ones = [np.zeros((1, *shape), np.float32) for shape in cost.smashed_shape]
        uplinks = [len(encode_tensors({"smashed": one, "labels": labels})) for one in ones]
        gradients = [len(encode_tensors({"gradient": one})) for one in ones]
        momentum = OptimizerSettings(0.0, self.setup.learning.momentum)
        stages = StageStack(self.fresh_model(), 0, len(state_bytes), momentum)
        return ModelSpec(
            tuple(map(float, cost.fp_flops)),
            tuple(map(float, cost.bp_flops)),
            cost.smashed_bits,
            cost.gradient_bits,
            cost.smashed_shape,
            state_bytes,
            packed_bytes=tuple(
                len(pack_states({index: stages.stage_state(index)})) for index in range(len(state_bytes))
            ),
            uplink_overhead_bytes=tuple(
                length - one.nbytes - labels.nbytes for length, one in zip(uplinks, ones, strict=True)
            ),
            gradient_overhead_bytes=tuple(
                length - one.nbytes for length, one in zip(gradients, ones, strict=True)
            ),
            label_bytes=labels.nbytes,
        )


def load_material(setup: NodeSetup) -> Material:
    """Load, split and partition the data, and count the model's cost.

    Raises
    ------
    ValueError, OSError
        The data cannot be read or do not suffice.
    """
    learning = setup.learning
    dataset = load_dataset(learning.data, learning.data_path)
    split = split_indices(len(dataset), learning.validation_fraction, learning.test_fraction, setup.seed)
    partition = make_partition(
        learning.partition,
        dataset.labels[split.train],
        len(setup.clients),
        setup.seed,
        dirichlet_alpha=learning.dirichlet_alpha,
        labels_per_client=learning.labels_per_client,
    )
    # Counting hooks into autograd for the whole process, where other nodes may be counting too.
    with _counting:
        model = build_model(learning.model, dataset.input_shape, dataset.num_classes, setup.seed)
        cost = profile(model, dataset.input_shape)
    return Material(dataset, split, partition, cost, setup)
