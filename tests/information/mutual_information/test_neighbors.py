"""Neighbor counts agree with brute force over all distances, and the means with scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import digamma
from sklearn.feature_selection import mutual_info_classif, mutual_info_regression

from normlens.information.mutual_information.neighbors import distance_to_neighbor, ksg_terms, ross_terms


def pair(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(n)
    y = x + rng.standard_normal(n)
    return x / x.std(), y / y.std()


@pytest.mark.parametrize("k", [1, 3, 7])
def test_terms_of_the_plane_are_those_of_all_distances(k):
    x, y = pair(60)
    along = [np.abs(v[:, None] - v) for v in (x, y)]
    radius = np.sort(np.maximum(*along), 1)[:, k]
    counts = [(d < radius[:, None]).sum(1) - 1 for d in along]
    expected = digamma(k) + digamma(60) - digamma(counts[0] + 1) - digamma(counts[1] + 1)
    np.testing.assert_allclose(ksg_terms(x, y, k), expected, rtol=1e-12)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_terms_of_classes_are_those_of_all_distances(k):
    y = pair(60)[1]
    labels = np.repeat([4, 1, 9, 0], [30, 25, 4, 1])
    found = ross_terms(labels, y, k)
    assert np.isnan(found[-1])
    y, labels = y[:-1], labels[:-1]  # one that is alone is not counted at all
    distance = np.abs(y[:, None] - y)
    for i, label in enumerate(labels):
        own = np.sort(distance[i][labels == label])
        near = min(k, len(own) - 1)
        m = (distance[i] <= own[near]).sum() - 1
        assert found[i] == pytest.approx(digamma(59) - digamma(len(own)) + digamma(near) - digamma(m), rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_means_of_the_terms_are_scikit_learn_s(seed):
    x, y = pair(400, seed)
    theirs = mutual_info_regression(x[:, None], y, n_neighbors=3, random_state=0)[0]
    assert ksg_terms(x, y, 3).mean() == pytest.approx(theirs, abs=1e-12)
    labels = (x > -1).astype(int) + (x > 0.5)
    theirs = mutual_info_classif(y[:, None], labels, n_neighbors=3, random_state=0)[0]
    assert ross_terms(labels, y, 3).mean() == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_the_distance_to_a_neighbor_is_that_of_the_sorted_distances(k):
    values = np.sort(pair(30)[0])
    expected = np.sort(np.abs(values[:, None] - values), 1)[:, k]
    np.testing.assert_allclose(distance_to_neighbor(values, k), expected, rtol=0, atol=1e-15)
