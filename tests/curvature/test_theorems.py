"""Theorems on the loss around the parameters, in float64 through the public functions of ``normlens.curvature``."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from normlens.curvature import condition_number, hessian, restrict
from normlens.nn import BatchNorm
from normlens.risk import EmpiricalRisk
from support.curvature import relative_error, vector


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def initialized(model: nn.Module) -> nn.Module:
    for seed, p in enumerate(model.double().parameters()):
        nn.init.normal_(p, generator=torch.Generator().manual_seed(seed))
    return model


X, Y = normal(20, 12, seed=7), torch.arange(20) % 3


class Quadratic(nn.Module):
    """theta -> theta' A theta / 2."""

    def __init__(self, matrix: Tensor, start: Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(start.clone())
        self.matrix = matrix

    def forward(self, x: Tensor) -> Tensor:
        return self.theta @ self.matrix @ self.theta / 2


def test_gradient_descent_contracts_by_kappa_minus_1_over_kappa_plus_1_and_leaves_the_null_mode_alone():
    eigenvalues = torch.tensor([0.0, 1.0, 4.0, 10.0], dtype=torch.float64)
    basis = torch.linalg.qr(normal(4, 4))[0]
    model = Quadratic(basis * eigenvalues @ basis.T, basis.sum(1))  # every mode starts at one
    found = condition_number(hessian(EmpiricalRisk(model, lambda value, _: value, (torch.zeros(1), torch.zeros(1)))))
    assert found.value == pytest.approx(10, rel=1e-12)
    assert (found.nullity, found.negative, found.converged) == (1, 0, True)
    optimizer, sizes = torch.optim.SGD(model.parameters(), lr=2 / (found.lambda_max + found.lambda_min)), []
    assert optimizer.param_groups[0]["lr"] == pytest.approx(2 / 11, rel=1e-12)
    for _ in range(40):
        optimizer.zero_grad()
        model(X).backward()
        optimizer.step()
        modes = basis.T @ model.theta.detach()
        sizes.append(float(modes[1:].norm()))
        assert float(modes[0]) == pytest.approx(1, rel=1e-13)
    # The mode of eigenvalue 4 is gone by (3/11)^20; the others stand at (9/11)^40 = 3e-4 over rounding.
    assert sizes[-1] / sizes[-2] == pytest.approx((found.value - 1) / (found.value + 1), rel=1e-11)
    assert (sizes[-1] / sizes[20]) ** (1 / 19) == pytest.approx(9 / 11, rel=1e-11)


def dense_before_batch_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 6), BatchNorm(6, eps=0.0), nn.Tanh(), nn.Linear(6, 3))


def convolution_before_batch_norm() -> nn.Module:
    convolution = [nn.Unflatten(1, (1, 3, 4)), nn.Conv2d(1, 4, 3, padding=1), BatchNorm(4, eps=0.0), nn.Tanh()]
    return nn.Sequential(*convolution, nn.Flatten(), nn.Linear(48, 3))


@pytest.fixture(params=[(dense_before_batch_norm, "0"), (convolution_before_batch_norm, "1")], ids=["linear", "conv"])
def invariant(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Parameter, EmpiricalRisk]:
    """A model in train mode, the weight before its batch norm without eps, and the risk as a function of that weight.

    The loss does not change with its size, whole or per output channel.
    """
    make, layer = request.param
    model = initialized(make())
    risk = EmpiricalRisk(model, functional.cross_entropy, (X, Y), params=[f"{layer}.weight"], mode="train")
    return model, model.get_submodule(layer).weight, risk


def gradient(risk: EmpiricalRisk) -> Tensor:
    return torch.cat([g.flatten() for g in risk.gradient().values()])


def scale(weight: nn.Parameter, factor: float) -> None:
    with torch.no_grad():
        weight.mul_(factor)


def test_the_gradient_of_a_scale_invariant_weight_is_orthogonal_to_it_channel_by_channel(invariant):
    _, weight, risk = invariant
    slope, w = gradient(risk).view(len(weight), -1), weight.detach().flatten(1)
    assert slope.norm() > 1e-3
    assert ((w * slope).sum(1).abs() <= 1e-12 * w.norm(dim=1) * slope.norm()).all()


@pytest.mark.parametrize("c", [0.1, 3.0])
def test_the_gradient_at_c_times_a_scale_invariant_weight_is_one_over_c_of_it(invariant, c):
    _, weight, risk = invariant
    before = gradient(risk)
    scale(weight, c)
    assert relative_error(gradient(risk), before / c) <= 1e-12


