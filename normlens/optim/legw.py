"""LEGW: the learning rate grows with the root of the batch, its warm-up in epochs with the batch."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.optim.lr_scheduler import LambdaLR

__all__ = ["legw", "legw_setting"]


def legw(
    optimizer: torch.optim.Optimizer,
    *,
    base_batch_size: int,
    batch_size: int,
    base_warmup_epochs: float,
    dataset_size: int,
    epochs: float | None = None,
    decay: Callable[[float], float] | None = None,
    last_epoch: int = -1,
) -> LambdaLR:
    r"""Return a schedule with linear-epoch gradual warm-up, to be stepped after every iteration (not every epoch).

    With ``k = batch_size / base_batch_size`` the ``i``-th iteration (from 1) has the learning rate

    .. math:: \sqrt{k}\, \eta_0 \min(1,\; i / W)\, \mathrm{decay}(e), \qquad W = w_0 N / B_0

    ``W`` iterations are ``k w_0`` epochs: as iterations the warm-up is as long for every batch size. ``e = (i - 1) B /
    N`` counts the epochs that are over, by the samples: a last incomplete batch counts as a whole one, so epochs of
    ``ceil(N / B)`` iterations come out a little long. The decay is in epochs and knows no batch size.

    Args:
        optimizer: its learning rates are those of the base batch, ``eta_0``; every group keeps its own.
        base_batch_size: ``B_0``, samples, the batch for which ``eta_0`` and ``w_0`` were found.
        batch_size: ``B``, samples, the batch that is trained with.
        base_warmup_epochs: ``w_0``, may be below one.
        dataset_size: ``N``, samples in an epoch.
        epochs: how long the training is, to refuse a warm-up that never ends; None does not check.
        decay: ``decay(epochs) -> factor``, the schedule after the warm-up; None for a constant. ``state_dict`` of
            PyTorch's ``LambdaLR`` does not hold it: build the schedule with the same one before loading.
        last_epoch: the last iteration of a training that is resumed without a ``state_dict``; -1 to start.

    Raises:
        ValueError: sizes that are not positive, or a warm-up longer than the training.

    Source: Y. You et al., Large-Batch Training for LSTM and Beyond, arXiv:1901.08256 (SC 2019): square-root scaling,
    linear-epoch warm-up.
    """
    peak, warmup = _scaled(base_batch_size, batch_size, base_warmup_epochs, dataset_size, epochs)
    iterations = warmup * dataset_size / batch_size

    def factor(iteration: int) -> float:
        rise = min(1.0, (iteration + 1) / iterations) if iterations > 1 else 1.0
        return peak * rise * (1.0 if decay is None else decay(iteration * batch_size / dataset_size))

    return LambdaLR(optimizer, factor, last_epoch)


def legw_setting(
    base_lr: float, *, base_batch_size: int, batch_size: int, base_warmup_epochs: float
) -> tuple[float, float]:
    r"""Return the peak learning rate and the warm-up in epochs: ``(sqrt(k) eta_0, k w_0)``, ``k = B / B_0``.

    Args:
        base_lr: ``eta_0``, the learning rate of the base batch.
        base_batch_size: ``B_0``, samples.
        batch_size: ``B``, samples.
        base_warmup_epochs: ``w_0``.

    Raises:
        ValueError: sizes that are not positive.

    Source: Y. You et al., Large-Batch Training for LSTM and Beyond, arXiv:1901.08256, table 4 for ImageNet.
    """
    peak, warmup = _scaled(base_batch_size, batch_size, base_warmup_epochs, 1, None)
    return peak * base_lr, warmup


def _scaled(base: int, batch: int, warmup: float, samples: int, epochs: float | None) -> tuple[float, float]:
    if min(base, batch, samples) < 1 or not warmup >= 0:
        raise ValueError(
            "LEGW needs batch sizes and a data set of at least 1 sample, and a warm-up of at least 0 epochs; got "
            f"base_batch_size={base}, batch_size={batch}, dataset_size={samples}, base_warmup_epochs={warmup}; "
            "correct the one that is too small"
        )
    k = batch / base
    if epochs is not None and k * warmup > epochs:
        raise ValueError(
            f"LEGW needs the warm-up to end within the training; got {k:g} x {warmup:g} = {k * warmup:g} epochs of "
            f"warm-up in {epochs:g} epochs; train longer, or take a smaller batch or base_warmup_epochs"
        )
    return math.sqrt(k), k * warmup
