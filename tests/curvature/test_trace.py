from __future__ import annotations

import math

import pytest
import torch

from normlens.curvature.operator import DenseOperator
from normlens.curvature.trace import rademacher_products, trace

N = 400
EPS = torch.finfo(torch.float64).eps
METHODS = ["auto", "hutchinson", "hutch++", "xtrace"]
RANKS = torch.arange(N, dtype=torch.float64)
SPECTRA = {
    "decaying": (1 + RANKS) ** -1.5,
    "steep": 0.9**RANKS,
    "flat": 1 + RANKS / (2 * N),
    "indefinite": torch.linspace(-1, 1.3, N, dtype=torch.float64),
}
ROTATION = torch.linalg.qr(torch.randn(N, N, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]


class CountingOperator(DenseOperator):
    """Counts columns; multiplies them at once, which makes hundreds of seeds affordable."""

    def __init__(self, matrix: torch.Tensor) -> None:
        super().__init__(matrix)
        self.products = 0

    def __matmul__(self, v: torch.Tensor) -> torch.Tensor:
        self.products += 1 if v.ndim == 1 else v.shape[1]
        return (self._matrix @ v.to(self.dtype)).to(v)


def operator_of(spectrum: torch.Tensor) -> CountingOperator:
    return CountingOperator((ROTATION * spectrum) @ ROTATION.T)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_the_truth_lies_within_two_standard_errors_in_about_95_of_100_seeds(spectrum: str, method: str) -> None:
    operator, truth = operator_of(SPECTRA[spectrum]), float(SPECTRA[spectrum].sum())
    estimates = [trace(operator, method=method, generator=seeded(seed)) for seed in range(100)]  # type: ignore[arg-type]
    assert 90 <= sum(abs(e.value - truth) <= 1.96 * e.error for e in estimates) <= 99


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_the_estimates_have_no_bias(spectrum: str, method: str) -> None:
    operator, truth = operator_of(SPECTRA[spectrum]), float(SPECTRA[spectrum].sum())
    values = torch.tensor([trace(operator, method=method, generator=seeded(1000 + s)).value for s in range(100)])  # type: ignore[arg-type]
    assert abs(float(values.double().mean()) - truth) <= 3.5 * float(values.double().std()) / 10


def test_hutchinsons_standard_error_is_that_of_random_signs() -> None:
    operator = operator_of(SPECTRA["indefinite"])
    matrix = operator.dense()
    expected = math.sqrt(2 * float((matrix - matrix.diagonal().diag()).square().sum()) / 100)
    errors = [trace(operator, method="hutchinson", generator=seeded(seed)).error for seed in range(50)]
    assert sum(errors) / 50 == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("method", ["hutch++", "xtrace"])
def test_a_low_rank_part_makes_the_error_of_a_decaying_spectrum_ten_times_smaller(method: str) -> None:
    operator = operator_of(SPECTRA["decaying"])
    plain = trace(operator, method="hutchinson").error
    assert trace(operator, method=method).error < plain / 10  # type: ignore[arg-type]


def test_auto_equals_xtrace_where_the_spectrum_decays_and_hutchinson_where_it_is_flat() -> None:
    for spectrum, method in [("decaying", "xtrace"), ("steep", "xtrace"), ("flat", "hutchinson")]:
        operator = operator_of(SPECTRA[spectrum])
        for seed in range(10):
            auto = trace(operator, generator=seeded(seed))
            assert auto == trace(operator, method=method, generator=seeded(seed))  # type: ignore[arg-type]


@pytest.mark.parametrize("matvecs", [10, 50, 101, 399])
@pytest.mark.parametrize("method", METHODS)
def test_the_cost_is_what_was_spent_and_never_above_matvecs(method: str, matvecs: int) -> None:
    operator = operator_of(SPECTRA["decaying"])
    estimate = trace(operator, method=method, matvecs=matvecs)  # type: ignore[arg-type]
    assert estimate.cost == operator.products
    assert matvecs - 1 <= estimate.cost <= matvecs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", METHODS)
def test_a_matrix_of_low_rank_is_traced_to_rounding_and_the_error_says_so(method: str, dtype: torch.dtype) -> None:
    if method == "hutchinson":
        pytest.skip("it has no low-rank part")
    spectrum = torch.cat([torch.linspace(1, 2, 12, dtype=torch.float64), torch.zeros(N - 12, dtype=torch.float64)])
    operator = CountingOperator(((ROTATION * spectrum) @ ROTATION.T).to(dtype))
    for seed in range(5):
        estimate = trace(operator, method=method, generator=seeded(seed))  # type: ignore[arg-type]
        assert abs(estimate.value - 18) <= 1.96 * estimate.error
        assert estimate.error <= 18 * math.sqrt(N) * torch.finfo(dtype).eps * 10


@pytest.mark.parametrize("method", METHODS)
def test_as_many_products_as_rows_give_the_exact_trace(method: str) -> None:
    operator = operator_of(SPECTRA["indefinite"])
    estimate = trace(operator, method=method, matvecs=N)  # type: ignore[arg-type]
    assert estimate.value == pytest.approx(float(SPECTRA["indefinite"].sum()), abs=N * EPS)
    assert estimate.cost == N
    assert estimate.error <= 400 * EPS


@pytest.mark.parametrize("method", METHODS)
def test_the_zero_matrix_has_trace_zero_without_error(method: str) -> None:
    estimate = trace(DenseOperator(torch.zeros(N, N)), method=method, matvecs=20)  # type: ignore[arg-type]
    assert (estimate.value, estimate.error) == (0, 0)


@pytest.mark.parametrize("method", METHODS)
def test_with_a_tolerance_the_standard_error_is_what_stops(method: str) -> None:
    operator = operator_of(SPECTRA["decaying"])
    tolerance = 0.05 if method == "hutchinson" else 0.02
    estimate = trace(operator, method=method, matvecs=300, tolerance=tolerance)  # type: ignore[arg-type]
    assert estimate.converged is True
    assert estimate.error <= tolerance * estimate.value
    assert estimate.cost == operator.products < 300


@pytest.mark.parametrize("method", METHODS)
def test_a_tolerance_out_of_reach_spends_all_and_is_reported_as_not_converged(method: str) -> None:
    operator = operator_of(SPECTRA["indefinite"])
    estimate = trace(operator, method=method, matvecs=120, tolerance=1e-6)  # type: ignore[arg-type]
    assert estimate.converged is False
    assert estimate.cost == operator.products == 120


def test_vectors_added_in_stages_give_the_xtrace_of_all_at_once() -> None:
    operator = operator_of(SPECTRA["steep"])
    staged = trace(operator, method="xtrace", matvecs=90, tolerance=1e-12)
    whole = trace(operator, method="xtrace", matvecs=90)
    assert staged.value == pytest.approx(whole.value, rel=1e4 * EPS)
    assert staged.error == pytest.approx(whole.error, rel=1e-6)


def test_the_same_seed_gives_the_same_estimate_and_the_global_random_state_is_not_touched() -> None:
    operator, before = operator_of(SPECTRA["flat"]), torch.get_rng_state()
    assert trace(operator) == trace(operator, generator=seeded(0))
    assert torch.equal(before, torch.get_rng_state())


def test_products_are_those_of_signs() -> None:
    matrix = torch.arange(9.0).reshape(3, 3)
    signs, product = next(rademacher_products(DenseOperator(matrix + matrix.T)))
    assert set(signs.tolist()) <= {-1.0, 1.0}
    assert torch.equal(product, (matrix + matrix.T).double() @ signs)


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match=r"method must be one of 'auto', 'hutchinson'.*got 'hutch'"):
        trace(DenseOperator(torch.eye(9)), method="hutch")  # type: ignore[arg-type]


@pytest.mark.parametrize(("method", "least"), [("auto", 10), ("hutchinson", 2), ("hutch++", 6), ("xtrace", 4)])
def test_too_few_products_are_refused(method: str, least: int) -> None:
    with pytest.raises(ValueError, match=rf"needs matvecs of at least {least}; got {least - 1}"):
        trace(DenseOperator(torch.eye(99)), method=method, matvecs=least - 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("tolerance", [0.0, -1.0, math.nan])
def test_a_tolerance_that_is_not_positive_is_refused(tolerance: float) -> None:
    with pytest.raises(ValueError, match="tolerance must be positive"):
        trace(DenseOperator(torch.eye(9)), tolerance=tolerance)


@pytest.mark.parametrize("method", METHODS)
def test_a_product_that_is_not_finite_is_refused(method: str) -> None:
    matrix = torch.eye(50)
    matrix[3, 3] = math.nan
    with pytest.raises(ValueError, match="products must be finite"):
        trace(DenseOperator(matrix), method=method, matvecs=20)  # type: ignore[arg-type]
