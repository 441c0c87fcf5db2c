"""Layer normalization: each sample standardized over all of its channels and over space."""

from __future__ import annotations

import torch
from torch import Tensor

from normlens.nn import native
from normlens.nn.base import Normalization

__all__ = ["LayerNorm"]


class LayerNorm(Normalization):
    """Standardize each sample over all channels and space, then scale and shift channels.

    ``y = weight_c (x - mean_n) / sqrt(var_n + eps) + bias_c``; ``mean_n`` and the biased ``var_n`` pool ``(C,
    *spatial)`` of sample ``n``, in train and eval mode alike. It is group norm with one group, and on ``(N, C)`` it is
    ``torch.nn.LayerNorm(C)``, with its state dict; a single value per sample is refused.

    Shapes: ``(N, C, *spatial)`` to the same, any spatial rank; the output is dimensionless before ``weight`` and
    ``bias``.

    Not the layer of transformers on ``(N, T, C)``: there ``torch.nn.LayerNorm(C)`` takes the statistics of every token
    by itself, over the last dimension. Here channels are at dimension 1 as everywhere in this package, so that one
    layer can take another's place in a convolutional network, and space is pooled, as the paper does for convolutions.
    For tokens use ``torch.nn.LayerNorm``, or this layer on ``(N * T, C)``.

    Valid for any batch size. Right in every derivative mode except ``is_grads_batched``, where PyTorch's kernel raises.

    Source: Ba, Kiros and Hinton, 2016, arXiv:1607.06450, equations 3 and 4.

    Args:
        num_features: ``C``, the channels at dimension 1.
        eps: added to the variance; with 0 a constant sample becomes nan.
        affine: whether to scale and shift.
        device: of the parameters.
        dtype: of the parameters; statistics are taken in at least float32.

    Raises:
        ValueError: a wrong number of channels, or one value per sample.
    """

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 1e-5,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps=eps, affine=affine, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``(N, C, *spatial)``."""
        self.check_input(x)
        self.check_count(x.shape[1:].numel(), x, unit="sample", advice="use BatchNorm or an input with space")
        return native.group_norm(x, 1, self.weight, self.bias, eps=self.eps)
