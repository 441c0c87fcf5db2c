"""Weight standardization: its three forms, its gradient, and its kinship with centered weight normalization."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from normlens.nn.parametrize import centered_weight_norm, weight_standardization
from normlens.nn.parametrize.base import FanInError

EPS = torch.finfo(torch.float64).eps
VARIANTS = ("bcn", "ws", "tf")


def holder(weight):
    module = nn.Module()
    module.weight = nn.Parameter(weight.clone())
    return module


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("variant", "far", "near"), [("ws", 1.1619, 0.3873), ("bcn", 1.1619, 0.3873), ("tf", 1.3416, 0.4472)]
)
def test_the_filter_1_2_3_4_becomes_the_known_numbers(variant, far, near):
    layer = weight_standardization(holder(numbers([1, 2, 3, 4])), variant=variant)
    assert_close(layer.weight.detach(), numbers([-far, -near, near, far]), rtol=0, atol=5e-5)


@pytest.mark.parametrize(
    ("variant", "std"),
    [("ws", math.sqrt(5 / 3) + 0.1), ("bcn", math.sqrt(5 / 3 + 0.1)), ("tf", math.sqrt(5 / 4) + 0.1)],
)
def test_eps_stands_where_each_variant_has_it(variant, std):
    layer = weight_standardization(holder(numbers([1, 2, 3, 4])), variant=variant, eps=0.1)
    assert_close(layer.weight.detach(), numbers([-1.5, -0.5, 0.5, 1.5]) / std, rtol=4 * EPS, atol=0)


@pytest.mark.parametrize(("shape", "dim"), [((3, 4), 0), ((3, 4, 2), 0), ((4, 3, 2, 2), 1)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_filters_have_mean_zero_and_variance_one(draw, shape, dim, variant):
    weight = weight_standardization(holder(draw(*shape) * 3 + 2), dim=dim, variant=variant, eps=0).weight
    rows = weight.movedim(dim, 0).flatten(1)
    correction = 0 if variant == "tf" else 1
    assert_close(rows.mean(1), torch.zeros(3, dtype=torch.float64), rtol=0, atol=32 * EPS)
    assert_close(rows.var(1, correction=correction), torch.ones(3, dtype=torch.float64), rtol=32 * EPS, atol=0)


def test_the_gradient_is_the_formula_with_its_length(draw, as_function):
    """``|dL/dv|^2 = (|g|^2 - <1, g>^2 / d - <w, g>^2 / d) / std^2``: the paper's Lipschitz constant falls so."""
    v, g = draw(3, 5) * 2 + 1, draw(3, 5)
    weight, _ = as_function(weight_standardization(holder(v), variant="tf", eps=0))
    (dv,) = torch.autograd.grad(weight(v.requires_grad_()), [v], g)
    std = v.std(1, correction=0, keepdim=True)
    u = (v - v.mean(1, keepdim=True)) / std
    want = (g - g.mean(1, keepdim=True) - u * (g * u).mean(1, keepdim=True)) / std
    assert_close(dv, want, rtol=1e-13, atol=1e-14)
    squares = ((g * g).sum(1) - g.sum(1) ** 2 / 5 - (u * g).sum(1) ** 2 / 5) / std.flatten() ** 2
    assert_close((dv * dv).sum(1), squares, rtol=1e-12, atol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_gradient_sums_to_zero_and_without_eps_is_orthogonal_to_the_centered_filter(draw, as_function, variant):
    v, g = draw(3, 5) * 2 + 1, draw(3, 5)
    for eps in (0, 1e-2):
        weight, _ = as_function(weight_standardization(holder(v), variant=variant, eps=eps))
        (dv,) = torch.autograd.grad(weight(v.requires_grad_()), [v], g)
        assert_close(dv.sum(1), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-14)
        along = (dv * (v - v.mean(1, keepdim=True))).sum(1)
        assert bool((along.abs() < 1e-14).all()) is (eps == 0)


def test_second_derivatives_are_the_formula(
    draw, as_function, double_backward, forward_over_reverse, direction_hessian
):
    v, readout, move = draw(1, 5), draw(1, 5), draw(1, 5)
    center = torch.eye(5, dtype=torch.float64) - 0.2
    want = center @ direction_hessian(center @ v[0], center @ readout[0]) @ center @ move[0]
    for variant, scale in (("tf", math.sqrt(5)), ("ws", 2), ("bcn", 2)):
        weight, _ = as_function(weight_standardization(holder(v), variant=variant, eps=0))
        for product in (double_backward, forward_over_reverse):
            (got,) = product(lambda v, weight=weight: (weight(v) * readout).sum(), (v,), (move,))
            assert_close(got[0], scale * want, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("variant", "less"), [("ws", 1), ("bcn", 1), ("tf", 0)])
def test_it_is_centered_weight_norm_of_scale_root_d_less_one(draw, variant, less):
    v = draw(3, 4, 2)
    ours = weight_standardization(holder(v), variant=variant, eps=0)
    other = centered_weight_norm(holder(v), scale=math.sqrt(8 - less), eps=0)
    assert_close(ours.weight, other.weight, rtol=8 * EPS, atol=0)


def test_registering_keeps_filters_that_are_standardized(draw):
    weight = draw(3, 6)
    weight = (weight - weight.mean(1, keepdim=True)) / weight.std(1, keepdim=True)
    layer = weight_standardization(holder(weight), eps=0)
    assert_close(layer.weight.detach(), weight, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_filter_of_one_entry_is_refused(variant):
    with pytest.raises(
        FanInError, match=r"WeightStandardization needs filters of 2 entries or more; got shape \(4, 1\)"
    ):
        weight_standardization(nn.Linear(1, 4, device="meta"), variant=variant)


def test_a_constant_filter_is_refused_where_its_gradient_is_nan_and_is_zeros_in_bcn():
    weight = torch.ones(2, 3, dtype=torch.float64)
    for variant in ("ws", "tf"):
        with pytest.raises(ValueError, match="needs every filter to vary"):
            weight_standardization(holder(weight), variant=variant)
    with pytest.raises(ValueError, match="needs every filter to vary"):
        weight_standardization(holder(weight), variant="bcn", eps=0)
    layer = weight_standardization(holder(weight), variant="bcn", eps=0.25)
    assert torch.equal(layer.weight, torch.zeros_like(weight))
    (gradient,) = torch.autograd.grad(layer.weight[0, 0], layer.parametrizations.weight.original)
    assert_close(gradient, numbers([4, -2, -2], [0, 0, 0]) / 3, rtol=4 * EPS, atol=EPS)


def test_an_unknown_variant_is_refused():
    with pytest.raises(ValueError, match=r"variant needs to be one of \('bcn', 'ws', 'tf'\); got 'jax'"):
        weight_standardization(nn.Linear(2, 2, device="meta"), variant="jax")
