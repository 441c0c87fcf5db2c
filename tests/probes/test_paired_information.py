"""Estimates of many pairs are those of each, and pooled they have the error of the samples."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from normlens.information.mutual_information import discrete, hurdle
from normlens.probes.paired_information import (
    Information,
    Variables,
    pair_information,
    pooled_ratio,
    shuffled,
    thinned,
)


def gaussian(n: int, rho: float, seed: int = 0, pairs: int = 1) -> tuple[Tensor, Tensor]:
    z = torch.randn(2, pairs, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return z[0], rho * z[0] + math.sqrt(1 - rho**2) * z[1]


def test_each_value_is_that_of_the_estimator_for_the_pair():
    x, y = (v.relu() for v in gaussian(400, 0.7, pairs=3))
    found = pair_information(Variables.of(x), Variables.of(y), seed=0)
    alone = [hurdle(a, b) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(found.values, [estimate.value for estimate in alone], rtol=1e-12)
    assert found.trusted.all()
    # Its error counts the degrees of freedom of the table, one here, on top.
    np.testing.assert_allclose(found.errors, [estimate.error for estimate in alone], rtol=0.01)


def test_information_on_a_label_is_that_of_the_estimator_whatever_the_numbers_of_the_classes():
    labels = torch.arange(300) % 3
    y = labels + torch.randn(2, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = pair_information(Variables.of_labels(labels, 2), Variables.of(y), seed=0)
    np.testing.assert_allclose(found.values, [discrete(labels, values).value for values in y], rtol=1e-12)
    renamed = pair_information(Variables.of_labels(7 - 5 * labels, 2), Variables.of(y), seed=0)
    np.testing.assert_allclose(renamed.values, found.values, rtol=1e-12)


def test_atoms_before_the_gates_are_atoms_behind_them_and_closed_gates_one_more():
    x = torch.tensor([[5.0] * 4 + [1.0, 2.0, 3.0, 4.0, -0.0, 6.0]])
    variables = Variables.of(x)
    assert variables.atoms.tolist() == [[1] * 4 + [0] * 6]
    gates = torch.tensor([[0, 1, 1, 1, 0, 1, 1, 1, 1, 0]])
    behind = variables.gated(x * gates / 0.5)
    assert behind.atoms.tolist() == [[2, 1, 1, 1, 2, 0, 0, 0, 2, 2]]
    assert not np.signbit(behind.values).any()


def test_values_that_are_frequent_behind_the_gates_alone_are_atoms_too():
    x, y = gaussian(300, 0.5)
    rounded = (4 * x).round() / 4  # as a product in few digits might do
    behind = Variables.of(x).gated(rounded)
    assert (behind.atoms[behind.values != 0] == 0).all()
    found = pair_information(behind, Variables.of(y), seed=0)
    assert found.values[0] == pytest.approx(hurdle(rounded[0], y[0]).value, rel=1e-12)


def test_pooled_over_pairs_the_error_is_that_of_the_samples_however_often_a_pair_is_repeated():
    x, y = gaussian(500, 0.6)
    one = pair_information(Variables.of(x), Variables.of(y), seed=0)
    five = Information(np.repeat(one.pointwise, 5, 0), np.repeat(one.trusted, 5))
    assert five.pooled() == pytest.approx(one.pooled(), rel=1e-12)
    assert Information.mean([one, one]).pooled() == pytest.approx(one.pooled(), rel=1e-12)


def test_what_moves_both_sides_of_a_ratio_is_no_error():
    x, y = gaussian(500, 0.6, pairs=4)
    before = pair_information(Variables.of(x), Variables.of(y), seed=0)
    half = Information(before.pointwise / 2, before.trusted)
    ratio, error = pooled_ratio(half, before)
    assert ratio == pytest.approx(0.5, rel=1e-12)
    assert error == pytest.approx(0, abs=1e-12)
    other = pair_information(*(Variables.of(v) for v in gaussian(500, 0.6, seed=1, pairs=4)), seed=0)
    ratio, error = pooled_ratio(other, before)
    (a, da), (b, db) = other.pooled(), before.pooled()
    assert ratio == pytest.approx(a / b, rel=1e-12)
    # The two have nothing to do with each other, but for a chance correlation of 500 samples.
    assert error == pytest.approx(ratio * math.hypot(da / a, db / b), rel=3 / math.sqrt(500))


def test_thinned_out_the_estimates_are_means_over_disjoint_parts_and_the_error_is_that_of_all_samples_in_them():
    x, y = (Variables.of(v) for v in gaussian(400, 0.6, pairs=3))
    orders = shuffled(x, torch.Generator().manual_seed(1))
    assert (np.sort(orders, 1) == np.arange(400)).all()
    assert not (orders[0] == orders[1]).all()

    def estimate(rows):
        return pair_information(x.at(rows), y.at(rows), seed=0)

    one = thinned(estimate, orders, 0.6)
    np.testing.assert_allclose(one.values, estimate(orders[:, :240]).values, rtol=1e-12)
    np.testing.assert_allclose(one.errors, estimate(orders[:, :240]).errors, rtol=1e-12)
    three = thinned(estimate, orders, 0.3)
    parts = [estimate(orders[:, i : i + 120]) for i in (0, 120, 240)]
    np.testing.assert_allclose(three.values, np.mean([part.values for part in parts], 0), rtol=1e-12)
    errors = np.sqrt(np.sum([part.errors**2 for part in parts], 0)) / 3
    np.testing.assert_allclose(three.errors, errors, rtol=1e-12)
    whole = thinned(estimate, orders, 1.0)
    np.testing.assert_allclose(whole.values, pair_information(x, y, seed=0).values, rtol=1e-12)


def test_a_ratio_to_nothing_is_not_given():
    x, y = gaussian(500, 0.0, pairs=4)
    nothing = pair_information(Variables.of(x), Variables.of(y), seed=0)
    assert all(math.isnan(value) for value in pooled_ratio(nothing, nothing))


def test_too_few_samples_tell_nothing():
    x, y = gaussian(12, 0.9, pairs=2)
    found = pair_information(Variables.of(x), Variables.of(y), seed=0)
    assert np.isnan(found.values).all()
    assert not found.trusted.any()


def test_what_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="activations must be finite"):
        Variables.of(torch.tensor([[1.0, math.inf]]))
