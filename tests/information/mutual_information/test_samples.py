"""Atoms are told by how often they occur, and the rest is ranked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm, rankdata

from normlens.information.mutual_information.samples import (
    frequent_values,
    labels_of,
    most_ties,
    normal_scores,
    pair_of,
    rounded,
    ties_allowed,
)


def test_a_value_is_an_atom_that_occurs_more_than_k_times_and_in_more_than_one_sample_of_a_hundred():
    values = np.concatenate([np.full(3, 7.0), np.full(4, -2.0), np.arange(20.0) + 100])
    assert frequent_values(values, 3).tolist() == [-2]
    assert frequent_values(values, 2).tolist() == [-2, 7]
    assert frequent_values(np.concatenate([values, np.arange(1000, 1373)]), 3).tolist() == []  # 4 of 400
    assert frequent_values(np.concatenate([values, np.arange(1000, 1372)]), 3).tolist() == [-2]  # 4 of 399
    assert (ties_allowed(399, 3), ties_allowed(400, 3), ties_allowed(10_000, 3)) == (3, 4, 100)


def test_labels_number_the_atoms_and_leave_zero_for_the_others():
    values = np.array([0.0, 5.0, -1.0, 9.0, 0.0])
    assert labels_of(values, [5.0, -0.0]).tolist() == [1, 2, 0, 0, 1]
    assert labels_of(values, []).tolist() == [0] * 5
    assert most_ties(values) == (0.0, 2)


@pytest.mark.parametrize("n", [2, 9, 100])
def test_normal_scores_are_scipy_s_quantiles_of_the_ranks(n):
    values = np.random.default_rng(0).standard_exponential(n)
    expected = norm.ppf((rankdata(values) - 0.5) / n)
    np.testing.assert_allclose(normal_scores(values, np.random.default_rng(1)), expected, rtol=1e-12, atol=1e-15)


def test_equal_values_take_the_ranks_they_share_in_an_order_that_is_drawn():
    values, ties = np.repeat([3.0, 1.0], 5), np.random.default_rng(0)
    first, second = normal_scores(values, ties), normal_scores(values, ties)
    assert sorted(first) == pytest.approx(sorted(normal_scores(np.arange(10.0), ties)))
    assert first[:5].min() > first[5:].max()
    assert first.tolist() != second.tolist()


def test_pairs_lose_the_sign_of_zero_and_the_precision_they_came_in():
    left, right = pair_of(torch.tensor([-0.0, 1.5]).bfloat16(), torch.tensor([3, 4]))
    assert not np.signbit(left).any()
    assert left.dtype == right.dtype == np.float64
    assert rounded([-0.7], torch.ones(1)).tolist() == [float(np.float32(-0.7))] != [-0.7]
