"""Rank bins give scikit-learn's information of the binned table, corrected, and say where they saturate."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, norm
from sklearn.metrics import mutual_info_score

from normlens.information.mutual_information import binned, table
from normlens.information.mutual_information.binned import bins_of, saturation
from support.dependent_pairs import gates, gaussian_information, gaussian_pair, random_table, seeded


def quantile_bins(x: torch.Tensor, bins: int) -> np.ndarray:
    edges = np.quantile(x.numpy(), np.arange(1, bins) / bins, method="midpoint")
    return np.searchsorted(edges, x.numpy())


@pytest.mark.parametrize("bins", [2, 8, 16])
def test_it_is_scikit_learn_s_information_of_the_quantile_bins_with_miller_and_madow_s_correction(bins):
    x, y = gaussian_pair(0.5, 1600)
    a, b = quantile_bins(x, bins), quantile_bins(y, bins)
    cells = len(np.unique(a * bins + b))
    expected = mutual_info_score(a, b) + (2 * bins - cells - 1) / 3200
    assert binned(x, y, bins=bins).value == pytest.approx(expected, abs=1e-12)


def test_an_atom_has_a_bin_of_its_own_and_the_others_share_the_rest_evenly():
    x, _ = gaussian_pair(0.0, 100)
    x[:20], x[20:30] = 0.0, -1.0
    labels = bins_of(x.numpy(), 7)
    assert np.bincount(labels).tolist() == [10] * 7 + [10, 20]
    assert (labels[:20] == 8).all()
    assert (labels[20:30] == 7).all()
    order = np.argsort(x[30:].numpy())
    assert (np.diff(labels[30:][order]) >= 0).all()


@pytest.mark.parametrize(("rho", "keep"), [(0.0, 1.0), (0.6, 1.0), (0.9, 0.5), (0.0, 0.5)])
def test_it_finds_the_information_of_gated_gaussians_below_saturation(rho, keep):
    found = []
    for seed in range(12):
        x, y = gaussian_pair(rho, 2000, seed)
        first, second = gates(keep, 2000, seed + 50)
        found.append(binned(x * first, y * second).value)
    error = 3 * np.std(found, ddof=1) / math.sqrt(12)
    assert abs(np.mean(found) - keep**2 * gaussian_information(rho)) < error + 0.02


def test_its_error_is_the_spread_that_repetition_shows():
    found = [binned(*gaussian_pair(0.6, 2000, seed)) for seed in range(100)]
    spread = np.std([f.value for f in found], ddof=1)
    assert np.mean([f.error for f in found]) == pytest.approx(spread, rel=0.1 + 3 / math.sqrt(200))


def test_increasing_maps_change_nothing():
    x, y = gaussian_pair(0.7, 999)
    first, second = gates(0.8, 999)
    found = binned(x * first, y * second)
    assert binned((x * first).exp(), (y * second) ** 3) == found
    assert binned(y * second, x * first).value == pytest.approx(found.value, abs=1e-12)


def test_saturation_and_thin_tables_are_flagged():
    assert saturation(16) == pytest.approx(0.7)
    assert binned(*gaussian_pair(0.8, 2000)).converged
    saturated = binned(*gaussian_pair(0.95, 2000))
    assert saturated.converged is False
    assert saturated.value < gaussian_information(0.95) - 0.05
    x, y = gaussian_pair(0.0, 2000)
    assert binned(x, y).converged
    assert binned(x[:600], y[:600]).converged is False
    first, second = gates(0.5, 2000)
    assert binned(x * first, y * second).converged is False  # 500 pairs are left for 256 cells
    assert binned(x * first, y * second, bins=8).converged


@pytest.mark.parametrize("bins", [4, 8, 16, 32])
def test_at_saturation_the_bins_hide_more_than_a_twentieth_of_a_nat(bins):
    """The table of a Gaussian by its distribution function, not from samples."""
    rho = math.sqrt(1 - math.exp(-2 * (saturation(bins) + 0.05)))
    edges = np.clip(norm.ppf(np.arange(bins + 1) / bins), -9, 9)
    grid = np.stack(np.meshgrid(edges, edges, indexing="ij"), -1)
    below = multivariate_normal(cov=[[1, rho], [rho, 1]]).cdf(grid)
    cells = np.diff(np.diff(below, axis=0), axis=1).clip(min=0)
    assert saturation(bins) - 0.02 < table(torch.from_numpy(cells)).value < saturation(bins) + 0.005


def test_more_atoms_than_bins_do_not_thin_the_table_out():
    x = torch.randint(40, (2000,), generator=seeded(0)).double()
    assert len(np.unique(bins_of(x.numpy(), 8))) == 16


def test_bins_are_the_same_from_above_as_from_below():
    """For 3 bins of 11 values no rank falls on an edge."""
    x = torch.randn(11, generator=seeded(0)).numpy()
    assert (bins_of(-x, 3) == 2 - bins_of(x, 3)).all()


def test_variables_of_named_atoms_give_the_corrected_table():
    counts = (1000 * random_table(3, 4, 0)).long() + 4
    rows, columns = torch.meshgrid(torch.arange(3), torch.arange(4), indexing="ij")
    x, y = (0.1 * values.flatten().repeat_interleave(counts.flatten()).float() for values in (rows, columns))
    named = tuple(tuple(v.unique().tolist()) for v in (x, y))
    expected = table(counts, samples=len(x))
    assert binned(x, y, atoms=named).value == pytest.approx(expected.value, abs=1e-12)
    assert binned(x, y).value == pytest.approx(expected.value, abs=1e-12)


def test_a_single_bin_is_refused():
    with pytest.raises(ValueError, match="bins must be at least 2; got 1; 16 is usual"):
        binned(*gaussian_pair(0.0, 10), bins=1)
