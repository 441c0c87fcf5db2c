"""The statistics of a batch that lies on several ranks: exact, whatever share of it each rank holds."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from normlens.nn.functional import Moments, batch_moments, per_channel, promote

__all__ = ["synchronized_moments", "total_moments"]


def total_moments(counts: Tensor, shards: Moments) -> Moments:
    """Moments of all values from those of their shards, by the law of total variance.

    ``n = sum_i n_i``, ``mean = sum_i n_i mean_i / n`` and ``var = sum_i n_i (var_i + (mean_i - mean)^2) / n``: the mean
    of the variances and the variance of the means. Exact for any counts; averaging the variances alone would leave out
    how far apart the shards lie. The deviations are taken from the total mean, so that nothing cancels.

    Args:
        counts: ``(R,)``, how many values each shard pools; at least one is above 0. A shard of none counts for nothing,
            but its moments must be finite.
        shards: mean and biased variance of each shard, ``(R, C)``.

    Returns:
        Mean and biased variance of all values, ``(C,)``.
    """
    shares = (counts / counts.sum()).unsqueeze(1)
    mean = (shares * shards.mean).sum(0)
    return Moments(mean, (shares * (shards.var + (shards.mean - mean).square())).sum(0))


def synchronized_moments(x: Tensor, group: dist.ProcessGroup) -> tuple[Moments, int]:
    """Moments of each channel over space and the batches of all ranks, ``(1, C, 1, ...)``, and their count of values.

    Every rank of ``group`` calls it with its part of the batch, of any size, also none; all get the same numbers. It
    costs one all-reduce of ``2 C + 1`` numbers per rank, and another one in the backward pass, in which every rank must
    take part. The gradient on a rank is that of the *sum* of all ranks' losses with respect to this rank's ``x``.

    Args:
        x: this rank's ``(N, C, *spatial)``; the same device type, dtype and ``C`` on all ranks.
        group: the ranks, e.g. ``torch.distributed.group.WORLD``.
    """
    channels, count = x.shape[1], x.numel() // x.shape[1]
    mean, var = (m.flatten() for m in _finite_moments(x))
    rows = _rows_of_all_ranks(torch.cat([mean, var, mean.new_tensor([count])]), group)
    counts = rows[:, -1].detach()
    total = total_moments(counts, Moments(rows[:, :channels], rows[:, channels:-1]))
    return Moments(*(per_channel(m, x) for m in total)), int(counts.double().sum())


def _finite_moments(x: Tensor) -> Moments:
    """Batch moments; of no samples zeros, which still depend on ``x``, so that the rank joins the backward pass."""
    if x.shape[0]:
        return batch_moments(x)
    zero = promote(x).sum((0, *range(2, x.dim())))
    return Moments(zero, zero)


def _rows_of_all_ranks(row: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Stack the ``(K,)`` rows of all ranks, ``(R, K)``: every rank writes its own among zeros, and they add up."""
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    rows = F.pad(row.unsqueeze(0), (0, 0, rank, ranks - rank - 1))
    total: Tensor = _SumOverRanks.apply(rows, group)  # type: ignore[no-untyped-call]
    return total


class _SumOverRanks(torch.autograd.Function):
    """The sum over ranks is its own tangent map and, for the sum of all ranks' losses, its own adjoint."""

    @staticmethod
    def forward(tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
        total = tensor.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.group = inputs[1]

    @staticmethod
    def backward(ctx: Any, cotangent: Any) -> tuple[Any, None]:
        return _SumOverRanks.apply(cotangent, ctx.group), None  # type: ignore[no-untyped-call]

    @staticmethod
    def jvp(ctx: Any, tangent: Any, _: Any) -> Any:
        return _SumOverRanks.apply(tangent, ctx.group)  # type: ignore[no-untyped-call]
