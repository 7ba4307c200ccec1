"""Which sample goes where: splits, shares of the clients, mini-batches.

Everything is a pure function of a seed and counters, so a run that resumes needs no sampler
state.  Orders come from the raw output of a Philox generator, whose stream NumPy guarantees.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np


class _Purpose(IntEnum):
    """Part of the Philox key, so that no two uses of a seed share a stream."""

    SPLIT = 1
    PARTITION = 2
    BATCHES = 3


def _philox(seed: int, purpose: _Purpose, client_index: int = 0, counter: int = 0) -> np.random.Philox:
    if not (0 <= seed < 2**64 and 0 <= client_index < 2**24 and 0 <= counter < 2**32):
        raise ValueError(
            f"drawing samples: seed {seed}, client {client_index} or counter {counter} is out of range "
            "(64, 24 and 32 bits, not negative)"
        )
    stream = purpose << 56 | client_index << 32 | counter
    return np.random.Philox(key=np.array([seed, stream], dtype=np.uint64))


def _permutation(source: np.random.Philox, size: int) -> np.ndarray:
    return np.argsort(np.asarray(source.random_raw(size), dtype=np.uint64), kind="stable")


@dataclass(frozen=True)
class Split:
    """Indices into a data set: three disjoint, ascending int64 arrays."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def split_indices(num_samples: int, validation_fraction: float, test_fraction: float, seed: int) -> Split:
    """A random split of ``0 .. num_samples - 1``; sizes are rounded, the rest is for training.

    Raises
    ------
    ValueError
        If a fraction is negative or a part would be empty (a fraction of 0 may be).
    """
    num_test = round(num_samples * test_fraction)
    num_validation = round(num_samples * validation_fraction)
    fractions_ok = validation_fraction >= 0 and test_fraction >= 0
    starved = (test_fraction > 0 and num_test == 0) or (validation_fraction > 0 and num_validation == 0)
    if not fractions_ok or starved or num_samples - num_test - num_validation < 1:
        raise ValueError(
            f"splitting {num_samples} samples with fractions {validation_fraction} (validation) and "
            f"{test_fraction} (test): every part needs a sample"
        )
    order = _permutation(_philox(seed, _Purpose.SPLIT), num_samples)
    return Split(
        train=np.sort(order[num_test + num_validation :]),
        validation=np.sort(order[num_test : num_test + num_validation]),
        test=np.sort(order[:num_test]),
    )


