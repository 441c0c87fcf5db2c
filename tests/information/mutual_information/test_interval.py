"""The interval is the jackknife's: exact for a mean, and it covers the information of gated variables."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from normlens.estimate import Estimate
from normlens.information.mutual_information import hurdle, interval
from support.dependent_pairs import gates, gaussian_information, gaussian_pair, seeded


def mean_product(x: Tensor, y: Tensor) -> Estimate:
    return Estimate(float((x * y).mean()))


def distinct(x: Tensor, y: Tensor) -> Estimate:
    return Estimate(float(len(x.unique())))


def test_of_a_mean_the_error_is_the_standard_deviation_over_the_root_of_n():
    """Over all subsamples of m the variance of a mean is s^2 (1/m - 1/N); the spread of R is known to 1/sqrt(2R)."""
    x, y = gaussian_pair(0.5, 200)
    found = interval(mean_product, x, y, repetitions=2000, generator=seeded(0))
    assert found.error == pytest.approx((x * y).std().item() / math.sqrt(200), rel=4 / math.sqrt(4000))
    every = torch.tensor([sum(c) / 2 for c in itertools.combinations(x[:8].tolist(), 2)])
    exact = every.std(correction=0).item() * math.sqrt(2 / 6)
    assert exact == pytest.approx(x[:8].std().item() / math.sqrt(8), rel=1e-6)


def test_bounds_stand_about_the_estimate_of_all_samples():
    x, y = gaussian_pair(0.5, 200)
    found = interval(hurdle, x, y, repetitions=20, generator=seeded(0))
    assert found.value == hurdle(x, y).value
    assert found.upper - found.value == pytest.approx(1.959964 * found.error)
    assert found.value - found.lower == pytest.approx(1.959964 * found.error)
    assert len(found.values) == 20
    assert found.error == pytest.approx(found.values.std().item() * math.sqrt(50 / 150))


def test_no_sample_is_drawn_twice():
    x = torch.arange(40.0)
    assert interval(distinct, x, x, repetitions=5, generator=seeded(0)).values.tolist() == [10.0] * 5


@pytest.mark.slow
@pytest.mark.parametrize(("rho", "keep"), [(0.9, 0.8), (0.6, 1.0)])
def test_nineteen_of_twenty_intervals_cover_the_information(rho, keep):
    """100 tries leave 4 standard deviations of .022 open; neighbors differ between subsamples, so it may be more."""
    covered, tries, truth = 0, 100, keep**2 * gaussian_information(rho)
    for seed in range(tries):
        x, y = gaussian_pair(rho, 800, seed)
        first, second = gates(keep, 800, seed + 500)
        found = interval(hurdle, x * first, y * second, repetitions=30, generator=seeded(seed))
        covered += found.lower <= truth <= found.upper
    assert covered / tries > 0.95 - 4 * math.sqrt(0.95 * 0.05 / tries)


def test_what_has_no_spread_is_refused():
    with pytest.raises(ValueError, match="at least two repetitions on as many x as y; got 1 of 9 and 9 samples"):
        interval(hurdle, torch.rand(9), torch.rand(9), repetitions=1, generator=seeded(0))
    with pytest.raises(ValueError, match="got 50 of 9 and 8 samples"):
        interval(hurdle, torch.rand(9), torch.rand(8), generator=seeded(0))
