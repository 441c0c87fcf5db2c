"""The rule by which running statistics follow those of the batches, as pure functions."""

from __future__ import annotations

from torch import Tensor

from normlens.nn.functional import Moments

__all__ = ["averaging_factor", "update_running"]


def averaging_factor(momentum: float | None, batches: int | Tensor) -> float:
    """Weight of the newest batch in the running average.

    ``momentum`` itself; with None ``1 / batches``, which makes the running value the plain mean over all batches so
    far.

    Args:
        momentum: PyTorch's sense: the weight of the new value, 0.1 where other texts write a decay of 0.9.
        batches: how many batches were seen, the newest included.
    """
    return 1.0 / max(int(batches), 1) if momentum is None else momentum


def update_running(running: Moments, batch: Moments, *, count: int, factor: float) -> Moments:
    """Move running statistics toward those of one batch; the arguments stay as they are.

    ``mean' = (1 - f) mean + f mean_B`` and ``var' = (1 - f) var + f var_B count / (count - 1)``: as in PyTorch, the
    batch is normalized with the biased variance and remembered with the unbiased one. The result has the dtype of
    ``running``.

    Args:
        running: mean and variance so far, any shape.
        batch: mean and biased variance of the batch, of the same shape.
        count: how many values each of the batch's statistics pools.
        factor: see :func:`averaging_factor`.

    Raises:
        ValueError: ``count`` is below 2, where no unbiased variance exists.
    """
    if count < 2:
        raise ValueError(
            f"running variances need more than one value per statistic; got count={count}; skip this batch's update"
        )
    unbiased = batch.var * (count / (count - 1))
    mean = (1 - factor) * running.mean + factor * batch.mean
    var = (1 - factor) * running.var + factor * unbiased
    return Moments(mean.to(running.mean.dtype), var.to(running.var.dtype))
