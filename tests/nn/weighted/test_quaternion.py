"""Quaternion layers multiply by quaternions, their transposes by the conjugates, and are exact adjoints."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from normlens.nn.weighted.hamilton import hamilton_product
from normlens.nn.weighted.quaternion import QuaternionConv, QuaternionConvTranspose, QuaternionLinear

KINDS = [QuaternionConv, QuaternionConvTranspose]


def generator(seed=5):
    return torch.Generator().manual_seed(seed)


def linear(inputs, outputs, **settings):
    return QuaternionLinear(inputs, outputs, generator=generator(), dtype=torch.float64, **settings)


def pair(kernel, **settings):
    """A convolution from 8 to 12 channels and the transposed one of the same weight, both without bias."""
    forward = QuaternionConv(8, 12, kernel, generator=generator(), has_bias=False, dtype=torch.float64, **settings)
    back = QuaternionConvTranspose(
        12, 8, kernel, generator=generator(6), has_bias=False, dtype=torch.float64, **settings
    )
    back.weight.data = forward.weight.data
    return forward, back


def one(cls):
    """A layer of one quaternion (1, 2, 3, 4) that is applied to one pixel."""
    layer = cls(4, 4, (1,), generator=generator(), has_bias=False, dtype=torch.float64)
    layer.weight.data = torch.tensor([1.0, 2, 3, 4], dtype=torch.float64).reshape(4, 1, 1, 1)
    return layer


PIXEL = torch.tensor([5.0, 6, 7, 8], dtype=torch.float64).reshape(1, 4, 1)


def test_one_weight_on_one_pixel_is_the_known_product_and_its_transpose_that_of_the_conjugate():
    assert one(QuaternionConv)(PIXEL).flatten().tolist() == [-60, 12, 30, 24]
    assert one(QuaternionConvTranspose)(PIXEL).flatten().tolist() == [70, 0, -16, -8]
    layer = linear(4, 4, has_bias=False)
    layer.weight.data = torch.tensor([1.0, 2, 3, 4], dtype=torch.float64).reshape(4, 1, 1)
    assert layer(PIXEL[..., 0]).flatten().tolist() == [-60, 12, 30, 24]


def test_a_linear_layer_adds_up_products_of_quaternions(draw):
    layer, x = linear(12, 8), draw(5, 12)
    layer.bias.data = draw(8)
    for o in range(2):
        total = sum(hamilton_product(layer.weight[:, o, i], x[:, i::3]) for i in range(3))
        assert_close(layer(x)[:, o::2], total + layer.bias[o::2], rtol=1e-13, atol=1e-13)


def test_a_convolution_is_the_linear_layer_under_the_kernel(draw):
    layer, x = QuaternionConv(8, 4, (2, 3), generator=generator(), dtype=torch.float64), draw(2, 8, 2, 3)
    layer.bias.data = draw(4)
    total = sum(
        hamilton_product(layer.weight[:, 0, i, a, b], x[:, i::2, a, b])
        for i in range(2)
        for a in (0, 1)
        for b in range(3)
    )
    assert_close(layer(x)[:, :, 0, 0], total + layer.bias, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    ("kernel", "settings", "size"),
    [
        ((3,), {}, (7,)),
        ((3, 3), {"stride": 2, "padding": 1}, (7, 9)),
        ((3, 2), {"dilation": 2, "padding": 1}, (8, 6)),
        ((2, 1, 3), {"stride": 2, "padding": 1}, (6, 5, 5)),
    ],
)
def test_the_transposed_convolution_is_the_exact_adjoint(draw, kernel, settings, size):
    forward, back = pair(kernel, **settings)
    x = draw(2, 8, *size)
    y = draw(*forward(x).shape)
    returned = back(y)
    assert returned.shape == x.shape
    assert_close((forward(x) * y).sum(), (x * returned).sum(), rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad((forward(x.requires_grad_()) * y).sum(), x)
    assert_close(returned, gradient, rtol=1e-12, atol=1e-12)


def test_output_padding_restores_the_size_that_a_stride_forgets(draw):
    forward, back = pair((3, 3), stride=2, padding=1)
    x = draw(1, 8, 8, 8)
    whole = QuaternionConvTranspose(
        12, 8, (3, 3), stride=2, padding=1, output_padding=1, has_bias=False, generator=generator(), dtype=torch.float64
    )
    whole.weight.data = forward.weight.data
    y = draw(*forward(x).shape)
    assert back(y).shape[2:] == (7, 7)
    assert_close((forward(x) * y).sum(), (x * whole(y)).sum(), rtol=1e-12, atol=1e-12)


def test_it_commutes_with_a_quaternion_from_the_right_and_not_from_the_left(draw):
    layer, x, q = linear(8, 8, has_bias=False), draw(5, 8), draw(4).repeat_interleave(2)
    assert_close(layer(hamilton_product(x, q.expand_as(x))), hamilton_product(layer(x), q.expand_as(x)))
    other = layer(hamilton_product(q.expand_as(x), x)) - hamilton_product(q.expand_as(x), layer(x))
    assert float(other.detach().abs().max()) > 0.1


@pytest.mark.parametrize("cls", KINDS)
def test_it_has_a_quarter_of_the_weights_of_the_real_layer(cls):
    layer = cls(8, 12, (3, 3), generator=generator())
    assert layer.weight.numel() * 4 == layer.real_weight().numel() == 8 * 12 * 9
    assert layer.bias.shape == (12,)


@pytest.mark.parametrize(("init", "of_glorot"), [("glorot", True), ("he", False)])
@pytest.mark.parametrize("cls", KINDS)
def test_the_modulus_is_drawn_by_the_fans_of_quaternions(cls, init, of_glorot):
    layer = cls(64, 128, (5, 5), generator=generator(), init=init, dtype=torch.float64)
    fan_in, fan_out = 16 * 25, 32 * 25
    scale = 1 / math.sqrt(2 * (fan_in + fan_out * of_glorot))
    square = layer.weight.detach().square().sum(0)
    # |w|^2 / s^2 is chi-square with 4 degrees of freedom: mean 4, variance 8
    assert float(square.mean()) / scale**2 == pytest.approx(4, abs=5 * math.sqrt(8 / square.numel()))
    share = layer.weight.detach()[0].square().mean() / square.mean()
    assert float(share) == pytest.approx(0.5, abs=0.02)  # of the real part, E cos^2


@pytest.mark.parametrize("cls", [QuaternionLinear, *KINDS])
def test_sizes_that_four_does_not_divide_are_refused(cls):
    kernel = [] if cls is QuaternionLinear else [(3,)]
    with pytest.raises(
        ValueError, match=rf"{cls.__name__} needs sizes that four divides.* got 6 in and 8 out; count all"
    ):
        cls(6, 8, *kernel, generator=generator())
    with pytest.raises(ValueError, match=rf"{cls.__name__} needs init to be 'glorot' or 'he'; got 'lecun'; choose one"):
        cls(4, 8, *kernel, generator=generator(), init="lecun")
    with pytest.raises(ValueError, match=rf"{cls.__name__} needs (in|out)_.* of at least 1; got 0"):
        cls(4, 0, *kernel, generator=generator())


@pytest.mark.parametrize("cls", KINDS)
def test_a_kernel_of_another_rank_is_refused(cls):
    with pytest.raises(ValueError, match=rf"{cls.__name__} needs kernel_size as a tuple"):
        cls(4, 4, 3, generator=generator())
