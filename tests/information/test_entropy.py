"""Entropies agree with SciPy and with closed forms, and gates add their own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import digamma
from torch import Tensor

from normlens.information import entropy
from support.dependent_pairs import random_table, seeded


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


@pytest.mark.parametrize("seed", range(5))
def test_the_entropy_of_a_distribution_is_scipy_s(seed):
    p = random_table(3, 5, seed)
    p[1, 1] = 0
    found = entropy.discrete(100 * p)
    assert found.value == pytest.approx(stats.entropy(p.flatten().numpy()), abs=1e-14)
    assert found.error == 0


def test_the_correction_counts_the_values_that_occur():
    counts = torch.tensor([10, 0, 5, 5])
    expected = entropy.discrete(counts).value + (3 - 1) / 40
    assert entropy.discrete(counts, samples=20).value == pytest.approx(expected, abs=1e-14)


def test_counts_are_right_in_the_mean_and_their_error_is_the_spread():
    p, n, repetitions = random_table(4, 3, 1).flatten().sqrt(), 500, 1000
    cells = torch.multinomial(p, n * repetitions, replacement=True, generator=seeded(0)).view(repetitions, n)
    found = [entropy.discrete(c.bincount(minlength=12), samples=n) for c in cells]
    values = np.asarray([f.value for f in found])
    spread = values.std(ddof=1)
    truth = entropy.discrete(p).value
    assert abs(values.mean() - truth) < (0.1 + 4 / math.sqrt(repetitions)) * spread
    assert abs(values.mean() - 11 / (2 * n) - truth) > 0.2 * spread  # without the correction
    assert np.mean([f.error for f in found]) == pytest.approx(spread, rel=0.02 + 4 / math.sqrt(2 * repetitions))


@pytest.mark.parametrize("probabilities", [torch.zeros(3), torch.tensor([0.5, -0.1]), torch.tensor([math.inf])])
def test_what_is_no_distribution_is_refused(probabilities):
    with pytest.raises(ValueError, match="probabilities must be finite and >= 0, not all zero; got the sum"):
        entropy.discrete(probabilities)


@pytest.mark.parametrize("n", [3, 10, 100])
def test_of_gaussian_samples_the_estimate_is_unbiased_and_its_error_exact(n):
    found = [entropy.gaussian(3 * row + 7) for row in normal(4000, n)]
    values = np.asarray([f.value for f in found])
    spread = values.std(ddof=1)
    assert values.mean() == pytest.approx(stats.norm.entropy(7, 3), abs=4 * spread / math.sqrt(4000))
    assert found[0].error == pytest.approx(spread, rel=0.1)
    assert found[0].cost == n


def test_a_constant_has_minus_infinite_differential_entropy():
    assert entropy.gaussian(torch.ones(5)).value == -math.inf


@pytest.mark.parametrize(
    ("draw", "truth"),
    [
        (lambda seed: normal(2000, seed=seed), 0.5 * math.log(2 * math.pi * math.e)),
        (lambda seed: torch.rand(2000, generator=seeded(seed), dtype=torch.float64), 0.0),
        (lambda seed: torch.empty(2000, dtype=torch.float64).exponential_(generator=seeded(seed)), 1.0),
    ],
)
def test_distances_between_neighbors_give_the_entropy_of_the_closed_form(draw, truth):
    found = [entropy.kozachenko_leonenko(draw(seed)) for seed in range(40)]
    values = np.asarray([f.value for f in found])
    spread = values.std(ddof=1)
    assert abs(values.mean() - truth) < 4 * spread / math.sqrt(40) + 0.005
    assert np.mean([f.error for f in found]) == pytest.approx(spread, rel=0.5)


@pytest.mark.parametrize("k", [1, 3])
def test_distances_between_neighbors_are_those_of_all_pairs(k):
    x = normal(50)
    radius = (x[:, None] - x).abs().sort(1).values[:, k]
    value = digamma(50) - digamma(k) + math.log(2) + radius.log().mean().item()
    assert entropy.kozachenko_leonenko(x, k=k).value == pytest.approx(value, rel=1e-12)


def test_scaling_adds_its_logarithm():
    x = normal(300)
    for estimator in (entropy.gaussian, entropy.kozachenko_leonenko):
        assert estimator(5 * x - 1).value == pytest.approx(estimator(x).value + math.log(5), abs=1e-12)


def test_atoms_and_impossible_neighbors_are_refused():
    x = normal(20)
    with pytest.raises(ValueError, match="at least 1 and below the number of samples, 20; got 20; 3 is usual"):
        entropy.kozachenko_leonenko(x, k=20)
    x[:5] = -0.0
    with pytest.raises(ValueError, match=r"more than k = 3 times; 0 occurs 5 times; leave it out"):
        entropy.kozachenko_leonenko(x)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.95, 1.0])
def test_a_gate_leaves_its_share_and_adds_its_own_entropy(seed, keep):
    p = random_table(5, 1, seed).flatten()
    apart = torch.cat([torch.tensor([1 - keep], dtype=torch.float64), keep * p])
    merged = torch.cat([apart[:1] + apart[1:2], apart[2:]])  # the variable is zero itself, with probability p[0]
    expected = entropy.gated(entropy.discrete(p).value, keep)
    assert entropy.discrete(apart).value == pytest.approx(expected, abs=1e-14)
    assert entropy.discrete(merged).value <= expected + 1e-14


def test_the_entropy_of_a_coin_is_scipy_s():
    assert entropy.binary(0.3) == pytest.approx(stats.bernoulli(0.3).entropy(), abs=1e-15)
    assert entropy.binary(0.0) == entropy.binary(1.0) == 0
    with pytest.raises(ValueError, match=r"within \[0, 1\]; got 1.5"):
        entropy.binary(1.5)
