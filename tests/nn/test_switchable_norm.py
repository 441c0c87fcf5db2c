"""Switchable norm is instance, layer or batch norm at the corners, and their statistics' mixture between."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from normlens.nn.batch_norm import BatchNorm
from normlens.nn.functional import (
    affine,
    batch_moments,
    instance_moments,
    layer_moments,
    moments,
    standardize,
)
from normlens.nn.instance_norm import InstanceNorm
from normlens.nn.layer_norm import LayerNorm
from normlens.nn.switchable_norm import SwitchableNorm, pooled_moments

SHAPES = [(3, 4, 5), (3, 4, 3, 2), (2, 4, 3, 2, 2), (1, 4, 6)]


def build(draw, **settings):
    """A layer with all parameters away from their initial values."""
    layer = SwitchableNorm(4, dtype=torch.float64, **settings)
    for parameter in layer.parameters():
        parameter.data += 0.5 * draw(*parameter.shape)
    return layer


def test_equal_shares_of_0_to_7_give_the_vector_worked_out_by_hand():
    x = torch.arange(8, dtype=torch.float64).reshape(2, 2, 2)
    want = [-1.0834727, -0.3611576, -0.6019293, 0.1203859, -0.1203859, 0.6019293, 0.3611576, 1.0834727]
    y = SwitchableNorm(2, eps=0.0, dtype=torch.float64)(x)
    assert_close(y.flatten().tolist(), want, rtol=0, atol=5e-8)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("corner", "cls"), list(enumerate([InstanceNorm, LayerNorm, BatchNorm])))
def test_with_one_share_all_it_is_instance_layer_or_batch_norm_over_a_run(draw, shape, corner, cls):
    ours, theirs = build(draw), cls(4, dtype=torch.float64)
    theirs.weight.data, theirs.bias.data = ours.weight.data, ours.bias.data
    ours.mean_logits.data[corner] = ours.var_logits.data[corner] = 1000.0  # the others' shares are zero to the bit
    for training in (True, True, False):
        x, g, results = draw(*shape) * 3 + 2, draw(*shape), []
        for layer in (ours, theirs):
            leaf = x.clone().requires_grad_()
            y = layer.train(training)(leaf)
            results.append([y, *torch.autograd.grad(y, [leaf, layer.weight, layer.bias], g)])
        assert_close(*results, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_means_and_variances_are_mixed_by_shares_of_their_own(draw, shape):
    layer, x = build(draw), draw(*shape) * 2 + 1
    parts = [instance_moments(x), layer_moments(x), batch_moments(x)]
    mean = sum(share * part.mean for share, part in zip(layer.mean_logits.softmax(0), parts, strict=True))
    var = sum(share * part.var for share, part in zip(layer.var_logits.softmax(0), parts, strict=True))
    want = affine(standardize(x, mean, var, layer.eps), layer.weight, layer.bias)
    assert_close(layer(x), want, rtol=1e-12, atol=1e-12)


def test_running_statistics_are_those_of_batch_norm_and_serve_its_share_in_eval_mode(draw):
    ours, batch = build(draw, momentum=0.3), BatchNorm(4, momentum=0.3, dtype=torch.float64)
    for _ in range(3):
        x = draw(3, 4, 5) * 2 + 1
        ours(x)
        batch(x)
    assert_close(list(ours.buffers()), list(batch.buffers()), rtol=1e-13, atol=1e-13)
    parts = [instance_moments(x), layer_moments(x)]
    mean, var = ([*pair, b[None, :, None]] for pair, b in zip(zip(*parts, strict=True), batch.buffers(), strict=False))
    mean = sum(share * part for share, part in zip(ours.mean_logits.softmax(0), mean, strict=True))
    var = sum(share * part for share, part in zip(ours.var_logits.softmax(0), var, strict=True))
    want = affine(standardize(x, mean, var, ours.eps), ours.weight, ours.bias)
    assert_close(ours.eval()(x), want, rtol=1e-12, atol=1e-12)


def test_for_a_single_sample_instance_and_batch_may_trade_their_shares(draw):
    layer, x = build(draw), draw(1, 4, 6)
    before = layer(x)
    for logits in (layer.mean_logits, layer.var_logits):
        logits.data = logits.data.flip(0)
    assert_close(layer(x), before, rtol=1e-13, atol=1e-13)


def test_scale_and_shift_of_the_whole_input_do_not_matter_but_those_of_one_channel_do(draw):
    layer, x = build(draw, eps=0.0), draw(3, 4, 5)
    assert_close(layer(7 * x + 3), layer(x), rtol=1e-12, atol=1e-12)
    one = x * torch.tensor([7.0, 1, 1, 1]).double()[:, None]
    assert (layer(one) - layer(x)).abs().max() > 0.1


@pytest.mark.parametrize("dim", [0, 1])
def test_pooled_moments_are_those_of_all_values_together(draw, dim):
    x = draw(3, 4, 5, 2) * 2 + draw(3, 4, 1, 1) * 3
    got, want = pooled_moments(instance_moments(x), dim=dim), moments(x, (dim, 2, 3))
    assert_close(list(got), list(want), rtol=1e-13, atol=1e-13)


def test_reset_parameters_makes_it_new(draw):
    layer = build(draw)
    layer(draw(3, 4, 5))
    layer.reset_parameters()
    new = SwitchableNorm(4, dtype=torch.float64).state_dict()
    assert all(torch.equal(new[key], value) for key, value in layer.state_dict().items())


def test_without_running_statistics_eval_mode_is_train_mode(draw):
    layer, x = build(draw, track_running_stats=False), draw(3, 4, 5)
    assert torch.equal(layer(x), layer.eval()(x))


def test_a_single_position_is_refused_and_the_batch_not_counted():
    layer = SwitchableNorm(4)
    with pytest.raises(ValueError, match=r"SwitchableNorm\(4\) needs at least one spatial dimension.*got \(3, 4\)"):
        layer(torch.ones(3, 4))
    match = r"SwitchableNorm\(4\) needs more than one value per sample and channel.*got \(3, 4, 1, 1\).*use LayerNorm"
    with pytest.raises(ValueError, match=match):
        layer(torch.ones(3, 4, 1, 1))
    assert int(layer.num_batches_tracked) == 0
