"""The stages one training role owns: parameters, buffers and optimiser state, stage by stage.

Both roles hold the whole architecture and own a contiguous range of its stages, so a moved cut
is a changed range plus the state that crossed the air.  Stage indices are those of the whole
model, on either side, at any cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nodes.learning.models import check_cut

_BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

StageState = dict[str, Tensor]


@dataclass(frozen=True)
class OptimizerSettings:
    """Stochastic gradient descent: learning rate, momentum and weight decay."""

    learning_rate: float
    momentum: float = 0.0
    weight_decay: float = 0.0


class StageStack:
    """Stages ``[first, last)`` of a model, with one SGD optimiser whose state is kept per stage.

    A stage's state is a flat dictionary: ``param.NAME``, ``buffer.NAME`` and, with momentum,
    ``momentum.NAME`` (zeros before the first step, which to SGD is the same as none), so that
    its names, shapes and types never change during a run.
    """

    def __init__(
        self,
        model: nn.ModuleList,
        first: int,
        last: int,
        settings: OptimizerSettings,
        device: torch.device | str = "cpu",
    ) -> None:
        self.model = model.to(device)
        self.settings = settings
        self.device = torch.device(device)
        self.first = first
        self.last = last
        self._optimiser: torch.optim.SGD | None = None
        self._rebuild({})

    @property
    def stages(self) -> list[nn.Module]:
        """The owned modules, in order."""
        return list(self.model)[self.first : self.last]

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def has_batch_norm(self) -> bool:
        return any(isinstance(module, _BATCH_NORM) for stage in self.stages for module in stage.modules())

    def train(self) -> None:
        for stage in self.stages:
            stage.train()

    def zero_grad(self) -> None:
        if self._optimiser is not None:
            self._optimiser.zero_grad(set_to_none=True)

    def apply_update(self) -> None:
        """One SGD step from the gradients that the owned parameters have accumulated."""
        if self._optimiser is not None:
            self._optimiser.step()

    def set_learning_rate(self, learning_rate: float) -> None:
        self.settings = OptimizerSettings(learning_rate, self.settings.momentum, self.settings.weight_decay)
        if self._optimiser is not None:
            for group in self._optimiser.param_groups:
                group["lr"] = learning_rate

    def stage_state(self, index: int) -> StageState:
        """A copy, on the CPU, of one owned stage's parameters, buffers and optimiser state."""
        stage = self._stage(index)
        state: StageState = {}
        for name, parameter in stage.named_parameters():
            state[f"param.{name}"] = _to_host(parameter)
            if self.settings.momentum > 0:
                buffer = self._momentum_of(parameter)
                state[f"momentum.{name}"] = (
                    torch.zeros_like(parameter, device="cpu", requires_grad=False)
                    if buffer is None
                    else _to_host(buffer)
                )
        for name, tensor in stage.named_buffers():
            state[f"buffer.{name}"] = _to_host(tensor)
        return state

    def load_stage_state(self, index: int, state: Mapping[str, Tensor | np.ndarray]) -> None:
        """Replace one owned stage's parameters, buffers and optimiser state.

        Raises
        ------
        ValueError
            If names, shapes or types are not exactly those of :meth:`stage_state`; nothing is
            changed then.
        """
        stage = self._stage(index)
        incoming = {name: as_tensor(value, "cpu") for name, value in state.items()}
        expected = self.stage_state(index)
        if incoming.keys() != expected.keys():
            missing = sorted(expected.keys() - incoming.keys())
            unknown = sorted(incoming.keys() - expected.keys())
            raise ValueError(
                f"loading stage {index}: missing {missing}, unknown {unknown}; sender and receiver must "
                "use the same model and optimiser settings"
            )
        for name, tensor in expected.items():
            if incoming[name].shape != tensor.shape or incoming[name].dtype != tensor.dtype:
                raise ValueError(
                    f"loading stage {index}: {name} is {incoming[name].dtype} {tuple(incoming[name].shape)}, "
                    f"expected {tensor.dtype} {tuple(tensor.shape)}; do both ends use the same model?"
                )
        with torch.no_grad():
            for name, parameter in stage.named_parameters():
                parameter.copy_(incoming[f"param.{name}"])
                if self.settings.momentum > 0 and self._optimiser is not None:
                    buffer = incoming[f"momentum.{name}"].to(self.device, copy=True)
                    self._optimiser.state[parameter]["momentum_buffer"] = buffer
            for name, tensor in stage.named_buffers():
                tensor.copy_(incoming[f"buffer.{name}"])

    def states(self) -> dict[int, StageState]:
        """The states of all owned stages, by stage index."""
        return {index: self.stage_state(index) for index in range(self.first, self.last)}

    def set_range(
        self, first: int, last: int, states: Mapping[int, Mapping[str, Tensor | np.ndarray]]
    ) -> None:
        """Own another range of stages; stages gained take their state from `states`.

        Raises
        ------
        ValueError
            If the state of a gained stage is missing (unless it has none) or does not fit.
        """
        before = range(self.first, self.last)
        gained = [index for index in range(first, last) if index not in before]
        # A pool has no state, and an empty state leaves no trace in a flat bundle.
        needed = [index for index in gained if self.model[index].state_dict()]
        if not set(needed) <= states.keys() <= set(gained):
            raise ValueError(
                f"moving from stages {list(before)} to {list(range(first, last))}: states for stages "
                f"{needed} are needed, got {sorted(states)}"
            )
        kept = dict(self._optimiser.state) if self._optimiser is not None else {}
        old = (self.first, self.last)
        self.first, self.last = first, last
        self._rebuild(kept)
        try:
            for index in gained:
                self.load_stage_state(index, states.get(index, {}))
        except ValueError:
            self.first, self.last = old
            self._rebuild(kept)
            raise
        self.train()

    def _rebuild(self, kept: Mapping[Tensor, Any]) -> None:
        parameters = [parameter for stage in self.stages for parameter in stage.parameters()]
        # Stages left behind keep their module but not their gradients.
        self.model.zero_grad(set_to_none=True)
        self._optimiser = None
        if parameters:
            self._optimiser = torch.optim.SGD(
                parameters,
                lr=self.settings.learning_rate,
                momentum=self.settings.momentum,
                weight_decay=self.settings.weight_decay,
            )
            for parameter in parameters:
                if parameter in kept:
                    self._optimiser.state[parameter] = kept[parameter]

    def _momentum_of(self, parameter: Tensor) -> Tensor | None:
        if self._optimiser is None or parameter not in self._optimiser.state:
            return None
        buffer: Tensor | None = self._optimiser.state[parameter].get("momentum_buffer")
        return buffer

    def _stage(self, index: int) -> nn.Module:
        if not self.first <= index < self.last:
            raise ValueError(
                f"stage {index} is not on this side of the cut, which owns {self.first} to {self.last - 1}"
            )
        return self.model[index]


