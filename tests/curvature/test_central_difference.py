from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from normlens.curvature.central_difference import CentralDifference
from normlens.curvature.hessian import hessian
from normlens.curvature.layout import ParameterLayout
from normlens.risk import EmpiricalRisk
from support.curvature import dense_hessian, relative_error, vector
from support.networks import NETWORKS, batch

cross_entropy = nn.functional.cross_entropy


def smooth(norm: bool = True) -> nn.Module:
    middle = [nn.BatchNorm1d(16)] if norm else []
    return nn.Sequential(nn.Linear(12, 16), *middle, nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3))


def pieces(model: nn.Module, dtype: torch.dtype, n: int = 32):
    x, y = batch(n)
    one = (x.to(dtype), y)
    risk = EmpiricalRisk(model.to(dtype), cross_entropy, one)
    return risk, ParameterLayout(risk), one


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 3e-3), (torch.float64, 1e-9)])
@pytest.mark.parametrize("norm", [True, False])
def test_on_a_smooth_network_it_is_the_dense_hessian_to_what_it_says(norm, dtype, limit):
    model = smooth(norm)
    product = CentralDifference(*pieces(model, dtype))
    x, y = batch()
    exact = dense_hessian(copy.deepcopy(model).double(), cross_entropy, x.double(), y)
    largest = 0.0
    for seed in range(6):
        v = vector(len(exact), seed)
        largest = max(largest, float((exact @ v).norm() / v.norm()))
        wrong = float((product(v.to(dtype)).double() - exact @ v).norm() / v.norm())
        assert wrong <= product.error * largest
    assert product.error <= limit
    assert not product.kinked


def test_on_a_quadratic_loss_it_is_exact_to_rounding():
    x, y = batch(20)[0].double(), torch.zeros(20, 1, dtype=torch.float64)
    model = nn.Linear(12, 1).double()
    risk = EmpiricalRisk(model, lambda a, y: 0.5 * (a - y).square().mean(), (x, y))
    extended = torch.cat([x, torch.ones(20, 1, dtype=torch.float64)], 1)
    product, v = CentralDifference(risk, ParameterLayout(risk), (x, y)), vector(13)
    assert relative_error(product(v), extended.T @ (extended @ v) / 20) <= 1e-12


def test_the_zero_vector_has_the_zero_product_and_the_length_of_a_vector_does_not_matter():
    product = CentralDifference(*pieces(smooth(), torch.float64))
    v = vector(product.layout.n)
    assert not product(0 * v).any()
    assert relative_error(product(1e8 * v), 1e8 * product(v)) <= 1e-14


@pytest.mark.parametrize("network", ["mlp", "conv_batch_norm", "dropout"])
def test_a_rectifier_network_is_refused_in_float32_with_the_reason(network):
    with pytest.raises(ValueError, match=r"without jumps in float32; along a line it\s+changes .* times as much"):
        CentralDifference(*pieces(NETWORKS[network](), torch.float32))


@pytest.mark.parametrize("network", ["mlp", "conv_batch_norm"])
def test_in_float64_a_rectifier_network_s_product_passes_between_the_kinks(network):
    model = NETWORKS[network]()
    product = CentralDifference(*pieces(model, torch.float64))
    x, y = batch()
    exact = dense_hessian(model, cross_entropy, x.double(), y)
    assert product.kinked
    for seed in range(4):
        v = vector(len(exact), seed)
        assert relative_error(product(v), exact @ v) <= 1e-4


def test_max_pooling_has_kinks_too_and_a_smooth_gate_has_none():
    def network(pool: nn.Module) -> nn.Module:
        return nn.Sequential(nn.Linear(12, 16), nn.Unflatten(1, (1, 16)), pool, nn.Flatten(), nn.LazyLinear(3))

    x, _ = batch()
    for pool, kinked in ((nn.MaxPool1d(2), True), (nn.AvgPool1d(2), False), (nn.GELU(), False)):
        model = network(pool)
        model(x)
        assert CentralDifference(*pieces(model, torch.float64)).kinked is kinked


def test_where_two_steps_do_not_agree_it_is_refused():
    risk = EmpiricalRisk(smooth().to(torch.bfloat16), cross_entropy, (batch()[0].to(torch.bfloat16), batch()[1]))
    with pytest.raises(ValueError, match=r"(at two steps must agree to 10%; .* they differ by|without jumps)"):
        CentralDifference(risk, ParameterLayout(risk), next(risk.batches()))


def test_the_operator_carries_the_error_and_its_check_says_that_the_products_are_differences():
    risk = pieces(smooth(), torch.float32)[0]
    operator = hessian(risk, product=CentralDifference)
    assert operator.check.passed
    assert operator.check.difference == operator.error
    assert 1e-7 < operator.error < 3e-3
    assert "differences of gradients, known to" in operator.check.message
    assert hessian(risk, check=False).error == 0


def test_extrapolation_takes_the_error_of_a_cubic_gradient_away():
    """The gradient of t^4 is 4 t^3; a difference at h has the error 4 h^2, the extrapolated one none."""
    model = nn.Linear(3, 1, bias=False).double()
    one = (torch.eye(3, dtype=torch.float64), torch.zeros(3, 1, dtype=torch.float64))
    risk = EmpiricalRisk(model, lambda a, y: a.pow(4).sum(), one)
    product, v = CentralDifference(risk, ParameterLayout(risk), one), vector(3)
    product.step = 0.1
    assert relative_error(product(v), 12 * model.weight.detach().flatten() ** 2 * v) <= 1e-12
