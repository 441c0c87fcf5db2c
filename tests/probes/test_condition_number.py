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
from support.curvature import dense_jacobian

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
