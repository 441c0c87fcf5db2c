"""Distances between distribution functions agree with SciPy on the raw values, and never beyond their stated error."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from normlens.estimate import Estimate
from normlens.information import divergence
from normlens.information.divergence import energy, kolmogorov_smirnov, wasserstein
from normlens.information.divergence.cumulative import kolmogorov_smirnov_of, wasserstein_of
from normlens.information.histogram import AsinhGrid, Histogram

N, CHANNELS = 4096, 6

SHAPES = {
    "normal": lambda u: u,
    "rectified": torch.relu,
    "mostly_zero": lambda u: (u - 1).relu(),
    "heavy_tails": lambda u: torch.from_numpy(stats.t(3).ppf(stats.norm.cdf(u))),
    "exponential": lambda u: torch.from_numpy(stats.expon.ppf(stats.norm.cdf(u))),
    "far_from_zero": lambda u: 1000 + u,
    "two_modes": lambda u: u / 4 + u.sign(),
}
MOVES = {"shift": (0.5, 1.0), "far": (5.0, 1.0), "very_far": (100.0, 1.0), "wider": (0.0, 2.0), "both": (-1.0, 0.5)}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair(x: Tensor, y: Tensor) -> tuple[Histogram, Histogram]:
    grid = AsinhGrid.around(x.double().mean(0), x.double().std(0))
    return Histogram.of(x, grid), Histogram.of(y, grid)


def scipy_of(distance, x: Tensor, y: Tensor) -> np.ndarray:
    return np.array([distance(x[:, c].double().numpy(), y[:, c].double().numpy()) for c in range(x.shape[1])])


def largest_gap(a: np.ndarray, b: np.ndarray) -> float:
    return float(stats.ks_2samp(a, b, method="asymp").statistic)


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
@pytest.mark.parametrize("name", SHAPES)
def test_distances_are_scipy_s_on_the_raw_values_within_one_percent(name, move):
    shape, (shift, scale) = SHAPES[name], move
    x, u = shape(normal(N, CHANNELS)), normal(N, CHANNELS, seed=1)
    y = shape(scale * u + shift) if name in ("rectified", "mostly_zero") else scale * shape(u) + shift
    h1, h2 = pair(x, y)
    w1 = scipy_of(stats.wasserstein_distance, x, y)
    ks = scipy_of(largest_gap, x, y)
    assert wasserstein(h1, h2).value == pytest.approx(w1.mean(), rel=0.01)
    assert energy(h1, h2).value == pytest.approx(scipy_of(stats.energy_distance, x, y).mean(), rel=0.01)
    assert kolmogorov_smirnov(h1, h2).value == pytest.approx(ks.mean(), rel=0.01)
    for found, exact in ((wasserstein_of(h1, h2), w1), (kolmogorov_smirnov_of(h1, h2), ks)):
        value, bound = (tensor.numpy() for tensor in found)
        assert (np.abs(value - exact) <= bound + 1e-9).all()


SMOOTH = [name for name in SHAPES if name != "two_modes"]


@pytest.mark.parametrize("sizes", [(4096, 4096), (512, 512), (512, 4096)], ids=str)
@pytest.mark.parametrize("shift", [0.0, 0.1, 0.2])
@pytest.mark.parametrize("name", SMOOTH)
def test_small_gaps_are_scipy_s_within_one_percent_and_what_hides_in_bins_is_expected(name, shift, sizes):
    """Down to no drift at all: mean over 64 channels, up to three standard errors of it. Edges alone miss 1 to 6 %."""
    shape, (n, m), channels = SHAPES[name], sizes, 64
    x, y = shape(normal(n, channels)), shape(normal(m, channels, seed=1) + shift)
    exact = scipy_of(largest_gap, x, y)
    found, bound = (tensor.numpy() for tensor in kolmogorov_smirnov_of(*pair(x, y)))
    error = 3 * (found - exact).std() / channels**0.5
    assert abs(found.mean() - exact.mean()) <= 0.01 * exact.mean() + error
    assert error <= 0.025 * exact.mean()
    assert (np.abs(found - exact) <= bound + 1e-9).all()


def test_narrow_modes_of_a_dozen_bins_keep_the_gap_within_two_percent():
    shape = SHAPES["two_modes"]
    x, y = shape(normal(N, 64)), shape(normal(N, 64, seed=1)) + 0.1
    assert kolmogorov_smirnov(*pair(x, y)).value == pytest.approx(scipy_of(largest_gap, x, y).mean(), rel=0.02)


@pytest.mark.parametrize("n", [128, 256])
def test_of_few_values_in_a_bin_less_is_hidden(n):
    """The walk within a bin has as many steps as values: with half a step not taken off, it would be 1.2 % too high."""
    x, y = normal(n, 1024), normal(n, 1024, seed=1) + 0.2
    exact = scipy_of(largest_gap, x, y)
    found = kolmogorov_smirnov_of(*pair(x, y))[0].numpy()
    assert found.mean() == pytest.approx(exact.mean(), rel=0.01)


def test_where_each_bin_has_one_value_nothing_hides_and_nothing_is_added():
    grid = AsinhGrid(torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    middles = (grid.edges[0, 1:] + grid.edges[0, :-1]) / 2
    h1, h2 = (Histogram.of(middles[start : start + 300 : 10, None], grid) for start in (100, 105))
    assert kolmogorov_smirnov(h1, h2).value == pytest.approx(1 / 30, abs=1e-12)


@pytest.mark.parametrize("spread", [(0, 1), (50, 1), (3000, 1), (0, 1e5), (-1e4, 1e-3)], ids=str)
def test_what_bins_cannot_resolve_is_within_the_error_that_they_state(spread):
    mean, std = spread
    x, y = normal(N, CHANNELS).float(), (mean + std * normal(N, CHANNELS, seed=1)).float()
    h1, h2 = pair(x, y)
    for measure, exact in ((wasserstein, stats.wasserstein_distance), (kolmogorov_smirnov, largest_gap)):
        found = measure(h1, h2)
        assert abs(found.value - scipy_of(exact, x, y).mean()) <= found.error + 1e-6 * abs(found.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_precision_gives_the_distance_of_its_own_values(dtype):
    x, y = normal(N, 2).to(dtype), (normal(N, 2, seed=1) * 1.5 + 1).to(dtype)
    h1, h2 = pair(x, y)
    assert wasserstein(h1, h2).value == pytest.approx(scipy_of(stats.wasserstein_distance, x, y).mean(), rel=0.01)
    # Ties of bfloat16, 1/128 of a value apart, come in steps that a bin smooths: half of its share.
    gap = kolmogorov_smirnov(h1, h2)
    assert abs(gap.value - scipy_of(largest_gap, x, y).mean()) <= gap.error


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_where_the_functions_cross_within_a_bin_both_triangles_count(share):
    """Two bins, in one of which the difference goes from -share to share: half a bin's width times share."""
    grid = AsinhGrid(torch.full((1,), 50.0, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    middles, widths = (grid.edges[0, 1:] + grid.edges[0, :-1]) / 2, grid.edges[0].diff()
    few, many = round(100 * share), round(100 * (1 - 2 * share))

    def counted(left: int, middle: int, right: int) -> Histogram:
        return Histogram.of(middles[255:258].repeat_interleave(torch.tensor([left, middle, right]))[:, None], grid)

    h1, h2 = counted(few, many, few), counted(0, 100, 0)
    # F1 - F2 rises to share over the first bin, falls to -share over the middle one, and rises to zero.
    exact = share * (widths[255] / 2 + widths[256] / 2 + widths[257] / 2)
    assert wasserstein(h1, h2).value == pytest.approx(exact.item(), rel=1e-9)
    hidden = (widths[255] * share + widths[256] * (2 - 2 * share) + widths[257] * share) / 2
    assert wasserstein(h1, h2).error == pytest.approx(hidden.item(), rel=1e-9)


@pytest.mark.parametrize("bins", [1, 7, 300, -20])
def test_a_shift_by_whole_bins_of_far_values_is_found_to_the_last_digit(bins):
    """W1 of two single values is their distance, here of the middles of their bins."""
    grid = AsinhGrid(torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    middles = (grid.edges[0, 1:] + grid.edges[0, :-1]) / 2
    start = 100 if bins > 0 else 400
    a, b = middles[start], middles[start + bins]
    h1, h2 = (Histogram.of(at.expand(50, 1), grid) for at in (a, b))
    assert wasserstein(h1, h2).value == pytest.approx(abs(b - a).item(), rel=1e-9)
    assert kolmogorov_smirnov(h1, h2).value == 1


@pytest.mark.parametrize("measure", [wasserstein, kolmogorov_smirnov, energy])
def test_a_sample_is_at_no_distance_from_itself_and_both_ways_are_equally_long(measure):
    h1, h2 = pair(normal(500, 3), normal(400, 3, seed=1).relu())
    assert measure(h1, h1).value == 0
    assert measure(h1, h2).value == measure(h2, h1).value > 0


def test_wasserstein_obeys_the_triangle_inequality_and_scales_with_the_units():
    x, y, z = normal(500, 3), normal(500, 3, seed=1) + 2, normal(500, 3, seed=2).exp()
    grid = AsinhGrid.around(x.mean(0), x.std(0))
    a, b, c = (Histogram.of(v, grid) for v in (x, y, z))
    one, other, both = (wasserstein_of(*p)[0] for p in ((a, b), (b, c), (a, c)))
    assert (both <= one + other + 1e-12).all()
    scaled = AsinhGrid(grid.center * 8, grid.scale * 8)
    np.testing.assert_allclose(wasserstein_of(Histogram.of(x * 8, scaled), Histogram.of(y * 8, scaled))[0], 8 * one)


def test_the_share_that_becomes_zero_is_the_gap():
    x = normal(1000, 1).abs() + 0.5
    y = x.clone()
    y[:300] = 0
    h1, h2 = pair(x, y)
    assert kolmogorov_smirnov(h1, h2).value == pytest.approx(0.3, abs=1e-12)
    assert wasserstein(h1, h2).value == pytest.approx(x[:300].sum().item() / 1000, rel=0.01)


@pytest.mark.parametrize("measure", [wasserstein, kolmogorov_smirnov, energy])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_makes_the_distance_nan(measure, bad):
    x, y = normal(50, 2), normal(50, 2, seed=1)
    y[3, 1] = bad
    h1, h2 = pair(x, y)
    assert math.isnan(measure(h1, h2).value)
    assert math.isnan(measure(h2, h1).value)


@pytest.mark.parametrize("measure", [wasserstein, kolmogorov_smirnov, energy])
def test_nothing_is_at_no_known_distance(measure):
    h1, h2 = pair(normal(50, 2), normal(0, 2))
    assert math.isnan(measure(h1, h2).value)
    assert math.isnan(measure(h2, h2).value)


@pytest.mark.parametrize("name", ["wasserstein", "kolmogorov_smirnov", "energy", "jensen_shannon", "psi", "mmd"])
def test_an_estimate_is_the_average_over_the_channels_each_of_which_is_as_if_alone(name):
    x, y = normal(200, 3), normal(300, 3, seed=1).relu()
    each = getattr(divergence, f"{name}_of")
    whole = each(*pair(x, y))
    values = whole if name == "energy" else whole[0]
    for c in range(3):
        alone = each(*pair(x[:, c : c + 1], y[:, c : c + 1]))
        assert (alone if name == "energy" else alone[0]).item() == pytest.approx(values[c].item(), rel=1e-12)
    estimate = getattr(divergence, name)(*pair(x, y))
    assert estimate.value == pytest.approx(values.mean().item(), rel=1e-12)


@pytest.mark.parametrize("measure", [wasserstein, kolmogorov_smirnov, energy])
def test_an_estimate_knows_what_it_cost_and_other_grids_are_refused(measure):
    x, y = normal(50, 2), normal(70, 2, seed=1)
    found = measure(*pair(x, y))
    assert isinstance(found, Estimate)
    assert found.cost == 240
    with pytest.raises(ValueError, match="histograms must share one grid"):
        measure(pair(x, y)[0], pair(y, x)[0])
