"""Every layer's block against the dense float64 Hessian, row by row by double backward."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from normlens.curvature.gauss_newton import gauss_newton
from normlens.curvature.layer_condition import layer_condition
from normlens.risk import EmpiricalRisk
from support.curvature import dense_hessian, dense_jacobian

X = torch.randn(30, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
Y = torch.arange(30) % 3


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).double()


def blocks(model: nn.Module, matrix: Tensor) -> dict[str, Tensor]:
    """Each layer's diagonal block, found by counting parameters."""
    start, found = 0, {}
    for name, module in model.named_children():
        size = sum(p.numel() for p in module.parameters())
        if size:
            found[name] = matrix[start : start + size, start : start + size]
        start += size
    return found


def kappa(matrix: Tensor, tolerance: float) -> tuple[float, int, int]:
    values = torch.linalg.eigvalsh(matrix)
    size = values.abs()
    above = size > tolerance * size.max()
    return float(size.max() / size[above].min()), int((~above).sum()), int((values < -tolerance * size.max()).sum())


@pytest.mark.parametrize("training", [True, False])
def test_each_block_has_the_condition_number_nullity_and_signs_of_the_dense_one(training: bool) -> None:
    model = network().train(training)
    found = layer_condition(EmpiricalRisk(model, cross_entropy, (X, Y)), tolerance=1e-9)
    expected = blocks(model, dense_hessian(model, cross_entropy, X, Y))
    assert list(found) == list(expected) == ["0", "1", "3"]
    for name, result in found.items():
        value, nullity, negative = kappa(expected[name], 1e-9)
        assert result.value == pytest.approx(value, rel=1e-13 * value * 100)
        assert (result.nullity, result.negative) == (nullity, negative)
        assert result.matvecs == len(expected[name])


def test_any_matrix_will_do_and_layers_are_chosen_by_glob() -> None:
    model = network()
    found = layer_condition(EmpiricalRisk(model, cross_entropy, (X, Y)), gauss_newton, layers=["3", "nothing*"])
    jacobian, p = dense_jacobian(model, X), model(X).detach().softmax(1)
    s = torch.block_diag(*(torch.diag_embed(p) - p[:, :, None] * p[:, None, :])) / len(X)
    assert list(found) == ["3"]
    assert found["3"].value == pytest.approx(kappa(blocks(model, jacobian.T @ s @ jacobian)["3"], 1e-6)[0], rel=1e-9)
    assert found["3"].negative == 0


def test_parameters_that_are_not_selected_are_in_no_block() -> None:
    model = network()
    found = layer_condition(EmpiricalRisk(model, cross_entropy, (X, Y), params="*.weight"), tolerance=1e-9)
    whole = dense_hessian(model, cross_entropy, X, Y)
    assert found["0"].value == pytest.approx(kappa(whole[:24, :24], 1e-9)[0], rel=1e-9)


def test_a_block_too_large_to_be_formed_gives_a_bound_below_the_dense_value(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    risk = EmpiricalRisk(model, cross_entropy, (X, Y))
    exact = layer_condition(risk, layers="0")["0"]
    monkeypatch.setattr("normlens.curvature.condition.DENSE_ROWS", 10)
    bound = layer_condition(risk, layers="0", steps=12, probes=2)["0"]
    assert math.isnan(bound.value)
    assert 1 < bound.lower <= exact.value * (1 + 1e-9)
    assert len(bound.quantiles) == len(exact.quantiles)


def test_a_layer_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'head' is none of \['0', '1', '3'\]"):
        layer_condition(EmpiricalRisk(network(), cross_entropy, (X, Y)), layers="head")
