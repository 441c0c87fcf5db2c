"""Layers with weights, drawn by He's rule from a generator and never from the global random state."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import nn

__all__ = ["conv", "linear"]

_Layer = TypeVar("_Layer", nn.Conv2d, nn.Linear)


def conv(
    inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1, bias: bool, generator: torch.Generator
) -> nn.Conv2d:
    """Make a convolution that keeps the image size at stride 1 (odd kernels), with He weights and zero bias.

    ``weight ~ N(0, 2 / (inputs kernel^2))``: the variance that keeps the mean square of the activations before a ReLU
    (K. He et al., Delving deep into rectifiers, ICCV 2015, eq. 10).

    Args:
        inputs: channels in.
        outputs: channels out.
        kernel: height and width of the filter, odd.
        stride: step of the filter.
        bias: whether a bias is added.
        generator: the source of the weights.
    """
    # made on "meta", where nothing is drawn: on "cpu" the constructor draws from the global random state
    layer = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=bias, device="meta")
    return _draw(layer, fan_in=inputs * kernel**2, generator=generator)


def linear(inputs: int, outputs: int, *, bias: bool, generator: torch.Generator) -> nn.Linear:
    """Make a linear layer with He weights, ``weight ~ N(0, 2 / inputs)``, and zero bias.

    Args:
        inputs: features in.
        outputs: features out.
        bias: whether a bias is added.
        generator: the source of the weights.
    """
    layer = nn.Linear(inputs, outputs, bias=bias, device="meta")
    return _draw(layer, fan_in=inputs, generator=generator)


def _draw(layer: _Layer, *, fan_in: int, generator: torch.Generator) -> _Layer:
    layer = layer.to_empty(device="cpu")
    with torch.no_grad():
        layer.weight.normal_(0.0, math.sqrt(2.0 / fan_in), generator=generator)
        if layer.bias is not None:
            layer.bias.zero_()
    return layer
