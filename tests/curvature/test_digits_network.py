"""The network of n = 2506 parameters on the digits: matrix-free answers against its dense float64 Hessian."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from normlens.curvature import DenseOperator, condition_number, eigsh, hessian, spectral_density, trace
from normlens.data import digits
from normlens.risk import EmpiricalRisk


@pytest.fixture(scope="module")
def dense() -> torch.Tensor:
    """The eval-mode Hessian of 64-24-24-10 with batch norm and tanh after 60 full-batch Adam steps."""
    images, labels = digits().train
    x = images.flatten(1).double()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hidden = [layer for i in (64, 24) for layer in (nn.Linear(i, 24), nn.BatchNorm1d(24), nn.Tanh())]
        model = nn.Sequential(*hidden, nn.Linear(24, 10)).double()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for _ in range(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), labels).backward()
            optimizer.step()
    risk = EmpiricalRisk(model, nn.functional.cross_entropy, (x[:400], labels[:400]), mode="eval")
    return hessian(risk, check=False).dense()


@pytest.mark.slow
def test_the_trace_is_known_to_one_percent_and_its_error_is_honest(dense):
    truth, operator = float(torch.trace(dense)), DenseOperator(dense)
    estimates = [trace(operator, matvecs=100, generator=torch.Generator().manual_seed(seed)) for seed in range(100)]
    errors = [abs(estimate.value - truth) for estimate in estimates]
    rms = (sum(error**2 for error in errors) / 100) ** 0.5
    covered = sum(error <= 1.96 * estimate.error for error, estimate in zip(errors, estimates, strict=True))
    assert all(estimate.cost <= 100 for estimate in estimates)
    assert rms <= 0.01 * truth
    assert 90 <= covered <= 100  # 99 is the upper end; the error is allowed to be conservative


@pytest.mark.slow
def test_eigenpairs_condition_number_and_density_agree_with_the_dense_spectrum(dense):
    values, operator = torch.linalg.eigvalsh(dense), DenseOperator(dense)
    top = eigsh(operator, 5, tol=1e-8)
    assert torch.allclose(top.values, values.flip(0)[:5], rtol=1e-7)
    exact = condition_number(operator)
    size = values.abs()
    assert exact.value == pytest.approx(float(size.max() / size[size > 1e-6 * size.max()].min()), rel=1e-6)
    assert exact.negative == int((values < -1e-6 * size.max()).sum())
    bound = condition_number(operator, method="lanczos")
    assert 1 < bound.lower <= exact.value
    density = spectral_density(operator)
    edge = 0.05 * float(values.max())
    share = density.fraction(edge, 2 * float(values.max()))
    assert abs(share.value - float((values > edge).double().mean())) <= 3 * share.error
