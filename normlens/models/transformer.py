"""Transformer: self-attention over the rows of an image, with the norm before each of its parts."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from normlens.models.blocks import Placement, needs_bias, placed
from normlens.models.normalization import Norm, make_norm
from normlens.models.shapes import check_classes, check_image, check_widths
from normlens.models.weight_layers import linear

__all__ = ["Transformer"]


class Transformer(nn.Module):
    """A pre-norm Transformer encoder, ``embed, block1, block2, ..., norm, head``; its tokens are the rows of an image.

    Row ``t`` with all its channels is embedded by one linear layer and gets a learned position. Block ``k`` is ``x +
    attention(norm(x))``, then ``x + feed_forward(norm(x))``, the latter ``linear``, ``relu``, ``output`` and twice as
    wide; a last ``norm``, and the linear ``head`` sees all tokens side by side. There is no dropout. Shapes: ``(N, C,
    H, W)`` to ``(N, classes)``; inside, ``(N, T, width)`` with ``T = H``.

    A norm sees ``(N T, width)``, one sample for each token: so layer norm, RMS norm, scale norm and group norm treat
    every token by itself, as in the literature, and batch norm pools all tokens of all images. A norm that needs
    positions to pool over (instance norm) refuses that. With ``placement="post-activation"`` there is one place for it,
    after the ReLU of each feed-forward part; attention has no ReLU.

    Weight layers but the head have no bias where a norm stands before them: it brings one. With a bias, that of the
    keys moves no output, since softmax takes no notice of a shift. Weights keep the mean square of what passes, but
    those of what is added to a token begin smaller by ``2 blocks``, so that all blocks together add about one token.

    Source: Vaswani et al., NeurIPS 2017, arXiv:1706.03762, section 3; Xiong et al., ICML 2020, arXiv:2002.04745, for
    the place of the norm.

    Args:
        input_shape: the shape ``(C, H, W)`` of one image.
        classes: the number of outputs.
        norm: a module name of :mod:`normlens.nn`, a class or function called as ``norm(num_features)``, or None.
        placement: before each part (pre-norm), or after the ReLU of the feed-forward part.
        seed: decides all weights; the weight layers do not depend on ``norm``.
        width: the number of features of a token.
        heads: the number of attention heads, a divisor of ``width``.
        blocks: the number of blocks.

    Raises:
        ValueError: an unknown norm or placement, heads that do not divide the width, or sizes that are not positive.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        classes: int,
        *,
        norm: Norm = "batch_norm",
        placement: Placement = "pre-activation",
        seed: int = 0,
        width: int = 32,
        heads: int = 4,
        blocks: int = 2,
    ) -> None:
        super().__init__()
        check_widths((width, heads, blocks))
        check_classes(classes)
        if width % heads:
            raise ValueError(f"heads must divide the width, got width={width} and heads={heads}: pass e.g. heads=1.")
        channels, height, columns = check_image(input_shape)
        generator = torch.Generator().manual_seed(seed)
        make = _Make(norm, placement, generator, added=1 / (2 * blocks))
        self.embed = make.linear(channels * columns, width)
        self.position = nn.Parameter(0.2 * torch.randn(height, width, generator=generator))
        for number in range(1, blocks + 1):
            self.add_module(f"block{number}", _Block(make, width, heads))
        self.norm = make.norm(width)[0]
        self.head = linear(height * width, classes, bias=True, generator=generator)
        with torch.no_grad():
            self.head.weight.mul_(0.5)  # He's weights are made for a ReLU to follow

    def forward(self, x: Tensor) -> Tensor:
        """Classify images by their rows.

        Args:
            x: ``(N, C, H, W)``.
        """
        x = self.embed(x.transpose(1, 2).flatten(2)) + self.position
        for name, part in self.named_children():
            if name.startswith("block"):
                x = part(x)
        scores: Tensor = self.head(_per_token(self.norm, x).flatten(1))
        return scores


class _Make:
    """Makes the layers of all blocks from one generator."""

    def __init__(self, norm: Norm, placement: Placement, generator: torch.Generator, *, added: float) -> None:
        self._norm, self._placement, self._generator, self._added = norm, placement, generator, added

    def norm(self, features: int) -> tuple[nn.Module | None, nn.Module | None]:
        """Return what stands before a part and what stands after its ReLU."""
        return placed(make_norm(self._norm, features), self._placement)

    def linear(self, inputs: int, outputs: int, *, rectified: bool = False, added: bool = False) -> nn.Linear:
        """Keep the mean square: He's weights are made for a ReLU, and without one half their variance does it."""
        bias = needs_bias(self._norm, self._placement)
        layer = linear(inputs, outputs, bias=bias, generator=self._generator)
        with torch.no_grad():
            layer.weight.mul_((1 if rectified else math.sqrt(0.5)) * (self._added if added else 1))
        return layer


class _Block(nn.Module):
    """``x + attention(x)``, then ``x + feed_forward(x)``, for ``(N, T, width)``."""

    def __init__(self, make: _Make, width: int, heads: int) -> None:
        super().__init__()
        self.attention = _Attention(make, width, heads)
        self.feed_forward = _FeedForward(make, width, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        total: Tensor = x + self.feed_forward(x)
        return total


class _Attention(nn.Module):
    """Heads of ``softmax(q k' / sqrt(d)) v``, spelled out: the fused kernels have no second derivative."""

    def __init__(self, make: _Make, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = make.norm(width)[0]
        self.queries_keys_values = make.linear(width, 3 * width)
        self.output = make.linear(width, width, added=True)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.queries_keys_values(_per_token(self.norm, x))
        q, k, v = mixed.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (N, heads, T, d)
        weights = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
        seen: Tensor = self.output((weights @ v).transpose(1, 2).flatten(2))
        return seen


class _FeedForward(nn.Module):
    """``output(relu(linear(x)))`` of each token by itself."""

    def __init__(self, make: _Make, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = make.norm(width)[0]
        self.linear = make.linear(width, hidden, rectified=True)
        self.relu = nn.ReLU()
        self.hidden_norm = make.norm(hidden)[1]
        self.output = make.linear(hidden, width, added=True)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.relu(self.linear(_per_token(self.norm, x)))
        result: Tensor = self.output(_per_token(self.hidden_norm, hidden))
        return result


def _per_token(norm: nn.Module | None, x: Tensor) -> Tensor:
    """Normalize ``(N, T, C)`` as ``(N T, C)``: our layers pool all that follows the channels with them."""
    if norm is None:
        return x
    rows: Tensor = norm(x.flatten(0, 1))
    return rows.reshape(x.shape)
