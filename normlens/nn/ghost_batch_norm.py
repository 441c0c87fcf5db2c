"""Ghost batch normalization: batch norm on parts of the batch, each with statistics of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from normlens.nn import native
from normlens.nn.base import RunningNormalization

__all__ = ["GhostBatchNorm", "ghost_sizes"]


class GhostBatchNorm(RunningNormalization):
    """Standardize each channel over space and over a part of the batch, a ghost, then scale and shift it.

    ``y = weight_c (x - mean_gc) / sqrt(var_gc + eps) + bias_c``; ``mean_gc`` and the biased ``var_gc`` pool ghost ``g``
    and ``*spatial`` of channel ``c`` in train mode and are ``running_mean``, ``running_var`` in eval mode. Ghosts are
    neighbors in the batch, see :func:`ghost_sizes`. Each of them, in turn, moves the running statistics as a batch of
    its own does and is counted as one, so that ``k`` ghosts leave ``(1 - momentum)^k`` of what was there before. A
    batch of less than two ghosts makes it batch norm, with the state dict of ``torch.nn.BatchNorm1d`` in any case.

    Shapes: ``(N, C, *spatial)`` to the same, any spatial rank; the output is dimensionless before ``weight`` and
    ``bias``.

    Valid in train mode from two values per channel and ghost on. Derivatives as for batch norm: right by double
    backward or ``jvp(grad)``, not by ``torch.func.hessian``.

    Source: Hoffer, Hubara and Soudry, NeurIPS 2017, arXiv:1705.08741, algorithm 1, with ghosts of 128 in batches of
    thousands; the rule for a remainder is ours.

    Args:
        num_features: ``C``, the channels at dimension 1.
        ghost_size: the least number of samples in a ghost, where the batch has as many.
        eps: added to the variance; with 0 a constant channel becomes 0 or nan, as PyTorch's kernel has it.
        momentum: weight of the newest ghost in the running statistics; None averages all ghosts alike.
        affine: whether to scale and shift.
        track_running_stats: without running statistics eval mode uses the ghosts' too.
        device: of parameters and buffers.
        dtype: of parameters and buffers; statistics are taken in at least float32.

    Raises:
        ValueError: ``ghost_size`` is below 1, a wrong number of channels, or one value per channel and ghost where the
            ghosts' statistics are used.
    """

    def __init__(
        self,
        num_features: int,
        *,
        ghost_size: int = 32,
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
        if ghost_size < 1:
            raise ValueError(
                f"GhostBatchNorm needs ghost_size of at least 1; got {ghost_size}; give the samples per ghost, e.g. 32"
            )
        self.ghost_size = ghost_size

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``(N, C, *spatial)``; in train mode the running statistics move, once per ghost."""
        self.check_input(x)
        if self.running_mean is not None and not self.training:
            return self._normalize(x, on_batch=False)
        sizes = ghost_sizes(x.shape[0], self.ghost_size)
        advice = "use larger ghosts (ghost_size), a larger batch, or running statistics and .eval()"
        self.check_count(min(sizes) * x.shape[2:].numel(), x, unit="channel and ghost", advice=advice)
        if len(sizes) == 1:
            return self._normalize(x, on_batch=True)
        return torch.cat([self._normalize(ghost, on_batch=True) for ghost in x.split_with_sizes(sizes)])

    def _normalize(self, x: Tensor, *, on_batch: bool) -> Tensor:
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


def ghost_sizes(batch: int, ghost_size: int) -> list[int]:
    """Split a batch into as many ghosts of at least ``ghost_size`` as it has, and at least one, as evenly as possible.

    A remainder is shared out, so that no ghost is too small for a variance: 11 samples in ghosts of 4 are 6 and 5.
    """
    ghosts = max(1, batch // ghost_size)
    size, larger = divmod(batch, ghosts)
    return [size + 1] * larger + [size] * (ghosts - larger)
