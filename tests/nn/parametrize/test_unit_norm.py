"""Unit norm keeps vectors on the sphere, their gradient tangent to it, and on request the stored ones there too."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import skip_init
from torch.testing import assert_close

from normlens.nn.parametrize import renormalize_, unit_norm, weight_norm

EPS = torch.finfo(torch.float64).eps


def linear(draw, inputs=5, outputs=3, dtype=torch.float64):
    layer = skip_init(nn.Linear, inputs, outputs, dtype=dtype)
    layer.weight.data, layer.bias.data = draw(outputs, inputs, dtype=dtype), draw(outputs, dtype=dtype)
    return layer


def stored(layer):
    return layer.parametrizations.weight.original


def assert_unit(tensor, dim, eps=EPS):
    rows = tensor.detach().double().movedim(dim, 0).flatten(1)
    assert_close(
        torch.linalg.vector_norm(rows, dim=1), torch.ones(len(rows), dtype=torch.float64), rtol=0, atol=4 * eps
    )


@pytest.mark.parametrize("dim", [0, 1])
def test_vectors_have_length_one_at_every_step_and_the_stored_ones_when_put_back(draw, dim):
    model = nn.Sequential(unit_norm(linear(draw, 5, 4), dim=dim), nn.Tanh(), unit_norm(linear(draw, 4, 3), dim=dim))
    optimizer, x = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9), draw(8, 5)
    for _ in range(4):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
        for layer in (model[0], model[2]):
            assert_unit(layer.weight, dim)
            assert torch.linalg.vector_norm(stored(layer)) ** 2 > 1.001 * layer.weight.shape[dim]
        before = [model[i].weight.detach().clone() for i in (0, 2)]
        assert renormalize_(model) is model
        for layer, weight in zip((model[0], model[2]), before, strict=True):
            assert_unit(stored(layer), dim)
            assert_close(layer.weight.detach(), weight, rtol=4 * EPS, atol=EPS)


def test_renormalizing_keeps_the_parameter_that_the_optimizer_holds(draw):
    layer = unit_norm(linear(draw))
    parameter, _ = stored(layer), stored(layer).data.mul_(3)
    renormalize_(layer)
    assert stored(layer) is parameter
    assert parameter.grad_fn is None
    assert_unit(parameter, 0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_registering_keeps_directions_and_sets_lengths_in_what_is_stored_too(draw, dtype):
    layer, eps = linear(draw, dtype=dtype), torch.finfo(dtype).eps
    direction = nn.functional.normalize(layer.weight.detach().double(), dim=1)
    unit_norm(layer)
    for tensor in (stored(layer), layer.weight):
        assert_unit(tensor, 0, eps)
        assert_close(tensor.detach().double(), direction, rtol=2 * eps, atol=0)


def test_the_gradient_is_the_formula_and_tangent_to_the_sphere(draw, as_function):
    v, dw = draw(3, 5), draw(3, 5)
    weight, _ = as_function(unit_norm(linear(draw)))
    (dv,) = torch.autograd.grad(weight(v.requires_grad_()), [v], dw)
    length = torch.linalg.vector_norm(v, dim=1, keepdim=True)
    u = v / length
    assert_close(dv, (dw - u * (u * dw).sum(1, keepdim=True)) / length, rtol=1e-13, atol=1e-14)
    assert_close((dv * u).sum(1), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-14)


def test_second_derivatives_are_the_formula(
    draw, as_function, double_backward, forward_over_reverse, direction_hessian
):
    v, c, move = draw(1, 5), draw(1, 5), draw(1, 5)
    weight, _ = as_function(unit_norm(linear(draw, outputs=1)))
    for product in (double_backward, forward_over_reverse):
        (got,) = product(lambda v: (weight(v) * c).sum(), (v,), (move,))
        assert_close(got[0], direction_hessian(v[0], c[0]) @ move[0], rtol=1e-12, atol=1e-13)


def test_a_vector_of_zeros_is_refused(draw):
    layer = linear(draw)
    layer.weight.data[:, 3] = 0
    with pytest.raises(ValueError, match=r"UnitNorm needs every filter to have a direction.*index 3 of dim 1"):
        unit_norm(copy.deepcopy(layer), dim=1)
    unit_norm(layer)


def test_renormalizing_needs_unit_norm(draw):
    for model in (linear(draw), weight_norm(linear(draw)), unit_norm(weight_norm(linear(draw)))):
        with pytest.raises(ValueError, match="needs a model with unit_norm on a weight; got none; register unit_norm"):
            renormalize_(model)
