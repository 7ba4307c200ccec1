"""Split models and what they cost.

A model is an ordered ``nn.ModuleList`` of stages.  Every boundary between two stages is a cut
layer, counted as the number of stages on the client (1 .. L-1), and carries exactly one tensor:
residual blocks are never cut open, because their skip tensor would have to travel as well.

:func:`profile` counts FLOPs, tensor sizes and state sizes from the model itself, so that a
latency model never works from figures typed in by hand.  Training is in
:mod:`nodes.learning.client` and :mod:`nodes.learning.server`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

MODEL_NAMES = ("digits-cnn", "mlp", "resnet18")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm around a skip connection (1x1 where shapes differ).

    Input ``[num_samples, in_channels, height, width]``, output
    ``[num_samples, out_channels, ceil(height / stride), ceil(width / stride)]``.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.skip = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + self.skip(x))


def _digits_cnn(input_shape: tuple[int, ...], num_classes: int) -> list[nn.Module]:
    channels, height, width = _image_shape("digits-cnn", input_shape)
    height2, width2 = math.ceil(height / 2), math.ceil(width / 2)
    height4, width4 = math.ceil(height2 / 2), math.ceil(width2 / 2)
    # Narrow where a cut can be, wide inside the stage that is normally the server's: client-side
    # submodels are not averaged, so what generalises has to be learnt behind the cut, and a deep
    # cut costs accuracy.  No batch norm, so that aggregation saves the server real work.
    return [
        nn.Sequential(nn.Conv2d(channels, 6, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.ReLU()),
        nn.Sequential(
            nn.Conv2d(8, 96, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(96, 96, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(96 * height4 * width4, 64),
            nn.ReLU(),
        ),
        nn.Linear(64, num_classes),
    ]


def _mlp(input_shape: tuple[int, ...], num_classes: int) -> list[nn.Module]:
    num_inputs = math.prod(input_shape)
    return [
        nn.Sequential(nn.Flatten(), nn.Linear(num_inputs, 48), nn.Tanh()),
        nn.Sequential(nn.Linear(48, 32), nn.Tanh()),
        nn.Sequential(nn.Linear(32, 24), nn.Tanh()),
        nn.Linear(24, num_classes),
    ]


def _resnet18(input_shape: tuple[int, ...], num_classes: int) -> list[nn.Module]:
    channels, _, _ = _image_shape("resnet18", input_shape)
    stages: list[nn.Module] = [
        nn.Sequential(nn.Conv2d(channels, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()),
        nn.MaxPool2d(3, 2, 1),
    ]
    width = 64
    for out_channels, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        stages += [BasicBlock(width, out_channels, stride), BasicBlock(out_channels, out_channels)]
        width = out_channels
    stages += [nn.AdaptiveAvgPool2d(1), nn.Sequential(nn.Flatten(), nn.Linear(width, num_classes))]
    return stages


_FACTORIES: dict[str, Callable[[tuple[int, ...], int], list[nn.Module]]] = {
    "digits-cnn": _digits_cnn,
    "mlp": _mlp,
    "resnet18": _resnet18,
}


def _image_shape(name: str, input_shape: tuple[int, ...]) -> tuple[int, int, int]:
    if len(input_shape) != 3:
        raise ValueError(
            f"building model {name!r}: input shape {input_shape} has {len(input_shape)} dimensions; "
            "give (channels, height, width)"
        )
    return input_shape[0], input_shape[1], input_shape[2]


def build_model(
    name: str,
    input_shape: Sequence[int],
    num_classes: int,
    seed: int,
    dtype: torch.dtype = torch.float32,
) -> nn.ModuleList:
    """A freshly initialised model as an ordered list of stages; the same arguments give the same bits.

    The weights come from a generator of this call alone, and the global generator is left as it
    was.  Values are drawn in float64 and rounded to `dtype`, so that a float32 and a float64
    model of one seed agree.

    Parameters
    ----------
    name : one of ``MODEL_NAMES``
    input_shape : shape of one sample, ``(channels, height, width)``
    num_classes : number of outputs of the last stage
    seed : seed of the initial weights, 0 .. 2**63 - 1

    Raises
    ------
    ValueError
        For an unknown name or an impossible shape.
    """
    factory = _FACTORIES.get(name)
    if factory is None:
        raise ValueError(f"building a model: {name!r} is unknown; known are {', '.join(MODEL_NAMES)}")
    shape = tuple(int(size) for size in input_shape)
    if not shape or min(shape) < 1 or num_classes < 2:
        raise ValueError(
            f"building model {name!r}: input shape {shape} and {num_classes} classes; sizes must be "
            "positive and there must be at least two classes"
        )
    # Constructors draw from the global generator; what they draw is thrown away below.
    with torch.random.fork_rng(devices=[]):
        model = nn.ModuleList(factory(shape, num_classes))
    model = model.to(dtype)
    _initialise(model, seed)
    return model


def _initialise(model: nn.ModuleList, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    layers = [layer for layer in model.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    with torch.no_grad():
        for layer in layers:
            weight = layer.weight
            fan_in = weight[0].numel()
            # He's variance behind a rectifier; the classifier starts small, near uniform outputs.
            scale = math.sqrt((1.0 if layer is layers[-1] else 2.0) / fan_in)
            drawn = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            weight.copy_(drawn * scale)
            if layer.bias is not None:
                layer.bias.zero_()


def split(model: nn.ModuleList, cut: int) -> tuple[nn.ModuleList, nn.ModuleList]:
    """The first `cut` stages and the rest, sharing the model's own modules (no copies).

    Raises
    ------
    ValueError
        Unless ``1 <= cut <= L - 1``.
    """
    check_cut(cut, len(model))
    stages = list(model)
    return nn.ModuleList(stages[:cut]), nn.ModuleList(stages[cut:])


def check_cut(cut: int, num_stages: int) -> None:
    """Raise ``ValueError`` unless both sides of the cut keep at least one stage."""
    if not 1 <= cut < num_stages:
        raise ValueError(
            f"cutting a model of {num_stages} stages after stage {cut}: both sides need a stage; "
            f"choose a cut layer from 1 to {num_stages - 1}"
        )


def run_stages(stages: Sequence[nn.Module] | nn.ModuleList, x: Tensor) -> Tensor:
    """The output of the stages applied in order."""
    for stage in stages:
        x = stage(x)
    return x


@dataclass(frozen=True)
class ModelProfile:
    """Cost of a model per sample, indexed by cut layer j = 0 .. L (0: the bare input, L: the whole model).

    Attributes
    ----------
    fp_flops : rho_j, forward FLOPs of stages 1..j [FLOP per sample], cumulative, length L + 1
    bp_flops : omega_j, backward FLOPs of stages 1..j [FLOP per sample], cumulative, length L + 1
    smashed_shape : shape of one sample's tensor at boundary j, length L + 1
    smashed_bits : psi_j [bit per sample], length L + 1
    gradient_bits : chi_j [bit per sample], length L + 1
    parameter_bytes, buffer_bytes, optimiser_bytes : of each stage [byte], length L

    Notes
    -----
    One multiply-accumulate is two FLOPs.  Counted are convolutions and matrix products, forward
    and backward (not "twice the forward"); the first stage has no gradient with respect to its
    input to compute.  Rectifiers, batch norm, additions and pooling are *not* counted, except
    that a stage with nothing countable (a pool) is charged one FLOP per output element forward
    and one per input element backward, so that no stage is free.  Bits are those of the raw
    tensor, without the codec's header.  Optimiser state is one momentum value per parameter.
    """

    fp_flops: tuple[int, ...]
    bp_flops: tuple[int, ...]
    smashed_shape: tuple[tuple[int, ...], ...]
    smashed_bits: tuple[int, ...]
    gradient_bits: tuple[int, ...]
    parameter_bytes: tuple[int, ...]
    buffer_bytes: tuple[int, ...]
    optimiser_bytes: tuple[int, ...]

    @property
    def num_stages(self) -> int:
        return len(self.parameter_bytes)


def profile(model: nn.ModuleList, input_shape: Sequence[int]) -> ModelProfile:
    """Count what each cut of `model` costs for one sample of `input_shape`.

    The model is left untouched: counting happens on a copy without storage, so it costs neither
    memory nor arithmetic.  See :class:`ModelProfile` for what is counted.
    """
    shadow = copy.deepcopy(model).to("meta")
    # Batch norm in training mode refuses a single value per channel, and it is not counted anyway.
    shadow.eval()
    dtype = next(model.parameters()).dtype
    x = torch.empty((1, *input_shape), dtype=dtype, device="meta")
    bits = x.element_size() * 8
    fp, bp = [0], [0]
    shapes: list[tuple[int, ...]] = [tuple(x.shape[1:])]
    for index, stage in enumerate(shadow):
        x = x.detach().requires_grad_(index > 0)
        with FlopCounterMode(display=False) as forward_counter:
            y = stage(x)
        leaves = [parameter for parameter in stage.parameters() if parameter.requires_grad]
        wanted = [x, *leaves] if index > 0 else leaves
        backward_flops = 0
        if wanted:
            with FlopCounterMode(display=False) as backward_counter:
                torch.autograd.grad(y, wanted, torch.empty_like(y))
            backward_flops = backward_counter.get_total_flops()
        forward_flops = forward_counter.get_total_flops()
        if forward_flops == 0:
            forward_flops, backward_flops = y.numel(), x.numel()
        fp.append(fp[-1] + forward_flops)
        bp.append(bp[-1] + backward_flops)
        shapes.append(tuple(y.shape[1:]))
        x = y
    smashed_bits = tuple(math.prod(shape) * bits for shape in shapes)
    parameter_bytes = tuple(_num_bytes(stage.parameters()) for stage in model)
    return ModelProfile(
        fp_flops=tuple(fp),
        bp_flops=tuple(bp),
        smashed_shape=tuple(shapes),
        smashed_bits=smashed_bits,
        gradient_bits=smashed_bits,
        parameter_bytes=parameter_bytes,
        buffer_bytes=tuple(_num_bytes(stage.buffers()) for stage in model),
        optimiser_bytes=parameter_bytes,
    )


def _num_bytes(tensors: object) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)  # type: ignore[attr-defined]
