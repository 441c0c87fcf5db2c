"""Independent variables exceed the level of their shuffled selves in one case of twenty, for any estimator."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from normlens.estimate import Estimate
from normlens.information.mutual_information import hurdle, ksg, permutation_null
from support.dependent_pairs import gates, gaussian_pair, seeded


def first_product(x: Tensor, y: Tensor) -> Estimate:
    """An estimator that knows the order: it shows which y stands beside the first x."""
    return Estimate(float(x[0] * y[0]))


def square(x: Tensor, y: Tensor) -> Estimate:
    return Estimate(float((x @ y) ** 2))


def test_independent_variables_exceed_the_level_with_a_probability_of_one_in_twenty():
    """One of 40 values is as likely as any other to be among the two largest; 4 standard deviations of 400 tries."""
    tries, above = 400, 0
    for seed in range(tries):
        x, y = gaussian_pair(0.0, 60, seed)
        null = permutation_null(square, x, y, permutations=39, generator=seeded(seed + 1000))
        above += square(x, y).value > null.level
    assert above / tries == pytest.approx(0.05, abs=4 * math.sqrt(0.05 * 0.95 / tries))


def test_a_dependence_lies_above_the_level_also_behind_gates():
    x, y = gaussian_pair(0.8, 500)
    first, second = gates(0.7, 500)
    null = permutation_null(hurdle, x * first, y * second, permutations=19, generator=seeded(0))
    assert hurdle(x * first, y * second).value > 2 * null.level


def test_the_mean_is_the_bias_of_a_clamped_estimator():
    """What scikit-learn clamps has the mean of half a normal distribution, sd/sqrt(2 pi) of what is not clamped."""
    x, y = gaussian_pair(0.0, 400)
    free = permutation_null(hurdle, x, y, permutations=60, generator=seeded(0))
    clamped = permutation_null(ksg, x, y, permutations=60, generator=seeded(0))
    assert clamped.values.clamp(min=0).mean().item() == clamped.mean > 0
    assert clamped.mean == pytest.approx(free.values.clamp(min=0).mean().item(), rel=0.1)
    assert clamped.mean == pytest.approx(free.values.std().item() / math.sqrt(2 * math.pi), rel=0.5)


def test_level_and_mean_are_those_of_the_values_on_shuffled_pairs():
    y = torch.arange(1.0, 5001.0)
    null = permutation_null(first_product, torch.ones(5000), y, permutations=19, generator=seeded(3))
    generator = seeded(3)
    expected = sorted(float(y[torch.randperm(5000, generator=generator)[0]]) for _ in range(19))
    assert null.values.tolist() == expected
    assert null.level == expected[-1]  # the 19th of 19: .95 * 20
    assert null.mean == pytest.approx(np.mean(expected))
    null = permutation_null(first_product, torch.ones(5000), y, permutations=99, generator=seeded(3))
    assert null.level == null.values[94]  # the 95th of 99: .95 * 100
    null = permutation_null(first_product, torch.ones(5000), y, generator=seeded(3))
    assert null.level == null.values[48] > null.values[47]  # the 49th of 50: above .95 * 51


def test_too_few_permutations_for_the_level_are_refused():
    with pytest.raises(ValueError, match="at least 19 permutations of as many x as y; got 18 for 5 and 5 samples"):
        permutation_null(first_product, torch.ones(5), torch.ones(5), permutations=18, generator=seeded(0))
    with pytest.raises(ValueError, match="got 50 for 5 and 6 samples"):
        permutation_null(first_product, torch.ones(5), torch.ones(6), generator=seeded(0))
