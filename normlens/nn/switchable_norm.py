"""Switchable normalization: a learned mixture of instance, layer and batch statistics."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normlens.nn.base import RunningNormalization
from normlens.nn.functional import Moments, instance_moments, per_channel, promote
from normlens.nn.functional import affine as scale_and_shift

__all__ = ["SwitchableNorm", "pooled_moments"]


class SwitchableNorm(RunningNormalization):
    """Standardize by a learned mixture of instance, layer and batch statistics, then scale and shift channels.

    ``y = weight_c (x - mean_nc) / sqrt(var_nc + eps) + bias_c`` with ``mean_nc = sum_k softmax(mean_logits)_k
    mean_k`` and ``var_nc = sum_k softmax(var_logits)_k var_k``; ``k`` runs over instance (``*spatial`` of sample ``n``
    and channel ``c``), layer (channels and ``*spatial`` of sample ``n``) and batch (``(N, *spatial)`` of channel
    ``c``), all with biased variances. Batch statistics are the batch's in train mode and ``running_mean``,
    ``running_var`` in eval mode, which move as those of batch norm; the other two are the input's in both modes.

    The logits start equal, a third each.

    Shapes: ``(N, C, *spatial)`` to the same, at least one spatial dimension; dimensionless before ``weight`` and
    ``bias``.

    Valid for any batch size from two spatial positions on; for a batch of one batch statistics are the instance's.
    Right in every derivative mode.

    Source: Luo, Ren, Peng, Zhang and Li, ICLR 2019, arXiv:1806.10779. Their code starts ``running_var`` at 0, ours at
    1, and takes the instance variance unbiased and the other two from it; ours are biased as in the formula.

    Args:
        num_features: ``C``, the channels at dimension 1.
        eps: added to the variance; with 0 a constant input becomes nan.
        momentum: weight of the newest batch in the running statistics; None averages all batches alike.
        affine: whether to scale and shift; the logits stay.
        track_running_stats: without running statistics eval mode uses the batch's too.
        device: of parameters and buffers.
        dtype: of parameters and buffers; statistics are taken in at least float32.

    Raises:
        ValueError: a wrong number of channels, no spatial dimension, or one position in space.
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
        self.mean_logits = nn.Parameter(torch.ones(3, device=device, dtype=dtype))
        self.var_logits = nn.Parameter(torch.ones(3, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Set ``weight`` and all logits to one and ``bias`` to zero, and forget all batches."""
        super().reset_parameters()
        nn.init.ones_(self.mean_logits)
        nn.init.ones_(self.var_logits)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``(N, C, *spatial)``; in train mode the running statistics move."""
        self.check_input(x, spatial=True)
        advice = "use LayerNorm, GroupNorm or BatchNorm where space has shrunk to one position"
        self.check_count(x.shape[2:].numel(), x, unit="sample and channel", advice=advice)
        wide = promote(x)
        instance = instance_moments(wide)
        layer, batch = pooled_moments(instance, dim=1), self._batch_moments(instance, x)
        mean = _mixture(self.mean_logits, instance.mean, layer.mean, batch.mean)
        var = _mixture(self.var_logits, instance.var, layer.var, batch.var)
        scale = scale_and_shift((var + self.eps).rsqrt(), self.weight, None)  # small: one product less on all of x
        return scale_and_shift((wide - mean) * scale, None, self.bias).to(x.dtype)

    def _batch_moments(self, instance: Moments, x: Tensor) -> Moments:
        mean, var = self.running_mean, self.running_var
        if mean is not None and var is not None and not self.training:
            return Moments(per_channel(promote(mean), x), per_channel(promote(var), x))
        batch = pooled_moments(instance, dim=0)
        self.track(batch, count=x.numel() // self.num_features)
        return batch


def pooled_moments(parts: Moments, *, dim: int) -> Moments:
    """Pool the moments of equally many values each over ``dim``, which stays as a one: the law of total variance.

    ``mean = E[mean_i]`` and ``var = E[var_i + (mean_i - mean)^2]``, without a pass over the values themselves.
    """
    mean = parts.mean.mean(dim, keepdim=True)
    return Moments(mean, (parts.var + (parts.mean - mean).square()).mean(dim, keepdim=True))


def _mixture(logits: Tensor, instance: Tensor, layer: Tensor, batch: Tensor) -> Tensor:
    share = torch.softmax(logits.to(instance.dtype), 0)
    return share[0] * instance + share[1] * layer + share[2] * batch
