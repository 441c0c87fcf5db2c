"""Mixtures are as likely as scikit-learn's, exact for one component, and honest where there is no density."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as Theirs
from torch import Tensor

import normlens as nl
from normlens.information.gaussian_mixture import GaussianMixture, fit, fit_vectors

D = torch.float64


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=D)


def channels(n: int = 3000) -> Tensor:
    """Modes at all distances, a skewed channel, heavy tails, a small far mode, a nearly constant part."""
    part = torch.arange(n) % 3
    columns = [normal(n, seed=d) + d * part for d in range(5)]
    columns += [normal(n, seed=6).exp(), normal(n, seed=7) / normal(n, seed=8).square().sqrt().clamp_min(0.1)]
    columns += [normal(n, seed=9) + 30.0 * (torch.arange(n) % 50 == 0), normal(n, seed=10).relu() + 0.02 * normal(n)]
    return 100 + 7 * torch.stack(columns, 1)


def theirs(x: Tensor, components: int, **settings) -> Theirs:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return Theirs(components, covariance_type="diag", random_state=0, **settings).fit(x.numpy())


@pytest.mark.parametrize("components", [2, 3])
@pytest.mark.parametrize("bins", [512, None])
def test_every_channel_is_at_least_as_likely_as_with_scikit_learn(components, bins):
    """Its tolerance is 1e-3 nats a step; the bound of 512 cells loses less than 1e-5 of the posterior's bits."""
    x = channels()
    found = fit(x, components, bins=bins)
    expected = [theirs(x[:, [c]], components).score(x[:, [c]].numpy()) for c in range(x.shape[1])]
    assert (found.log_likelihood.numpy() - expected).min() > -1e-5


def test_on_well_separated_modes_the_parameters_are_scikit_learn_s():
    x = channels()[:, 4:5] + 3 * (torch.arange(3000) % 3).to(D).unsqueeze(1) * 7
    ours, other = fit(x, 3, bins=None, tolerance=1e-12), theirs(x, 3, tol=1e-12, max_iter=1000)
    order = other.means_[:, 0].argsort()
    np.testing.assert_allclose(ours.weights[0], other.weights_[order], rtol=1e-6)
    np.testing.assert_allclose(ours.means[0], other.means_[order, 0], rtol=1e-6)
    np.testing.assert_allclose(ours.variances[0], other.covariances_[order, 0], rtol=1e-5)  # theirs have 1e-6 added
    np.testing.assert_allclose(fit(x, 3).means, ours.means, rtol=1e-4)  # of the histogram


def test_likelihoods_posteriors_and_criteria_are_scikit_learn_s_for_the_same_parameters():
    x = channels()[:, [1, 4]]
    other = theirs(x, 3)
    model = GaussianMixture(*(torch.from_numpy(p) for p in (other.weights_, other.means_, other.covariances_)))
    np.testing.assert_allclose(model.log_density(x), other.score_samples(x.numpy()), rtol=1e-11)
    np.testing.assert_allclose(model.posterior(x), other.predict_proba(x.numpy()), rtol=1e-9, atol=1e-14)
    ours = fit_vectors(x, 3)
    np.testing.assert_allclose(ours.log_likelihood, ours.log_density(x).mean(), rtol=1e-12)
    other.weights_, other.means_, other.covariances_ = (p.numpy() for p in (ours.weights, ours.means, ours.variances))
    other.precisions_cholesky_ = 1 / np.sqrt(other.covariances_)
    np.testing.assert_allclose(ours.bic, other.bic(x.numpy()), rtol=1e-12)


def test_the_log_likelihood_is_that_of_the_values_and_not_of_their_cells():
    x = channels()
    found = fit(x, 3, bins=20)
    np.testing.assert_allclose(found.log_likelihood, found.log_density(x).mean(0), rtol=1e-12)
    assert found.values == 3000
    c, k = 4, 1
    one = fit(x[:, [c]], 2)
    expected = stats.norm.logpdf(x[:, c], one.means[0, k], one.variances[0, k].sqrt()) + math.log(one.weights[0, k])
    np.testing.assert_allclose(one.log_joint(x[:, [c]])[:, 0, k], expected, rtol=1e-12)