@dataclass(frozen=True)
class Partition:
    """The clients' shares: one ascending index array each, disjoint, none empty."""

    indices: tuple[np.ndarray, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """D_i."""
        return tuple(len(share) for share in self.indices)

    @property
    def weights(self) -> tuple[float, ...]:
        """lambda_i = D_i / sum D."""
        total = sum(self.sizes)
        return tuple(size / total for size in self.sizes)


def partition_iid(labels: np.ndarray, num_clients: int, seed: int) -> Partition:
    """Random shares whose sizes differ by at most one."""
    _check_clients(len(labels), num_clients)
    order = _permutation(_philox(seed, _Purpose.PARTITION), len(labels))
    return _partition(np.array_split(order, num_clients))


def partition_dirichlet(labels: np.ndarray, num_clients: int, seed: int, alpha: float) -> Partition:
    """Shares of every class drawn from a symmetric Dirichlet distribution; small `alpha`, unlike clients.

    A client left with nothing gets one sample of the largest share.
    """
    _check_clients(len(labels), num_clients)
    if not (alpha > 0 and math.isfinite(alpha)):
        raise ValueError(f"partitioning by label: Dirichlet alpha {alpha} must be positive")
    source = _philox(seed, _Purpose.PARTITION)
    generator = np.random.Generator(source)
    shares: list[list[np.ndarray]] = [[] for _ in range(num_clients)]
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        members = members[_permutation(source, len(members))]
        proportions = generator.dirichlet(np.full(num_clients, alpha))
        bounds = np.round(np.cumsum(proportions)[:-1] * len(members)).astype(np.int64)
        for share, part in zip(shares, np.split(members, bounds), strict=True):
            share.append(part)
    return _partition(_fill_empty([np.concatenate(share) for share in shares]))


def partition_labels(labels: np.ndarray, num_clients: int, seed: int, labels_per_client: int) -> Partition:
    """Each client sees `labels_per_client` classes; a class is divided evenly among those who see it.

    Classes are dealt in turn from a shuffled deck, so each is seen by someone if
    ``num_clients * labels_per_client`` reaches the number of classes; samples of a class that
    nobody sees are left out.
    """
    _check_clients(len(labels), num_clients)
    classes = np.unique(labels)
    if not 1 <= labels_per_client <= len(classes):
        raise ValueError(
            f"partitioning by label: {labels_per_client} labels per client, the data has {len(classes)}"
        )
    source = _philox(seed, _Purpose.PARTITION)
    deck = classes[_permutation(source, len(classes))]
    seen_by: dict[int, list[int]] = {}
    for client in range(num_clients):
        for turn in range(labels_per_client):
            label = int(deck[(client * labels_per_client + turn) % len(deck)])
            seen_by.setdefault(label, []).append(client)
    shares: list[list[np.ndarray]] = [[] for _ in range(num_clients)]
    for label, clients in sorted(seen_by.items()):
        members = np.flatnonzero(labels == label)
        members = members[_permutation(source, len(members))]
        for client, part in zip(clients, np.array_split(members, len(clients)), strict=True):
            shares[client].append(part)
    return _partition(_fill_empty([np.concatenate(share) for share in shares]))


def make_partition(
    kind: str,
    labels: np.ndarray,
    num_clients: int,
    seed: int,
    *,
    dirichlet_alpha: float = 0.5,
    labels_per_client: int = 2,
) -> Partition:
    """The partition called `kind` (``iid``, ``dirichlet`` or ``labels``) of the samples with these labels."""
    if kind == "iid":
        return partition_iid(labels, num_clients, seed)
    if kind == "dirichlet":
        return partition_dirichlet(labels, num_clients, seed, dirichlet_alpha)
    if kind == "labels":
        return partition_labels(labels, num_clients, seed, labels_per_client)
    raise ValueError(f"partition {kind!r} is unknown; known are iid, dirichlet, labels")


def batch_indices(
    seed: int, client_index: int, round_index: int, num_samples: int, batch_size: int
) -> np.ndarray:
    """Positions in a client's share of one round's mini-batch; int64 ``[min(batch_size, num_samples)]``.

    Round after round walks through an endless sequence of epochs, each a fresh permutation keyed
    by (seed, client, epoch): no sample is skipped, and only a mini-batch that spans two epochs
    may hold one twice.  A client with fewer samples than `batch_size` uses all of them.
    """
    if num_samples < 1 or batch_size < 1 or round_index < 0:
        raise ValueError(
            f"mini-batch of client {client_index}: round {round_index}, {num_samples} samples, batch size "
            f"{batch_size}; sizes must be positive"
        )
    size = min(batch_size, num_samples)
    position, end = round_index * size, (round_index + 1) * size
    parts = []
    while position < end:
        epoch, offset = divmod(position, num_samples)
        order = _permutation(_philox(seed, _Purpose.BATCHES, client_index, epoch), num_samples)
        part = order[offset : offset + end - position]
        parts.append(part)
        position += len(part)
    return np.concatenate(parts).astype(np.int64)


def _check_clients(num_samples: int, num_clients: int) -> None:
    if not 1 <= num_clients <= num_samples:
        raise ValueError(f"partitioning {num_samples} samples among {num_clients} clients: each needs one")


def _fill_empty(shares: list[np.ndarray]) -> list[np.ndarray]:
    for client, share in enumerate(shares):
        if len(share) == 0:
            largest = max(range(len(shares)), key=lambda other: len(shares[other]))
            if len(shares[largest]) < 2:
                raise ValueError(f"partitioning: client {client} gets no sample and no client can spare one")
            shares[client], shares[largest] = shares[largest][-1:], shares[largest][:-1]
    return shares


def _partition(shares: Sequence[np.ndarray]) -> Partition:
    return Partition(tuple(np.sort(share).astype(np.int64) for share in shares))
