from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from normlens.curvature.eigenpairs import eigenpairs, ritz
from normlens.curvature.lanczos_state import LanczosState, begin
from normlens.curvature.operator import DenseOperator


def state_of(projected: Tensor, coupling: Tensor, n: int = 10) -> LanczosState:
    """A decomposition on the first unit vectors, with as many pending as the coupling has columns."""
    identity = torch.eye(n, dtype=torch.float64)
    m, p = coupling.shape
    state = begin(DenseOperator(identity), identity[:1], n, seed=0)
    return replace(state, basis=identity[:m], projected=projected, pending=identity[m : m + p], coupling=coupling)


def diagonal(*values: float) -> Tensor:
    return torch.diag(torch.tensor(values, dtype=torch.float64))


@pytest.mark.parametrize(
    ("which", "expected"),
    [("LA", [4, 2, 1]), ("SA", [-5, -3, 1]), ("LM", [-5, 4, -3]), ("BE", [4, 2, -5])],
)
def test_the_wanted_pairs_come_outermost_first(which: str, expected: list[float]) -> None:
    state = state_of(diagonal(1, -3, 4, 2, -5), torch.zeros(5, 1, dtype=torch.float64))
    pairs = eigenpairs(state, ritz(state, which, 1e-3, 0.0), 3, which, 0.0)  # type: ignore[arg-type]
    assert pairs.values.tolist() == expected
    for value, vector in zip(pairs.values, pairs.vectors.T, strict=True):
        assert abs(float(vector[[1, -3, 4, 2, -5].index(int(value))])) == 1


def test_a_residual_is_the_norm_of_the_coupling_to_all_pending_directions() -> None:
    coupling = torch.tensor([[0.03, 0.04], [0.0, 0.0]], dtype=torch.float64)
    state = state_of(diagonal(2, 1), coupling)
    found = ritz(state, "LA", 0.024, 0.0)
    torch.testing.assert_close(found.residuals, torch.tensor([0.05, 0.0], dtype=torch.float64))
    assert found.converged.tolist() == [False, True]  # 0.05 > 0.024 * 2
    assert ritz(state, "LA", 0.0251, 0.0).converged.all()


def test_the_bound_is_quadratic_where_the_gap_is_wide_and_the_residual_where_it_is_not() -> None:
    coupling = torch.tensor([[0.01], [0.02], [0.02], [0.0]], dtype=torch.float64)
    state = state_of(diagonal(4, 2, 1.99, 0), coupling)
    pairs = eigenpairs(state, ritz(state, "LA", 1e-3, 0.0), 4, "LA", 0.0)
    expected = torch.tensor([0.01**2 / (2 - 0.02), 0.02, 0.02, 0.0], dtype=torch.float64)
    torch.testing.assert_close(pairs.error_bounds, expected)


def test_a_single_ritz_value_has_no_gap_to_speak_of() -> None:
    state = state_of(diagonal(4), torch.full((1, 1), 0.5, dtype=torch.float64))
    assert eigenpairs(state, ritz(state, "LA", 1e-3, 0.0), 1, "LA", 0.0).error_bounds.tolist() == [0.5]


def test_no_residual_below_the_rounding_of_a_product_is_claimed() -> None:
    state = state_of(diagonal(4, 1), torch.zeros(2, 1, dtype=torch.float64))
    pairs = eigenpairs(state, ritz(state, "LA", 0.0, 1e-6), 2, "LA", 1e-6)
    assert pairs.residuals.tolist() == pairs.error_bounds.tolist() == [4e-6, 4e-6]
    assert pairs.converged.all()
