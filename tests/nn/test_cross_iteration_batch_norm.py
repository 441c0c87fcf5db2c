"""Cross-iteration batch norm is batch norm over the last batches, carried over to today's weights."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call
from torch.testing import assert_close

from normlens.nn.batch_norm import BatchNorm
from normlens.nn.cross_iteration_batch_norm import CrossIterationBatchNorm
from normlens.nn.functional import batch_dims, channel_matrix

CLOSE = {"rtol": 1e-11, "atol": 1e-11}


def layer_of(channels=3, **settings):
    return CrossIterationBatchNorm(channels, dtype=torch.float64, **{"burn_in": 0, **settings})


def pooled(outputs, eps):
    """The last of the outputs, standardized by the moments of them all."""
    together = torch.cat([channel_matrix(x) for x in outputs], 1)
    mean, var = together.mean(1), together.var(1, correction=0)
    wide = (3, *(1,) * (outputs[-1].dim() - 2))
    return (outputs[-1] - mean.reshape(wide)) / (var + eps).sqrt().reshape(wide)


@pytest.mark.parametrize("settings", [{"window": 1}, {"window": 5, "burn_in": 100}])
@pytest.mark.parametrize("momentum", [0.3, None])
@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 2), (2, 3, 2, 2)])
def test_with_a_window_of_one_and_while_burning_in_it_is_batch_norm_in_every_number(draw, shape, momentum, settings):
    ours, theirs = layer_of(momentum=momentum, **settings), BatchNorm(3, momentum=momentum, dtype=torch.float64)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        one.data = other.data = draw(3)
    for training in (True, True, True, False):
        x, g, results = draw(*shape) * 3 + 2, draw(*shape), []
        for layer in (ours.train(training), theirs.train(training)):
            leaf = x.clone().requires_grad_()
            y = layer(leaf)
            running = (layer.running_mean.clone(), layer.running_var.clone(), layer.num_batches_tracked.clone())
            results.append([y, *torch.autograd.grad(y, [leaf, *layer.parameters()], g), *running])
        assert_close(*results, **CLOSE)


@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 2), (2, 3, 2, 2)])
def test_with_fixed_weights_it_is_batch_norm_over_the_last_batches_together(draw, shape):
    layer = layer_of(window=3, eps=1e-3, affine=False)
    batches = [draw(*shape) * (1 + step) + step for step in range(6)]
    for step, x in enumerate(batches, start=1):
        assert_close(layer(x), pooled(batches[:step][-3:], layer.eps), **CLOSE)


def test_after_burning_in_the_window_is_full_at_once(draw):
    layer = layer_of(window=3, burn_in=4, affine=False)
    batches = [draw(5, 3) * (1 + step) for step in range(5)]
    outputs = [layer(x) for x in batches]
    for x, y in zip(batches[:4], outputs, strict=False):
        assert_close(y, pooled([x], layer.eps), **CLOSE)
    assert_close(outputs[4], pooled(batches[2:], layer.eps), **CLOSE)


def test_earlier_batches_are_constants_of_the_gradient(draw):
    layer, x, g = layer_of(window=2, affine=False), draw(5, 3), draw(5, 3)
    earlier = draw(5, 3).requires_grad_()
    layer(earlier)
    leaf = x.clone().requires_grad_()
    got = torch.autograd.grad(layer(leaf), [leaf, earlier], g, materialize_grads=True, allow_unused=True)
    other = x.clone().requires_grad_()
    (want,) = torch.autograd.grad(pooled([earlier.detach(), other], layer.eps), other, g)
    assert_close(got, (want, torch.zeros_like(earlier)), **CLOSE)


def test_derivatives_of_both_orders_are_exact_with_a_full_window(draw, double_backward, forward_over_reverse):
    layer = layer_of(window=3)
    layer.weight.data, layer.bias.data = draw(3), draw(3)
    for _ in range(4):
        layer(draw(5, 3, 2) * 2 + 1)

    def afresh(x):
        state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
        return functional_call(copy.deepcopy(layer), state, (x,))

    x, v, readout = draw(4, 3, 2), draw(4, 3, 2), draw(4, 3, 2)
    assert torch.autograd.gradcheck(afresh, x.clone().requires_grad_())
    cotangent = draw(4, 3, 2).requires_grad_()
    assert torch.autograd.gradgradcheck(afresh, x.clone().requires_grad_(), cotangent, fast_mode=True)

    def loss(x):
        return (afresh(x).tanh() * readout).sum()

    assert_close(forward_over_reverse(loss, (x,), (v,)), double_backward(loss, (x,), (v,)), **CLOSE)


def moved_weights(draw, window=3):
    """Three batches through a linear layer whose weights move between them: (layer, inputs, weights, last output)."""
    layer, inputs, weights = layer_of(window=window, affine=False), [], []
    first = draw(3, 4)
    for _ in range(3):
        inputs.append(draw(7, 4) + 1)
        weights.append((first + 0.2 * draw(3, 4)).requires_grad_())
        y = layer(inputs[-1] @ weights[-1].T, weights[-1])
    return layer, inputs, weights, y


def test_means_are_carried_over_exactly_and_second_moments_up_to_the_square_of_the_step(draw):
    layer, inputs, weights, y = moved_weights(draw)
    today = weights[-1].detach()
    means, variances = [], []
    for u, w in zip(inputs, weights, strict=True):
        step = u @ (today - w.detach()).T
        exact = u @ today.T  # what the batch would give now: its mean is linear in the weights, its square is not
        means.append(exact.mean(0))
        variances.append((exact.var(0, correction=0) - step.square().mean(0)).clamp(min=0))
    mean = torch.stack(means).mean(0)
    var = (torch.stack(variances) + (torch.stack(means) - mean).square()).mean(0)
    assert min(v.min() for v in variances) > 0
    assert_close(y, (inputs[-1] @ today.T - mean) / (var + layer.eps).sqrt(), **CLOSE)


def test_a_small_step_of_the_weights_is_carried_over_up_to_its_square(draw):
    errors = []
    u, first, direction = draw(7, 4), draw(3, 4), draw(3, 4)
    last = draw(7, 4)
    for size in (1e-2, 1e-3):
        layer = layer_of(window=2, affine=False)
        today = (first + size * direction).requires_grad_()
        before = first.clone().requires_grad_()
        layer(u @ before.T, before)
        y = layer(last @ today.T, today)
        want = pooled([(u @ today.T).detach(), (last @ today.T).detach()], layer.eps)
        errors.append(float((y.detach() - want).abs().max()))
    assert 80 < errors[0] / errors[1] < 120


def test_a_variance_that_would_come_out_negative_is_zero():
    layer = layer_of(1, window=2, affine=False, eps=0.0)
    u = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    for value in (1.0, -1.0):  # to first order the second moment 1 goes to 1 + 2 (-2) = -3
        weight = torch.tensor([[value]], dtype=torch.float64, requires_grad=True)
        y = layer(u @ weight.T, weight)
    assert_close(y.flatten().tolist(), [-(2**0.5), 2**0.5], **CLOSE)  # var = (0 + 1) / 2


def test_the_same_weights_carry_nothing(draw):
    with_weights, without, weight = layer_of(window=3), layer_of(window=3), draw(3, 4).requires_grad_()
    for _ in range(4):
        x = draw(5, 4) @ weight.T
        assert_close(with_weights(x, weight), without(x), **CLOSE)


def test_the_rows_of_a_convolution_are_carried_over_as_well(draw):
    layer, inputs, weights = layer_of(window=2, affine=False), [], []
    for _ in range(2):
        inputs.append(draw(2, 2, 5, 5) + 1)
        weights.append(draw(3, 2, 3, 3).requires_grad_())
        y = layer(F.conv2d(inputs[-1], weights[-1]), weights[-1])
    today = weights[1].detach()
    exact, step = F.conv2d(inputs[0], today), F.conv2d(inputs[0], today - weights[0].detach())
    now = F.conv2d(inputs[1], today)
    means = torch.stack([exact.mean((0, 2, 3)), now.mean((0, 2, 3))])
    carried = exact.var((0, 2, 3), correction=0) - step.square().mean((0, 2, 3))
    variances = torch.stack([carried.clamp(min=0), now.var((0, 2, 3), correction=0)])
    mean = means.mean(0)
    var = (variances + (means - mean).square()).mean(0)
    want = (now - mean[:, None, None]) / (var + layer.eps).sqrt()[:, None, None]
    assert_close(y, want, **CLOSE)


def test_the_compensation_is_a_constant_of_the_gradient(draw):
    layer, _, _, _ = moved_weights(draw)
    twin, u, weight = copy.deepcopy(layer), draw(7, 4), draw(3, 4).requires_grad_()
    g = draw(7, 3)
    (through_both,) = torch.autograd.grad(layer(u @ weight.T, weight), weight, g)
    alias = weight.detach().clone().requires_grad_()
    x = u @ weight.T
    y = twin(x, alias)  # no graph leads from x to the alias: its slopes are zero, as those of this batch do not matter
    (through_input,) = torch.autograd.grad(y, weight, g)
    assert_close(through_both, through_input, **CLOSE)


def test_running_statistics_are_those_of_batch_norm_whatever_the_window(draw):
    ours, theirs = layer_of(window=4), BatchNorm(3, dtype=torch.float64)
    for step in range(5):
        x = draw(4, 3, 2) * (1 + step)
        ours(x), theirs(x)
    assert_close((ours.running_mean, ours.running_var), (theirs.running_mean, theirs.running_var), **CLOSE)
    x = draw(4, 3, 2)
    assert_close(ours.eval()(x), theirs.eval()(x), **CLOSE)


def test_the_state_dict_carries_window_and_weights_on_into_a_layer_that_saw_none(draw):
    layer, _, _, _ = moved_weights(draw)
    fresh = layer_of(affine=False, window=3)
    fresh.load_state_dict(layer.state_dict(), strict=True)
    u, weight = draw(7, 4), draw(3, 4).requires_grad_()
    assert torch.equal(fresh(u @ weight.T, weight), layer(u @ weight.T, weight))
    fresh.load_state_dict(layer_of(affine=False, window=3).state_dict(), strict=True)
    assert "past_weight" not in fresh.state_dict()


def test_resetting_forgets_batches_and_weights(draw):
    layer, _, _, _ = moved_weights(draw)
    layer.reset_parameters()
    fresh = layer_of(window=3, affine=False).state_dict()
    assert {name: t.tolist() for name, t in layer.state_dict().items()} == {
        name: t.tolist() for name, t in fresh.items()
    }


def test_one_value_per_channel_is_refused_in_train_mode_alone():
    match = r"CrossIterationBatchNorm\(3\) needs more than one value per channel.*; got \(1, 3\), 1 per channel; use a"
    layer = layer_of()
    with pytest.raises(ValueError, match=match):
        layer(torch.ones(1, 3, dtype=torch.float64))
    assert int(layer.num_batches_tracked) == 0
    assert layer.eval()(torch.ones(1, 3, dtype=torch.float64)).shape == (1, 3)


def test_a_window_below_one_is_refused():
    with pytest.raises(ValueError, match="needs a window of at least 1; got 0; window=1 is batch norm"):
        layer_of(window=0)


def test_weights_without_a_row_for_each_channel_are_refused(draw):
    with pytest.raises(ValueError, match=r"needs weights with one row per channel; got \(4, 3\); pass the weight of"):
        layer_of()(draw(5, 3), draw(4, 3))


def test_moments_pool_batch_and_space(draw):
    x = draw(4, 3, 2)
    y = layer_of(eps=0.0, affine=False)(x)
    assert_close(y.mean(batch_dims(y)).tolist(), [0.0] * 3, **CLOSE)
    assert_close(y.square().mean(batch_dims(y)).tolist(), [1.0] * 3, **CLOSE)
