"""Directions that are null by the structure of the network are null of its Hessian and Gauss-Newton matrix."""

from __future__ import annotations

import copy

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from normlens.curvature.gram import gauss_newton_spectrum
from normlens.curvature.null_space import NullSpace, null_directions
from normlens.curvature.operator import DenseOperator, deflate
from normlens.risk import EmpiricalRisk


def build(*layers: nn.Module, seed: int = 0) -> nn.Sequential:
    model = nn.Sequential(*layers).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def hessian(risk: EmpiricalRisk) -> Tensor:
    """Double backward, row by row, through the module itself."""
    model = copy.deepcopy(risk.model)
    x, y = next(iter(risk.batches()))
    parameters = list(model.parameters())
    slope = torch.autograd.grad(cross_entropy(model(x), y), parameters, create_graph=True)
    flat = torch.cat([g.flatten() for g in slope])
    rows = [torch.autograd.grad(g, parameters, retain_graph=True, materialize_grads=True) for g in flat]
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])


def assert_orthonormal(space: NullSpace) -> None:
    k = len(space.labels)
    assert torch.allclose(space.basis.T @ space.basis, torch.eye(k, dtype=torch.float64), rtol=0, atol=1e-14)


def batch_norm_network() -> nn.Sequential:
    return build(
        nn.Linear(64, 24), nn.BatchNorm1d(24), nn.Tanh(), nn.Linear(24, 24), nn.BatchNorm1d(24), nn.Tanh(),
        nn.Linear(24, 10),
    )  # fmt: skip


def test_the_network_of_the_peers_has_145_null_directions() -> None:
    digits = load_digits()
    data = (torch.tensor(digits.data / 16), torch.tensor(digits.target))
    space = null_directions(EmpiricalRisk(batch_norm_network(), cross_entropy, data, mode="train"))
    assert space.counts == {"dead input": 72, "bias before normalization": 48, "softmax shift": 25}
    assert space.columns.shape == (2506, 145)
    assert_orthonormal(space)


def test_found_directions_are_null_of_the_dense_hessian() -> None:
    model = build(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3))
    x = normal(1, 12, 5)
    x[:, 2] = 0
    risk = EmpiricalRisk(model, cross_entropy, (x, torch.arange(12) % 3))
    space, matrix = null_directions(risk), hessian(risk)
    assert space.counts == {"dead input": 4, "bias before normalization": 4, "softmax shift": 5}
    assert float((matrix @ space.basis).abs().max()) < 1e-15 * float(matrix.abs().max()) * len(matrix)


def test_biases_before_batch_norm_in_eval_mode_are_not_null() -> None:
    model = build(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3))
    risk = EmpiricalRisk(model, mse_loss, (normal(2, 12, 5), normal(3, 12, 3)), mode="eval")
    assert null_directions(risk).counts == {}
    assert null_directions(risk).basis.shape == (len(model[0].weight.flatten()) + 4 + 8 + 15, 0)


def test_a_dead_relu_gives_its_incoming_and_outgoing_weights() -> None:
    model = build(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), seed=4)
    with torch.no_grad():
        model[0].bias[1] = -100
    space = null_directions(EmpiricalRisk(model, mse_loss, (normal(5, 50, 3), normal(6, 50, 2))))
    assert {label for label, reason in zip(space.labels, space.reasons, strict=True) if reason == "dead unit"} == {
        "0.weight[1, 0]", "0.weight[1, 1]", "0.weight[1, 2]", "0.bias[1]",
    }  # fmt: skip
    assert space.counts == {"dead unit": 4, "dead input": 2}


def test_the_nullity_of_the_gauss_newton_matrix_is_fully_explained() -> None:
    model = build(nn.Linear(5, 4), nn.BatchNorm1d(4, eps=1e-30, affine=False), nn.Tanh(), nn.Linear(4, 3), seed=7)
    x = normal(8, 40, 5)
    x[:, 0] = 0
    risk = EmpiricalRisk(model, cross_entropy, (x, torch.arange(40) % 3))
    spectrum = gauss_newton_spectrum(risk)
    # Batch norm without an affine map leaves one more per unit: the scale of its incoming weights.
    assert spectrum.parameters - spectrum.rank == len(null_directions(risk).labels) + 4


def test_squared_error_has_no_softmax_shift() -> None:
    model = build(nn.Linear(5, 3))
    assert null_directions(EmpiricalRisk(model, mse_loss, (normal(9, 8, 5), normal(10, 8, 3)))).counts == {}


def test_a_convolution_before_batch_norm_has_null_biases_and_dead_channels() -> None:
    model = build(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2), seed=11)
    x = normal(12, 6, 2, 4, 4)
    x[:, 1] = 0
    space = null_directions(EmpiricalRisk(model, mse_loss, (x, normal(13, 6, 2))))
    assert space.counts == {"dead input": 27, "bias before normalization": 3}


