"""Divisive norm is layer norm at one end and linear at the other; its windows are those of SciPy."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter
from torch import nn
from torch.testing import assert_close

from normlens.nn.divisive_norm import DivisiveNorm
from normlens.nn.functional import layer_norm, standardize

exact = partial(assert_close, rtol=1e-12, atol=1e-12)
EVERYTHING = {"sum_window": None, "sup_window": None}


def layer_of(channels, **settings):
    return DivisiveNorm(channels, dtype=torch.float64, **settings)


def box(maps, window, include_pad):
    """Mean over a centered window of (N, *spatial), by SciPy, divided by its own area or by the full one."""
    size = (1, *(window,) * (maps.ndim - 1))
    total = uniform_filter(maps, size, mode="constant")
    return total if include_pad else total / uniform_filter(np.ones_like(maps), size, mode="constant")


@pytest.mark.parametrize(
    ("sigma", "want"),
    [
        (1.0, [-0.9428090416, -0.4714045208, 0.0, 1.4142135624]),
        (0.0, [-1.0690449676, -0.5345224838, 0.0, 1.6035674515]),
    ],
)
def test_1_2_3_6_gives_the_vectors_worked_out_by_hand(sigma, want):
    x = torch.tensor([[1.0, 2.0, 3.0, 6.0]], dtype=torch.float64)
    assert_close(layer_of(4, sigma=sigma, **EVERYTHING)(x)[0].tolist(), want, rtol=0, atol=5e-11)


@pytest.mark.parametrize("shape", [(5, 6), (3, 6, 4), (3, 6, 4, 2), (2, 6, 2, 3, 2)])
@pytest.mark.parametrize("sigma", [0.0, math.sqrt(1e-5), 1.0])
def test_over_everything_it_is_layer_norm_with_sigma_squared_for_eps(draw, sigma, shape):
    ours, x = layer_of(6, sigma=sigma, **EVERYTHING), draw(*shape) * 2 + 1
    ours.weight.data, ours.bias.data = draw(6), draw(6)
    theirs = nn.GroupNorm(1, 6, eps=sigma**2, dtype=torch.float64)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    exact(ours(x), layer_norm(x, ours.weight, ours.bias, eps=sigma**2))
    g, results = draw(*shape), []
    for layer in (ours, theirs):
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        results.append([y, *torch.autograd.grad(y, [leaf, *layer.parameters()], g)])
    exact(*results)


def test_windows_wider_than_twice_the_input_are_everything(draw):
    x = draw(2, 3, 4, 4)
    exact(layer_of(3, sum_window=7, sup_window=9)(x), layer_of(3, **EVERYTHING)(x))


def test_windows_of_one_place_standardize_it_over_its_channels(draw):
    x = draw(3, 4, 5, 2)
    mean, var = x.mean(1, keepdim=True), x.var(1, keepdim=True, correction=0)
    exact(layer_of(4, sum_window=1, sup_window=1, sigma=0.5)(x), standardize(x, mean, var, 0.25))


@pytest.mark.parametrize("include_pad", [False, True])
@pytest.mark.parametrize("windows", [(3, 3), (5, 3), (1, 5), (3, None), (None, 3)])
@pytest.mark.parametrize("shape", [(2, 3, 7), (2, 3, 6, 5), (2, 3, 4, 3, 5)])
def test_with_space_the_fields_are_the_boxes_of_scipy_over_all_channels(draw, shape, windows, include_pad):
    x = draw(*shape) + 1

    def field(values, window):
        maps = values.numpy().mean(1)
        if window is None:
            return torch.from_numpy(maps.mean(tuple(range(1, maps.ndim)), keepdims=True))[:, None]
        return torch.from_numpy(box(maps, window, include_pad))[:, None]

    v = x - field(x, windows[0])
    want = v / (0.3**2 + field(v.square(), windows[1])).sqrt()
    layer = layer_of(3, sum_window=windows[0], sup_window=windows[1], sigma=0.3, count_include_pad=include_pad)
    exact(layer(x), want)


@pytest.mark.parametrize("include_pad", [False, True])
def test_without_space_the_fields_are_windows_of_channels(draw, include_pad):
    x = draw(4, 7) + 1
    v = x - torch.from_numpy(box(x.numpy(), 3, include_pad))
    want = v / (1 + torch.from_numpy(box(v.square().numpy(), 5, include_pad))).sqrt()
    exact(layer_of(7, sum_window=3, sup_window=5, count_include_pad=include_pad)(x), want)


def test_a_large_sigma_leaves_the_centered_values(draw):
    layer, x, sigma = layer_of(4, sigma=1e5), draw(3, 4, 6), 1e5
    layer.weight.data.fill_(sigma)
    field = torch.from_numpy(box(x.numpy().mean(1), 5, include_pad=False))[:, None]
    v = x - field
    assert_close(layer(x), v, rtol=100 / sigma**2, atol=1e-12)  # 1 - v^2 / (2 sigma^2), v^2 < 200


def test_the_jacobian_at_a_constant_input_is_centering_times_weight_over_sigma():
    layer, constant = layer_of(4, sigma=0.5, **EVERYTHING), torch.full((1, 4), 3.0, dtype=torch.float64)
    layer.weight.data.fill_(2.0)
    jacobian = torch.autograd.functional.jacobian(layer, constant)[0, :, 0]
    exact(jacobian, 4 * (torch.eye(4, dtype=torch.float64) - 0.25))
    without = layer_of(4, sigma=0.0, **EVERYTHING)
    assert torch.autograd.functional.jacobian(without, constant).isnan().all()


def test_a_learned_sigma_starts_at_sigma_and_has_the_gradient_of_the_formula(draw):
    layer, x, g = layer_of(5, sigma=0.7, learn_sigma=True, **EVERYTHING), draw(4, 5), draw(4, 5)
    assert layer.learned_sigma.item() == 0.7
    exact(layer(x), layer_of(5, sigma=0.7, **EVERYTHING)(x))
    (got,) = torch.autograd.grad(layer(x), layer.learned_sigma, g)
    v = x - x.mean(1, keepdim=True)
    strength = v.square().mean(1, keepdim=True) + 0.49
    exact(got, -(g * v * 0.7 / strength**1.5).sum())
    layer.learned_sigma.data += 1
    layer.reset_parameters()
    assert layer.learned_sigma.item() == 0.7


def test_the_l1_term_is_the_mean_of_what_the_summation_field_leaves(draw):
    x = draw(3, 4, 6) + 5
    v = x - torch.from_numpy(box(x.numpy().mean(1), 3, include_pad=False))[:, None]
    layer = layer_of(4, sum_window=3)
    exact(layer.centered_l1(x), v.abs().mean())
    assert layer.centered_l1(x.half()).dtype == torch.float32


def test_the_l1_term_of_every_layer_reaches_the_loss_as_the_docstring_says(draw):
    first, second = nn.Linear(5, 6, dtype=torch.float64), layer_of(6)
    terms = []
    second.register_forward_pre_hook(lambda layer, inputs: terms.append(layer.centered_l1(*inputs)))
    x = draw(3, 5)
    nn.Sequential(first, second)(x)
    (gradient,) = torch.autograd.grad(sum(terms), first.bias)
    (want,) = torch.autograd.grad(second.centered_l1(first(x)), first.bias)
    exact(gradient, want)
    assert want.abs().max() > 0


def test_a_single_sample_is_normalized_as_in_any_batch(draw):
    layer, x = layer_of(4), draw(5, 4, 6, 6)
    exact(torch.cat([layer(one[None]) for one in x]), layer(x))


@pytest.mark.parametrize(("settings", "x"), [({}, (4, 1)), ({"sum_window": 1}, (4, 1, 6)), ({"sum_window": 1}, (4, 1))])
def test_one_value_per_summation_field_is_refused(settings, x):
    match = r"DivisiveNorm\(1\) needs more than one value per summation field.*; got \(4, 1.*; widen sum_window"
    with pytest.raises(ValueError, match=match):
        DivisiveNorm(1, **settings)(torch.ones(x))


@pytest.mark.parametrize("name", ["sum_window", "sup_window"])
@pytest.mark.parametrize("window", [0, 4, -3])
def test_a_window_that_is_not_odd_is_refused(name, window):
    with pytest.raises(ValueError, match=f"an odd {name}, with as much on either side; got {window}; use an odd one"):
        DivisiveNorm(4, **{name: window})


def test_a_sigma_that_is_negative_or_cannot_be_learned_is_refused():
    with pytest.raises(ValueError, match=r"sigma of at least 0; got -1.0; sigma\^2 is what counts"):
        DivisiveNorm(4, sigma=-1.0)
    with pytest.raises(ValueError, match=r"sigma above 0 to learn it.*got 0; start at 0.01 or 1"):
        DivisiveNorm(4, sigma=0.0, learn_sigma=True)
