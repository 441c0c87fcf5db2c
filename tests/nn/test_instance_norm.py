"""Instance norm is torch's in every number but the ones torch gets wrong."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from normlens.nn.functional import instance_moments
from normlens.nn.instance_norm import InstanceNorm

RANKS = {(3, 4, 5): nn.InstanceNorm1d, (3, 4, 5, 2): nn.InstanceNorm2d, (3, 4, 2, 3, 2): nn.InstanceNorm3d}
SETTINGS = [
    {"affine": True},
    {"affine": False, "eps": 1e-3},
    {"affine": True, "track_running_stats": True},
    {"affine": True, "track_running_stats": True, "momentum": 0.7},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("shape", RANKS)
def test_outputs_gradients_and_running_statistics_are_those_of_torch_over_a_run(draw, shape, settings, dtype):
    ours, theirs = InstanceNorm(4, dtype=dtype, **settings), RANKS[shape](4, dtype=dtype, **settings)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        p.data = q.data = draw(4, dtype=dtype)
    for training in (True, True, True, False):
        x, g = draw(*shape, dtype=dtype) * 3 + 2, draw(*shape, dtype=dtype)
        results = []
        for layer in (ours.train(training), theirs.train(training)):
            leaf = x.clone().requires_grad_()
            y = layer(leaf)
            buffers = [b for name, b in layer.named_buffers() if name.startswith("running")]
            results.append([y, *torch.autograd.grad(y, [leaf, *layer.parameters()], g), *buffers])
        assert_close(*results, rtol=16 * torch.finfo(dtype).eps, atol=64 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("track", [False, True])
def test_state_dicts_travel_strictly_between_torch_and_here(draw, track):
    ours = InstanceNorm(4, track_running_stats=track)
    theirs = nn.InstanceNorm2d(4, affine=True, track_running_stats=track)
    ours(draw(3, 4, 5, 5, dtype=torch.float32) + 1)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    fresh = InstanceNorm(4, track_running_stats=track)
    fresh.load_state_dict(theirs.state_dict(), strict=True)
    x = draw(3, 4, 5, 5, dtype=torch.float32)
    assert_close(fresh.eval()(x), theirs.eval()(x), rtol=1e-5, atol=1e-5)


def test_without_momentum_the_running_mean_is_the_mean_over_all_instances(draw):
    layer = InstanceNorm(4, momentum=None, track_running_stats=True, dtype=torch.float64)
    batches = [draw(3, 4, 5), draw(3, 4, 5) + 1]
    for x in batches:
        layer(x)
    assert_close(layer.running_mean, torch.cat(batches).mean((0, 2)), rtol=1e-13, atol=1e-13)
    assert int(layer.num_batches_tracked) == 2


def test_features_without_space_are_refused_in_both_modes():
    for layer in (InstanceNorm(4), InstanceNorm(4, track_running_stats=True).eval()):
        with pytest.raises(ValueError, match=r"InstanceNorm\(4\) needs at least one spatial dimension.*got \(3, 4\)"):
            layer(torch.ones(3, 4))


def test_one_position_in_space_is_refused_and_not_counted():
    layer = InstanceNorm(4, track_running_stats=True)
    with pytest.raises(
        ValueError, match=r"more than one value per sample and channel.*got \(3, 4, 1, 1\).*use LayerNorm"
    ):
        layer(torch.ones(3, 4, 1, 1))
    assert int(layer.num_batches_tracked) == 0


def test_every_channel_of_every_sample_has_mean_zero_and_variance_one(draw):
    layer = InstanceNorm(4, eps=0.0, dtype=torch.float64)
    mean, var = instance_moments(layer(draw(3, 4, 6) * 5 + 2))
    assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-12)
    assert_close(var, torch.ones_like(var), rtol=0, atol=1e-12)
