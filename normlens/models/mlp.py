"""MLP: fully connected blocks of weight, normalization and ReLU."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from normlens.models.blocks import Placement, needs_bias, weight_block
from normlens.models.normalization import Norm, make_norm
from normlens.models.shapes import check_classes, check_widths
from normlens.models.weight_layers import linear

__all__ = ["MLP"]


class MLP(nn.Module):
    """A fully connected network, ``flatten, block1, block2, ..., head``.

    Block ``k`` is ``linear``, ``norm``, ``relu`` (or ``linear``, ``relu``, ``norm``); its weight layer has a bias
    unless a norm follows it directly. The head is linear with a bias.
    Shapes: ``(N, *input_shape)`` to ``(N, classes)``.

    Args:
        input_shape: the shape of one input, e.g. ``(1, 8, 8)``.
        classes: the number of outputs.
        norm: a module name of :mod:`normlens.nn`, a class or function called as ``norm(num_features)``, or None.
        placement: on which side of the ReLU the norm stands.
        seed: decides all weights; the weight layers do not depend on ``norm``.
        widths: the number of units of each block.

    Raises:
        ValueError: an unknown norm or placement, or sizes that are not positive.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        classes: int,
        *,
        norm: Norm = "batch_norm",
        placement: Placement = "pre-activation",
        seed: int = 0,
        widths: tuple[int, ...] = (64, 64),
    ) -> None:
        super().__init__()
        check_widths(widths)
        check_classes(classes)
        generator = torch.Generator().manual_seed(seed)
        self.flatten = nn.Flatten()
        features = math.prod(input_shape)
        for number, width in enumerate(widths, start=1):
            weight = linear(features, width, bias=needs_bias(norm, placement), generator=generator)
            block = weight_block("linear", weight, make_norm(norm, width), placement)
            self.add_module(f"block{number}", block)
            features = width
        self.head = linear(features, classes, bias=True, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the children in their order.

        Args:
            x: ``(N, *input_shape)``.
        """
        for step in self.children():
            x = step(x)
        return x
