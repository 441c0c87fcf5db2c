"""Divergences of shares agree with closed forms and SciPy, and have the null distribution that their floors claim."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from torch import Tensor

from normlens.information.divergence import jensen_shannon, jensen_shannon_floor, psi, psi_floor
from normlens.information.divergence.binned import _cells
from normlens.information.histogram import AsinhGrid, Histogram

LEVELS = torch.tensor([-2.0, 0.0, 1.0, 3.0], dtype=torch.float64)
SHARES = (np.array([0.1, 0.4, 0.3, 0.2]), np.array([0.3, 0.2, 0.25, 0.25]))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair(x: Tensor, y: Tensor) -> tuple[Histogram, Histogram]:
    grid = AsinhGrid.around(x.mean(0), x.std(0))
    return Histogram.of(x, grid), Histogram.of(y, grid)


def discrete(sizes: tuple[int, int]) -> tuple[Histogram, Histogram]:
    """Four values, zero among them, in exactly these shares, in cells of their own."""
    x, y = (
        LEVELS.repeat_interleave(torch.from_numpy((p * n).round().astype(int)))[:, None]
        for p, n in zip(SHARES, sizes, strict=True)
    )
    return pair(x, y)


def test_jensen_shannon_of_known_shares_is_scipy_s():
    found = jensen_shannon(*discrete((1000, 400)), cells=64)
    assert found.value == pytest.approx(jensenshannon(*SHARES) ** 2, rel=1e-12)


def test_psi_of_known_shares_is_its_closed_form_up_to_half_a_count():
    p, q = SHARES
    exact = float(((p - q) * np.log(p / q)).sum())
    assert psi(*discrete((2_000_000, 2_000_000)), cells=64).value == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize(("measure", "shift", "scale"), [(jensen_shannon, 2.0, 0.5), (psi, 0.5, 1.3)])
def test_the_error_is_the_spread_over_repetitions(measure, shift, scale):
    """Each repetition draws both samples anew; the spread of 200 is known to 5 %, and 4 of these are allowed."""
    grid = AsinhGrid.around(torch.zeros(1), torch.ones(1))
    values, errors = [], []
    for seed in range(200):
        x, y = normal(2000, 1, seed=seed), normal(1500, 1, seed=1000 + seed) * scale + shift
        found = measure(Histogram.of(x, grid), Histogram.of(y, grid))
        values.append(found.value)
        errors.append(found.error)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.2)


@pytest.mark.parametrize("measure", [jensen_shannon, psi])
def test_a_sample_has_no_divergence_from_itself_and_both_ways_are_the_same(measure):
    h1, h2 = pair(normal(500, 3), normal(500, 3, seed=1).relu())
    assert measure(h1, h1).value == pytest.approx(0, abs=1e-15)
    assert measure(h1, h2).value == pytest.approx(measure(h2, h1).value, rel=1e-12)


def test_what_has_nothing_in_common_is_as_far_as_it_can_be():
    h1, h2 = pair(normal(500, 2), 900 + normal(500, 2, seed=1))
    assert jensen_shannon(h1, h2).value == pytest.approx(math.log(2), rel=1e-12)
    assert 5 < psi(h1, h2).value < math.inf


@pytest.mark.parametrize("shape", [lambda u: u, torch.relu, lambda u: u.exp()], ids=["normal", "rectified", "skewed"])
@pytest.mark.parametrize(("measure", "floor"), [(psi, psi_floor), (jensen_shannon, jensen_shannon_floor)])
def test_floors_hold_at_their_level_and_their_mean_is_that_of_chi_squared(shape, measure, floor):
    """200 repetitions at 90 %: 20 are expected beyond, with a standard error of 4.2."""
    beyond, ratios = 0, []
    for seed in range(200):
        h1, h2 = pair(shape(normal(1000, 1, seed=seed)), shape(normal(800, 1, seed=1000 + seed)))
        value = measure(h1, h2).value
        beyond += value > floor(h1, h2, level=0.9).item()
        ratios.append(value / floor(h1, h2, level=0.9).item())
    assert 20 - 4 * 4.2 < beyond < 20 + 4 * 4.2
    if shape(torch.tensor(-1.0)) != 0:  # 16 cells: chi squared of 15 degrees, whose 90 % point is 22.31
        assert np.mean(ratios) == pytest.approx(15 / 22.307, rel=4 * math.sqrt(2 / 15 / 200))


def test_an_atom_at_zero_has_a_cell_of_its_own_and_the_rest_share_the_others_evenly():
    """Half of the values are zero: its ranks take eight cells of 16, and the positive values fill the other eight."""
    x = torch.cat([torch.zeros(500, 1, dtype=torch.float64), normal(500, 1).abs()])
    counts = sorted(_cells(*pair(x, x), 16)[0][0].tolist(), reverse=True)
    assert counts[0] == 500
    assert counts[9:] == [0] * 7
    assert all(62.5 - 10 <= count <= 62.5 + 10 for count in counts[1:9]), counts


def test_the_floor_counts_the_cells_that_are_used():
    """Four cells: chi squared of three degrees has its 99 % point at 11.3449."""
    h1, h2 = discrete((1000, 400))
    assert psi_floor(h1, h2, cells=64).item() == pytest.approx(11.3449 * (1 / 1000 + 1 / 400), rel=1e-4)
    constant = Histogram.of(torch.full((50, 1), 3.0), h1.grid)
    assert psi_floor(constant, constant).item() == psi(constant, constant).value == 0


@pytest.mark.parametrize("measure", [jensen_shannon, psi])
def test_a_value_that_is_not_finite_makes_them_nan_and_other_grids_are_refused(measure):
    x, y = normal(50, 2), normal(50, 2, seed=1)
    y[3, 1] = math.nan
    h1, h2 = pair(x, y)
    assert math.isnan(measure(h1, h2).value)
    assert psi_floor(h1, h2).isnan().tolist() == [False, True]
    with pytest.raises(ValueError, match="histograms must share one grid"):
        measure(h1, pair(2 * x, x)[0])
