"""A label and a variable share what the closed forms say, atoms or not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.feature_selection import mutual_info_classif

from normlens.information.mutual_information import discrete, table
from support.dependent_pairs import gaussian_pair, random_table, seeded


def assert_finds(truth: float, estimates: list[float], within: float = 0.0) -> None:
    values = np.asarray(estimates)
    assert abs(values.mean() - truth) <= 3 * values.std(ddof=1) / math.sqrt(len(values)) + within


def test_a_uniform_variable_that_begins_at_its_label_has_the_closed_form():
    """Y uniform on (X, X + 2), X one of m: ln m - (m-1)/m ln 2."""
    found = []
    for seed in range(12):
        labels = torch.randint(5, (2000,), generator=seeded(seed))
        found.append(discrete(labels, labels + 2 * torch.rand(2000, generator=seeded(seed + 50))).value)
    assert_finds(math.log(5) - 0.8 * math.log(2), found, within=0.005)


def test_a_zero_inflated_poisson_count_of_an_exponential_variable_has_the_value_of_the_quadrature():
    """.229798 where zero is drawn with .15; (1-p) times the one without zeros, .256082, is an upper bound only."""
    found = []
    for seed in range(12):
        generator = seeded(seed)
        x = torch.empty(4000, dtype=torch.float64).exponential_(generator=generator)
        counts = torch.poisson(x, generator=generator) * (torch.rand(4000, generator=generator) >= 0.15)
        found.append(discrete(counts, x).value)
    assert_finds(0.229798, found, within=0.003)


def test_a_label_of_a_variable_without_atoms_gives_scikit_learn_s_estimate():
    x, y = gaussian_pair(0.8, 600)
    labels = (x > 0).long() + 2 * (x > 1)
    scores = torch.special.ndtri((y.argsort().argsort() + 0.5) / 600)
    theirs = mutual_info_classif(scores[:, None].numpy(), labels.numpy(), n_neighbors=3, random_state=0)[0]
    # Normal scores are symmetric about zero: two distances may be equal, and their rounding decides.
    assert discrete(labels, y).value == pytest.approx(theirs, abs=1e-3)


def test_a_label_of_atoms_alone_gives_the_corrected_table():
    counts = (1000 * random_table(3, 4, 0)).long() + 4
    rows, columns = torch.meshgrid(torch.arange(3), torch.arange(4), indexing="ij")
    labels, y = (values.flatten().repeat_interleave(counts.flatten()) for values in (rows, columns))
    assert discrete(labels, y).value == pytest.approx(table(counts, samples=len(y)).value, abs=1e-12)


def test_dropout_leaves_its_share_of_what_a_variable_tells_of_the_label():
    """A closed gate shows as an atom at zero: keep times the information before, which is ln 2 less than half a bit."""
    found, before = [], []
    for seed in range(12):
        x, y = gaussian_pair(0.9, 3000, seed)
        labels = (x > 0).long()
        gate = torch.rand(3000, generator=seeded(seed + 99)) < 0.7
        before.append(discrete(labels, y).value)
        found.append(discrete(labels, y * gate).value - 0.7 * before[-1])
    assert_finds(0, found, within=0.003)
    assert np.mean(before) > 0.3


def test_a_sign_is_known_from_its_variable():
    x, _ = gaussian_pair(0.0, 1000)
    found = discrete(x > 0, x)
    assert found.value == pytest.approx(math.log(2), abs=3 * found.error + 0.005)
    assert discrete(x > 0, -(x.exp())).value == pytest.approx(found.value, abs=1e-12)


def test_the_names_of_the_labels_do_not_count():
    x, y = gaussian_pair(0.9, 500)
    labels = (x > 0).long()
    assert discrete(-7.5 * labels, y) == discrete(labels, y)


def test_labels_that_occur_once_are_flagged():
    y = gaussian_pair(0.0, 90)[1]
    found = discrete(torch.arange(90), y)
    assert found.converged is False
    assert discrete(torch.arange(90) % 2, y).converged


def test_what_are_no_labels_of_the_samples_is_refused():
    with pytest.raises(ValueError, match=r"got \(3,\) and \(4,\)"):
        discrete(torch.arange(3), torch.rand(4))
    with pytest.raises(ValueError, match="k must be at least 1; got 0; 3 is usual"):
        discrete(torch.arange(4), torch.rand(4), k=0)
