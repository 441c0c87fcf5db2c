from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from normlens.curvature.condition import SHARES, TOLERANCES, condition_number
from normlens.curvature.gram import GramSpectrum
from normlens.curvature.null_space import NullSpace
from normlens.curvature.operator import DenseOperator


def matrix(values: Tensor, seed: int = 0) -> DenseOperator:
    generator = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64))[0]
    return DenseOperator(q @ torch.diag(values.double()) @ q.T)


def test_it_is_the_ratio_over_the_nonzero_eigenvalues_with_nullity_and_sign_counted():
    result = condition_number(matrix(torch.tensor([10.0, 4.0, 1.0, -0.5, 0.0, 0.0])), tolerance=1e-6)
    assert result.value == result.lower == pytest.approx(20.0, rel=1e-12)
    assert (result.nullity, result.negative) == (2, 1)
    assert (result.method, result.converged) == ("dense", True)
    assert result.lambda_min == pytest.approx(0.5, rel=1e-12)


def test_the_curve_says_how_it_depends_on_the_tolerance():
    result = condition_number(matrix(torch.tensor([1.0, 1e-2, 1e-5, 1e-8])), tolerance=1e-6)
    curve = dict(zip(TOLERANCES, result.curve, strict=True))
    assert curve[1e-12] == curve[1e-9] == pytest.approx(1e8, rel=1e-6)
    assert curve[1e-7] == curve[1e-6] == result.value == pytest.approx(1e5, rel=1e-6)
    assert curve[1e-4] == curve[1e-3] == pytest.approx(100, rel=1e-6)


def test_in_float32_the_curve_ends_at_the_floor_and_a_smaller_tolerance_is_refused():
    single = DenseOperator(torch.diag(torch.tensor([1.0, 1e-3, 1e-9])))
    result = condition_number(single)
    assert result.floor == pytest.approx(9.5e-7, rel=0.01)
    assert all(math.isnan(k) == (t < result.floor) for t, k in zip(TOLERANCES, result.curve, strict=True))
    assert result.nullity == 1
    with pytest.raises(ValueError, match=r"below the precision floor 9\.5e-07"):
        condition_number(single, tolerance=1e-9)


@pytest.mark.parametrize("tolerance", [0.0, 1.0, -1e-3])
def test_a_tolerance_outside_of_zero_to_one_is_refused(tolerance):
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        condition_number(matrix(torch.ones(3)), tolerance=tolerance)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ["decaying", "indefinite", "singular"])
def test_the_bound_of_lanczos_is_a_bound_and_never_called_the_value(kind, seed):
    values = torch.logspace(0, -5, 300, dtype=torch.float64)
    if kind == "indefinite":
        values[::7] *= -1
    if kind == "singular":
        values[100:] = 0
    operator = matrix(values, seed)
    exact = condition_number(operator, method="dense")
    bound = condition_number(
        operator, method="lanczos", steps=60, probes=0, generator=torch.Generator().manual_seed(seed)
    )
    assert math.isnan(bound.value)
    assert not bound.converged
    assert 1 <= bound.lower <= exact.value * (1 + 1e-9)
    assert bound.lambda_max <= exact.lambda_max * (1 + 1e-12)
    assert (values.abs() - bound.lambda_max).abs().min() <= bound.residual
    assert bound.matvecs <= 60
    assert bound.quantiles == ()
    for lower, true in zip(bound.curve, exact.curve, strict=True):
        assert math.isnan(lower) or lower <= true * (1 + 1e-9)


@pytest.mark.parametrize("steps", range(2, 12))
def test_a_ritz_value_on_its_way_to_zero_certifies_nothing(steps):
    values = torch.linspace(1, 1.1, 300, dtype=torch.float64)
    values[::2] *= -1
    values[::10] = 0
    bound = condition_number(matrix(values), method="lanczos", steps=steps, probes=0)
    assert math.isnan(bound.lower) or bound.lower <= 1.1 * (1 + 1e-9)


def test_with_as_many_steps_as_rows_the_bound_is_the_number():
    values = torch.linspace(1, 50, 50, dtype=torch.float64)
    bound = condition_number(matrix(values), method="lanczos", steps=50)
    assert bound.lower == pytest.approx(50, rel=1e-6)


