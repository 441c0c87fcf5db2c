"""Histograms count exactly, merge exactly, and give quantiles and distribution functions of the values themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from normlens.information import histogram as module
from normlens.information.histogram import BINS, AsinhGrid, Histogram, strided

FIELDS = ("counts", "zeros", "nans", "posinf", "neginf", "low", "high")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def grid_of(x: Tensor) -> AsinhGrid:
    flat = x.double().reshape(-1, x.shape[-1])
    return AsinhGrid.around(flat.mean(0), flat.std(0, correction=0))


def same(a: Histogram, b: Histogram) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in FIELDS)


def odd_values() -> Tensor:
    """Everything a float can be, in three channels."""
    x = normal(999, 3).float() * torch.tensor([1.0, 1e-3, 1e4]) + torch.tensor([0.0, 5.0, -7.0])
    x[::7, 0], x[3, 1], x[5, 2], x[6, 2], x[7, 2] = 0.0, math.nan, math.inf, -math.inf, -0.0
    return x


@pytest.mark.parametrize("cut", [1, 2, 500, 998])
def test_merging_is_exact_wherever_the_values_are_cut(cut):
    x = odd_values()
    grid = grid_of(normal(50, 3))
    whole, first, second = (Histogram.of(part, grid) for part in (x, x[:cut], x[cut:]))
    assert same(first.merge(second), whole)
    assert same(second.merge(first), whole)


def test_merging_is_associative():
    a, b, c = (Histogram.of(part, grid_of(normal(50, 3))) for part in odd_values().split([100, 300, 599]))
    assert same(a.merge(b).merge(c), a.merge(b.merge(c)))


def test_the_order_of_the_values_and_their_layout_do_not_matter():
    x = odd_values()
    grid = grid_of(normal(50, 3))
    expected = Histogram.of(x, grid)
    permuted = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(1))]
    for again in (permuted, x.T.contiguous().T, x.repeat(1, 2)[:, :3], x.view(111, 9, 3)):
        assert same(Histogram.of(again, grid), expected)


@pytest.mark.parametrize("chunk", [1, 3, 100, 1 << 30])
def test_the_size_of_the_chunks_changes_nothing(monkeypatch, chunk):
    x, grid = odd_values(), grid_of(normal(50, 3))
    whole = Histogram.of(x, grid)
    monkeypatch.setattr(module, "_CHUNK", chunk)
    assert same(Histogram.of(x, grid), whole)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_what_is_no_ordinary_number_is_counted_exactly_and_in_no_bin(dtype):
    x = normal(400, 2).to(dtype)
    x[:40, 0], x[40:43, 0], x[50:52, 1], x[60:65, 1] = 0.0, math.nan, math.inf, -math.inf
    h = Histogram.of(x, grid_of(normal(50, 2)))
    exact = {"zeros": [40, 0], "nans": [3, 0], "posinf": [0, 2], "neginf": [0, 5]}
    assert {name: getattr(h, name).tolist() for name in exact} == exact
    assert h.finite.tolist() == [397, 393]
    assert h.nonfinite.tolist() == [3, 7]
    assert h.counts.sum(1).tolist() == [357, 393]
    finite = x.double().numpy()
    np.testing.assert_array_equal(h.low, [finite[np.isfinite(finite[:, c]), c].min() for c in (0, 1)])
    np.testing.assert_array_equal(h.high, [finite[np.isfinite(finite[:, c]), c].max() for c in (0, 1)])


def test_half_precision_and_float64_are_counted_as_the_same_numbers_in_float32():
    x = normal(5000, 2).to(torch.bfloat16)
    grid = grid_of(normal(50, 2))
    expected = Histogram.of(x.float(), grid)
    assert same(Histogram.of(x, grid), expected)
    # Float64 rounds otherwise at the edges: a bin is 0.03 wide, and float32 is exact to some 1e-6 of it.
    assert (Histogram.of(x.double(), grid).counts - expected.counts).abs().sum() <= 4


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (1000.0, 1.0), (-3e-5, 1e-5), (2.0, 1.0), (1e8, 10.0)])
def test_values_are_in_the_bins_that_the_edges_say(mean, std):
    """NumPy's own binning on the same edges; float64, where no value is near enough to an edge to be taken over it."""
    x = mean + std * normal(4000, 2)
    grid = grid_of(x)
    h = Histogram.of(x, grid)
    for c, edges in enumerate(grid.edges.numpy()):
        assert (np.diff(edges) > 0).all()
        np.testing.assert_array_equal(h.counts[c], np.histogram(x[:, c], edges)[0])


def test_bins_are_a_sixtieth_of_the_deviation_wide_in_the_middle_and_three_percent_of_the_distance_far_away():
    edges = AsinhGrid.around(torch.zeros(1), torch.ones(1)).edges[0]
    widths = edges.diff()
    assert len(widths) == BINS
    assert widths.min().item() == pytest.approx(0.5 * 2 * math.asinh(2**11) / 512, rel=1e-3)
    assert (widths[-1] / edges[-1]).item() == pytest.approx(0.032, abs=1e-3)
    assert edges[-1].item() == pytest.approx(1024, rel=0.05)


@pytest.mark.parametrize("mean", [0.0, 0.3, -0.7, 1.9])
def test_zero_is_on_an_edge_where_the_middle_is_near_it(mean):
    edges = AsinhGrid.around(torch.tensor([mean]), torch.ones(1)).edges[0]
    assert edges.abs().min().item() < 1e-12


