"""What gates add to a variance is what the mean over all masks says."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from normlens.probes.gate_variance import variance_of_gates


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def drawn(layer: nn.Module) -> nn.Module:
    for seed, parameter in enumerate(layer.double().parameters()):
        parameter.data.copy_(normal(*parameter.shape, seed=seed + 1))
    return layer


def over_all_masks(layer: nn.Module, x: Tensor, keep: float, gates: tuple[int, ...]) -> Tensor:
    """The variance of the outputs over samples, positions and all masks, each mask with its probability."""
    means, squares = 0.0, 0.0
    for mask in itertools.product((0.0, 1.0), repeat=math.prod(gates)):
        weight = keep ** sum(mask) * (1 - keep) ** (len(mask) - sum(mask))
        with torch.no_grad():
            outputs = layer(x * torch.tensor(mask, dtype=torch.float64).reshape(gates) / keep)
        pooled = (0, *range(2, outputs.ndim))
        means, squares = means + weight * outputs.mean(pooled), squares + weight * outputs.square().mean(pooled)
    return squares - means**2


LAYERS = {
    "linear": (lambda: nn.Linear(5, 3), (5,), (5,)),
    "convolution": (lambda: nn.Conv2d(2, 3, 2, padding=1), (2, 2, 2), (2, 2, 2)),
    "strided": (lambda: nn.Conv1d(2, 3, 3, stride=2, dilation=2), (2, 5), (2, 5)),
    "grouped": (lambda: nn.Conv2d(2, 4, 2, groups=2), (2, 2, 2), (2, 2, 2)),
    "three dimensions": (lambda: nn.Conv3d(1, 2, 2), (1, 2, 2, 2), (1, 2, 2, 2)),
    "a gate for a channel": (lambda: nn.Conv2d(3, 2, 2, padding=1), (3, 3, 3), (3, 1, 1)),
    "a gate for a channel, one dimension": (lambda: nn.Conv1d(4, 2, 3, bias=False), (4, 6), (4, 1)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("keep", [0.5, 0.9])
def test_the_parts_add_up_to_the_variance_over_all_masks(name, keep):
    make, shape, gates = LAYERS[name]
    layer, x = drawn(make()), normal(7, *shape).abs() + 0.3  # neither centered nor independent
    plain, added = variance_of_gates(layer, x, keep, shared=gates != shape)
    with torch.no_grad():
        outputs = layer(x)
    torch.testing.assert_close(plain, outputs.var((0, *range(2, outputs.ndim)), correction=0))
    # Squares minus a squared mean loses some digits, and there are 256 masks.
    torch.testing.assert_close(plain + added, over_all_masks(layer, x, keep, gates), rtol=1e-11, atol=1e-11)


def test_what_is_not_known_is_none():
    x = normal(4, 4, 5, 5)
    unknown = [nn.Conv2d(4, 3, 3, padding=1, padding_mode="reflect"), nn.ConvTranspose2d(4, 3, 3), nn.ReLU()]
    assert [variance_of_gates(drawn(layer), x, 0.5, shared=False) for layer in unknown] == [None] * 3
    shared = [nn.Conv2d(4, 4, 3, groups=2), nn.Linear(5, 3)]
    assert [variance_of_gates(drawn(layer), x, 0.5, shared=True) for layer in shared] == [None] * 2
    weight_norm = nn.utils.parametrizations.weight_norm(nn.Linear(5, 3))
    assert variance_of_gates(weight_norm.double(), x, 0.5, shared=False) is None
