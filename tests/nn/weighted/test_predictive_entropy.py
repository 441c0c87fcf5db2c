"""The entropy of a prediction splits into what every pass is unsure of and what the noise adds."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import entropy
from torch.testing import assert_close

from normlens.nn.weighted.predictive_entropy import entropy_of_samples


def test_passes_that_are_sure_of_different_classes_are_all_mutual_information():
    found = entropy_of_samples(torch.eye(4, dtype=torch.float64)[:, None])
    assert found.total.item() == pytest.approx(math.log(4), abs=1e-15)
    assert found.expected.item() == 0
    assert found.mutual_information.item() == pytest.approx(math.log(4), abs=1e-15)


def test_equal_passes_have_none_and_a_uniform_prediction_has_the_logarithm_of_the_classes():
    found = entropy_of_samples(torch.full((8, 3, 10), 0.1, dtype=torch.float64))
    assert_close(found.total, torch.full((3,), math.log(10), dtype=torch.float64), rtol=1e-15, atol=0)
    assert_close(found.mutual_information, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-15)


def test_of_two_passes_it_is_the_jensen_shannon_divergence():
    p, q = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64), torch.tensor([0.1, 0.1, 0.8], dtype=torch.float64)
    middle = (p + q) / 2
    divergence = (entropy(p, middle) + entropy(q, middle)) / 2
    found = entropy_of_samples(torch.stack([p, q]))
    assert found.mutual_information.item() == pytest.approx(divergence, abs=1e-14)
    assert found.total.item() == pytest.approx(entropy(middle), abs=1e-14)
    assert found.expected.item() == pytest.approx((entropy(p) + entropy(q)) / 2, abs=1e-14)


def test_the_mutual_information_is_never_negative(draw):
    found = entropy_of_samples(draw(20, 50, 6).softmax(-1))
    assert float(found.mutual_information.min()) >= 0
    assert float(found.total.max()) <= math.log(6)
    assert_close(found.total, found.expected + found.mutual_information, rtol=1e-15, atol=1e-15)


def test_what_is_no_probability_is_refused(draw):
    with pytest.raises(ValueError, match=r"at least one pass; got \(3,\); stack"):
        entropy_of_samples(torch.ones(3))
    with pytest.raises(ValueError, match=r"at least one pass; got \(0, 3\)"):
        entropy_of_samples(torch.ones(0, 3))
    with pytest.raises(ValueError, match=r"summing to 1 .*got sums from 2 to 2, .*apply a softmax first"):
        entropy_of_samples(torch.ones(4, 1, 2))
    with pytest.raises(ValueError, match=r"smallest -0\.5"):
        entropy_of_samples(torch.tensor([[1.5, -0.5]]))
