"""EM is that of scikit-learn and of the likelihood; the transform has its closed forms; components find their order."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torch.testing import assert_close

from normlens.nn import em_mixture as em


def unit(points):
    """Points of mean 0 and variance 1 in each dimension."""
    return (points - points.mean(2, keepdim=True)) / points.std(2, correction=0, keepdim=True)


def clusters(draw, centers, each, spread=1.0):
    """Points (1, P, K * each) around the rows of ``centers``, and their labels."""
    centers = torch.tensor(centers, dtype=torch.float64)
    labels = torch.arange(len(centers)).repeat_interleave(each)
    return (centers[labels] + spread * draw(len(labels), centers.shape[1])).mT.unsqueeze(0), labels


def some_mixture(draw, groups=2, components=3, dimensions=4):
    weight = draw(groups, components, 1).softmax(1)
    return em.Mixture(weight, draw(groups, components, dimensions), draw(groups, components, dimensions).exp())


def distribution(mixture):
    """The same mixture in PyTorch's words, batched over ``G``."""
    parts = Independent(Normal(mixture.mean, mixture.var.sqrt()), 1)
    return MixtureSameFamily(Categorical(mixture.weight.squeeze(2)), parts)


def hard(labels, components):
    return torch.nn.functional.one_hot(labels, components).mT.unsqueeze(0).double()


def row(*values):
    return torch.tensor(values, dtype=torch.float64).reshape(1, 1, -1)


def test_the_posterior_is_that_of_the_distributions_of_torch(draw):
    mixture, points = some_mixture(draw), draw(2, 4, 30)
    at = points.permute(2, 0, 1)  # (M, G, P)
    mixed = distribution(mixture)
    joint = mixed.component_distribution.log_prob(at.unsqueeze(2)) + mixture.weight.squeeze(2).log()
    want = (joint - mixed.log_prob(at).unsqueeze(2)).exp().permute(1, 2, 0)
    assert_close(em.posterior(points, mixture), want, rtol=1e-11, atol=1e-13)


def test_component_moments_are_the_weighted_ones_of_numpy(draw):
    points, r = draw(2, 3, 20) + 5, draw(2, 4, 20).softmax(1)
    mixture = em.component_moments(points, r)
    for g in range(2):
        for k in range(4):
            x, w = points[g].numpy(), r[g, k].numpy()
            assert_close(float(mixture.weight[g, k, 0]), float(w.mean()), rtol=1e-13, atol=0)
            assert_close(mixture.mean[g, k].numpy(), np.average(x, axis=1, weights=w), rtol=1e-13, atol=0)
            cov = np.cov(x, aweights=w, bias=True)
            assert_close(mixture.var[g, k].numpy(), np.diag(cov).copy(), rtol=1e-12, atol=0)


def test_iterations_are_those_of_scikit_learn_from_the_same_start(draw):
    points = unit(clusters(draw, [[0, 0, 0], [2, 1, 0], [0, 3, 3]], 40)[0])
    start = em.component_moments(points, em.slices(points, 3))
    theirs = GaussianMixture(
        3,
        covariance_type="diag",
        reg_covar=0.0,
        tol=0.0,
        max_iter=7,
        init_params="random_from_data",
        random_state=0,
        weights_init=start.weight[0, :, 0].numpy(),
        means_init=start.mean[0].numpy(),
        precisions_init=1 / start.var[0].numpy(),
    )
    x = points[0].mT.numpy()
    with pytest.warns(ConvergenceWarning):
        theirs.fit(x)
    ours = em.fit_responsibilities(points, 3, iterations=8, min_weight=0.0)
    assert_close(ours[0].mT, torch.from_numpy(theirs.predict_proba(x)), rtol=0, atol=1e-9)


