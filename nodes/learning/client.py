"""The client's training role: its submodel forward, and backward from a received gradient.

No networking, no time: whoever moves the tensors calls this and measures it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from nodes.learning.models import run_stages
from nodes.learning.stages import OptimizerSettings, StageStack, StageState, as_array, as_tensor, cut_range


def assemble_gradient(
    broadcast: np.ndarray | None, own: np.ndarray | None, batch_size: int, broadcast_scale: float = 1.0
) -> np.ndarray:
    """One client's smashed-data gradient from its two downlink parts; shape ``[batch_size, ...]``.

    Parameters
    ----------
    broadcast : aggregated gradients ``[m, ...]``; the first ``batch_size - len(own)`` are used
    own : gradients of this client's remaining samples ``[batch_size - m_i, ...]``
    broadcast_scale : lambda_i if the run is `weighted` (the chain rule through the mean), else 1

    Raises
    ------
    ValueError
        If the parts do not add up to the mini-batch.
    """
    num_own = 0 if own is None else own.shape[0]
    num_shared = batch_size - num_own
    available = 0 if broadcast is None else broadcast.shape[0]
    if num_shared < 0 or num_shared > available:
        raise ValueError(
            f"assembling the gradient of {batch_size} samples: {num_own} own and {available} broadcast "
            "gradients do not fit; is it the gradient of another round?"
        )
    parts = []
    if broadcast is not None and num_shared > 0:
        shared = broadcast[:num_shared]
        parts.append(shared if broadcast_scale == 1.0 else shared * shared.dtype.type(broadcast_scale))
    if own is not None and num_own > 0:
        parts.append(own)
    return np.concatenate(parts)


class ClientTrainer:
    """Stages ``[0, cut)`` of a model with their optimiser, and at most one mini-batch in flight.

    Parameters
    ----------
    model : the whole model; this object takes it over and trains its first `cut` stages
    cut : number of stages on the client
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
        first, last = cut_range(cut, len(model), client=True)
        self.stack = StageStack(model, first, last, settings, device)
        self.stack.train()
        self.last_gradient_norm: float | None = None
        self._output: Tensor | None = None

    @property
    def cut(self) -> int:
        return self.stack.last

    @property
    def stages(self) -> nn.ModuleList:
        """The client-side submodel."""
        return nn.ModuleList(self.stack.stages)

    def forward(self, images: np.ndarray | Tensor) -> np.ndarray:
        """Smashed data ``[batch_size, ...]`` of `images`; the graph is kept for :meth:`backward`.

        A second call before :meth:`backward` abandons the first mini-batch.
        """
        x = as_tensor(images, self.stack.device).to(self.stack.dtype)
        self._output = run_stages(self.stack.stages, x)
        return as_array(self._output)

    def backward(self, gradient: np.ndarray | Tensor) -> None:
        """Back-propagate the smashed-data gradient of the last forward pass and update the submodel.

        Raises
        ------
        RuntimeError
            If no forward pass is waiting.
        ValueError
            If the gradient's shape is not that of the smashed data; the forward pass stays pending.
        """
        output = self._output
        if output is None:
            raise RuntimeError("client back-propagation: no forward pass is waiting; call forward first")
        received = as_tensor(gradient, self.stack.device).to(output.dtype)
        if received.shape != output.shape:
            raise ValueError(
                f"client back-propagation: the gradient has shape {tuple(received.shape)}, the smashed data "
                f"{tuple(output.shape)}; is it the gradient of another round?"
            )
        self._output = None
        self.last_gradient_norm = float(received.norm())
        self.stack.zero_grad()
        if output.requires_grad:  # else the submodel has no parameters to train
            output.backward(received)
            self.stack.apply_update()

    def discard(self) -> None:
        """Forget a forward pass whose gradient will not come; the submodel stays as it is."""
        self._output = None

    def stage_state(self, index: int) -> StageState:
        """Parameters, buffers and optimiser state of one owned stage (copies, on the CPU)."""
        return self.stack.stage_state(index)

    def load_stage_state(self, index: int, state: Mapping[str, Tensor | np.ndarray]) -> None:
        """Replace the state of one owned stage; ``ValueError`` if it does not fit."""
        self.stack.load_stage_state(index, state)

    def move_cut(self, cut: int, states: Mapping[int, Mapping[str, Tensor | np.ndarray]]) -> None:
        """Own stages ``[0, cut)`` from now on.

        Deeper: `states` holds the server's copy of every stage gained.  Shallower: `states` is
        empty, and the caller has read the lost stages with :meth:`stage_state` before.
        """
        first, last = cut_range(cut, len(self.stack.model), client=True)
        self.discard()
        self.stack.set_range(first, last, states)
