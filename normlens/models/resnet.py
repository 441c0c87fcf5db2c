"""ResNet: the residual networks for small images, ResNet-20 and its shorter and longer relatives."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from normlens.models.blocks import Placement, chain, needs_bias, weight_block
from normlens.models.normalization import Norm, make_norm
from normlens.models.residual import ResidualBlock
from normlens.models.shapes import check_classes, check_image, check_widths
from normlens.models.weight_layers import conv, linear

__all__ = ["ResNet"]


class ResNet(nn.Module):
    """A residual network, ``stem, stage1, stage2, stage3, average, flatten, head``.

    The stem is a 3 x 3 convolution block; a stage is ``block1, block2, ...`` of :class:`ResidualBlock`, the first of
    which halves height and width in every stage but the first. With three widths and ``n`` blocks in a stage there are
    ``depth = 6 n + 2`` weight layers from input to output: ResNet-8 at 8, ResNet-20 at 20. The default is that of K. He
    et al., Deep residual learning for image recognition, CVPR 2016, section 4.2 (the ReLU comes after the addition),
    with 1 x 1 convolutions where a shortcut changes the shape (option B). Shapes: ``(N, C, H, W)`` to ``(N, classes)``.

    Without a norm the activations grow by a factor with each block: ``norm=None`` is for small depths.

    Args:
        input_shape: the shape ``(C, H, W)`` of one image.
        classes: the number of outputs.
        norm: a module name of :mod:`normlens.nn`, a class or function called as ``norm(num_features)``, or None.
        placement: on which side of its ReLU a norm stands.
        seed: decides all weights; the weight layers do not depend on ``norm``.
        depth: the number of weight layers, ``2 n len(widths) + 2``.
        widths: the number of channels of each stage.

    Raises:
        ValueError: an unknown norm or placement, a depth between two networks, or sizes that are not positive.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        classes: int,
        *,
        norm: Norm = "batch_norm",
        placement: Placement = "pre-activation",
        seed: int = 0,
        depth: int = 20,
        widths: tuple[int, ...] = (16, 32, 64),
    ) -> None:
        super().__init__()
        check_widths(widths)
        check_classes(classes)
        channels, _, _ = check_image(input_shape)
        blocks = _blocks_per_stage(depth, len(widths))
        generator = torch.Generator().manual_seed(seed)
        weight = conv(channels, widths[0], bias=needs_bias(norm, placement), generator=generator)
        self.stem = weight_block("conv", weight, make_norm(norm, widths[0]), placement)
        block = partial(ResidualBlock, norm=norm, placement=placement, generator=generator)
        for number, (before, width) in enumerate(pairwise((widths[0], *widths)), start=1):
            first = block(before, width, stride=1 if number == 1 else 2)
            stage = [first, *(block(width, width, stride=1) for _ in range(blocks - 1))]
            self.add_module(f"stage{number}", chain(*((f"block{k}", made) for k, made in enumerate(stage, start=1))))
        self.average = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = linear(widths[-1], classes, bias=True, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the children in their order.

        Args:
            x: ``(N, C, H, W)``.
        """
        for step in self.children():
            x = step(x)
        return x


def _blocks_per_stage(depth: int, stages: int) -> int:
    blocks, rest = divmod(depth - 2, 2 * stages)
    if blocks < 1 or rest:
        near = 2 * stages * max(1, blocks) + 2
        raise ValueError(
            f"depth must be {2 * stages} n + 2 with n >= 1 for {stages} stages, got {depth}: pass e.g. {near}."
        )
    return blocks
