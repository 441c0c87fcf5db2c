"""The sharpness against the dense Hessian, and the thresholds against torch's optimizers on quadratics."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from normlens.probes.edge_of_stability import EdgeOfStability, stability_threshold
from normlens.risk import EmpiricalRisk
from normlens.run.measure import Activations
from normlens.run.probe import Previous, Step
from normlens.run.reading import Reading
from support.curvature import dense_hessian


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network() -> nn.Module:
    layers = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double()
    for seed, p in enumerate(layers.parameters()):
        nn.init.normal_(p, generator=torch.Generator().manual_seed(seed))
    return layers


X, Y = normal(20, 4, seed=7), torch.arange(20) % 3
ROUNDING = 53 * torch.finfo(torch.float64).eps  # of the dense eigenvalues, relative to the largest


def read(probe: EdgeOfStability, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> dict[str, Reading]:
    risk = EmpiricalRisk(model, functional.cross_entropy, (X, Y))
    step = Step(3, risk, Activations(risk), Previous(), optimizer, torch.Generator().manual_seed(1))
    return {reading.name: reading for reading in probe(step)}


def sgd(point: Tensor, **settings: float) -> torch.optim.SGD:
    return torch.optim.SGD([point], **settings)


def shrinks(optimizer: torch.optim.Optimizer, point: Tensor, curvature: Tensor, steps: int = 2000) -> bool:
    """Run the optimizer on curvature x^2 / 2 from its present state; tell whether the last steps are the smaller."""
    sizes, start = [], float(point.detach().norm())
    for _ in range(steps):
        point.grad = curvature * point.detach()
        optimizer.step()
        sizes.append(float(point.detach().norm()))
        if sizes[-1] > 1e6 * start:
            return False
    return max(sizes[-100:]) < 1e-3 * max(sizes[:100])


SGD_SETTINGS = [
    ({"momentum": 0.0}, 2.0),
    ({"momentum": 0.9}, 3.8),
    ({"momentum": 0.9, "nesterov": True}, 3.8 / 2.8),
    ({"momentum": 0.5}, 3.0),
]


@pytest.mark.parametrize(("settings", "of_rate"), SGD_SETTINGS)
def test_sgd_shrinks_below_the_threshold_and_grows_above(settings, of_rate):
    rate = 0.05
    threshold = stability_threshold(sgd(torch.zeros(1), lr=rate, **settings))
    assert threshold == pytest.approx(of_rate / rate, rel=1e-14)
    for factor in (0.99, 1.01):
        point = torch.ones(1, dtype=torch.float64, requires_grad=True)
        curvature = torch.tensor([factor * threshold], dtype=torch.float64)
        assert shrinks(sgd(point, lr=rate, **settings), point, curvature) == (factor < 1)


@pytest.mark.parametrize(("rate_times_sharpness", "stable"), [(1.9, True), (2.1, False)])
def test_gradient_descent_converges_at_1_9_and_diverges_at_2_1(rate_times_sharpness, stable):
    point = torch.tensor([1.0, 1.0], dtype=torch.float64, requires_grad=True)
    curvature = torch.tensor([10.0, 1.0], dtype=torch.float64)
    optimizer = sgd(point, lr=rate_times_sharpness / 10)
    assert (stability_threshold(optimizer) > 10) == stable
    assert shrinks(optimizer, point, curvature) == stable


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize("factor", [0.99, 1.01])
def test_adam_with_a_frozen_preconditioner_has_its_edge_at_38_over_the_rate(kind, factor):
    """beta2 -> 1 after so many steps that the bias corrections are one freezes v, as in the theorem's linearization."""
    curvature, second = torch.tensor([30.0, 2.0], dtype=torch.float64), torch.tensor([9.0, 0.25], dtype=torch.float64)
    sharpness = float((curvature / second.sqrt()).max())
    point = torch.full((2,), 1e-3, dtype=torch.float64, requires_grad=True)
    optimizer = kind([point], lr=factor * 38 / sharpness, betas=(0.9, 1 - 1e-13), eps=0.0, weight_decay=0.0)
    optimizer.state[point] = {"step": torch.tensor(1e16), "exp_avg": torch.zeros(2).double(), "exp_avg_sq": second}
    assert stability_threshold(optimizer) == pytest.approx(38 / optimizer.param_groups[0]["lr"], rel=1e-12)
    assert (sharpness < stability_threshold(optimizer)) == (factor < 1)
    assert shrinks(optimizer, point, curvature) == (factor < 1)


