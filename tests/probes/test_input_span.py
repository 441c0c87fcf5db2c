from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from normlens.probes.input_span import weight_span_decomposition

EPS = torch.finfo(torch.float64).eps


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def of_rank(rank: int, n: int, d: int) -> Tensor:
    return normal(n, rank, seed=1) @ normal(rank, d, seed=2)


LAYERS = {
    "linear": (lambda: nn.Linear(9, 4), of_rank(5, 30, 9)),
    "tokens": (lambda: nn.Linear(9, 4, bias=False), of_rank(5, 30, 9).reshape(6, 5, 9)),
    "conv": (lambda: nn.Conv2d(3, 4, 3, padding=1, stride=2), of_rank(2, 4, 3 * 49).reshape(4, 3, 7, 7)),
    "dilated": (lambda: nn.Conv2d(2, 4, (3, 2), dilation=2, padding="same"), of_rank(1, 3, 98).reshape(3, 2, 7, 7)),
    "circular": (lambda: nn.Conv1d(2, 4, 3, padding=1, padding_mode="circular"), normal(1, 2, 3)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_lie_in_the_span_and_the_parts_are_orthogonal_and_add_up(name):
    """I3: rows of the gradient are combinations of inputs (patches), so the orthogonal part of it is nothing."""
    make, x = LAYERS[name]
    layer = make().double()
    layer(x).square().sum().backward()
    weight, gradient = layer.weight.detach().clone(), layer.weight.grad
    parallel, orthogonal, ratio = weight_span_decomposition(layer, x)
    torch.testing.assert_close(parallel + orthogonal, weight, rtol=0, atol=10 * EPS)
    assert abs(float((parallel * orthogonal).sum())) < 100 * EPS * float(weight.square().sum())
    assert ratio == pytest.approx(float(orthogonal.square().sum() / weight.square().sum()))
    assert abs(float((orthogonal * gradient).sum())) < 100 * EPS * float(weight.norm() * gradient.norm())
    layer.weight.data = gradient
    assert weight_span_decomposition(layer, x).ratio < 1e-26


def test_the_ratio_is_that_of_the_projector_by_the_pseudoinverse():
    layer, x = nn.Linear(9, 4).double(), of_rank(5, 30, 9)
    projector = torch.eye(9, dtype=torch.float64) - torch.linalg.pinv(x) @ x
    expected = (layer.weight.detach() @ projector).square().sum() / layer.weight.square().sum()
    assert weight_span_decomposition(layer, x).ratio == pytest.approx(float(expected.detach()), rel=1e-11)


def test_inputs_that_are_always_zero_keep_their_weights():
    layer, x = nn.Linear(4, 2).double().requires_grad_(False), normal(20, 4)
    x[:, 2] = 0
    _, orthogonal, ratio = weight_span_decomposition(layer, x)
    expected = torch.zeros_like(layer.weight)
    expected[:, 2] = layer.weight[:, 2]
    torch.testing.assert_close(orthogonal, expected, rtol=0, atol=50 * EPS)
    assert ratio == pytest.approx(float(layer.weight[:, 2].square().sum() / layer.weight.square().sum()))


def test_without_any_input_all_is_orthogonal_and_a_full_span_leaves_nothing():
    layer = nn.Linear(4, 2).double()
    assert weight_span_decomposition(layer, torch.zeros(5, 4, dtype=torch.float64)).ratio == 1
    assert weight_span_decomposition(layer, normal(9, 4)).ratio < 1e-28


def test_rounding_of_float32_inputs_does_not_count_as_a_direction():
    x = of_rank(3, 40, 8).float()
    ratio = weight_span_decomposition(nn.Linear(8, 4), x).ratio
    assert ratio > 0.1
    assert weight_span_decomposition(nn.Linear(8, 4), x, rcond=0.0).ratio < 1e-12


def test_what_is_not_a_number_stays_so():
    layer = nn.Linear(4, 2)
    assert torch.isnan(torch.tensor(weight_span_decomposition(layer, torch.full((3, 4), torch.nan)).ratio))


def test_a_layer_whose_patches_are_not_known_is_refused():
    with pytest.raises(ValueError, match=r"known for Linear, Conv1d and Conv2d without groups; got Conv2d; name other"):
        weight_span_decomposition(nn.Conv2d(2, 2, 3, groups=2), torch.zeros(1, 2, 5, 5))
