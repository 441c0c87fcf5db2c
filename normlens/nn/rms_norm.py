"""Root mean square normalization: each sample divided by the root mean square of its channels and space."""

from __future__ import annotations

import torch
from torch import Tensor

from normlens.nn import native
from normlens.nn.base import Normalization

__all__ = ["RMSNorm"]


class RMSNorm(Normalization):
    """Divide each sample by its root mean square over all channels and space, then scale channels.

    ``y = weight_c x / sqrt(ms_n + eps)``; ``ms_n`` is the mean of ``x^2`` over ``(C, *spatial)`` of sample ``n``, in
    train and eval mode alike. It is layer norm without the mean, hence not invariant to shifts, and has no ``bias``. On
    ``(N, C)`` it is ``torch.nn.RMSNorm(C, eps=1e-6)`` with its state dict. For tokens ``(N, T, C)`` use that one, or
    this on ``(N * T, C)``.

    Shapes: ``(N, C, *spatial)`` to the same, any spatial rank; the output is dimensionless before ``weight``.

    Valid for any batch size and for a single value. Right in every derivative mode.

    Source: Zhang and Sennrich, NeurIPS 2019, arXiv:1910.07467, equation 4, which has no ``eps``.

    Args:
        num_features: ``C``, the channels at dimension 1.
        eps: added to the mean square. The default is that of LLaMA, one for all dtypes; PyTorch's None is the machine
            epsilon of the dtype of the computation, ``torch.finfo(torch.float32).eps`` up to float32. With 0 a zero
            sample becomes nan.
        affine: whether to scale.
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

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``(N, C, *spatial)``."""
        self.check_input(x)
        return native.rms_norm(x, self.weight, eps=self.eps)
