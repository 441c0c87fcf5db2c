"""ResidualBlock: two convolutions and a way around them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normlens.models.blocks import Placement, chain, needs_bias, placed
from normlens.models.normalization import Norm, make_norm
from normlens.models.weight_layers import conv

__all__ = ["ResidualBlock"]


class ResidualBlock(nn.Module):
    """The basic block, ``y = output(branch(x) + shortcut(x))`` (K. He et al., CVPR 2016, eq. 1 and 2).

    With the norm before the activation: branch = conv, norm, ReLU, conv, norm; shortcut = identity, or 1 x 1 conv and
    norm where the shape changes; output = ReLU. With the norm after it every norm follows a ReLU: branch = conv, ReLU,
    norm, conv; shortcut = identity or 1 x 1 conv; output = ReLU, norm. Shapes: ``(N, inputs, H, W)`` to
    ``(N, outputs, H / stride, W / stride)``, rounded up.

    Args:
        inputs: channels in.
        outputs: channels out.
        stride: step of the first convolution and of the shortcut.
        norm: see :func:`normlens.models.normalization.make_norm`.
        placement: on which side of its ReLU a norm stands.
        generator: the source of the weights.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        stride: int,
        norm: Norm,
        placement: Placement,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        bias = needs_bias(norm, placement)
        conv1 = conv(inputs, outputs, stride=stride, bias=bias, generator=generator)
        conv2 = conv(outputs, outputs, bias=bias, generator=generator)
        before1, after1 = placed(make_norm(norm, outputs), placement)
        before2, after2 = placed(make_norm(norm, outputs), placement)
        self.branch = chain(
            ("conv1", conv1),
            ("norm1", before1),
            ("relu", nn.ReLU()),
            ("norm1", after1),
            ("conv2", conv2),
            ("norm2", before2),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            around = conv(inputs, outputs, kernel=1, stride=stride, bias=bias, generator=generator)
            self.shortcut = chain(("conv", around), ("norm", placed(make_norm(norm, outputs), placement)[0]))
        self.output = chain(("relu", nn.ReLU()), ("norm", after2))

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch to the shortcut.

        Args:
            x: ``(N, inputs, H, W)``.
        """
        total: Tensor = self.output(self.branch(x) + self.shortcut(x))
        return total
