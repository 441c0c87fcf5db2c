"""Ghost batch norm is torch's batch norm on every ghost in turn, and batch norm itself when the batch is one ghost."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.testing import assert_close

from normlens.nn import functional as nf
from normlens.nn.batch_norm import BatchNorm
from normlens.nn.ghost_batch_norm import GhostBatchNorm, ghost_sizes

KINDS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
SHAPES = [(12, 4), (12, 4, 5), (12, 4, 2, 3), (12, 4, 2, 1, 3)]
SETTINGS = [{}, {"momentum": None, "eps": 1e-3}, {"momentum": 0.7, "affine": False}, {"track_running_stats": False}]
CLOSE = {"rtol": 1e-13, "atol": 1e-13}


def results_of(layer, call, x, g):
    """Output, gradients and state after one call."""
    leaf = x.clone().requires_grad_()
    y = call(leaf)
    return [y, *torch.autograd.grad(y, [leaf, *layer.parameters()], g), *layer.buffers()]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("ghost_size", "sizes"), [(4, [4, 4, 4]), (5, [6, 6]), (12, [12]), (99, [12])])
def test_it_is_one_batch_norm_of_torch_called_on_every_ghost_in_turn(draw, ghost_size, sizes, shape, settings):
    ours = GhostBatchNorm(4, ghost_size=ghost_size, dtype=torch.float64, **settings)
    theirs = KINDS[len(shape)](4, dtype=torch.float64, **settings)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        p.data = q.data = draw(4)
    for _ in range(3):
        x, g = draw(*shape) * 3 + 2, draw(*shape)
        want = results_of(theirs, lambda x: torch.cat([theirs(ghost) for ghost in x.split(sizes)]), x, g)
        assert_close(results_of(ours, ours, x, g), want, **CLOSE)
    if ours.track_running_stats:
        assert int(ours.num_batches_tracked) == 3 * len(sizes)
        assert_close(ours.eval()(x), theirs.eval()(x), **CLOSE)


@pytest.mark.parametrize("shape", SHAPES)
def test_with_the_whole_batch_for_a_ghost_it_is_our_batch_norm_to_the_bit(draw, shape):
    ghost, plain = GhostBatchNorm(4, ghost_size=12, dtype=torch.float64), BatchNorm(4, dtype=torch.float64)
    for _ in range(2):
        x, g = draw(*shape), draw(*shape)
        for got, want in zip(results_of(ghost, ghost, x, g), results_of(plain, plain, x, g), strict=True):
            assert torch.equal(got, want)


def test_second_derivatives_across_ghosts_are_those_of_the_reference(draw, double_backward, forward_over_reverse):
    layer, readout = GhostBatchNorm(4, ghost_size=3, dtype=torch.float64), draw(7, 4, 2)
    at, v = (draw(7, 4, 2), draw(4), draw(4)), (draw(7, 4, 2), draw(4), draw(4))

    def ours(x, weight, bias):
        state = {name: buffer.clone() for name, buffer in layer.named_buffers()}
        y = functional_call(copy.deepcopy(layer), {**state, "weight": weight, "bias": bias}, (x,))
        return (torch.tanh(y) * readout).sum()

    def reference(x, weight, bias):
        y = torch.cat([nf.batch_norm(ghost, None, weight, bias) for ghost in (x[:4], x[4:])])
        return (torch.tanh(y) * readout).sum()

    want = double_backward(reference, at, v)
    for product in (double_backward, forward_over_reverse):
        assert_close(product(ours, at, v), want, rtol=1e-12, atol=1e-12)


def test_every_ghost_has_mean_0_and_variance_1_by_itself(draw):
    y = GhostBatchNorm(4, ghost_size=4, eps=0.0, dtype=torch.float64)(draw(11, 4, 3) * 3 + 2)
    for ghost in (y[:6], y[6:]):
        mean, var = nf.batch_moments(ghost)
        assert_close([mean, var], [torch.zeros_like(mean), torch.ones_like(var)], **CLOSE)


def test_a_sample_touches_its_own_ghost_only(draw):
    layer, x = GhostBatchNorm(4, ghost_size=4, track_running_stats=False, dtype=torch.float64), draw(8, 4)
    other = x.clone()
    other[0] += 1
    assert torch.equal(layer(x)[4:], layer(other)[4:])
    assert (layer(x)[1:4] - layer(other)[1:4]).abs().min() > 1e-3


def test_k_ghosts_leave_the_kth_power_of_one_minus_momentum_of_the_running_mean(draw):
    layer, x, m = GhostBatchNorm(4, ghost_size=3, momentum=0.3, dtype=torch.float64), draw(9, 4), 0.3
    start = layer.running_mean.copy_(draw(4)).clone()
    layer(x)
    weights = [m * (1 - m) ** 2, m * (1 - m), m]
    ghosts = sum(w * ghost.mean(0) for w, ghost in zip(weights, x.split(3), strict=True))
    assert_close(layer.running_mean, (1 - m) ** 3 * start + ghosts, **CLOSE)


@pytest.mark.parametrize(
    ("batch", "ghost_size", "sizes"),
    [(8, 4, [4, 4]), (11, 4, [6, 5]), (7, 2, [3, 2, 2]), (7, 4, [7]), (3, 4, [3]), (4, 1, [1] * 4), (0, 4, [0])],
)
def test_a_remainder_is_shared_out_so_that_no_ghost_is_below_its_size(batch, ghost_size, sizes):
    assert ghost_sizes(batch, ghost_size) == sizes


def test_state_dicts_travel_strictly_between_torch_and_here(draw):
    ours, theirs = GhostBatchNorm(4, ghost_size=2), nn.BatchNorm2d(4)
    theirs(draw(4, 4, 3, 3, dtype=torch.float32))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = draw(4, 4, 3, 3, dtype=torch.float32)
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize("settings", [{}, {"track_running_stats": False}])
def test_one_value_per_channel_and_ghost_is_refused_and_not_counted(settings):
    layer = GhostBatchNorm(4, ghost_size=1, **settings)
    match = r"GhostBatchNorm\(4\) needs more than one value per channel and ghost.*got \(6, 4\), 1 per.*larger ghosts"
    with pytest.raises(ValueError, match=match):
        layer(torch.ones(6, 4))
    if settings:
        with pytest.raises(ValueError, match=match):
            layer.eval()(torch.ones(6, 4))
    else:
        assert int(layer.num_batches_tracked) == 0
        assert layer.eval()(torch.ones(1, 4)).shape == (1, 4)


def test_without_running_statistics_eval_mode_uses_the_ghosts_too(draw):
    layer, x = GhostBatchNorm(4, ghost_size=3, track_running_stats=False, dtype=torch.float64), draw(6, 4)
    assert torch.equal(layer.eval()(x), layer.train()(x))


@pytest.mark.parametrize("ghost_size", [0, -3])
def test_a_ghost_of_no_samples_is_refused(ghost_size):
    with pytest.raises(ValueError, match=rf"ghost_size of at least 1; got {ghost_size}; give the samples per ghost"):
        GhostBatchNorm(4, ghost_size=ghost_size)