def test_known_null_directions_are_taken_out_first_and_counted():
    operator = matrix(torch.cat([torch.logspace(0, -2, 60), torch.zeros(40)]))
    values, vectors = torch.linalg.eigh(operator.dense())
    null = vectors[:, values.abs() < 1e-10]
    bound = condition_number(operator, method="lanczos", steps=60, null=null)
    assert bound.nullity == 40
    assert bound.lower == pytest.approx(100, rel=1e-3)


def test_a_gram_spectrum_gives_the_exact_number_of_a_matrix_that_was_never_formed():
    spectrum = GramSpectrum(
        values=torch.tensor([8.0, 2.0, 1.0, 0.0], dtype=torch.float64), samples=2, outputs=2, parameters=1000,
        mode="eval", floor=8e-14,
    )  # fmt: skip
    result = condition_number(spectrum, tolerance=1e-9)
    assert (result.value, result.nullity, result.method) == (8.0, 997, "gram")
    assert result.converged
    few = replace(spectrum, parameters=3)  # of more rows than parameters the Gram matrix has zeros that J'SJ has not
    assert condition_number(few, tolerance=1e-9).nullity == 0


def test_its_words_say_whether_it_is_a_bound():
    operator = matrix(torch.tensor([10.0, 1.0]))
    assert str(condition_number(operator)) == "condition number 10 (tolerance 1e-06, dense)"
    assert str(condition_number(operator, method="lanczos", steps=1)).startswith("condition number at least")


def test_ready_eigenvalues_give_what_their_matrix_gives():
    values = torch.tensor([10.0, 4.0, 1.0, -0.5, 0.0, 0.0], dtype=torch.float64)
    result, expected = condition_number(values), condition_number(matrix(values))
    assert (result.method, result.matvecs) == ("values", 0)
    assert (result.value, result.lambda_min) == pytest.approx((expected.value, expected.lambda_min), rel=1e-12)
    assert (result.nullity, result.negative) == (expected.nullity, expected.negative) == (2, 1)
    assert torch.equal(result.eigenvalues, values.sort().values)
    torch.testing.assert_close(expected.eigenvalues, values.sort().values, rtol=0, atol=1e-14)
    for wrong in (torch.eye(3), torch.tensor([1.0, math.nan]), torch.ones(0), torch.tensor([1, 2])):
        with pytest.raises(ValueError, match=r"must be \(n,\), floating-point and finite; .*DenseOperator"):
            condition_number(wrong)


def test_exact_quantiles_are_those_of_the_magnitudes_and_zeros_are_not_divided_by():
    values = torch.tensor([-100.0, 50, 20, 10, -5, 4, 2, 1, 0, 0], dtype=torch.float64)
    found = dict(zip(SHARES, condition_number(values).quantiles, strict=True))
    assert found[0.9].value == 2.0  # nine of ten are at most 50
    assert found[0.5].value == 25.0
    assert math.isnan(found[0.1].value)
    assert found[0.1].converged is False
    assert found[0.5].error < 1e-11
    apart = dict(zip(SHARES, condition_number(values, null=torch.eye(10)[:, 8:]).quantiles, strict=True))
    assert (apart[0.5].value, apart[0.1].value) == (100 / 5, 100.0)  # of eight, the two zeros are known


def test_the_zeros_that_a_gram_matrix_does_not_list_count_among_the_magnitudes():
    spectrum = GramSpectrum(
        values=torch.tensor([8.0, 2.0, 1.0], dtype=torch.float64), samples=1, outputs=3, parameters=6, mode="eval",
        floor=8e-14,
    )  # fmt: skip
    found = dict(zip(SHARES, condition_number(spectrum).quantiles, strict=True))
    assert found[0.9].value == 1.0
    assert math.isnan(found[0.5].value)  # the third of six is zero


