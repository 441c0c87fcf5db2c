from __future__ import annotations

import pytest
import torch
from torch import nn

from normlens.curvature.fisher import empirical_fisher, fisher
from normlens.curvature.gauss_newton import gauss_newton
from normlens.risk import EmpiricalRisk
from support.curvature import dense_jacobian, relative_error
from support.networks import batch, conv_batch_norm, mlp

cross_entropy = nn.functional.cross_entropy


def risk_of(model: nn.Module, n: int = 12) -> EmpiricalRisk:
    x, y = batch(n)
    return EmpiricalRisk(model.double(), cross_entropy, (x.double(), y))


def test_the_exact_fisher_is_the_gauss_newton_matrix_of_the_cross_entropy():
    for build in (mlp, conv_batch_norm):
        risk = risk_of(build())
        assert relative_error(fisher(risk).dense(), gauss_newton(risk).dense()) <= 1e-12


def test_the_empirical_fisher_is_the_mean_of_outer_products_of_the_samples_gradients():
    model = mlp()
    risk = risk_of(model)
    gradients = []
    for x, y in zip(*next(risk.batches()), strict=True):
        one = EmpiricalRisk(model, cross_entropy, (x[None], y[None])).gradient()
        gradients.append(torch.cat([g.reshape(-1) for g in one.values()]))
    stacked = torch.stack(gradients)
    assert relative_error(empirical_fisher(risk).dense(), stacked.T @ stacked / len(stacked)) <= 1e-12


@pytest.mark.slow
def test_with_the_models_own_labels_the_monte_carlo_fisher_converges_at_the_monte_carlo_rate():
    risk = risk_of(mlp())
    exact = fisher(risk).dense()
    errors = []
    for samples in (25, 400):
        generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
        drawn = [fisher(risk, "mc", samples=samples, generator=generator).dense() for generator in generators]
        errors.append(sum(relative_error(one, exact) for one in drawn) / 3)
    assert 2.5 <= errors[0] / errors[1] <= 6.5  # sqrt(16) = 4
    assert errors[1] < 0.1


def test_labels_are_drawn_once_for_all_products_and_leave_the_global_state_alone():
    risk = risk_of(mlp())
    before = torch.get_rng_state()
    operator = fisher(risk, "mc")
    v = torch.ones(operator.shape[0], dtype=torch.float64)
    assert torch.equal(operator @ v, operator @ v)
    assert torch.equal(torch.get_rng_state(), before)


def two_units(a: tuple[float, float], w: list[list[float]]) -> nn.Module:
    """f = sum_i a_i tanh(w_i' x), the scalar model of theory section 2.1."""

    class TwoUnits(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor(w, dtype=torch.float64))
            self.a = nn.Parameter(torch.tensor(a, dtype=torch.float64))

        def forward(self, x):
            return (torch.tanh(x @ self.w.T) @ self.a)[:, None]

    return TwoUnits()


@pytest.mark.parametrize(
    ("a", "w", "nullity"),
    [
        ((0.0, 0.7), [[0.3, -0.2, 0.5], [0.1, 0.9, -0.4]], 3),  # outgoing elimination: d
        ((0.5, 0.7), [[0.0, 0.0, 0.0], [0.1, 0.9, -0.4]], 1),  # incoming elimination
        ((0.5, 0.7), [[0.1, 0.9, -0.4], [0.1, 0.9, -0.4]], 4),  # overlap: d + 1
        ((0.5, 0.7), [[0.3, -0.2, 0.5], [0.1, 0.9, -0.4]], 0),
    ],
)
def test_the_nullities_of_elimination_and_overlap_are_those_of_the_theory(a, w, nullity):
    """P6 for d = 3: the Jacobian's Gram matrix is the Fisher matrix of a Gaussian model."""
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = two_units(a, w)
    risk = EmpiricalRisk(model, lambda f, y: 0.5 * (f - y).square().mean(), (x, torch.zeros(40, 1).double()))
    values = torch.linalg.eigvalsh(gauss_newton(risk).dense())
    assert int((values < 1e-12 * values.max()).sum()) == nullity
    jacobian = dense_jacobian(model, x)
    assert relative_error(gauss_newton(risk).dense(), jacobian.T @ jacobian / 40) <= 1e-12


def test_a_dead_rectifier_costs_inputs_plus_bias_plus_outputs():
    """P6: nullity d_in + 1 + d_out of a unit that is off on all data."""
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1)).double()
    with torch.no_grad():
        model[0].weight[0], model[0].bias[0] = 0.1, -100.0
        model[0].weight[1] = torch.tensor([0.3, -0.2, 0.5])
        model[0].bias[1] = 5.0
        model[2].weight.fill_(0.5)
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    risk = EmpiricalRisk(model, lambda f, y: 0.5 * (f - y).square().mean(), (x, torch.zeros(40, 1).double()))
    null = ~(gauss_newton(risk).dense().abs() > 0).any(0)
    assert int(null.sum()) == 3 + 1 + 1


def test_another_kind_and_outputs_without_classes_are_refused():
    with pytest.raises(ValueError, match="kind must be 'exact' or 'mc'; got 'empirical'"):
        fisher(risk_of(mlp()), "empirical")
    x, _ = batch(8)
    with pytest.raises(ValueError, match="needs logits of shape"):
        fisher(EmpiricalRisk(nn.Linear(12, 1), lambda o, y: o.mean(), (x, x)))
