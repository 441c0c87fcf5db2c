"""Batch Kalman normalization: moments of the batch mixed with a prior, of the layer before or of the past."""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from normlens.nn.base import RunningNormalization
from normlens.nn.functional import Moments, affine_standardize, batch_dims, centered_moments, per_channel, promote

__all__ = ["BatchKalmanNorm", "HandedOn", "filtered_moments"]

HandedOn = Literal["consistent", "repo"]


class BatchKalmanNorm(RunningNormalization):
    """Standardize each channel by the batch's moments mixed with a prior, then scale and shift it.

    ``y = weight_c (x - mean_c) / sqrt(var_c + eps) + bias_c``. In train mode the moments are those of a mixture of the
    prior, of weight ``q = prior_weight``, and of the batch over ``(N, *spatial)``, of weight ``1 - q``: see
    :func:`filtered_moments`. Where the prior is out of range, ``mean_c(prior var_c / (batch var_c + eps)) >=
    max_ratio``, the batch alone counts. In eval mode they are ``running_mean`` and ``running_var``, which after each
    batch in train mode follow ``running' = (1 - momentum) running + momentum filtered``, filtered with the unbiased
    variance of the batch.

    The prior is what :class:`normlens.nn.kalman_chain.KalmanSequential` predicts from the layer before. By itself, and
    first in a chain, a layer takes its own running statistics as they stand before the batch, as constants; without
    ``track_running_stats`` it then is batch norm. With ``prior_weight=0`` it is batch norm everywhere.

    Shapes: ``(N, C, *spatial)`` to the same, any spatial rank; the output is dimensionless before ``weight`` and
    ``bias``.

    Valid in train mode from two values per channel on; meant for few samples, where ``prior_weight`` pays: the best is
    ``e / (e + b^2)`` for a batch mean of squared error ``e`` and a prior mean of squared error ``b^2``. Not a Kalman
    filter in the strict sense, whose variance would shrink: this one holds ``var >= q prior var + (1 - q) batch var``.
    In train mode a sample's output depends on its batch, as with batch norm.

    Source: Wang, Peng, Luo, Wang and Lin, NeurIPS 2018, arXiv:1802.03133 (its update; its transition is in
    ``KalmanSequential``). The published code skips the prior by the same ratio, with 100; takes 0.05 for large batches
    and 0.9 for micro-batches; and gives the first layer no prior.

    Args:
        num_features: ``C``, the channels at dimension 1.
        prior_weight: ``q`` from 0 to 1, the weight of the prior.
        prior: what it hands on to the next layer's prediction: ``"consistent"``, the moments ``bias`` and ``weight^2``
            that its output is meant to have, or ``"repo"``, the filtered moments of its input, as the published code
            does, which are off by the scale of that input.
        max_ratio: the mean ratio of variances from which on the prior is not used; ``inf`` for always.
        eps: added to the variance; with 0 a constant channel may become nan.
        momentum: weight of the newest batch in the running statistics; None averages all batches alike.
        affine: whether to scale and shift.
        track_running_stats: without running statistics eval mode uses the batch's too.
        device: of parameters and buffers.
        dtype: of parameters and buffers; statistics are taken in at least float32.

    Raises:
        ValueError: a setting out of its range, a wrong number of channels, or one value per channel where the batch's
            statistics are used.
    """

    exact_gradient: ClassVar[bool] = True

    def __init__(
        self,
        num_features: int,
        *,
        prior_weight: float = 0.05,
        prior: HandedOn = "consistent",
        max_ratio: float = 100.0,
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
        self.prior_weight, self.prior, self.max_ratio = prior_weight, prior, max_ratio
        self._check_settings()

    @property
    def on_batch(self) -> bool:
        """Whether the next batch's own statistics count: in train mode, or where there are no running ones."""
        return self.training or self.running_mean is None

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``(N, C, *spatial)`` by itself; in train mode the running statistics move."""
        return self.step(x)[0]

    def step(self, x: Tensor, prior: Moments | None = None) -> tuple[Tensor, Moments]:
        """Normalize ``(N, C, *spatial)`` as one layer of a chain.

        Args:
            x: the input.
            prior: mean and variance of ``(C,)`` predicted for ``x``; None for the layer's own. Unused in eval mode.

        Returns:
            The output, and the moments of ``(C,)`` it hands on, from which those of the next layer are predicted.

        Raises:
            ValueError: as ``forward``, or a prior of another shape.
        """
        self.check_input(x)
        running = None if self.on_batch else self._running()
        if running is None:
            centered, moments = centered_moments(x, batch_dims(x))
            batch = Moments(*(m.flatten() for m in moments))
            center, by = batch.mean, self._filtered(batch, prior, x)
        else:
            centered, center, by = promote(x) - per_channel(running.mean, x), running.mean, running
        y = affine_standardize(centered, center, by, self.weight, self.bias, self.eps).to(x.dtype)
        return y, by if self.prior == "repo" else self._aim(by.var)

    def _filtered(self, batch: Moments, prior: Moments | None, x: Tensor) -> Moments:
        count = x.numel() // self.num_features
        advice = "use a larger batch, or running statistics (track_running_stats=True and .eval())"
        self.check_count(count, x, unit="channel", advice=advice)
        known = self._running() if prior is None else self._checked(prior)
        if known is None:
            return batch
        ratio = (known.var / (batch.var + self.eps)).detach().mean()
        q = (ratio < self.max_ratio).to(ratio.dtype) * self.prior_weight
        self._track(known, batch, q, count)
        return filtered_moments(known, batch, q)

    def _running(self) -> Moments | None:
        """Return a copy of the running statistics in at least float32: the buffers themselves are about to move."""
        if self.running_mean is None or self.running_var is None:
            return None
        return Moments(promote(self.running_mean).clone(), promote(self.running_var).clone())

    def _aim(self, like: Tensor) -> Moments:
        """Return the moments that the affine gives to standardized values."""
        if self.weight is None or self.bias is None:
            zero = like.new_zeros(self.num_features)
            return Moments(zero, zero + 1)
        return Moments(self.bias.to(like.dtype), self.weight.to(like.dtype).square())

    @torch.no_grad()
    def _track(self, prior: Moments, batch: Moments, q: Tensor, count: int) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        # Only the batch's variance is corrected: corrected as a whole, a layer that is its own prior would grow by
        # q n / (n - 1) each time.
        unbiased = Moments(batch.mean.detach(), batch.var.detach() * (count / (count - 1)))
        new = filtered_moments(Moments(*(m.detach() for m in prior)), unbiased, q)
        factor = self.count_batch()
        for buffer, moment in zip((self.running_mean, self.running_var), new, strict=True):
            buffer.copy_((1 - factor) * promote(buffer) + factor * moment)

    def _checked(self, prior: Moments) -> Moments:
        shapes = [tuple(m.shape) for m in prior]
        if shapes != [(self.num_features,)] * 2:
            raise ValueError(
                f"BatchKalmanNorm({self.num_features}) needs a prior mean and variance of ({self.num_features},); got "
                f"{shapes[0]} and {shapes[1]}; predict them for the channels of this layer's input"
            )
        return prior

    def _check_settings(self) -> None:
        if not 0 <= self.prior_weight <= 1:
            raise ValueError(
                f"BatchKalmanNorm needs prior_weight from 0 to 1; got {self.prior_weight}; 0 is batch norm, 0.9 is for "
                "micro-batches"
            )
        if self.prior not in get_args(HandedOn):
            raise ValueError(f"BatchKalmanNorm needs prior to be one of {get_args(HandedOn)}; got {self.prior!r}")
        if not self.max_ratio > 0:
            raise ValueError(f"BatchKalmanNorm needs max_ratio above 0; got {self.max_ratio}; use inf for no limit")


def filtered_moments(prior: Moments, batch: Moments, prior_weight: float | Tensor) -> Moments:
    """Mix a prior and a batch: the mean and variance of ``q prior + (1 - q) batch`` by the law of total variance.

    ``mean = q m + (1 - q) mean_B``, ``var = q v + (1 - q) var_B + q (1 - q) (mean_B - m)^2``. Without a prior
    (``q = 0``) it is the batch, where both agree nothing changes, and no variance gets negative.

    Args:
        prior: mean and variance ``m``, ``v``, any shape.
        batch: mean and variance of the batch, of the same shape.
        prior_weight: ``q`` from 0 to 1.
    """
    q, rest = prior_weight, 1 - prior_weight
    mean = q * prior.mean + rest * batch.mean
    return Moments(mean, q * prior.var + rest * batch.var + q * rest * (batch.mean - prior.mean).square())
