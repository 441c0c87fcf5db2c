"""The condition number of the Gauss-Newton matrix against the dense J'SJ in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from normlens.probes.condition_number import ConditionNumber
from normlens.risk import EmpiricalRisk
from normlens.run.measure import Activations
from normlens.run.probe import Previous, Step
from normlens.run.reading import Reading
from support.curvature import dense_hessian, dense_jacobian

EPS = float(np.finfo(float).eps)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network() -> nn.Module:
    layers = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double()
    for seed, p in enumerate(layers.parameters()):
        nn.init.normal_(p, generator=torch.Generator().manual_seed(seed))
    return layers


X, Y = normal(30, 4, seed=7), torch.arange(30) % 3


def read(probe: ConditionNumber, model: nn.Module) -> dict[str, Reading]:
    risk = EmpiricalRisk(model, functional.cross_entropy, (X, Y))
    step = Step(3, risk, Activations(risk), Previous(), None, torch.Generator())
    return {reading.name: reading for reading in probe(step)}


def dense_spectrum(model: nn.Module, samples: int) -> np.ndarray:
    """Eigenvalues of J'SJ, S = (diag p - pp')/N of the cross-entropy, ascending; tiny negative ones are rounding."""
    x = X[:samples]
    jacobian, p = dense_jacobian(model, x), model(x).detach().softmax(1)
    blocks = (torch.diag_embed(p) - p[:, :, None] * p[:, None, :]) / len(x)
    return torch.linalg.eigvalsh(jacobian.T @ torch.block_diag(*blocks) @ jacobian).numpy()


# 10 samples make fewer rows than the 53 parameters, 30 make more: zeros are missing in the one, too many in the other.
@pytest.mark.parametrize("samples", [10, 30])
@pytest.mark.parametrize("training", [True, False])
def test_it_is_that_of_the_dense_gauss_newton_matrix(training, samples):
    model = network().train(training)
    values = dense_spectrum(model, samples)
    top, smallest = values[-1], values[values > 1e-6 * values[-1]].min()
    found = read(ConditionNumber(samples), model)
    rounding = 100 * len(values) * EPS  # of an eigenvalue, relative to the largest
    assert found["lambda_max"].value == pytest.approx(top, rel=rounding)
    assert 0 < found["lambda_max"].error <= rounding * top
    assert found["lambda_min_nonzero"].value == pytest.approx(smallest, rel=0, abs=rounding * top)
    assert found["kappa"].value == pytest.approx(top / smallest, rel=rounding * top / smallest)
    assert found["nullity"].value == (values <= 1e-6 * top).sum()
    assert found["nullity"].value > 0, "the bias before batch norm, and a shift of all logits"
    assert {found[name].n for name in ("kappa", "lambda_max", "nullity", "curve")} == {samples}


def test_the_curve_is_the_condition_number_at_every_tolerance():
    model = network()
    values = dense_spectrum(model, 30)
    found = read(ConditionNumber(), model)
    grid, curve = found["tolerance_grid"].array, found["curve"].array
    assert curve.shape == grid.shape
    assert found["tolerance_grid"].dims == found["curve"].dims == ("tolerance_grid",)
    known = grid >= 1e-10  # the dense matrix has zeros to within 1e-14 of its largest eigenvalue
    expected = [values[-1] / values[values > t * values[-1]].min() for t in grid[known]]
    np.testing.assert_allclose(curve[known], expected, rtol=1e-3)


def test_its_tolerance_is_the_one_asked_for_and_a_larger_one_makes_it_smaller():
    fine, coarse = (read(ConditionNumber(tolerance=t), network()) for t in (1e-8, 1e-2))
    assert (fine["tolerance"].value, coarse["tolerance"].value) == (1e-8, 1e-2)
    assert coarse["kappa"].value < 100 < fine["kappa"].value
    assert coarse["nullity"].value > fine["nullity"].value


def test_a_tolerance_below_what_float32_can_tell_from_zero_is_refused():
    model = network().float()
    risk = EmpiricalRisk(model, functional.cross_entropy, (X.float(), Y))
    step = Step(3, risk, Activations(risk), Previous(), None, torch.Generator())
    with pytest.raises(ValueError, match=r"tolerance of 1e-14 is below the precision floor .*measure in float64"):
        list(ConditionNumber(tolerance=1e-14)(step))
    with pytest.raises(ValueError, match="the tolerance must lie between 0 and 1; got 0"):
        list(ConditionNumber(tolerance=0.0)(step))


def measured(probe: ConditionNumber, model: nn.Module, previous: Previous | None = None) -> list[Reading]:
    risk = EmpiricalRisk(model, functional.cross_entropy, (X, Y))
    return list(probe(Step(3, risk, Activations(risk), previous or Previous(), None, torch.Generator())))


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes a network of 53 parameters for one too large to be formed."""
    for place in ("normlens.curvature.condition", "normlens.probes.condition_number"):
        monkeypatch.setattr(f"{place}.DENSE_ROWS", 20)


