"""Scale norm is the paper's g x / |x|, and root mean square norm with one gain."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from normlens.nn.rms_norm import RMSNorm
from normlens.nn.scale_norm import ScaleNorm

SHAPES = [(5, 6), (3, 6, 4), (3, 6, 4, 2), (2, 6, 2, 3, 2)]
CLOSE = {"rtol": 1e-13, "atol": 1e-13}


def make(gain, **settings):
    layer = ScaleNorm(6, dtype=torch.float64, **settings)
    layer.weight.data.fill_(gain)
    return layer


def test_1_2_3_6_with_a_gain_of_2_becomes_the_vector_worked_out_by_hand():
    layer = ScaleNorm(4, eps=0.0, dtype=torch.float64)
    assert layer.weight.tolist() == [2.0]  # the square root of the channels
    y = layer(torch.tensor([[1.0, 2.0, 3.0, 6.0]], dtype=torch.float64))
    assert_close(y.flatten().tolist(), [0.2828427, 0.5656854, 0.8485281, 1.6970563], rtol=0, atol=5e-8)


@pytest.mark.parametrize("eps", [0.0, 1e-6, 1e-2])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_root_mean_square_norm_with_one_gain_in_outputs_and_gradients(draw, shape, eps):
    scale, rms = make(1.7, eps=eps), RMSNorm(6, eps=eps, dtype=torch.float64)
    rms.weight.data.fill_(1.7 / math.sqrt(6))
    x, g = (draw(*shape) + 2).requires_grad_(), draw(*shape)
    ours, theirs = scale(x), rms(x)
    dx, dgain = torch.autograd.grad(ours, [x, scale.weight], g)
    want, dweight = torch.autograd.grad(theirs, [x, rms.weight], g)
    assert_close([ours, dx, dgain], [theirs, want, dweight.sum().reshape(1) / math.sqrt(6)], **CLOSE)


def test_on_features_it_is_the_gain_times_the_direction(draw):
    x = draw(5, 6) + 2
    assert_close(make(-0.7, eps=0.0)(x), -0.7 * nn.functional.normalize(x, dim=1), **CLOSE)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_sample_has_the_length_of_the_gain_in_the_mean_over_positions(draw, shape):
    y = make(1.7, eps=0.0)(draw(*shape) + 2)
    lengths = y.square().sum(1).flatten(1).mean(1) if y.dim() > 2 else y.square().sum(1)
    assert_close(lengths, torch.full((shape[0],), 1.7**2, dtype=torch.float64), **CLOSE)


def test_the_gradient_of_a_sample_is_off_the_sample_and_falls_with_its_length(draw):
    layer, x, g = make(1.7, eps=0.0), draw(5, 6) + 2, draw(5, 6)
    leaves = [x.clone().requires_grad_(), (3 * x).requires_grad_()]
    at_x, at_3x = (torch.autograd.grad(layer(leaf), leaf, g)[0] for leaf in leaves)
    assert_close(at_3x, at_x / 3, **CLOSE)
    assert_close((at_x * x).sum(1), torch.zeros(5, dtype=torch.float64), **CLOSE)


def test_without_affine_the_gain_stays_the_square_root_of_the_channels(draw):
    x = draw(5, 6)
    layer = ScaleNorm(6, affine=False, dtype=torch.float64)
    assert list(layer.parameters()) == []
    assert_close(layer(x), ScaleNorm(6, dtype=torch.float64)(x), **CLOSE)


def test_reset_restores_the_square_root_of_the_channels():
    layer = make(7.0)
    layer.reset_parameters()
    assert layer.weight.tolist() == [math.sqrt(6)]


def test_a_single_value_becomes_its_sign():
    x = torch.tensor([[-3.0], [0.5]], dtype=torch.float64)
    assert_close(ScaleNorm(1, eps=0.0, dtype=torch.float64)(x), x.sign(), **CLOSE)


def test_a_layer_all_in_half_precision_normalizes_a_sample_whose_square_overflows(draw):
    x = (draw(5, 6) * 500 + 1000).half()
    eps = torch.finfo(torch.float16).eps
    assert_close(ScaleNorm(6).half()(x).double(), ScaleNorm(6, dtype=torch.float64)(x.double()), rtol=2 * eps, atol=0)
