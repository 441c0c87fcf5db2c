"""P'HP of a layer against the dense matrices, and against the inputs' own condition numbers where these are it."""

from __future__ import annotations

import importlib
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, unfold

from normlens.curvature.activation_condition import activation_condition, bnp_root
from normlens.curvature.bnp_condition import bnp_condition, bnp_layer_root
from normlens.curvature.gauss_newton import gauss_newton
from normlens.risk import EmpiricalRisk
from support.curvature import dense_hessian


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def skewed(seed: int, samples: int, features: int) -> Tensor:
    return normal(seed, samples, features) * torch.tensor([0.1, 1.0, 3.0, 10.0])[:features] + 2


def half_squares(z: Tensor, y: Tensor) -> Tensor:
    return (z - y).square().sum() / (2 * len(z))


def test_of_least_squares_they_are_the_squared_condition_numbers_of_the_inputs_before_and_after() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 2.0], [1.0, 6.0], [3.0, 6.0]], dtype=torch.float64)
    found = bnp_condition(EmpiricalRisk(nn.Linear(2, 1).double(), half_squares, (x, normal(0, 4, 1))), "")
    assert found.plain.value == pytest.approx(15.2592240609**2, rel=1e-9)
    assert found.preconditioned.value == pytest.approx(1, rel=1e-12)
    assert (found.mean.tolist(), found.variance.tolist(), found.samples) == ([2, 4], [1, 4], 4)
    h = skewed(1, 40, 4)
    several = bnp_condition(EmpiricalRisk(nn.Linear(4, 3).double(), half_squares, (h, normal(2, 40, 3))), "")
    inputs = activation_condition(h)
    assert several.plain.value == pytest.approx(inputs.raw**2, rel=1e-9)
    assert several.preconditioned.value == pytest.approx(inputs.normalized**2, rel=1e-9)


@pytest.mark.parametrize("training", [True, False])
def test_of_a_layer_within_a_network_they_are_those_of_the_dense_block_and_of_p_h_p(training: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Softplus(), nn.Linear(5, 3), nn.BatchNorm1d(3, affine=False)).double()
    x, y = skewed(3, 40, 4), torch.arange(40) % 3
    batches = list(zip(x.split([25, 15]), y.split([25, 15]), strict=True)) if not training else (x, y)
    risk = EmpiricalRisk(model.train(training), cross_entropy, batches)
    found = bnp_condition(risk, "2", relative_floor=1e-2, floor=1e-4)
    block = dense_hessian(model, cross_entropy, x, y)[25:43, 25:43]
    h = nn.functional.softplus(model[0](x)).detach()
    root = bnp_root(h.mean(0), h.var(0, correction=0), relative_floor=1e-2, floor=1e-4).dense()
    p = torch.zeros(18, 18, dtype=torch.float64)
    for i in range(3):  # (bias, weights) of neuron i within (weights of all, biases of all)
        places = torch.tensor([15 + i, *range(5 * i, 5 * i + 5)])
        p[places[:, None], places] = root
    for result, matrix in ((found.plain, block), (found.preconditioned, p.T @ block @ p)):
        values = torch.linalg.eigvalsh(matrix)
        torch.testing.assert_close(result.eigenvalues, values, rtol=0, atol=1e-12 * float(values.abs().max()))
    assert found.preconditioned.value < found.plain.value


def test_of_an_unpadded_convolution_it_normalizes_the_patches_channel_by_channel() -> None:
    conv = nn.Conv2d(2, 1, 2).double()
    x = normal(4, 20, 2, 3, 3) * torch.tensor([0.2, 5.0]).double()[:, None, None] + 1
    found = bnp_condition(EmpiricalRisk(conv, half_squares, (x, normal(5, 20, 1, 2, 2))), "", gauss_newton)
    scaled = (x - x.mean((0, 2, 3), keepdim=True)) / x.var((0, 2, 3), correction=0, keepdim=True).sqrt()
    for result, inputs in ((found.plain, x), (found.preconditioned, scaled)):
        patches = unfold(inputs, 2).mT.flatten(0, 1)
        with_ones = torch.cat([torch.ones_like(patches[:, :1]), patches], 1)
        assert result.value == pytest.approx(float(torch.linalg.cond(with_ones)) ** 2, rel=1e-9)


def test_a_grouped_convolution_reads_its_own_channels() -> None:
    conv = nn.Conv2d(4, 6, 3, groups=2).double()
    mean, variance = normal(6, 4), normal(7, 4).exp()
    v = normal(8, 6 * 18 + 6)
    found = bnp_layer_root(conv, mean, variance, q=1.5) @ v
    for unit in range(6):
        channels = slice(0, 2) if unit < 3 else slice(2, 4)
        moments = (moment[channels].repeat_interleave(9) for moment in (mean, variance))
        own = torch.cat([v[108 + unit : 109 + unit], v[18 * unit : 18 * unit + 18]])
        expected = bnp_root(*moments, q=1.5) @ own
        torch.testing.assert_close(found[18 * unit : 18 * unit + 18], expected[1:], rtol=1e-14, atol=1e-14)
        torch.testing.assert_close(found[108 + unit], expected[0], rtol=1e-14, atol=1e-13)


def test_its_transposed_product_is_the_adjoint() -> None:
    root = bnp_layer_root(nn.Conv1d(2, 3, 4).double(), normal(9, 2), normal(10, 2).exp(), q=2.0)
    dense = root @ torch.eye(27, dtype=torch.float64)
    v = normal(11, 27)
    torch.testing.assert_close(root.transposed(v), dense.T @ v, rtol=1e-13, atol=1e-13)


def test_a_block_too_large_to_be_formed_gives_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("condition", "bnp_condition"):
        monkeypatch.setattr(importlib.import_module(f"normlens.curvature.{place}"), "DENSE_ROWS", 5)
    h = skewed(12, 40, 4)
    risk = EmpiricalRisk(nn.Linear(4, 3).double(), half_squares, (h, normal(13, 40, 3)))
    found = bnp_condition(risk, "", probes=0, steps=3)
    inputs = activation_condition(h)
    assert math.isnan(found.plain.value)
    assert found.plain.lower <= inputs.raw**2 * (1 + 1e-9)
    assert found.preconditioned.lower <= inputs.normalized**2 * (1 + 1e-9)


def test_what_cannot_be_preconditioned_is_refused_with_the_reason() -> None:
    x, y = normal(14, 9, 4), normal(15, 9, 3)
    with pytest.raises(ValueError, match=r"'head' is none of \[''"):
        bnp_condition(EmpiricalRisk(nn.Linear(4, 3).double(), mse_loss, (x, y)), "head")
    with pytest.raises(ValueError, match="inputs cannot be centered"):
        bnp_condition(EmpiricalRisk(nn.Linear(4, 3, bias=False).double(), mse_loss, (x, y)), "")
    with pytest.raises(ValueError, match="1 of 4 are not: give relative_floor"):
        constant = x * torch.tensor([1.0, 1, 0, 1])
        bnp_condition(EmpiricalRisk(nn.Linear(4, 3).double(), mse_loss, (constant, y)), "")
    with pytest.raises(ValueError, match="of 4 input channels; got 3"):
        bnp_layer_root(nn.Linear(4, 3), torch.zeros(3), torch.ones(3))
    unused = nn.ModuleDict({"a": nn.Linear(4, 3), "b": nn.Linear(4, 3)}).double()
    with pytest.raises(ValueError, match="'b' must take part in the forward pass"):
        bnp_condition(EmpiricalRisk(unused, mse_loss, (x, y), forward=lambda m, x: m["a"](x)), "b")
