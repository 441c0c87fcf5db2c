"""On a quadratic all of it is known: the gradient at x - m eta A x is (I - m eta A) A x."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from normlens.probes.gradient_predictiveness import GradientPredictiveness
from normlens.risk import EmpiricalRisk
from normlens.run.measure import Activations
from normlens.run.probe import Previous, Step

MULTIPLES = np.array([0.5, 1.0, 2.0, 4.0])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Quadratic(nn.Module):
    """x' A x / 2 in two parameters, whatever the data."""

    def __init__(self) -> None:
        super().__init__()
        half = normal(5, 5)
        self.matrix = half @ half.T / 5
        self.first, self.second = (nn.Parameter(part) for part in normal(5, seed=1).split([2, 3]))

    def forward(self, data: Tensor) -> Tensor:
        x = torch.cat([self.first, self.second])
        return (x @ self.matrix @ x / 2).expand(len(data))


def read(model, optimizer=None, *, loss=lambda outputs, y: outputs.mean(), data=None, mode="train", **settings):
    risk = EmpiricalRisk(model, loss, (normal(8, 3), torch.arange(8) % 3) if data is None else data, mode=mode)
    step = Step(0, risk, Activations(risk), Previous(), optimizer, torch.Generator())
    return {reading.name: reading for reading in GradientPredictiveness(**settings)(step)}


def sgd(model, lr):
    return torch.optim.SGD(model.parameters(), lr=lr)


def test_on_a_quadratic_the_gradient_changes_by_eta_a_g_and_the_smoothness_is_its_length_over_that_of_g():
    model = Quadratic()
    a, x = model.matrix, torch.cat([model.first, model.second]).detach()
    g = a @ x
    found = read(model, sgd(model, 0.2))
    losses = [float((x - m * 0.2 * g) @ a @ (x - m * 0.2 * g) / 2) for m in MULTIPLES]
    changes = MULTIPLES * 0.2 * float((a @ g).norm())
    np.testing.assert_allclose(found["loss_at"].value, losses, rtol=1e-13)
    np.testing.assert_allclose(found["change_at"].value, changes, rtol=1e-12)
    expected = {
        "loss": float(x @ g / 2), "loss_min": min(losses), "loss_max": max(losses), "change_min": changes[0],
        "change_max": changes[-1], "gradient_norm": float(g.norm()), "rate": 0.2,
        "smoothness": float((a @ g).norm() / g.norm()), "relative_change": changes[-1] / float(g.norm()),
    }  # fmt: skip
    for name, value in expected.items():
        assert found[name].value == pytest.approx(value, rel=1e-12), name
    np.testing.assert_array_equal(found["multiple"].value, MULTIPLES)
    assert found["smoothness"].n == 8


def test_along_an_eigenvector_the_smoothness_is_the_eigenvalue_and_never_above_the_largest():
    model = Quadratic()
    values, vectors = torch.linalg.eigh(model.matrix)
    for value, vector in zip(values, vectors.T, strict=True):
        with torch.no_grad():
            model.first.copy_(vector[:2]), model.second.copy_(vector[2:])
        found = read(model, sgd(model, 0.1))
        assert found["smoothness"].value == pytest.approx(float(value), rel=1e-9)
        assert found["relative_change"].value == pytest.approx(4 * 0.1 * float(value), rel=1e-9)


def test_every_group_steps_by_its_own_rate_and_what_the_optimizer_does_not_hold_stays():
    model = Quadratic()
    a, x = model.matrix, torch.cat([model.first, model.second]).detach()
    rates = torch.tensor([0.3] * 2 + [0.1] * 3, dtype=torch.float64)
    groups = [{"params": [model.first], "lr": 0.3}, {"params": [model.second], "lr": 0.1}]
    s = rates * (a @ x)
    found = read(model, torch.optim.SGD(groups))
    assert found["smoothness"].value == pytest.approx(float((a @ s).norm() / s.norm()), rel=1e-12)
    assert found["rate"].value == 0.3
    s = torch.where(rates == 0.1, 0.0, s)
    alone = read(model, torch.optim.SGD(groups[:1]), multiples=(1.0,))
    assert alone["change_max"].value == pytest.approx(float((a @ s).norm()), rel=1e-12)


def test_without_an_optimizer_the_stated_rate_is_taken():
    model = Quadratic()
    found = [read(model, None, rate=0.05), read(model, sgd(model, 0.05))]
    assert {name: str(r.value) for name, r in found[0].items()} == {name: str(r.value) for name, r in found[1].items()}
    assert read(model, None)["rate"].value == 0.1


def test_a_rate_of_zero_moves_nothing_and_leaves_the_smoothness_unknown():
    model = Quadratic()
    found = read(model, sgd(model, 0.0))
    assert found["loss_min"].value == found["loss_max"].value == found["loss"].value
    assert found["change_max"].value == 0
    assert np.isnan(found["smoothness"].value)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_normalizations_use_the_statistics_of_the_batch_at_both_points_and_keep_their_running_ones(mode):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)).double()
    x, y = normal(8, 3), torch.arange(8) % 3
    before = copy.deepcopy(model.state_dict())
    found = read(model, sgd(model, 0.5), loss=functional.cross_entropy, mode=mode, multiples=(2.0,))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def loss_and_gradient(network):
        loss = functional.cross_entropy(network(x), y)
        return loss.detach(), torch.autograd.grad(loss, list(network.parameters()))

    by_hand = copy.deepcopy(model).train()
    loss, g = loss_and_gradient(by_hand)
    with torch.no_grad():
        for p, slope in zip(by_hand.parameters(), g, strict=True):
            p -= 2 * 0.5 * slope
    there, g_there = loss_and_gradient(by_hand)
    change = float(torch.cat([(a - b).flatten() for a, b in zip(g, g_there, strict=True)]).norm())
    assert found["loss"].value == pytest.approx(float(loss), rel=1e-13)
    assert found["loss_max"].value == pytest.approx(float(there), rel=1e-12)
    assert found["change_max"].value == pytest.approx(change, rel=1e-11)


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match=r"multiples above 0; got \(1.0, 0.0\)"):
        read(Quadratic(), multiples=(1.0, 0.0))
    with pytest.raises(ValueError, match="at least one trainable parameter"):
        read(Quadratic().requires_grad_(False))