def cut_range(cut: int, num_stages: int, *, client: bool) -> tuple[int, int]:
    """The stages ``[first, last)`` that the client (or the server) owns at this cut."""
    check_cut(cut, num_stages)
    return (0, cut) if client else (cut, num_stages)


def as_tensor(array: Tensor | np.ndarray, device: torch.device | str) -> Tensor:
    """The array as a tensor on `device`; a read-only array is copied, because autograd may write."""
    if isinstance(array, Tensor):
        return array.detach().to(device)
    if not array.flags.writeable or not array.flags.c_contiguous:
        array = np.array(array, order="C", copy=True)
    return torch.from_numpy(array).to(device)


def as_array(tensor: Tensor) -> np.ndarray:
    """A copy of the tensor's values as a C-contiguous array in host memory."""
    # A copy, so that what a caller does to it cannot reach a tensor that autograd keeps.
    return np.array(tensor.detach().cpu().numpy(), order="C", copy=True)


@contextmanager
def frozen_statistics(stages: Sequence[nn.Module], num_samples: int) -> Iterator[None]:
    """Batch norm inside neither updates its running statistics nor counts a batch.

    It normalises with the statistics of the batch at hand; a batch of one has none, so it uses
    the running ones.
    """
    touched = [module for stage in stages for module in stage.modules() if isinstance(module, _BATCH_NORM)]
    saved = [(module.training, module.track_running_stats) for module in touched]
    try:
        for module in touched:
            if num_samples > 1:
                module.track_running_stats = False
            else:
                module.eval()
        yield
    finally:
        for module, (training, tracking) in zip(touched, saved, strict=True):
            module.train(training)
            module.track_running_stats = tracking


def flatten_states(states: Mapping[int, Mapping[str, Tensor]]) -> dict[str, np.ndarray]:
    """Stage states as one flat bundle of arrays, named ``INDEX/NAME``, for the codec or a weights file."""
    return {
        f"{index}/{name}": as_array(tensor)
        for index in sorted(states)
        for name, tensor in states[index].items()
    }


def unflatten_states(bundle: Mapping[str, np.ndarray]) -> dict[int, StageState]:
    """Undo :func:`flatten_states`, except that a stage without any state is absent.

    Raises
    ------
    ValueError
        For a name that does not start with a stage index.
    """
    states: dict[int, StageState] = {}
    for full_name, array in bundle.items():
        index, separator, name = full_name.partition("/")
        if not separator or not (index.isascii() and index.isdigit()) or not name:
            raise ValueError(
                f"reading stage states: the name {full_name!r} is not of the form INDEX/NAME; "
                "was the bundle made by flatten_states?"
            )
        states.setdefault(int(index), {})[name] = as_tensor(array, "cpu")
    return states


def _to_host(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()
