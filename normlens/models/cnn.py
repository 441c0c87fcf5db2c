"""CNN: convolution blocks with max pooling between them, and a linear head on the spatial mean."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from normlens.models.blocks import Placement, needs_bias, weight_block
from normlens.models.normalization import Norm, make_norm
from normlens.models.shapes import check_classes, check_image, check_widths
from normlens.models.weight_layers import conv, linear

__all__ = ["CNN"]

_DROP_RATE = 0.2


class CNN(nn.Module):
    """A plain convolutional network, ``block1, pool1, block2, pool2, block3, average, flatten, head``.

    Block ``k`` is a 3 x 3 ``conv``, ``norm``, ``relu`` (or ``conv``, ``relu``, ``norm``); its weight layer has a bias
    unless a norm follows it directly. A pool takes the maximum of 2 x 2 pixels, the average is over all that are left.
    Shapes: ``(N, C, H, W)`` to ``(N, classes)``; with ``B`` blocks height and width must be at least ``2**(B - 1)``.

    Args:
        input_shape: the shape ``(C, H, W)`` of one image.
        classes: the number of outputs.
        norm: a module name of :mod:`normlens.nn`, a class or function called as ``norm(num_features)``, or None. In the
            place of a norm ``"dropout"`` sets a fifth of the values to zero, ``"spatial_dropout"`` a fifth of the
            channels: what the IC layer is compared with.
        placement: on which side of the ReLU the norm stands.
        seed: decides all weights; the weight layers do not depend on ``norm``.
        widths: the number of channels of each block.

    Raises:
        ValueError: an unknown norm or placement, images that are too small, or sizes that are not positive.
    """

    own_norms: ClassVar[tuple[str, ...]] = ("dropout", "spatial_dropout")

    def __init__(
        self,
        input_shape: tuple[int, ...],
        classes: int,
        *,
        norm: Norm = "batch_norm",
        placement: Placement = "pre-activation",
        seed: int = 0,
        widths: tuple[int, ...] = (16, 32, 64),
    ) -> None:
        super().__init__()
        check_widths(widths)
        check_classes(classes)
        channels, _, _ = check_image(input_shape, smallest=2 ** (len(widths) - 1))
        generator = torch.Generator().manual_seed(seed)
        bias = norm in self.own_norms or needs_bias(norm, placement)  # a dropout subtracts none
        for number, width in enumerate(widths, start=1):
            weight = conv(channels, width, bias=bias, generator=generator)
            self.add_module(f"block{number}", weight_block("conv", weight, _norm_or_gates(norm, width), placement))
            if number < len(widths):
                self.add_module(f"pool{number}", nn.MaxPool2d(2))
            channels = width
        self.average = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = linear(channels, classes, bias=True, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the children in their order.

        Args:
            x: ``(N, C, H, W)``.
        """
        for step in self.children():
            x = step(x)
        return x


def _norm_or_gates(norm: Norm, width: int) -> nn.Module | None:
    if norm == "dropout":
        return nn.Dropout(_DROP_RATE)
    return nn.Dropout2d(_DROP_RATE) if norm == "spatial_dropout" else make_norm(norm, width)