def test_beside_the_bound_stand_quantiles_whose_errors_cover_the_exact_ones():
    values = torch.logspace(0, -5, 400, dtype=torch.float64)
    values[::5] *= -1
    answered = covered = informative = 0
    for seed in range(5):
        operator = matrix(values, seed)
        exact = condition_number(operator, method="dense")
        bound = condition_number(operator, method="lanczos", steps=100, generator=torch.Generator().manual_seed(seed))
        assert bound.matvecs == 100 + 4 * 80
        for found, true in zip(bound.quantiles, exact.quantiles, strict=True):
            assert (found.converged is False) == math.isnan(found.value)
            answered += found.converged is True
            covered += found.converged is True and abs(found.value - true.value) <= found.error
            informative += found.converged is True and found.error < found.value
    assert informative >= 8, "of 25: the smallest are below the resolution"
    assert covered >= 0.8 * answered


def test_quantiles_leave_out_the_directions_given_as_null():
    operator = matrix(torch.cat([torch.linspace(1, 2, 60), torch.zeros(240)]))
    values, vectors = torch.linalg.eigh(operator.dense())
    null = vectors[:, values.abs() < 1e-10]
    blind = condition_number(operator, method="lanczos", steps=60, probes=8)
    told = condition_number(operator, method="lanczos", steps=60, probes=8, null=null)
    assert math.isnan(blind.quantiles[SHARES.index(0.5)].value), "four of five are zero"
    half = told.quantiles[SHARES.index(0.5)]
    assert half.value == pytest.approx(2 / 1.5, abs=half.error)
    assert half.error < 0.5


def test_null_directions_may_come_sparse_as_they_are_found():
    operator = matrix(torch.cat([torch.logspace(0, -2, 60), torch.zeros(40)]))
    values, vectors = torch.linalg.eigh(operator.dense())
    null = vectors[:, values.abs() < 1e-10]
    space = NullSpace(null.to_sparse(), tuple("abcd" * 10), tuple("abcd" * 10))
    dense, sparse = (condition_number(operator, method="lanczos", steps=60, null=n, probes=0) for n in (null, space))
    assert sparse.nullity == 40
    assert sparse.lower == pytest.approx(dense.lower, rel=1e-6)
    assert sparse.lower == pytest.approx(100, rel=1e-3)


def perturbed(values: Tensor, size: float) -> DenseOperator:
    n = len(values)
    noise = torch.randn(n, n, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return DenseOperator(matrix(values).dense() + size * (noise + noise.T) / (2 * n) ** 0.5)


def test_started_from_earlier_vectors_few_steps_follow_a_matrix_that_changes():
    values = torch.cat([torch.tensor([1.05]), torch.linspace(0.02, 1, 399)]).double()
    before = condition_number(matrix(values), method="lanczos", probes=0)
    assert before.vectors.shape == (400, 2)
    now = perturbed(values, 1e-3)
    true = condition_number(now, method="dense").lambda_max
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    cold, warm = (
        condition_number(now, method="lanczos", steps=8, probes=0, start=start, generator=g)
        for start, g in zip((None, before.vectors), generators, strict=True)
    )
    assert true - warm.lambda_max < 0.1 * (true - cold.lambda_max)
    assert true - warm.lambda_max < 1e-3 * true


def test_a_warm_start_is_not_trapped_by_the_old_direction():
    # The old top vector is an exact eigenvector still, and another eigenvalue has overtaken it.
    values = torch.linspace(0, 1, 300, dtype=torch.float64)
    values[10] = 1.5
    old = torch.eye(300, dtype=torch.float64)[-1]
    found = condition_number(DenseOperator(torch.diag(values)), method="lanczos", steps=15, probes=0, start=old)
    assert found.lambda_max == pytest.approx(1.5, rel=1e-3)


@pytest.mark.parametrize("start", [torch.ones(4), torch.zeros(3), torch.ones(3, 1, 1), torch.full((3,), math.nan)])
def test_a_start_that_does_not_fit_is_refused(start):
    with pytest.raises(ValueError, match=r"start must be finite, not zero, of shape \(3,\)"):
        condition_number(matrix(torch.ones(3)), method="lanczos", start=start)


@pytest.mark.parametrize(("steps", "null"), [(0, None), (5, torch.eye(3))])
def test_lanczos_without_a_step_or_a_row_to_take_is_refused(steps, null):
    with pytest.raises(ValueError, match="needs a step and a row that is not null"):
        condition_number(matrix(torch.ones(3)), method="lanczos", steps=steps, null=null)
