"""The spectrum from the Gram matrix is that of the explicitly assembled Gauss-Newton matrix."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from normlens.curvature.gram import GramSpectrum, gauss_newton_spectrum
from normlens.risk import EmpiricalRisk


def build(seed: int, make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make().double()


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def classes(seed: int, samples: int, count: int) -> Tensor:
    return torch.randint(count, (samples,), generator=torch.Generator().manual_seed(seed))


def jacobian(model: nn.Module, x: Tensor) -> Tensor:
    """Row by row, through the module itself."""
    outputs = copy.deepcopy(model).train(model.training)
    z = outputs(x)
    rows = [torch.autograd.grad(value, list(outputs.parameters()), retain_graph=True) for value in z.flatten()]
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])


def softmax_block(z: Tensor) -> Tensor:
    p = z.detach().softmax(1)
    return torch.block_diag(*[torch.diag(q) - torch.outer(q, q) for q in p]) / len(p)


def dense_values(matrix: Tensor, count: int) -> Tensor:
    """The ``count`` largest eigenvalues, padded with zeros."""
    values = torch.linalg.eigvalsh(matrix).flip(0)[:count]
    return torch.cat([values, torch.zeros(count - len(values), dtype=values.dtype)])


def assert_equal_spectra(found: GramSpectrum, expected: Tensor) -> None:
    assert found.values.shape == expected.shape
    assert float((found.values - expected).abs().max()) < 1e-12 * float(expected.max())
    used = expected > 1e-6 * expected.max()
    assert torch.allclose(found.values[used], expected[used], rtol=1e-8, atol=0)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "batch norm": (
        lambda: nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)),
        (8, 6),
    ),
    "group norm": (
        lambda: nn.Sequential(nn.Conv1d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)),
        (8, 1, 6),
    ),
    "instance norm": (
        lambda: nn.Sequential(
            nn.Conv1d(1, 2, 3), nn.InstanceNorm1d(2, affine=True), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)
        ),
        (8, 1, 6),
    ),
    "layer norm": (
        lambda: nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.ReLU(), nn.Linear(5, 3)),
        (8, 6),
    ),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_cross_entropy_spectrum_is_that_of_the_dense_matrix(name: str, training: bool) -> None:
    make, shape = NETWORKS[name]
    model, x = build(1, make).train(training), normal(2, *shape)
    found = gauss_newton_spectrum(EmpiricalRisk(model, cross_entropy, (x, classes(3, 8, 3))))
    j = jacobian(model, x)
    assert_equal_spectra(found, dense_values(j.T @ softmax_block(copy.deepcopy(model)(x)) @ j, 24))
    assert (found.samples, found.outputs, found.parameters) == (8, 3, j.shape[1])
    assert found.mode == ("train" if training else "eval")


def test_squared_error_spectrum_is_that_of_the_dense_matrix() -> None:
    make, shape = NETWORKS["batch norm"]
    model, x = build(4, make), normal(5, *shape)
    found = gauss_newton_spectrum(EmpiricalRisk(model, mse_loss, (x, normal(6, 8, 3))))
    j = jacobian(model, x)
    assert_equal_spectra(found, dense_values(2 * j.T @ j / 24, 24))


def test_samples_coupled_by_batch_norm_are_counted() -> None:
    make, shape = NETWORKS["batch norm"]
    model, x = build(4, make), normal(5, *shape)
    together = gauss_newton_spectrum(EmpiricalRisk(model, mse_loss, (x, normal(6, 8, 3))))
    halves = [(x[:4], normal(6, 8, 3)[:4]), (x[4:], normal(6, 8, 3)[4:])]
    assert not torch.allclose(gauss_newton_spectrum(EmpiricalRisk(model, mse_loss, halves)).values, together.values)


def test_rows_of_unequal_batches_are_weighted_by_their_size() -> None:
    make, shape = NETWORKS["batch norm"]
    model, x, y = build(7, make), normal(8, *shape), classes(9, 8, 3)
    found = gauss_newton_spectrum(EmpiricalRisk(model, cross_entropy, [(x[:5], y[:5]), (x[5:], y[5:])]))
    expected = torch.zeros(found.parameters, found.parameters, dtype=torch.float64)
    for part in (x[:5], x[5:]):
        j = jacobian(model, part)
        expected += len(part) / 8 * j.T @ softmax_block(copy.deepcopy(model)(part)) @ j
    assert_equal_spectra(found, dense_values(expected, 24))


def test_softmax_shift_leaves_one_zero_per_sample() -> None:
    model = build(10, lambda: nn.Sequential(nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 4)))
    found = gauss_newton_spectrum(EmpiricalRisk(model, cross_entropy, (normal(11, 12, 40), classes(12, 12, 4))))
    assert found.rank == 12 * 3
    assert int((found.values == 0).sum()) == 12


def test_logistic_spectrum_is_that_of_the_weighted_inputs() -> None:
    x, y = normal(13, 9, 4), (normal(14, 9, 1) > 0).double()
    model = build(15, lambda: nn.Linear(4, 1))
    risk = EmpiricalRisk(model, nn.functional.binary_cross_entropy_with_logits, (x, y))
    h = torch.cat([x, torch.ones(9, 1, dtype=x.dtype)], 1)
    p = torch.sigmoid(model(x)).detach()
    assert_equal_spectra(gauss_newton_spectrum(risk), dense_values(h.T @ (p * (1 - p) / 9 * h), 9))


def test_least_squares_spectrum_is_that_of_the_inputs() -> None:
    x, y = normal(16, 9, 4), normal(17, 9, 1)
    risk = EmpiricalRisk(build(18, lambda: nn.Linear(4, 1)), lambda a, b: 0.5 * mse_loss(a, b), (x, y))
    h = torch.cat([x, torch.ones(9, 1, dtype=x.dtype)], 1)
    assert_equal_spectra(gauss_newton_spectrum(risk), dense_values(h.T @ h / 9, 9))


class TwoUnits(nn.Module):
    """f = a_1 tanh(w_1'x) + a_2 tanh(w_2'x)."""

    def __init__(self, w: Tensor, a: Tensor) -> None:
        super().__init__()
        self.w, self.a = nn.Parameter(w), nn.Parameter(a)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.w.T) @ self.a


@pytest.mark.parametrize(("singularity", "nullity"), [("none", 0), ("outgoing", 3), ("incoming", 1), ("overlap", 4)])
def test_fisher_nullity_tells_the_kind_of_singularity(singularity: str, nullity: int) -> None:
    w, a = normal(19, 2, 3), torch.tensor([0.7, -1.3], dtype=torch.float64)
    if singularity == "outgoing":
        a[0] = 0
    elif singularity == "incoming":
        w[0] = 0
    elif singularity == "overlap":
        w[1] = w[0]
    found = gauss_newton_spectrum(EmpiricalRisk(TwoUnits(w, a), mse_loss, (normal(20, 40, 3), normal(21, 40))))
    assert found.parameters - found.rank == nullity


def test_a_dead_relu_takes_its_incoming_and_outgoing_weights_out() -> None:
    def make(hidden: int) -> nn.Module:
        return nn.Sequential(nn.Linear(3, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    model, x, y = build(22, lambda: make(4)), normal(23, 60, 3), normal(24, 60, 1)
    data = (x, y)
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([-100, 0.5, 0.2, -0.3]))
    dead = gauss_newton_spectrum(EmpiricalRisk(model, mse_loss, data))
    without = build(22, lambda: make(3))
    with torch.no_grad():
        for mine, theirs in [(without[0].weight, model[0].weight[1:]), (without[0].bias, model[0].bias[1:])]:
            mine.copy_(theirs)
        without[2].weight.copy_(model[2].weight[:, 1:])
        without[2].bias.copy_(model[2].bias)
    reduced = gauss_newton_spectrum(EmpiricalRisk(without, mse_loss, data))
    nullity = dead.parameters - dead.rank
    assert nullity == (reduced.parameters - reduced.rank) + 3 + 1 + 1


@pytest.mark.parametrize("memory", [2000, 8000])
def test_memory_bound_does_not_change_the_result(memory: int) -> None:
    make, shape = NETWORKS["batch norm"]
    model, x, y = build(25, make), normal(26, *shape), classes(27, 8, 3)
    risk = EmpiricalRisk(model, cross_entropy, [(x[:5], y[:5]), (x[5:], y[5:])])
    whole, bounded = gauss_newton_spectrum(risk), gauss_newton_spectrum(risk, memory=memory)
    assert torch.allclose(bounded.values, whole.values, rtol=0, atol=1e-14 * float(whole.values[0]))


def test_float32_rows_keep_small_eigenvalues_down_to_the_floor() -> None:
    make, shape = NETWORKS["batch norm"]
    model, x, y = build(28, make), normal(29, *shape), classes(30, 8, 3)
    exact = gauss_newton_spectrum(EmpiricalRisk(model, cross_entropy, (x, y)))
    single = gauss_newton_spectrum(EmpiricalRisk(model.float(), cross_entropy, (x.float(), y)))
    roots = (single.values.clamp_min(0).sqrt() - exact.values.clamp_min(0).sqrt()).abs()
    assert float(roots.max()) < 16 * torch.finfo(torch.float32).eps * math.sqrt(float(exact.values[0]))
    assert single.rank == exact.rank
    assert single.floor < 1e-11 * float(exact.values[0])


class NoBatchingRule(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient * float(torch.ones(()) if gradient.sum().item() >= 0 else 1.0)  # .item() cannot be batched


class Opaque(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return NoBatchingRule.apply(x)


def test_operations_without_a_batching_rule_are_looped_over() -> None:
    make, shape = NETWORKS["batch norm"]
    model, x, y = build(31, make), normal(32, *shape), classes(33, 8, 3)
    plain = gauss_newton_spectrum(EmpiricalRisk(model, cross_entropy, (x, y)))
    looped = gauss_newton_spectrum(EmpiricalRisk(nn.Sequential(model, Opaque()), cross_entropy, (x, y)))
    assert torch.allclose(looped.values, plain.values, rtol=1e-12, atol=1e-15)


def test_nothing_of_the_model_is_disturbed() -> None:
    make, shape = NETWORKS["batch norm"]
    model = build(34, make)
    model.append(nn.Dropout(0.5))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    state, random_state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    risk = EmpiricalRisk(model, cross_entropy, (normal(35, *shape), classes(36, 8, 3)), mode="train")
    model.eval()
    first, second = gauss_newton_spectrum(risk), gauss_newton_spectrum(risk, memory=4000)
    assert torch.allclose(first.values, second.values, rtol=0, atol=1e-13 * float(first.values[0]))  # the same masks
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters() if p.grad is not None)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not any(module.training for module in model.modules())


def test_unused_parameters_add_zeros() -> None:
    make, shape = NETWORKS["batch norm"]
    model, x, y = build(37, make), normal(38, *shape), classes(39, 8, 3)
    plain = gauss_newton_spectrum(EmpiricalRisk(model, cross_entropy, (x, y)))
    model.register_parameter("unused", nn.Parameter(torch.ones(7, dtype=torch.float64)))
    found = gauss_newton_spectrum(EmpiricalRisk(model, cross_entropy, (x, y)))
    assert torch.allclose(found.values, plain.values, rtol=0, atol=1e-14)
    assert found.parameters == plain.parameters + 7


def test_condition_is_over_the_smallest_value_above_the_tolerance() -> None:
    values = torch.tensor([8.0, 2.0, 1e-3, 0.0], dtype=torch.float64)
    spectrum = GramSpectrum(values, samples=2, outputs=2, parameters=9, mode="eval", floor=8e-12)
    assert spectrum.condition(1e-6) == 8000.0
    assert spectrum.condition(1e-2) == 4.0
    assert spectrum.rank == 3
    with pytest.raises(ValueError, match=r"between the rounding floor 1\.0e-12 and 1; got 1e-13"):
        spectrum.condition(1e-13)


def test_losses_that_couple_samples_are_refused() -> None:
    model = build(40, lambda: nn.Linear(3, 2))
    risk = EmpiricalRisk(model, lambda z, y: z.sum().square(), (normal(41, 5, 3), normal(42, 5, 2)))
    with pytest.raises(ValueError, match="not block diagonal"):
        gauss_newton_spectrum(risk)


def test_losses_that_are_not_convex_are_refused() -> None:
    model = build(43, lambda: nn.Linear(3, 2))
    risk = EmpiricalRisk(model, lambda z, y: -(z - y).square().mean(), (normal(44, 5, 3), normal(45, 5, 2)))
    with pytest.raises(ValueError, match="must be convex"):
        gauss_newton_spectrum(risk)


def test_outputs_that_are_no_tensor_are_refused() -> None:
    model = build(46, lambda: nn.Linear(3, 2))
    risk = EmpiricalRisk(model, mse_loss, (normal(47, 5, 3), normal(48, 5, 2)), forward=lambda m, x: {"z": m(x)})
    with pytest.raises(ValueError, match="must return one tensor"):
        gauss_newton_spectrum(risk)


def test_empty_data_are_refused() -> None:
    risk = EmpiricalRisk(build(49, lambda: nn.Linear(3, 2)), mse_loss, [])
    with pytest.raises(ValueError, match="at least one sample"):
        gauss_newton_spectrum(risk)


def test_a_loss_that_is_linear_in_the_outputs_has_no_curvature() -> None:
    risk = EmpiricalRisk(
        build(50, lambda: nn.Linear(3, 2)), lambda z, y: (z * y).mean(), (normal(51, 5, 3), normal(52, 5, 2))
    )
    found = gauss_newton_spectrum(risk)
    assert found.values.tolist() == [0.0] * 10
    assert math.isnan(found.condition())