@pytest.mark.parametrize("bins", [3, 512, None])
def test_one_component_is_exact(bins):
    x = channels()
    found = fit(x, 1, bins=bins)
    assert (found.weights == 1).all()
    # A mean of 100 and a standard deviation of 7: sums of 3000 values in float64.
    np.testing.assert_allclose(found.means[:, 0], x.mean(0), rtol=1e-13)
    np.testing.assert_allclose(found.variances[:, 0], x.var(0, correction=0), rtol=1e-12)
    exact = -0.5 * (2 * math.pi * math.e * x.var(0, correction=0)).log()
    np.testing.assert_allclose(found.log_likelihood, exact, rtol=1e-12)
    np.testing.assert_allclose(found.bic, -6000 * exact + 2 * math.log(3000), rtol=1e-12)
    vectors = fit_vectors(x, 1)
    np.testing.assert_allclose(vectors.means[0], x.mean(0), rtol=1e-13)
    np.testing.assert_allclose(vectors.log_likelihood, exact.sum(), rtol=1e-12)


def test_vectors_are_at_least_as_likely_as_with_scikit_learn_and_the_heaviest_component_is_first():
    x = normal(2000, 5) * torch.tensor([1, 2, 3, 4, 1000.0])
    x[:600] += torch.tensor([5, 0, 9, 0, 3000.0])
    x[600:800, :2] -= 8
    for components in (2, 3, 4):
        found = fit_vectors(x, components)
        assert found.log_likelihood > theirs(x, components).score(x.numpy()) - 1e-5
        assert (found.weights.diff() <= 0).all()
    clean = fit_vectors(x, 3)
    np.testing.assert_allclose(clean.weights, [0.6, 0.3, 0.1], atol=0.01)


def test_a_shift_and_a_scale_of_the_values_are_one_of_the_mixture():
    x = channels()
    found, moved = fit(x, 3), fit(-5 + 0.01 * x, 3)
    np.testing.assert_allclose(moved.weights, found.weights, rtol=1e-4)
    np.testing.assert_allclose(moved.means, -5 + 0.01 * found.means, rtol=1e-4)
    np.testing.assert_allclose(moved.log_likelihood, found.log_likelihood - math.log(0.01), rtol=1e-6)


def test_the_same_generator_gives_the_same_mixture_to_the_bit_and_the_global_one_is_left_alone():
    x, state = channels(), torch.random.get_rng_state()
    one, two = fit(x, 3), fit(x, 3)
    other = fit(x, 3, generator=torch.Generator().manual_seed(5), restarts=1)
    assert torch.equal(one.means, two.means)
    assert not torch.equal(one.means, other.means)
    assert torch.equal(state, torch.random.get_rng_state())


def test_of_several_starts_the_best_goes_on():
    """Five clusters: a single start now and then puts two seeds into one of them, which costs half a nat and more."""
    x = normal(600, 40) + 12 * (torch.arange(600) % 5)[:, None] ** 1.5
    one, six = (fit(x, 5, restarts=r, bins=256).log_likelihood for r in (1, 6))
    best = six.amax()
    assert (one < best - 0.3).sum() >= 1
    assert (six < best - 0.3).sum() == 0


def test_channels_do_not_depend_on_how_many_are_fitted_together(monkeypatch):
    x = channels()[:, :4]
    whole = fit(x, 2)
    monkeypatch.setattr(nl.information.gaussian_mixture, "_CHUNK", 2 * 3000)
    np.testing.assert_allclose(fit(x, 2).log_likelihood, whole.log_likelihood, atol=1e-3)


def test_a_constant_or_broken_channel_has_no_density_and_harms_no_other():
    x = channels()
    sick = torch.cat([x, torch.full((3000, 1), 5.0, dtype=D), x[:, :2].clone()], 1)
    sick[7, -2], sick[9, -1] = math.nan, math.inf
    found = fit(sick, 2)
    for part in (found.weights, found.means, found.variances, found.log_likelihood, found.bic, found.separation()):
        assert part[-3:].isnan().all()
        assert not part[:-3].isnan().any()
    assert found.converged.tolist() == [True] * 9 + [False] * 3


