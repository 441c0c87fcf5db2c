"""The matrix of all pairs is the estimate of each pair, by products of one-hot matrices."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from normlens.information.mutual_information import binned, binned_matrix
from support.dependent_pairs import seeded


def mixed(n: int = 300, channels: int = 7) -> Tensor:
    """Correlated channels; the fifth has an atom, the sixth few values, the last is constant."""
    x = torch.randn(n, channels, generator=seeded(0), dtype=torch.float64)
    x[:, :4] += x[:, :1]
    x[:, 4] = (x[:, 4] + x[:, 0]).relu()
    x[:, 5] = (2 * x[:, 0]).round()
    x[:, -1] = 3
    return x


@pytest.mark.parametrize("bins", [2, 8])
def test_every_entry_is_the_estimate_of_the_pair(bins):
    x = mixed()
    found = binned_matrix(x, bins=bins)
    expected = torch.tensor([[binned(a, b, bins=bins).value for a in x.T] for b in x.T], dtype=torch.float64)
    assert_close(found.values, expected, rtol=0, atol=1e-12)
    assert torch.equal(found.values, found.values.T)


def test_the_diagonal_is_the_corrected_entropy_of_the_bins():
    assert binned_matrix(mixed()).values[1, 1].item() == pytest.approx(math.log(8) + 7 / 600, abs=1e-3)
    assert binned_matrix(mixed(800)).values[1, 1].item() == pytest.approx(math.log(8) + 7 / 1600, abs=1e-12)


def test_channels_beyond_a_block_come_out_the_same():
    x = mixed(100, 131)
    values = binned_matrix(x).values
    assert_close(values[:7, :7], binned_matrix(x[:, :7]).values, rtol=0, atol=1e-12)
    assert_close(values[-70:, -70:], binned_matrix(x[:, -70:]).values, rtol=0, atol=1e-12)
    assert values[3, 129].item() == pytest.approx(binned(x[:, 3], x[:, 129], bins=8).value, abs=1e-12)


def test_channels_that_are_saturated_with_another_one_are_flagged():
    x = torch.randn(800, 4, generator=seeded(1))
    x[:, 2] = x[:, 0] + 0.1 * x[:, 2]
    assert binned_matrix(x).flagged.tolist() == [True, False, True, False]
    apart = torch.cat([x[:, :2], torch.zeros(800, 70), x[:, 2:]], 1)  # in another block
    assert binned_matrix(apart).flagged.nonzero().flatten().tolist() == [0, 72]


def test_thin_tables_are_flagged():
    x = torch.randn(400, 3, generator=seeded(1))
    assert not binned_matrix(x).flagged.any()
    assert binned_matrix(x[:100]).flagged.all()
    x[:, 2] = x[:, 0].round()  # few values: it is thin with none
    assert binned_matrix(x[:256]).flagged.tolist() == [
        any(binned(x[:256, i], x[:256, j], bins=8).converged is False for j in range(3) if j != i) for i in range(3)
    ]


def test_a_channel_that_is_not_finite_has_no_row_and_leaves_the_others_alone():
    x = torch.randn(800, 4, generator=seeded(1))
    expected = binned_matrix(x).values
    x[5, 1] = math.nan
    values, flagged = binned_matrix(x)
    assert flagged.tolist() == [False, True, False, False]
    assert values[1].isnan().all()
    assert values[:, 1].isnan().all()
    others = torch.tensor([0, 2, 3])
    assert torch.equal(values[others][:, others], expected[others][:, others])


def test_what_cannot_be_binned_is_refused():
    with pytest.raises(ValueError, match=r"samples need shape \(N, C\) with N > 1; got \(1, 4\)"):
        binned_matrix(torch.zeros(1, 4))
    with pytest.raises(ValueError, match="bins must be at least 2; got 1; 8 is usual for a matrix"):
        binned_matrix(torch.zeros(9, 4), bins=1)
