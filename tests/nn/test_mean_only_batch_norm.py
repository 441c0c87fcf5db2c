"""Mean-only batch norm takes the mean away, forward and backward, and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from normlens.nn.batch_norm import BatchNorm
from normlens.nn.mean_only_batch_norm import MeanOnlyBatchNorm

SHAPES = [(6, 4), (3, 4, 5), (3, 4, 2, 3), (2, 4, 2, 3, 2)]
CLOSE = {"rtol": 1e-13, "atol": 1e-13}


def over_channel(x):
    """The mean of each channel over batch and space, of the shape of ``x``."""
    return x.transpose(0, 1).flatten(1).mean(1).reshape(1, -1, *[1] * (x.dim() - 2)).expand_as(x)


def test_0_1_2_5_becomes_the_distance_from_2_and_a_gradient_loses_its_mean():
    x = torch.tensor([[0.0], [1.0], [2.0], [5.0]], dtype=torch.float64, requires_grad=True)
    layer = MeanOnlyBatchNorm(1, dtype=torch.float64)
    layer.bias.data += 0.5
    y = layer(x)
    assert y.flatten().tolist() == [-1.5, -0.5, 0.5, 3.5]
    (backward,) = torch.autograd.grad(y, x, torch.tensor([[1.0], [0.0], [0.0], [0.0]], dtype=torch.float64))
    assert backward.flatten().tolist() == [0.75, -0.25, -0.25, -0.25]


@pytest.mark.parametrize("shape", SHAPES)
def test_output_is_the_input_less_its_mean_plus_the_bias_and_the_gradient_less_its_own(draw, shape):
    layer, x, g = MeanOnlyBatchNorm(4, dtype=torch.float64), (draw(*shape) + 3).requires_grad_(), draw(*shape)
    layer.bias.data = draw(4)
    y = layer(x)
    assert_close(y, x - over_channel(x) + layer.bias.reshape(4, *[1] * (len(shape) - 2)), **CLOSE)
    backward, bias = torch.autograd.grad(y, [x, layer.bias], g)
    assert_close(backward, g - over_channel(g), **CLOSE)
    assert_close(bias, g.transpose(0, 1).flatten(1).sum(1), **CLOSE)


def test_its_jacobian_is_the_projection_off_the_constant(draw):
    layer = MeanOnlyBatchNorm(1, track_running_stats=False, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(layer, draw(7, 1)).reshape(7, 7)
    assert_close(jacobian, torch.eye(7, dtype=torch.float64) - 1 / 7, **CLOSE)


@pytest.mark.parametrize("shape", SHAPES)
def test_divided_by_the_deviation_of_each_channel_it_is_batch_norm(draw, shape):
    x = draw(*shape) * 3 + 2
    deviation = (x - over_channel(x)).square()
    y = MeanOnlyBatchNorm(4, dtype=torch.float64)(x) / over_channel(deviation).sqrt()
    assert_close(y, BatchNorm(4, eps=0.0, dtype=torch.float64)(x), rtol=1e-12, atol=1e-12)


def test_on_whitened_inputs_and_weights_of_unit_norm_it_is_batch_norm(draw):
    data = draw(20, 5)
    centered = data - data.mean(0)
    white = torch.linalg.svd(centered, full_matrices=False).U * 20**0.5  # mean 0, covariance 1
    v = draw(5, 4)
    mean_only = MeanOnlyBatchNorm(4, dtype=torch.float64)(white @ (v / v.norm(dim=0)))
    assert_close(mean_only, BatchNorm(4, eps=0.0, dtype=torch.float64)(white @ v), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
@pytest.mark.parametrize("shape", [(6, 4), (3, 4, 5)])
def test_the_running_mean_is_that_of_torch_over_a_run_and_eval_mode_takes_it_away(draw, shape, momentum):
    ours = MeanOnlyBatchNorm(4, momentum=momentum, dtype=torch.float64)
    theirs = nn.BatchNorm1d(4, momentum=momentum, dtype=torch.float64)
    for _ in range(3):
        x = draw(*shape) + 2
        ours(x)
        theirs(x)
        assert_close(ours.running_mean, theirs.running_mean, **CLOSE)
    running = theirs.running_mean.reshape(4, *[1] * (len(shape) - 2))
    assert_close(ours.eval()(x), x - running, **CLOSE)
    assert ours.eval()(x[:1]).shape == x[:1].shape


def test_it_keeps_a_bias_a_running_mean_and_a_count_and_nothing_of_a_variance():
    assert list(MeanOnlyBatchNorm(4).state_dict()) == ["bias", "running_mean", "num_batches_tracked"]
    assert list(MeanOnlyBatchNorm(4, affine=False, track_running_stats=False).state_dict()) == []
    assert repr(MeanOnlyBatchNorm(4)) == "MeanOnlyBatchNorm(4, momentum=0.1, affine=True, track_running_stats=True)"


def test_reset_restores_the_state_of_a_fresh_layer(draw):
    layer = MeanOnlyBatchNorm(4, dtype=torch.float64)
    layer.bias.data = draw(4)
    layer(draw(5, 4))
    layer.reset_parameters()
    for name, tensor in MeanOnlyBatchNorm(4, dtype=torch.float64).state_dict().items():
        assert torch.equal(layer.state_dict()[name], tensor), name


def test_without_a_running_mean_eval_mode_uses_that_of_the_batch(draw):
    layer, x = MeanOnlyBatchNorm(4, track_running_stats=False, dtype=torch.float64), draw(6, 4)
    assert torch.equal(layer.eval()(x), layer.train()(x))


def test_a_running_mean_kept_in_half_precision_is_rounded_only_where_it_is_stored(draw):
    x, start, layer = (draw(32, 64) * 500 + 1000).half(), (draw(64) * 300).half(), MeanOnlyBatchNorm(64).half()
    layer.running_mean.copy_(start)
    layer(x)
    want = 0.9 * start.double() + 0.1 * x.double().mean(0)
    assert_close(layer.running_mean.double(), want, rtol=0.51 * torch.finfo(torch.float16).eps, atol=1e-3)


@pytest.mark.parametrize("settings", [{}, {"track_running_stats": False}])
def test_one_value_per_channel_is_refused_and_not_counted(settings):
    layer = MeanOnlyBatchNorm(4, **settings)
    with pytest.raises(
        ValueError, match=r"MeanOnlyBatchNorm\(4\) needs more than one value per channel.*got \(1, 4, 1\); use a larger"
    ):
        layer(torch.ones(1, 4, 1))
    assert not settings or layer.num_batches_tracked is None
    assert settings or int(layer.num_batches_tracked) == 0
