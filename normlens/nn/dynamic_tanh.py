"""Dynamic tanh: no statistics at all, but a squashing function whose slope is learned, in the place of a norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normlens.nn.base import Normalization
from normlens.nn.functional import affine, promote

__all__ = ["DynamicTanh"]


class DynamicTanh(Normalization):
    """Squash every value by itself with a tanh of learned slope, then scale and shift channels.

    ``y = weight_c tanh(alpha x) + bias_c`` with a single ``alpha`` for the layer, in train and eval mode alike. It
    keeps no statistics and removes none: nothing is invariant, but a value is at most ``|weight_c|`` from ``bias_c``,
    and far smaller ones than ``1 / alpha`` pass as through ``weight_c alpha x + bias_c``. It stands where a layer norm
    would, in transformers.

    Shapes: ``(N, C, *spatial)`` to the same, any spatial rank; ``alpha`` has the shape ``(1,)`` and the inverse units
    of the input, the output is dimensionless before ``weight`` and ``bias``.

    Valid for any batch size and for a single value. Right in every derivative mode.

    Source: Zhu, Chen, He, LeCun and Liu, CVPR 2025, arXiv:2503.10622, section 4; parameters are named as in their
    code. For language models they begin with an ``alpha`` of its own in front of attention.

    Args:
        num_features: ``C``, the channels at dimension 1.
        alpha_init: where ``alpha`` begins; it is learned whatever ``affine`` says.
        affine: whether to scale and shift.
        device: of the parameters.
        dtype: of the parameters; the tanh is taken in at least float32.

    Raises:
        ValueError: a wrong number of channels.
    """

    def __init__(
        self,
        num_features: int,
        *,
        alpha_init: float = 0.5,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps=0.0, affine=affine, device=device, dtype=dtype)
        self.alpha_init = alpha_init
        self.alpha = nn.Parameter(torch.full((1,), float(alpha_init), device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Set ``alpha`` to ``alpha_init``, ``weight`` to one and ``bias`` to zero."""
        super().reset_parameters()
        nn.init.constant_(self.alpha, self.alpha_init)

    def forward(self, x: Tensor) -> Tensor:
        """Squash ``(N, C, *spatial)``."""
        self.check_input(x)
        wide = promote(x)
        return affine(torch.tanh(self.alpha.to(wide.dtype) * wide), self.weight, self.bias).to(x.dtype)
