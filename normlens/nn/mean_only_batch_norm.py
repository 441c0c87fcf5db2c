"""Mean-only batch normalization: each channel less its mean over the batch and over space."""

from __future__ import annotations

import torch
from torch import Tensor

from normlens.nn.base import RunningNormalization
from normlens.nn.functional import affine, batch_dims, per_channel, promote

__all__ = ["MeanOnlyBatchNorm"]


class MeanOnlyBatchNorm(RunningNormalization):
    """Take the mean over batch and space from each channel, then shift it.

    ``y = x - mean_c + bias_c``; ``mean_c`` pools ``(N, *spatial)`` of channel ``c`` in train mode and is
    ``running_mean`` in eval mode. After each batch in train mode ``running_mean' = (1 - momentum) running_mean +
    momentum mean``. The scale of the input stays, so weight normalization goes with it, which has the gain; here are no
    variance, no ``eps`` and no ``weight``.

    Shapes: ``(N, C, *spatial)`` to the same, any spatial rank; the output has the units of the input.

    Valid in train mode from two values per channel on. There a sample's output depends on its batch: derivatives per
    sample do not exist. Right in every derivative mode.

    Source: Salimans and Kingma, NeurIPS 2016, arXiv:1602.07868, section 4. Their code, in the pass that initializes
    the network, also divides by the standard deviation of the batch, which belongs to the weights and is not done here.

    Args:
        num_features: ``C``, the channels at dimension 1.
        momentum: weight of the newest batch in the running mean; None averages all batches alike.
        affine: whether to shift.
        track_running_stats: without a running mean eval mode uses the batch's too.
        device: of parameter and buffers.
        dtype: of parameter and buffers; the mean is taken in at least float32.

    Raises:
        ValueError: a wrong number of channels, or one value per channel where the batch's mean is used.
    """

    def __init__(
        self,
        num_features: int,
        *,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            num_features,
            eps=0.0,
            momentum=momentum,
            affine=affine,
            track_running_stats=track_running_stats,
            device=device,
            dtype=dtype,
        )
        self.weight, self.running_var = None, None

    def reset_running_stats(self) -> None:
        """Forget all batches: mean 0, count 0."""
        if self.running_mean is not None and self.num_batches_tracked is not None:
            self.running_mean.zero_()
            self.num_batches_tracked.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Center ``(N, C, *spatial)``; in train mode the running mean moves."""
        self.check_input(x)
        wide = promote(x)
        if self.running_mean is not None and not self.training:
            mean = per_channel(self.running_mean.to(wide.dtype), x)
        else:
            self._check_two_values(x)
            mean = wide.mean(batch_dims(x), keepdim=True)
            self._track(mean.detach().flatten())
        return affine(wide - mean, None, self.bias).to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor) -> None:
        if self.running_mean is not None:
            factor = self.count_batch()
            self.running_mean.copy_((1 - factor) * promote(self.running_mean) + factor * mean)

    def _check_two_values(self, x: Tensor) -> None:
        if x.numel() // self.num_features < 2:
            raise ValueError(
                f"MeanOnlyBatchNorm({self.num_features}) needs more than one value per channel, since one alone less "
                f"its mean is zero; got {tuple(x.shape)}; use a larger batch, or a running mean "
                "(track_running_stats=True and .eval())"
            )
