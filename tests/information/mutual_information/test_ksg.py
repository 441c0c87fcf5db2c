"""The nearest-neighbor estimate is scikit-learn's on normal scores, and finds closed forms of continuous variables."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm, rankdata
from sklearn.feature_selection import mutual_info_regression
from torch import Tensor

from normlens.information.mutual_information import hurdle, ksg
from support.dependent_pairs import gates, gaussian_information, gaussian_pair, seeded


def uniform(*shape: int, seed: int) -> Tensor:
    return torch.rand(shape, generator=seeded(seed), dtype=torch.float64)


def noisy_uniform(width: float, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """X uniform on (0, 1) and Y = X + U with U uniform on (-width, width)."""
    x, u = uniform(2, n, seed=seed)
    return x, x + width * (2 * u - 1)


def cauchy_pair(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """The bivariate Student distribution of one degree of freedom: two normal variables over the same |normal|."""
    x, y, z = torch.randn(3, n, generator=seeded(seed), dtype=torch.float64)
    return x / z.abs(), y / z.abs()


@pytest.mark.parametrize("k", [1, 3, 10])
def test_it_is_scikit_learn_s_estimate_on_normal_scores(k):
    x, y = gaussian_pair(0.8, 600)
    scores = [norm.ppf((rankdata(v) - 0.5) / 600) for v in (x.exp(), y)]
    theirs = mutual_info_regression(scores[0][:, None], scores[1], n_neighbors=k, random_state=4)[0]
    assert ksg(x.exp(), y, k=k, seed=4).value == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize(
    ("draw", "truth", "bias"),
    [
        (lambda seed: gaussian_pair(0.6, 2000, seed), gaussian_information(0.6), 0.005),
        (lambda seed: gaussian_pair(0.9, 2000, seed), gaussian_information(0.9), 0.03),
        (lambda seed: noisy_uniform(0.75, 2000, seed), 1 / 3, 0.005),
        (lambda seed: noisy_uniform(0.1, 2000, seed), 0.1 - math.log(0.2), 0.05),  # 1.709: sharp edges
        (lambda seed: cauchy_pair(2000, seed), math.log(8 * math.pi) - 3, 0.01),
    ],
)
def test_it_finds_the_closed_form(draw, truth, bias):
    """Within three standard errors of the mean of twelve and the bias that nearest neighbors are known to have."""
    found = np.asarray([ksg(*draw(seed)).value for seed in range(12)])
    assert abs(found.mean() - truth) <= 3 * found.std(ddof=1) / math.sqrt(12) + bias


def test_of_independent_variables_it_is_never_negative_where_the_hurdle_estimate_is():
    """It is clamped: the hurdle estimate of the same pairs is negative for about every second one."""
    pairs = [gaussian_pair(0.0, 300, seed) for seed in range(20)]
    clamped, free = ([estimator(*pair).value for pair in pairs] for estimator in (ksg, hurdle))
    assert min(clamped) == 0
    assert min(free) < -0.01
    assert np.maximum(free, 0) == pytest.approx(clamped, abs=0.005)  # the order of equal distances


def test_its_error_is_the_spread_that_repetition_shows():
    """The terms of neighbors are not quite independent: a tenth, and 1.5 of what 100 repetitions leave open."""
    found = [ksg(*gaussian_pair(0.6, 500, seed)) for seed in range(100)]
    spread = np.std([f.value for f in found], ddof=1)
    assert np.mean([f.error for f in found]) == pytest.approx(spread, rel=0.1 + 1.5 / math.sqrt(200))
    assert found[0].cost == 500


def test_increasing_maps_change_nothing():
    x, y = gaussian_pair(0.8, 500)
    assert ksg(x.exp(), y**3 - 7) == ksg(x, y)


def test_it_repeats_to_the_bit_and_leaves_the_global_state_alone():
    x, y = (torch.round(v, decimals=3) for v in gaussian_pair(0.8, 300))
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    assert ksg(x, y, seed=1) == ksg(x, y, seed=1)
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


def test_atoms_are_refused():
    x, y = gaussian_pair(0.9, 500)
    first, second = gates(0.5, 500)
    with pytest.raises(ValueError, match=r"none more than k = 3 times; x holds 0 \d+ times; use hurdle"):
        ksg(x * first, y)
    with pytest.raises(ValueError, match=r"y holds 0 \d+ times; use hurdle"):
        ksg(x, y * second)


@pytest.mark.parametrize("k", [0, 10])
def test_a_neighbor_that_cannot_be_is_refused(k):
    with pytest.raises(ValueError, match=f"at least 1 and below the number of samples, 10; got {k}"):
        ksg(*gaussian_pair(0.5, 10), k=k)
