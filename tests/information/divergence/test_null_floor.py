"""Dealing the values out anew gives floors that hold exactly, whatever the divergence and the distribution."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from normlens.information.divergence import (
    energy,
    jensen_shannon,
    kolmogorov_smirnov,
    mmd,
    null_floor,
    psi,
    wasserstein,
    wasserstein_floor,
)
from normlens.information.divergence.null_floor import _dealt
from normlens.information.histogram import AsinhGrid, Histogram

ALL = (wasserstein, kolmogorov_smirnov, energy, jensen_shannon, psi, mmd)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair(x: Tensor, y: Tensor) -> tuple[Histogram, Histogram]:
    grid = AsinhGrid.around(x.mean(0), x.std(0))
    return Histogram.of(x, grid), Histogram.of(y, grid)


@pytest.mark.parametrize("measure", [wasserstein, mmd])
def test_the_floor_holds_at_its_level(measure):
    """200 repetitions at 75 %, rectified and skewed: 50 are expected beyond, with a standard error of 6.1."""
    beyond = 0
    for seed in range(200):
        h1, h2 = pair(*((normal(n, 1, seed=seed + s) - 0.5).relu().exp() for n, s in ((60, 0), (40, 1000))))
        beyond += measure(h1, h2).value > null_floor(measure, h1, h2, level=0.75, draws=19, seed=seed).value
    assert 50 - 4 * 6.1 < beyond <= 50 + 4 * 6.1


@pytest.mark.parametrize("measure", ALL)
def test_a_sample_that_moved_far_is_beyond_every_floor_and_one_that_did_not_is_below(measure):
    x = normal(300, 1)
    for y, moved in ((normal(300, 1, seed=1) + 0.5, True), (x.flip(0), False)):
        h1, h2 = pair(x, y)
        assert (measure(h1, h2).value > null_floor(measure, h1, h2, draws=99).value) is moved


def test_it_agrees_with_the_floor_from_the_brownian_bridge():
    h1, h2 = pair(normal(2000, 1), normal(2000, 1, seed=1))
    found = null_floor(wasserstein, h1, h2, level=0.9, draws=399)
    bridge = wasserstein_floor(h1.merge(h2), h1.finite, h2.finite, level=0.9).item()
    assert abs(found.value - bridge) < 4 * found.error
    assert found.cost == 399


def test_what_is_dealt_keeps_every_value_and_the_sizes():
    h1, h2 = pair(normal(50, 3).relu(), normal(80, 3, seed=1).relu())
    pooled = h1.merge(h2)
    table = torch.cat([pooled.counts, pooled.zeros[:, None]], 1).numpy()
    one, other = _dealt(np.random.default_rng(0), table, h1, pooled)
    again = one.merge(other)
    assert torch.equal(again.counts, pooled.counts)
    assert torch.equal(again.zeros, pooled.zeros)
    assert one.finite.tolist() == [50] * 3
    assert not torch.equal(one.counts, h1.counts)


def test_the_same_seed_deals_the_same_and_the_global_state_is_left_alone():
    h1, h2 = pair(normal(50, 2), normal(50, 2, seed=1))
    states = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    first, again, other = (null_floor(wasserstein, h1, h2, draws=99, seed=seed).value for seed in (3, 3, 4))
    assert first == again != other
    np.testing.assert_array_equal(np.random.get_state()[1], states[0])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[1])


def test_values_that_are_not_finite_have_no_floor_and_few_draws_and_other_grids_are_refused():
    x = normal(50, 1)
    y = x.clone()
    y[0] = math.nan
    assert math.isnan(null_floor(wasserstein, *pair(x, y), draws=99).value)
    with pytest.raises(ValueError, match=r"at least level / \(1 - level\) draws; got 0.99 and 98; 99 draws do"):
        null_floor(wasserstein, *pair(x, x), draws=98)
    with pytest.raises(ValueError, match="histograms must share one grid"):
        null_floor(wasserstein, pair(x, x)[0], pair(2 * x, x)[0])
