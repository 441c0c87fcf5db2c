"""What a search brings back: in the units of the points, in order, and with the points' own likelihood."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import Tensor

from normlens.information.mixture_em import Climb
from normlens.information.mixture_search import Search, double, search

N = 4000


def how(**changes: object) -> Search:
    usual = Search(2, 512, 3, 200, 1e-8, 1e-6, 0.0, torch.Generator().manual_seed(0))
    return replace(usual, **changes)


def two_modes() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 1, N, generator=generator, dtype=torch.float64)
    return torch.where(torch.arange(N) < N // 4, 4 + x / 2, x)


def likelihood(found: Climb, points: Tensor) -> float:
    weight, mean, var = (part[0].flatten().numpy() for part in found.components)
    terms = stats.norm.logpdf(points.numpy().ravel()[:, None], mean, np.sqrt(var)) + np.log(weight)
    return float(special.logsumexp(terms, axis=1).mean())


@pytest.mark.parametrize("bins", [512, None], ids=["bins", "values"])
def test_components_come_in_the_units_of_the_points_in_order_with_their_likelihood(bins):
    points = two_modes()
    found = search(points, how(bins=bins))
    weight, mean, var = (part[0].flatten().numpy() for part in found.components)
    assert weight == pytest.approx([0.75, 0.25], abs=0.02)
    assert mean == pytest.approx([0, 4], abs=0.06)
    assert np.sqrt(var) == pytest.approx([1, 0.5], abs=0.05)
    assert found.bound.item() == pytest.approx(likelihood(found, points), rel=1e-12)


def test_a_change_of_units_changes_means_deviations_and_likelihood_and_nothing_else():
    points = two_modes()
    one, other = search(points, how()), search(1024 * points - 3 * 1024, how())
    assert torch.equal(one.steps, other.steps)
    torch.testing.assert_close(other.components.weight, one.components.weight, rtol=1e-9, atol=0)
    torch.testing.assert_close(other.components.mean, 1024 * one.components.mean - 3072, rtol=1e-9, atol=1e-6)
    torch.testing.assert_close(other.components.var, 1024**2 * one.components.var, rtol=1e-9, atol=0)
    assert other.bound.item() == pytest.approx(one.bound.item() - np.log(1024), rel=1e-9)


def test_what_is_constant_or_not_finite_is_nan_and_its_neighbor_is_not():
    points = torch.cat([two_modes(), torch.full((1, 1, N), 3.0, dtype=torch.float64), two_modes()])
    points[2, 0, 5] = torch.inf
    found = search(points, how())
    assert found.bound.isnan().tolist() == [False, True, True]
    assert found.converged.tolist() == [True, False, False]
    assert found.components.mean[1:].isnan().all()


def test_settings_that_make_no_mixture_are_refused():
    with pytest.raises(ValueError, match="needs restarts of at least 1; got 0"):
        how(restarts=0)
    with pytest.raises(ValueError, match=r"min_weight from 0 to below 1/components; got 1e-06, 1e-08, 0.5"):
        how(min_weight=0.5)


def test_values_are_taken_in_float64_without_their_graph():
    found = double(torch.ones(3, dtype=torch.float16, requires_grad=True))
    assert found.dtype == torch.float64
    assert not found.requires_grad
