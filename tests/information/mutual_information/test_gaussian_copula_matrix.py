"""The matrix of all pairs is the estimate of each pair, in one product."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from normlens.information.mutual_information import gaussian_copula, gaussian_copula_matrix
from support.dependent_pairs import seeded


def mixed(n: int = 300) -> Tensor:
    """Seven channels: four correlated, one with an atom, one of few values, one constant."""
    x = torch.randn(n, 7, generator=seeded(0), dtype=torch.float64)
    x[:, :4] += x[:, :1]
    x[:, 4] = (x[:, 4] + x[:, 0]).relu()
    x[:, 5] = (2 * x[:, 0]).round()
    x[:, 6] = 3
    return x


def test_every_entry_is_the_estimate_of_the_pair():
    x = mixed()
    found = gaussian_copula_matrix(x)
    expected = torch.tensor([[gaussian_copula(a, b).value for a in x.T] for b in x.T], dtype=torch.float64)
    assert_close(found.values, expected, rtol=1e-9, atol=1e-15)
    assert torch.equal(found.values, found.values.T)
    assert found.values.diagonal()[:4].tolist() == [math.inf] * 4


def test_channels_with_atoms_are_flagged():
    assert gaussian_copula_matrix(mixed()).flagged.tolist() == [False] * 4 + [True] * 3
    assert not gaussian_copula_matrix(mixed().float()[:, :4]).flagged.any()


def test_a_channel_that_is_not_finite_has_no_row_and_leaves_the_others_alone():
    x = mixed()
    expected = gaussian_copula_matrix(x).values
    x[5, 1] = math.nan
    x[6, 2] = math.inf
    values, flagged = gaussian_copula_matrix(x)
    assert flagged.tolist() == [False, True, True, False, True, True, True]
    assert values[1:3].isnan().all()
    assert values[:, 1:3].isnan().all()
    assert gaussian_copula_matrix(torch.tensor([[math.nan, 1.0], [0, 2], [0, 3]])).flagged.tolist() == [True, False]
    others = torch.tensor([0, 3, 4, 5, 6])
    assert_close(values[others][:, others], expected[others][:, others])


def test_increasing_maps_change_nothing():
    x = mixed()
    assert torch.equal(gaussian_copula_matrix(x.exp()).values, gaussian_copula_matrix(x).values)


@pytest.mark.parametrize("shape", [(5,), (1, 3), (2, 3, 4)])
def test_what_is_no_table_of_samples_is_refused(shape):
    with pytest.raises(ValueError, match=r"samples need shape \(N, C\) with N > 1; got .*one position of each image"):
        gaussian_copula_matrix(torch.zeros(shape))
