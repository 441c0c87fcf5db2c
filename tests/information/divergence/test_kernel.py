"""The maximum mean discrepancy is its closed form for Gaussians, unbiased, its null spread what repetition shows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from normlens.information.divergence import mmd
from normlens.information.histogram import AsinhGrid, Histogram


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


STANDARD = AsinhGrid.around(torch.zeros(1), torch.ones(1))


def counted(x: Tensor) -> Histogram:
    return Histogram.of(x, STANDARD)


@pytest.mark.parametrize("bandwidth", [0.5, 1.0, 3.0])
def test_it_is_the_unbiased_statistic_of_the_raw_values(bandwidth):
    """The textbook's double sums over all pairs, in float64; bins are 0.016 wide where most values are."""
    x, y = normal(300, 1), normal(200, 1, seed=1).relu() + 0.3
    unit = 2 * STANDARD.scale.item() * bandwidth

    def mean_kernel(a: Tensor, b: Tensor, pairs: int) -> float:
        return float((-((a - b.T) ** 2) / (2 * unit**2)).exp().sum() - (len(a) if a is b else 0)) / pairs

    exact = mean_kernel(x, x, 300 * 299) + mean_kernel(y, y, 200 * 199) - 2 * mean_kernel(x, y, 300 * 200)
    assert mmd(counted(x), counted(y), bandwidth=bandwidth).value == pytest.approx(exact, rel=0.01)


def test_of_gaussians_it_is_the_closed_form_on_average():
    """E k of N(m, s^2) differences: b / sqrt(b^2 + s^2) exp(-m^2 / 2(b^2 + s^2)), with b = 1."""

    def kernel(m: float, variance: float) -> float:
        return math.exp(-(m**2) / (2 * (1 + variance))) / math.sqrt(1 + variance)

    exact = kernel(0, 2) + kernel(0, 2 * 0.25) - 2 * kernel(1, 1.25)
    pairs = ((normal(400, 1, seed=s), 1 + normal(400, 1, seed=999 + s) / 2) for s in range(50))
    found = [mmd(counted(x), counted(y)).value for x, y in pairs]
    assert np.mean(found) == pytest.approx(exact, abs=4 * np.std(found) / math.sqrt(50))


@pytest.mark.parametrize("shape", [lambda u: u, torch.relu], ids=["normal", "rectified"])
def test_where_nothing_moved_it_is_zero_on_average_and_spreads_as_it_says(shape):
    pairs = ((normal(300, 1, seed=s), normal(200, 1, seed=999 + s)) for s in range(300))
    found = [mmd(counted(shape(x)), counted(shape(y))) for x, y in pairs]
    values = np.array([estimate.value for estimate in found])
    assert abs(values.mean()) < 4 * values.std() / math.sqrt(300)
    assert (values < 0).mean() > 0.3
    # A weighted sum of chi squares is skewed: its spread over 300 is known to about 10 %.
    assert np.mean([estimate.error for estimate in found]) == pytest.approx(values.std(), rel=0.3)


def test_channels_are_averaged_each_on_its_own_grid_and_nan_stays_nan():
    x, y = normal(200, 1), 1 + normal(200, 1, seed=1)
    scale = torch.tensor([1.0, 1000.0])
    grid = AsinhGrid(STANDARD.center * scale, STANDARD.scale * scale)
    wide = [Histogram.of(v * scale, grid) for v in (x, y)]
    assert mmd(*wide).value == pytest.approx(mmd(counted(x), counted(y)).value, rel=1e-9)
    broken = Histogram.of(torch.cat([y * scale, torch.full((1, 2), math.nan)]), grid)
    assert math.isnan(mmd(wide[0], broken).value)
    with pytest.raises(ValueError, match="histograms must share one grid"):
        mmd(wide[0], Histogram.of(x.expand(-1, 2), AsinhGrid(grid.center + 1, grid.scale)))
