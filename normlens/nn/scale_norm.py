"""Scale normalization: each sample divided by its length over the channels, times one gain for all of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from normlens.nn import native
from normlens.nn.base import Normalization

__all__ = ["ScaleNorm"]


class ScaleNorm(Normalization):
    """Give each sample the length of the gain: divide it by its norm over all channels, multiply it by one number.

    ``y = weight x / sqrt(C (ms_n + eps))`` with a single ``weight``, which begins at ``sqrt(C)``; ``ms_n`` is the mean
    of ``x^2`` over ``(C, *spatial)`` of sample ``n``, in train and eval mode alike. On ``(N, C)`` and with ``eps=0`` it
    is the paper's ``weight x / |x|``; with space ``|x|^2`` is the mean over positions of the squared norm over
    channels. It is root mean square norm whose gains are one and the same, ``weight / sqrt(C)``.

    Shapes: ``(N, C, *spatial)`` to the same, any spatial rank; the output is dimensionless before ``weight``, which has
    the shape ``(1,)``.

    Valid for any batch size and for a single value. Right in every derivative mode.

    Source: Nguyen and Salazar, IWSLT 2019, arXiv:1910.05895, scaled l2 normalization, which has no ``eps``.

    Args:
        num_features: ``C``, the channels at dimension 1.
        eps: added to the mean square, as for RMSNorm. With 0 a zero sample becomes nan.
        affine: whether the gain is learned; it stays ``sqrt(C)`` otherwise.
        device: of the parameter.
        dtype: of the parameter; statistics are taken in at least float32.

    Raises:
        ValueError: a wrong number of channels.
    """

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 1e-6,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps=eps, affine=affine, has_bias=False, device=device, dtype=dtype)
        if affine:
            self.weight = nn.Parameter(torch.full((1,), math.sqrt(num_features), device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Set ``weight`` to the square root of the number of channels."""
        if self.weight is not None:
            nn.init.constant_(self.weight, math.sqrt(self.num_features))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``(N, C, *spatial)``."""
        self.check_input(x)
        gain = None if self.weight is None else self.weight / math.sqrt(self.num_features)
        return native.rms_norm(x, gain, eps=self.eps)