def test_no_iteration_lowers_the_likelihood(draw):
    points, before = unit(clusters(draw, [[0, 0], [2, 0], [0, 2]], 30)[0]), -torch.inf
    for iterations in range(1, 15):
        r = em.fit_responsibilities(points, 3, iterations=iterations, min_weight=0.0)
        fitted = em.component_moments(points, r)
        likelihood = float(distribution(fitted).log_prob(points.permute(2, 0, 1)).mean())
        assert likelihood >= before - 1e-12
        before = likelihood


@pytest.mark.parametrize("components", [2, 3, 5])
def test_clusters_along_any_direction_are_found(draw, components):
    direction = draw(8)
    places = [(10 * k * direction / direction.norm()).tolist() for k in range(components)]
    points, labels = clusters(draw, places, 25)
    r = em.fit_responsibilities(unit(points), components, iterations=10, min_weight=1e-3)
    found = r[0].argmax(0)
    assert any(torch.equal(torch.tensor(order)[found], labels) for order in permutations(range(components)))
    assert_close(r.amax(1), torch.ones_like(r[:, 0]), rtol=0, atol=1e-6)


def test_clusters_that_lie_on_no_line_are_found(draw):
    points, labels = clusters(draw, [[0, 0], [12, 0], [0, 12]], 25)
    found = em.fit_responsibilities(unit(points), 3, iterations=20, min_weight=1e-3)[0].argmax(0)
    assert any(torch.equal(torch.tensor(order)[found], labels) for order in permutations(range(3)))


def test_the_order_of_the_points_does_not_matter(draw):
    points, order = unit(draw(2, 5, 40)), draw(40).argsort()
    r = em.fit_responsibilities(points, 3, iterations=10, min_weight=1e-3)
    shuffled = em.fit_responsibilities(points[..., order], 3, iterations=10, min_weight=1e-3)
    assert_close(shuffled, r[..., order], rtol=0, atol=1e-9)


def test_slices_of_a_line_are_equal_gaussians_at_its_normal_quantiles():
    points = torch.linspace(-2, 2, 41, dtype=torch.float64).reshape(1, 1, -1)
    t = (points / points.square().mean().sqrt()).flatten()
    centers = torch.tensor([-0.9674215661017014, 0.0, 0.9674215661017014])  # of 1/6, 1/2 and 5/6
    spread = (1 - 2 / 3 * 0.9674215661017014**2) ** 0.5
    density = torch.stack([Normal(c.double(), spread).log_prob(t).exp() for c in centers])
    assert_close(em.slices(points, 3)[0], density / density.sum(0), rtol=1e-6, atol=1e-7)


def test_each_problem_is_solved_by_itself(draw):
    points = unit(draw(3, 2, 30).exp())
    together = em.fit_responsibilities(points, 2, iterations=5, min_weight=1e-3)
    for g in range(3):
        alone = em.fit_responsibilities(points[g : g + 1], 2, iterations=5, min_weight=1e-3)
        assert_close(together[g : g + 1], alone, rtol=0, atol=1e-12)


def test_points_that_are_all_alike_leave_everything_finite():
    r = em.fit_responsibilities(torch.zeros(2, 3, 10), 3, iterations=5, min_weight=1e-3)
    assert_close(r.sum(1), torch.ones(2, 10))
    y = em.standardize_by_mixture(torch.zeros(2, 3, 10), r, em.component_moments(torch.zeros(2, 3, 10), r), 1e-5)
    assert_close(y, torch.zeros_like(y), rtol=0, atol=0)


def test_a_narrow_component_far_from_the_center_keeps_its_variance_in_float32(draw):
    labels = torch.arange(2).repeat_interleave(500)
    points = ((2 * labels - 1) + 1e-4 * draw(1000)).float().reshape(1, 1, -1)
    got = em.component_moments(points, hard(labels, 2).float()).var
    want = em.component_moments(points.double(), hard(labels, 2)).var
    assert_close(got.double(), want, rtol=1e-4, atol=0)


