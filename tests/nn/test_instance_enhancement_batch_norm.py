"""Instance enhancement batch norm starts as a fraction of batch norm and lets each sample's level set the scale."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.testing import assert_close

from normlens.nn import functional
from normlens.nn.batch_norm import BatchNorm
from normlens.nn.instance_enhancement_batch_norm import InstanceEnhancementBatchNorm

SHAPES = [(6, 4), (3, 4, 5), (3, 4, 3, 2), (2, 4, 3, 2, 2)]
START = 0.2689414213699951  # sigmoid(-1)


def perturbed(draw, **settings):
    """A layer with all parameters away from their initial values."""
    layer = InstanceEnhancementBatchNorm(4, dtype=torch.float64, **settings)
    for parameter in layer.parameters():
        parameter.data += 0.5 * draw(4)
    return layer


@pytest.mark.parametrize("settings", [{}, {"eps": 1e-3, "momentum": None}, {"track_running_stats": False}])
@pytest.mark.parametrize("shape", SHAPES)
def test_at_the_start_it_is_0_26894_times_batch_norm_over_a_run(draw, shape, settings):
    ours = InstanceEnhancementBatchNorm(4, dtype=torch.float64, **settings)
    batch = BatchNorm(4, dtype=torch.float64, **settings)
    for training in (True, True, False):
        x, g, results = draw(*shape) * 3 + 2, draw(*shape), []
        for layer, factor in ((ours, 1.0), (batch, START)):
            leaf = x.clone().requires_grad_()
            y = factor * layer.train(training)(leaf)
            results.append([y, *torch.autograd.grad(y, leaf, g), *layer.buffers()])
        assert_close(*results, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("shape", SHAPES)
def test_in_general_the_gate_of_each_sample_and_channel_multiplies_the_weight_and_not_the_bias(draw, shape):
    layer, x = perturbed(draw), draw(*shape) * 2 + 1
    level = x.reshape(shape[0], 4, -1).mean(2)  # of the raw input; the input itself for (N, C)
    gate = torch.sigmoid(layer.weight_readjust * level + layer.bias_readjust)
    plain = functional.batch_norm(x, None, layer.weight, None)
    of_channel = (1, -1, *(1,) * (len(shape) - 2))
    want = gate.reshape(*gate.shape, *(1,) * (len(shape) - 2)) * plain + layer.bias.reshape(of_channel)
    assert_close(layer(x), want, rtol=1e-13, atol=1e-13)


def test_levels_2_and_6_open_the_gate_to_a_half_and_to_sigmoid_of_2():
    layer = InstanceEnhancementBatchNorm(1, eps=0.0, dtype=torch.float64)
    layer.weight_readjust.data += 0.5
    y = layer(torch.tensor([[[1.0, 3.0]], [[5.0, 7.0]]], dtype=torch.float64))  # mean 4, variance 5
    want = torch.tensor([[[-3.0, -1.0]], [[1.0, 3.0]]], dtype=torch.float64) / 5**0.5
    gate = torch.tensor([0.5, 0.8807970779778823], dtype=torch.float64)
    assert_close(y, want * gate.reshape(2, 1, 1), rtol=1e-14, atol=0)


def test_an_open_gate_is_batch_norm_and_a_closed_one_leaves_the_bias(draw):
    layer, batch, x = perturbed(draw), BatchNorm(4, dtype=torch.float64), draw(3, 4, 5)
    batch.weight.data, batch.bias.data = layer.weight.data, layer.bias.data
    layer.weight_readjust.data *= 0
    layer.bias_readjust.data = torch.full((4,), 60.0).double()
    assert_close(layer(x), batch(x), rtol=1e-13, atol=1e-13)
    layer.bias_readjust.data *= -20
    assert torch.equal(layer(x), layer.bias[:, None].expand(3, 4, 5))


def test_from_the_first_step_on_the_gate_learns_by_gate_times_its_rest_times_the_level(draw):
    layer, x, g = InstanceEnhancementBatchNorm(4, dtype=torch.float64), draw(3, 4, 5) + 1, draw(3, 4, 5)
    got = torch.autograd.grad(layer(x), [layer.weight_readjust, layer.bias_readjust], g)
    slope = START * (1 - START) * functional.batch_norm(x) * g
    want = (slope * x.mean(2, keepdim=True)).sum((0, 2)), slope.sum((0, 2))
    assert_close(list(got), list(want), rtol=1e-12, atol=1e-12)


def test_it_ignores_scale_and_shift_of_a_channel_at_the_start_and_no_longer_after(draw):
    layer, x = InstanceEnhancementBatchNorm(4, eps=0.0, dtype=torch.float64), draw(3, 4, 5)
    assert_close(layer(3 * x + 2), layer(x), rtol=1e-12, atol=1e-12)
    layer.weight_readjust.data += 0.5
    assert (layer(3 * x + 2) - layer(x)).abs().max() > 0.1


def test_a_single_sample_of_constant_maps_becomes_the_bias(draw):
    layer = perturbed(draw)
    y = layer(draw(1, 4, 1, 1).expand(1, 4, 3, 2))
    assert_close(y, layer.bias.reshape(1, 4, 1, 1).expand(1, 4, 3, 2), rtol=0, atol=1e-12)


def test_foreign_samples_in_a_batch_enter_the_statistics_by_the_law_of_total_variance(draw):
    own, foreign = draw(6, 4, 5), draw(2, 4, 5) * 3 + 4
    layer = InstanceEnhancementBatchNorm(4, momentum=1.0, dtype=torch.float64)
    layer(torch.cat([own, foreign]))
    parts = [(n / 8, *(m.flatten() for m in functional.batch_moments(x))) for n, x in ((6, own), (2, foreign))]
    mean = sum(share * m for share, m, _ in parts)
    var = sum(share * (v + (m - mean).square()) for share, m, v in parts)
    assert_close(layer.running_mean, mean, rtol=1e-13, atol=1e-13)
    assert_close(layer.running_var, var * 40 / 39, rtol=1e-13, atol=0)


def test_there_are_four_parameters_per_channel_and_two_without_the_affine():
    assert sum(p.numel() for p in InstanceEnhancementBatchNorm(8).parameters()) == 32
    assert {n for n, _ in InstanceEnhancementBatchNorm(8, affine=False).named_parameters()} == {
        "weight_readjust",
        "bias_readjust",
    }


def test_a_batch_norm_gives_all_but_the_gate(draw):
    batch, ours = BatchNorm(4), InstanceEnhancementBatchNorm(4)
    batch(draw(3, 4, 5, dtype=torch.float32))
    missing = ours.load_state_dict(batch.state_dict(), strict=False)
    assert (missing.missing_keys, missing.unexpected_keys) == (["weight_readjust", "bias_readjust"], [])


def test_reset_parameters_makes_it_new(draw):
    layer = perturbed(draw)
    layer(draw(3, 4))
    layer.reset_parameters()
    new = InstanceEnhancementBatchNorm(4, dtype=torch.float64).state_dict()
    assert all(torch.equal(new[key], value) for key, value in layer.state_dict().items())


def test_one_value_per_channel_is_refused_on_batch_statistics_only(draw):
    layer = perturbed(draw)
    match = r"InstanceEnhancementBatchNorm\(4\) needs more than one value per channel.*got \(1, 4\).*a larger batch"
    with pytest.raises(ValueError, match=match):
        layer(draw(1, 4))
    assert int(layer.num_batches_tracked) == 0
    x = draw(3, 4)
    alone = copy.deepcopy(layer).eval()
    assert_close(alone(x[:1]), alone(x)[:1], rtol=1e-14, atol=1e-14)