def test_a_constant_channel_and_one_that_is_not_finite_have_a_grid_too():
    grid = AsinhGrid.around(torch.tensor([5.0, 0.0, math.nan, 1.0]), torch.tensor([0.0, 0.0, 2.0, 4.0]))
    assert grid.center.isfinite().all()
    assert grid.scale.tolist() == [2, 2, 2, 2]  # half the one deviation that is known
    alone = AsinhGrid.around(torch.zeros(2), torch.zeros(2))
    assert alone.scale.tolist() == [0.5, 0.5]


def test_a_constant_is_in_the_middle_of_a_bin_so_that_rounding_does_not_move_it():
    far = AsinhGrid.around(torch.tensor([1000.0 / 3]), torch.tensor([0.1]))
    x = torch.full((10, 1), 1000.0 / 3)
    nudged = x.nextafter(torch.tensor(math.inf)), x.nextafter(torch.tensor(-math.inf))
    places = {int(far.index(values).unique()) for values in (x, *nudged)}
    assert len(places) == 1


@pytest.mark.parametrize("make", ["normal", "rectified", "far", "heavy"])
def test_quantiles_and_distribution_function_are_numpy_s_within_a_bin(make):
    x = normal(20_000, 3)
    x = {"normal": x, "rectified": x.relu(), "far": x + 1000, "heavy": x.tan()}[make]
    h = Histogram.of(x, grid_of(x.clamp(-10, 2000)))
    levels = torch.tensor([0.0, 0.001, 0.1, 0.25, 0.5, 0.9, 0.999, 1.0], dtype=torch.float64)
    found = h.quantile(levels)
    exact = np.quantile(x.numpy(), levels.numpy(), axis=0, method="inverted_cdf").T
    distance = np.abs(exact - h.grid.center[:, None].numpy())
    width = 0.033 * np.sqrt(distance**2 + h.grid.scale[:, None].numpy() ** 2)
    assert (np.abs(found.numpy() - exact) <= width).all()
    points = torch.from_numpy(exact[0].copy())
    shares = (x[:, :, None] <= points).double().mean(0)
    # The share of a bin at most; at an atom exact.
    fullest = h.counts.amax(1, keepdim=True) / len(x)
    assert ((h.cdf(points) - shares).abs() <= fullest + 1e-12).all()


def test_an_atom_at_zero_is_a_step_of_its_own_size():
    x = normal(5000, 2).relu()
    h = Histogram.of(x, grid_of(x))
    tiny = torch.tensor([-1e-300, 0.0], dtype=torch.float64)
    steps = h.cdf(tiny)
    np.testing.assert_allclose((steps[:, 1] - steps[:, 0]).numpy(), (x == 0).double().mean(0), atol=1e-12)
    assert h.quantile(torch.tensor([0.1, 0.3], dtype=torch.float64)).tolist() == [[0, 0], [0, 0]]


def test_values_beyond_the_grid_are_kept_and_their_extremes_known():
    h = Histogram.of(torch.tensor([[1e30], [-1e6], [0.5]]), AsinhGrid.around(torch.zeros(1), torch.ones(1)))
    assert h.counts[0, [0, -1]].tolist() == [1, 1]
    assert h.quantile(torch.tensor([0.0, 1.0]))[0].tolist() == [-1e6, float(torch.tensor(1e30))]


def test_no_finite_value_has_no_quantile():
    h = Histogram.of(torch.full((3, 1), math.nan), AsinhGrid.around(torch.zeros(1), torch.ones(1)))
    assert h.quantile(torch.tensor([0.5])).isnan().all()
    assert h.cdf(torch.tensor([0.0])).isnan().all()


def test_counting_leaves_its_input_alone():
    x = odd_values()
    copy = x.clone()
    Histogram.of(x, grid_of(normal(9, 3)))
    assert torch.equal(x.nan_to_num(1.0), copy.nan_to_num(1.0))


@pytest.mark.parametrize("shape", [(256, 64, 3), (10, 1, 2), (256, 63, 1), (3, 5000, 1), (9000, 1, 2), (5000, 7, 1)])
def test_strided_values_are_enough_and_not_too_many_and_of_all_columns(shape):
    x = torch.arange(math.prod(shape)).view(shape)
    found = strided(x)
    n, p = found.shape[0] * found.shape[1], shape[0] * shape[1]
    assert n <= 4096
    assert n >= min(p, 4096 / 3)
    assert found.shape[2] == shape[2]
    if shape[1] == 64:  # an image of 8 x 8
        assert set((found[0, :, 0] // shape[2] % 8).tolist()) == set(range(8))
    if p <= 4096:
        assert torch.equal(found, x)


def test_histograms_of_other_grids_and_widths_are_refused():
    x = normal(20, 2)
    h = Histogram.of(x, grid_of(x))
    with pytest.raises(ValueError, match=r"must share one grid; these differ: make both by Histogram"):
        h.merge(Histogram.of(x, grid_of(x * 2)))
    with pytest.raises(ValueError, match=r"values must have the grid's 2 channels last; got \(20, 3\)"):
        Histogram.of(normal(20, 3), h.grid)
    for center, scale in (([0.0], [0.0]), ([math.nan], [1.0]), ([0.0, 1.0], [1.0])):
        with pytest.raises(ValueError, match=r"a grid needs a finite center and a positive, finite scale"):
            AsinhGrid(torch.tensor(center), torch.tensor(scale))
