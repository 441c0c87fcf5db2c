"""Ranks and orthogonality gap: closed forms at both extremes, dense definitions, and errors by simulation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from normlens.probes.rank_collapse import RankCollapse, effective_rank
from normlens.risk import EmpiricalRisk
from normlens.run.measure import Activations
from normlens.run.probe import Previous, Step
from normlens.run.reading import Reading


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ask(model: nn.Module, x: Tensor, **settings: Any) -> dict[tuple[str, str], Reading]:
    risk = EmpiricalRisk(model, lambda outputs, _: outputs.mean(), (x, x))
    step = Step(0, risk, Activations(risk), Previous(), None, torch.Generator())
    return {(r.layer, r.name): r for r in RankCollapse(**settings)(step)}


def read(rows: Tensor, **settings: Any) -> dict[str, float]:
    """Of rows as they are: the layer is the identity."""
    found = ask(nn.Sequential(nn.Identity()), rows, layers="0", **settings)
    return {name: float(reading.value) for (_, name), reading in found.items()}


@pytest.mark.parametrize("n", [5, 12])
def test_samples_that_are_all_the_same_have_rank_one_and_the_largest_gap(n):
    found = read(normal(1, 7).expand(n, 7))
    assert found["effective_rank"] == pytest.approx(1, rel=1e-12)
    assert found["orthogonality_gap"] == pytest.approx(math.sqrt(1 - 1 / n), rel=1e-12)
    if n == 5:
        assert found["orthogonality_gap"] == pytest.approx(0.894427, abs=5e-7)
    assert found["gap_share"] == pytest.approx(1, rel=1e-12)
    assert found["soft_rank"] == 1
    assert found["mean_share"] == pytest.approx(1, rel=1e-12)
    assert found["effective_rank_centered"] == 0, "nothing is left but rounding"


def test_differences_of_the_size_of_rounding_are_no_directions():
    same = normal(1, 40).expand(16, 40)
    noisy = same * (1 + 1e-7 * normal(16, 40, seed=1))
    assert read(noisy)["effective_rank_centered"] > 5
    assert read(noisy.float())["effective_rank_centered"] == 0


def test_orthogonal_samples_of_one_length_have_no_gap_and_full_ranks():
    rows = 3 * torch.linalg.qr(normal(9, 9)).Q[:5]
    found = read(rows)
    assert found["orthogonality_gap"] == pytest.approx(0, abs=1e-7)
    assert found["effective_rank"] == pytest.approx(5, rel=1e-12)
    assert (found["effective_rank_share"], found["soft_rank_share"]) == (pytest.approx(1), 1)
    assert found["soft_rank"] == 5


@pytest.mark.parametrize("shape", [(12, 7), (7, 12)])
def test_all_are_what_their_definitions_give_densely(shape):
    rows = normal(*shape) * torch.linspace(0.1, 3, shape[1]).double() + 1
    h, (n, d) = rows.numpy().T, shape
    found = read(rows, tau=0.3)
    gram = h.T @ h
    gap = np.linalg.norm(gram / np.linalg.norm(h) ** 2 - np.eye(n) / n)
    assert found["orthogonality_gap"] == pytest.approx(gap, rel=1e-10)
    m = h @ h.T / n
    assert found["effective_rank"] == pytest.approx(np.trace(m) ** 2 / np.linalg.norm(m) ** 2, rel=1e-10)
    assert found["effective_rank"] <= np.linalg.matrix_rank(h)
    scaled = h / np.sqrt((h**2).mean())
    assert found["soft_rank"] == (np.linalg.svd(scaled)[1] ** 2 / d >= 0.3).sum()
    assert 1 < found["soft_rank"] < min(n, d)
    assert found["soft_rank_share"] == found["soft_rank"] / min(n, d)
    c = h - h.mean(1, keepdims=True)
    assert found["effective_rank_centered"] == pytest.approx(
        np.trace(c @ c.T) ** 2 / np.linalg.norm(c @ c.T) ** 2, rel=1e-10
    )
    share = np.sum(h.mean(1) ** 2) / np.mean((h**2).sum(0))
    assert found["mean_share"] == pytest.approx(share, rel=1e-10)


def test_none_depends_on_the_scale_of_the_representation():
    rows = normal(20, 6) + 1
    small, large = read(1e-100 * rows), read(1e100 * rows)
    assert small == pytest.approx(large, rel=1e-9)
    assert small == pytest.approx(read(rows), rel=1e-9)


def spread_and_error(n: int, d: int) -> tuple[float, float]:
    scale = torch.linspace(0.5, 2, d).double()
    values, errors = np.array(
        [effective_rank(h @ h.T) for h in (normal(n, d, seed=seed) * scale + 0.3 for seed in range(60))]
    ).T
    return float(values.std(ddof=1)), float(errors.mean())


def test_the_standard_error_is_the_spread_over_draws_of_the_samples_and_for_wide_layers_above_it():
    spread, error = spread_and_error(64, 10)
    assert error == pytest.approx(spread, rel=0.25)
    spread, error = spread_and_error(32, 50)
    assert spread < error < 3 * spread


def test_the_error_of_the_gap_follows_from_that_of_the_rank():
    found = ask(nn.Sequential(nn.Identity()), normal(40, 6) + 1, layers="0")
    rank, gap = found["0", "effective_rank"], found["0", "orthogonality_gap"]
    h = 1e-6
    slope = (math.sqrt(1 / (rank.value + h) - 1 / 40) - math.sqrt(1 / (rank.value - h) - 1 / 40)) / (2 * h)
    assert gap.error == pytest.approx(abs(slope) * rank.error, rel=1e-6)
    share = found["0", "gap_share"]
    assert share.error / float(share.value) == pytest.approx(gap.error / float(gap.value), rel=1e-12)


def test_a_sample_is_its_channels_at_all_positions_and_the_first_samples_are_taken():
    x = normal(20, 6, 3, 3)
    whole = ask(nn.Sequential(nn.ReLU()), x, samples=8)
    expected = read(x[:8].relu().flatten(1))
    assert {name: float(r.value) for (_, name), r in whole.items()} == pytest.approx(expected, rel=1e-12)
    assert whole["0", "effective_rank"].n == 8
    assert whole["0", "width"].value == 54


def test_samples_of_many_numbers_are_multiplied_piece_by_piece():
    rows = normal(5, 40_000)
    found = read(rows)
    gram = (rows @ rows.T).numpy()
    assert found["effective_rank"] == pytest.approx(np.trace(gram) ** 2 / np.linalg.norm(gram) ** 2, rel=1e-12)


def test_it_is_of_nonlinearities_else_of_what_enters_layers_behind_the_first():
    x = normal(20, 6)
    layers = [nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.GELU(), nn.Linear(4, 3)]
    rectified = nn.Sequential(*layers).double()
    assert {layer for layer, _ in ask(rectified, x)} == {"1", "3"}
    plain = nn.Sequential(*layers[::2][:1], nn.Linear(5, 4), nn.Linear(4, 3)).double()
    assert {layer for layer, _ in ask(plain, x)} == {"1", "2"}
    found = ask(plain, x)["1", "effective_rank"].value
    assert found == pytest.approx(read(layers[0](x).detach())["effective_rank"], rel=1e-12)
    alone = ask(nn.Sequential(nn.Linear(6, 5)).double(), x)
    assert {key: r.value for key, r in alone.items()} == {("", "layers"): 0}


def test_deep_linear_networks_collapse_and_whitened_ones_do_not():
    """The gap of a product of Gaussian matrices grows with depth; with orthogonal matrices it stays as it is."""
    x = torch.linalg.qr(normal(32, 32)).Q[:16] * math.sqrt(32)
    gaussian, orthogonal = x, x
    for depth in range(40):
        weight = normal(32, 32, seed=depth)
        gaussian, orthogonal = gaussian @ weight / math.sqrt(32), orthogonal @ torch.linalg.qr(weight).Q
    assert read(gaussian)["gap_share"] > 0.8
    assert read(orthogonal)["gap_share"] == pytest.approx(0, abs=1e-6)


def test_a_layer_that_is_zero_has_ranks_of_zero_and_one_that_is_not_finite_has_none():
    zero = read(torch.zeros(6, 4).double())
    assert zero["soft_rank"] == zero["effective_rank"] == zero["effective_rank_centered"] == 0
    assert math.isnan(zero["orthogonality_gap"])
    lost = read(torch.full((6, 4), math.inf).double())
    assert all(math.isnan(value) for name, value in lost.items() if name != "width")


def test_a_soft_rank_needs_a_threshold():
    with pytest.raises(ValueError, match=r"needs tau above 0; got 0; 0\.01 is a hundredth of a sample"):
        RankCollapse(tau=0)
