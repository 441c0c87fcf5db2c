"""EvoNorm S0 is a gated input over its groups' spread, B0 an input over the larger of two spreads."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from normlens.nn.batch_norm import BatchNorm
from normlens.nn.evo_norm import EvoNorm
from normlens.nn.functional import batch_moments, group_moments, instance_moments, per_channel
from normlens.nn.group_norm import GroupNorm, default_groups

SHAPES = [(6, 4), (3, 4, 5), (3, 4, 3, 2), (2, 4, 3, 2, 2)]


def build(draw, **settings):
    """A layer with all parameters away from their initial values."""
    layer = EvoNorm(4, dtype=torch.float64, **settings)
    for parameter in layer.parameters():
        parameter.data += 0.5 * draw(4)
    return layer


def test_s0_on_a_group_of_variance_one_is_the_input_times_its_sigmoid():
    x = torch.tensor([[[1.0, 3.0]]], dtype=torch.float64)
    y = EvoNorm(1, eps=0.0, dtype=torch.float64)(x)
    assert_close(y.flatten().tolist(), [0.7310585786300049, 2.8577223804673], rtol=1e-13, atol=0)
    assert_close(y, F.silu(x), rtol=1e-14, atol=0)


def test_b0_on_a_single_sample_1_and_minus_1_gives_a_half_and_minus_1():
    x = torch.tensor([[[1.0, -1.0]]], dtype=torch.float64)  # both variances 1: max(1, x + 1) is 2 and 1
    assert_close(EvoNorm(1, batch_based=True, eps=0.0, dtype=torch.float64)(x).flatten().tolist(), [0.5, -1.0])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("groups", [None, 1, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_s0_is_its_formula_in_both_modes(draw, shape, groups, training):
    layer, x = build(draw, groups=groups).train(training), draw(*shape) * 2 + 1
    spread = (group_moments(x, layer.groups).var + 1e-5).sqrt()
    v, weight, bias = (per_channel(p, x) for p in (layer.v, layer.weight, layer.bias))
    assert_close(layer(x), weight * x * torch.sigmoid(v * x) / spread + bias, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("shape", SHAPES)
def test_b0_is_its_formula_with_the_batchs_variance_or_the_running_one(draw, shape):
    layer, batch = build(draw, batch_based=True, momentum=0.3), BatchNorm(4, momentum=0.3, dtype=torch.float64)
    for training in (True, True, False):
        x = draw(*shape) * 2 + 1
        if training:
            batch(x)
        of_batch = batch_moments(x).var if training else per_channel(batch.running_var, x)
        of_instance = instance_moments(x).var if x.dim() > 2 else torch.zeros_like(x)
        v, weight, bias = (per_channel(p, x) for p in (layer.v, layer.weight, layer.bias))
        divisor = torch.maximum((of_batch + 1e-5).sqrt(), v * x + (of_instance + 1e-5).sqrt())
        assert_close(layer.train(training)(x), weight * x / divisor + bias, rtol=1e-13, atol=1e-13)
        assert_close(list(layer.buffers()), list(batch.buffers()), rtol=1e-13, atol=1e-13)


def test_with_v_zero_s0_is_half_of_group_norm_on_groups_of_mean_zero(draw):
    layer, x = EvoNorm(4, groups=2, dtype=torch.float64), draw(3, 4, 5)
    layer.v.data *= 0
    x = x - group_moments(x, 2).mean
    assert_close(layer(x), 0.5 * GroupNorm(4, groups=2, dtype=torch.float64)(x), rtol=1e-12, atol=1e-12)


def test_with_v_zero_b0_is_batch_norm_on_channels_of_mean_zero_whose_samples_spread_alike(draw):
    layer, x = EvoNorm(4, batch_based=True, eps=0.0, dtype=torch.float64), draw(3, 4, 5)
    layer.v.data *= 0
    mean, var = instance_moments(x)
    level = draw(3, 4, 1)
    x = (x - mean) / var.sqrt() + level - level.mean(0)  # so the batch's variance is the larger one
    assert_close(layer(x), BatchNorm(4, eps=0.0, dtype=torch.float64)(x), rtol=1e-12, atol=1e-12)


def test_scale_of_the_input_does_not_matter_to_b0_and_matters_to_the_gate_of_s0(draw):
    x = draw(3, 4, 5)
    for batch_based in (True, False):
        layer = EvoNorm(4, batch_based=batch_based, eps=0.0, dtype=torch.float64)
        off = (layer(5 * x) - layer(x)).abs().max()
        assert (off < 1e-13) if batch_based else (off > 0.1)


def test_s0_knows_no_batch_and_keeps_no_running_statistics(draw):
    layer, x = build(draw), draw(3, 4, 5)
    assert_close(layer(x)[1:2], layer(x[1:2]), rtol=1e-13, atol=1e-13)
    assert list(layer.buffers()) == []


def test_reset_parameters_makes_it_new(draw):
    layer = build(draw, batch_based=True)
    layer(draw(3, 4, 5))
    layer.reset_parameters()
    new = EvoNorm(4, batch_based=True, dtype=torch.float64).state_dict()
    assert all(torch.equal(new[key], value) for key, value in layer.state_dict().items())


@pytest.mark.parametrize("groups", [4, 0, -1, 12])
def test_groups_that_do_not_divide_the_channels_are_refused(groups):
    match = rf"groups that divide num_features; got num_features=6, groups={groups}; choose a divisor.* for 1"
    with pytest.raises(ValueError, match=match):
        EvoNorm(6, groups=groups)
    assert EvoNorm(6).groups == default_groups(6)


def test_one_value_per_group_or_channel_is_refused_where_its_variance_is_needed(draw):
    with pytest.raises(ValueError, match=r"EvoNorm\(4\) needs more than one value per group.*got \(3, 4\).*fewer"):
        EvoNorm(4, groups=4)(torch.ones(3, 4))
    layer = build(draw, batch_based=True)
    match = r"EvoNorm\(4\) needs more than one value per channel.*got \(1, 4\).*S0"
    with pytest.raises(ValueError, match=match):
        layer(draw(1, 4))
    assert int(layer.num_batches_tracked) == 0
    x = draw(3, 4)
    assert_close(layer.eval()(x)[1:2], layer(x[1:2]), rtol=1e-14, atol=1e-14)
