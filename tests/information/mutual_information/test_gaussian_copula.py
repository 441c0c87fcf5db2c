"""The Gaussian copula's information is that of the normal scores' correlation, whatever the margins."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm, pearsonr, rankdata

from normlens.information.mutual_information import gaussian_copula
from support.dependent_pairs import gates, gaussian_information, gaussian_pair


def oracle(x: torch.Tensor, y: torch.Tensor) -> float:
    scores = [norm.ppf((rankdata(v.numpy()) - 0.5) / len(v)) for v in (x, y)]
    return -0.5 * math.log(1 - pearsonr(*scores).statistic ** 2)


@pytest.mark.parametrize("rho", [-0.95, 0.0, 0.3, 0.99])
def test_it_is_the_closed_form_at_scipy_s_correlation_of_the_normal_scores(rho):
    x, y = gaussian_pair(rho, 500)
    found = gaussian_copula(x, y)
    assert found.value == pytest.approx(oracle(x, y), rel=1e-9, abs=1e-15)
    assert found.converged


@pytest.mark.parametrize("rho", [0.0, 0.6, 0.9])
def test_it_finds_the_information_of_gaussians_and_its_error_is_the_spread(rho):
    found = [gaussian_copula(*gaussian_pair(rho, 1000, seed)) for seed in range(200)]
    values = np.asarray([f.value for f in found])
    spread = values.std(ddof=1)
    # Half a chi-square of one degree of freedom over N is left: 1/(2N); normal scores lose as much again.
    assert abs(values.mean() - gaussian_information(rho)) < 4 * spread / math.sqrt(200) + 2 / 1000
    root_mean_square = math.sqrt(np.mean([f.error**2 for f in found]))
    assert root_mean_square == pytest.approx(spread, rel=0.1 + 4 / math.sqrt(400) * (2 if rho == 0 else 1))


def test_increasing_maps_change_nothing():
    x, y = gaussian_pair(0.7, 400)
    assert gaussian_copula(x.exp(), y**3) == gaussian_copula(x, y)
    assert gaussian_copula(-x, y).value == pytest.approx(gaussian_copula(x, y).value, rel=1e-9)


def test_atoms_are_flagged_for_what_it_gives_is_far_too_little():
    x, y = gaussian_pair(0.9, 4000)
    first, second = gates(0.8, 4000)
    found = gaussian_copula(x * first, y * second)
    assert found.converged is False
    assert gaussian_copula(x, y * second).converged is False
    assert found.value < 0.64 * gaussian_information(0.9) - 0.1


def test_three_equal_values_or_one_in_a_hundred_are_no_atom_and_more_are():
    x, y = gaussian_pair(0.5, 50)
    x[:3] = 0.25
    assert gaussian_copula(x, y).converged
    x[:4] = 0.25
    assert gaussian_copula(x, y).converged is False
    x, y = gaussian_pair(0.5, 1000)
    x[:10] = 0.25
    assert gaussian_copula(x, y).converged
    x[:11] = 0.25
    assert gaussian_copula(x, y).converged is False


def test_a_constant_tells_nothing_and_a_copy_everything():
    x, _ = gaussian_pair(0.0, 100)
    assert gaussian_copula(x, torch.ones(100)).value == 0
    assert gaussian_copula(x, x.exp()).value == math.inf
    assert math.isnan(gaussian_copula(x, -x).error)


def test_what_are_no_two_variables_is_refused():
    with pytest.raises(ValueError, match=r"shape \(N,\) with N > 1; got \(5,\) and \(6,\)"):
        gaussian_copula(torch.rand(5), torch.rand(6))
