from __future__ import annotations

import math

import pytest
import torch

from normlens.curvature.diagonal import diagonal, frobenius_norm
from normlens.curvature.operator import DenseOperator

N = 300
EPS = torch.finfo(torch.float64).eps
NOISE = torch.randn(N, N, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
MATRIX = (NOISE + NOISE.T) / 10 + torch.linspace(1, 3, N, dtype=torch.float64).diag()
OPERATOR = DenseOperator(MATRIX)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_true_entries_lie_within_two_standard_errors_in_about_95_of_100() -> None:
    values, errors = diagonal(OPERATOR)
    covered = ((values - MATRIX.diagonal()).abs() <= 1.96 * errors).double().mean()
    assert 0.9 <= float(covered) <= 0.99


def test_the_errors_are_the_off_diagonal_norms_of_the_rows() -> None:
    errors = torch.stack([diagonal(OPERATOR, generator=seeded(seed))[1] for seed in range(20)])
    off = MATRIX - MATRIX.diagonal().diag()
    expected = off.square().sum(1).sqrt() / 10
    torch.testing.assert_close(errors.square().mean(0).sqrt(), expected, rtol=0.15, atol=0)


def test_a_diagonal_matrix_is_found_to_rounding_from_two_products() -> None:
    entries = torch.linspace(-3, 5, N, dtype=torch.float64)
    values, errors = diagonal(DenseOperator(entries.diag()), matvecs=2)
    torch.testing.assert_close(values, entries, rtol=2 * EPS, atol=0)
    assert bool((errors <= 4 * EPS * entries.abs()).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_as_many_products_as_rows_give_the_exact_diagonal_and_norm(dtype: torch.dtype) -> None:
    operator = DenseOperator(MATRIX.to(dtype))
    values, errors = diagonal(operator, matvecs=N)
    assert torch.equal(values, MATRIX.to(dtype).diagonal().double())
    assert float((errors / values.abs()).max()) <= torch.finfo(dtype).eps * 1.001
    norm = frobenius_norm(operator, matvecs=N)
    assert abs(norm.value - float(MATRIX.norm())) <= norm.error
    assert norm.cost == N


def test_the_true_norm_lies_within_two_standard_errors_in_about_95_of_100_seeds() -> None:
    truth = float(MATRIX.norm())
    estimates = [frobenius_norm(OPERATOR, matvecs=40, generator=seeded(seed)) for seed in range(100)]
    assert 90 <= sum(abs(e.value - truth) <= 1.96 * e.error for e in estimates) <= 99
    assert {e.cost for e in estimates} == {40}


def test_the_zero_matrix_has_norm_and_diagonal_zero_without_error() -> None:
    zero = DenseOperator(torch.zeros(30, 30))
    norm = frobenius_norm(zero, matvecs=5)
    assert (norm.value, norm.error) == (0, 0)
    values, errors = diagonal(zero, matvecs=5)
    assert not values.any()
    assert not errors.any()


@pytest.mark.parametrize("estimate", [diagonal, frobenius_norm])
def test_one_product_is_refused(estimate: object) -> None:
    with pytest.raises(ValueError, match="needs matvecs of at least 2; got 1"):
        estimate(OPERATOR, matvecs=1)  # type: ignore[operator]


@pytest.mark.parametrize("estimate", [diagonal, frobenius_norm])
def test_a_product_that_is_not_finite_is_refused(estimate: object) -> None:
    matrix = torch.eye(30)
    matrix[2, 2] = math.inf
    with pytest.raises(ValueError, match="products must be finite"):
        estimate(DenseOperator(matrix), matvecs=5)  # type: ignore[operator]