def test_the_model_is_left_as_it_was() -> None:
    model = build(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).float()
    state, random_state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    null_directions(EmpiricalRisk(model, cross_entropy, (normal(14, 9, 5).float(), torch.arange(9) % 3)))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not any(module._forward_hooks for module in model.modules())


def test_outputs_that_are_no_tensor_are_refused() -> None:
    risk = EmpiricalRisk(
        build(nn.Linear(3, 2)), mse_loss, (normal(15, 5, 3), normal(16, 5, 2)), forward=lambda m, x: {"z": m(x)}
    )
    with pytest.raises(ValueError, match="must return one tensor"):
        null_directions(risk)


def assert_explained(model: nn.Module, x: Tensor, counts: dict[str, int]) -> NullSpace:
    risk = EmpiricalRisk(model, cross_entropy, (x, torch.arange(len(x)) % 3))
    space, matrix = null_directions(risk), hessian(risk)
    assert space.counts == counts
    assert_orthonormal(space)
    assert float((matrix @ space.basis).abs().max()) < 1e-15 * float(matrix.abs().max()) * len(matrix)
    return space


def test_a_shift_of_all_units_before_layer_norm_is_null_for_biases_and_weights() -> None:
    model = build(nn.Linear(5, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3), seed=20)
    x = normal(21, 12, 5)
    x[:, 2] = 0
    space = assert_explained(model, x, {"dead input": 6, "shift before normalization": 5, "softmax shift": 7})
    assert "0.weight[0:6, 4]" in space.labels
    assert "0.bias[0:6]" in space.labels


def test_a_shift_before_group_norm_is_null_in_each_group_of_a_convolution_s_biases_alone() -> None:
    model = build(
        nn.Conv2d(2, 6, 3), nn.GroupNorm(3, 6), nn.Tanh(), nn.Flatten(), nn.Linear(24, 3), seed=22
    )  # fmt: skip
    space = assert_explained(model, normal(23, 9, 2, 4, 4), {"shift before normalization": 3, "softmax shift": 25})
    assert {label for label in space.labels if label.startswith("0.")} == {"0.bias[0:2]", "0.bias[2:4]", "0.bias[4:6]"}


def test_a_shift_before_group_norm_of_vectors_is_null_for_the_weights_of_each_group() -> None:
    model = build(nn.Linear(4, 6), nn.GroupNorm(2, 6), nn.Tanh(), nn.Linear(6, 3), seed=24)
    assert_explained(model, normal(25, 12, 4), {"shift before normalization": 10, "softmax shift": 7})


def test_nothing_is_shifted_before_a_norm_that_does_not_center() -> None:
    model = build(nn.Linear(4, 6), nn.RMSNorm(6), nn.Tanh(), nn.Linear(6, 3), seed=26)
    assert_explained(model, normal(27, 12, 4), {"softmax shift": 7})


def test_the_rescaling_of_scale_invariant_weights_is_not_claimed() -> None:
    model = build(nn.Linear(4, 6, bias=False), nn.LayerNorm(6, eps=1e-30), nn.Tanh(), nn.Linear(6, 3), seed=28)
    risk = EmpiricalRisk(model, cross_entropy, (normal(29, 12, 4), torch.arange(12) % 3))
    space, matrix = null_directions(risk), hessian(risk)
    w = torch.zeros(len(matrix), dtype=torch.float64)
    w[:24] = model[0].weight.detach().flatten()
    slope = torch.cat([g.flatten() for g in risk.gradient().values()])
    torch.testing.assert_close((matrix @ w)[:24], -slope[:24], rtol=0, atol=1e-12)  # H w = -grad L: null at a minimum
    assert float((matrix @ w).norm()) > 1e-3
    assert float((space.project(w) - w).norm()) < 0.9 * float(w.norm())
    assert set(space.counts) == {"shift before normalization", "softmax shift"}


def test_deflation_is_that_of_the_basis_without_forming_it() -> None:
    model = build(nn.Linear(5, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3), seed=30)
    risk = EmpiricalRisk(model, cross_entropy, (normal(31, 12, 5), torch.arange(12) % 3))
    space, v = null_directions(risk), normal(32, 69)
    matrix = normal(33, 69, 69)
    operator = DenseOperator(matrix + matrix.T)
    torch.testing.assert_close(space.deflate(operator) @ v, deflate(operator, space.basis) @ v, rtol=0, atol=1e-12)
    torch.testing.assert_close(space.project(v), v - space.basis @ (space.basis.T @ v), rtol=0, atol=1e-13)
    with pytest.raises(ValueError, match="must have the 69 rows"):
        space.deflate(DenseOperator(torch.eye(3)))