def test_a_value_that_repeats_stands_at_the_floor():
    x = torch.cat([torch.zeros(1000, dtype=D), 5 + normal(1000)]).unsqueeze(1)
    found = fit(x, 2, floor=1e-4)
    half = (x[:, 0].sort().values[[499, 1499]].diff() / 2).item()
    assert found.means[0, 0].abs() < 1e-3
    assert found.variances[0, 0].item() == pytest.approx(1e-4 * half**2, rel=0.1)  # quartiles of 1024 values
    np.testing.assert_allclose(found.weights[0], [0.5, 0.5], atol=0.01)


def test_a_dropped_component_stands_last_with_the_moments_of_all_values_and_counts_for_nothing():
    x = normal(500, 1)
    found = fit(torch.cat([x[:250].round(), 9 + 0 * x[250:]]), 3, bins=None, min_weight=0.3)
    alive = int((found.weights > 0).sum())
    assert alive < 3
    assert (found.weights[0, alive:] == 0).all()
    whole = torch.cat([x[:250].round(), 9 + 0 * x[250:]])
    assert found.variances[0, -1] > 0
    assert found.bic_at(100) == pytest.approx((3 * alive - 1) * math.log(100) - 200 * found.log_likelihood.item())
    assert found.log_density(whole).mean().item() == pytest.approx(found.log_likelihood.item())


def test_the_separation_is_that_of_the_nearest_pair_alive():
    parts = ([[0.5, 0.3, 0.2, 0]], [[0, 3, 9, 0]], [[1, 3, 1, 1]])
    model = GaussianMixture(*(torch.tensor(p, dtype=D) for p in parts))
    assert model.separation().tolist() == [pytest.approx(3 / 2)]
    alone = GaussianMixture(*(torch.tensor(p, dtype=D) for p in ([[1.0, 0]], [[0, 3]], [[1, 3]])))
    assert alone.separation().isnan().all()
    vectors = GaussianMixture(*(torch.tensor(p, dtype=D) for p in ([0.5, 0.5], [[0, 0], [3, 4.0]], [[0.5, 0.5]] * 2)))
    assert vectors.separation().item() == pytest.approx(5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_is_taken_for_what_it_is(dtype):
    x = channels().to(dtype)
    assert torch.equal(fit(x, 2).means, fit(x.double(), 2).means)
    assert fit(x, 1).means.dtype == D


def test_impossible_requests_are_refused():
    x = channels(30)
    with pytest.raises(ValueError, match=r"values of shape \(N, C\); got \(30,\)"):
        fit(x[:, 0])
    with pytest.raises(ValueError, match="components of at least 1; got 0"):
        fit(x, 0)
    with pytest.raises(ValueError, match=r"floor above 0.*got 0, 1e-06"):
        fit(x, floor=0)
    with pytest.raises(ValueError, match="min_weight from 0 to below 1/components"):
        fit(x, 2, min_weight=0.5)
    with pytest.raises(ValueError, match="finite values that vary in each dimension"):
        fit_vectors(torch.zeros(5, 2))
    with pytest.raises(ValueError, match=r"this mixture needs values of shape \(N, 9\); got \(30, 2\)"):
        fit(x, 2).posterior(x[:, :2])
    with pytest.raises(ValueError, match=r"one channel is \(1, K\)"):
        GaussianMixture(torch.ones(2), torch.ones(2), torch.ones(2))


@pytest.mark.parametrize("bins", [512, None], ids=["bins", "values"])
def test_where_a_tail_deserves_a_component_the_likelihood_is_at_least_scikit_learn_s_from_every_seed(bins):
    """Three modes with a scale drawn for each value: starts that shun the tail end 5e-4 nats a value lower."""
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(8000, 1, generator=draw) + torch.randint(0, 3, (8000, 1), generator=draw) * 2.5
    x *= torch.rand(8000, 1, generator=draw).clamp_min(1e-3) ** -0.5
    theirs = Theirs(3, random_state=0, max_iter=500, tol=1e-6).fit(x.double().numpy())
    for number in range(4):
        ours = fit(x, 3, bins=bins, generator=torch.Generator().manual_seed(number))
        assert ours.log_likelihood.item() >= theirs.score(x.double().numpy()) - 1e-6
