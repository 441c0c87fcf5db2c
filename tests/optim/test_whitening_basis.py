from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normlens.optim.input_statistics import InputMoments, covariances
from normlens.optim.whitening_basis import WhiteningBasis, whitening_basis

KINDS = ["pca", "zca"]


def basis_of(x: Tensor, groups: int = 1, **settings: Any) -> WhiteningBasis:
    moments = InputMoments(*covariances(x, groups), 0, 0, 0)
    return whitening_basis(moments, **{"eps": 1e-3, "whitening": "pca", "centering": True, **settings})


@pytest.fixture
def correlated(draw: Callable[..., Tensor]) -> Tensor:
    """200 samples of six correlated features with means of one."""
    return draw(200, 6) @ draw(6, 6) + 1


@pytest.mark.parametrize("kind", KINDS)
def test_whitened_samples_have_mean_zero_and_covariance_one(kind: str, correlated: Tensor) -> None:
    basis = basis_of(correlated, eps=0.0, whitening=kind)
    white = (correlated - basis.center[0]) @ basis.whitening[0].T
    eye = torch.eye(6, dtype=torch.float64)
    torch.testing.assert_close(white.mean(0), torch.zeros_like(white[0]), rtol=0, atol=1e-13)
    # of a relative error eps * lambda_max / lambda_min in the smallest eigenvalue
    torch.testing.assert_close(white.T @ white / 200, eye, rtol=0, atol=1e-10)
    torch.testing.assert_close(basis.whitening[0] @ basis.inverse[0], eye, rtol=0, atol=1e-12)


def test_eps_bounds_what_a_direction_without_variance_is_scaled_by(draw: Callable[..., Tensor]) -> None:
    x = draw(50, 2) * torch.tensor([3.0, 0.0])
    values = torch.linalg.svdvals(basis_of(x, eps=1e-4).whitening[0])
    deviation = (float(x[:, 0].var(correction=0)) + 1e-4) ** 0.5
    torch.testing.assert_close(values, torch.tensor([100.0, 1 / deviation], dtype=torch.float64), rtol=1e-12, atol=0)


def test_zca_is_symmetric_and_pca_diagonalizes(correlated: Tensor) -> None:
    zca = basis_of(correlated, whitening="zca").whitening[0]
    torch.testing.assert_close(zca, zca.T, rtol=0, atol=1e-13)
    pca = basis_of(correlated, whitening="pca").whitening[0]
    gram = pca @ pca.T
    torch.testing.assert_close(gram, gram.diag().diag(), rtol=0, atol=1e-10)
    torch.testing.assert_close(pca.T @ pca, zca @ zca, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_the_layer_in_whitened_coordinates_is_the_same_function(kind: str, correlated: Tensor) -> None:
    layer = nn.Linear(6, 3).double()
    basis = basis_of(correlated, whitening=kind)
    v, d = basis.enter(layer.weight, layer.bias)
    white = (correlated - basis.center[0]) @ basis.whitening[0].T
    torch.testing.assert_close(white @ v.T + d, layer(correlated), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_grouped_convolution_in_whitened_coordinates_is_the_same_function(
    kind: str, draw: Callable[..., Tensor]
) -> None:
    layer, x = nn.Conv2d(4, 6, 3, groups=2).double(), draw(8, 4, 5, 6) + 1
    basis = basis_of(x, groups=2, whitening=kind)
    v, d = basis.enter(layer.weight, layer.bias)
    whitened = [u @ (part - c[:, None]) for u, c, part in zip(
        basis.whitening, basis.center, x.transpose(0, 1).flatten(1).chunk(2), strict=True)]  # fmt: skip
    white = torch.cat(whitened).view(4, 8, 5, 6).transpose(0, 1)
    torch.testing.assert_close(nn.functional.conv2d(white, v, d, groups=2), layer(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_with_respect_to_the_whitened_weight(kind: str, draw: Callable[..., Tensor]) -> None:
    x, layer = draw(8, 4, 5), nn.Conv1d(4, 2, 3, groups=2).double()
    basis = basis_of(x + 1, groups=2, whitening=kind)
    v, d = (t.detach().requires_grad_() for t in basis.enter(layer.weight, layer.bias))
    weight, bias = basis.leave(v, d)
    loss = nn.functional.conv1d(x, weight, bias, groups=2).tanh().mean()
    g_v, g_d = torch.autograd.grad(loss, [v, d])
    leaves = [t.detach().requires_grad_() for t in (weight, bias)]
    g_weight, g_bias = torch.autograd.grad(nn.functional.conv1d(x, *leaves, groups=2).tanh().mean(), leaves)
    torch.testing.assert_close(basis.gradient(g_weight, g_bias), g_v, rtol=0, atol=1e-14)
    assert torch.equal(g_d, g_bias)


def test_leaving_undoes_entering(draw: Callable[..., Tensor], correlated: Tensor) -> None:
    basis, weight, bias = basis_of(correlated), draw(3, 6), draw(3)
    back = basis.leave(*basis.enter(weight, bias))
    for found, expected in zip(back, (weight, bias), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_without_centering_the_center_is_zero_and_a_bias_stays(draw: Callable[..., Tensor], correlated: Tensor) -> None:
    basis, bias = basis_of(correlated, centering=False), draw(3)
    assert torch.equal(basis.enter(draw(3, 6), bias)[1], bias)
    assert basis.enter(draw(3, 6), None)[1] is None
