"""Instance enhancement batch normalization: batch norm whose scale each sample adjusts by its channels' levels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normlens.nn import native
from normlens.nn.base import RunningNormalization
from normlens.nn.functional import affine as scale_and_shift
from normlens.nn.functional import promote

__all__ = ["InstanceEnhancementBatchNorm"]


class InstanceEnhancementBatchNorm(RunningNormalization):
    """Batch norm whose scale is readjusted for each sample and channel by a gate on that channel's own mean.

    ``y = weight_c gate_nc (x - mean_c) / sqrt(var_c + eps) + bias_c`` with ``gate_nc = sigmoid(weight_readjust_c
    mean_nc + bias_readjust_c)``; ``mean_nc`` is the mean of ``x``, not of its standardized values, over ``*spatial``,
    and ``x`` itself where there is no space. ``mean_c`` and the biased ``var_c`` pool ``(N, *spatial)`` in train mode
    and are ``running_mean``, ``running_var`` in eval mode; these move as those of batch norm. The gate is the same in
    both modes and leaves ``bias`` alone.

    At the start (``weight_readjust`` 0, ``bias_readjust`` -1) it is ``sigmoid(-1) = 0.26894`` times batch norm; from
    the first step on it is no longer invariant to the scale and shift of its input.

    Shapes: ``(N, C, *spatial)`` to the same, any spatial rank; the output is dimensionless before ``weight`` and
    ``bias``; ``weight_readjust`` has the inverse units of ``x``.

    Valid in train mode from two values per channel on; one sample of constant maps becomes ``bias``. Derivatives: see
    :mod:`normlens.nn.native`.

    Source: Liang, Huang, Liang and Yang, AAAI 2020, arXiv:1908.04008. Their code keeps ``weight`` and ``bias`` as ``(1,
    C, 1, 1)``, which batch norm's ``(C,)`` do not load into; ours are ``(C,)`` and load.

    Args:
        num_features: ``C``, the channels at dimension 1.
        eps: added to the variance; with 0 a constant channel becomes 0 or nan, as PyTorch's kernel has it.
        momentum: weight of the newest batch in the running statistics; None averages all batches alike.
        affine: whether there are ``weight`` and ``bias``; the parameters of the gate stay.
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
        zero = torch.zeros(num_features, device=device, dtype=dtype)
        self.weight_readjust = nn.Parameter(zero)
        self.bias_readjust = nn.Parameter(torch.full_like(zero, -1.0))

    def reset_parameters(self) -> None:
        """Set ``weight`` to one, ``bias`` and ``weight_readjust`` to zero, the gate to sigmoid(-1); forget batches."""
        super().reset_parameters()
        nn.init.zeros_(self.weight_readjust)
        nn.init.constant_(self.bias_readjust, -1.0)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``(N, C, *spatial)``; in train mode the running statistics move."""
        self.check_input(x)
        wide = promote(x)
        scale = scale_and_shift(self._gate(wide), self.weight, None)
        return scale_and_shift(self._standardized(wide) * scale, None, self.bias).to(x.dtype)

    def _gate(self, x: Tensor) -> Tensor:
        """Readjust each sample and channel, ``(N, C, 1, ...)``, all between 0 and 1."""
        level = x.reshape(*x.shape[:2], -1).mean(2).reshape(*x.shape[:2], *(1,) * (x.dim() - 2))
        return torch.sigmoid(scale_and_shift(level, self.weight_readjust, self.bias_readjust))

    def _standardized(self, x: Tensor) -> Tensor:
        on_batch = self.training or self.running_mean is None
        if on_batch:
            advice = "use a larger batch, or running statistics (track_running_stats=True and .eval())"
            self.check_count(x.numel() // self.num_features, x, unit="channel", advice=advice)
        factor = self.count_batch() if on_batch else 0.0
        mean, var = self.running_mean, self.running_var
        return native.batch_norm(x, mean, var, None, None, training=on_batch, factor=factor, eps=self.eps)
