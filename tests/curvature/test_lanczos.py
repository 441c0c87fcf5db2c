from __future__ import annotations

import statistics
from collections.abc import Iterator

import pytest
import torch
from scipy.sparse.linalg import eigsh as arpack
from torch import Tensor

from normlens.curvature.lanczos import eigsh
from normlens.curvature.operator import DenseOperator, LinearOperator

EPS = torch.finfo(torch.float64).eps
SPECTRA = {
    "decaying": 0.9 ** torch.arange(120, dtype=torch.float64),
    "clustered": torch.cat([torch.linspace(1, 1.001, 6), torch.linspace(0, 0.5, 114)]).double(),
    "indefinite": torch.linspace(-3, 2, 120, dtype=torch.float64) ** 3,
    "singular": torch.arange(120, dtype=torch.float64),
    "negative": -torch.arange(1, 121, dtype=torch.float64),
    "huge": 1e100 * torch.linspace(-3, 2, 120, dtype=torch.float64),
    "tiny": 1e-100 * torch.linspace(-3, 2, 120, dtype=torch.float64),
}


class Counting(DenseOperator):
    """Counts its products."""

    count = 0

    def matvec(self, v: Tensor) -> Tensor:
        self.count += 1
        return super().matvec(v)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def matrix_with(spectrum: Tensor, seed: int = 0) -> Tensor:
    n = len(spectrum)
    vectors = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=seeded(seed)))[0]
    matrix = vectors * spectrum @ vectors.T
    return (matrix + matrix.T) / 2