def test_two_modes_of_one_width_are_laid_over_each_other_while_one_gaussian_keeps_them_apart():
    x, labels = row(-11, -9, 9, 11), torch.tensor([0, 0, 1, 1])
    r = hard(labels, 2)
    y = em.standardize_by_mixture(x, r, em.component_moments(x, r), 0.0)
    assert_close(y, row(-(2**0.5), 2**0.5, -(2**0.5), 2**0.5), rtol=1e-14, atol=1e-14)
    assert_close(float(y.var(correction=0)), 2.0, rtol=1e-14, atol=0)
    one = torch.ones_like(x)
    plain = em.standardize_by_mixture(x, one, em.component_moments(x, one), 0.0)
    assert_close(plain, row(-1.0945, -0.8955, 0.8955, 1.0945), rtol=0, atol=5e-5)


def test_a_component_of_one_value_becomes_zero():
    x, r = row(0, 1, 2, 10), hard(torch.tensor([0, 0, 0, 1]), 2)
    y = em.standardize_by_mixture(x, r, em.component_moments(x, r), 1e-5)
    assert_close(y, row(-(2**0.5), 0, 2**0.5, 0), rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("components", [1, 2, 3, 5])
def test_hard_responsibilities_make_the_mean_zero_and_the_variance_the_number_of_components(draw, components):
    points, labels = draw(1, 4, 60).exp(), torch.arange(60) % components
    r = hard(labels[draw(60).argsort()], components)
    y = em.standardize_by_mixture(points, r, em.component_moments(points, r), 0.0)
    zero = torch.zeros(1, 4, dtype=torch.float64)
    assert_close(y.mean(2), zero, rtol=0, atol=1e-13)
    assert_close(y.var(2, correction=0), zero + components, rtol=1e-13, atol=0)


def test_the_transform_is_the_sum_of_the_mean_blocks_of_the_fisher_vector(draw):
    """A mean block is the score of the mean over the square root of its approximate Fisher information lambda / s^2."""
    mixture, points = some_mixture(draw), draw(2, 4, 20)
    mean = mixture.mean.clone().requires_grad_()
    for i in range(20):
        x = points[..., i : i + 1]
        log_p = distribution(mixture._replace(mean=mean)).log_prob(x.squeeze(2)).sum()
        (score,) = torch.autograd.grad(log_p, mean)
        want = (score * mixture.var.sqrt() / mixture.weight.sqrt()).sum(1)
        got = em.standardize_by_mixture(x, em.posterior(x, mixture), mixture, 0.0).squeeze(2)
        assert_close(got, want, rtol=1e-11, atol=1e-11)


def test_a_dead_component_changes_neither_output_nor_gradient(draw):
    r, g, results = draw(1, 2, 15).softmax(1), draw(1, 3, 15), []
    for share in (r, torch.cat([r, torch.zeros(1, 1, 15, dtype=torch.float64)], dim=1)):
        x = torch.linspace(-1, 3, 45, dtype=torch.float64).reshape(1, 3, 15).requires_grad_()
        y = em.standardize_by_mixture(x, share, em.component_moments(x, share), 0.0)
        results.append([y, *torch.autograd.grad(y, x, g)])
    assert_close(*results, rtol=1e-13, atol=1e-13)


def test_components_below_the_least_weight_are_dropped_and_the_rest_sums_to_one(draw):
    weight = torch.tensor([0.5, 0.0005, 0.4995], dtype=torch.float64).reshape(1, 3, 1)
    kept = em.prune(some_mixture(draw, 1)._replace(weight=weight), 1e-3).weight.flatten()
    assert_close(kept.tolist(), [0.5 / 0.9995, 0.0, 0.4995 / 0.9995], rtol=1e-14, atol=0)
    outlier, _ = clusters(draw, [[0.0]], 2000)
    outlier[0, 0, 0] = 1000.0
    r = em.fit_responsibilities(unit(outlier), 3, iterations=10, min_weight=0.01)
    assert set(r.sum(2).flatten().gt(0).tolist()) == {True, False}
    assert bool(((r.mean(2) == 0) | (r.mean(2) > 0.01)).all())


def test_components_come_in_the_order_nearest_to_the_running_ones(draw):
    running = some_mixture(draw, groups=2)
    for order in permutations(range(3)):
        shuffled = em.Mixture(*(part[:, list(order)] for part in running))
        near = shuffled._replace(mean=shuffled.mean + 1e-3 * draw(2, 3, 4))
        for got, want in zip(em.match(near, running, torch.ones(2, 4, 1)), running, strict=True):
            assert_close(got, want, rtol=0, atol=1e-2)


def test_the_chosen_order_is_the_cheapest_of_all_in_units_of_each_dimension(draw):
    fitted, running, var = some_mixture(draw, 1), some_mixture(draw, 1), draw(1, 4, 1).exp()

    def cost(mean):
        return float(((mean - running.mean).square() / var.mT).sum())

    matched = em.match(fitted, running, var)
    assert cost(matched.mean) == pytest.approx(min(cost(fitted.mean[:, list(o)]) for o in permutations(range(3))))


def test_the_unit_of_distance_is_the_spread_of_each_dimension():
    fitted = em.Mixture(torch.full((1, 2, 1), 0.5), torch.tensor([[[0.0, 0.0], [1.0, 10.0]]]), torch.ones(1, 2, 2))
    running = fitted._replace(mean=torch.tensor([[[1.0, 0.0], [0.0, 10.0]]]))
    narrow_wide, wide_narrow = torch.tensor([[[0.01], [100.0]]]), torch.tensor([[[100.0], [0.01]]])
    assert em.match(fitted, running, narrow_wide).mean.tolist() == [[[1.0, 10.0], [0.0, 0.0]]]
    assert em.match(fitted, running, wide_narrow).mean.tolist() == fitted.mean.tolist()


def test_ties_keep_the_order_whatever_the_rounding(draw):
    for _ in range(30):
        fitted = some_mixture(draw, 1)
        alike = fitted._replace(mean=draw(1, 1, 4).expand(1, 3, 4))
        assert torch.equal(em.match(fitted, alike, torch.ones(1, 4, 1)).mean, fitted.mean)


def test_a_dead_component_goes_where_the_others_leave_room(draw):
    fitted = some_mixture(draw, 1)
    running = fitted._replace(mean=torch.arange(3.0).double().reshape(1, 3, 1).expand(1, 3, 4))
    weight = torch.tensor([0.0, 0.5, 0.5], dtype=torch.float64).reshape(1, 3, 1)
    mean = torch.tensor([2.0, 1.8, 0.0], dtype=torch.float64).reshape(1, 3, 1).expand(1, 3, 4)
    matched = em.match(em.Mixture(weight, mean, fitted.var), running, torch.ones(1, 4, 1))
    assert matched.weight.flatten().tolist() == [0.5, 0.0, 0.5]
    assert matched.mean[0, :, 0].tolist() == [0.0, 2.0, 1.8]


def test_the_likelihood_reached_is_near_the_best_of_many_starts_of_k_means(draw):
    """Ours against the best of ten k-means++ starts by scikit-learn, each run to convergence; in nats per point."""
    points = unit(clusters(draw, [[0, 0, 0, 0], [3, 0, 2, 0], [0, 3, 0, 2]], 60)[0])
    fitted = em.component_moments(points, em.fit_responsibilities(points, 3, iterations=10, min_weight=1e-3))
    ours = float(distribution(fitted).log_prob(points.permute(2, 0, 1)).mean())
    best = GaussianMixture(3, covariance_type="diag", init_params="k-means++", n_init=10, max_iter=300, random_state=0)
    x = points[0].mT.numpy()
    assert ours > best.fit(x).score(x) - 0.05
