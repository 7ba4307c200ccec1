"""The server's training role: forward over all clients, back-propagation with aggregation.

Three readings of the aggregated back-propagation, which the source leaves open:

``layerwise``
    The gradients that the last stage returns for real samples are merged slot by slot; every
    stage below back-propagates the merged gradient at the lambda-weighted mean of the clients'
    inputs to that stage (one forward recomputation of m items per stage).
``individual``
    The same merged gradients, back-propagated through one virtual sample per slot: the mean
    smashed data.
``merged``
    The loss of the virtual sample itself, against the mean one-hot label.  The real samples of
    merged slots are never forwarded.

The server-side submodel minimises sum_i lambda_i L_i with L_i the mean loss of client i's
mini-batch.  A client is sent the gradient of its own L_i; a broadcast gradient is that of the
merged loss with respect to the mean smashed data.

Batch norm sees the real samples of a round in one pass; passes of virtual samples neither read
nor change running statistics (a lone virtual sample reads them; ``merged`` with no real samples
left updates them, or nothing would).  Because the statistics couple samples, a server-side
submodel with batch norm keeps the whole batch in its graph and back-propagates zeros for merged
slots: results follow the definition, but the measured compute does not shrink with phi.
Without batch norm merged slots are forwarded without a graph, and the saving is real.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from nodes.learning.aggregation import Reading, SlotPlan
from nodes.learning.models import run_stages
from nodes.learning.stages import (
    OptimizerSettings,
    StageStack,
    StageState,
    as_array,
    as_tensor,
    cut_range,
    frozen_statistics,
)


@dataclass(frozen=True)
class ServerStep:
    """What one round of the server produced.

    Attributes
    ----------
    loss : sum_i lambda_i L_i before the update
    losses : L_i by client; for ``merged``, of the samples that kept their own slot (absent if none)
    broadcast : aggregated smashed-data gradients ``[m, ...]``, None for m = 0
    own : by client, the gradients of its other samples ``[b_i - m_i, ...]``
    plan : the slots and weights of this round
    """

    loss: float
    losses: dict[int, float]
    broadcast: np.ndarray | None
    own: dict[int, np.ndarray]
    plan: SlotPlan


@dataclass
class _Pending:
    """A forward pass that waits for its backward pass."""

    plan: SlotPlan
    reading: Reading
    total: Tensor
    losses: dict[int, float]
    shared_inputs: list[Tensor] = field(default_factory=list)  # per stage, of merged slots
    leaf: Tensor | None = None  # smashed data with a graph: own rows, behind the merged ones if one pass
    leaf_output: Tensor | None = None  # what the last stage gets from `leaf`
    one_pass: bool = False
    last_input: Tensor | None = None  # detached input of the last stage, merged rows first
    virtual: Tensor | None = None  # mean smashed data
    virtual_output: Tensor | None = None


class ServerTrainer:
    """Stages ``[cut, L)`` of a model with their optimiser, and at most one round in flight.

    Parameters
    ----------
    model : the whole model; this object takes it over and trains the stages from `cut` on
    cut : number of stages on the clients
    settings : optimiser settings
    device : where to compute
    """

    def __init__(
        self,
        model: nn.ModuleList,
        cut: int,
        settings: OptimizerSettings,
        device: torch.device | str = "cpu",
    ) -> None:
        first, last = cut_range(cut, len(model), client=False)
        self.stack = StageStack(model, first, last, settings, device)
        self.stack.train()
        self._pending: _Pending | None = None

    @property
    def cut(self) -> int:
        return self.stack.first

    @property
    def stages(self) -> nn.ModuleList:
        """The server-side submodel."""
        return nn.ModuleList(self.stack.stages)

    def step(
        self,
        smashed: Mapping[int, np.ndarray | Tensor],
        labels: Mapping[int, np.ndarray | Tensor],
        weights: Mapping[int, float],
        phi: float,
        reading: Reading = Reading.LAYERWISE,
        weighted: bool = False,
    ) -> ServerStep:
        """One round: :meth:`forward` and :meth:`backward`."""
        self.forward(smashed, labels, weights, phi, reading)
        return self.backward(weighted)

    def forward(
        self,
        smashed: Mapping[int, np.ndarray | Tensor],
        labels: Mapping[int, np.ndarray | Tensor],
        weights: Mapping[int, float],
        phi: float,
        reading: Reading = Reading.LAYERWISE,
    ) -> float:
        """The training loss of the clients that took part; what :meth:`backward` needs is kept.

        Parameters
        ----------
        smashed : by client index, ``[b_i, ...]``
        labels : by client index, class numbers ``[b_i]``
        weights : lambda by client index; renormalised over the clients in `smashed`
        phi : aggregation ratio; 0 is PSL, whatever the reading

        Raises
        ------
        ValueError
            If smashed data and labels do not belong together.
        """
        reading = Reading(reading)
        if smashed.keys() != labels.keys():
            raise ValueError(
                f"server forward pass: smashed data of clients {sorted(smashed)}, labels of {sorted(labels)}"
            )
        tensors = {
            client: as_tensor(array, self.stack.device).to(self.stack.dtype)
            for client, array in smashed.items()
        }
        targets = {
            client: as_tensor(array, self.stack.device).to(torch.int64) for client, array in labels.items()
        }
        for client, tensor in tensors.items():
            if targets[client].shape != tensor.shape[:1]:
                raise ValueError(
                    f"server forward pass: client {client} sent {tensor.shape[0]} samples and labels of "
                    f"shape {tuple(targets[client].shape)}; one label per sample is needed"
                )
        plan = SlotPlan.build({client: len(tensor) for client, tensor in tensors.items()}, weights, phi)
        inputs = [tensors[client] for client in plan.clients]
        classes = [targets[client] for client in plan.clients]
        if reading is Reading.MERGED and plan.num_slots > 0:
            self._pending = self._forward_merged(plan, inputs, classes)
        else:
            self._pending = self._forward_real(plan, reading, inputs, classes)
        return float(self._pending.total.detach())

    def backward(self, weighted: bool = False) -> ServerStep:
        """Back-propagate the pending round, update the submodel, and return the clients' gradients.

        With `weighted`, own gradients keep their factor lambda_i, and a client multiplies the
        broadcast ones by its lambda_i (see :func:`nodes.learning.client.assemble_gradient`).

        Raises
        ------
        RuntimeError
            If no forward pass is waiting.
        """
        pending = self._pending
        if pending is None:
            raise RuntimeError("server back-propagation: no forward pass is waiting; call forward first")
        self._pending = None
        plan = pending.plan
        self.stack.zero_grad()
        pending.total.backward()
        broadcast = pending.virtual.grad if pending.virtual is not None else None
        if pending.last_input is not None:
            broadcast = self._backward_below(pending)
        own = self._own_gradients(pending, weighted)
        self.stack.apply_update()
        if broadcast is not None:
            # What flowed down carries the slot's weight; a slot that every client has weighs one.
            weight = plan.slot_weights(broadcast.dtype, broadcast.device)
            broadcast = broadcast / weight.reshape(-1, *[1] * (broadcast.dim() - 1))
        return ServerStep(
            loss=float(pending.total.detach()),
            losses=pending.losses,
            broadcast=None if broadcast is None else as_array(broadcast),
            own={client: as_array(gradient) for client, gradient in zip(plan.clients, own, strict=True)},
            plan=plan,
        )

    def discard(self) -> None:
        """Forget a forward pass that will not be completed."""
        self._pending = None

    def stage_state(self, index: int) -> StageState:
        """Parameters, buffers and optimiser state of one owned stage (copies, on the CPU)."""
        return self.stack.stage_state(index)

    def load_stage_state(self, index: int, state: Mapping[str, Tensor | np.ndarray]) -> None:
        """Replace the state of one owned stage; ``ValueError`` if it does not fit."""
        self.stack.load_stage_state(index, state)

    def move_cut(self, cut: int, states: Mapping[int, Mapping[str, Tensor | np.ndarray]]) -> None:
        """Own stages ``[cut, L)`` from now on.

        Shallower: `states` holds the merged copies of the stages gained (see
        :func:`nodes.learning.aggregation.merge_stage_states`).  Deeper: `states` is empty, and
        the caller has read the lost stages with :meth:`stage_state` before.
        """
        first, last = cut_range(cut, len(self.stack.model), client=False)
        self.discard()
        self.stack.set_range(first, last, states)

    # ------------------------------------------------------------------ the two forward passes

    def _forward_real(
        self, plan: SlotPlan, reading: Reading, inputs: Sequence[Tensor], classes: Sequence[Tensor]
    ) -> _Pending:
        *below, last = self.stack.stages
        shared = torch.cat([x[:count] for x, count in zip(inputs, plan.shared, strict=True)])
        own = torch.cat([x[count:] for x, count in zip(inputs, plan.shared, strict=True)])
        num_shared = shared.shape[0]
        keep_inputs = reading is Reading.LAYERWISE and num_shared > 0
        shared_inputs: list[Tensor] = []
        one_pass = num_shared == 0 or self.stack.has_batch_norm()
        if one_pass:
            leaf = torch.cat([shared, own]).requires_grad_()
            output = leaf
            for stage in below:
                if keep_inputs:
                    shared_inputs.append(output[:num_shared].detach())
                output = stage(output)
            last_input = output.detach().requires_grad_()
        else:
            leaf = own.requires_grad_()
            with torch.no_grad():
                x = shared
                for stage in below:
                    if keep_inputs:
                        shared_inputs.append(x)
                    x = stage(x)
            # Every sample may be shared (phi = 1); stages need not accept an empty batch.
            output = run_stages(below, leaf) if len(leaf) else x[:0]
            last_input = torch.cat([x, output.detach()]).requires_grad_()
        virtual = virtual_output = None
        if reading is Reading.INDIVIDUAL and num_shared > 0:
            virtual = plan.slot_mean(shared).requires_grad_()
            with frozen_statistics(below, len(virtual)):
                virtual_output = run_stages(below, virtual)
        logits = last(last_input)
        target = torch.cat(
            [y[:count] for y, count in zip(classes, plan.shared, strict=True)]
            + [y[count:] for y, count in zip(classes, plan.shared, strict=True)]
        )
        per_sample = cross_entropy(logits, target, reduction="none")
        total = (per_sample * self._sample_weights(plan, per_sample)).sum()
        sums = [part.detach().sum() for part in torch.split(per_sample, [*plan.shared, *plan.own])]
        num_clients = len(plan.clients)
        losses = {
            client: float(sums[i] + sums[num_clients + i]) / plan.batch_sizes[i]
            for i, client in enumerate(plan.clients)
        }
        return _Pending(
            plan=plan,
            reading=reading,
            total=total,
            losses=losses,
            shared_inputs=shared_inputs,
            leaf=leaf,
            leaf_output=output,
            one_pass=one_pass,
            last_input=last_input,
            virtual=virtual,
            virtual_output=virtual_output,
        )

    def _forward_merged(
        self, plan: SlotPlan, inputs: Sequence[Tensor], classes: Sequence[Tensor]
    ) -> _Pending:
        stages = self.stack.stages
        shared = torch.cat([x[:count] for x, count in zip(inputs, plan.shared, strict=True)])
        leaf = torch.cat([x[count:] for x, count in zip(inputs, plan.shared, strict=True)]).requires_grad_()
        virtual = plan.slot_mean(shared).requires_grad_()
        if len(leaf):
            with frozen_statistics(stages, len(virtual)):
                virtual_logits = run_stages(stages, virtual)
        else:
            virtual_logits = run_stages(stages, virtual)
        num_classes = virtual_logits.shape[1]
        shared_classes = torch.cat([y[:count] for y, count in zip(classes, plan.shared, strict=True)])
        label = plan.slot_mean(one_hot(shared_classes, num_classes).to(virtual.dtype))
        per_slot = cross_entropy(virtual_logits, label, reduction="none")
        sample_weights = self._sample_weights(plan, per_slot)
        num_shared = shared.shape[0]
        slot_weights = plan.slot_sum(sample_weights[:num_shared], weighted=False)
        total = (per_slot * slot_weights).sum()
        losses: dict[int, float] = {}
        if len(leaf):
            target = torch.cat([y[count:] for y, count in zip(classes, plan.shared, strict=True)])
            per_sample = cross_entropy(run_stages(stages, leaf), target, reduction="none")
            total = total + (per_sample * sample_weights[num_shared:]).sum()
            parts = torch.split(per_sample.detach(), list(plan.own))
            losses = {
                client: float(part.mean())
                for client, part in zip(plan.clients, parts, strict=True)
                if len(part)
            }
        return _Pending(plan, Reading.MERGED, total, losses, leaf=leaf, virtual=virtual)

    def _sample_weights(self, plan: SlotPlan, like: Tensor) -> Tensor:
        """lambda_i / b_i for every sample: merged rows client after client, then own rows."""
        per_client = torch.tensor(
            [weight / size for weight, size in zip(plan.weights, plan.batch_sizes, strict=True)],
            dtype=like.dtype,
            device=like.device,
        )
        counts = torch.tensor([*plan.shared, *plan.own], device=like.device)
        return torch.cat([per_client, per_client]).repeat_interleave(counts)

    # ---------------------------------------------------------------------- the way back down

    def _backward_below(self, pending: _Pending) -> Tensor | None:
        """Back-propagate through the stages below the last; the merged gradient with its slot weight."""
        plan = pending.plan
        assert pending.last_input is not None
        assert pending.last_input.grad is not None
        assert pending.leaf is not None
        assert pending.leaf_output is not None
        gradient = pending.last_input.grad
        num_shared = sum(plan.shared)
        if not pending.one_pass:
            if len(pending.leaf):
                pending.leaf_output.backward(gradient[num_shared:])
        elif num_shared == 0:
            pending.leaf_output.backward(gradient)
        else:
            kept = gradient.clone()
            kept[:num_shared] = 0
            pending.leaf_output.backward(kept)
        if num_shared == 0:
            return None
        merged = plan.slot_sum(gradient[:num_shared], weighted=False)
        if pending.reading is Reading.INDIVIDUAL:
            assert pending.virtual is not None
            assert pending.virtual_output is not None
            pending.virtual_output.backward(merged)
            return pending.virtual.grad
        below = self.stack.stages[:-1]
        for stage, rows in zip(reversed(below), reversed(pending.shared_inputs), strict=True):
            mean_input = plan.slot_mean(rows).requires_grad_()
            with frozen_statistics([stage], plan.num_slots):
                stage(mean_input).backward(merged)
            assert mean_input.grad is not None
            merged = mean_input.grad
        return merged

    def _own_gradients(self, pending: _Pending, weighted: bool) -> list[Tensor]:
        plan, leaf = pending.plan, pending.leaf
        assert leaf is not None
        gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        rows = gradient[sum(plan.shared) :] if pending.one_pass else gradient
        parts = torch.split(rows, list(plan.own))
        if weighted:
            return list(parts)
        return [part / weight for part, weight in zip(parts, plan.weights, strict=True)]


@dataclass(frozen=True)
class EvaluationResult:
    """Accuracy and mean loss of each composite: client i's submodel below the server's."""

    accuracies: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def accuracy(self) -> float:
        """Mean over the composites; the project's ``test_accuracy``."""
        return sum(self.accuracies) / len(self.accuracies)

    @property
    def worst_accuracy(self) -> float:
        return min(self.accuracies)

    @property
    def loss(self) -> float:
        return sum(self.losses) / len(self.losses)


