"""The independent-component layer is batch norm on average; its gates thin out correlation as theory says."""

from __future__ import annotations

import copy
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from normlens import EmpiricalRisk
from normlens.nn.batch_norm import BatchNorm
from normlens.nn.independent_component import IndependentComponent

exact = partial(assert_close, rtol=1e-12, atol=1e-12)
KEEP = 0.8


def layer_of(channels, **settings):
    return IndependentComponent(channels, dtype=torch.float64, **settings)


def twins(channels, draw, **settings):
    """The layer and the batch norm in it, with the same parameters."""
    ours, theirs = layer_of(channels, **settings), BatchNorm(channels, dtype=torch.float64)
    ours.weight.data, ours.bias.data = draw(channels), draw(channels)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs


def seeded(layer, x, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return layer(x)


def correlated(draw, count, correlation):
    """Two channels of exactly mean 0, variance 1 and this correlation."""
    z = draw(count, 2)
    z = z - z.mean(0)
    z = z @ torch.linalg.inv(torch.linalg.cholesky(z.T @ z / count)).T
    return z @ torch.tensor([[1, correlation], [0, math.sqrt(1 - correlation**2)]], dtype=torch.float64)


def correlation_of(y):
    return torch.corrcoef(y.T)[0, 1].item()


def test_values_are_dropped_or_those_of_batch_norm_over_keep_prob(draw):
    ours, theirs = twins(4, draw, keep_prob=KEEP)
    x = draw(50, 4, 5) * 2 + 1
    got, full = seeded(ours, x), theirs(x) / KEEP
    dropped = got == 0
    exact(got, full.masked_fill(dropped, 0))
    share, error = dropped.double().mean().item(), math.sqrt(KEEP * (1 - KEEP) / got.numel())
    assert abs(share - (1 - KEEP)) < 5 * error
    exact(ours.running_var, theirs.running_var)
    exact(ours.running_mean, theirs.running_mean)


def test_gates_are_the_same_in_every_dtype(draw):
    x = draw(64, 4)
    patterns = [seeded(layer_of(4, keep_prob=0.5).to(dtype), x.to(dtype)) == 0 for dtype in (
        torch.float64, torch.float32, torch.bfloat16, torch.float16)]  # fmt: skip
    for pattern in patterns[1:]:
        assert torch.equal(pattern, patterns[0])


def test_the_mean_over_gates_is_batch_norm(draw):
    ours, theirs = twins(3, draw, keep_prob=KEEP)
    x, draws = draw(4, 3, 2), 4000
    with torch.random.fork_rng():
        torch.manual_seed(1)
        mean = sum(ours(x) for _ in range(draws)) / draws
    want = theirs(x)
    error = want.abs() * math.sqrt((1 - KEEP) / KEEP / draws)
    assert ((mean - want).abs() < 5 * error).all()


def test_in_eval_mode_it_is_batch_norm(draw):
    ours, theirs = twins(4, draw, keep_prob=0.3)
    x = draw(5, 4, 3)
    for layer in (ours, theirs):
        layer(x)
        layer.eval()
    exact(ours(x), theirs(x))
    exact(layer_of(4, eps=0.0).eval()(x[:1]), x[:1])


def test_keeping_everything_is_batch_norm_in_train_mode_and_draws_nothing(draw):
    ours, theirs = twins(4, draw, keep_prob=1.0)
    x, before = draw(5, 4, 3), torch.random.get_rng_state()
    assert torch.equal(ours(x), theirs(x))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_state_dicts_travel_strictly_between_batch_norm_and_here(draw):
    ours, theirs = layer_of(4), nn.BatchNorm2d(4, dtype=torch.float64)
    theirs(draw(3, 4, 5, 5) + 1)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = draw(3, 4, 5, 5)
    exact(ours.eval()(x), theirs.eval()(x))


def test_without_bias_gates_multiply_the_correlation_by_keep_prob(draw):
    layer, count = layer_of(2, keep_prob=KEEP, eps=0.0), 400_000
    got = correlation_of(seeded(layer, correlated(draw, count, 0.6)))
    assert abs(got - KEEP * 0.6) < 5 / math.sqrt(count)


def test_with_biases_the_correlation_falls_further_by_the_exact_factor(draw):
    layer, count = layer_of(2, keep_prob=KEEP, eps=0.0), 400_000
    layer.bias.data = torch.tensor([1.0, 0.5], dtype=torch.float64)
    want = KEEP * 0.6 / math.sqrt((1 + 0.2 * 1.0) * (1 + 0.2 * 0.25))
    assert_close(want, 0.42762, rtol=0, atol=5e-6)
    got = correlation_of(seeded(layer, correlated(draw, count, 0.6)))
    assert abs(got - want) < 5 / math.sqrt(count)
    assert abs(want - KEEP * 0.6) > 20 / math.sqrt(count)  # so the test tells the two laws apart


def test_without_bias_the_variance_of_train_mode_is_that_of_eval_mode_over_keep_prob(draw):
    layer, count = layer_of(2, keep_prob=KEEP, eps=0.0), 100_000
    variance = seeded(layer, correlated(draw, count, 0.0)).var(0)
    kurtosis = 3 / KEEP**3  # E[y^4] of a gated standard normal
    error = math.sqrt((kurtosis - 1 / KEEP**2) / count)
    assert ((variance - 1 / KEEP).abs() < 5 * error).all()


def test_a_risk_draws_the_same_gates_at_every_evaluation_and_leaves_the_random_state_alone(draw):
    model = nn.Sequential(layer_of(4, keep_prob=0.5), nn.Linear(4, 2, dtype=torch.float64))
    risk = EmpiricalRisk(model, F.mse_loss, (draw(16, 4), draw(16, 2)), mode="train")
    before = torch.random.get_rng_state()
    first, gradient = risk.loss(), risk.gradient()
    assert torch.equal(first, risk.loss())
    assert all(torch.equal(gradient[name], again) for name, again in risk.gradient().items())
    assert torch.equal(torch.random.get_rng_state(), before)
    other = EmpiricalRisk(model, F.mse_loss, risk.data, mode="train", seed=1)
    assert not torch.equal(other.loss(), first)


def test_the_gradient_passes_open_gates_alone_and_is_right_through_batch_norm(draw):
    layer = layer_of(3, keep_prob=0.5, track_running_stats=False)
    x = draw(6, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: seeded(layer, x), x)
    assert torch.autograd.gradgradcheck(lambda x: seeded(layer, x), x, draw(6, 3).requires_grad_())
    y = seeded(layer, x)
    (gradient,) = torch.autograd.grad(y, x, torch.where(y == 0, 1.0, 0.0).double())
    exact(gradient, torch.zeros_like(gradient))


def test_a_deep_copy_draws_what_the_layer_draws(draw):
    layer, x = layer_of(4, keep_prob=0.5), draw(8, 4)
    assert torch.equal(seeded(copy.deepcopy(layer), x), seeded(layer, x))


@pytest.mark.parametrize("keep_prob", [0.0, -0.1, 1.1, math.nan])
def test_a_keep_prob_that_is_no_probability_to_stay_is_refused(keep_prob):
    with pytest.raises(ValueError, match=rf"keep_prob in \(0, 1\]; got {keep_prob}; it is the probability to stay"):
        IndependentComponent(4, keep_prob=keep_prob)


def test_one_value_per_channel_is_refused_in_train_mode():
    with pytest.raises(ValueError, match=r"IndependentComponent\(4\) needs more than one value per channel"):
        IndependentComponent(4)(torch.ones(1, 4))
