"""Every way to form a product agrees with the dense float64 Hessian through every normalization layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from normlens.catalog import load, names
from normlens.curvature.hessian import hessian
from normlens.curvature.product import ForwardOverReverse, Linearized, RecomputedGraph, RetainedGraph
from normlens.risk import EmpiricalRisk
from support.curvature import dense_hessian, relative_error, vector

TORCH = {
    "torch BatchNorm": lambda c, rank: (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[rank](c),
    "torch GroupNorm": lambda c, rank: nn.GroupNorm(2, c),
    "torch InstanceNorm": lambda c, rank: (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)[rank - 1](
        c, affine=True
    ),
    "torch LayerNorm": lambda c, rank: nn.LayerNorm([c, *[4] * rank] if rank else c),
    "torch RMSNorm": lambda c, rank: nn.RMSNorm([c, *[4] * rank] if rank else c, eps=1e-6),
}
OURS = {name: (lambda c, rank, name=name: load("normlens.nn", name)(c)) for name in names("normlens.nn")}
LAYERS = {**TORCH, **OURS}
PRODUCTS = [RetainedGraph, ForwardOverReverse, RecomputedGraph]
NEEDS_SPACE = {"torch InstanceNorm", "instance_norm"}


def network(layer, rank: int, *, seed: int = 0) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A smooth network with the layer between two weight layers, on data of that spatial rank, in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        conv = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank]
        first = conv(3, 4) if rank == 0 else conv(3, 4, 3, padding=1)
        model = nn.Sequential(first, layer(4, rank), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 4**rank, 3)).double()
        for parameter in model[1].parameters():
            nn.init.normal_(parameter, mean=1.0, std=0.3)
        x = torch.randn(5, 3, *[4] * rank, dtype=torch.float64)
        model(x)  # moves running statistics away from where they start
    return model, x, torch.arange(5) % 3


CASES = [
    pytest.param(name, rank, id=f"{name}, {rank}d")
    for name in LAYERS
    for rank in range(4)
    if not (rank == 0 and name in NEEDS_SPACE)
]


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize(("name", "rank"), CASES)
def test_every_product_is_that_of_the_dense_hessian_to_1e_11(name, rank, mode):
    model, x, y = network(LAYERS[name], rank)
    model.train(mode == "train")
    expected = dense_hessian(model, nn.functional.cross_entropy, x, y)
    risk = EmpiricalRisk(model, nn.functional.cross_entropy, (x, y))
    v = vector(len(expected))
    for product in PRODUCTS:
        measured = hessian(risk, product=product, check=False) @ v
        assert relative_error(measured, expected @ v) <= 1e-11, product.__name__


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize(("name", "rank"), CASES)
def test_in_float32_with_smooth_activations_the_product_is_right_to_1e_5(name, rank, mode):
    model, x, y = network(LAYERS[name], rank)
    model.train(mode == "train")
    expected = dense_hessian(model, nn.functional.cross_entropy, x, y)
    v = vector(len(expected))
    risk = EmpiricalRisk(model.float(), nn.functional.cross_entropy, (x.float(), y))
    # Groups of two values without space normalize to +1 and -1: what is left of the derivative is a cancellation, and
    # 1.5e-5 was seen. It is the layer that is ill-conditioned there, not the product.
    degenerate = rank == 0 and name in ("torch GroupNorm", "group_norm")
    assert relative_error(hessian(risk) @ v, expected @ v) <= (1e-4 if degenerate else 1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_the_linearized_product_is_that_of_the_dense_hessian_to_1e_11(name):
    model, x, y = network(LAYERS[name], 2)
    expected = dense_hessian(model, nn.functional.cross_entropy, x, y)
    operator = hessian(EmpiricalRisk(model, nn.functional.cross_entropy, (x, y)), product=Linearized, check=False)
    v = vector(len(expected))
    assert relative_error(operator @ v, expected @ v) <= 1e-11


@pytest.mark.parametrize(("name", "rank"), [pytest.param(name, 2, id=name) for name in LAYERS])
def test_the_operator_finds_itself_symmetric_and_equal_to_differences_of_gradients(name, rank):
    model, x, y = network(LAYERS[name], rank)
    check = hessian(EmpiricalRisk(model, nn.functional.cross_entropy, (x, y))).check
    assert check.passed
    assert check.asymmetry <= 1e-12
    assert check.difference <= 1e-6