def statistics(matrix: Tensor, tolerance: float = 1e-6) -> tuple[float, int, int]:
    values = torch.linalg.eigvalsh(matrix)
    size = values.abs()
    above = size > tolerance * size.max()
    return float(size.max() / size[above].min()), int((~above).sum()), int((values < -tolerance * size.max()).sum())


def test_of_the_hessian_it_is_that_of_the_dense_one_with_its_negative_eigenvalues():
    model = network()
    value, nullity, negative = statistics(dense_hessian(model, functional.cross_entropy, X, Y))
    found = read(ConditionNumber(matrix="hessian"), model)
    assert found["kappa"].value == pytest.approx(value, rel=1e-8)
    assert (found["nullity"].value, found["negative"].value) == (nullity, negative)
    assert negative > 0
    assert "kappa_lower" not in found


def test_of_a_block_it_is_that_of_the_parameters_that_the_glob_selects():
    model = network()
    block = dense_hessian(model, functional.cross_entropy, X, Y)[35:, 35:]
    found = read(ConditionNumber(matrix="hessian", params="3.*"), model)
    assert found["kappa"].value == pytest.approx(statistics(block)[0], rel=1e-8)
    jacobian, p = dense_jacobian(model, X), model(X).detach().softmax(1)
    s = torch.block_diag(*(torch.diag_embed(p) - p[:, :, None] * p[:, None, :])) / len(X)
    expected = statistics((jacobian.T @ s @ jacobian)[35:, 35:])[0]
    for matrix in ("gauss_newton", "fisher"):
        block = read(ConditionNumber(matrix=matrix, params="3.*"), model)
        assert block["kappa"].value == pytest.approx(expected, rel=1e-8)
        assert "negative" not in block


def test_the_fisher_matrix_of_cross_entropy_is_the_gauss_newton_matrix():
    of_gram, dense = (read(ConditionNumber(matrix=m), network())["kappa"].value for m in ("gauss_newton", "fisher"))
    assert dense == pytest.approx(of_gram, rel=1e-6)


@pytest.mark.usefixtures("small_limit")
def test_where_only_a_bound_can_be_had_there_is_no_kappa_and_the_bound_is_one():
    model = network()
    value, _, _ = statistics(dense_hessian(model, functional.cross_entropy, X, Y))
    found = read(ConditionNumber(matrix="hessian", steps=20), model)
    assert "kappa" not in found
    assert "lambda_min_nonzero" not in found
    assert 1 < found["kappa_lower"].value <= value * (1 + 1e-9)
    assert found["nullity"].value == 5 + 6, "biases before batch norm, and shifts of all logits"
    assert found["matvecs"].value == 20 + 4 * 20
    quantiles, errors = found["kappa_quantile"].array, found["kappa_quantile_error"].array
    assert quantiles.shape == errors.shape == found["share_grid"].array.shape
    np.testing.assert_array_equal(np.isnan(quantiles), np.isnan(errors))
    assert "kappa_quantile" not in read(ConditionNumber(matrix="hessian", steps=20, probes=0), model)


@pytest.mark.usefixtures("small_limit")
def test_vectors_are_handed_on_but_not_stored_and_make_the_next_measurement_better():
    probe, model = ConditionNumber(matrix="hessian", steps=40, probes=0), network()
    first = measured(probe, model)
    (vectors,) = [r for r in first if r.name == "vectors"]
    assert not vectors.stored
    assert all(r.stored for r in first if r is not vectors)
    previous = Previous(last={("", "vectors"): vectors})
    top = torch.linalg.eigvalsh(dense_hessian(model, functional.cross_entropy, X, Y)).abs().max()
    few = ConditionNumber(matrix="hessian", steps=3, probes=0)
    cold, warm = ({r.name: r for r in measured(few, model, p)}["lambda_max"].value for p in (Previous(), previous))
    assert top - warm < 0.25 * (top - cold)
    other = Previous(last={("", "vectors"): Reading("vectors", np.ones((7, 1)), dims=("parameter", "index"))})
    assert {r.name: r for r in measured(few, model, other)}["lambda_max"].value == cold, "of another matrix"


def test_a_matrix_or_a_glob_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="must be one of gauss_newton, hessian, fisher; got 'inverse'"):
        ConditionNumber(matrix="inverse")
    with pytest.raises(ValueError, match=r"'head\.\*' selects none of"):
        read(ConditionNumber(params="head.*"), network())


def test_its_cost_is_that_of_its_products():
    risk = EmpiricalRisk(network(), functional.cross_entropy, (X, Y))
    step = Step(3, risk, Activations(risk), Previous(), None, torch.Generator())
    assert ConditionNumber(matrix="hessian").cost(step) == 3 * 53
    assert ConditionNumber(matrix="hessian", params="3.*").cost(step) == 3 * 18
