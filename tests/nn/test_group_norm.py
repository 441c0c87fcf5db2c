"""Group norm is torch's in every number, chooses sensible groups, and obeys its identities."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from normlens.nn.functional import batch_moments
from normlens.nn.group_norm import GroupNorm, default_groups


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("settings", [{}, {"eps": 1e-3, "affine": False}])
@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_outputs_and_gradients_are_those_of_torch(draw, groups, settings, memory_format):
    ours = GroupNorm(6, groups=groups, dtype=torch.float64, **settings)
    theirs = nn.GroupNorm(groups, 6, dtype=torch.float64, **settings)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        p.data = q.data = draw(6)
    x, g = (draw(3, 6, 5, 2) * 3 + 2).to(memory_format=memory_format), draw(3, 6, 5, 2)
    results = []
    for layer in (ours, theirs):
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        results.append([y, *torch.autograd.grad(y, [leaf, *layer.parameters()], g)])
    assert_close(*results, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(5, 6), (3, 6, 4), (2, 6, 2, 3, 2)])
def test_outputs_are_those_of_torch_at_every_spatial_rank(draw, shape):
    x = draw(*shape)
    theirs = nn.GroupNorm(2, 6, dtype=torch.float64)
    assert_close(GroupNorm(6, groups=2, dtype=torch.float64)(x), theirs(x), rtol=1e-12, atol=1e-12)


def test_state_dicts_travel_strictly_between_torch_and_here(draw):
    ours, theirs = GroupNorm(6, groups=3, dtype=torch.float64), nn.GroupNorm(3, 6, dtype=torch.float64)
    ours.weight.data, ours.bias.data = draw(6), draw(6)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = draw(2, 6, 4)
    assert_close(theirs(x), ours(x), rtol=1e-12, atol=1e-12)
    ours.load_state_dict(nn.GroupNorm(3, 6, dtype=torch.float64).state_dict(), strict=True)
    assert ours.weight.tolist() == [1.0] * 6


@pytest.mark.parametrize(
    ("channels", "groups"),
    [(1, 1), (2, 1), (4, 1), (6, 1), (7, 1), (8, 2), (16, 4), (64, 16), (96, 24), (50, 10), (320, 32)],
)
def test_default_groups_divide_the_channels_and_hold_at_least_four_of_them(channels, groups):
    assert default_groups(channels) == groups == GroupNorm(channels).groups


@pytest.mark.parametrize("groups", [4, 0, -1, 12])
def test_groups_that_do_not_divide_the_channels_are_refused(groups):
    match = rf"groups that divide num_features; got num_features=6, groups={groups}; choose one of \[1, 2, 3, 6\]"
    with pytest.raises(ValueError, match=match):
        GroupNorm(6, groups=groups)


def test_one_value_per_group_is_refused():
    with pytest.raises(
        ValueError, match=r"GroupNorm\(6\) needs more than one value per group.*got \(4, 6\).*fewer groups"
    ):
        GroupNorm(6, groups=6)(torch.ones(4, 6))


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_in_each_group_channel_means_average_to_zero_and_second_moments_to_one(draw, groups):
    x = draw(6, 8, 5, 4) * torch.arange(1, 9)[:, None, None] + draw(1, 8, 1, 1)
    mean, var = batch_moments(GroupNorm(8, groups=groups, eps=0.0, dtype=torch.float64)(x))
    zero = torch.zeros(groups, dtype=torch.float64)
    assert_close(mean.reshape(groups, -1).mean(1), zero, rtol=0, atol=1e-12)
    assert_close((var + mean.square()).reshape(groups, -1).mean(1), zero + 1, rtol=0, atol=1e-12)


def test_a_sample_is_normalized_without_regard_to_the_others(draw):
    layer, x = GroupNorm(6, dtype=torch.float64), draw(4, 6, 3)
    assert_close(layer(x)[1:2], layer(x[1:2]), rtol=1e-13, atol=1e-13)
