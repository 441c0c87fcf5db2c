"""Batch normalization: each channel standardized over the batch and over space."""

from __future__ import annotations

import torch
from torch import Tensor

from normlens.nn import native
from normlens.nn.base import RunningNormalization

__all__ = ["BatchNorm"]


class BatchNorm(RunningNormalization):
    """Standardize each channel over batch and space, then scale and shift it.

    ``y = weight_c (x - mean_c) / sqrt(var_c + eps) + bias_c``; ``mean_c`` and the biased ``var_c`` pool ``(N,
    *spatial)`` of channel ``c`` in train mode and are ``running_mean``, ``running_var`` in eval mode. After each batch
    in train mode ``running' = (1 - momentum) running + momentum batch``, with the unbiased variance. It is
    ``torch.nn.BatchNorm1d``, ``2d`` and ``3d`` in one, with their state dict.

    Shapes: ``(N, C, *spatial)`` to the same, any spatial rank; the output is dimensionless before ``weight`` and
    ``bias``.

    Valid in train mode from two values per channel on. There a sample's output depends on its batch: derivatives per
    sample do not exist, and second derivatives are right by double backward or ``jvp(grad)``, not by
    ``torch.func.hessian``.

    Source: Ioffe and Szegedy, ICML 2015, arXiv:1502.03167, algorithms 1 and 2.

    Args:
        num_features: ``C``, the channels at dimension 1.
        eps: added to the variance; with 0 a constant channel becomes nan.
        momentum: weight of the newest batch in the running statistics; None averages all batches alike.
        affine: whether to scale and shift.
        track_running_stats: without running statistics eval mode uses the batch's too.
        device: of parameters and buffers.
        dtype: of parameters and buffers; statistics are taken in at least float32.

    Raises:
        ValueError: a wrong number of channels, or one value per channel where the batch's statistics are used.
    """

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            num_features,
            eps=eps,
            momentum=momentum,
            affine=affine,
            track_running_stats=track_running_stats,
            device=device,
            dtype=dtype,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``(N, C, *spatial)``; in train mode the running statistics move."""
        self.check_input(x)
        on_batch = self.training or self.running_mean is None
        if on_batch:
            advice = "use a larger batch, or running statistics (track_running_stats=True and .eval())"
            self.check_count(x.numel() // self.num_features, x, unit="channel", advice=advice)
        return native.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            training=on_batch,
            factor=self.count_batch() if on_batch else 0.0,
            eps=self.eps,
        )
