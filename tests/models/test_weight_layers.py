from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from scipy import stats
from torch import nn

from normlens.models.weight_layers import conv, linear


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


LAYERS: dict[str, tuple[Callable[[torch.Generator], nn.Conv2d | nn.Linear], int]] = {
    "conv 1": (lambda g: conv(96, 128, kernel=1, bias=True, generator=g), 96),
    "conv 3": (lambda g: conv(32, 64, bias=True, generator=g), 9 * 32),
    "linear": (lambda g: linear(100, 200, bias=True, generator=g), 100),
}


@pytest.mark.parametrize("name", LAYERS)
def test_weights_are_normal_with_variance_two_over_fan_in(name: str) -> None:
    make, fan_in = LAYERS[name]
    sample = make(generator()).weight.detach().flatten().double().numpy()
    assert stats.kstest(sample, stats.norm(scale=math.sqrt(2 / fan_in)).cdf).pvalue > 1e-3
    # the standard error of a sample variance is sqrt(2 / n) of the variance
    assert abs(sample.var() * fan_in / 2 - 1) < 4 * math.sqrt(2 / sample.size)


@pytest.mark.parametrize("name", LAYERS)
def test_the_generator_decides_the_weights_and_the_bias_is_zero(name: str) -> None:
    make, _ = LAYERS[name]
    first, again, other = make(generator(1)), make(generator(1)), make(generator(2))
    assert torch.equal(first.weight, again.weight)
    assert not torch.equal(first.weight, other.weight)
    assert not first.state_dict()["bias"].any()


@pytest.mark.parametrize("name", LAYERS)
def test_making_a_layer_leaves_the_global_random_states_alone(
    name: str, global_random_states: Callable[[], str]
) -> None:
    before = global_random_states()
    LAYERS[name][0](generator())
    assert global_random_states() == before


def test_a_layer_without_bias_has_none_and_draws_the_same_weights() -> None:
    with_bias, without = (linear(5, 3, bias=bias, generator=generator()) for bias in (True, False))
    assert torch.equal(with_bias.weight, without.weight)
    assert list(without.state_dict()) == ["weight"]
    assert list(conv(5, 3, bias=False, generator=generator()).state_dict()) == ["weight"]


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize(("stride", "size"), [(1, 7), (2, 4)])
def test_a_convolution_divides_the_image_size_by_its_stride_alone(kernel: int, stride: int, size: int) -> None:
    layer = conv(2, 3, kernel=kernel, stride=stride, bias=False, generator=generator())
    assert layer(torch.zeros(1, 2, 7, 7)).shape == (1, 3, size, size)


def test_a_relu_keeps_the_mean_square_that_the_weights_doubled() -> None:
    width = 2000
    x = torch.rand(width, generator=generator(1))
    y = torch.relu(linear(width, width, bias=False, generator=generator())(x)).detach()
    # y is half-normal with an atom, E y^2 = E x^2 =: v and var(y^2) = 5 v^2
    assert abs(float((y**2).mean() / (x**2).mean()) - 1) < 4 * math.sqrt(5 / width)
