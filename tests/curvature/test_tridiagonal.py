from __future__ import annotations

import pytest
import torch

from normlens.curvature.operator import DenseOperator
from normlens.curvature.tridiagonal import tridiagonalize

EPS = torch.finfo(torch.float64).eps


def matrix_of(eigenvalues: torch.Tensor, seed: int = 0) -> torch.Tensor:
    n = len(eigenvalues)
    noise = torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    q = torch.linalg.qr(noise)[0]
    return (q * eigenvalues.double()) @ q.T


def start_of(n: int) -> torch.Tensor:
    return torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


def tridiagonal_of(alphas: torch.Tensor, betas: torch.Tensor) -> torch.Tensor:
    return torch.diag(alphas) + torch.diag(betas[:-1], 1) + torch.diag(betas[:-1], -1)


def test_n_steps_reproduce_all_eigenvalues_of_a_spectrum_over_eight_decades() -> None:
    eigenvalues = torch.logspace(-8, 0, 120, dtype=torch.float64)
    alphas, betas = tridiagonalize(DenseOperator(matrix_of(eigenvalues)), start_of(120), 120)
    found = torch.linalg.eigvalsh(tridiagonal_of(alphas, betas))
    torch.testing.assert_close(found, eigenvalues, rtol=0, atol=120 * EPS)


def test_the_corner_entry_of_powers_of_t_is_the_moment_of_the_start_to_degree_two_steps_less_one() -> None:
    a, start, steps = matrix_of(torch.linspace(-1, 2, 50)), start_of(50), 6
    t = tridiagonal_of(*tridiagonalize(DenseOperator(a), start, steps))
    unit = start / start.norm()
    for degree in range(2 * steps):
        moment = unit @ torch.linalg.matrix_power(a, degree) @ unit
        corner = torch.linalg.matrix_power(t, degree)[0, 0]
        torch.testing.assert_close(corner, moment, rtol=0, atol=100 * EPS * 2.0**degree)


def test_the_process_ends_where_the_krylov_space_closes() -> None:
    eigenvalues = torch.tensor([3.0] * 10 + [-1.0] * 10 + [0.5] * 10)
    alphas, betas = tridiagonalize(DenseOperator(matrix_of(eigenvalues)), start_of(30), 20)
    assert len(alphas) == len(betas) == 3
    assert betas[-1] == 0
    found = torch.linalg.eigvalsh(tridiagonal_of(alphas, betas))
    torch.testing.assert_close(found, torch.tensor([-1.0, 0.5, 3.0], dtype=torch.float64), rtol=0, atol=100 * EPS)


def test_a_float32_operator_closes_at_its_own_rounding() -> None:
    alphas, _ = tridiagonalize(
        DenseOperator(matrix_of(torch.tensor([2.0] * 20 + [1.0] * 20)).float()), start_of(40), 40
    )
    assert len(alphas) == 2


def test_the_last_coupling_is_the_norm_of_the_residual_of_the_krylov_space() -> None:
    a = matrix_of(torch.linspace(-1, 2, 40))
    short = tridiagonalize(DenseOperator(a), start_of(40), 5)[1]
    long = tridiagonalize(DenseOperator(a), start_of(40), 9)[1]
    torch.testing.assert_close(short, long[:5], rtol=100 * EPS, atol=0)


@pytest.mark.parametrize("start", [torch.zeros(4), torch.ones(5), torch.ones(4, 1)])
def test_a_start_that_is_zero_or_does_not_fit_is_refused(start: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"start must be a vector of shape \(4,\) that is not zero"):
        tridiagonalize(DenseOperator(torch.eye(4)), start, 2)


def test_no_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="steps must be at least 1; got 0"):
        tridiagonalize(DenseOperator(torch.eye(4)), torch.ones(4), 0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_product_that_is_not_finite_is_refused(bad: float) -> None:
    matrix = torch.eye(4)
    matrix[1, 1] = bad
    with pytest.raises(ValueError, match="product 1 holds NaN or Inf"):
        tridiagonalize(DenseOperator(matrix), torch.ones(4), 2)
