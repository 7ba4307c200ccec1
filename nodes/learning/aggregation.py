"""Aggregation in parallel split learning: slots, weights, merged states, and what it all costs.

Pure functions and small records; the roles that use them are :mod:`nodes.learning.client` and
:mod:`nodes.learning.server`.  Formulas follow the project's description of EPSL (a
reconstruction of arXiv 2303.15991, to be checked against the paper).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from nodes.learning.models import ModelProfile, check_cut


class Reading(str, Enum):
    """Which activations carry the aggregated back-propagation."""

    LAYERWISE = "layerwise"  # the mean of the clients' inputs, stage by stage
    INDIVIDUAL = "individual"  # one virtual sample, the mean smashed data of the slot
    MERGED = "merged"  # the virtual sample's own loss against the mean label


def num_aggregated(phi: float, batch_size: int) -> int:
    """m = ceil(phi b), the number of sample slots that are merged across clients.

    A product such as 0.1 x 30, an integer up to rounding, is not pushed to the next slot.

    Raises
    ------
    ValueError
        Unless ``0 <= phi <= 1``.
    """
    if not 0.0 <= phi <= 1.0:
        raise ValueError(f"aggregation ratio {phi}: it must lie between 0 (PSL) and 1")
    return min(batch_size, math.ceil(phi * batch_size - 1e-9))


@dataclass(frozen=True)
class SlotPlan:
    """Who shares which sample slot in one round.

    Slot j of a round is the j-th sample of every client's mini-batch.  b is the largest batch of
    the round and m = ceil(phi b).  A client with fewer than m samples takes part in the first
    b_i slots, has no samples of its own left over, and uses the first b_i broadcast gradients;
    the slots it lacks are merged over the others, with their weights renormalised.

    Attributes
    ----------
    clients : client indices, ascending; every sum over clients runs in this order
    batch_sizes : b_i of those clients
    weights : lambda_i renormalised over those clients (they sum to one)
    num_slots : m
    """

    clients: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    weights: tuple[float, ...]
    num_slots: int

    @classmethod
    def build(cls, batch_sizes: Mapping[int, int], weights: Mapping[int, float], phi: float) -> SlotPlan:
        """Plan a round for the clients in `batch_sizes`; `weights` may name more than took part."""
        clients = tuple(sorted(batch_sizes))
        if not clients:
            raise ValueError("planning a round: no client took part")
        for client in clients:
            weight = weights.get(client, 0.0)
            if batch_sizes[client] < 1 or not (weight > 0 and math.isfinite(weight)):
                raise ValueError(
                    f"planning a round: client {client} has {batch_sizes[client]} samples and weight "
                    f"{weights.get(client)}; both must be positive"
                )
        present = [weights[client] for client in clients]
        total = math.fsum(present)
        return cls(
            clients=clients,
            batch_sizes=tuple(batch_sizes[client] for client in clients),
            weights=tuple(weight / total for weight in present),
            num_slots=num_aggregated(phi, max(batch_sizes.values())),
        )

    @property
    def shared(self) -> tuple[int, ...]:
        """m_i = min(m, b_i), the merged slots of each client."""
        return tuple(min(self.num_slots, size) for size in self.batch_sizes)

    @property
    def own(self) -> tuple[int, ...]:
        """b_i - m_i, the samples of each client that keep their own gradient."""
        return tuple(size - shared for size, shared in zip(self.batch_sizes, self.shared, strict=True))

    def slot_weights(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        """Sum of lambda_i over the clients that have the slot; shape ``[num_slots]``."""
        total = torch.zeros(self.num_slots, dtype=dtype, device=device)
        for weight, shared in zip(self.weights, self.shared, strict=True):
            total[:shared] += weight
        return total

    def slot_sum(self, rows: Tensor, *, weighted: bool) -> Tensor:
        """Sum over clients, slot by slot, of rows that lie client after client.

        `rows` has shape ``[sum of m_i, ...]``; the result has ``[num_slots, ...]``.  With
        `weighted`, each client's rows are multiplied by lambda_i first.
        """
        out = torch.zeros((self.num_slots, *rows.shape[1:]), dtype=rows.dtype, device=rows.device)
        for weight, part in zip(self.weights, torch.split(rows, list(self.shared)), strict=True):
            out[: part.shape[0]] += part * weight if weighted else part
        return out

    def slot_mean(self, rows: Tensor) -> Tensor:
        """The lambda-weighted mean over the clients that have the slot; shape ``[num_slots, ...]``."""
        total = self.slot_weights(rows.dtype, rows.device)
        return self.slot_sum(rows, weighted=True) / total.reshape(-1, *[1] * (rows.dim() - 1))


def merge_stage_states(states: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
    """The weighted mean of diverged copies of one stage: parameters, momenta and float buffers.

    Weights are normalised.  Equal copies come back bit for bit, which is why differences to the
    first copy are averaged and not the copies.  An integer buffer (a batch counter) takes the
    largest value.

    Raises
    ------
    ValueError
        If there is no copy, the copies differ in names or shapes, or the weights do not fit.
    """
    if not states or len(states) != len(weights):
        raise ValueError(f"merging a stage: {len(states)} copies, {len(weights)} weights; give one each")
    total = math.fsum(weights)
    if min(weights) < 0 or not (total > 0 and math.isfinite(total)):
        raise ValueError(f"merging a stage: weights {list(weights)} must not be negative and not all zero")
    merged: dict[str, Tensor] = {}
    for name, base in states[0].items():
        copies = []
        for position, state in enumerate(states):
            if state.keys() != states[0].keys() or state[name].shape != base.shape:
                raise ValueError(
                    f"merging a stage: copy {position} differs from copy 0 in names or in the shape of {name}"
                )
            copies.append(state[name])
        if not base.is_floating_point():
            merged[name] = torch.stack(copies).amax(dim=0)
            continue
        reference = base.to(torch.float64)
        offset = torch.zeros_like(reference)
        for copy, weight in zip(copies[1:], weights[1:], strict=True):
            offset += (copy.to(torch.float64) - reference) * (weight / total)
        merged[name] = (reference + offset).to(base.dtype)
    return merged


@dataclass(frozen=True)
class ServerItems:
    """How many samples each part of the server-side submodel processes in one round.

    Attributes
    ----------
    forward_below, forward_last : real (or, for ``merged``, virtual) samples in the forward pass,
        in the stages below the last and in the last
    virtual_forward_below : further forward samples below the last stage that only exist to carry
        the aggregated gradient: the virtual samples of ``individual``, the recomputation of ``layerwise``
    backward_below, backward_last : samples back-propagated below the last stage and in it
    """

    forward_below: int
    forward_last: int
    virtual_forward_below: int
    backward_below: int
    backward_last: int


def server_items(plan: SlotPlan, reading: Reading) -> ServerItems:
    """Samples processed by the server: below the last stage m + sum(b_i - m_i) are back-propagated.

    ``layerwise`` and ``individual`` back-propagate all sum(b_i) samples through the last stage;
    ``merged`` never sees the real samples of merged slots.
    """
    everything = sum(plan.batch_sizes)
    reduced = plan.num_slots + sum(plan.own)
    if reading is Reading.MERGED:
        return ServerItems(reduced, reduced, 0, reduced, reduced)
    return ServerItems(everything, everything, plan.num_slots, reduced, everything)


def server_work(
    profile: ModelProfile,
    cut: int,
    batch_sizes: Sequence[int],
    phi: float,
    reading: Reading,
    *,
    count_virtual_forward: bool = True,
) -> tuple[float, float]:
    """Forward and backward work of the server in one round [FLOP].

    With L stages, cut j and N = sum(b_i)::

        FP = N (rho_L - rho_j)
        BP = (m + sum(b_i - m_i)) (omega_{L-1} - omega_j) + N (omega_L - omega_{L-1})

    and m (rho_{L-1} - rho_j) for the forward passes that only carry aggregated gradients: part
    of FP for ``individual``, of BP for ``layerwise``, because that is when this implementation
    executes them.  ``count_virtual_forward=False`` leaves them out, which is the bare formula.
    ``merged`` has m + sum(b_i - m_i) items throughout.
    """
    check_cut(cut, profile.num_stages)
    sizes = dict(enumerate(batch_sizes))
    plan = SlotPlan.build(sizes, dict.fromkeys(sizes, 1.0), phi)
    items = server_items(plan, reading)
    rho, omega, last = profile.fp_flops, profile.bp_flops, profile.num_stages
    below, top = rho[last - 1] - rho[cut], rho[last] - rho[last - 1]
    forward = float(items.forward_below * below + items.forward_last * top)
    backward = float(
        items.backward_below * (omega[last - 1] - omega[cut])
        + items.backward_last * (omega[last] - omega[last - 1])
    )
    if count_virtual_forward:
        virtual = float(items.virtual_forward_below * below)
        if reading is Reading.LAYERWISE:
            backward += virtual
        else:
            forward += virtual
    return forward, backward


def client_work(profile: ModelProfile, cut: int, batch_size: int) -> tuple[float, float]:
    """Forward and backward work of one client in one round, b rho_j and b omega_j [FLOP]."""
    check_cut(cut, profile.num_stages)
    return float(batch_size * profile.fp_flops[cut]), float(batch_size * profile.bp_flops[cut])
