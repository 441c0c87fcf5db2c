"""Identities of scale-invariant weights, and the equilibrium of spherical motion, against simulations and torch."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from normlens.probes.weight_dynamics import WeightDynamics, angle, equilibrium_angle
from normlens.risk import EmpiricalRisk
from normlens.run.measure import Activations
from normlens.run.probe import Previous, Step
from support.curvature import dense_hessian

EPS = torch.finfo(torch.float64).eps
TINY = 1e-300


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5, eps=TINY), nn.Tanh(), nn.Linear(5, 3)).double()
    for seed, p in enumerate(model.parameters()):
        nn.init.normal_(p, generator=torch.Generator().manual_seed(seed))
    return model


X, Y = normal(20, 6, seed=7), torch.arange(20) % 3


def read(model, optimizer, *, update=None, mode="eval", data=(X, Y), **settings):
    risk = EmpiricalRisk(model, functional.cross_entropy, data, mode=mode)
    step = Step(3, risk, Activations(risk), Previous(), optimizer, torch.Generator(), update=update)
    return {(reading.layer, reading.name): reading for reading in WeightDynamics(**settings)(step)}


def sgd(model, **settings):
    return torch.optim.SGD(model.parameters(), **({"lr": 0.1} | settings))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_certificate_is_zero_before_a_batch_norm_and_not_before_the_output(mode):
    """<w, grad L> = 0, whatever the mode, and a bias behind the weight does not spoil it."""
    model = network()
    found = read(model, sgd(model), mode=mode)
    assert found["0", "invariance"].value < 1e3 * EPS
    gradient = EmpiricalRisk(model, functional.cross_entropy, (X, Y), mode="train").gradient()["3.weight"]
    weight = model[3].weight.detach()
    expected = abs(float((weight * gradient).sum())) / float(weight.norm() * gradient.norm())
    assert expected > 0.01
    assert found["3", "invariance"].value == pytest.approx(expected, rel=1e-10)
    assert found["3", "effective_gradient"].value == pytest.approx(float(weight.norm() * gradient.norm()), rel=1e-10)
    assert found["0", "invariance"].n == 20


def test_the_effective_gradient_of_a_scale_invariant_weight_does_not_depend_on_its_length():
    """I1: grad L(c w) = grad L(w) / c."""
    model = network()
    before = read(model, sgd(model))
    with torch.no_grad():
        model[0].weight *= 7
        model[0].bias *= 7
    after = read(model, sgd(model))
    assert after["0", "effective_gradient"].value == pytest.approx(before["0", "effective_gradient"].value, rel=1e-10)
    assert after["0", "norm"].value == pytest.approx(7 * before["0", "norm"].value, rel=1e-14)
    assert after["0", "effective_rate"].value == pytest.approx(before["0", "effective_rate"].value / 49, rel=1e-13)


@pytest.mark.parametrize("factor", [1.0, 4.0])
def test_the_spherical_sharpness_is_that_of_the_dense_block_and_does_not_depend_on_the_length(factor):
    model = network()
    block = dense_hessian(copy.deepcopy(model).train(), functional.cross_entropy, X, Y)[:30, :30]
    expected = float(torch.linalg.eigvalsh(block)[-1] * model[0].weight.detach().square().sum())
    with torch.no_grad():
        model[0].weight *= factor
    found = read(model, sgd(model), sharpness=True)
    reading = found["0", "spherical_sharpness"]
    assert reading.value == pytest.approx(expected, abs=reading.error + 1e-10 * expected, rel=0)
    assert 0 < reading.error <= 0.02 * expected
    assert ("3", "spherical_sharpness") not in found, "the head is not scale-invariant"
    assert ("0", "spherical_sharpness") not in read(model, sgd(model)), "it costs, and is measured when asked for"


def test_the_effective_rate_is_that_of_each_group_and_other_parameters_are_left_out():
    model = network()
    optimizer = torch.optim.SGD([{"params": [model[0].weight], "lr": 0.5}, {"params": [model[3].bias], "lr": 2.0}])
    found = read(model, optimizer)
    norm = float(model[0].weight.detach().norm())
    assert found["0", "effective_rate"].value == pytest.approx(0.5 / norm**2, rel=1e-14)
    assert {layer for layer, _ in found} == {"0"}


@pytest.mark.parametrize("size", [2.0, 1.0, 1e-3, 1e-9])
def test_the_angle_keeps_its_digits_down_to_the_smallest(size):
    u = torch.tensor([1.0, 0.0], dtype=torch.float64)
    turned = 3 * torch.tensor([math.cos(size), math.sin(size)], dtype=torch.float64)
    assert angle(u, turned) == pytest.approx(size, rel=1e-6 if size < 1e-6 else 1e-12)
    assert angle(u, -u) == pytest.approx(math.pi)


def test_the_angle_is_that_of_the_last_step():
    model = network()
    optimizer = sgd(model, weight_decay=0.01)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    functional.cross_entropy(model(X), Y).backward()
    optimizer.step()
    update = {name: p.detach() - before[name] for name, p in model.named_parameters()}
    found = read(model, optimizer, update=update)
    for layer in ("0", "3"):
        old, new = before[f"{layer}.weight"], dict(model.named_parameters())[f"{layer}.weight"].detach()
        cosine = float((old * new).sum() / (old.norm() * new.norm()))
        assert found[layer, "angle"].value == pytest.approx(math.acos(cosine), rel=1e-7)
        assert found[layer, "angle"].units == "rad"
        assert found[layer, "angle_equilibrium"].value == math.acos(1 - 0.1 * 0.01)
    assert not [name for _, name in read(model, optimizer) if name.startswith("angle")]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_synthetic_spherical_motion_settles_at_the_equilibrium(momentum):
    """7.7: eta = 0.1, lambda = 0.005, |g| = sqrt(2) / |w| tangent to w: cos = 0.9995, or 0.02294 rad with momentum."""
    generator = torch.Generator().manual_seed(5)
    weight = nn.Parameter(math.sqrt(math.sqrt(200.0 if momentum else 20.0)) * normal(1000).div(normal(1000).norm()))
    optimizer = torch.optim.SGD([weight], lr=0.1, weight_decay=0.005, momentum=momentum)
    angles = []
    for _ in range(600):
        old = weight.detach().clone()
        noise = torch.randn(1000, generator=generator, dtype=torch.float64)
        tangent = noise - (noise @ old) / (old @ old) * old
        weight.grad = math.sqrt(2) / old.norm() * tangent / tangent.norm()
        optimizer.step()
        angles.append(angle(old, weight.detach()))
    expected = equilibrium_angle(optimizer, optimizer.param_groups[0])
    assert expected == pytest.approx(0.02294 if momentum else math.acos(0.9995), rel=1e-3)
    assert sum(angles[300:]) / 300 == pytest.approx(expected, rel=5e-3)


def test_the_equilibrium_is_only_said_where_it_is_known():
    model = nn.Linear(2, 2)
    for optimizer in (
        sgd(model), sgd(model, weight_decay=0.1, momentum=0.9, nesterov=True),
        sgd(model, weight_decay=0.1, momentum=0.9, dampening=0.5), torch.optim.AdamW(model.parameters()),
    ):  # fmt: skip
        assert equilibrium_angle(optimizer, optimizer.param_groups[0]) is None


def test_sgd_leaves_the_orthogonal_energy_and_weight_decay_shrinks_it():
    """I3: W P_perp is (1 - eta lambda)^t of what it was."""
    data = (X @ normal(6, 3, seed=1) @ normal(3, 6, seed=2), Y)
    for decay in (0.0, 0.5):
        model = network()
        optimizer = sgd(model, weight_decay=decay)
        first = read(model, optimizer, data=data)
        for _ in range(10):
            optimizer.zero_grad()
            functional.cross_entropy(model(data[0]), data[1]).backward()
            optimizer.step()
        last = read(model, optimizer, data=data)
        energies = [f["0", "orthogonal_energy"].value * f["0", "norm"].value ** 2 for f in (first, last)]
        assert energies[0] > 0.1
        assert energies[1] == pytest.approx((1 - 0.1 * decay) ** 20 * energies[0], rel=1e-10)


def test_of_weight_norm_the_direction_is_measured_and_is_scale_invariant():
    for wrap in (nn.utils.parametrizations.weight_norm, nn.utils.weight_norm):
        with pytest.warns(FutureWarning, match="weight_norm") if wrap is nn.utils.weight_norm else torch.no_grad():
            model = nn.Sequential(wrap(nn.Linear(6, 3).double()))
        found = read(model, sgd(model))
        assert found["0", "invariance"].value < 1e3 * EPS
        assert ("0", "orthogonal_energy") not in found


def test_the_gap_to_the_smallest_weights_of_the_same_function_is_that_of_equi_normalization():
    """T2 of ENorm: energy 35, at best 10 + 4 sqrt 2; a network of tanh has no such freedom."""
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, 4], [0, 1]]))
        model[2].weight.copy_(torch.tensor([[1.0, 2], [0, 2]]))
    found = read(model, sgd(model), data=(normal(8, 2), torch.arange(8) % 2))
    assert found["", "enorm_gap"].value == pytest.approx(1 - (10 + 4 * math.sqrt(2)) / 35, rel=1e-12)
    assert found["", "imbalance"].value == pytest.approx(math.log(5), rel=1e-12)
    smooth = network()
    assert not [name for layer, name in read(smooth, sgd(smooth)) if layer == ""]


def test_wide_layers_have_no_orthogonal_energy():
    model = nn.Sequential(nn.Linear(1025, 3)).double()
    names = {name for _, name in read(model, sgd(model), data=(normal(4, 1025), torch.arange(4) % 3))}
    assert "invariance" in names
    assert "orthogonal_energy" not in names


def test_only_the_first_samples_are_used():
    model = network()
    few, same = read(model, sgd(model), samples=8), read(model, sgd(model), data=(X[:8], Y[:8]))
    assert {k: r.value for k, r in few.items()} == {k: r.value for k, r in same.items()}


def test_without_optimizer_or_weights_the_user_is_told():
    with pytest.raises(ValueError, match="needs the optimizer: pass optimizer= to the lens"):
        read(network(), None)
    model = network()
    with pytest.raises(ValueError, match=r"at least one trainable parameter .* got none: leave this probe out"):
        read(model, torch.optim.SGD([model[3].bias], lr=0.1))
