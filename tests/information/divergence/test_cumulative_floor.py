"""Two samples of one distribution exceed a floor as often as its level says, and correlated ones no more often."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from normlens.information.divergence import effective_count, kolmogorov_smirnov_floor, wasserstein_floor
from normlens.information.divergence.cumulative import kolmogorov_smirnov_of, wasserstein_of
from normlens.information.histogram import AsinhGrid, Histogram

REPETITIONS = 400  # channels are repetitions

SHAPES = {
    "normal": lambda u: u,
    "rectified": torch.relu,
    "exponential": lambda u: torch.from_numpy(stats.expon.ppf(stats.norm.cdf(u))),
    "heavy_tails": lambda u: torch.from_numpy(stats.t(3).ppf(stats.norm.cdf(u))),
}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def counted(x: Tensor, y: Tensor) -> tuple[Histogram, Histogram]:
    flat = x.reshape(-1, x.shape[-1])
    grid = AsinhGrid.around(flat.mean(0), flat.std(0))
    return Histogram.of(x, grid), Histogram.of(y, grid)


def at_most(count: int, level: float) -> None:
    """Within four standard errors of the binomial count."""
    expected = REPETITIONS * (1 - level)
    assert count <= expected + 4 * math.sqrt(expected * level), count


@pytest.mark.parametrize("level", [0.9, 0.99])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_floors_hold_at_their_level(shape, level):
    n = 1000
    h1, h2 = counted(shape(normal(n, REPETITIONS)), shape(normal(n, REPETITIONS, seed=1)))
    count = h1.finite.double()
    w1 = wasserstein_of(h1, h2)[0] > wasserstein_floor(h1.merge(h2), count, count, level=level)
    ks = kolmogorov_smirnov_of(h1, h2)[0] > kolmogorov_smirnov_floor(count, count, level=level)
    at_most(int(w1.sum()), level)
    at_most(int(ks.sum()), level)
    if level == 0.9:  # and they are not there for show: half as many at least
        assert int(w1.sum()) >= REPETITIONS * 0.05


def test_the_floor_of_normal_values_is_what_was_simulated():
    """At n = 4096: 99 % point .059 deviations (/work/shared/estimators.md), 1.628 sqrt(2/n) of the gap."""
    h1, _ = counted(normal(4096, 20), normal(1, 20))
    n = h1.finite.double()
    assert wasserstein_floor(h1, n, n).mean().item() == pytest.approx(0.059, rel=0.02)
    gap = kolmogorov_smirnov_floor(n, n)[0].item()
    assert gap == pytest.approx(1.6276 * math.sqrt(2 / 4096), rel=1e-4)
    assert gap == pytest.approx(stats.kstwobign.ppf(0.99) * math.sqrt(2 / 4096), rel=1e-6)


def test_the_wasserstein_floor_scales_with_the_units_and_the_root_of_the_counts():
    x = normal(500, 3)
    h, wide = counted(x, x)[0], counted(x * 16, x)[0]
    n = h.finite.double()
    floor = wasserstein_floor(h, n, n)
    np.testing.assert_allclose(wasserstein_floor(wide, n, n), 16 * floor, rtol=1e-9)
    np.testing.assert_allclose(wasserstein_floor(h, 4 * n, 4 * n), floor / 2, rtol=1e-12)


def test_a_constant_has_no_floor_and_nan_has_none_that_is_known():
    x = torch.zeros(20, 2, dtype=torch.float64) + torch.tensor([3.0, 0.0])
    h, _ = counted(x, x)
    assert wasserstein_floor(h, h.finite, h.finite).tolist() == [0, 0]
    x[3, 0] = math.nan
    broken = Histogram.of(x, h.grid)
    assert wasserstein_floor(broken, h.finite, h.finite).isnan().tolist() == [True, False]


@pytest.mark.parametrize("share", [0.0, 0.2, 0.7])
def test_the_effective_count_is_kish_s_for_rectified_correlated_positions(share):
    """By simulation of the share of zeros, and no more than the values counted."""
    samples, positions, channels = 300, 9, 300
    common, own = normal(samples, 1, channels), normal(samples, positions, channels, seed=1)
    x = (math.sqrt(share) * common + math.sqrt(1 - share) * own).relu()
    found = effective_count(x, counted(x, x)[0])
    zeros = (x == 0).double().mean((0, 1))
    simulated = 0.25 / zeros.var().item()  # of independent values: F (1 - F) / count
    assert found.median().item() <= simulated * 1.35  # the variance of 300 is known to 8 %; 4 of these
    assert found.median().item() >= simulated * 0.6  # the worst of five points errs to the safe side
    assert found.max().item() <= samples * positions


@pytest.mark.parametrize("kind", ["common_mean", "common_scale"])
def test_floors_hold_where_the_positions_of_a_sample_are_alike(kind):
    samples, positions = 256, 16

    def draw(seed: int) -> Tensor:
        common, own = normal(samples, 1, REPETITIONS, seed=seed), normal(samples, positions, REPETITIONS, seed=seed + 1)
        return common + own if kind == "common_mean" else common.exp() * own

    x, y = draw(0), draw(2)
    h1, h2 = counted(x, y)
    n, m = effective_count(x, h1), effective_count(y, h2)
    at_most(int((wasserstein_of(h1, h2)[0] > wasserstein_floor(h1.merge(h2), n, m)).sum()), 0.99)
    gap = kolmogorov_smirnov_of(h1, h2)[0]
    at_most(int((gap > kolmogorov_smirnov_floor(n, m)).sum()), 0.99)
    # Taking every value for independent, they would not hold.
    full = h1.finite.double()
    assert int((gap > kolmogorov_smirnov_floor(full, full)).sum()) > 0.02 * REPETITIONS
