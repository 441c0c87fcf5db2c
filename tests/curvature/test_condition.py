from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from normlens.curvature.condition import TOLERANCES, condition_number
from normlens.curvature.gram import GramSpectrum
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
    bound = condition_number(operator, method="lanczos", steps=60, generator=torch.Generator().manual_seed(seed))
    assert math.isnan(bound.value)
    assert not bound.converged
    assert 1 <= bound.lower <= exact.value * (1 + 1e-9)
    assert bound.lambda_max <= exact.lambda_max * (1 + 1e-12)
    assert bound.matvecs <= 60
    for lower, true in zip(bound.curve, exact.curve, strict=True):
        assert math.isnan(lower) or lower <= true * (1 + 1e-9)


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
