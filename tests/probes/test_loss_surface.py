"""The surface of the probe is the loss of a model that stands there, on the samples and in the directions it states."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from normlens.curvature.directions import filter_normalized
from normlens.curvature.surface import loss_plane
from normlens.probes.loss_surface import DIRECTIONS, STATISTICS, LossSurface
from normlens.risk import EmpiricalRisk
from normlens.run.measure import Activations
from normlens.run.probe import Previous, Step
from normlens.run.reading import Reading

EPS = torch.finfo(torch.float64).eps


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X, Y = normal(20, 4, seed=7), normal(20, 1, seed=8)


def network() -> nn.Module:
    layers = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 1)).double()
    for seed, p in enumerate(layers.parameters()):
        nn.init.normal_(p, generator=torch.Generator().manual_seed(seed))
    return layers


def step_of(model: nn.Module, update: dict[str, Tensor] | None = None) -> Step:
    risk = EmpiricalRisk(model, functional.mse_loss, (X, Y))
    generator = torch.Generator().manual_seed(1)
    return Step(3, risk, Activations(risk), Previous(), None, generator, update=update)


def read(probe: LossSurface, step: Step) -> dict[str, Reading]:
    return {reading.name: reading for reading in probe(step)}


def linear() -> tuple[nn.Module, Tensor]:
    """A model whose loss is a quadratic, and its Hessian 2 X'X / n."""
    model = nn.Linear(4, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(normal(1, 4, seed=3))
    return model, 2 * X.T @ X / 20


@pytest.mark.parametrize("training", [True, False])
def test_random_directions_are_two_filter_normalized_ones_of_the_step_s_generator(training):
    model = network().train(training)
    found = read(LossSurface(steps=3, reach=0.5, samples=12), step_of(model))
    risk = EmpiricalRisk(model, functional.mse_loss, (X[:12], Y[:12]))
    generator = torch.Generator().manual_seed(1)
    expected = loss_plane(risk, [filter_normalized(risk, generator) for _ in range(2)], steps=3, reach=0.5)
    np.testing.assert_array_equal(found["loss"].array, expected.loss)
    assert (found["loss"].dims, found["x"].dims, found["y"].dims) == (("x", "y"), ("x",), ("y",))
    np.testing.assert_array_equal(found["x"].array, [-0.5, 0, 0.5])
    assert found["loss"].n == found["center"].n == 12
    assert DIRECTIONS[int(found["directions"].value)] == "random"
    assert STATISTICS[int(found["statistics"].value)] == ("batch" if training else "running")


def test_the_center_is_the_loss_of_the_network_as_it_is():
    model = network()
    found = read(LossSurface(samples=20), step_of(model))
    assert found["center"].value == functional.mse_loss(model(X), Y).item()
    assert found["center"].value == found["loss"].array[5, 5]


def test_along_eigenvectors_a_quadratic_rises_by_half_their_curvatures():
    """With d of length 1: L(x, y) - L(0, 0) = g'd + (lambda_1 x^2 + lambda_2 y^2) / 2, and the slope is odd."""
    model, hessian = linear()
    found = read(LossSurface(directions="eigenvectors", steps=3, samples=20), step_of(model))
    exact = torch.linalg.eigvalsh(hessian).flip(0)[:2].numpy()
    loss, center = found["loss"].array, found["center"].value
    rises = [(loss[0, 1] + loss[2, 1]) / 2 - center, (loss[1, 0] + loss[1, 2]) / 2 - center]
    tolerance = (
        found["curvature"].error + 1e3 * EPS * exact[0]
    )  # an eigenvalue and a Rayleigh quotient lie within the residual
    np.testing.assert_allclose(found["curvature"].array, exact, atol=tolerance, rtol=0)
    np.testing.assert_allclose(rises, exact / 2, atol=tolerance, rtol=0)
    np.testing.assert_allclose(found["length"].array, 1, rtol=10 * EPS)
    assert DIRECTIONS[int(found["directions"].value)] == "eigenvectors"


def test_one_update_further_is_another_step_and_across_it_goes_what_is_left_of_the_negative_gradient():
    model, _ = linear()
    update = {"weight": 0.1 * normal(1, 4, seed=5)}
    found = read(LossSurface(directions="update", steps=3, samples=20), step_of(model, update))
    u, w = update["weight"], model.weight.detach()
    gradient = 2 * (X @ w.T - Y).T @ X / 20
    across = -(gradient - (gradient @ u.T) / (u @ u.T) * u)
    across *= u.norm() / across.norm()

    def loss(a: float, b: float) -> float:
        return float(((X @ (w + a * u + b * across).T - Y) ** 2).mean())

    exact = [[loss(a, b) for b in (-1, 0, 1)] for a in (-1, 0, 1)]
    np.testing.assert_allclose(found["loss"].array, exact, rtol=100 * EPS)
    np.testing.assert_allclose(found["length"].array, u.norm().item(), rtol=10 * EPS)


def test_the_last_step_is_kept_for_the_update_alone():
    assert LossSurface(directions="update").uses_update
    assert not LossSurface().uses_update


def test_the_prior_cost_is_a_third_of_a_gradient_for_each_point():
    step = step_of(network())
    assert LossSurface(steps=9).cost(step) == 27
    assert LossSurface(steps=9, directions="eigenvectors").cost(step) > 100


def test_settings_and_moments_that_make_no_plane_are_errors_that_say_what_to_do():
    with pytest.raises(ValueError, match="one of random, eigenvectors, update; got 'gradient'"):
        LossSurface(directions="gradient")  # type: ignore[arg-type]
    for steps in (1, 10):
        with pytest.raises(ValueError, match=f"steps must be odd and at least 3.*got {steps}"):
            LossSurface(steps=steps)
    with pytest.raises(ValueError, match="at least one trainable parameter; all of them are frozen"):
        read(LossSurface(), step_of(network().requires_grad_(False)))
    with pytest.raises(ValueError, match="needs the last optimizer step, which is not known here"):
        read(LossSurface(directions="update"), step_of(network()))


@pytest.mark.parametrize("factor", [0.0, -0.3])
def test_an_update_that_is_nothing_or_along_the_gradient_spans_no_plane(factor):
    model, _ = linear()
    gradient = EmpiricalRisk(model, functional.mse_loss, (X, Y)).gradient()["weight"]
    with pytest.raises(ValueError, match=r"must span a plane; got an update of length .* take directions='random'"):
        read(LossSurface(directions="update", samples=20), step_of(model, {"weight": factor * gradient}))
