"""Split models: initial weights, cuts, and counted costs."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from nodes.learning.models import MODEL_NAMES, build_model, profile, run_stages, split

SHAPES = {"digits-cnn": (1, 8, 8), "mlp": (1, 8, 8), "resnet18": (3, 64, 64)}


def _bits(model: torch.nn.ModuleList) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in model.state_dict().values()]


@pytest.mark.parametrize("name", ["digits-cnn", "mlp"])
def test_equal_seeds_give_equal_models_and_leave_the_global_generator_alone(name: str) -> None:
    torch.manual_seed(5)
    untouched = torch.rand(3)
    torch.manual_seed(5)
    first = build_model(name, SHAPES[name], 10, seed=7)
    assert torch.equal(torch.rand(3), untouched)
    second = build_model(name, SHAPES[name], 10, seed=7)
    other = build_model(name, SHAPES[name], 10, seed=8)
    assert all(torch.equal(a, b) for a, b in zip(_bits(first), _bits(second), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(_bits(first), _bits(other), strict=True))


def test_a_float32_model_is_the_rounded_float64_model_of_its_seed() -> None:
    narrow = build_model("mlp", (1, 8, 8), 10, seed=1)
    wide = build_model("mlp", (1, 8, 8), 10, seed=1, dtype=torch.float64)
    for a, b in zip(_bits(narrow), _bits(wide), strict=True):
        assert torch.equal(a, b.to(torch.float32))


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_every_cut_computes_the_same_function(name: str) -> None:
    model = build_model(name, SHAPES[name], 10, seed=2).eval()
    x = torch.randn(2, *SHAPES[name], generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        whole = run_stages(model, x)
        assert whole.shape == (2, 10)
        for cut in range(1, len(model)):
            client, server = split(model, cut)
            assert len(client) == cut
            assert torch.equal(run_stages(server, run_stages(client, x)), whole)


@pytest.mark.parametrize("cut", [-1, 0, 4, 9])
def test_a_cut_needs_a_stage_on_both_sides(cut: int) -> None:
    with pytest.raises(ValueError, match="choose a cut layer from 1 to 3"):
        split(build_model("mlp", (1, 8, 8), 10, seed=1), cut)


def test_resnet18_costs_what_is_known_of_it() -> None:
    """At 3x64x64: kilobytes per cut, 296 MFLOPs (148 million multiply-accumulates), 44.7 MB."""
    model = build_model("resnet18", (3, 64, 64), 7, seed=1)
    assert len(model) == 12
    counted = profile(model, (3, 64, 64))
    kilobytes = [bits / 8 / 1000 for bits in counted.smashed_bits]
    expected = {1: 262, 2: 65.5, 3: 65.5, 4: 65.5, 5: 32.8, 6: 32.8, 7: 16.4, 8: 16.4, 9: 8.2, 10: 8.2}
    for cut, size in expected.items():
        assert kilobytes[cut] == pytest.approx(size, rel=0.005)
    assert counted.fp_flops[-1] == pytest.approx(296e6, rel=0.02)
    assert sum(counted.parameter_bytes) == pytest.approx(44.7e6, rel=0.005)
    # Backward is twice forward, less the input gradient of the first convolution.
    first = counted.fp_flops[1]
    assert counted.bp_flops[-1] == pytest.approx(2 * counted.fp_flops[-1] - first, rel=0.01)


def test_counted_flops_equal_a_convolution_and_a_matrix_product_by_hand() -> None:
    counted = profile(build_model("mlp", (1, 8, 8), 10, seed=1), (1, 8, 8))
    assert counted.fp_flops == (0, 2 * 64 * 48, 2 * (64 * 48 + 48 * 32), 2 * (64 * 48 + 48 * 32 + 32 * 24),
                                2 * (64 * 48 + 48 * 32 + 32 * 24 + 240))  # fmt: skip
    assert counted.bp_flops[1] == 2 * 64 * 48  # weight gradient only: nobody needs the input's
    assert counted.bp_flops[2] - counted.bp_flops[1] == 4 * 48 * 32


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_a_profile_describes_the_tensors_that_really_cross_each_cut(name: str) -> None:
    model = build_model(name, SHAPES[name], 10, seed=2)
    before = copy.deepcopy(model.state_dict())
    counted = profile(model, SHAPES[name])
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    x = torch.zeros(1, *SHAPES[name])
    with torch.no_grad():
        for index, stage in enumerate(model.eval()):
            x = stage(x)
            assert counted.smashed_shape[index + 1] == tuple(x.shape[1:])
            assert counted.smashed_bits[index + 1] == 32 * math.prod(x.shape[1:])
    assert len(counted.fp_flops) == len(model) + 1
    assert all(
        later > earlier for earlier, later in zip(counted.fp_flops, counted.fp_flops[1:], strict=False)
    )
    assert all(
        later > earlier for earlier, later in zip(counted.bp_flops, counted.bp_flops[1:], strict=False)
    )


def test_cuts_of_the_demonstration_model_trade_compute_for_air() -> None:
    counted = profile(build_model("digits-cnn", (1, 8, 8), 10, seed=1), (1, 8, 8))
    sizes = [bits // 32 for bits in counted.smashed_bits[1:-1]]
    assert sizes == [384, 128, 64]
    assert list(counted.fp_flops) == sorted(counted.fp_flops)


def test_unknown_models_and_shapes_are_refused_in_words() -> None:
    with pytest.raises(ValueError, match="known are digits-cnn"):
        build_model("vgg", (1, 8, 8), 10, seed=1)
    with pytest.raises(ValueError, match=r"give \(channels, height, width\)"):
        build_model("resnet18", (64, 64), 10, seed=1)
    with pytest.raises(ValueError, match="at least two classes"):
        build_model("mlp", (1, 8, 8), 1, seed=1)
