"""Evolved normalization and activation in one: EvoNorm S0 by samples, B0 by batches."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normlens.nn.base import RunningNormalization
from normlens.nn.functional import Moments, instance_moments, moments, per_channel, promote, split_groups
from normlens.nn.functional import affine as scale_and_shift
from normlens.nn.group_norm import default_groups
from normlens.nn.switchable_norm import pooled_moments

__all__ = ["EvoNorm"]


class EvoNorm(RunningNormalization):
    """Normalize and activate in one expression, found by search: S0 by samples, or B0 by batches.

    S0, the default: ``y = weight_c x sigmoid(v_c x) / sqrt(var_ng + eps) + bias_c``; the biased ``var_ng`` pools the
    channels of group ``g`` and ``*spatial`` of sample ``n``, in train and eval mode alike.

    B0, ``batch_based=True``: ``y = weight_c x / max(sqrt(var_c + eps), v_c x + sqrt(var_nc + eps)) + bias_c``;
    ``var_nc`` pools ``*spatial`` of sample ``n`` and channel ``c``, ``var_c`` also the batch in train mode and is
    ``running_var`` in eval mode. That moves as batch norm's; ``running_mean`` does too, and only tells.

    No mean is subtracted. A nonlinearity is part of it: the paper puts no ReLU behind.

    Shapes: ``(N, C, *spatial)`` to the same, any spatial rank; the output of S0 and B0 is dimensionless before
    ``weight`` and ``bias``, but for the gate of S0, where ``v`` has the inverse units of ``x``.

    Valid for S0 from two values per group on, for B0 in train mode from two per channel; without space ``var_nc`` is 0.
    Right in every derivative mode.

    Source: Liu, Brock, Simonyan and Le, NeurIPS 2020, arXiv:2004.02967.

    Args:
        num_features: ``C``, the channels at dimension 1.
        batch_based: B0 rather than S0; only it keeps running statistics.
        groups: of S0, a divisor of ``num_features``; None for as many up to 32 as leave four channels to each.
        eps: added to the variances; with 0 a constant group or channel has no finite gradient.
        momentum: B0: weight of the newest batch in the running statistics; None averages all batches alike.
        affine: whether there are ``weight`` and ``bias``; ``v`` stays.
        track_running_stats: B0: without running statistics eval mode uses the batch's too.
        device: of parameters and buffers.
        dtype: of parameters and buffers; statistics are taken in at least float32.

    Raises:
        ValueError: ``groups`` does not divide ``num_features``, a wrong number of channels, or one value per group
            (S0) or channel (B0 on the batch's statistics).
    """

    def __init__(
        self,
        num_features: int,
        *,
        batch_based: bool = False,
        groups: int | None = None,
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
            track_running_stats=track_running_stats and batch_based,
            device=device,
            dtype=dtype,
        )
        self.batch_based, self.track_running_stats = batch_based, track_running_stats
        self.groups = default_groups(num_features) if groups is None else groups
        if self.groups < 1 or num_features % self.groups:
            raise ValueError(
                f"EvoNorm needs groups that divide num_features; got num_features={num_features}, groups={groups}; "
                f"choose a divisor, or leave groups out for {default_groups(num_features)}"
            )
        self.v = nn.Parameter(torch.ones(num_features, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Set ``weight`` and ``v`` to one and ``bias`` to zero, and forget all batches."""
        super().reset_parameters()
        nn.init.ones_(self.v)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize and activate ``(N, C, *spatial)``; in train mode the running statistics of B0 move."""
        self.check_input(x)
        wide = promote(x)
        return (self._by_batch(wide) if self.batch_based else self._by_sample(wide)).to(x.dtype)

    def _by_sample(self, x: Tensor) -> Tensor:
        count = x.shape[1:].numel() // self.groups
        self.check_count(count, x, unit="group", advice="use fewer groups or an input with space")
        grouped = split_groups(x, self.groups)
        scale = (moments(grouped, tuple(range(2, grouped.dim()))).var + self.eps).rsqrt()
        active = split_groups(x * torch.sigmoid(scale_and_shift(x, self.v, None)), self.groups)
        return scale_and_shift((active * scale).reshape(x.shape), self.weight, self.bias)

    def _by_batch(self, x: Tensor) -> Tensor:
        maps = x if x.dim() > 2 else x.unsqueeze(2)  # without space: one position
        if self.training or self.running_var is None:
            advice = "use a larger batch, or EvoNorm S0 (batch_based=False)"
            self.check_count(x.numel() // self.num_features, x, unit="channel", advice=advice)
        instance = instance_moments(maps)
        of_batch = (self._batch_var(instance, maps) + self.eps).sqrt()
        of_instance = (instance.var + self.eps).sqrt()
        over = torch.relu(scale_and_shift(maps, self.v, None) + (of_instance - of_batch))
        inverse = (of_batch + over).reciprocal()  # of the maximum; torch.maximum and a quotient take twice the time
        return scale_and_shift((scale_and_shift(maps, self.weight, None) * inverse).reshape(x.shape), None, self.bias)

    def _batch_var(self, instance: Moments, x: Tensor) -> Tensor:
        if self.running_var is not None and not self.training:
            return per_channel(promote(self.running_var), x)
        batch = pooled_moments(instance, dim=0)
        self.track(batch, count=x.numel() // self.num_features)
        return batch.var
