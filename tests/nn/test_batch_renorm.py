"""Batch renorm is frozen batch norm without limits, batch norm with none allowed, and algorithm 1 of the paper between.

Its backward pass is not the derivative of its forward pass and is pinned to its formula here.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.func import functional_call
from torch.testing import assert_close

from normlens.nn.batch_norm import BatchNorm
from normlens.nn.batch_renorm import BatchRenorm
from normlens.nn.functional import per_channel

AT_ONCE = {"warmup_steps": 0, "r_max_steps": 0, "d_max_steps": 0}
UNCLIPPED = {"r_max": math.inf, "d_max": math.inf, **AT_ONCE}
SHAPES = [(6, 4), (3, 4, 5), (3, 4, 2, 3), (2, 4, 2, 3, 2)]
CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def make(draw, **settings):
    """A layer of four channels with drawn parameters; limits of 1.3 and 0.4 hold on some channels of ``batch``."""
    layer = BatchRenorm(4, dtype=torch.float64, **settings)
    layer.running_mean.copy_(torch.tensor([0.0, 1.0, 5.0, 1.0]))
    layer.running_std.copy_(torch.tensor([0.5, 1.5, 1.9, 4.0]))
    for parameter in layer.parameters():
        parameter.data = draw(4)
    return layer


def batch(draw, *shape):
    """Channels of about mean 1 and standard deviation 1.5."""
    return draw(*shape) * 1.5 + 1


def of_1_2(**settings):
    """One channel with running mean 1 and running standard deviation 2, as in the vectors worked out by hand."""
    layer = BatchRenorm(1, eps=0.0, dtype=torch.float64, **settings)
    layer.running_mean.fill_(1)
    layer.running_std.fill_(2)
    return layer


def moments_by_hand(x):
    """Mean and biased variance of each channel, flat."""
    rows = x.transpose(0, 1).flatten(1)
    return rows.mean(1), rows.var(1, correction=0)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"r_max": math.inf, "d_max": math.inf}, [-0.5, 0.0, 0.5, 2.0]),
        ({"r_max": 3.0, "d_max": 5.0}, [-0.5, 0.0, 0.5, 2.0]),
        ({"r_max": 3.0, "d_max": 0.25}, [-0.75, -0.25, 0.25, 1.75]),
        ({"r_max": 1.0, "d_max": 0.0}, [-1.0690449676, -0.5345224838, 0.0, 1.6035674515]),
        ({"r_max": 1.0, "d_max": 5.0}, [0.5 + z for z in (-1.0690449676, -0.5345224838, 0.0, 1.6035674515)]),
    ],
)
def test_0_1_2_5_becomes_the_vector_worked_out_by_hand(limits, expected):
    x = torch.tensor([[0.0], [1.0], [2.0], [5.0]], dtype=torch.float64)
    assert_close(of_1_2(**limits, **AT_ONCE)(x).flatten().tolist(), expected, rtol=0, atol=5e-11)


def test_r_of_0_1_2_5_is_0_9354143467_which_is_also_the_factor_of_its_gradient():
    x = torch.tensor([[0.0], [1.0], [2.0], [5.0]], dtype=torch.float64, requires_grad=True)
    g = torch.tensor([[1.0], [0.0], [0.0], [0.0]], dtype=torch.float64)
    gradients = [torch.autograd.grad(of_1_2(**s, **AT_ONCE)(x), x, g)[0] for s in ({}, {"r_max": 1.0, "d_max": 0.0})]
    assert_close(gradients[0] / gradients[1], torch.full_like(x, 0.9354143467), rtol=1e-10, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_without_limits_the_forward_pass_is_frozen_batch_norm(draw, shape):
    layer, x = make(draw, **UNCLIPPED), draw(*shape) * 3 + 2
    frozen = BatchNorm(4, eps=layer.eps, dtype=torch.float64).eval()
    state = {**layer.state_dict(), "running_var": layer.running_var}
    frozen.load_state_dict({key: state[key] for key in frozen.state_dict()})
    want = frozen(x)
    assert_close(copy.deepcopy(layer)(x), want, **CLOSE)
    assert_close(layer.eval()(x), want, **CLOSE)


@pytest.mark.parametrize("settings", [{"r_max": 1.0, "d_max": 0.0, **AT_ONCE}, {}])
@pytest.mark.parametrize("shape", SHAPES)
def test_with_limits_1_and_0_or_in_warm_up_outputs_gradients_and_means_are_those_of_batch_norm(draw, shape, settings):
    ours, theirs = make(draw, **settings), BatchNorm(4, eps=1e-3, momentum=0.01, dtype=torch.float64)
    theirs.load_state_dict({**theirs.state_dict(), **dict(ours.named_parameters()), "running_mean": ours.running_mean})
    for _ in range(3):
        x, g, results = batch(draw, *shape), draw(*shape), []
        for layer in (ours, theirs):
            leaf = x.clone().requires_grad_()
            y = layer(leaf)
            results.append([y, *torch.autograd.grad(y, [leaf, *layer.parameters()], g), layer.running_mean])
        assert_close(*results, **CLOSE)


CLIPPED = {"r_max": 1.3, "d_max": 0.4, **AT_ONCE}
CASES = [CLIPPED, UNCLIPPED, {**CLIPPED, "affine": False}, {}]


def corrections(layer, x):
    """The r and d of the next batch by their definitions, for limits that apply from the start or warm-up."""
    mean, var = moments_by_hand(x)
    std = (var + layer.eps).sqrt()
    r_max, d_max = (1.0, 0.0) if layer.warmup_steps else (layer.r_max, layer.d_max)
    r = (std / layer.running_std).clamp(1 / r_max, r_max)
    return r, ((mean - layer.running_mean) / layer.running_std).clamp(-d_max, d_max)


def reference(x, r, d, weight, bias, eps):
    """Algorithm 1 in elementary operations, with r and d given as constants."""
    mean, var = (per_channel(m, x) for m in moments_by_hand(x))
    r, d, weight, bias = (per_channel(v, x) for v in (r, d, weight, bias))
    return weight * ((x - mean) / (var + eps).sqrt() * r + d) + bias


def test_the_cases_of_these_tests_reach_both_limits_on_both_sides_and_the_room_between(draw):
    x = batch(draw, 3, 4, 5)
    (r, d), (r_free, d_free) = (corrections(make(draw, **settings), x) for settings in (CLIPPED, UNCLIPPED))
    assert (r_free > r).tolist() == [True, False, False, False]
    assert (r_free < r).tolist() == [False, False, False, True]
    assert (d_free > d).tolist() == [True, False, False, False]
    assert (d_free < d).tolist() == [False, False, True, False]


@pytest.mark.parametrize("settings", CASES)
def test_the_backward_pass_is_that_of_batch_norm_times_r(draw, settings):
    layer, x, g = make(draw, **settings), batch(draw, 3, 4, 5).requires_grad_(), draw(3, 4, 5)
    (r, d), (mean, var) = corrections(layer, x.detach()), moments_by_hand(x.detach())
    std = (var + layer.eps).sqrt()
    z = (x.detach() - per_channel(mean, x)) / per_channel(std, x)
    weight = layer.weight if layer.affine else torch.ones(4, dtype=torch.float64)
    left = g - g.mean((0, 2), keepdim=True) - z * (g * z).mean((0, 2), keepdim=True)
    want = [per_channel(r * weight / std, x) * left]
    if layer.affine:
        want += [(g * (z * per_channel(r, x) + per_channel(d, x))).sum((0, 2)), g.sum((0, 2))]
    got = torch.autograd.grad(layer(x), [x, *layer.parameters()], g)
    assert_close(list(got), want, **CLOSE)


@pytest.mark.parametrize("settings", CASES)
def test_second_derivatives_are_those_of_the_formula_with_r_and_d_as_constants(
    draw, double_backward, forward_over_reverse, settings
):
    layer, readout = make(draw, **{**settings, "affine": True}), draw(3, 4, 5)
    at, v = (batch(draw, 3, 4, 5), draw(4), draw(4)), (draw(3, 4, 5), draw(4), draw(4))
    constants = corrections(layer, at[0])

    def ours(x, weight, bias):
        state = {name: buffer.clone() for name, buffer in layer.named_buffers()}
        y = functional_call(copy.deepcopy(layer), {**state, "weight": weight, "bias": bias}, (x,))
        return (torch.tanh(y) * readout).sum()

    def formula(x, weight, bias):
        return (torch.tanh(reference(x, *constants, weight, bias, layer.eps)) * readout).sum()

    want = double_backward(formula, at, v)
    for product in (double_backward, forward_over_reverse):
        assert_close(product(ours, at, v), want, **CLOSE)


def test_in_eval_mode_first_and_second_derivatives_are_exact(draw):
    layer = make(draw).eval()

    def call(x, weight, bias):
        return functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    at = [draw(*shape).requires_grad_() for shape in ((3, 4, 2), (4,), (4,))]
    assert torch.autograd.gradcheck(call, at)
    assert torch.autograd.gradgradcheck(call, at, draw(3, 4, 2).requires_grad_(), fast_mode=True)


def test_unlike_that_of_frozen_batch_norm_the_gradient_is_off_the_constant_and_the_output(draw):
    layer, x, g = make(draw, **UNCLIPPED, eps=0.0), draw(8, 4).requires_grad_(), draw(8, 4)
    mean, var = moments_by_hand(x.detach())
    z, zero = (x.detach() - mean) / var.sqrt(), torch.zeros(4, dtype=torch.float64)
    (renormed,) = torch.autograd.grad(copy.deepcopy(layer)(x), x, g)
    (frozen,) = torch.autograd.grad(layer.eval()(x), x, g)
    for direction in (torch.ones_like(z), z):
        assert_close((renormed * direction).sum(0), zero, **CLOSE)
        assert (frozen * direction).sum(0).abs().min() > 1e-3


def test_limits_stay_at_batch_norm_through_the_warm_up_then_grow_linearly_to_their_ends():
    layer, seen = BatchRenorm(1, warmup_steps=2, r_max_steps=6, d_max_steps=4), []
    for count in range(8):
        layer.num_batches_tracked.fill_(count)
        seen.append(tuple(float(limit) for limit in layer.limits()))
    assert seen == [(1, 0), (1, 0), (1, 0), (1.5, 2.5), (2, 5), (2.5, 5), (3, 5), (3, 5)]


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, (1, 0)), (5000, (1, 0)), (15_000, (1 + 2 * 10 / 35, 2.5)), (25_000, (1 + 2 * 20 / 35, 5)), (40_000, (3, 5))],
)
def test_the_default_schedule_is_that_of_the_paper(count, expected):
    layer = BatchRenorm(1)
    layer.num_batches_tracked.fill_(count)
    assert [float(limit) for limit in layer.limits()] == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_infinite_limits_are_reached_at_once_where_the_warm_up_ends(count):
    layer = BatchRenorm(1, r_max=math.inf, d_max=math.inf, warmup_steps=1, r_max_steps=1, d_max_steps=2)
    layer.num_batches_tracked.fill_(count)
    assert [float(limit) for limit in layer.limits()] == [1 if count < 1 else math.inf, 0 if count < 2 else math.inf]


def test_the_schedule_counts_the_batches_before_this_one(draw):
    steps = {"warmup_steps": 1, "r_max_steps": 1, "d_max_steps": 1}
    layer, x = make(draw, r_max=math.inf, d_max=math.inf, **steps), draw(6, 4)
    plain = BatchNorm(4, eps=1e-3, dtype=torch.float64)
    plain.load_state_dict({**plain.state_dict(), "weight": layer.weight, "bias": layer.bias})
    assert_close(layer(x), plain(x), **CLOSE)
    frozen = copy.deepcopy(layer).eval()(x)
    assert_close(layer(x), frozen, **CLOSE)


@pytest.mark.parametrize("momentum", [0.01, 0.3, None])
def test_the_running_statistics_are_averages_of_means_and_of_standard_deviations(draw, momentum):
    layer = BatchRenorm(4, momentum=momentum, dtype=torch.float64)
    mean, std = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    for count in (1, 2, 3):
        x = draw(5, 4, 3) * count + count
        layer(x)
        factor = 1 / count if momentum is None else momentum
        batch_mean, batch_var = moments_by_hand(x)
        mean, std = mean + factor * (batch_mean - mean), std + factor * ((batch_var + 1e-3).sqrt() - std)
    assert_close([layer.running_mean, layer.running_std], [mean, std], **CLOSE)
    assert int(layer.num_batches_tracked) == 3


def test_the_running_deviation_of_deviations_1_and_3_is_2_where_their_variances_average_to_5():
    layer = BatchRenorm(1, eps=0.0, momentum=None, dtype=torch.float64)
    for deviation in (1.0, 3.0):
        layer(torch.tensor([[-deviation], [deviation]], dtype=torch.float64))
    assert layer.running_std.item() == pytest.approx(2, rel=1e-15)
    assert layer.running_var.item() == pytest.approx(4, rel=1e-15)


def test_running_statistics_in_half_precision_move_in_float32(draw):
    x = (draw(64, 4) * 500 + 1000).half()  # variance 250000; float16 ends at 65504
    half, double = BatchRenorm(4, momentum=1.0).half(), BatchRenorm(4, momentum=1.0, dtype=torch.float64)
    near = {"rtol": torch.finfo(torch.float16).eps, "atol": torch.finfo(torch.float16).eps}
    assert_close(half(x).double(), double(x.double()), **near)
    assert_close(half.running_std.double(), double.running_std, **near)
    assert_close(half.running_var.double(), double.running_var, rtol=2e-3, atol=0)
    assert_close(half.eval()(x).double(), double.eval()(x.double()), rtol=0, atol=5e-3)  # its state is rounded


def test_running_statistics_kept_in_half_precision_are_rounded_only_where_they_are_stored(draw):
    x, start, layer = (draw(32, 64) * 500 + 1000).half(), (draw(64).abs() * 300).half(), BatchRenorm(64).half()
    layer.running_mean.copy_(start)
    layer.running_std.copy_(start)
    layer(x)
    mean, var = moments_by_hand(x.double())
    for running, batch_value in ((layer.running_mean, mean), (layer.running_std, (var + 1e-3).sqrt())):
        want = 0.99 * start.double() + 0.01 * batch_value
        assert_close(running.double(), want, rtol=0.51 * torch.finfo(torch.float16).eps, atol=0)


def test_reset_restores_the_state_of_a_fresh_layer(draw):
    layer, fresh = make(draw), BatchRenorm(4, dtype=torch.float64)
    layer(draw(5, 4))
    layer.reset_parameters()
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(layer.state_dict()[name], tensor), name


def test_one_value_per_channel_is_refused_in_train_mode_only_and_not_counted():
    layer = BatchRenorm(4)
    with pytest.raises(ValueError, match=r"BatchRenorm\(4\) needs more than one value per channel.*gradient.*is zero"):
        layer(torch.ones(1, 4, 1))
    assert int(layer.num_batches_tracked) == 0
    assert_close(layer.eval()(torch.ones(1, 4)), torch.ones(1, 4))


@pytest.mark.parametrize("limits", [{"r_max": 0.9}, {"d_max": -0.1}, {"r_max": math.nan}, {"d_max": math.nan}])
def test_limits_that_allow_nothing_are_refused(limits):
    with pytest.raises(ValueError, match=r"r_max of at least 1 and d_max of at least 0; got .*inf sets no limit"):
        BatchRenorm(4, **limits)


@pytest.mark.parametrize("steps", [{"warmup_steps": -1}, {"r_max_steps": 4999}, {"d_max_steps": 0}])
def test_a_schedule_that_ends_before_it_begins_is_refused(steps):
    with pytest.raises(ValueError, match=r"0 <= warmup_steps <= r_max_steps and d_max_steps; got .*shorten the warm"):
        BatchRenorm(4, **steps)
