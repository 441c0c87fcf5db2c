"""Batch norm is torch's in every number, and obeys its theorems."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from normlens.nn.batch_norm import BatchNorm
from normlens.nn.functional import batch_moments

RANKS = {
    (6, 4): nn.BatchNorm1d,
    (3, 4, 5): nn.BatchNorm1d,
    (3, 4, 5, 2): nn.BatchNorm2d,
    (3, 4, 2, 3, 2): nn.BatchNorm3d,
}
SETTINGS = [
    {},
    {"momentum": None, "eps": 1e-3},
    {"momentum": 0.7, "affine": False},
    {"track_running_stats": False},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("shape", RANKS)
def test_outputs_gradients_and_buffers_are_those_of_torch_over_a_run(draw, shape, settings, dtype):
    ours, theirs = BatchNorm(4, dtype=dtype, **settings), RANKS[shape](4, dtype=dtype, **settings)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        p.data = q.data = draw(4, dtype=dtype)
    for training in (True, True, True, False):
        x, g = draw(*shape, dtype=dtype) * 3 + 2, draw(*shape, dtype=dtype)
        results = []
        for layer in (ours.train(training), theirs.train(training)):
            leaf = x.clone().requires_grad_()
            y = layer(leaf)
            results.append([y, *torch.autograd.grad(y, [leaf, *layer.parameters()], g), *layer.buffers()])
        assert_close(*results, rtol=8 * torch.finfo(dtype).eps, atol=64 * torch.finfo(dtype).eps)


def test_state_dicts_travel_strictly_between_torch_and_here(draw):
    ours, theirs = BatchNorm(4), nn.BatchNorm2d(4)
    theirs(draw(3, 4, 5, 5, dtype=torch.float32) + 1)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    back = nn.BatchNorm2d(4)
    back.load_state_dict(ours.state_dict(), strict=True)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(back.state_dict().values(), theirs.state_dict().values(), strict=True))


@pytest.mark.parametrize("shape", [(1, 4), (1, 4, 1, 1)])
def test_one_value_per_channel_is_refused_on_batch_statistics_only(shape):
    match = r"BatchNorm\(4\) needs more than one value per channel.*; got .*, 1 per channel; use a larger batch"
    for layer in (BatchNorm(4), BatchNorm(4, track_running_stats=False).eval()):
        with pytest.raises(ValueError, match=match):
            layer(torch.ones(shape))
    assert_close(BatchNorm(4, eps=0.0).eval()(torch.ones(shape)), torch.ones(shape))


def test_a_refused_batch_is_not_counted():
    layer = BatchNorm(4)
    with pytest.raises(ValueError, match="more than one value"):
        layer(torch.ones(1, 4))
    assert int(layer.num_batches_tracked) == 0


def test_output_is_invariant_to_a_positive_scale_and_any_shift_of_each_channel(draw):
    layer, x = BatchNorm(4, eps=0.0, dtype=torch.float64), draw(6, 4, 3)
    scale, shift = draw(4, 1).exp(), draw(4, 1)
    assert_close(layer(x * scale + shift), layer(x), rtol=1e-12, atol=1e-12)


def test_the_standardized_offset_of_a_channel_is_its_bias_over_its_weight_whatever_the_data(draw):
    layer = BatchNorm(4, eps=0.0, dtype=torch.float64)
    layer.weight.data, layer.bias.data = draw(4), draw(4)
    mean, var = batch_moments(layer(draw(8, 4, 3).exp()))
    assert_close((mean / var.sqrt()).flatten(), layer.bias / layer.weight.abs(), rtol=1e-12, atol=1e-12)


def test_backward_of_1_2_3_4_is_the_vector_worked_out_by_hand():
    y = torch.tensor([[1.0], [2.0], [3.0], [4.0]], dtype=torch.float64, requires_grad=True)
    g = torch.tensor([[1.0], [0.0], [0.0], [0.0]], dtype=torch.float64)
    (backward,) = torch.autograd.grad(BatchNorm(1, eps=0.0, dtype=torch.float64)(y), y, g)
    assert_close(backward.flatten().tolist(), [0.2683, -0.3578, -0.0894, 0.1789], rtol=0, atol=5e-5)


def test_backward_energy_is_what_is_left_of_the_gradient_off_the_constant_and_the_output(draw):
    m, layer = 16, BatchNorm(3, eps=0.0, affine=False, dtype=torch.float64)
    y, g = draw(m, 3).requires_grad_(), draw(m, 3)
    z = layer(y)
    (backward,) = torch.autograd.grad(z, y, g)
    left = g.square().sum(0) - g.sum(0).square() / m - (z.detach() * g).sum(0).square() / m
    assert_close(backward.square().sum(0), left / y.detach().var(0, correction=0), rtol=1e-12, atol=1e-12)


def test_a_constant_channel_becomes_the_bias():
    layer = BatchNorm(2, dtype=torch.float64)
    layer.bias.data += 0.5
    y = layer(torch.tensor([[3.0, 1.0], [5.0, 1.0]], dtype=torch.float64))
    assert_close(y[:, 1].tolist(), [0.5, 0.5], rtol=0, atol=1e-12)
    assert_close(y[:, 0].tolist(), [-0.5, 1.5], rtol=0, atol=1e-5)


def test_a_layer_all_in_half_precision_normalizes_a_batch_whose_variance_overflows(draw):
    x = (draw(64, 4) * 500 + 1000).half()  # variance 250000; float16 ends at 65504
    y = BatchNorm(4).half()(x)
    want = BatchNorm(4, dtype=torch.float64)(x.double())
    assert_close(y.double(), want, rtol=torch.finfo(torch.float16).eps, atol=torch.finfo(torch.float16).eps)
