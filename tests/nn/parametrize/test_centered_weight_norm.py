"""Centered weight normalization: mean zero and one length, its gradient, and what it is invariant to."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import skip_init
from torch.testing import assert_close

from normlens.nn.parametrize import centered_weight_norm, weight_norm
from normlens.nn.parametrize.base import FanInError

EPS = torch.finfo(torch.float64).eps


def holder(weight):
    module = nn.Module()
    module.weight = nn.Parameter(weight.clone())
    return module


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_the_filter_1_2_3_becomes_the_known_numbers():
    layer = centered_weight_norm(holder(numbers([1, 2, 3])), eps=0)
    half = math.sqrt(0.5)
    assert_close(layer.weight.detach(), numbers([-half, 0, half]), rtol=2 * EPS, atol=0)


def test_eps_is_added_to_the_length():
    layer = centered_weight_norm(holder(numbers([1, 2, 3])), scale=3, eps=0.25)
    assert_close(layer.weight.detach(), 3 * numbers([-1, 0, 1]) / (math.sqrt(2) + 0.25), rtol=4 * EPS, atol=0)


@pytest.mark.parametrize(("shape", "dim"), [((3, 4), 0), ((3, 4, 2), 0), ((4, 3, 2, 2), 1)])
@pytest.mark.parametrize("scale", [1.0, math.sqrt(2)])
def test_filters_have_mean_zero_and_the_length_of_the_scale(draw, shape, dim, scale):
    weight = centered_weight_norm(holder(draw(*shape) + 2), dim=dim, scale=scale, eps=0).weight
    dims = tuple(axis for axis in range(len(shape)) if axis != dim)
    assert_close(weight.sum(dims), torch.zeros(3, dtype=torch.float64), rtol=0, atol=32 * EPS)
    length = torch.linalg.vector_norm(weight, dim=dims)
    assert_close(length, torch.full_like(length, scale), rtol=8 * EPS, atol=0)


def test_the_gradient_is_the_formula_and_lies_within_the_constraints(draw, as_function):
    scale, (v, dw) = 1.7, (draw(3, 5) + 1, draw(3, 5))
    weight, _ = as_function(centered_weight_norm(holder(v), scale=scale, eps=0))
    (dv,) = torch.autograd.grad(weight(v.requires_grad_()), [v], dw)
    c = v - v.mean(1, keepdim=True)
    length = torch.linalg.vector_norm(c, dim=1, keepdim=True)
    u = c / length
    want = scale / length * (dw - (u * dw).sum(1, keepdim=True) * u - dw.mean(1, keepdim=True))
    assert_close(dv, want, rtol=1e-13, atol=1e-14)
    for product in ((dv * c).sum(1), dv.sum(1)):
        assert_close(product, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-14)


def test_second_derivatives_are_the_formula(
    draw, as_function, double_backward, forward_over_reverse, direction_hessian
):
    v, readout, move = draw(1, 5), draw(1, 5), draw(1, 5)
    weight, _ = as_function(centered_weight_norm(holder(v), scale=1.7, eps=0))
    center = torch.eye(5, dtype=torch.float64) - 0.2
    want = 1.7 * center @ direction_hessian(center @ v[0], center @ readout[0]) @ center @ move[0]
    for product in (double_backward, forward_over_reverse):
        (got,) = product(lambda v: (weight(v) * readout).sum(), (v,), (move,))
        assert_close(got[0], want, rtol=1e-12, atol=1e-13)


def test_the_output_is_blind_to_a_constant_added_to_all_inputs(draw):
    layer, x = skip_init(nn.Linear, 6, 3, dtype=torch.float64), draw(4, 6)
    layer.weight.data, layer.bias.data = draw(3, 6) + 5, draw(3)
    centered_weight_norm(layer)
    assert_close(layer(x + 100), layer(x), rtol=0, atol=100 * 6 * 4 * EPS)


def test_the_weight_is_blind_to_shift_and_positive_scale_of_v(draw, as_function):
    v = draw(3, 4, 2)
    weight, _ = as_function(centered_weight_norm(holder(v), eps=0))
    factor, shift = draw(3, 1, 1).exp(), draw(3, 1, 1)
    assert_close(weight(factor * v + shift), weight(v), rtol=1e-13, atol=1e-14)
    assert_close(weight(-v), -weight(v), rtol=0, atol=0)


def test_it_is_weight_norm_of_the_centered_filter(draw):
    v = draw(3, 4)
    other = weight_norm(holder(v - v.mean(1, keepdim=True)))
    other.parametrizations.weight.original0.data.fill_(1.4)
    ours = centered_weight_norm(holder(v), scale=1.4, eps=0)
    assert_close(ours.weight, other.weight, rtol=8 * EPS, atol=0)


def test_a_learned_scale_begins_at_the_scale_and_learns_along_the_filter(draw):
    layer, dw = centered_weight_norm(holder(draw(4, 3, 2)), dim=1, scale=2, learn_scale=True, eps=0), draw(4, 3, 2)
    scale = layer.parametrizations.weight[0].scale
    assert isinstance(scale, nn.Parameter)
    assert torch.equal(scale, torch.full((1, 3, 1), 2.0, dtype=torch.float64))
    fixed = centered_weight_norm(holder(layer.parametrizations.weight.original), dim=1, scale=1, eps=0).weight
    (gradient,) = torch.autograd.grad(layer.weight, scale, dw)
    assert_close(gradient, (fixed * dw).sum((0, 2), keepdim=True), rtol=1e-13, atol=1e-14)
    scale.data = draw(1, 3, 1)
    assert_close(layer.weight, scale * fixed, rtol=8 * EPS, atol=0)


def test_registering_keeps_filters_that_are_centered_and_of_the_length(draw):
    weight = draw(3, 6)
    weight = weight - weight.mean(1, keepdim=True)
    weight = 1.4 * weight / torch.linalg.vector_norm(weight, dim=1, keepdim=True)
    layer = centered_weight_norm(holder(weight), scale=1.4, eps=0)
    assert_close(layer.weight.detach(), weight, rtol=1e-14, atol=1e-15)
    assert torch.equal(layer.parametrizations.weight.original, weight)


def test_a_filter_of_one_entry_is_refused_and_of_two_has_one_sign(draw):
    with pytest.raises(FanInError, match=r"CenteredWeightNorm needs filters of 2 entries.*got shape \(6, 1, 1, 1\)"):
        centered_weight_norm(nn.Conv2d(6, 6, 1, groups=6, device="meta"))
    layer = centered_weight_norm(holder(draw(5, 2)), eps=0)
    assert_close(layer.weight.abs(), torch.full((5, 2), math.sqrt(0.5), dtype=torch.float64), rtol=8 * EPS, atol=0)


@pytest.mark.parametrize("value", [0.0, 0.1, -7e5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_a_constant_filter_is_refused(value, dtype):
    weight = torch.full((2, 7), value if dtype != torch.float16 else value / 100, dtype=dtype)
    weight[0, 0] += 1 + abs(value / 100)
    with pytest.raises(
        ValueError, match=r"needs every filter to vary.*got 1 that do not, the first at index 1 of dim 0"
    ):
        centered_weight_norm(holder(weight))
