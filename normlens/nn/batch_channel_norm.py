"""Batch-channel normalization: each channel by its batch or by estimates of it, then each sample over groups."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from normlens.nn import native
from normlens.nn.base import RunningNormalization
from normlens.nn.functional import Moments, batch_dims, mean_square, per_channel, promote
from normlens.nn.group_norm import default_groups

__all__ = ["BatchChannelNorm", "estimate_moments"]


class BatchChannelNorm(RunningNormalization):
    """Standardize each channel over batch and space and then each sample over groups of channels, each with an affine.

    ``z = weight_c (x - mean_c) / sqrt(var_c + eps) + bias_c`` and ``y = channel_weight (z - mean_ng) / sqrt(var_ng +
    eps) + channel_bias``; ``mean_ng`` and the biased ``var_ng`` pool the channels of group ``g`` and ``*spatial`` of
    sample ``n`` of ``z``. The batch keeps every channel alive, the groups keep every sample at scale one. There are two
    forms of ``mean_c`` and ``var_c``:

    Large batches, ``moving_speed=None``: those of batch norm in train mode, the running ones in eval mode.

    Micro-batches, ``moving_speed=r``: the running ones in both modes, after train mode has moved them by the batch as
    in :func:`estimate_moments`. They are constants for the backward pass, ``dL/dx = weight_c / sqrt(var_c + eps)
    dL/dz``, which is not the derivative of what train mode computes: ``exact_gradient`` is then False.

    Shapes: ``(N, C, *spatial)`` to the same, any spatial rank; the output is dimensionless before the last affine.

    Valid from two values per group on, for the large form also two per channel in train mode; the micro form takes a
    batch of one. There too ``var_c`` estimates the variance with an excess: for independent batches of ``M`` values
    ``E[var_c] = (1 + r / ((2 - r) M)) variance``. Derivatives: see :mod:`normlens.nn.native`.

    Source: Qiao, Wang, Liu, Shen and Yuille, 2019, arXiv:1911.09738 and arXiv:1903.10520. Their code has the last
    affine per group (``affine_per="group"``), fixes 32 groups, trains the large form alone, and gives the micro form in
    the README with a speed of 0 that nothing sets, so that it never moves. It is not the layer of Khaled et al. 2023.

    Args:
        num_features: ``C``, the channels at dimension 1.
        groups: how many groups, a divisor of ``num_features``; None for as many up to 32 as leave two channels to each.
        moving_speed: None for the large-batch form; for the micro-batch form ``r`` above 0 up to 1, as an attribute
            that may follow the learning rate, which is the paper's choice.
        affine_per: whether ``channel_weight`` and ``channel_bias`` have ``C`` values or one per group.
        eps: added to both variances; with 0 a constant channel or group becomes 0 or nan, as PyTorch's kernel has it.
        momentum: large form: weight of the newest batch in the running statistics; None averages all batches alike.
        affine: whether there are ``weight``, ``bias``, ``channel_weight`` and ``channel_bias``.
        track_running_stats: without running statistics eval mode uses the batch's too.
        device: of parameters and buffers.
        dtype: of parameters and buffers; statistics are taken in at least float32.

    Raises:
        ValueError: ``groups`` does not divide ``num_features``, ``affine_per`` is neither, ``moving_speed`` is not in
            (0, 1] or has no running statistics to move, a wrong number of channels, or one value per group or channel.
    """

    channel_weight: nn.Parameter | None
    channel_bias: nn.Parameter | None

    def __init__(
        self,
        num_features: int,
        *,
        groups: int | None = None,
        moving_speed: float | None = None,
        affine_per: Literal["channel", "group"] = "channel",
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
        self.groups = default_groups(num_features) if groups is None else groups
        self.moving_speed, self.affine_per = moving_speed, affine_per
        self._check_settings()
        one = torch.ones(num_features if affine_per == "channel" else self.groups, device=device, dtype=dtype)
        self.register_parameter("channel_weight", nn.Parameter(one) if affine else None)
        self.register_parameter("channel_bias", nn.Parameter(torch.zeros_like(one)) if affine else None)

    @property
    def exact_gradient(self) -> bool:  # type: ignore[override]  # one class, two forms
        """Whether this is the large-batch form, whose backward pass is the derivative of its forward pass."""
        return self.moving_speed is None

    def reset_parameters(self) -> None:
        """Set both weights to one and both biases to zero, and forget all batches."""
        super().reset_parameters()
        if self.channel_weight is not None and self.channel_bias is not None:
            nn.init.ones_(self.channel_weight)
            nn.init.zeros_(self.channel_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``(N, C, *spatial)``; in train mode the running statistics move."""
        self.check_input(x)
        count = x.shape[1:].numel() // self.groups
        self.check_count(count, x, unit="group", advice="use fewer groups or an input with space")
        wide = promote(x)
        estimate = self._estimate(wide)
        z = self._by_batch(wide) if estimate is None else self._by_estimate(wide, estimate)
        weight, bias = self._of_channels(self.channel_weight), self._of_channels(self.channel_bias)
        return native.group_norm(z, self.groups, weight, bias, eps=self.eps).to(x.dtype)

    def _by_batch(self, x: Tensor) -> Tensor:
        on_batch = self.training or self.running_mean is None
        if on_batch:
            advice = "use a larger batch, or the micro-batch form (moving_speed=0.1)"
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

    def _by_estimate(self, x: Tensor, estimate: Moments) -> Tensor:
        weight, bias = self.weight, self.bias
        return native.batch_norm(x, *estimate, weight, bias, training=False, factor=0.0, eps=self.eps)

    @torch.no_grad()
    def _estimate(self, x: Tensor) -> Moments | None:
        """Give the estimates of the micro-batch form, moved and remembered in train mode; None in the other form."""
        if self.moving_speed is None or self.running_mean is None or self.running_var is None:
            return None
        estimate = Moments(promote(self.running_mean), promote(self.running_var))
        if self.training:
            self.count_batch()
            estimate = estimate_moments(x, estimate, speed=self.moving_speed)
            self.running_mean.copy_(estimate.mean)
            self.running_var.copy_(estimate.var)
        return estimate

    def _of_channels(self, values: Tensor | None) -> Tensor | None:
        """Repeat values of groups for the channels in them; those of channels stay."""
        return values if values is None else values.repeat_interleave(self.num_features // values.numel())

    def _check_settings(self) -> None:
        if self.groups < 1 or self.num_features % self.groups:
            raise ValueError(
                f"BatchChannelNorm needs groups that divide num_features; got num_features={self.num_features}, "
                f"groups={self.groups}; choose a divisor, or leave groups out for {default_groups(self.num_features)}"
            )
        if self.affine_per not in {"channel", "group"}:
            raise ValueError(
                f"BatchChannelNorm needs affine_per to be 'channel' or 'group'; got {self.affine_per!r}; "
                "'group' is what the authors' code has"
            )
        if self.moving_speed is not None and not 0 < self.moving_speed <= 1:
            raise ValueError(
                f"BatchChannelNorm needs moving_speed above 0 and up to 1; got {self.moving_speed}; at 0 the estimates "
                "never move: take the learning rate, or None for the large-batch form"
            )
        if self.moving_speed is not None and not self.track_running_stats:
            raise ValueError(
                "BatchChannelNorm needs running statistics for moving_speed to move; got track_running_stats=False; "
                "set it True, or moving_speed=None"
            )


@torch.no_grad()
def estimate_moments(x: Tensor, old: Moments, *, speed: float) -> Moments:
    """Move estimates of each channel's mean and variance toward a micro-batch (EstBN), as constants.

    ``mean' = (1 - r) mean + r E[x]`` and ``var' = (1 - r) var + r E[(x - mean)^2]``: about the old mean, not the
    batch's, so that a batch of a single value has a variance too.

    Args:
        x: ``(N, C, *spatial)``; ``E`` pools batch and space. No derivative with respect to it enters the result.
        old: the estimates so far, ``(C,)`` each, in the units of ``x`` and of its square.
        speed: ``r``, the weight of the micro-batch.
    """
    wide, dims = promote(x.detach()), batch_dims(x)
    mean, var = wide.mean(dims), mean_square(wide - per_channel(old.mean, x), dims).flatten()
    return Moments((1 - speed) * old.mean + speed * mean, (1 - speed) * old.var + speed * var)
