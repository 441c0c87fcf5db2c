"""A layer while an optimizer steps the weights that it has for whitened inputs, in the place of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from normlens.nn.functional import promote
from normlens.optim.weight_layers import WeightLayer
from normlens.optim.whitening_basis import WhiteningBasis

__all__ = ["WhitenedLayer", "turn_momentum"]


class WhitenedLayer:
    """Puts V, d and their gradients in the place of a layer's weight, bias and theirs, until it is left.

    A bias without a gradient stays out of it; without centering it is not coupled to the weight.

    Args:
        layer: with a gradient of its weight.
        basis: the basis.
    """

    def __init__(self, layer: WeightLayer, basis: WhiteningBasis) -> None:
        self._basis, self._weight = basis, layer.weight
        self._bias = None if layer.bias is None or layer.bias.grad is None else layer.bias
        self._plain = self._values()
        _write(self._weight, self._bias, *basis.enter(*self._promoted()))
        self._white = self._values()
        self._turn_gradient()

    def leave(self) -> None:
        """Put W and b back, plus what V and d moved by: without a move nothing changes, not in the last bit."""
        weight, bias = self._promoted()
        by_bias = None if bias is None or self._white[1] is None else bias - self._white[1]
        by_weight, by_bias = self._basis.leave(weight - self._white[0], by_bias)
        bias = None if by_bias is None or self._plain[1] is None else self._plain[1] + by_bias
        _write(self._weight, self._bias, self._plain[0] + by_weight, bias)

    def abandon(self) -> None:
        """Put W and b back as they were."""
        _write(self._weight, self._bias, *self._plain)

    def _turn_gradient(self) -> None:
        grad, of_bias = self._weight.grad, None if self._bias is None else self._bias.grad
        assert grad is not None
        grad.copy_(self._basis.gradient(promote(grad), None if of_bias is None else promote(of_bias)))

    def _values(self) -> tuple[Tensor, Tensor | None]:
        return self._weight.clone(), None if self._bias is None else self._bias.clone()

    def _promoted(self) -> tuple[Tensor, Tensor | None]:
        return promote(self._weight), None if self._bias is None else promote(self._bias)


def turn_momentum(
    optimizer: torch.optim.Optimizer, layer: WeightLayer, old: WhiteningBasis | None, new: WhiteningBasis
) -> None:
    """Give the momentum of SGD the new coordinates of the same velocity of W and b.

    Args:
        optimizer: SGD.
        layer: the layer.
        old: the basis it was in; None for the plain coordinates.
        new: the basis it will be in.
    """
    weight = optimizer.state.get(layer.weight, {}).get("momentum_buffer")
    bias = None if layer.bias is None else optimizer.state.get(layer.bias, {}).get("momentum_buffer")
    if weight is not None:
        velocity = (weight, bias) if old is None else old.leave(weight, bias)
        _write(weight, bias, *new.enter(*velocity))


def _write(weight: Tensor, bias: Tensor | None, new_weight: Tensor, new_bias: Tensor | None) -> None:
    weight.copy_(new_weight)
    if bias is not None and new_bias is not None:
        bias.copy_(new_bias)