@pytest.mark.parametrize("tol", [1e-3, 1e-8])
@pytest.mark.parametrize("training", [True, False])
def test_the_sharpness_is_the_dense_one_and_the_ratio_its_quotient_with_the_threshold(training, tol):
    model = network().train(training)
    exact = float(torch.linalg.eigvalsh(dense_hessian(model, functional.cross_entropy, X, Y))[-1])
    found = read(EdgeOfStability(tol=tol), model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    sharpness, ratio = found["sharpness"], found["ratio"]
    assert sharpness.value == pytest.approx(exact, abs=sharpness.error + ROUNDING * exact, rel=0)
    assert 0 < sharpness.error <= 1.001 * tol * exact
    assert found["threshold"].value == pytest.approx(38, rel=1e-14)
    assert ratio.value == pytest.approx(exact / 38, abs=ratio.error + ROUNDING * exact / 38, rel=0)
    assert 0 < ratio.error <= 1.001 * tol * exact / 38
    assert found["sharpness"].n == found["ratio"].n == len(X)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_adam_s_sharpness_is_that_of_the_hessian_between_roots_of_what_it_divides_by(kind, amsgrad):
    """Without momentum a step is lr g / P: P is read off the parameters before and after it."""
    model = network()
    optimizer = kind(model.parameters(), lr=0.03, betas=(0.0, 0.5), eps=1e-3, weight_decay=0.0, amsgrad=amsgrad)
    for scale in (3.0, 1.0, 0.1):  # gradients that shrink: the maximum that amsgrad keeps is not the last one
        optimizer.zero_grad()
        (scale * functional.cross_entropy(model(X), Y)).backward()
        before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        optimizer.step()
    moved = before - nn.utils.parameters_to_vector(model.parameters()).detach()
    dead = gradient.abs() < 1e-12  # the bias before batch norm: rounding over eps, and no curvature
    root = torch.where(dead, 0.0, 0.03 * gradient / moved).rsqrt().masked_fill(dead, 0.0)
    exact = float(
        torch.linalg.eigvalsh(root[:, None] * dense_hessian(model, functional.cross_entropy, X, Y) * root)[-1]
    )
    found = read(EdgeOfStability(tol=1e-7), model, optimizer)
    assert 0 < found["sharpness"].error <= 1.001e-7 * exact
    assert found["sharpness"].value == pytest.approx(exact, abs=found["sharpness"].error, rel=1e-9)
    assert found["threshold"].value == pytest.approx(2 / 0.03, rel=1e-14)


def test_without_an_optimizer_there_is_no_edge():
    with pytest.raises(ValueError, match="needs the optimizer: pass optimizer= to the lens"):
        read(EdgeOfStability(), network(), None)


def test_before_its_first_step_adam_has_no_preconditioner_and_only_the_threshold_is_known():
    model = network()
    found = read(EdgeOfStability(), model, torch.optim.Adam(model.parameters()))
    assert set(found) == {"threshold"}


def test_directions_in_which_adam_does_not_move_do_not_count():
    model = network()
    optimizer = torch.optim.Adam([model[0].weight], lr=0.03)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    optimizer.step()
    whole = read(EdgeOfStability(tol=1e-7), model, optimizer)["sharpness"].value
    frozen = network()
    frozen.load_state_dict(model.state_dict())
    for name, parameter in frozen.named_parameters():
        parameter.requires_grad_(name == "0.weight")
    own = torch.optim.Adam([frozen[0].weight], lr=0.03)
    own.state[frozen[0].weight] = optimizer.state[model[0].weight]
    assert whole == pytest.approx(read(EdgeOfStability(tol=1e-7), frozen, own)["sharpness"].value, rel=1e-6)


def test_a_hook_before_the_step_may_change_the_gradient_and_is_refused():
    optimizer = sgd(torch.zeros(1, requires_grad=True), lr=0.1)
    handle = optimizer.register_step_pre_hook(lambda *_: None)
    with pytest.raises(ValueError, match="has a hook before its step"):
        stability_threshold(optimizer)
    handle.remove()
    assert stability_threshold(optimizer) == pytest.approx(20)


def test_an_optimizer_whose_threshold_is_unknown_is_refused():
    with pytest.raises(ValueError, match="known for SGD, Adam and AdamW; got RMSprop"):
        stability_threshold(torch.optim.RMSprop([torch.zeros(1)]))


def test_dampening_is_refused():
    with pytest.raises(ValueError, match="without dampening"):
        stability_threshold(sgd(torch.zeros(1), lr=0.1, momentum=0.9, dampening=0.5))


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_a_learning_rate_of_zero_has_no_threshold(kind):
    with pytest.raises(ValueError, match="a learning rate above 0; got 0"):
        stability_threshold(kind([torch.zeros(1)], lr=0.0))


def test_parameter_groups_may_differ_in_weight_decay_but_not_in_learning_rate():
    groups = [{"params": [torch.zeros(1)], "weight_decay": 0.1}, {"params": [torch.zeros(2)]}]
    assert math.isclose(stability_threshold(torch.optim.SGD(groups, lr=0.1)), 20)
    groups[0]["lr"] = 0.2
    with pytest.raises(ValueError, match="one learning rate and momentum; the parameter groups differ"):
        stability_threshold(torch.optim.SGD(groups, lr=0.1))


def test_a_sharpness_that_has_not_converged_is_no_reading():
    model = network()
    with pytest.raises(RuntimeError, match=r"sharpness must converge; it has not in \d+ products: raise max_matvecs"):
        read(EdgeOfStability(max_matvecs=2), model, torch.optim.SGD(model.parameters(), lr=0.1))
