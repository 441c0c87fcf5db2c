"""EM never loses likelihood, and its cells keep what they must."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.cluster import KMeans
from torch import Tensor

from normlens.information.mixture_em import Components, bin_cells, climb, k_means, maximize, sample_cells, seed

RULES = {"floor": 1e-6, "min_weight": 0.0}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def three_kinds() -> Tensor:
    """Two modes, a heavy tail and a skewed one, (3, 1, 2000)."""
    two = normal(2000) + 4.0 * (torch.arange(2000) % 3 == 0)
    heavy = normal(2000, seed=1) / normal(2000, seed=2).abs().sqrt()
    return torch.stack([two, heavy, normal(2000, seed=3).exp()]).unsqueeze(1)


def generator(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


@pytest.mark.parametrize("bins", [None, 40, 512])
@pytest.mark.parametrize("components", [1, 2, 4])
def test_no_step_of_em_lowers_the_bound(bins, components):
    points = three_kinds()
    cells = sample_cells(points) if bins is None else bin_cells(points, bins)
    now = seed(cells, components, generator(), floor=1e-6)
    bounds = []
    for _ in range(40):
        bounds.append(climb(cells, now, steps=1, tolerance=0, **RULES))
        now = bounds[-1].components
    rises = torch.stack([b.bound for b in bounds]).diff(dim=0)
    assert rises.min() > -1e-12  # some thousand roundings of terms of order one
    assert components == 1 or rises.max() > 1e-4


def test_the_bound_of_samples_is_their_log_likelihood_and_that_of_cells_is_below_it():
    points = three_kinds()[:1]
    model = Components(*(torch.tensor(p, dtype=torch.float64).view(1, 2, 1) for p in ([0.6, 0.4], [0, 4], [1, 0.5])))
    x = points[0, 0].numpy()
    exact = np.log(0.6 * stats.norm.pdf(x) + 0.4 * stats.norm.pdf(x, 4, math.sqrt(0.5))).mean()
    # The bound after no step is that of the start.
    bounds = [
        climb(cells, model, steps=0, tolerance=0, **RULES).bound.item()
        for cells in (bin_cells(points, 5), bin_cells(points, 50), bin_cells(points, 500), sample_cells(points))
    ]
    assert bounds[-1] == pytest.approx(exact, rel=1e-13)
    assert bounds == sorted(bounds)
    assert exact - bounds[2] < 1e-4 < exact - bounds[0]


@pytest.mark.parametrize("bins", [1, 7, 512])
def test_cells_keep_count_mean_and_mean_square_of_all_values(bins):
    points = three_kinds()
    mass, features = bin_cells(points, bins)
    assert features.shape == (3, 2, bins)
    np.testing.assert_allclose(mass.sum((1, 2)), 1, rtol=1e-12)
    expected = torch.stack([points[:, 0].mean(1), points[:, 0].square().mean(1)], 1)
    np.testing.assert_allclose((mass * features).sum(2), expected, rtol=1e-11)


def test_cells_are_of_one_width_in_asinh_so_an_outlier_takes_no_resolution():
    points = normal(1, 1, 4000)
    points[0, 0, 0] = 1e6
    cells, u = bin_cells(points, 400), points[0, 0].asinh().numpy()
    counts, edges = np.histogram(u, 400)
    assert np.abs(4000 * cells.mass[0, 0].numpy() - counts).max() <= 2  # values at the edges, in float32
    assert edges[1] - edges[0] < 0.045
    assert cells.features[0, :, -1].tolist() == [1e6, 1e12]


def test_a_cell_that_holds_all_values_gives_their_moments_whatever_the_posterior():
    points = three_kinds()
    found = maximize(bin_cells(points, 1), torch.ones(3, 1, 1, dtype=torch.float64), floor=1e-6, min_weight=0)
    np.testing.assert_allclose(found.mean[:, 0], points.mean(2), rtol=1e-12)
    np.testing.assert_allclose(found.var[:, 0], points.var(2, correction=0), rtol=1e-11)


def test_seeds_are_drawn_with_odds_of_mass_and_squared_distance():
    """Three cells, at asinh(x) = 0, 1, 3: the pair of the first two is drawn with the odds worked out by hand."""
    place, mass = np.array([0.0, 1.0, 3.0]), np.array([0.5, 0.3, 0.2])
    far = (place[:, None] - place) ** 2 * mass
    pairs = mass[:, None] * far / far.sum(1, keepdims=True)
    expected = {frozenset((i, j)): pairs[i, j] + pairs[j, i] for i, j in ((0, 1), (0, 2), (1, 2))}
    x, n = torch.from_numpy(np.sinh(place)), 20_000
    cells = bin_cells(x.view(1, 1, 3), 3)
    cells = cells._replace(mass=torch.from_numpy(mass).view(1, 1, 3)).repeat(n)
    means = seed(cells, 2, generator(), floor=1e-9).mean[..., 0]
    single = ((means.unsqueeze(2) - x).abs() < 1e-9).any(1)  # the third cell joins one of the two that were drawn
    seen = {frozenset((0, 1)): single[:, 0] & ~single[:, 1] & ~single[:, 2]}  # {0, 1 and 3}
    share = seen[frozenset((0, 1))].double().mean().item()
    p = expected[frozenset((0, 1))]
    assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / n)


@pytest.mark.parametrize("way", [seed, k_means])
def test_a_start_gives_each_cell_to_the_nearest_seed_with_fewer_values_than_components_too(way):
    points = torch.tensor([0.0, 0, 0, 10, 10, 10], dtype=torch.float64).view(1, 1, 6)
    found = way(sample_cells(points), 3, generator(), floor=1e-3)
    alive = found.weight[0, :, 0] > 0
    assert alive.sum() == 2
    assert sorted(found.mean[0, alive, 0].tolist()) == [0, 10]
    assert found.weight[0, alive, 0].tolist() == [0.5, 0.5]
    assert (found.var[0, :, 0] == 1e-3).all()


def test_k_means_is_that_of_scikit_learn():
    """Of three modes the optimum is found from anywhere: means of the values nearest to them."""
    points = torch.cat([normal(300), 20 + normal(200, seed=1), 50 + normal(100, seed=2)])
    found = k_means(sample_cells(points.view(1, 1, -1)), 3, generator(), floor=1e-6)
    theirs = KMeans(3, n_init=10, random_state=0, tol=0).fit(points.numpy()[:, None])
    np.testing.assert_allclose(sorted(found.mean.flatten()), sorted(theirs.cluster_centers_.ravel()), rtol=1e-9)
    assert sorted(found.weight.flatten().tolist()) == pytest.approx([1 / 6, 1 / 3, 1 / 2])


def test_k_means_goes_on_from_its_seeds_to_the_means_of_halves():
    """Of normal values the best two centers are at the means of the half normals, -0.8 and 0.8: seeds rarely are."""
    points = normal(20, 1, 1000)
    found = k_means(sample_cells(points), 2, generator(), floor=1e-6).mean[..., 0].sort(1).values
    best = [KMeans(2, n_init=10, random_state=0, tol=0).fit(x.numpy()[:, None]).cluster_centers_ for x in points[:, 0]]
    np.testing.assert_allclose(found, np.sort(np.squeeze(best), 1), atol=0.03)


def test_a_component_below_the_least_weight_is_dropped_and_the_others_share_its_points():
    points = torch.cat([normal(990), 50 + 0.1 * normal(10)]).view(1, 1, 1000)
    cells = sample_cells(points)
    start = Components(*(torch.tensor(p, dtype=torch.float64).view(1, 2, 1) for p in ([0.9, 0.1], [0, 50], [1, 1])))
    kept, dropped = (climb(cells, start, steps=50, tolerance=1e-9, floor=1e-6, min_weight=w) for w in (0.005, 0.02))
    np.testing.assert_allclose(kept.components.weight.flatten(), [0.99, 0.01], rtol=1e-9)
    assert dropped.components.weight.flatten().tolist() == [1, 0]
    np.testing.assert_allclose(dropped.components.var[0, 0], points.var(correction=0), rtol=1e-9)
    assert dropped.converged
    assert dropped.bound < kept.bound


def test_mixtures_that_have_converged_stop_and_the_others_go_on():
    cells = sample_cells(three_kinds())
    start = seed(cells, 3, generator(), floor=1e-6)
    together = climb(cells, start, steps=200, tolerance=1e-5, **RULES)
    assert together.converged.all()
    assert len(set(together.steps.tolist())) > 1
    for g in range(3):
        one = torch.tensor([g])
        alone = climb(cells.at(one), start.at(one), steps=200, tolerance=1e-5, **RULES)
        assert alone.steps.item() == together.steps[g].item()
        np.testing.assert_allclose(alone.components.mean[0], together.components.mean[g], rtol=1e-9)
    assert not climb(cells, start, steps=2, tolerance=1e-5, **RULES).converged.any()
