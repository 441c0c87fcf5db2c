"""Theorems on the conditioning of a layer's input, and on the preconditioner that batch normalization is."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from normlens.curvature.activation_condition import activation_condition, bnp_root
from normlens.curvature.operator import DenseOperator

T1 = torch.tensor([[1.0, 2.0], [3.0, 2.0], [1.0, 6.0], [3.0, 6.0]])


def random_matrix(seed: int, samples: int, features: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(samples, features, dtype=torch.float64, generator=generator)
    scale = torch.exp(2 * torch.randn(features, dtype=torch.float64, generator=generator))
    return h * scale + 3 * torch.randn(features, dtype=torch.float64, generator=generator)


def test_worked_example_has_its_three_condition_numbers() -> None:
    found = activation_condition(T1)
    assert (found.raw, found.centered, found.normalized) == pytest.approx((15.2592240609, 2.0, 1.0), rel=1e-11)
    assert (found.rank, found.samples, found.features, found.constant) == (3, 4, 2, 0)


@pytest.mark.parametrize("seed", range(30))
def test_condition_numbers_are_those_of_numpy(seed: int) -> None:
    h = random_matrix(seed, 40, 6)
    found = activation_condition(h)
    ones, array = np.ones((40, 1)), h.numpy()
    centered = array - array.mean(0)
    for mine, part in [(found.raw, array), (found.centered, centered), (found.normalized, centered / array.std(0))]:
        assert mine == pytest.approx(np.linalg.cond(np.hstack([ones, part])), rel=1e-9)


@pytest.mark.parametrize("seed", range(30))
def test_centering_never_worsens_the_condition_number(seed: int) -> None:
    found = activation_condition(random_matrix(seed, 20, 5))
    assert found.centered < found.raw


@pytest.mark.parametrize("seed", range(30))
def test_normalizing_is_within_root_m_plus_one_of_the_best_diagonal_scaling(seed: int) -> None:
    h = random_matrix(seed, 20, 5)
    best = activation_condition(h).centered
    for scaling in range(20):
        generator = torch.Generator().manual_seed(1000 * seed + scaling)
        d = torch.exp(2 * torch.randn(6, dtype=torch.float64, generator=generator))
        scaled = torch.cat([torch.ones(20, 1, dtype=torch.float64), h - h.mean(0)], 1) * d
        best = min(best, float(torch.linalg.cond(scaled)))
    assert activation_condition(h).normalized <= math.sqrt(6) * best * (1 + 1e-9)


def test_fewer_samples_than_columns_give_the_pseudo_condition_number_and_the_rank() -> None:
    h = random_matrix(0, 4, 10)
    found = activation_condition(h)
    matrix = np.hstack([np.ones((4, 1)), h.numpy()])
    values = np.linalg.svd(matrix, compute_uv=False)
    assert found.rank == 4
    assert found.raw == pytest.approx(values[0] / values[-1], rel=1e-9)
    assert found.singular_values.shape == (3, 4)


def test_a_constant_feature_is_counted_and_left_out() -> None:
    h = random_matrix(1, 30, 4)
    with_constant = torch.cat([h, torch.full((30, 1), 0.1, dtype=torch.float64)], 1)
    found, without = activation_condition(with_constant), activation_condition(h)
    assert (found.constant, found.rank) == (1, 5)
    assert found.normalized == pytest.approx(without.normalized, rel=1e-9)
    assert found.centered == pytest.approx(without.centered, rel=1e-9)


@pytest.mark.parametrize(
    ("inputs", "match"),
    [(torch.ones(3), "must be"), (torch.ones(0, 2), "got"), (torch.full((2, 2), math.nan), "4 of 4 values")],
)
def test_inputs_that_are_no_finite_matrix_are_refused(inputs: torch.Tensor, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        activation_condition(inputs)


def test_scalar_preconditioned_gradient_is_the_worked_one() -> None:
    # G_W = 3, G_b = 1, mu = 2, sigma^2 = 4
    root = bnp_root(torch.tensor([2.0]), torch.tensor([4.0]))
    assert root.step(torch.tensor([1.0, 3.0])).tolist() == [0.5, 0.25]


def test_standardized_inputs_leave_the_gradient_unchanged_bitwise() -> None:
    root = bnp_root(torch.zeros(7), torch.ones(7))
    gradient = torch.randn(8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(root.step(gradient), gradient)
    assert torch.equal(root.dense(), torch.eye(8))


@pytest.mark.parametrize("q", [1.0, 1.5])
def test_root_maps_raw_inputs_to_batch_normalized_ones(q: float) -> None:
    h = random_matrix(3, 12, 4)
    variance = h.var(0, correction=0)
    ones = torch.ones(12, 1, dtype=torch.float64)
    mapped = torch.cat([ones, h], 1) @ bnp_root(h.mean(0), variance, q=q).dense()
    expected = torch.cat([ones, (h - h.mean(0)) / variance.sqrt()], 1) / q
    assert torch.allclose(mapped, expected, rtol=0, atol=1e-13)


def test_transposed_product_is_the_adjoint() -> None:
    h = random_matrix(4, 12, 5)
    root = bnp_root(h.mean(0), h.var(0, correction=0), q=2.0)
    generator = torch.Generator().manual_seed(1)
    g = torch.randn(6, dtype=torch.float64, generator=generator)
    assert torch.allclose(root.transposed(g), DenseOperator(root.dense().T) @ g, rtol=1e-13, atol=1e-13)


def test_step_is_the_written_out_formula_of_the_paper() -> None:
    mean, variance, q = torch.tensor([1.0, -2.0]).double(), torch.tensor([0.25, 4.0]).double(), 1.5
    root = bnp_root(mean, variance, q=q, relative_floor=1e-2, floor=1e-4)
    g_b, g_w = 0.7, torch.tensor([0.3, -1.1]).double()
    regularized = variance + 1e-2 * 4.0 + 1e-4
    w = (g_w - mean * g_b) / regularized / q**2
    b = g_b / q**2 - float(w @ mean)
    expected = torch.cat([torch.tensor([b], dtype=torch.float64), w])
    assert torch.allclose(root.step(torch.tensor([g_b, *g_w]).double()), expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    ("mean", "variance", "q", "match"),
    [
        (torch.zeros(2), torch.ones(3), 1.0, "must both be"),
        (torch.zeros(2), torch.ones(2), 0.0, "q must be positive"),
        (torch.zeros(2), torch.tensor([1.0, 0.0]), 1.0, "1 of 2 are not"),
    ],
)
def test_root_refuses_what_has_no_inverse(mean: torch.Tensor, variance: torch.Tensor, q: float, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        bnp_root(mean, variance, q=q)


def gradients(loss, *leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
    copies = [leaf.clone().requires_grad_() for leaf in leaves]
    return torch.autograd.grad(loss(*copies), copies)


def curved(a: torch.Tensor) -> torch.Tensor:
    """Any smooth loss of the pre-activations."""
    scale = torch.arange(1.0, 1 + a.shape[1]).double().view(-1, *[1] * (a.ndim - 2))
    return torch.nn.functional.softplus(scale * a).mean()


def test_one_preconditioned_step_is_one_step_of_frozen_batch_norm_for_a_linear_layer() -> None:
    h, b, alpha = random_matrix(5, 30, 4), torch.tensor([0.1, -2.0, 1.0]).double(), 0.3
    mean, variance = h.mean(0), h.var(0, correction=0)
    deviation = variance.sqrt()
    w = random_matrix(6, 3, 4) / (10 * deviation)
    scaled_w, scaled_b = w * deviation, b + w @ mean  # the same function on normalized inputs
    slope_w, slope_b = gradients(lambda w, b: curved(((h - mean) / deviation) @ w.T + b), scaled_w, scaled_b)
    stepped_w = (scaled_w - alpha * slope_w) / deviation
    stepped_b = scaled_b - alpha * slope_b - stepped_w @ mean
    grad_w, grad_b = gradients(lambda w, b: curved(h @ w.T + b), w, b)
    root = bnp_root(mean, variance)
    for i in range(3):
        moved = torch.cat([b[i : i + 1], w[i]]) - alpha * root.step(torch.cat([grad_b[i : i + 1], grad_w[i]]))
        expected = torch.cat([stepped_b[i : i + 1], stepped_w[i]])
        torch.testing.assert_close(moved, expected, rtol=1e-12, atol=1e-12)
        assert float((moved - torch.cat([b[i : i + 1], w[i]])).abs().max()) > 1e-3, "a step that moves nothing"


def conv_step(x: torch.Tensor, padding: int) -> float:
    """The largest difference of one preconditioned step from one step of frozen batch norm on the input channels."""
    w, b, alpha = random_matrix(8, 6, 9).view(3, 2, 3, 3), torch.tensor([0.1, -2.0, 1.0]).double(), 0.3
    mean, deviation = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0).sqrt()
    by_channel = deviation.view(1, 2, 1, 1)
    normalized = (x - mean.view(1, 2, 1, 1)) / by_channel

    def shift(weight: torch.Tensor) -> torch.Tensor:
        return (weight.sum((2, 3)) * mean).sum(1)

    def loss(inputs: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return curved(torch.nn.functional.conv2d(inputs, w, b, padding=padding))

    scaled_w, scaled_b = w * by_channel, b + shift(w)
    slope_w, slope_b = gradients(lambda w, b: loss(normalized, w, b), scaled_w, scaled_b)
    stepped_w = (scaled_w - alpha * slope_w) / by_channel
    stepped_b = scaled_b - alpha * slope_b - shift(stepped_w)
    grad_w, grad_b = gradients(lambda w, b: loss(x, w, b), w, b)
    root = bnp_root(mean.repeat_interleave(9), deviation.square().repeat_interleave(9))
    worst = 0.0
    for i in range(3):
        step = root.step(torch.cat([grad_b[i : i + 1], grad_w[i].flatten()]))
        moved = torch.cat([b[i : i + 1], w[i].flatten()]) - alpha * step
        expected = torch.cat([stepped_b[i : i + 1], stepped_w[i].flatten()])
        worst = max(worst, float((moved - expected).abs().max() / expected.abs().max()))
    return worst


def test_one_preconditioned_step_is_one_step_of_frozen_batch_norm_for_an_unpadded_convolution() -> None:
    x = random_matrix(7, 10 * 2 * 36, 1).view(10, 2, 6, 6) * torch.tensor([0.5, 2.0]).double().view(1, 2, 1, 1)
    assert conv_step(x, padding=0) < 1e-12
    assert conv_step(x, padding=1) > 1e-6, "zeros at the border are not centered: there it is an approximation"