def evaluate(
    client_stages_list: Sequence[Sequence[nn.Module] | nn.ModuleList],
    server_stages: Sequence[nn.Module] | nn.ModuleList,
    images: np.ndarray | Tensor,
    labels: np.ndarray | Tensor,
    batch_size: int = 512,
) -> EvaluationResult:
    """Accuracy and loss of every composite on ``images [num_samples, ...]``, changing nothing.

    Raises
    ------
    ValueError
        If there is nothing to evaluate.
    """
    if not client_stages_list or len(images) == 0:
        raise ValueError(f"evaluating {len(client_stages_list)} submodels on {len(images)} samples")
    modules = [stage for stages in (*client_stages_list, server_stages) for stage in stages]
    parameter = next(p for stage in modules for p in stage.parameters())
    modes = [stage.training for stage in modules]
    x_all = as_tensor(images, parameter.device).to(parameter.dtype)
    y_all = as_tensor(labels, parameter.device).to(torch.int64)
    accuracies, losses = [], []
    try:
        for stage in modules:
            stage.eval()
        with torch.no_grad():
            for client_stages in client_stages_list:
                correct, loss = 0, 0.0
                for x, y in zip(torch.split(x_all, batch_size), torch.split(y_all, batch_size), strict=True):
                    logits = run_stages(server_stages, run_stages(client_stages, x))
                    correct += int((logits.argmax(dim=1) == y).sum())
                    loss += float(cross_entropy(logits, y, reduction="sum"))
                accuracies.append(correct / len(y_all))
                losses.append(loss / len(y_all))
    finally:
        for stage, mode in zip(modules, modes, strict=True):
            stage.train(mode)
    return EvaluationResult(tuple(accuracies), tuple(losses))
