from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from normlens.optim.input_statistics import InputMoments, covariances
from normlens.optim.whitened_layer import WhitenedLayer, turn_momentum
from normlens.optim.whitening_basis import WhiteningBasis, whitening_basis


def basis_of(x: Tensor) -> WhiteningBasis:
    return whitening_basis(InputMoments(*covariances(x, 1), 0, 0, 0), eps=1e-3, whitening="pca", centering=True)


@pytest.fixture
def layer(draw: Callable[..., Tensor]) -> nn.Linear:
    layer = nn.Linear(5, 3).double()
    layer.weight.grad, layer.bias.grad = draw(3, 5), draw(3)
    return layer.requires_grad_(False)


@pytest.fixture
def basis(draw: Callable[..., Tensor]) -> WhiteningBasis:
    return basis_of(draw(50, 5) @ draw(5, 5) + 1)


def test_inside_it_holds_v_and_d_and_their_gradients(layer: nn.Linear, basis: WhiteningBasis) -> None:
    v, d = basis.enter(layer.weight, layer.bias)
    gradient, of_bias = basis.gradient(layer.weight.grad, layer.bias.grad), layer.bias.grad.clone()
    WhitenedLayer(layer, basis)
    for found, expected in ((layer.weight, v), (layer.bias, d), (layer.weight.grad, gradient)):
        torch.testing.assert_close(found.detach(), expected, rtol=0, atol=1e-15)
    assert torch.equal(layer.bias.grad, of_bias)


@pytest.mark.parametrize("end", ["leave", "abandon"])
def test_without_a_move_it_ends_with_the_same_bits(end: str, layer: nn.Linear, basis: WhiteningBasis) -> None:
    before = [p.clone() for p in layer.parameters()]
    inside = WhitenedLayer(layer, basis)
    assert not torch.equal(layer.weight, before[0])
    getattr(inside, end)()
    for parameter, value in zip(layer.parameters(), before, strict=True):
        assert torch.equal(parameter, value)


def test_a_move_of_v_and_d_is_one_of_w_and_b(
    layer: nn.Linear, basis: WhiteningBasis, draw: Callable[..., Tensor]
) -> None:
    """dW = dV U, db = dd - dW c."""
    before = [p.clone() for p in layer.parameters()]
    dv, dd = draw(3, 5), draw(3)
    inside = WhitenedLayer(layer, basis)
    layer.weight.add_(dv)
    layer.bias.add_(dd)
    inside.leave()
    dw = dv @ basis.whitening[0]
    torch.testing.assert_close(layer.weight.detach(), before[0] + dw, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.bias.detach(), before[1] + dd - dw @ basis.center[0], rtol=0, atol=1e-12)


def test_a_bias_without_a_gradient_stays_out_of_it(layer: nn.Linear, basis: WhiteningBasis) -> None:
    layer.bias.grad, before = None, layer.bias.clone()
    WhitenedLayer(layer, basis)
    assert torch.equal(layer.bias, before)


def test_momentum_becomes_the_same_velocity_in_other_coordinates(
    layer: nn.Linear, basis: WhiteningBasis, draw: Callable[..., Tensor]
) -> None:
    optimizer, other = torch.optim.SGD(layer.parameters(), lr=0.1), basis_of(draw(50, 5))
    turn_momentum(optimizer, layer, None, basis)  # before the first step there is none
    velocity = draw(3, 5), draw(3)
    for parameter, buffer in zip(layer.parameters(), velocity, strict=True):
        optimizer.state[parameter]["momentum_buffer"] = buffer.clone()
    for old, new in ((None, basis), (basis, other)):
        turn_momentum(optimizer, layer, old, new)
        buffers = [optimizer.state[p]["momentum_buffer"] for p in layer.parameters()]
        for found, expected in zip(new.leave(*buffers), velocity, strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
