"""Layer norm is torch's on (N, C) and group norm with one group on images; its invariances are the paper's."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from normlens.nn.layer_norm import LayerNorm


def compare(ours, theirs, x, g):
    results = []
    for layer in (ours, theirs):
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        results.append([y, *torch.autograd.grad(y, [leaf, *layer.parameters()], g)])
    assert_close(*results, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("eps", [1e-5, 1e-2, 0.0])
def test_on_features_outputs_and_gradients_are_those_of_torch_layer_norm(draw, eps):
    ours, theirs = LayerNorm(6, eps=eps, dtype=torch.float64), nn.LayerNorm(6, eps=eps, dtype=torch.float64)
    ours.weight.data, ours.bias.data = draw(6), draw(6)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    compare(ours, theirs, draw(5, 6) + 2, draw(5, 6))


@pytest.mark.parametrize("shape", [(5, 6), (3, 6, 4), (3, 6, 4, 2), (2, 6, 2, 3, 2)])
def test_with_space_outputs_and_gradients_are_those_of_group_norm_with_one_group(draw, shape):
    ours, theirs = LayerNorm(6, dtype=torch.float64), nn.GroupNorm(1, 6, dtype=torch.float64)
    theirs.weight.data, theirs.bias.data = draw(6), draw(6)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    compare(ours, theirs, draw(*shape) + 2, draw(*shape))


def test_tokens_as_samples_give_the_layer_of_transformers(draw):
    tokens = draw(2, 7, 6)  # (N, T, C)
    flat = LayerNorm(6, dtype=torch.float64)(tokens.reshape(14, 6)).reshape(2, 7, 6)
    assert_close(flat, nn.LayerNorm(6, dtype=torch.float64)(tokens), rtol=1e-12, atol=1e-12)


def test_one_value_per_sample_is_refused():
    with pytest.raises(
        ValueError, match=r"LayerNorm\(1\) needs more than one value per sample.*got \(4, 1\).*use BatchN"
    ):
        LayerNorm(1)(torch.ones(4, 1))


def test_output_is_invariant_to_scaling_a_sample_and_to_recentering_the_weights_before_it(draw):
    layer = LayerNorm(6, eps=0.0, affine=False, dtype=torch.float64)
    weight, h = draw(6, 5), draw(3, 5)
    out = layer(h @ weight.T)
    scale = torch.tensor([[0.5], [2.0], [7.0]], dtype=torch.float64)
    assert_close(layer(scale * h @ weight.T), out, rtol=1e-12, atol=1e-12)
    assert_close(layer(h @ (2.5 * weight + draw(5)).T), out, rtol=1e-12, atol=1e-12)
    assert (layer(h @ (weight * torch.arange(1, 7)[:, None]).T) - out).abs().max() > 0.1  # but not to single rows


def test_a_channel_may_be_dead_though_every_sample_is_standardized():
    y = LayerNorm(2, eps=0.0, dtype=torch.float64)(torch.tensor([[3.0, 1.0], [5.0, 1.0]], dtype=torch.float64))
    assert_close(y.tolist(), [[1.0, -1.0], [1.0, -1.0]], rtol=0, atol=1e-12)
    assert y.relu()[:, 1].count_nonzero() == 0
