"""Every way to form a product agrees with the dense float64 Hessian through every normalization layer."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from normlens.catalog import load, names
from normlens.curvature.hessian import hessian
from normlens.curvature.product import ForwardOverReverse, Linearized, RecomputedGraph, RetainedGraph
from normlens.risk import EmpiricalRisk
from support.curvature import dense_hessian, relative_error, vector


def space(rank: int) -> list[int]:
    """The spatial shape of the inputs: smaller where there are more dimensions, for the dense Hessian's sake."""
    return [4 if rank < 3 else 2] * rank


TORCH = {
    "torch BatchNorm": lambda c, rank: (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[rank](c),
    "torch GroupNorm": lambda c, rank: nn.GroupNorm(2, c),
    "torch InstanceNorm": lambda c, rank: (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)[rank - 1](
        c, affine=True
    ),
    "torch LayerNorm": lambda c, rank: nn.LayerNorm([c, *space(rank)]),
    "torch RMSNorm": lambda c, rank: nn.RMSNorm([c, *space(rank)], eps=1e-6),
}
OURS = {name: (lambda c, rank, name=name: load("normlens.nn", name)(c)) for name in names("normlens.nn")}
LAYERS = {**TORCH, **OURS}
PRODUCTS = [RetainedGraph, ForwardOverReverse, RecomputedGraph]


def network(layer, rank: int, *, seed: int = 0) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A smooth network with the layer between two weight layers, on data of that spatial rank, in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        conv = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank]
        first = conv(3, 4) if rank == 0 else conv(3, 4, 3, padding=1)
        model = nn.Sequential(
            first, layer(4, rank), nn.Tanh(), nn.Flatten(), nn.Linear(4 * math.prod(space(rank)), 3)
        ).double()
        for parameter in model[1].parameters():
            nn.init.normal_(parameter, mean=1.0, std=0.3)
        x = torch.randn(5, 3, *space(rank), dtype=torch.float64)
        model(x)  # moves running statistics away from where they start
    return model, x, torch.arange(5) % 3


def takes(name: str, rank: int) -> bool:
    """Whether the layer has a meaning at that rank: several need space."""
    try:
        network(LAYERS[name], rank)
    except (ValueError, IndexError):
        return rank > 0
    return True


def exact(name: str) -> bool:
    """Whether the layer's backward is the derivative of its forward, so that differences of gradients tell it."""
    return bool(getattr(LAYERS[name](4, 2), "exact_gradient", True))


def undrawn(model: nn.Module, mode: str) -> nn.Module:
    """Put the model into a mode; skip where it draws masks, which the dense Hessian would draw again."""
    if mode == "train" and getattr(model[1], "random", False):
        pytest.skip("masks are drawn anew; tests/curvature/test_hessian.py holds them still")
    return model.train(mode == "train")


ILL_CONDITIONED = {
    "torch GroupNorm": 1e-4,
    "group_norm": 1e-4,
    "batch_channel_norm": 1e-3,
    "decorrelated_batch_norm": 1e-3,
}
"""Limits in float32 without space. Groups of two values normalize to +1 and -1: what is left of the derivative is a
cancellation; 1.5e-5 was seen, and 3.5e-4 behind batch norm. The covariance of five samples of four channels is nearly
singular. It is the layer that is ill-conditioned there, not the product."""

COMMON = ("batch_norm", "group_norm", "layer_norm", "rms_norm", "independent_component")
"""Layers whose linearized product `make test` checks; that of all of them takes half a minute: CI does it."""

CASES = [
    # Layers of PyTorch at every rank, as users have them; ours are the same code at every rank.
    pytest.param(name, rank, id=f"{name}, {rank}d", marks=[pytest.mark.slow] if rank in (1, 3) else [])
    for name in LAYERS
    for rank in range(4)
    if takes(name, rank)
]


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize(("name", "rank"), CASES)
def test_every_product_is_that_of_the_dense_hessian_to_1e_11(name, rank, mode):
    model, x, y = network(LAYERS[name], rank)
    undrawn(model, mode)
    expected = dense_hessian(copy.deepcopy(model), nn.functional.cross_entropy, x, y)
    risk = EmpiricalRisk(model, nn.functional.cross_entropy, (x, y))
    v = vector(len(expected))
    for product in PRODUCTS:
        measured = hessian(risk, product=product, check=False) @ v
        assert relative_error(measured, expected @ v) <= 1e-11, product.__name__


@pytest.mark.parametrize("mode", ["train", pytest.param("eval", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("name", "rank"), CASES)
def test_in_float32_with_smooth_activations_the_product_is_right_to_1e_5(name, rank, mode):
    model, x, y = network(LAYERS[name], rank)
    undrawn(model, mode)
    expected = dense_hessian(copy.deepcopy(model), nn.functional.cross_entropy, x, y)
    v = vector(len(expected))
    risk = EmpiricalRisk(model.float(), nn.functional.cross_entropy, (x.float(), y))
    limit = (ILL_CONDITIONED.get(name, 1e-5) if rank == 0 else 1e-5) * getattr(model[1], "sensitivity", 1.0)
    assert relative_error(hessian(risk, check=False) @ v, expected @ v) <= limit


@pytest.mark.parametrize(
    "name", [name if name in COMMON else pytest.param(name, marks=pytest.mark.slow) for name in LAYERS]
)
def test_the_linearized_product_is_that_of_the_dense_hessian_to_1e_11(name):
    model, x, y = network(LAYERS[name], 2)
    undrawn(model, "train")
    expected = dense_hessian(copy.deepcopy(model), nn.functional.cross_entropy, x, y)
    operator = hessian(EmpiricalRisk(model, nn.functional.cross_entropy, (x, y)), product=Linearized, check=False)
    v = vector(len(expected))
    assert relative_error(operator @ v, expected @ v) <= 1e-11


@pytest.mark.parametrize(("name", "rank"), [pytest.param(name, 2, id=name) for name in LAYERS if exact(name)])
def test_the_operator_finds_itself_symmetric_and_equal_to_differences_of_gradients(name, rank):
    model, x, y = network(LAYERS[name], rank)
    check = hessian(EmpiricalRisk(model, nn.functional.cross_entropy, (x, y))).check
    assert check.passed
    assert check.asymmetry <= 1e-12
    assert check.difference <= 1e-6
