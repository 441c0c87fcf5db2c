"""Every neuron's H'SH against the dense float64 Hessian, and the refusal where samples meet above the layer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, softplus

from normlens.curvature.neuron_condition import CoupledSamplesError, neuron_condition
from normlens.risk import EmpiricalRisk
from support.curvature import dense_hessian


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


X, Y = normal(7, 30, 4), torch.arange(30) % 3


def neuron_block(model: nn.Module, loss, x: Tensor, y: Tensor, layer: str, i: int) -> Tensor:
    """Rows and columns of weight[i, :] and bias[i] in the Hessian of all parameters."""
    chosen, start = [], 0
    for name, p in model.named_parameters():
        places = torch.arange(start, start + p.numel()).view(p.shape)
        if name in (f"{layer}.weight", f"{layer}.bias"):
            chosen.append(places[i].flatten())
        start += p.numel()
    indices = torch.cat(chosen)
    return dense_hessian(model, loss, x, y)[indices][:, indices]


def assert_spectrum(found, matrix: Tensor) -> None:
    values = torch.linalg.eigvalsh(matrix)
    scale = float(values.abs().max())
    torch.testing.assert_close(found.eigenvalues, values, rtol=0, atol=1e-12 * scale)


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.Softplus(), nn.ReLU(inplace=True)])
@pytest.mark.parametrize("layer", ["0", "2", "4"])
def test_each_neuron_has_the_spectrum_of_its_block_of_the_dense_hessian(layer: str, activation: nn.Module) -> None:
    model = nn.Sequential(
        nn.Linear(4, 5), activation, nn.Linear(5, 5), copy.deepcopy(activation), nn.Linear(5, 3)
    ).double()
    before = copy.deepcopy(model.state_dict())
    found = neuron_condition(EmpiricalRisk(model, cross_entropy, (X, Y)), layer)
    assert list(found) == list(range(3 if layer == "4" else 5))
    for i, result in found.items():
        assert_spectrum(result, neuron_block(model, cross_entropy, X, Y, layer, i))
        assert (result.method, result.matvecs) == ("dense", 1)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_batches_of_different_size_are_weighted_by_it() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    cut = list(zip(X.split([17, 13]), Y.split([17, 13]), strict=True))
    found = neuron_condition(EmpiricalRisk(model, cross_entropy, cut), "0", neurons=[2])
    assert list(found) == [2]
    assert found[2].matvecs == 2
    assert_spectrum(found[2], neuron_block(model, cross_entropy, X, Y, "0", 2))


def test_of_logistic_regression_s_is_p_times_1_minus_p_over_n() -> None:
    model = nn.Linear(4, 1).double()
    y = (Y == 0).double()[:, None]
    found = neuron_condition(EmpiricalRisk(model, lambda z, y: (softplus(z) - y * z).mean(), (X, y)), "")
    p = model(X).detach().sigmoid()
    h = torch.cat([torch.ones(30, 1, dtype=torch.float64), X], 1)
    assert_spectrum(found[0], h.T @ (p * (1 - p) / 30 * h))


def test_without_a_bias_only_the_weights_are_in_it() -> None:
    model = nn.Sequential(nn.Linear(4, 5, bias=False), nn.Tanh(), nn.Linear(5, 3)).double()
    found = neuron_condition(EmpiricalRisk(model, cross_entropy, (X, Y)), "0")
    assert_spectrum(found[1], neuron_block(model, cross_entropy, X, Y, "0", 1))


def normed(norm: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6), norm, nn.Tanh(), nn.Linear(6, 3)).double()


def test_below_train_mode_batch_norm_it_is_refused_and_above_it_is_right() -> None:
    model = normed(nn.BatchNorm1d(6))
    risk = EmpiricalRisk(model, cross_entropy, (X, Y), mode="train")
    for below in ("0", "2"):
        with pytest.raises(CoupledSamplesError, match=r"S is not diagonal; use mode='eval'"):
            neuron_condition(risk, below)
    for i, result in neuron_condition(risk, "5").items():
        assert_spectrum(result, neuron_block(model, cross_entropy, X, Y, "5", i))


def test_in_eval_mode_batch_norm_couples_nothing() -> None:
    model = normed(nn.BatchNorm1d(6)).eval()
    for i, result in neuron_condition(EmpiricalRisk(model, cross_entropy, (X, Y), mode="eval"), "2").items():
        assert_spectrum(result, neuron_block(model, cross_entropy, X, Y, "2", i))


def test_a_norm_within_each_sample_couples_nothing_whatever_its_mode() -> None:
    model = normed(nn.LayerNorm(6))
    for i, result in neuron_condition(EmpiricalRisk(model, cross_entropy, (X, Y), mode="train"), "0").items():
        assert_spectrum(result, neuron_block(model, cross_entropy, X, Y, "0", i))


class Centered(nn.Module):
    """Statistics over the batch under a name that says nothing; linear, so only what follows makes S not diagonal."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


def test_coupling_is_found_by_computing_and_not_by_name() -> None:
    with pytest.raises(CoupledSamplesError, match="other samples"):
        neuron_condition(EmpiricalRisk(normed(Centered()), cross_entropy, (X, Y)), "2")
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double().train()
    with pytest.raises(CoupledSamplesError, match="neuron 0 of '0'"):
        neuron_condition(EmpiricalRisk(model, mse_loss, (X, normal(8, 30, 3))), "0")


def test_positions_that_meet_above_the_layer_are_refused_too() -> None:
    x = normal(9, 10, 5, 4)
    pooled = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Flatten(), nn.Linear(30, 3)).double()
    with pytest.raises(CoupledSamplesError, match="positions"):
        neuron_condition(EmpiricalRisk(pooled, cross_entropy, (x, Y[:10])), "0")
    apart = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    goal = normal(10, 10, 5, 2)
    found = neuron_condition(EmpiricalRisk(apart, mse_loss, (x, goal)), "0")
    assert_spectrum(found[3], neuron_block(apart, mse_loss, x, goal, "0", 3))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(self.a(x).tanh())


def test_what_it_is_not_defined_for_is_refused_with_the_reason() -> None:
    risk = EmpiricalRisk(Twice().double(), mse_loss, (X, X))
    with pytest.raises(ValueError, match="called once in a forward pass; it was 2 times"):
        neuron_condition(risk, "a")
    with pytest.raises(ValueError, match="called once in a forward pass; it was 0 times"):
        neuron_condition(risk, "b")
    with pytest.raises(ValueError, match=r"one of \['a', 'b'\]; got 'c'"):
        neuron_condition(risk, "c")
    with pytest.raises(ValueError, match="from 0 to 3; got 4"):
        neuron_condition(risk, "a", neurons=[0, 4])
    tied = Twice()
    tied.b.weight = tied.a.weight
    with pytest.raises(ValueError, match=r"shared by \['a.weight', 'b.weight'\]"):
        neuron_condition(EmpiricalRisk(tied.double(), mse_loss, (X, X)), "a")
