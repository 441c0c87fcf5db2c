from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import eigsh as arpack

from normlens.curvature.activation_condition import bnp_root
from normlens.curvature.condition import condition_number
from normlens.curvature.lanczos import eigsh
from normlens.curvature.null_space import NullSpace
from normlens.curvature.operator import DenseOperator, deflate, precondition, restrict
from normlens.curvature.resumable import resumable
from support.curvature import vector


def symmetric(n: int = 8, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    a = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (a + a.T).to(dtype)


def test_a_product_takes_vectors_and_blocks_and_keeps_their_dtype():
    a = symmetric(dtype=torch.float32)
    operator = DenseOperator(a)
    v = torch.stack([vector(8, seed) for seed in range(3)], 1)
    assert (operator @ v).dtype == torch.float64
    assert torch.equal(operator @ v, torch.stack([operator @ v[:, j] for j in range(3)], 1))
    assert torch.equal(operator @ v[:, 0], (a @ v[:, 0].float()).double())
    assert (operator @ v[:, :0]).shape == (8, 0)


def test_dense_scipy_sums_and_multiples_are_the_same_matrix():
    a, b = symmetric(seed=1), symmetric(seed=2)
    total = DenseOperator(a) * 2.0 + 0.5 * DenseOperator(b)
    torch.testing.assert_close(total.dense(), 2 * a + 0.5 * b, rtol=0, atol=1e-14)
    largest = arpack(total.to_scipy(), k=1, which="LA")[0]
    np.testing.assert_allclose(largest, torch.linalg.eigvalsh(2 * a + 0.5 * b)[-1:].numpy(), rtol=1e-12)


def test_a_restriction_is_the_principal_submatrix():
    a, chosen = symmetric(), torch.tensor([6, 1, 3])
    torch.testing.assert_close(restrict(DenseOperator(a), chosen).dense(), a[chosen][:, chosen])


def test_a_preconditioned_matrix_is_p_a_p():
    a, p, d = symmetric(), symmetric(seed=3), vector(8).abs() + 1
    torch.testing.assert_close(precondition(DenseOperator(a), DenseOperator(p)).dense(), p @ a @ p)
    torch.testing.assert_close(precondition(DenseOperator(a), d).dense(), torch.diag(d) @ a @ torch.diag(d))


def test_batch_normalization_preconditions_the_hessian_of_least_squares_to_that_of_normalized_inputs():
    """Theory 1.2: P'HP = G'G/N with G the bias column and the normalized inputs; on the data of T1 that is I."""
    h = torch.tensor([[1.0, 2.0], [3.0, 2.0], [1.0, 6.0], [3.0, 6.0]], dtype=torch.float64)
    extended = torch.cat([torch.ones(4, 1, dtype=torch.float64), h], 1)
    plain = DenseOperator(extended.T @ extended / 4)
    root = bnp_root(h.mean(0), h.var(0, unbiased=False))
    torch.testing.assert_close(precondition(plain, root).dense(), torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-14)
    assert condition_number(plain).value == pytest.approx(15.2592240609**2, rel=1e-9)
    assert condition_number(precondition(plain, root)).value == pytest.approx(1, rel=1e-12)


def test_deflation_takes_a_subspace_out_whatever_its_basis():
    a = symmetric()
    values, vectors = torch.linalg.eigh(a)
    mixed = vectors[:, -2:] @ torch.tensor([[1.0, 2.0], [0.5, -3.0]], dtype=torch.float64)
    left = torch.linalg.eigvalsh(deflate(DenseOperator(a), mixed).dense())
    torch.testing.assert_close(left.sort().values, torch.cat([values[:-2], torch.zeros(2).double()]).sort().values)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda a: DenseOperator(torch.ones(2, 3)), "a square matrix; got shape"),
        (lambda a: a @ torch.ones(3), r"shape \(8,\) or \(8, k\); got \(3,\)"),
        (lambda a: a + DenseOperator(torch.eye(3)), "operators of one shape"),
        (lambda a: restrict(a, torch.tensor([0, 0])), "distinct integers from 0 to 7"),
        (lambda a: restrict(a, torch.tensor([8])), "distinct integers from 0 to 7"),
        (lambda a: precondition(a, torch.ones(3)), "a preconditioner needs shape"),
        (lambda a: deflate(a, torch.ones(3, 1)), "a basis needs shape"),
    ],
)
def test_what_does_not_fit_is_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make(DenseOperator(symmetric()))


class Inexact(DenseOperator):
    error = 1e-3


def test_what_is_made_of_an_inexact_operator_is_as_inexact(tmp_path: Path) -> None:
    exact, rough = DenseOperator(torch.eye(4)), Inexact(torch.eye(4))
    made = [
        exact + rough,
        2.0 * rough,
        restrict(rough, torch.tensor([0, 2])),
        precondition(rough, torch.ones(4)),
        deflate(rough, torch.eye(4)[:, :1]),
        resumable(rough, tmp_path / "products", key="a"),
        NullSpace(torch.eye(4, dtype=torch.float64)[:, :1].to_sparse(), ("a",), ("b",)).deflate(rough),
    ]
    assert [operator.error for operator in made] == [1e-3] * len(made)
    assert (exact + exact).error == 0


def test_no_eigenpair_is_claimed_to_be_better_than_the_products() -> None:
    values = torch.linspace(1, 2, 50, dtype=torch.float64)
    pairs = eigsh(Inexact(torch.diag(values)), 1, tol=1e-9)
    assert float(pairs.residuals[0]) >= 1e-3 * float(pairs.values[0])


def test_a_dense_operator_gives_its_matrix_without_a_product(monkeypatch: pytest.MonkeyPatch) -> None:
    operator = DenseOperator(torch.tensor([[1.0, 2.0], [4.0, 3.0]]))
    monkeypatch.setattr(DenseOperator, "matvec", None)
    assert operator.dense().tolist() == [[1.0, 3.0], [3.0, 3.0]]
