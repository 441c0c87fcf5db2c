"""Batch normalization: each channel standardized over the batch and over space."""

from __future__ import annotations

import copy
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor

from normlens.nn import native
from normlens.nn.base import RunningNormalization
from normlens.nn.functional import affine, standardize
from normlens.nn.synchronized import synchronized_moments

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

    With a ``process_group`` ``mean_c`` and ``var_c`` pool the batches of all its ranks, whatever their sizes: the
    numbers of one process on the whole batch, as from ``torch.nn.SyncBatchNorm``, but on a CPU too. In train mode every
    rank must then call the layer, and the gradient on each is that of the *sum* of all ranks' losses.

    Source: Ioffe and Szegedy, ICML 2015, arXiv:1502.03167, algorithms 1 and 2.

    Args:
        num_features: ``C``, the channels at dimension 1.
        eps: added to the variance; with 0 a constant channel becomes 0 or nan, as PyTorch's kernel has it.
        momentum: weight of the newest batch in the running statistics; None averages all batches alike.
        affine: whether to scale and shift.
        track_running_stats: without running statistics eval mode uses the batch's too.
        process_group: the ranks that share a batch, e.g. ``torch.distributed.group.WORLD``; None for this one alone.
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
        process_group: dist.ProcessGroup | None = None,
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
        self.process_group = process_group

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        """Copy everything but the process group, which is a connection and no data."""
        twin = type(self).__new__(type(self))
        memo[id(self)], memo[id(self.process_group)] = twin, self.process_group
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``(N, C, *spatial)``; in train mode the running statistics move."""
        self.check_input(x)
        on_batch = self.training or self.running_mean is None
        if on_batch and self.process_group is not None:
            return self._across_ranks(x, self.process_group)
        if on_batch:
            self._check_values(x.numel() // self.num_features, x)
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

    def _across_ranks(self, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        batch, count = synchronized_moments(x, group)
        self._check_values(count, x)
        self.track(batch, count=count)
        return affine(standardize(x, *batch, self.eps), self.weight, self.bias).to(x.dtype)

    def _check_values(self, count: int, x: Tensor) -> None:
        advice = "use a larger batch, or running statistics (track_running_stats=True and .eval())"
        self.check_count(count, x, unit="channel", advice=advice)
