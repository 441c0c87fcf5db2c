"""Batch-channel norm is group norm after batch norm, or after estimates that are constants for the backward pass."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.testing import assert_close

from normlens.nn.batch_channel_norm import BatchChannelNorm, estimate_moments
from normlens.nn.batch_norm import BatchNorm
from normlens.nn.functional import Moments, batch_moments
from normlens.nn.group_norm import GroupNorm, default_groups
from normlens.nn.layer_norm import LayerNorm

SHAPES = [(6, 4), (3, 4, 5), (3, 4, 3, 2), (2, 4, 3, 2, 2)]


def perturbed(layer, draw):
    """The layer with all parameters away from their initial values."""
    for parameter in layer.parameters():
        parameter.data += 0.3 * draw(*parameter.shape)
    return layer


def micro(draw, **settings):
    """A micro-batch layer that has seen two batches."""
    layer = perturbed(BatchChannelNorm(4, moving_speed=0.2, dtype=torch.float64, **settings), draw)
    for _ in range(2):
        layer(draw(3, 4, 5) * 2 + 1)
    return layer


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("settings", [{}, {"eps": 1e-3, "momentum": None}, {"affine": False, "groups": 1}])
def test_the_large_form_is_group_norm_after_batch_norm_over_a_run(draw, shape, settings):
    one = perturbed(BatchChannelNorm(4, dtype=torch.float64, **settings), draw)
    shared = {key: value for key, value in settings.items() if key in {"eps", "affine"}}
    batch = BatchNorm(4, momentum=settings.get("momentum", 0.1), dtype=torch.float64, **shared)
    group = GroupNorm(4, groups=settings.get("groups"), dtype=torch.float64, **shared)
    batch.load_state_dict({k: v for k, v in one.state_dict().items() if not k.startswith("channel_")})
    group.load_state_dict({k.removeprefix("channel_"): v for k, v in one.state_dict().items() if "channel_" in k})
    for training in (True, True, False):
        x, g, results = draw(*shape) * 3 + 2, draw(*shape), []
        for call, layers in ((one, [one]), (lambda t: group(batch(t)), [batch, group])):
            parameters = [p for layer in layers for p in layer.train(training).parameters()]
            leaf = x.clone().requires_grad_()
            y = call(leaf)
            results.append([y, *torch.autograd.grad(y, [leaf, *parameters], g), *layers[0].buffers()])
        assert_close(*results, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("moving_speed", [None, 0.1])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_before_the_last_affine_channel_means_average_to_zero_and_second_moments_to_one(draw, groups, moving_speed):
    layer = BatchChannelNorm(8, groups=groups, moving_speed=moving_speed, eps=0.0, dtype=torch.float64)
    layer.weight.data, layer.bias.data = draw(8), draw(8)
    mean, var = batch_moments(layer(draw(6, 8, 5, 4) * 2 + 1))
    zero = torch.zeros(groups, dtype=torch.float64)
    assert_close(mean.reshape(groups, -1).mean(1), zero, rtol=0, atol=1e-12)
    assert_close((var + mean.square()).reshape(groups, -1).mean(1), zero + 1, rtol=0, atol=1e-12)


def test_rows_3_1_and_5_1_leave_a_channel_dead_behind_layer_norm_but_not_here():
    x = torch.tensor([[3.0, 1.0], [5.0, 1.0]], dtype=torch.float64)
    dead = LayerNorm(2, dtype=torch.float64)(x)
    alive = BatchChannelNorm(2, groups=1, dtype=torch.float64)(x)  # batch norm: (-1, 0), (1, 0)
    assert_close(dead.tolist(), [[1.0, -1.0], [1.0, -1.0]], rtol=0, atol=1e-5)
    assert_close(alive.tolist(), [[-1.0, 1.0], [1.0, -1.0]], rtol=0, atol=3e-5)  # eps / (2 var) of var 1 and 1/4
    spread = BatchChannelNorm(2, groups=1, eps=1.0, dtype=torch.float64)(x)  # (-+1 / sqrt(2), 0), of variance 1 / 8
    assert_close((3 * spread).tolist(), [[-1.0, 1.0], [1.0, -1.0]], rtol=1e-14, atol=0)


def test_one_step_from_0_and_1_with_speed_a_tenth_on_1_and_3_gives_0_2_and_1_4():
    layer = BatchChannelNorm(1, moving_speed=0.1, dtype=torch.float64)
    layer(torch.tensor([[[1.0, 3.0]]], dtype=torch.float64))
    assert_close(layer.running_mean.tolist(), [0.2], rtol=0, atol=1e-15)
    assert_close(layer.running_var.tolist(), [1.4], rtol=0, atol=1e-15)  # about the old mean: the batch's own is 1
    assert int(layer.num_batches_tracked) == 1


def test_the_output_uses_the_moved_estimates_in_train_mode_and_the_same_ones_in_eval_mode():
    layer = BatchChannelNorm(2, groups=1, moving_speed=0.1, dtype=torch.float64)
    x = torch.tensor([[[1.0, 3.0], [-1.0, -3.0]]], dtype=torch.float64)
    z = torch.tensor([[[0.8, 2.8], [-0.8, -2.8]]], dtype=torch.float64) / (1.4 + 1e-5) ** 0.5
    want = z / (z.square().mean() + 1e-5).sqrt()
    assert_close(layer(x), want, rtol=1e-14, atol=0)
    state = copy.deepcopy(layer.state_dict())
    assert_close(layer.eval()(x), want, rtol=1e-14, atol=0)
    assert all(torch.equal(state[key], value) for key, value in layer.state_dict().items())


@pytest.mark.parametrize("shape", SHAPES)
def test_backward_of_the_micro_form_neither_centers_nor_projects_as_that_of_batch_norm_does(draw, shape):
    layer = micro(draw)
    x, g = draw(*shape).requires_grad_(), draw(*shape)
    (backward,) = torch.autograd.grad(layer(x), x, g)
    spread = (layer.running_var + layer.eps).sqrt()
    of_channel = (1, -1, *(1,) * (len(shape) - 2))
    z = (x - layer.running_mean.reshape(of_channel)) / spread.reshape(of_channel)
    z = (z * layer.weight.reshape(of_channel) + layer.bias.reshape(of_channel)).detach().requires_grad_()
    group = GroupNorm(4, dtype=torch.float64)
    group.weight.data, group.bias.data = layer.channel_weight.data, layer.channel_bias.data
    (of_group,) = torch.autograd.grad(group(z), z, g)
    assert_close(backward, of_group * (layer.weight / spread).reshape(of_channel), rtol=1e-12, atol=1e-12)

    large = BatchChannelNorm(4, dtype=torch.float64)
    large.load_state_dict(layer.state_dict())
    (projected,) = torch.autograd.grad(large(x), x, g)
    pooled = [d for d in range(x.dim()) if d != 1]
    assert projected.sum(pooled).abs().max() < 1e-12
    assert backward.sum(pooled).abs().max() > 1e-2
    assert (large.exact_gradient, layer.exact_gradient) == (True, False)


@pytest.mark.parametrize("settings", [{}, {"affine_per": "group"}, {"affine": False}])
def test_derivatives_of_the_micro_form_are_those_of_the_eval_mode_it_leaves(
    draw, double_backward, forward_over_reverse, settings
):
    layer, readout, shape = micro(draw, **settings), draw(3, 4, 5), (3, 4, 5)
    at = (draw(*shape), *(p.detach() for p in layer.parameters()))
    v = tuple(draw(*t.shape) for t in at)

    def loss_of(one):
        def loss(x, *parameters):
            state = {name: buffer.clone() for name, buffer in one.named_buffers()}
            state |= dict(zip(dict(one.named_parameters()), parameters, strict=True))
            return (torch.tanh(functional_call(one, state, (x,))) * readout).sum()

        return loss

    left = copy.deepcopy(layer)
    left(at[0])
    want = double_backward(loss_of(left.eval()), at, v)
    for product in (double_backward, forward_over_reverse):
        assert_close(product(loss_of(layer), at, v), want, rtol=1e-10, atol=1e-10)


def test_derivatives_of_the_input_do_not_enter_the_estimates(draw):
    layer, x = micro(draw), draw(3, 4, 5)
    plain = copy.deepcopy(layer)
    plain(x)
    with forward_ad.dual_level():
        layer(forward_ad.make_dual(x.clone().requires_grad_(), draw(*x.shape)))
        assert all(forward_ad.unpack_dual(buffer).tangent is None for buffer in layer.buffers())
    assert not any(buffer.requires_grad for buffer in layer.buffers())
    assert all(torch.equal(a, b) for a, b in zip(layer.buffers(), plain.buffers(), strict=True))


def test_estimates_follow_their_expectation_and_overrate_the_variance_by_r_over_2_minus_r_times_m():
    speed, steps, old = 0.5, 10, Moments(torch.zeros(2**10).double(), torch.ones(2**10).double())
    paths = torch.tensor(list(itertools.product([-2.0, 2.0], repeat=steps)), dtype=torch.float64)  # variance 4, M = 1
    for batch in paths.T:  # every path is a channel, so that the mean over channels is the exact expectation
        old = estimate_moments(batch[None, :], old, speed=speed)
    spread = [4 * speed / (2 - speed) * (1 - (1 - speed) ** (2 * t)) for t in range(steps)]  # Var(mean) after t steps
    want = (1 - speed) ** steps + sum(speed * (1 - speed) ** (steps - 1 - t) * (4 + spread[t]) for t in range(steps))
    assert_close(old.mean.mean().item(), 0.0, rtol=0, atol=1e-13)
    assert_close(old.var.mean().item(), want, rtol=1e-13, atol=0)
    assert abs(want - 4 * (1 + speed / (2 - speed))) < 8 * (1 - speed) ** steps  # what is left of the start


def test_a_micro_batch_of_one_value_per_channel_moves_the_estimates(draw):
    layer, x = BatchChannelNorm(4, moving_speed=0.25, dtype=torch.float64), draw(1, 4)
    layer(x)
    assert_close(layer.running_mean, 0.25 * x[0], rtol=1e-14, atol=1e-14)
    assert_close(layer.running_var, 0.75 + 0.25 * x[0].square(), rtol=1e-14, atol=1e-14)


def test_the_speed_may_change_from_batch_to_batch(draw):
    layer, x = BatchChannelNorm(4, moving_speed=0.25, dtype=torch.float64), draw(3, 4)
    layer.moving_speed = 1.0
    layer(x)
    assert_close(layer.running_mean, x.mean(0), rtol=1e-14, atol=1e-14)
    assert "moving_speed=1.0" in repr(layer)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_micro_form_estimates_in_float32_what_half_precision_cannot_hold(draw, dtype):
    layer = BatchChannelNorm(4, moving_speed=0.2)
    double, x = copy.deepcopy(layer).double(), (draw(8, 4, 3, 3) * 500 + 1000).to(dtype)
    eps = torch.finfo(dtype).eps
    assert_close(layer(x).double(), double(x.double()), rtol=eps, atol=eps)
    assert_close(layer.running_var.double(), double.running_var, rtol=1e-6, atol=0)
    assert BatchChannelNorm(4, moving_speed=0.2).to(dtype)(x).dtype == dtype


def test_an_affine_per_group_is_one_per_channel_with_equal_values_in_each_group(draw):
    ours = perturbed(BatchChannelNorm(6, groups=2, affine_per="group", dtype=torch.float64), draw)
    wide = BatchChannelNorm(6, groups=2, dtype=torch.float64)
    state = copy.deepcopy(ours.state_dict())
    assert tuple(state["channel_weight"].shape) == tuple(state["channel_bias"].shape) == (2,)
    wide.load_state_dict({k: v.repeat_interleave(3) if "channel_" in k else v for k, v in state.items()})
    x = draw(4, 6, 3)
    assert torch.equal(ours(x), wide(x))


def test_a_batch_norm_gives_all_but_the_last_affine(draw):
    batch, ours = BatchNorm(4), BatchChannelNorm(4)
    batch(draw(3, 4, 5, dtype=torch.float32))
    missing = ours.load_state_dict(batch.state_dict(), strict=False)
    assert missing.missing_keys == ["channel_weight", "channel_bias"]
    assert missing.unexpected_keys == []


def test_reset_parameters_makes_it_new(draw):
    layer = micro(draw)
    layer.reset_parameters()
    new = BatchChannelNorm(4, moving_speed=0.2, dtype=torch.float64).state_dict()
    assert all(torch.equal(new[key], value) for key, value in layer.state_dict().items())


@pytest.mark.parametrize("settings", [{}, {"moving_speed": 0.1}, {"affine_per": "group"}])
def test_eval_mode_compiles_into_one_graph(draw, settings):
    layer, x = BatchChannelNorm(4, **settings).eval(), draw(2, 4, 3, 3, dtype=torch.float32)
    assert torch.equal(torch.compile(layer, fullgraph=True, backend="eager")(x), layer(x))


@pytest.mark.parametrize("groups", [4, 0, -1, 12])
def test_groups_that_do_not_divide_the_channels_are_refused(groups):
    match = rf"groups that divide num_features; got num_features=6, groups={groups}; choose a divisor.* for 1"
    with pytest.raises(ValueError, match=match):
        BatchChannelNorm(6, groups=groups)
    assert BatchChannelNorm(6).groups == default_groups(6)


@pytest.mark.parametrize("speed", [0, 0.0, -0.1, 1.5, float("nan")])
def test_a_speed_that_never_moves_or_overshoots_is_refused(speed):
    with pytest.raises(ValueError, match=r"moving_speed above 0 and up to 1; got .*; at 0 the estimates never move"):
        BatchChannelNorm(4, moving_speed=speed)


def test_other_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="affine_per to be 'channel' or 'group'; got 'row'; 'group' is what"):
        BatchChannelNorm(4, affine_per="row")
    match = "needs running statistics for moving_speed to move; got track_running_stats=False; set it True"
    with pytest.raises(ValueError, match=match):
        BatchChannelNorm(4, moving_speed=0.1, track_running_stats=False)


def test_one_value_per_group_or_channel_is_refused_and_the_batch_not_counted():
    few = r"BatchChannelNorm\(4\) needs more than one value per group.*got \(3, 4\), 1 per group; use fewer groups"
    layer = BatchChannelNorm(4, groups=4, moving_speed=0.1)
    with pytest.raises(ValueError, match=few):
        layer(torch.ones(3, 4))
    lone = r"BatchChannelNorm\(4\) needs more than one value per channel.*got \(1, 4\), 1 per channel.*micro-batch form"
    large = BatchChannelNorm(4)
    with pytest.raises(ValueError, match=lone):
        large(torch.ones(1, 4))
    assert int(layer.num_batches_tracked) == int(large.num_batches_tracked) == 0
