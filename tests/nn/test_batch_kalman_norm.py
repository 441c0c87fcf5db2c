"""Batch Kalman norm mixes moments by the law of total variance, is batch norm without a prior, and is its own prior."""

from __future__ import annotations

import copy
from itertools import product

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from normlens.nn.batch_kalman_norm import BatchKalmanNorm, filtered_moments
from normlens.nn.functional import Moments, batch_moments


def layer_of(channels, **settings):
    return BatchKalmanNorm(channels, dtype=torch.float64, **settings)


def column(*values):
    return torch.tensor(values, dtype=torch.float64).reshape(-1, 1)


def some_moments(draw, *shape):
    return Moments(draw(*shape), draw(*shape).square())


def test_a_prior_of_1_and_2_and_a_batch_of_3_and_4_give_the_values_worked_out_by_hand():
    prior, batch = Moments(torch.tensor([1.0]), torch.tensor([2.0])), Moments(torch.tensor([3.0]), torch.tensor([4.0]))
    mean, var = filtered_moments(Moments(*(m.double() for m in prior)), Moments(*(m.double() for m in batch)), 0.9)
    assert_close([mean.item(), var.item()], [1.2, 2.56], rtol=1e-15, atol=0)
    layer = layer_of(1, prior_weight=0.9, eps=0.0, prior="repo")
    y, handed_on = layer.step(column(1, 5), Moments(*(m.double() for m in prior)))
    assert_close(y, column((1 - 1.2) / 1.6, (5 - 1.2) / 1.6), rtol=1e-14, atol=0)
    assert_close([m.item() for m in handed_on], [1.2, 2.56], rtol=1e-14, atol=0)


@pytest.mark.parametrize("own", [True, False])
def test_without_weight_on_the_prior_it_is_batch_norm_over_a_run(draw, own):
    ours, theirs = layer_of(4, prior_weight=0.0), nn.BatchNorm1d(4, dtype=torch.float64)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        p.data = q.data = draw(4)
    for training in (True, True, True, False):
        x, g, results = draw(6, 4, 3) * 3 + 2, draw(6, 4, 3), []
        prior = None if own else some_moments(draw, 4)
        for layer in (ours.train(training), theirs.train(training)):
            leaf = x.clone().requires_grad_()
            y = layer.step(leaf, prior)[0] if layer is ours else layer(leaf)
            results.append([y, *torch.autograd.grad(y, [leaf, *layer.parameters()], g), *layer.buffers()])
        assert_close(*results, rtol=1e-12, atol=1e-12)