@pytest.mark.parametrize("c", [0.1, 3.0])
def test_the_hessian_at_c_times_a_scale_invariant_weight_is_one_over_c_squared_of_it(invariant, c):
    _, weight, risk = invariant
    v = vector(weight.numel())
    before = hessian(risk) @ v
    scale(weight, c)
    assert relative_error(hessian(risk) @ v, before / c**2) <= 1e-10


def test_the_hessian_maps_a_scale_invariant_weight_to_minus_its_gradient(invariant):
    model, weight, risk = invariant
    w, slope = weight.detach().flatten(), gradient(risk)
    assert relative_error(hessian(risk) @ w, -slope) <= 1e-9
    whole = hessian(EmpiricalRisk(model, functional.cross_entropy, (X, Y), mode="train"))
    name = next(iter(risk.parameters))
    assert relative_error(restrict(whole, whole.layout.indices(name)) @ w, -slope) <= 1e-9


def test_with_running_statistics_the_weight_is_not_scale_invariant(invariant):
    """The counterexample: it is the batch's own statistics that make it so."""
    model, weight, _ = invariant
    name = next(key for key, p in model.named_parameters() if p is weight)
    risk = EmpiricalRisk(model, functional.cross_entropy, (X, Y), params=[name], mode="eval")
    assert relative_error(hessian(risk) @ weight.detach().flatten(), -gradient(risk)) > 0.1


def squared(a: Tensor, y: Tensor) -> Tensor:
    return (a - (y[:, None] if a.shape[1] == 1 else functional.one_hot(y, 3))).square().sum(1).mean()


def logistic(a: Tensor, y: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(a[:, 0], (y > 0).double())


LAST_LAYERS = {
    "linear": (squared, 1, lambda a: torch.full_like(a, 2.0)),
    "linear_of_several": (squared, 3, lambda a: torch.full_like(a, 2.0)),
    "logistic": (logistic, 1, lambda a: a.sigmoid() * (1 - a.sigmoid())),
    "softmax": (functional.cross_entropy, 3, lambda a: a.softmax(1) * (1 - a.softmax(1))),
}


def neuron_block(model: nn.Module, loss: object, layer: str, i: int, mode: str) -> Tensor:
    """The Hessian block of [bias; weights] of neuron i, from the Hessian of the whole network."""
    whole = hessian(EmpiricalRisk(model, loss, (X, Y), mode=mode))
    rows, width = whole.layout.indices(f"{layer}.weight"), model.get_submodule(layer).in_features
    bias = whole.layout.indices(f"{layer}.bias")[i : i + 1]
    return restrict(whole, torch.cat([bias, rows[i * width : (i + 1) * width]])).dense()


def sandwich(h: Tensor, second: Tensor) -> Tensor:
    """Return H-hat' S H-hat with S = diag(second) / N."""
    hat = torch.cat([torch.ones(len(h), 1, dtype=h.dtype), h], 1)
    return hat.T @ (second[:, None] * hat) / len(h)


@pytest.mark.parametrize("name", LAST_LAYERS)
def test_the_hessian_of_a_neuron_of_the_last_layer_is_a_weighted_gram_matrix_of_its_inputs(name):
    loss, outputs, second = LAST_LAYERS[name]
    model = initialized(nn.Sequential(nn.Linear(12, 6), BatchNorm(6), nn.Tanh(), nn.Linear(6, outputs)))
    with torch.no_grad():
        h = model[:3](X)
        a = model[3](h)
    for i in range(outputs):
        block = neuron_block(model, loss, "3", i, "train")  # a batch norm before the neuron only makes its inputs
        assert relative_error(block, sandwich(h, second(a)[:, i])) <= 1e-12


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_hidden_neuron_s_hessian_is_one_only_where_no_batch_norm_in_train_mode_follows(mode):
    model = initialized(nn.Sequential(nn.Linear(12, 6), BatchNorm(6), nn.Tanh(), nn.Linear(6, 3))).train(
        mode == "train"
    )
    block = neuron_block(model, functional.cross_entropy, "0", 2, mode)
    a = model[0](X).detach()

    def total(column: Tensor) -> Tensor:
        moved = torch.cat([a[:, :2], column[:, None], a[:, 3:]], 1)
        return functional.cross_entropy(model[1:](moved), Y, reduction="sum")

    own = a[:, 2].clone().requires_grad_()
    (slope,) = torch.autograd.grad(total(own), own, create_graph=True)
    second = torch.stack([torch.autograd.grad(s, own, retain_graph=True)[0][j] for j, s in enumerate(slope)])
    error = relative_error(block, sandwich(X, second))
    assert error <= 1e-12 if mode == "eval" else error > 1e-2
