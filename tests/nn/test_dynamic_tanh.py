"""Dynamic tanh is its formula value by value, with the derivatives worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from normlens.nn.dynamic_tanh import DynamicTanh

SHAPES = [(5, 4), (3, 4, 5), (3, 4, 2, 3), (2, 4, 2, 3, 2)]
CLOSE = {"rtol": 1e-13, "atol": 1e-13}


def make(draw, **settings):
    layer = DynamicTanh(4, dtype=torch.float64, **settings)
    layer.weight.data, layer.bias.data = draw(4), draw(4)
    return layer


def per_position(values, x):
    return values.reshape(4, *[1] * (x.dim() - 2))


def test_1_2_3_6_becomes_the_vector_worked_out_by_hand():
    y = DynamicTanh(4, dtype=torch.float64)(torch.tensor([[1.0, 2.0, 3.0, 6.0]], dtype=torch.float64))
    assert_close(y.flatten().tolist(), [0.4621172, 0.7615942, 0.9051483, 0.9950548], rtol=0, atol=5e-8)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_value_is_squashed_by_itself_as_the_library_of_c_does(draw, shape):
    layer, x = make(draw, alpha_init=0.8), draw(*shape) * 2
    squashed = x.clone().apply_(lambda value: math.tanh(0.8 * value))
    want = per_position(layer.weight, x) * squashed + per_position(layer.bias, x)
    assert_close(layer(x), want, **CLOSE)
    assert torch.equal(layer.eval()(x), layer.train()(x))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_gradients_are_those_worked_out_by_hand(draw, shape):
    layer, x, g = make(draw, alpha_init=0.8), (draw(*shape) * 2).requires_grad_(), draw(*shape)
    got = torch.autograd.grad(layer(x), [x, layer.alpha, layer.weight, layer.bias], g)
    t, weight = torch.tanh(0.8 * x.detach()), per_position(layer.weight.detach(), x)
    slope, pooled = g * weight * (1 - t.square()), [d for d in range(len(shape)) if d != 1]
    want = [0.8 * slope, (slope * x.detach()).sum().reshape(1), (g * t).sum(pooled), g.sum(pooled)]
    assert_close(list(got), want, **CLOSE)


def test_scaling_the_input_is_scaling_alpha_so_nothing_is_invariant(draw):
    layer, x = DynamicTanh(4, dtype=torch.float64), draw(5, 4)
    assert_close(layer(3 * x), DynamicTanh(4, alpha_init=1.5, dtype=torch.float64)(x), **CLOSE)
    assert (layer(3 * x) - layer(x)).abs().max() > 0.1


def test_it_is_odd_about_the_bias_and_within_the_weight_of_it(draw):
    layer, x = make(draw), draw(50, 4) * 10
    above, below = layer(x) - layer.bias, layer(-x) - layer.bias
    assert_close(above, -below, **CLOSE)
    assert bool((above.abs() <= layer.weight.abs() + 1e-15).all())
    assert_close(layer(torch.full((1, 4), 1e6, dtype=torch.float64))[0], layer.weight.detach() + layer.bias, **CLOSE)


def test_values_far_below_one_over_alpha_pass_linearly(draw):
    layer, x = DynamicTanh(4, alpha_init=1e-5, dtype=torch.float64), draw(5, 4)
    # tanh(z) = z - z^3 / 3: the relative error is below z^2 / 3
    assert_close(layer(x), 1e-5 * x, rtol=float((1e-5 * x).square().max()), atol=0)


def test_parameters_are_named_and_shaped_as_in_the_published_code():
    shapes = {name: tuple(p.shape) for name, p in DynamicTanh(4).named_parameters()}
    assert shapes == {"alpha": (1,), "weight": (4,), "bias": (4,)}
    assert [name for name, _ in DynamicTanh(4, affine=False).named_parameters()] == ["alpha"]
    assert repr(DynamicTanh(4, alpha_init=0.8)) == "DynamicTanh(4, alpha_init=0.8, affine=True)"


def test_reset_restores_alpha_and_the_affine_map(draw):
    layer = make(draw, alpha_init=0.8)
    layer.alpha.data += 1
    layer.reset_parameters()
    for name, tensor in DynamicTanh(4, alpha_init=0.8, dtype=torch.float64).state_dict().items():
        assert torch.equal(layer.state_dict()[name], tensor), name


def test_a_layer_all_in_half_precision_rounds_its_output_only(draw):
    x, layer = (2 * draw(50, 4)).half(), make(draw, alpha_init=0.3).half()
    alpha, weight, bias = (p.detach().double() for p in (layer.alpha, layer.weight, layer.bias))
    want = weight * torch.tanh(alpha * x.double()) + bias
    assert_close(layer(x).double(), want, rtol=0.51 * torch.finfo(torch.float16).eps, atol=1e-6)
