"""What the gates of a dropout add to the variance behind the next linear layer or convolution, in closed form."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["variance_of_gates"]

_CONVOLUTIONS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv1d: nn.functional.conv1d,
    nn.Conv2d: nn.functional.conv2d,
    nn.Conv3d: nn.functional.conv3d,
}


def variance_of_gates(layer: nn.Module, x: Tensor, keep_prob: float, *, shared: bool) -> tuple[Tensor, Tensor] | None:
    r"""Return the variance of each output channel without gates, and what the gates add, ``(C,)`` each in float64.

    With independent gates :math:`g_i \in \{0, 1\}` of mean p the output :math:`z = \sum_i w_i x_i g_i / p` has the mean
    :math:`\sum_i w_i x_i` and the variance :math:`\tfrac{1-p}{p} \sum_i w_i^2 x_i^2` for given x, so by the law of
    total variance the mean of the latter is added to the variance over x. A gate that all values of a channel share
    takes the square of their sum :math:`\sum_{i \in c} w_i x_i` instead.

    Args:
        layer: what the gated values enter.
        x: its input without gates, not scaled, ``(N, C, *spatial)`` or ``(N, ..., C)`` for a linear layer.
        keep_prob: the p.
        shared: whether each channel of a sample has one gate.

    Returns:
        None where this is not known: other layers than plain ``Linear`` and ``Conv1d`` to ``Conv3d`` padded with zeros,
        and gates shared by the channels of a grouped convolution.
    """
    with torch.no_grad():
        if type(layer) is nn.Linear and not shared:
            outputs = nn.functional.linear(x, layer.weight)
            squares = nn.functional.linear(x.square(), layer.weight.square())
        elif isinstance(layer, nn.modules.conv._ConvNd) and type(layer) in _CONVOLUTIONS:
            if layer.padding_mode != "zeros" or (shared and layer.groups > 1):
                return None
            outputs = _convolve(layer, x, layer.weight)
            squares = _of_channels(layer, x) if shared else _convolve(layer, x.square(), layer.weight.square())
        else:
            return None
        pooled = (0, *range(2, outputs.ndim))
        var = outputs.double().var(pooled, correction=0)
        return var, (1 - keep_prob) / keep_prob * squares.double().mean(pooled)


def _convolve(layer: nn.modules.conv._ConvNd, x: Tensor, weight: Tensor) -> Tensor:
    convolve = _CONVOLUTIONS[type(layer)]
    return convolve(x, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)


def _of_channels(layer: nn.modules.conv._ConvNd, x: Tensor) -> Tensor:
    """Sum the squares of what each channel contributes, one channel after the other: all at once would not fit."""
    total = _convolve(layer, x[:, :1], layer.weight[:, :1]).square()
    for c in range(1, x.shape[1]):
        total += _convolve(layer, x[:, c : c + 1], layer.weight[:, c : c + 1]).square()
    return total
