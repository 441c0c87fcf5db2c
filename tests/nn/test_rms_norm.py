"""RMS norm is torch's on (N, C) for any eps, and obeys its invariances."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from normlens.nn.functional import mean_square
from normlens.nn.rms_norm import RMSNorm


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("settings", [{"eps": 1e-6}, {"eps": 1e-2}, {"eps": 0.0}, {"eps": 1e-6, "affine": False}])
def test_on_features_outputs_and_gradients_are_those_of_torch(draw, settings, dtype):
    affine = settings.get("affine", True)
    ours = RMSNorm(6, dtype=dtype, **settings)
    theirs = nn.RMSNorm(6, eps=settings["eps"], elementwise_affine=affine, dtype=dtype)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        p.data = q.data = draw(6, dtype=dtype)
    x, g = draw(5, 6, dtype=dtype) + 2, draw(5, 6, dtype=dtype)
    results = []
    for layer in (ours, theirs):
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        results.append([y, *torch.autograd.grad(y, [leaf, *layer.parameters()], g)])
    assert_close(*results, rtol=8 * torch.finfo(dtype).eps, atol=8 * torch.finfo(dtype).eps)


def test_the_default_of_torch_is_the_machine_epsilon_and_ours_is_the_one_of_llama(draw):
    x, eps = 1e-3 * draw(5, 6, dtype=torch.float32), torch.finfo(torch.float32).eps
    assert_close(RMSNorm(6, eps=eps)(x), nn.RMSNorm(6)(x), rtol=8 * eps, atol=8 * eps)
    assert RMSNorm(6).eps == 1e-6


@pytest.mark.parametrize("shape", [(5, 6), (3, 6, 4), (3, 6, 4, 2), (2, 6, 2, 3, 2)])
def test_with_space_each_sample_has_mean_square_one_over_channels_and_space(draw, shape):
    y = RMSNorm(6, eps=0.0, dtype=torch.float64)(draw(*shape) + 2)
    ones = torch.ones(shape[0], dtype=torch.float64)
    assert_close(mean_square(y, tuple(range(1, y.dim()))).flatten(), ones, rtol=1e-13, atol=0)


def test_state_dicts_travel_strictly_between_torch_and_here(draw):
    ours, theirs = RMSNorm(6), nn.RMSNorm(6)
    ours.weight.data = draw(6, dtype=torch.float32)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    fresh = RMSNorm(6)
    fresh.load_state_dict(theirs.state_dict(), strict=True)
    assert torch.equal(fresh.weight, ours.weight)


def test_output_is_invariant_to_scaling_a_sample_but_not_to_shifting_it(draw):
    layer, x = RMSNorm(6, eps=0.0, dtype=torch.float64), draw(3, 6, 4)
    assert_close(layer(7 * x), layer(x), rtol=1e-12, atol=1e-12)
    assert (layer(x + 1) - layer(x)).abs().max() > 0.1


def test_a_single_value_becomes_its_sign():
    x = torch.tensor([[-3.0], [0.5]], dtype=torch.float64)
    assert_close(RMSNorm(1, eps=0.0, dtype=torch.float64)(x), x.sign(), rtol=1e-13, atol=0)


@pytest.mark.parametrize("shape", [(0, 4), (0, 4, 3)])
def test_an_empty_batch_has_an_empty_output_and_a_gradient_of_zero(shape):
    norm = RMSNorm(4)
    y = norm(torch.zeros(shape, requires_grad=True))
    y.sum().backward()
    assert y.shape == shape
    assert not norm.weight.grad.any()