def wanted_of(matrix: Tensor, k: int, which: str) -> Tensor:
    values = torch.linalg.eigvalsh(matrix)
    if which == "LA":
        return values.flip(0)[:k]
    if which == "SA":
        return values[:k]
    if which == "LM":
        return values[values.abs().argsort(descending=True)][:k]
    return torch.cat([values.flip(0)[: (k + 1) // 2], values[: k // 2].flip(0)])


@pytest.mark.parametrize("which", ["LA", "SA", "LM", "BE"])
@pytest.mark.parametrize("name", SPECTRA)
def test_pairs_are_those_of_the_dense_eigensolver(name: str, which: str) -> None:
    matrix = matrix_with(SPECTRA[name])
    pairs = eigsh(DenseOperator(matrix), 5, which, tol=1e-9)  # type: ignore[arg-type]
    assert pairs.converged.all()
    scale = float(SPECTRA[name].abs().max())
    torch.testing.assert_close(pairs.values, wanted_of(matrix, 5, which), rtol=0, atol=1e-9 * scale)


@pytest.mark.parametrize("which", ["LA", "LM"])
def test_a_large_null_space_does_not_hide_the_largest_values(which: str) -> None:
    matrix = matrix_with(torch.cat([torch.zeros(100), torch.arange(1, 21)]).double())
    pairs = eigsh(DenseOperator(matrix), 5, which, tol=1e-9)  # type: ignore[arg-type]
    torch.testing.assert_close(pairs.values, torch.tensor([20, 19, 18, 17, 16]).double(), rtol=0, atol=1e-8)
    assert pairs.matvecs <= 22


@pytest.mark.parametrize("tol", [1e-2, 1e-3, 1e-6])
@pytest.mark.parametrize("basis", [None, 16])
def test_a_residual_is_the_norm_of_what_is_left_of_the_eigenvalue_equation(tol: float, basis: int | None) -> None:
    matrix = matrix_with(SPECTRA["decaying"])
    pairs = eigsh(DenseOperator(matrix), 5, tol=tol, basis=basis)
    left = (matrix @ pairs.vectors - pairs.vectors * pairs.values).norm(dim=0)
    torch.testing.assert_close(pairs.residuals, left, rtol=1e-6, atol=1e2 * EPS)
    assert pairs.converged.all()
    assert (left <= tol * pairs.values[0] * (1 + 1e-6)).all()
    gram = pairs.vectors.T @ pairs.vectors
    torch.testing.assert_close(gram, torch.eye(5, dtype=torch.float64), rtol=0, atol=1e2 * EPS)


@pytest.mark.parametrize("name", ["decaying", "clustered", "indefinite", "huge"])
@pytest.mark.parametrize("tol", [1e-2, 1e-4, 1e-7])
def test_the_error_bound_covers_the_error_and_is_no_larger_than_the_residual(name: str, tol: float) -> None:
    matrix = matrix_with(SPECTRA[name])
    pairs = eigsh(DenseOperator(matrix), 3, tol=tol)
    eigenvalues = torch.linalg.eigvalsh(matrix)
    error = (eigenvalues[:, None] - pairs.values).abs().min(0).values
    assert (error <= pairs.error_bounds + 1e2 * EPS * eigenvalues.abs().max()).all()
    assert (pairs.error_bounds <= pairs.residuals).all()


def test_the_error_of_an_isolated_value_is_of_the_order_of_the_squared_residual() -> None:
    pairs = eigsh(DenseOperator(matrix_with(SPECTRA["decaying"])), 1, tol=1e-3)
    assert pairs.error_bounds[0] <= 20 * pairs.residuals[0] ** 2  # the gap is 0.1
    assert abs(float(pairs.values[0]) - 1) <= pairs.error_bounds[0]


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("tol", [1e-3, 1e-8])
def test_it_takes_no_more_products_than_arpack(k: int, tol: float) -> None:
    matrix = torch.diag(0.9 ** torch.arange(2000, dtype=torch.float64))  # invariant: Lanczos knows no coordinates
    ours, theirs = Counting(matrix), Counting(matrix)
    pairs = eigsh(ours, k, tol=tol)
    start = torch.randn(2000, dtype=torch.float64, generator=seeded()).numpy()
    arpack(theirs.to_scipy(), k, which="LA", tol=tol, v0=start)
    assert ours.count == pairs.matvecs <= theirs.count


@pytest.mark.parametrize("basis", [20, 9])
def test_a_restarted_short_basis_finds_the_pairs_of_the_full_one(basis: int) -> None:
    matrix = matrix_with(0.97 ** torch.arange(200, dtype=torch.float64))
    short, full = (eigsh(DenseOperator(matrix), 4, tol=1e-10, basis=b) for b in (basis, 200))
    assert short.converged.all()
    assert short.matvecs > basis
    torch.testing.assert_close(short.values, full.values, rtol=0, atol=1e-12)
    torch.testing.assert_close((short.vectors * full.vectors).sum(0).abs(), torch.ones(4).double(), rtol=0, atol=1e-12)
    assert len(short.state.basis) <= basis


@pytest.mark.parametrize(
    "matrix",
    [
        torch.zeros(9, 9),
        torch.eye(9),
        torch.eye(1) * 3,
        torch.ones(9, 9),
        torch.diag(torch.tensor([7.0] * 4 + [2] * 40)),
    ],
    ids=["zero", "identity", "one by one", "rank one", "two eigenvalues"],
)
@pytest.mark.parametrize("which", ["LA", "SA"])
def test_multiple_eigenvalues_are_all_found_where_the_subspace_closes(matrix: Tensor, which: str) -> None:
    pairs = eigsh(DenseOperator(matrix.double()), 5, which)  # type: ignore[arg-type]
    torch.testing.assert_close(pairs.values, wanted_of(matrix.double(), 5, which), rtol=0, atol=1e3 * EPS)
    gram = pairs.vectors.T @ pairs.vectors
    torch.testing.assert_close(gram, torch.eye(len(gram), dtype=torch.float64), rtol=0, atol=1e2 * EPS)


@pytest.mark.parametrize("k", [6, 7, 50])
def test_as_many_pairs_as_rows_are_the_whole_decomposition(k: int) -> None:
    matrix = matrix_with(torch.tensor([-2.0, -1.0, 0.0, 0.0, 1.0, 5.0]).double())
    pairs = eigsh(DenseOperator(matrix), k, tol=1e-12)
    torch.testing.assert_close(pairs.values, wanted_of(matrix, 6, "LA"), rtol=0, atol=1e2 * EPS)
    torch.testing.assert_close(pairs.vectors * pairs.values @ pairs.vectors.T, matrix, rtol=0, atol=1e3 * EPS)
    assert pairs.matvecs == 6


def test_a_block_start_finds_a_triple_eigenvalue_in_an_open_spectrum() -> None:
    spectrum = torch.cat([torch.full((3,), 2.0), torch.linspace(0, 1, 97)]).double()
    start = torch.randn(100, 3, dtype=torch.float64, generator=seeded(1))
    pairs = eigsh(DenseOperator(matrix_with(spectrum)), 4, tol=1e-8, start=start)
    torch.testing.assert_close(pairs.values, torch.tensor([2.0, 2.0, 2.0, 1.0]).double(), rtol=0, atol=1e-10)


def rotating(angle: float, steps: int, seed: int) -> Iterator[tuple[LinearOperator, float]]:
    """A matrix whose vectors turn by ``angle`` a step and whose second eigenvalue overtakes the first on the way."""
    vectors = torch.linalg.qr(torch.randn(200, 200, dtype=torch.float64, generator=seeded(seed)))[0]
    skew = torch.randn(200, 200, dtype=torch.float64, generator=seeded(seed + 1))
    skew = skew - skew.T
    turn = torch.linalg.matrix_exp(skew * (angle / skew.norm(dim=0).mean()))
    bulk = 0.3 / torch.arange(1, 197, dtype=torch.float64)
    for step in range(steps):
        spectrum = torch.cat([torch.tensor([1.0, 0.6 + step / steps, 0.5, 0.4]).double(), bulk])
        yield DenseOperator(vectors * spectrum @ vectors.T), float(spectrum.max())
        vectors = turn @ vectors


@pytest.mark.parametrize("angle", [0.01, 0.03, 0.1])
def test_a_warm_start_takes_eight_products_and_sees_an_eigenvalue_overtake(angle: float) -> None:
    products, errors = [], []
    for seed in range(3):
        pairs, generator = None, seeded(seed)
        for operator, largest in rotating(angle, 30, seed):
            pairs = eigsh(operator, 1, start=pairs, generator=generator)
            products.append(pairs.matvecs)
            errors.append(abs(float(pairs.values[0]) / largest - 1))
    assert statistics.median(products) <= 8
    assert sum(error <= 0.01 for error in errors) >= 0.95 * len(errors)


def test_a_warm_start_is_not_trapped_by_an_old_vector_that_is_still_an_exact_eigenvector() -> None:
    old = eigsh(DenseOperator(torch.diag(torch.tensor([1.0, 0.5] + [0.1] * 98, dtype=torch.float64))), 1, tol=1e-12)
    pairs = eigsh(DenseOperator(torch.diag(torch.tensor([1.0, 1.38] + [0.1] * 98, dtype=torch.float64))), 1, start=old)
    assert abs(float(pairs.values[0]) - 1.38) <= pairs.error_bounds[0] + 1e2 * EPS


def test_a_warm_start_of_five_pairs_takes_fewer_products_than_a_cold_one() -> None:
    spectrum = torch.cat([torch.tensor([1.0, 0.95, 0.9, 0.85, 0.8]), torch.linspace(0, 0.7, 295)]).double()
    matrix = matrix_with(spectrum)
    old = eigsh(DenseOperator(matrix), 5, tol=1e-6)
    noise = torch.randn(300, 300, dtype=torch.float64, generator=seeded(5))
    moved = DenseOperator(matrix + 1e-5 * (noise + noise.T))
    warm, cold = eigsh(moved, 5, start=old), eigsh(moved, 5)
    torch.testing.assert_close(warm.values, wanted_of(moved.dense(), 5, "LA"), rtol=0, atol=1e-5)
    assert warm.matvecs <= 10 < cold.matvecs


def test_a_float32_matrix_is_resolved_to_its_rounding_and_no_further() -> None:
    matrix = matrix_with(SPECTRA["decaying"])
    pairs = eigsh(DenseOperator(matrix.float()), 5, tol=0)
    floor = 4 * torch.finfo(torch.float32).eps
    left = (matrix.float().double() @ pairs.vectors - pairs.vectors * pairs.values).norm(dim=0)
    assert pairs.converged.all()
    assert pairs.values.dtype == pairs.vectors.dtype == torch.float64
    assert (pairs.residuals >= floor * pairs.values[0]).all()
    assert (left <= pairs.residuals).all()
    assert (pairs.values - SPECTRA["decaying"][:5]).abs().max() <= floor


def test_the_rounding_of_long_float32_sums_is_measured_and_reported() -> None:
    factor = (torch.randn(100_000, 8, generator=seeded()) * 0.7 ** torch.arange(8)).contiguous()

    class Gram(LinearOperator):
        def matvec(self, v: Tensor) -> Tensor:
            return factor @ (factor.T @ v)

    operator = Gram(100_000, torch.float32, torch.device("cpu"))
    pairs = eigsh(operator, 3, tol=1e-8)
    left = (factor.double() @ (factor.double().T @ pairs.vectors) - pairs.vectors * pairs.values).norm(dim=0)
    assert pairs.converged.all()
    assert (left <= 10 * pairs.residuals).all()
    assert pairs.residuals.max() <= 1e-3 * pairs.values[0]


def test_the_result_depends_on_the_seed_alone_and_the_global_generator_is_left_alone() -> None:
    operator = DenseOperator(matrix_with(SPECTRA["decaying"]))
    before = torch.get_rng_state()
    first = eigsh(operator, 3, generator=seeded(4))
    torch.manual_seed(99)
    second, other = eigsh(operator, 3, generator=seeded(4)), eigsh(operator, 3, generator=seeded(5))
    torch.set_rng_state(before)
    default = eigsh(operator, 3)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.vectors, second.vectors)
    assert not torch.equal(first.vectors, other.vectors)
    assert torch.equal(default.vectors, eigsh(operator, 3, generator=seeded(0)).vectors)


def test_a_budget_is_kept_and_what_has_not_converged_is_marked() -> None:
    operator = Counting(matrix_with(SPECTRA["clustered"]))
    pairs = eigsh(operator, 5, tol=1e-10, max_matvecs=12)
    assert operator.count == pairs.matvecs == 12
    assert not pairs.converged.any()
    assert len(eigsh(operator, 5, max_matvecs=3).values) == 3


def test_progress_is_shown_on_stderr_only_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    operator = DenseOperator(torch.eye(4))
    eigsh(operator, 1)
    assert capsys.readouterr() == ("", "")
    eigsh(operator, 1, progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "products" in shown.err


def test_a_product_that_is_not_finite_is_named() -> None:
    matrix = torch.eye(4)
    matrix[1, 2] = torch.nan
    with pytest.raises(FloatingPointError, match=r"must be finite; 1 of 4 entries of product 1 .*float64"):
        eigsh(DenseOperator(matrix))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 0}, r"k >= 1; got n=8, k=0"),
        ({"which": "XX"}, r"one of LA, SA, LM, BE; got 'XX'"),
        ({"tol": -1.0}, r"tol must be 0 or more; got -1.0; 1e-3"),
        ({"max_matvecs": 0}, r"max_matvecs must be 1 or more; got 0; None"),
        ({"basis": 4, "k": 3}, r"at least k \+ 2 = 5 vectors; got 4; None"),
        ({"start": torch.zeros(8)}, r"start must be finite, not zero.*got shape \(8,\); leave"),
        ({"start": torch.ones(7)}, r"shape \(8,\) or \(8, p\); got shape \(7,\)"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        eigsh(DenseOperator(torch.eye(8)), **settings)  # type: ignore[arg-type]


def test_a_state_of_another_matrix_or_beside_a_start_is_refused() -> None:
    state = eigsh(DenseOperator(torch.eye(8)), 1).state
    with pytest.raises(ValueError, match=r"of a matrix with 9 rows; got 8; start anew"):
        eigsh(DenseOperator(torch.eye(9)), 1, state=state)
    with pytest.raises(ValueError, match=r"start= or state=; got both"):
        eigsh(DenseOperator(torch.eye(8)), 1, state=state, start=torch.ones(8))