def test_with_all_weight_on_the_prior_the_batch_does_not_matter(draw):
    layer, x, prior = layer_of(3, prior_weight=1.0, eps=0.0, max_ratio=float("inf")), draw(7, 3), some_moments(draw, 3)
    want = (x - prior.mean) / prior.var.sqrt()
    assert_close(layer.step(x, prior)[0], want, rtol=1e-13, atol=1e-13)
    assert_close(layer.step(x[:2], prior)[0], want[:2], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("prior_weight", [0.0, 0.05, 0.5, 0.9, 1.0])
def test_the_moments_are_those_of_a_sample_of_the_mixture(draw, prior_weight):
    """Weighted numbers with the moments of prior and batch: the moments of all of them together."""
    prior, batch = draw(50, 3).exp(), draw(20, 3) * 2 + 1
    weight = torch.full((70,), prior_weight / 50, dtype=torch.float64)
    weight[50:] = (1 - prior_weight) / 20
    both = torch.cat([prior, batch])
    mean = weight @ both
    want = Moments(mean, weight @ (both - mean).square())
    parts = [Moments(x.mean(0), x.var(0, correction=0)) for x in (prior, batch)]
    assert_close(filtered_moments(*parts, prior_weight), want, rtol=1e-13, atol=1e-13)


def test_a_prior_that_is_the_batch_changes_nothing(draw):
    batch = some_moments(draw, 5)
    assert_close(filtered_moments(batch, batch, 0.7), batch, rtol=1e-15, atol=1e-15)


def test_the_variance_is_never_below_the_average_of_both_hence_never_negative(draw):
    prior, batch = some_moments(draw, 100), some_moments(draw, 100)
    for q in torch.linspace(0, 1, 11).tolist():
        var = filtered_moments(prior, batch, q).var
        assert bool((var >= q * prior.var + (1 - q) * batch.var).all())
        flat = Moments(prior.mean, torch.zeros_like(prior.var))
        assert bool((filtered_moments(flat, flat, q).var >= 0).all())


def test_the_best_weight_is_the_share_of_the_batch_in_the_squared_error():
    """Mean squared error over all four signs of the errors: b of the prior, sqrt(e) of the batch."""
    e, b = 0.3, 0.4
    weights = torch.linspace(0, 1, 1001, dtype=torch.float64)
    means = torch.tensor(list(product([-b, b], [-(e**0.5), e**0.5])), dtype=torch.float64)
    zero = torch.zeros((), dtype=torch.float64)
    error = sum(
        filtered_moments(Moments(prior, zero), Moments(batch, zero), weights).mean.square() for prior, batch in means
    )
    best = weights[int(error.argmin())]
    assert_close(float(best), e / (e + b**2), rtol=0, atol=1e-3)


def test_by_itself_a_layer_is_its_own_prior(draw):
    layer = layer_of(3, prior_weight=0.4, eps=0.0)
    for _ in range(3):
        layer(draw(6, 3) * 2 + 1)
    own, x = Moments(layer.running_mean.clone(), layer.running_var.clone()), draw(4, 3)
    mean, var = filtered_moments(own, Moments(x.mean(0), x.var(0, correction=0)), 0.4)
    assert_close(layer(x), (x - mean) / var.sqrt(), rtol=1e-13, atol=1e-13)


def test_running_statistics_follow_the_filtered_ones_with_the_unbiased_variance_of_the_batch(draw):
    layer, x, prior = layer_of(3, prior_weight=0.4, momentum=0.3), draw(5, 3) * 2 + 1, some_moments(draw, 3)
    layer.step(x, prior)
    mean, var = filtered_moments(prior, Moments(x.mean(0), x.var(0, correction=1)), 0.4)
    assert_close(layer.running_mean, 0.3 * mean, rtol=1e-13, atol=1e-13)
    assert_close(layer.running_var, 0.7 + 0.3 * var, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("prior_weight", [0.05, 0.9])
def test_a_layer_that_is_its_own_prior_settles_on_the_statistics_of_a_batch_that_stays_the_same(draw, prior_weight):
    layer, x = layer_of(3, prior_weight=prior_weight, momentum=0.5), draw(2, 3) * 2 + 1
    for _ in range(1000):
        layer(x)
    assert_close(layer.running_mean, x.mean(0), rtol=1e-12, atol=1e-12)
    assert_close(layer.running_var, x.var(0, correction=1), rtol=1e-12, atol=1e-12)
    assert int(layer.num_batches_tracked) == 1000


def test_a_micro_batch_with_a_good_prior_estimates_the_mean_better_than_batch_norm_does(draw):
    layer, errors = layer_of(1, prior_weight=0.9, prior="repo"), []
    for _ in range(400):
        x = draw(2, 1) + 3
        filtered = layer.step(x)[1]
        errors.append([float(filtered.mean - 3) ** 2, float(x.mean() - 3) ** 2])
    kalman, batch = torch.tensor(errors[100:]).mean(0).tolist()  # batch: 1/2, with a standard error of 8 %
    assert kalman < 0.2 * batch


def test_gradients_flow_through_batch_and_prior_and_not_through_the_own_prior(draw):
    layer = layer_of(2, prior_weight=0.3)
    layer(draw(5, 2))
    at = [t.requires_grad_() for t in (draw(4, 2), draw(2), draw(2).exp())]
    assert torch.autograd.gradcheck(lambda x, m, v: copy.deepcopy(layer).step(x, Moments(m, v))[0], at)
    x, g = at[0], draw(4, 2)
    own = Moments(layer.running_mean.clone(), layer.running_var.clone())
    (want,) = torch.autograd.grad(copy.deepcopy(layer).step(x, own)[0], x, g)
    assert_close(torch.autograd.grad(copy.deepcopy(layer)(x), x, g)[0], want, rtol=1e-14, atol=1e-14)


def test_a_prior_a_hundred_times_too_wide_on_average_is_not_used(draw):
    x = draw(6, 2)
    batch = Moments(*(m.flatten() for m in batch_moments(x)))
    for ratios, used in (((1.0, 198.9), True), ((1.0, 199.1), False)):
        layer = layer_of(2, prior_weight=0.5, eps=0.0)
        prior = Moments(batch.mean + 1, batch.var * torch.tensor(ratios, dtype=torch.float64))
        got = layer.step(x, prior)[0]
        mean, var = filtered_moments(prior, batch, 0.5) if used else batch
        assert_close(got, (x - mean) / var.sqrt(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("affine", [True, False])
def test_what_is_handed_on_is_the_aim_of_the_output_or_the_filtered_input(draw, affine):
    x, prior = draw(6, 3), some_moments(draw, 3)
    consistent, repo = layer_of(3, affine=affine), layer_of(3, affine=affine, prior="repo")
    if affine:
        consistent.weight.data, consistent.bias.data = draw(3), draw(3)
    aim = consistent.step(x, prior)[1]
    assert aim.mean.tolist() == (consistent.bias.tolist() if affine else [0.0] * 3)
    assert aim.var.tolist() == (consistent.weight.square().tolist() if affine else [1.0] * 3)
    want = filtered_moments(prior, Moments(x.mean(0), x.var(0, correction=0)), 0.05)
    assert_close(repo.step(x, prior)[1], want, rtol=1e-13, atol=1e-13)


def test_in_eval_mode_only_the_running_statistics_count(draw):
    layer, theirs = layer_of(3), nn.BatchNorm1d(3, dtype=torch.float64)
    layer(draw(6, 3))
    theirs.load_state_dict(layer.state_dict(), strict=True)
    x = draw(1, 3)
    assert_close(layer.eval().step(x, some_moments(draw, 3))[0], theirs.eval()(x), rtol=1e-13, atol=1e-13)
    assert not layer.on_batch
    assert layer.train().on_batch
    assert layer_of(3, track_running_stats=False).eval().on_batch


def test_without_running_statistics_and_prior_it_is_batch_norm(draw):
    x = draw(6, 3)
    got = layer_of(3, track_running_stats=False, prior_weight=0.9)(x)
    assert_close(got, nn.BatchNorm1d(3, dtype=torch.float64)(x), rtol=1e-13, atol=1e-13)


def test_one_value_per_channel_is_refused_in_train_mode_and_not_counted():
    layer = BatchKalmanNorm(4)
    with pytest.raises(ValueError, match=r"BatchKalmanNorm\(4\) needs more than one value per channel.*got \(1, 4\)"):
        layer(torch.ones(1, 4))
    assert int(layer.num_batches_tracked) == 0
    assert layer.eval()(torch.ones(1, 4)).shape == (1, 4)


def test_a_prior_for_other_channels_is_refused(draw):
    with pytest.raises(ValueError, match=r"BatchKalmanNorm\(4\) needs a prior mean and variance of \(4,\); got \(3,\)"):
        BatchKalmanNorm(4).step(torch.ones(3, 4), some_moments(draw, 3))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"prior_weight": 1.1}, "prior_weight from 0 to 1; got 1.1; 0 is batch norm"),
        ({"prior_weight": -0.1}, "prior_weight from 0 to 1; got -0.1"),
        ({"prior": "paper"}, r"prior to be one of \('consistent', 'repo'\); got 'paper'"),
        ({"max_ratio": 0.0}, "max_ratio above 0; got 0.0; use inf for no limit"),
    ],
)
def test_settings_out_of_range_are_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        BatchKalmanNorm(4, **settings)
